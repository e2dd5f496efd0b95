"""Folders that diffusers writes, and images that its pipelines draw with noise of ours."""

import warnings

import numpy as np

from pydiff import random

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SEED = 5


def unet(diffusers, seed=0, **options):
    """A small UNet2DModel with weights that make it do something."""
    import torch

    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(**{**SMALL, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model.eval()


def scheduler_class(diffusers, name):
    """A class of diffusers, which hides this one where transformers is not installed."""
    if name == "KarrasVeScheduler":
        from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

        return KarrasVeScheduler
    return getattr(diffusers, name)


def pipeline(diffusers, directory, scheduler, kind="DDPMPipeline", model=None, **saving):
    """Writes a pipeline folder and returns the pipeline. scheduler: its configuration, with `_class_name`."""
    model = unet(diffusers) if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = scheduler_class(diffusers, scheduler["_class_name"])(
            **{k: v for k, v in scheduler.items() if k[0] != "_"}
        )
        pipe = getattr(diffusers, kind)(unet=model, scheduler=made)
        pipe.save_pretrained(directory, **saving)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(k, n, shape):
    """The noise of the k-th evaluation for n images (n, *shape)."""
    return random.normal(random.key(77, random.SAMPLE, np.arange(n), k + 1), shape, np.float32)
