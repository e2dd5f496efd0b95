"""pydiff: diffusion models from scratch, on NumPy and CuPy, with fused C++ and CUDA kernels.

run = pydiff.train("digits", steps=2000, seed=0)
images = run.sample(16, seed=1)
run.save("digits-model");  run = pydiff.load("digits-model")
"""

from pydiff import data, diffusion, models, moved, nn, ops, random
from pydiff.backend import set_threads, threads
from pydiff.formats.safetensors import CheckpointError
from pydiff.run import Run, load, train
from pydiff.tensor import Function, Tensor, no_grad
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

moved.register()
