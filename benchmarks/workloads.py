"""The U-Nets that are timed: four sizes of diffusers' UNet2DModel, all else at its defaults."""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """batch images of size x size x channels, and the keywords of pydiff's UNet2D or diffusers' UNet2DModel."""

    batch: int
    size: int
    channels: int
    config: dict

    def images(self, n, seed=0):
        """n made-up images in [-1, 1]: (n, size, size, channels) float32."""
        shape = (n, self.size, self.size, self.channels)
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _unet(size, channels, widths, layers, attention, **options):
    """attention: for every level, whether it has any."""
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        **options,
    }


WORKLOADS = {
    "digits8": Workload(128, 8, 1, _unet(8, 1, (32, 64), 1, (False, True), norm_num_groups=8)),
    "digits16": Workload(128, 16, 1, _unet(16, 1, (32, 64), 1, (False, True), norm_num_groups=8)),
    "cifar32": Workload(32, 32, 3, _unet(32, 3, (64, 128, 128), 2, (False, True, False))),
    "image64": Workload(8, 64, 3, _unet(64, 3, (64, 128, 256, 256), 2, (False, False, True, True))),
}


def unet_class():
    """(UNet2DModel, whose): diffusers', or where that is not installed the part of it that DDPM's U-Net needs."""
    try:
        from diffusers import UNet2DModel
    except ModuleNotFoundError:
        from benchmarks.gpu.torch_unet import UNet2DModel

        return UNet2DModel, "torch"
    return UNet2DModel, "diffusers"


def torch_unet(workload, weights, channels_last, exact=False):
    """diffusers' UNet2DModel with these weights ({name: array in PyTorch's layout}), in either memory layout.

    exact: in float64, and the sinusoids of the step numbers too, which diffusers always computes in float32.
    """
    import torch

    UNet2DModel, _ = unet_class()

    class Sinusoids(torch.nn.Module):
        def forward(self, t):
            half = workload.config["block_out_channels"][0] // 2
            angles = t.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
            return torch.cat([angles.cos(), angles.sin()], dim=1)

    model = UNet2DModel(**workload.config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    if exact:
        model.double().time_proj = Sinusoids()
    return model.to(memory_format=torch.channels_last) if channels_last else model
