"""The codec of latent diffusion: users see images, and what is diffused are latents that an autoencoder computes from
them.


    codec = Latents(autoencoder, (512, 512))        shape (64, 64, 4), for a factor of 8
    codec.encode(images), codec.decode(x)           uint8 (N, H, W, 3) and back, one image at a time

Computes in float32 or better: the autoencoders of some published models overflow float16.
"""

import numpy as np

from pydiff.arrays import array_module, to_host
from pydiff.codec import NOISE_RANGE, PIXEL_RANGE, Codec, from_uint8, register, to_uint8
from pydiff.mistakes import made_fit
from pydiff.models import Autoencoder
from pydiff.tensor import no_grad


@register
class Latents(Codec):
    """autoencoder: an Autoencoder, on the device where x is decoded. size: (height, width) in pixels.

    Raises ValueError for a size that the autoencoder's factor does not divide.
    """

    kind = "latents"

    def __init__(self, autoencoder: Autoencoder, size):
        self.autoencoder, self.size, self.factor = autoencoder, tuple(int(n) for n in size), autoencoder.factor
        check_size(self.size, self.factor)

    @property
    def shape(self):
        """The shape of one sample's latents, (h, w, C)."""
        return (*(n // self.factor for n in self.size), self.autoencoder.config["latent_channels"])

    @property
    def image_shape(self):
        """The shape of one image, (H, W, C)."""
        return (*self.size, self.autoencoder.config["in_channels"])

    def shape_of(self, samples):
        """The shape of the latents (h, w, C) of these samples, images of any size."""
        return (*(n // self.factor for n in np.shape(samples)[1:3]), self.shape[-1])

    def encode(self, samples):
        """uint8 (N, H, W, C), of any size that the factor divides -> the most likely latents (N, h, w, C), scaled:
        float32.
        """
        samples = np.asarray(samples)
        channels = self.autoencoder.config["in_channels"]
        if samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[3] != channels or not len(samples):
            advice = made_fit(samples, (*samples.shape[-3:-1], channels))
            what = f"images are {samples.dtype} {samples.shape}, expected uint8 (N, H, W, {channels})"
            raise ValueError(f"{what}; {advice}")
        check_size(samples.shape[1:3], self.factor)
        return np.concatenate([self.encode_floats(from_uint8(image[None])) for image in samples])

    def encode_with_holes(self, samples, holes):
        """Like `encode`, with mid grey where holes (N, H, W, 1) are 1, for inpainting networks."""
        check_size(np.shape(samples)[1:3], self.factor)
        x = from_uint8(samples) * (1 - np.asarray(holes, np.float32))
        return np.concatenate([self.encode_floats(one[None]) for one in x])

    def encode_floats(self, x):
        """Like `encode`, for float images (N, H, W, C) in [-1, 1]."""
        with no_grad():
            z = self.autoencoder.scaled(self.autoencoder.encode(self._here(x)).mode()).data
        return to_host(z).astype(np.float32, copy=False)

    def decode(self, x):
        """Latents (N, h, w, C) on any device -> uint8 (N, H, W, channels)."""
        return np.concatenate([to_uint8(self.decode_floats(one[None]).clip(*PIXEL_RANGE)) for one in x])

    def decode_floats(self, x):
        """Like `decode`, but to floats, which may exceed [-1, 1]."""
        with no_grad():
            return to_host(self.autoencoder.decode(self.autoencoder.unscaled(self._here(x))).data)

    def _here(self, x):
        """An array on the autoencoder's device, with its precision."""
        like = self.autoencoder.parameters()[0].data
        xp = array_module(like)
        return xp.asarray(x if xp is array_module(x) else to_host(x), like.dtype)

    def show(self, samples):
        """Returns uint8 images as they are."""
        return samples

    def show_noise(self, eps):
        """The first three channels, or the only one, as colours: noise in latents has no colours."""
        eps = to_host(eps)
        return to_uint8(eps[..., : 3 if eps.shape[-1] >= 3 else 1] / NOISE_RANGE)

    def encode_mask(self, mask):
        """(N, H, W, 1) over pixels -> (N, h, w, 1): the value at the first pixel of each latent."""
        return mask[:, :: self.factor, :: self.factor, :1]

    def to(self, xp):
        """Moves the autoencoder to the device of this array library. Returns the codec."""
        self.autoencoder.to(xp)
        return self

    @property
    def beside(self):
        """{"vae": the autoencoder}, to be saved in the model's folder."""
        return {"vae": self.autoencoder}

    def to_config(self):
        """A dict for JSON, without the autoencoder, which is saved next to the network."""
        return {"kind": self.kind, "size": list(self.size)}

    @classmethod
    def from_config(cls, config, beside=None):
        """The codec with the autoencoder saved next to the network. Raises ValueError if there is none."""
        autoencoder = (beside or {}).get("vae")
        if autoencoder is None:
            raise ValueError("its latents need an autoencoder, and there is no vae/ beside the network")
        return cls(autoencoder, config["size"])


def check_size(size, factor: int):
    """Raises ValueError unless the factor divides height and width."""
    if len(size) != 2 or any(n < factor or n % factor for n in size):
        near = " x ".join(str(max(factor, round(n / factor) * factor)) for n in size)
        shown = " x ".join(map(str, size))
        raise ValueError(f"the size {shown} does not go with latents of {factor} pixels a side; take {near}")
