"""pydiff: diffusion models from scratch, on NumPy and CuPy, with fused C++ and CUDA kernels.

run = pydiff.train("digits", steps=2000, seed=0)
images = run.sample(16, seed=1)
run.save("digits-model");  run = pydiff.load("digits-model")
"""

from pydiff.backend import set_threads, threads
from pydiff.checkpoint import CheckpointError
from pydiff.options import Options
from pydiff.run import Run, load
from pydiff.tensor import Function, Tensor, no_grad
from pydiff.train import train

__all__ = [
    "CheckpointError",
    "Function",
    "Options",
    "Run",
    "Tensor",
    "load",
    "no_grad",
    "set_threads",
    "threads",
    "train",
]

__version__ = "0.1.0"
