"""Stable Diffusion as a Pipeline: a U-Net conditioned on a prompt's states, in the latents of an autoencoder.

This file contains only what differs from other pipelines: guidance that is an input of the network instead of requiring
two evaluations (latent consistency models: Luo et al. 2023, section 4.1), networks that see an image with a hole beside
x (inpainting models), and memory, which is predicted before it is used. formats/ opens the files.
"""

from typing import Any

import numpy as np

from pydiff import memory
from pydiff.arrays import array_module
from pydiff.condition import Condition
from pydiff.diffusion.denoiser import denoiser
from pydiff.diffusion.guidance import check_scale
from pydiff.latents import Latents
from pydiff.models.unet import sinusoids
from pydiff.nn import deferred
from pydiff.ops import concatenate
from pydiff.pipeline import Pipeline
from pydiff.tensor import Tensor

GUIDANCE, TOLD_GUIDANCE = 7.5, 8.5  # diffusers' defaults, without and with guidance as an input of the network
SHARPEST = 10000  # of the sinusoids of a guidance scale as input


class StableDiffusion(Pipeline):
    """model: UNet2DCondition; codec: Latents; conditioning: with a text encoder as wide as the U-Net's context.

    few_steps: whether the model was distilled to sample in a few steps, without guidance (turbo). low_memory:
    parameters in a file are read on each use instead of being kept. The rest: see Pipeline.
    """

    batch_size, edits_by_scheduler = 1, True

    def __init__(self, model, process, codec: Latents, conditioning, *, few_steps=False, low_memory=False, **kind):
        super().__init__(model, process, codec, conditioning, **kind)
        self.told = model.config["time_cond_proj_dim"]
        self.few_steps = few_steps
        self.default_guidance = 1.0 if few_steps else TOLD_GUIDANCE if self.told else GUIDANCE
        self.seen_beside = model.config["in_channels"] - codec.shape[-1]
        self.low_memory = low_memory
        for network in (model, codec.autoencoder, conditioning.encoder.network):
            deferred.keep(network, not low_memory)
        codec.autoencoder.work_in_bands()  # one image at a time: less memory, and at 512 x 512 less time

    def sample_states(self, n: Any = 16, *args, **more):
        """See Pipeline.sample_states. Raises ValueError for an inpainting model, which needs images, and MemoryError if
        there would be too little memory.
        """
        if self.seen_beside:
            raise ValueError(
                "this model fills in what a mask says and draws nothing else; give image and mask (--image, --mask)"
            )
        self.check_memory(self.codec.shape[:2], n if np.ndim(n) == 0 else len(n))
        return super().sample_states(n, *args, **more)

    def default_steps(self, sampler=None) -> int:
        """1 for turbo models, otherwise as in other pipelines."""
        return 1 if sampler is None and self.few_steps else super().default_steps(sampler)

    def beside(self, images, mask):
        """(N, h, w, 1 + C): the mask and the latents of the images with grey where it is 1, for inpainting models."""
        if not self.seen_beside:
            return None
        holes = np.broadcast_to(mask[..., :1] >= 0.5, (len(images), *mask.shape[1:3], 1)).astype(np.float32)
        seen = self.codec.encode_with_holes(images, holes)
        small = self.codec.encode_mask(holes)
        return np.concatenate([small, seen], axis=-1)

    def denoiser(self, condition, guidance=1.0, interval=None, rescale=0.0, learned=False, beside=None):
        """See Pipeline.denoiser. A scale of at most 1 means no guidance, as in diffusers. beside: from `beside`."""
        if self.seen_beside and beside is None:
            raise ValueError("this model fills in what a mask says; use inpaint, with a mask")
        if self.told:
            condition, guidance = self._told(condition, guidance), 1.0
        network = self.model if beside is None else Beside(self.model, beside)
        more = {"limits": self.codec.limits, "learned": learned}
        channels = self.codec.shape[-1]
        return denoiser(network, self.process, channels, condition, max(guidance, 1.0), interval, rescale, **more)

    def _told(self, condition, guidance):
        """The condition with the sinusoids of guidance - 1, the network's input for the guidance scale."""
        check_scale(guidance)
        vector = sinusoids(np.array([1000.0 * (guidance - 1)]), self.told, False, 1, SHARPEST)[0].astype(np.float32)
        rows = np.broadcast_to(vector, (condition.rows, len(vector)))
        like = next(iter(condition.values()))
        return Condition({**condition, "timestep_cond": array_module(like).asarray(rows)}, rows=condition.rows)

    def decoded(self, x):
        """See Pipeline.decoded. If the decoder does not fit next to the U-Net, the U-Net is released and read again for
        the next image.
        """
        free = memory.free()
        if free is not None and self.decoder_memory(x.shape[1:3]) > free:
            deferred.release(self.model)
            deferred.release(self.conditioning.encoder.network)  # pyright: ignore[reportOptionalMemberAccess]
        return super().decoded(x)

    def check_memory(self, size, n=1):
        """Raises MemoryError if n images of this size (h, w) in latents need more than is free."""
        free = memory.free() if self.device == "cpu" else None
        if free is None or (needed := self.memory(size, n)) <= free:
            return
        factor, side = self.codec.factor, 8
        while side and self.memory((side + 8, side + 8), 1) <= free:
            side += 8
        fits = (
            f"{side * factor} x {side * factor} would fit" if self.memory((side, side), 1) <= free else "nothing fits"
        )
        shown = " x ".join(str(n * factor) for n in size)
        advice = "" if self.low_memory else ", and --low-memory (low_memory=True) takes less"
        raise MemoryError(
            f"drawing {shown} needs about {needed / 2**30:.1f} GB more, and {free / 2**30:.1f} GB are free; "
            f"{fits}{advice}"
        )

    def memory(self, size, n=1) -> float:
        """Bytes that sampling n images of this size (h, w) takes in addition to what is in use, about: the larger of
        the U-Net's part, which grows with the number of images, and that of the autoencoder, which decodes one at a
        time, when the U-Net may be released.
        """
        answers = n if self.told or self.few_steps else 2 * n  # with guidance
        drawing = 4.0 * UNET_ARRAYS * answers * size[0] * size[1] * self.model.config["block_out_channels"][0]
        drawing += SPARE + deferred.waiting(self.model)
        return max(drawing, self.decoder_memory(size) - deferred.releasable(self.model))

    def decoder_memory(self, size) -> float:
        """Bytes that decoding an image of this size (h, w) takes, about."""
        config = self.codec.autoencoder.config
        width = config.get("block_out_channels") or config["decoder_block_out_channels"]
        decoded = size[0] * size[1] * self.codec.factor**2 * width[0]
        arrays = VAE_ARRAYS_IN_BANDS if self.codec.autoencoder.in_bands else VAE_ARRAYS
        return 4.0 * arrays * decoded + SPARE + deferred.waiting(self.codec.autoencoder)


# Arrays of the first level that are held at once, and bytes besides: at most what the full-size networks took from
# 16 x 16 to 64 x 64 latents (38 to 50, and 7 to 12 of which 4 are the bytes besides; 4 with them in bands).
UNET_ARRAYS, VAE_ARRAYS, VAE_ARRAYS_IN_BANDS, SPARE = 50, 8, 4, 100 << 20


class Beside:
    """A network whose input is x with `beside` (N, h, w, K) as further channels, the same at every step."""

    def __init__(self, network, beside):
        self.network, self.beside = network, beside
        self.encoded, self.body = network.encoded, network.body
        self.fixed, self.several = network.fixed, network.several

    def checked(self, x):
        """The network's input: x and `beside` together."""
        return self.network.checked(concatenate(Tensor(x), Tensor(self.beside)))
