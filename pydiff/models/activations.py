"""The activations that a checkpoint's `act_fn` may name."""

from pydiff import ops


def mish(x):
    """x tanh(log(1 + exp(x))) (Misra 2019), without overflow."""
    return x * ops.tanh(ops.relu(x) + ops.log(1 + ops.exp(-ops.absolute(x))))


ACTIVATIONS = {"silu": ops.silu, "swish": ops.silu, "relu": ops.relu, "gelu": ops.gelu, "mish": mish}
