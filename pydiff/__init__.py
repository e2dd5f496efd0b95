"""pydiff: diffusion models from scratch, on NumPy and CuPy, with fused C++ and CUDA kernels.

run = pydiff.train("digits", steps=2000, seed=0)
images = run.sample(16, seed=1)
run.save("digits-model");  run = pydiff.load("digits-model")
"""

import importlib.util
from typing import TYPE_CHECKING

from pydiff import moved, nn, ops, random
from pydiff.backend import set_threads, threads
from pydiff.tensor import Function, Tensor, no_grad

if TYPE_CHECKING:
    from pydiff import data, diffusion, models
    from pydiff.formats.safetensors import CheckpointError
    from pydiff.run import Run, load, train
    from pydiff.training import Options

__all__ = [
    "CheckpointError",
    "Function",
    "Options",
    "Run",
    "Tensor",
    "data",
    "diffusion",
    "load",
    "models",
    "nn",
    "no_grad",
    "ops",
    "random",
    "set_threads",
    "threads",
    "train",
]

__version__ = "0.2.0"

# Imported when first used, as all other modules are: name -> (module, name in that module), "" for the module itself.
LATER = {
    "data": ("pydiff.data", ""),
    "diffusion": ("pydiff.diffusion", ""),
    "models": ("pydiff.models", ""),
    "CheckpointError": ("pydiff.formats.safetensors", "CheckpointError"),
    "Run": ("pydiff.run", "Run"),
    "load": ("pydiff.run", "load"),
    "train": ("pydiff.run", "train"),
    "Options": ("pydiff.training", "Options"),
}


# What users of PyTorch and diffusers look for -> what it is here.
ELSEWHERE = {
    **dict.fromkeys(("zeros", "ones", "randn", "rand", "arange", "from_numpy", "as_tensor"), "pydiff.Tensor(array)"),
    **dict.fromkeys(("manual_seed", "Generator"), "seed=, an option of everything random"),
    **dict.fromkeys(("DDPMPipeline", "DDIMPipeline", "DiffusionPipeline", "StableDiffusionPipeline", "from_pretrained"),
                    "pydiff.load(folder)"),
    **dict.fromkeys(("Adam", "AdamW"), "pydiff.optim.AdamW(model)"),
    **dict.fromkeys(("Dataset", "DataLoader"), "pydiff.data.load(..)"),
    "UNet2DModel": "pydiff.models.UNet2D",
    "UNet2DConditionModel": "pydiff.models.UNet2DCondition",
}  # fmt: skip


def __getattr__(name):
    module, attribute = LATER.get(name, (f"{__name__}.{name}", ""))
    if name.startswith("_") or (name not in LATER and importlib.util.find_spec(module) is None):
        told = f"; here it is {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{told}")
    found = importlib.import_module(module)
    globals()[name] = getattr(found, attribute) if attribute else found
    return globals()[name]


def __dir__():
    return sorted({*globals(), *LATER})


moved.register(LATER)
