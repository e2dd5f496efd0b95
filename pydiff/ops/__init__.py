"""Every operation, one per line, and the operators and methods that they give to Tensor."""

from pydiff.mistakes import of_ops
from pydiff.ops import methods
from pydiff.ops.adamw import adamw, global_norm, squared_norm
from pydiff.ops.attention import attention
from pydiff.ops.conv2d import conv2d, linear
from pydiff.ops.conv_transpose2d import conv_transpose2d
from pydiff.ops.denoise import DenoiseStep, denoise
from pydiff.ops.dropout import dropout
from pydiff.ops.elementwise import (
    absolute,
    add,
    clip,
    divide,
    elementwise_maximum,
    elementwise_minimum,
    exp,
    log,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    silu,
    sqrt,
    subtract,
    tanh,
    where,
)
from pydiff.ops.embedding import embedding
from pydiff.ops.gelu import erf, geglu, gelu, quick_gelu
from pydiff.ops.group_norm import group_norm
from pydiff.ops.layer_norm import layer_norm
from pydiff.ops.noise import noise, noise_loss
from pydiff.ops.pool import avg_pool2d, max_pool2d
from pydiff.ops.reduction import (
    cross_entropy,
    log_softmax,
    matmul,
    maximum,
    mean,
    mean_squared_error,
    softmax,
    summation,
)
from pydiff.ops.resample import resample
from pydiff.ops.shape import average_pool, broadcast_to, concatenate, index, reshape, transpose, upsample_nearest
from pydiff.tensor import Tensor  # noqa: F401 - for users of ops.Tensor

__all__ = [
    "DenoiseStep",
    "absolute",
    "adamw",
    "add",
    "attention",
    "average_pool",
    "avg_pool2d",
    "broadcast_to",
    "clip",
    "concatenate",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "denoise",
    "divide",
    "dropout",
    "elementwise_maximum",
    "elementwise_minimum",
    "embedding",
    "erf",
    "exp",
    "geglu",
    "gelu",
    "global_norm",
    "group_norm",
    "index",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "maximum",
    "mean",
    "mean_squared_error",
    "multiply",
    "negative",
    "noise",
    "noise_loss",
    "power",
    "quick_gelu",
    "relu",
    "resample",
    "reshape",
    "sigmoid",
    "silu",
    "softmax",
    "sqrt",
    "squared_norm",
    "subtract",
    "summation",
    "tanh",
    "transpose",
    "upsample_nearest",
    "where",
]


def __getattr__(name):
    of_ops(name, __all__)


methods.attach()  # from here on `x + y` and `x.sum()` have a meaning
