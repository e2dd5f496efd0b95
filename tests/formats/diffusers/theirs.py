"""Folders that diffusers writes, and images that its pipelines draw with noise of ours."""

import sys
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


def images_of(pipe, n, steps, shape, **options):
    """(n, H, W, C) in [0, 1] as the pipeline draws them from our start and our noise."""
    import torch

    calls = []

    def ours(*_, dtype=None, **__):
        k = len(calls)
        calls.append(k)
        start = random.normal(random.key(SEED, random.SAMPLE, np.arange(n)), shape, np.float32)
        array = start if k == 0 else noise(k - 1, n, shape)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1))).to(dtype or torch.float32)

    modules = {sys.modules[type(part).__module__] for part in (pipe, pipe.scheduler)}
    before = {module: module.randn_tensor for module in modules if hasattr(module, "randn_tensor")}
    try:
        for module in before:
            module.randn_tensor = ours
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sized = {"batch_size": n, "num_inference_steps": steps, "output_type": "np"}
            return pipe(**sized, **options).images
    finally:
        for module, original in before.items():
            module.randn_tensor = original


def our_images(run, n, steps, **options):
    """The same of a Run."""
    options = {"noise": lambda k: noise(k, n, run.shape), **options}
    *_, last = run.sample_states(n, SEED, steps=steps, **options)
    return (last.x / 2 + 0.5).clip(0, 1)
