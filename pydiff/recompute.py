"""Activation recomputation (Chen et al. 2016, "Training deep nets with sublinear memory cost", section 3): a part of
the network discards the intermediate values of its forward pass and computes them again in the backward pass. This
trades time for memory: of each such part only the input is kept, and its forward pass is done twice.
"""

from pydiff.tensor import Function, Tensor, no_grad


class Recompute(Function):
    """first(*inputs) without recording; `replay` records it when backward arrives here.

    The replayed operations take this one's place and pass their gradients to the same tensors in the same order as
    without recomputation, so every bit is the same. The parameters are arguments so that the result requires a gradient
    when they do.
    """

    integers = True  # the operations inside decide

    def forward(self, *arrays, first, again, inputs):
        self.arrays, self.again = arrays[:inputs], again
        with no_grad():
            return first(*(a if a is None else Tensor(a) for a in self.arrays)).data

    def replay(self):
        """The outputs, computed again with their history."""
        given = zip(self.inputs, self.arrays, strict=False)  # the parameters follow the inputs
        return [self.again(*(Tensor(a) if x is None and a is not None else x for x, a in given))]


def recompute(first, again, parameters, inputs):
    """first(*inputs), a Tensor, whose intermediate values are not kept.

    again(*inputs) computes the same, bit for bit, during the backward pass. parameters: all that they use.
    """
    return Recompute.apply(*inputs, *parameters, first=first, again=again, inputs=len(inputs))
