"""The edge between what people see and what is diffused.

    samples      what people have: uint8 images (N, H, W, C); later sounds, clips
    x            what is diffused: float32 (N, *codec.shape), in codec.limits if it has any

Whoever shows, saves, cuts or compares asks the Codec; nothing else knows what a number in x means. `Pixels` is the
codec of image models. A codec of another kind (latents of an autoencoder, a spectrogram) is a subclass with a `kind`,
which `register` makes known to folders on disk.
"""

import functools
from typing import TypeVar

import numpy as np

from pydiff.arrays import to_host

LOW, HIGH = PIXEL_RANGE = (-1.0, 1.0)  # black and white as floats
NOISE_RANGE = 3.0  # standard deviations of noise that black and white stand for; 99.7 % of a normal lies inside


def from_uint8(images) -> np.ndarray:
    """uint8 of any shape to float32 in [-1, 1]: u / 127.5 - 1, so that 0 is -1 and 255 is 1 exactly."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"got {images.dtype} pixels, expected uint8; pydiff.data.load converts other images")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x) -> np.ndarray:
    """Floats in [-1, 1], of any shape, to the nearest of the 256 grey levels; values outside are clipped.

    The inverse of `from_uint8` on its 256 values. Raises ValueError for NaN and infinity, which have no nearest level.
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
    """Base of all codecs. A subclass defines shape, encode and decode, and what else differs from this.

    kind: its name in files. noun: what a sample is called. shape: of one x, channels last. limits: (low, high) between
    which every x0 lies, or None; samplers cut their predicted x0 there.
    """

    kind, noun = "", "image"
    limits: tuple[float, float] | None = None
    bits: tuple[float, bool] | None = None  # see likelihood.py: (log2 of sample / x, a number; whether on 256 levels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x, without the axis of samples."""
        raise NotImplementedError

    @functools.cached_property  # and no property, so that a codec may have an attribute of this name
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images that are given and shown, where x is no image."""
        return self.shape

    def shape_of(self, samples) -> tuple[int, ...]:  # noqa: ARG002
        """Of the x of these samples, for codecs that take several sizes."""
        return self.shape

    def encode(self, samples) -> np.ndarray:
        """Samples to x: float32 (N, *shape). ValueError, in one sentence, for samples that do not fit."""
        raise NotImplementedError

    def decode(self, x):
        """x, on any device, to samples. Values outside of `limits` are cut."""
        raise NotImplementedError

    def encode_given(self, samples) -> np.ndarray:
        """What a user hands in for editing, encoded. A codec may be stricter here than with a checked data set."""
        return self.encode(samples)

    def show(self, samples) -> np.ndarray:
        """Samples as images for a page or a terminal: uint8 (N, H, W, C)."""
        return samples

    def show_x(self, x) -> np.ndarray:
        """x, noisy or predicted, as such images."""
        return self.show(self.decode(x))

    def show_noise(self, eps) -> np.ndarray:
        """Noise like x as images: three standard deviations are black and white, no noise is mid grey."""
        return to_uint8(to_host(eps) / NOISE_RANGE)

    mask_forms = "(H, W) or (N, H, W)"

    def mask_axes(self, mask) -> np.ndarray:
        """A mask as a user gives it, see `mask_forms`, with as many axes as samples have."""
        return {2: mask[None, ..., None], 3: mask[..., None]}.get(mask.ndim, mask) if mask.ndim else mask

    def encode_mask(self, mask) -> np.ndarray:
        """(N, H, W, C or 1) from 0 to 1 over samples -> the same over x, to be broadcast to (N, *shape)."""
        return mask

    def kept(self, drawn, _given, _mask):
        """Inpainted samples with what the mask keeps of those given, for codecs that cannot decode it to what it
        was.
        """
        return drawn

    def reader(self, dataset, flip=False):  # noqa: ARG002 - for those that do
        """A function (indices (n,), which of them are mirrored (n,) bool or None) -> x (n, *shape) of a Dataset.

        flip: whether there will be mirrored ones. A codec that takes long may encode all of them at once.
        """

        def read(indices, mirrored=None):
            samples = dataset.samples(indices)
            if mirrored is not None:
                chosen = mirrored.reshape((-1,) + (1,) * (samples.ndim - 1))
                samples = np.where(chosen, samples[..., ::-1, :], samples)
            return self.encode(samples)

        return read

    def keep_in(self, folder):
        """Called when a training has a folder: what the codec needs, or wants to keep, can be written there."""

    def to(self, xp):  # noqa: ARG002 - for those that compute
        """Moves what it computes with to the device of this array library, numpy or cupy. Returns the codec."""
        return self

    @property
    def beside(self) -> dict:
        """Networks of its own, by the folders in which they are saved beside the one that draws."""
        return {}

    def to_config(self) -> dict:
        """For JSON; `from_config` of it is an equal codec."""
        return {"kind": self.kind, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(tuple(config["shape"]))  # pyright: ignore[reportCallIssue]


class Levels(Codec):
    """Base of codecs of 256 levels that are diffused as they are: uint8 (N, *shape), or floats in [-1, 1] where the
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
        """uint8 alone: nobody can tell which range the floats of a stranger have."""
        samples = np.asarray(samples)
        if samples.dtype != np.uint8 or not samples.ndim or not len(samples):
            raise self._unfit(samples)
        return self.encode(samples)

    def _unfit(self, samples):
        expected = ", ".join(map(str, self.shape))
        return ValueError(
            f"{self.called} are {samples.dtype} {samples.shape}, expected uint8 (N, {expected}); resize them first"
        )

    def decode(self, x):
        """Turns floats (N, *shape) in [-1, 1] into uint8."""
        return to_uint8(to_host(x).clip(*PIXEL_RANGE))  # an overflow is white, or black; NaN is an error

    def show(self, samples):
        """uint8 is shown as it is."""
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
    """The codec that `to_config` described; ValueError for a kind nobody has registered.

    beside: networks that were saved with it, by their folders.
    """
    kind = config.get("kind")
    if kind not in CODECS:
        raise ValueError(f"this model needs the codec {kind!r}, which is not registered; known are {', '.join(CODECS)}")
    return CODECS[kind].from_config(config, **({"beside": beside} if beside else {}))
