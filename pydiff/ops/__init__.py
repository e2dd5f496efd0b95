"""Every operation, one per line, and the table of operators and methods that a Tensor understands."""

from pydiff.ops.adamw import adamw, global_norm, squared_norm
from pydiff.ops.attention import attention
from pydiff.ops.conv2d import conv2d, linear
from pydiff.ops.conv_transpose2d import conv_transpose2d
from pydiff.ops.denoise import DenoiseStep, denoise
from pydiff.ops.elementwise import (
    absolute,
    add,
    clip,
    divide,
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
from pydiff.tensor import Tensor

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


def _shape_arguments(shape):
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape


def _reshape_method(x, *shape, **named):
    return reshape(x, *(() if named and not shape else (_shape_arguments(shape),)), **named)


def _transpose_method(x, *axes, **named):
    return transpose(x, *((_shape_arguments(axes) or None,) if axes else ()), **named)


# tensor.py knows nothing of operations; this is where `x + y` and `x.sum()` get their meaning.
_METHODS = {
    "__add__": add,
    "__radd__": lambda x, y: add(y, x),
    "__sub__": subtract,
    "__rsub__": lambda x, y: subtract(y, x),
    "__mul__": multiply,
    "__rmul__": lambda x, y: multiply(y, x),
    "__truediv__": divide,
    "__rtruediv__": lambda x, y: divide(y, x),
    "__neg__": negative,
    "__pow__": power,
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__getitem__": index,
    "sum": summation,
    "mean": mean,
    "max": maximum,
    "reshape": _reshape_method,
    "transpose": _transpose_method,
}


def _method(operation):
    # `Add.apply` is bound to its class already, so Python would not pass it the tensor: a plain function gets that.
    return (lambda *args, **options: operation(*args, **options)) if hasattr(operation, "__self__") else operation


for _name, _operation in _METHODS.items():
    setattr(Tensor, _name, _method(_operation))
Tensor.T = property(transpose)
