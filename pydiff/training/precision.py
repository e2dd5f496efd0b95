"""Training in bfloat16 with float32 masters (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1).

    weights        float32 masters, moments and average; matrices and filters have a bfloat16 copy, with which the
                   network computes; biases and the norms' factors are the masters themselves
    activations    bfloat16, with float32 sums inside the kernels
    gradients      of activations bfloat16, of weights float32, as the kernels make them
    loss, norm     float32 and float64, as always

bfloat16 has the exponents of float32, so the loss needs no scaling. Its spacing is 2^-8 of a number, so the masters
accumulate updates that the copies would lose. Checkpoints hold the masters, so a resumed run has every bit.
"""

from pydiff.backend import FLOAT32, bfloat16
from pydiff.tensor import Function


def low_precision(options, device):
    """bfloat16 if these options ask for it, else None. Raises ValueError if it is not supported, RuntimeError if its
    package is missing.
    """
    if getattr(options, "precision", "float32") == "float32":
        return None
    if device == "cpu":
        raise ValueError(
            "precision bfloat16 needs device cuda or simt: on the CPU there are no kernels for it, and without them it "
            "is slower than float32; leave it out"
        )
    return bfloat16()


class Cast(Function):
    """x in another dtype; its gradient comes back in x's."""

    def forward(self, x, *, dtype):
        self.dtype = x.dtype
        return x.astype(dtype)

    def backward(self, dy):
        return dy.astype(self.dtype)


def in_bfloat16(model):
    """model(x, t, **condition), float32 outside and bfloat16 inside: inputs are rounded, outputs widened."""
    low = bfloat16()

    def answer(x, t, **condition):
        condition = {name: a.astype(low) if a.dtype == FLOAT32 else a for name, a in condition.items()}
        return Cast.apply(model(Cast.apply(x, dtype=low), t, **condition), dtype=FLOAT32)

    return answer
