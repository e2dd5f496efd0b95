"""linear layers: forward, gradient of the input, gradient of the weights, at the shapes of Stable Diffusion 1.5.

Those of its transformer blocks, its text encoder and its step embedding; conv2d computes them, with 1 x 1 filters.
"""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from pydiff import ops
from pydiff.ops.conv2d import Linear
from pydiff.reference.conv2d import conv2d
from pydiff.tensor import Tensor, no_grad

TINY = (32, 16, 24)
# rows (pixels or tokens), channels in, channels out
SHAPES = [
    # the U-Net at 64 x 64, 32 x 32, 16 x 16 and 8 x 8 pixels: queries, the gate, the layer behind it
    *((4096, 320, 320), (4096, 320, 2560), (4096, 1280, 320)),
    *((1024, 640, 640), (1024, 640, 5120), (1024, 2560, 640)),
    *((256, 1280, 1280), (256, 1280, 10240), (256, 5120, 1280)),
    *((64, 1280, 1280), (64, 1280, 10240), (64, 5120, 1280)),
    # keys and values of two prompts, the text encoder, the step embedding of two images
    *((154, 768, 320), (154, 768, 1280)),
    *((77, 768, 768), (77, 768, 3072), (77, 3072, 768)),
    *((2, 320, 1280), (2, 1280, 1280)),
]
LIMIT = 1e-5


def reference(x, w, bias):
    """The equation, as a 1 x 1 convolution of one row of pixels."""
    return conv2d(x[None, None], w[None, None], bias)[0, 0]


def cases(settings):
    """Three cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward, backward_input and backward_weight at one shape."""
    rows, cin, cout = shape

    def make(rng):
        x, dy = rng.standard_normal((rows, cin), np.float32), rng.standard_normal((rows, cout), np.float32)
        w = rng.standard_normal((cin, cout), np.float32) / np.float32(cin**0.5)
        return x, w, rng.standard_normal(cout, np.float32), dy

    sets = variants(make, 4 * (rows * cin + cin * cout + rows * cout), rng)
    *inputs, dy = sets[0]
    y, dx, dw, dbias = harness.truth(
        ops.linear, reference, inputs, dy, lambda a: (a[0][:8, :96], a[1][:96, :80], a[2][:80]), rng
    )
    for direction, exact in (("forward", [y]), ("backward_input", [dx]), ("backward_weight", [dw, dbias])):
        contenders = [*house(ours(direction), settings.all_levels), *torch_contenders(direction)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3])]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        words = f"{rows} rows, {cin} to {cout}"
        flops = 2 * rows * cin * cout
        yield harness.Case(f"linear {direction}", words, sets, contenders, exact, LIMIT, flops=flops)


def ours(direction):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, w, bias, dy = inputs
        if direction == "forward":
            x, w, bias = Tensor(x), Tensor(w), Tensor(bias)
            return no_grad()(lambda: ops.linear(x, w, bias))
        function = Linear()
        function.needs = [direction == "backward_input", *(2 * [direction == "backward_weight"]), False]
        function.forward(x, w, bias, None)
        return lambda: function.backward(dy)

    return build


def torch_contenders(direction):
    """torch eager, whose weights are (cout, cin); gradients are the products that its autograd forms."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, w, bias, dy = (torch.from_numpy(a) for a in inputs)
        w = w.t().contiguous()
        call = {
            "forward": lambda: [torch.nn.functional.linear(x, w, bias)],
            "backward_input": lambda: [dy @ w],
            "backward_weight": lambda: [dy.t() @ x, dy.sum(0)],
        }[direction]
        return torch.no_grad()(call)

    def outputs(results):
        first, *rest = (r.numpy() for r in results)
        return [first.T if direction == "backward_weight" else first, *rest]

    yield Contender("torch", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))
