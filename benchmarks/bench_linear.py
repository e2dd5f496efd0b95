"""Linear layers: forward, gradient of the input, gradient of the weights, at the shapes of Stable Diffusion 1.5.

Those of its transformer blocks, its text encoder and its step embedding. conv2d's kernels compute them, as 1 x 1
filters.
"""

import sys
from typing import Any

from benchmarks import harness, runtimes
from benchmarks.cases import OF_LAYERS, PEER, Contender, Problem, by_direction, truth_of
from benchmarks.contenders import peer
from pydiff import ops
from pydiff.reference.conv2d import conv2d

# rows (pixels or tokens), channels in, channels out
TINY = [(32, 16, 24), (5, 3, 7)]
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
CHECKS = [(1, 1, 1), (5, 3, 7), (77, 33, 65), (130, 320, 640)]
GPU = [((8 * rows, cin, cout), "bfloat16") for rows, cin, cout in SHAPES[:9]]
LIMIT = 1e-5


def cases_of(device, shape, dtype):
    """forward, backward_input and backward_weight at one shape."""
    rows, cin, cout = shape

    def make(random):
        x, dy = random.normal(rows, cin, dtype=dtype), random.normal(rows, cout, dtype=dtype)
        return x, random.normal(cin, cout, dtype=dtype, scale=cin**-0.5), random.parameters(cout), dy

    def truth(inputs):
        return truth_of(device, ops.linear, slow, inputs, first=lambda a: [a[0][:8, :96], a[1][:96, :80], a[2][:80]])

    def peers(direction):
        return [*by_torch(device, direction), *(runtimes.linear(device, layer) if direction == "forward" else ())]

    problem = Problem("linear", f"{rows} rows, {cin} to {cout}", dtype, make, truth)
    flops = dict.fromkeys(OF_LAYERS, 2 * rows * cin * cout)
    yield from by_direction(device, problem, ops.linear, slow, peers, LIMIT, OF_LAYERS, flops=flops)


def slow(x, w, bias):
    """The equation, as a 1 x 1 convolution of one row of pixels."""
    return conv2d(x[None, None], w[None, None], bias)[0, 0]


def layer(x, w, bias):
    """torch's, whose weights are (cout, cin)."""
    return peer("torch").nn.functional.linear(x, w, bias)


def by_torch(device, direction):
    """torch eager; gradients are the products that its autograd forms."""
    torch: Any = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, w, bias, dy = (device.tensor(a) for a in inputs)
        w, bias = w.t().contiguous(), bias.to(x.dtype)
        calls = {"forward": lambda: [layer(x, w, bias)], "backward_input": lambda: [dy @ w]}
        return torch.no_grad()(calls.get(direction, lambda: [dy.t() @ x, dy.sum(0)]))

    def outputs(results):
        return [results[0].t(), results[1]] if direction == "backward_weight" else results

    yield Contender("torch", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main("linear"))
