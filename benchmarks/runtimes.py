"""Inference engines as peers for a forward pass, OpenVINO and ncnn, where they are installed and everyone is in a
process of their own (--processes): each has threads of its own, which look for work when another has its turn.

Both are told to compute in float32, and have the weights beforehand, in whatever layout they like.
"""

import sys
import tempfile
from functools import partial

import numpy as np

from benchmarks.cases import PEER, Contender, from_channels_first
from benchmarks.contenders import peer
from pydiff import backend


def available(device):
    """The names of those who can take part. Who is not installed is named in a sentence, once."""
    if device.gpu or not device.settings.processes:
        return []
    found = [name for name in ("openvino", "ncnn") if peer(name)]
    for name in {"openvino", "ncnn"} - set(found) - _missed:
        print(f"{name} is not installed and is left out", file=sys.stderr)
        _missed.add(name)
    return found


_missed = set()


def conv2d(device, g, function):
    """Contenders of a convolution; g: bench_conv2d.Geometry; function(x, w, bias, *add): the same in torch."""
    found = available(device)
    if "openvino" in found and peer("torch"):  # which traces the network
        for name, layout in (("OpenVINO", "NCHW"), ("OpenVINO channels_last", "NHWC")):
            yield Contender(
                name, PEER, partial(openvino_convolution, layout, function), partial(openvino_image, layout)
            )
    if "ncnn" in found and g.n == 1 and not g.addends:  # it has no batches
        big = "Interp big 1 1 in big 0=1 1=2.0 2=2.0\n" if g.up == 2 else ""
        pads = {4: g.before, 15: g.after, 14: g.before, 16: g.after}
        numbers = {0: g.cout, 1: g.k, 3: g.stride, **pads, 5: 1, 6: g.k * g.k * g.cin * g.cout}
        layer = big + f"Convolution layer 1 1 {'big' if big else 'in'} out " + in_ncnn(numbers)

        def make(inputs):
            x, w, bias, _ = inputs
            return ncnn_call(layer, x[0].transpose(2, 0, 1), w.transpose(3, 2, 0, 1), bias)

        yield Contender("ncnn", PEER, make, lambda out: [np.array(out[0]).transpose(1, 2, 0)[None]])


def linear(device, function):
    """Contenders of a linear layer; function(x, w, bias): the same in torch, whose w is (cout, cin)."""
    found = available(device)
    if "openvino" in found and peer("torch"):

        def make(inputs):
            x, w, bias, _ = (device.tensor(a) for a in inputs)
            return openvino_call(lambda x: function(x, w.t().contiguous(), bias), [x])

        yield Contender("OpenVINO", PEER, make)
    if "ncnn" in found:

        def make_ncnn(inputs):
            x, w, bias, _ = inputs
            layer = "InnerProduct layer 1 1 in out " + in_ncnn({0: w.shape[1], 1: 1, 2: w.size})
            return ncnn_call(layer, x, w.T, bias)

        yield Contender("ncnn", PEER, make_ncnn, lambda out: [np.array(out[0])])


# ---- OpenVINO --------------------------------------------------------------------------------------------------------


def openvino_convolution(layout, function, inputs):
    """A convolution for images that lie in one of its two layouts."""
    x, w, bias, *add, _ = (peer("torch").from_numpy(a) for a in inputs)
    w = w.permute(3, 2, 0, 1).contiguous()
    x, *add = (a.permute(0, 3, 1, 2).contiguous() for a in (x, *add))
    return openvino_call(lambda x, *add: function(x, w, bias, *add), [x, *add], layout)


def openvino_image(layout, results):
    """Its result in our layout."""
    return [r.transpose(0, 2, 3, 1) if layout == "NCHW" else r for r in results]


def openvino_call(function, tensors, layout=None):
    """call() -> [array]: function(*tensors), traced by torch and compiled for these shapes. layout: how images lie in
    memory, if the tensors are some."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    torch = peer("torch")

    class Network(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    with torch.inference_mode():
        model = openvino.convert_model(Network(), example_input=tuple(tensors))
    model.reshape({i: list(t.shape) for i, t in enumerate(tensors)})
    if layout:
        steps = PrePostProcessor(model)
        for end in (*(steps.input(i) for i in range(len(tensors))), steps.output(0)):
            end.tensor().set_layout(openvino.Layout(layout))
            end.model().set_layout(openvino.Layout("NCHW"))
        model = steps.build()
    wishes = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    wishes |= {"INFERENCE_NUM_THREADS": backend.threads()}
    compiled = openvino.Core().compile_model(model, "CPU", wishes)
    arrays = [(from_channels_first(t).contiguous() if layout == "NHWC" else t).numpy() for t in tensors]
    return lambda: [compiled(arrays, share_inputs=True, share_outputs=True)[0]]


# ---- ncnn ------------------------------------------------------------------------------------------------------------


def in_ncnn(numbers):
    """A layer's parameters as a .param file has them."""
    return " ".join(f"{key}={value}" for key, value in numbers.items()) + "\n"


def ncnn_call(layers, x, w, bias):
    """call() -> [Mat] of layers, lines of a .param file, from blob `in` to blob `out`; the last has w and bias."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = backend.threads(), False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        setattr(net.opt, f"use_{name}", False)
    lines = layers.count("\n") + 1
    net.load_param_mem(f"7767517\n{lines} {lines}\nInput in 0 1 in\n{layers}")
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:  # weights as a .bin file has them, 0: as they are
        file.write(np.zeros(1, np.int32).tobytes() + np.ascontiguousarray(w).tobytes() + bias.tobytes())
        file.flush()
        if net.load_model(file.name) != 0:
            raise RuntimeError("ncnn did not take the weights")
    x = np.ascontiguousarray(x)  # which has to live until it is copied
    given = ncnn.Mat(x).clone()

    def call():
        extractor = net.create_extractor()
        extractor.input("in", given)
        _, out = extractor.extract("out")
        return [out]

    call.net = net  # which has to live as long
    return call
