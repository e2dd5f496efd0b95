"""The edge between what people see and what is diffused.

    samples      what users have: uint8 images (N, H, W, C), sounds, clips, points
    x            what is diffused: float32 (N, *codec.shape), in codec.limits if it has any

All code that shows, saves, clips or compares samples goes through the Codec; nothing else knows what a number in x
means. `Pixels` is the codec of image models. A codec of another kind (latents of an autoencoder, a spectrogram) is a
subclass with a `kind` of its own, which `register` makes known so that saved models can be opened.
"""

import functools
from typing import TypeVar

import numpy as np

from pydiff.arrays import to_host
from pydiff.mistakes import made_fit

LOW, HIGH = PIXEL_RANGE = (-1.0, 1.0)  # black and white as floats
NOISE_RANGE = 3.0  # black and white are +-3 standard deviations of noise, which hold 99.7 % of a normal distribution


def from_uint8(images) -> np.ndarray:
    """uint8 of any shape to float32 in [-1, 1]: u / 127.5 - 1, so that 0 maps to -1 and 255 to 1 exactly.

    Raises TypeError for any other dtype.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"got {images.dtype} pixels, expected uint8; pydiff.data.load converts other images")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x) -> np.ndarray:
    """Floats in [-1, 1], of any shape, to the nearest of the 256 grey levels; values outside are clipped.

    The inverse of `from_uint8` on its 256 values. Raises TypeError unless x is floating-point, and ValueError for NaN
    and infinity, which have no nearest level.
    """
    x = np.asarray(x)
    if x.dtype.kind != "f":
        raise TypeError(f"got {x.dtype} values, expected floats in [-1, 1]; uint8 images need no conversion")
    if not np.isfinite(x).all():
        bad = x.size - np.count_nonzero(np.isfinite(x))
        raise ValueError(f"{bad} of {x.size} values are NaN or infinite, expected [-1, 1]; look for what made them")
    x = x.astype(np.float32 if x.dtype.itemsize <= 4 else np.float64, copy=False)  # float16 is too coarse for x + 1
    return np.rint((np.clip(x, LOW, HIGH) + 1) * 127.5).astype(np.uint8)


class Codec:
    """Base class of all codecs. A subclass defines shape, encode and decode, and overrides what differs from the
    defaults.

    kind: its name in files. noun: what a sample is called. shape: of one x, channels last. limits: (low, high) between
    which every x0 lies, or None; samplers clip their predicted x0 to it.
    """

    kind, noun = "", "image"
    limits: tuple[float, float] | None = None
    bits: tuple[float, bool] | None = None  # see likelihood.py: (log2 of the scale sample / x, whether on 256 levels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x, without the axis of samples."""
        raise NotImplementedError

    @functools.cached_property  # not a property, so that a subclass may assign an attribute of this name
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images that are given and shown, for codecs whose x is not an image."""
        return self.shape

    def shape_of(self, samples) -> tuple[int, ...]:  # noqa: ARG002
        """Shape of one x that encodes these samples, for codecs that take several sizes."""
        return self.shape

    def encode(self, samples) -> np.ndarray:
        """Samples to x: float32 (N, *shape). Raises ValueError for samples that do not fit."""
        raise NotImplementedError

    def decode(self, x):
        """x, on any device, to samples. Values outside `limits` are clipped."""
        raise NotImplementedError

    def encode_given(self, samples) -> np.ndarray:
        """Encodes samples that a user passes for editing. A codec may be stricter here than with a checked data set."""
        return self.encode(samples)

    def show(self, samples) -> np.ndarray:
        """Samples as images for a page or a terminal: uint8 (N, H, W, C)."""
        return samples

    def show_x(self, x) -> np.ndarray:
        """x, noisy or predicted, as images: uint8 (N, H, W, C)."""
        return self.show(self.decode(x))

    def show_noise(self, eps) -> np.ndarray:
        """Noise of the shape of x as images: +-3 standard deviations are white and black, zero is mid grey."""
        return to_uint8(to_host(eps) / NOISE_RANGE)

    mask_forms = "(H, W) or (N, H, W)"

    def mask_axes(self, mask) -> np.ndarray:
        """A user's mask, of a form that `mask_forms` lists, with as many axes as samples have."""
        return {2: mask[None, ..., None], 3: mask[..., None]}.get(mask.ndim, mask) if mask.ndim else mask

    def encode_mask(self, mask) -> np.ndarray:
        """A mask over samples, (N, H, W, C or 1) from 0 to 1, as one over x that broadcasts to (N, *shape)."""
        return mask

    def kept(self, drawn, _given, _mask):
        """Inpainted samples with the kept part of the given ones put back, for codecs that do not decode it exactly."""
        return drawn

    def reader(self, dataset, flip=False):  # noqa: ARG002 - for those that do
        """A function (indices (n,), which of them to mirror (n,) bool or None) -> x (n, *shape) of a Dataset's samples.

        flip: whether any samples will be mirrored. A slow codec may encode the whole data set here, in advance.
        """

        def read(indices, mirrored=None):
            samples = dataset.samples(indices)
            if mirrored is not None:
                chosen = mirrored.reshape((-1,) + (1,) * (samples.ndim - 1))
                samples = np.where(chosen, samples[..., ::-1, :], samples)
            return self.encode(samples)

        return read

    def keep_in(self, folder):
        """Called when a training has a folder: the codec can write there what it needs or wants to keep."""

    def to(self, xp):  # noqa: ARG002 - for those that compute
        """Moves the networks it computes with to the device of this array library, numpy or cupy. Returns the codec."""
        return self

    @property
    def beside(self) -> dict:
        """{folder: network} of the codec's own networks; each is saved in its folder beside the diffusion model."""
        return {}

    def to_config(self) -> dict:
        """A dict for JSON; `from_config` turns it into an equal codec."""
        return {"kind": self.kind, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(tuple(config["shape"]))  # pyright: ignore[reportCallIssue]


class Levels(Codec):
    """Base class of codecs whose samples are diffused as they are: uint8 (N, *shape), or float32 in [-1, 1] if the
    source is finer than 8 bits.
    """

    limits = PIXEL_RANGE
    bits = (0.0, True)
    called = "images"  # its samples, in messages

    def __init__(self, shape):
        self._shape = tuple(shape)

    @property
    def shape(self):
        """The shape of one sample, without N."""
        return self._shape

    def encode(self, samples):
        """uint8 or float32 (N, *shape) -> float32 in [-1, 1]."""
        samples = np.asarray(samples)
        if samples.dtype not in (np.uint8, np.float32) or not samples.ndim or samples.shape[1:] != self.shape:
            raise self._unfit(samples)
        return from_uint8(samples) if samples.dtype == np.uint8 else samples

    def encode_given(self, samples):
        """Like `encode`, but takes uint8 only: the range of a user's floats cannot be known."""
        samples = np.asarray(samples)
        if samples.dtype != np.uint8 or not samples.ndim or not len(samples):
            raise self._unfit(samples)
        return self.encode(samples)

    def _unfit(self, samples):
        expected = ", ".join(map(str, self.shape))
        what = f"{self.called} are {samples.dtype} {samples.shape}, expected uint8 (N, {expected})"
        return ValueError(f"{what}; {made_fit(samples, self.shape)}")

    def decode(self, x):
        """Floats (N, *shape) in [-1, 1] to uint8. Values outside are clipped."""
        return to_uint8(to_host(x).clip(*PIXEL_RANGE))  # an overflow is white, or black; NaN is an error

    def show(self, samples):
        """uint8 samples as they are; floats rounded to uint8."""
        return samples if samples.dtype == np.uint8 else to_uint8(samples)


class Pixels(Levels):
    """Images as they are, (N, H, W, C)."""

    kind = "pixels"


CODECS: dict[str, type[Codec]] = {Pixels.kind: Pixels}


Kind = TypeVar("Kind", bound=Codec)


def register(codec: type[Kind]) -> type[Kind]:
    """Makes a codec known by its `kind`, so that a saved model that uses it can be opened. Also a class decorator."""
    CODECS[codec.kind] = codec
    return codec


def from_config(config: dict, beside: dict | None = None) -> Codec:
    """The codec that `to_config` described; raises ValueError for an unregistered kind.

    beside: networks that were saved with it, by their folders.
    """
    kind = config.get("kind")
    if kind not in CODECS:
        raise ValueError(f"this model needs the codec {kind!r}, which is not registered; known are {', '.join(CODECS)}")
    return CODECS[kind].from_config(config, **({"beside": beside} if beside else {}))
