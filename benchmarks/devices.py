"""Where cases are computed: the CPU, a GPU (cuda), or this processor again with the GPU's kernels in an emulator (simt,
docs/simt.md). On the last, shapes are tiny and times mean nothing: it is there to find out, without a GPU, whether
everything that a GPU will be asked for is written correctly.

A device has arrays and random inputs, pydiff's contenders, and a clock: `program` turns a contender's calls, one for
every set of inputs, into what is timed, and `take_turns` times the programs of all of them in turns.
"""

import contextlib
import gc
import importlib
import math
import time
import zlib
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.cases import OTHER, OURS, Contender
from benchmarks.contenders import kernels, levels, peer
from pydiff import backend, random
from pydiff.backend import is_bfloat16
from pydiff.tensor import Tensor

GPUS = ("cuda", "simt")
# Largest errors on GPUs. float32: sums of thousands of terms; bfloat16: rounded to 8 bits on the way out.
LIMITS = {"float32": 2e-5, "bfloat16": 1e-2}


class Settings(NamedTuple):
    """quick: few and small shapes, few repetitions. all_levels: every instruction set. rounds, seconds: timing.py.
    part: the name of further shapes instead of the usual ones. processes: everyone in a process of their own."""

    quick: bool = False
    all_levels: bool = False
    rounds: int = 15
    seconds: float = 12.0
    part: str | None = None
    processes: bool = False


def numpy_type(name):
    """NumPy's dtype of that name, bfloat16 included."""
    return backend.bfloat16() if name == "bfloat16" else np.dtype(name)


def plain(results):
    """The arrays in a result of our ops: Tensors unpacked, gradients that nobody asked for left out."""
    results = results if isinstance(results, tuple | list) else (results,)
    return [r.data if isinstance(r, Tensor) else r for r in results if r is not None]


class Random:
    """Fresh inputs on a device, from a seed that the report keeps; the same ones for the same problem."""

    def __init__(self, device, problem):
        self.device = device
        self.seed = (device.seed << 32) + zlib.crc32(f"{problem.op}, {problem.shape}, {problem.dtype}".encode())
        self.generator = device.generator(self.seed)

    def normal(self, *shape, dtype="float32", mean=0.0, scale=1.0):
        """Normal numbers."""
        return self.device.normal(self.generator, shape, dtype, mean, scale)

    def parameters(self, *shape):
        """float32 numbers that bfloat16 can hold, too: multiples of 1/32 below 4."""
        return (self.normal(*shape) * 32).clip(-127, 127).round() / 32

    def integers(self, high, n):
        """n whole numbers 0 .. high - 1, a NumPy array: there is one for a sample."""
        return np.random.default_rng([self.seed, high, n]).integers(high, size=n)

    def key(self, n, purpose):
        """A key of pydiff.random for n samples. Ops move it to the device, once."""
        return random.key(7, purpose, *(self.integers(2**31 - i, n) for i in (1, 2)))


class Device:
    """What devices have in common. seed: of the inputs."""

    gpu = tiny = False
    name: str
    xp: Any = np
    seed: int
    dtypes = ("float32",)
    unit, scale = "gflops", 1e-9
    at_hand: Any = None  # (problem, random, its sets of inputs, its truth)

    # ---- arrays ----

    def generator(self, seed) -> Any:
        """For `normal`."""
        return np.random.default_rng(seed)

    def normal(self, generator, shape, dtype, mean, scale):
        """Normal numbers."""
        drawn = np.float32(scale) * generator.standard_normal(shape, np.float32) + np.float32(mean)
        return drawn.astype(numpy_type(dtype), copy=False)

    def tensor(self, a):
        """An array's own memory as torch's tensor."""
        torch: Any = peer("torch")
        low = is_bfloat16(a.dtype)
        a = a.view(np.int16) if low else a
        t = torch.from_numpy(a) if isinstance(a, np.ndarray) else torch.from_dlpack(a)
        return t.view(torch.bfloat16) if low else t

    def wide(self, a):
        """The float64 array of an array, a Tensor or a tensor."""
        a = a.data if isinstance(a, Tensor) else a
        if type(a).__module__.partition(".")[0] == "torch":
            return self.array(a.detach().double())
        return a.astype(np.float64)

    def array(self, tensor):
        """A tensor's own memory as an array."""
        return tensor.numpy()

    # ---- problems ----

    def inputs(self, problem, many=False):
        """Sets of inputs of a problem, made once for all cases about it. many: as many as `sets` says, to rotate
        through; else the first is enough."""
        if self.at_hand is None or self.at_hand[0] is not problem:
            self.at_hand = None
            self.release()
            fresh = Random(self, problem)
            self.at_hand = problem, fresh, [problem.make(fresh)], []
        _, fresh, found, _ = self.at_hand
        if many and len(found) == 1:
            nbytes = sum(a.nbytes for a in found[0] if hasattr(a, "nbytes"))
            found += [problem.make(fresh) for _ in range(self.sets(nbytes) - 1)]
        return found

    def truth(self, problem):
        """The right answers to the first of them, likewise made once."""
        first, *_ = self.inputs(problem)
        known = self.at_hand[3]
        if not known:
            known += problem.truth(first)
        return known

    def sets(self, nbytes) -> int:
        """How many sets of so many bytes to rotate through, so that none is in the cache from its last use."""
        raise NotImplementedError

    def release(self):
        """Gives unused memory back, before something large."""

    def synchronize(self):
        """Waits for the device. Raises whatever went wrong there; after that, this process is of no more use."""

    @contextlib.contextmanager
    def unwritten_is_nan(self):
        """Inside, outputs are NaN before they are written, so that what a kernel forgets is seen."""
        empty = self.xp.empty

        def nan(*shape, **options):
            a = empty(*shape, **options)
            if a.dtype.kind == "f" or is_bfloat16(a.dtype):
                a.fill(math.nan)
            return a

        self.xp.empty = nan
        try:
            yield
        finally:
            self.xp.empty = empty


class Cpu(Device):
    """The CPU, by the clock; timing.py says how disturbances are found."""

    name = "cpu"

    def __init__(self, settings=None, seed=0):
        self.settings, self.seed = settings or Settings(), seed

    def timings(self, module):
        """[(shape, dtype)] of what is timed."""
        shapes = (
            [] if self.settings.quick else module.PARTS[self.settings.part] if self.settings.part else module.SHAPES
        )
        return [(shape, "float32") for shape in (module.TINY[0], *shapes)]

    def limit(self, limit, _dtype):
        """The largest error allowed."""
        return limit

    def bound(self, _dtype):
        """The ceiling of what is bound by arithmetic."""
        return "sgemm_gflops"

    def ours(self, build):
        """The array path and the C++ kernels as contenders; build(inputs) -> call, which returns arrays or Tensors."""

        def under(module):
            def make(inputs):
                with kernels(module):
                    call = build(inputs)

                def run():
                    with kernels(module):
                        return call()

                return run

            return make

        if not self.settings.part:  # whose shapes are large
            yield Contender("array path", OTHER, under(None), plain)
        for name, module in levels(self.settings.all_levels).items():
            yield Contender(f"C++ {name}", OURS, under(module), plain)

    def torch_ways(self, function):
        """[(name, function)] of torch, if it is there."""
        return [("torch", function)] if peer("torch") else []

    def sets(self, nbytes):
        """1 to 8, to fill 64 MB."""
        return int(np.clip(np.ceil(64e6 / max(nbytes, 1)), 1, 8))

    def program(self, calls):
        """call(i) does the work on the i-th set of inputs."""
        return lambda i: calls[i % len(calls)]()

    def take_turns(self, programs):
        """{name: figures of a row} for {name: program}."""
        timings = timing.take_turns(programs, self.settings.rounds, self.settings.seconds)
        return {name: timing.figures(t) for name, t in timings.items()}


class Gpu(Device):
    """ "cuda" with pydiff._cuda, or "simt" with pydiff._simt. with_kernels: False leaves pydiff's kernels out, for work
    that happens before they are built. They are missing if `reason` says why.

    On cuda, torch and the kernels work on one stream, so that one CUDA graph, or one pair of events, can hold either.
    """

    gpu = True
    dtypes = ("float32", "bfloat16")
    unit, scale = "tflops", 1e-12

    def __init__(self, name, with_kernels=True, seed=0):
        import torch

        if name not in GPUS:
            raise ValueError(f"device must be one of {', '.join(GPUS)}, got {name!r}")
        self.name, self.seed, self.torch = name, seed, torch
        self.cuda = name == "cuda"
        self.tiny = not self.cuda
        self.at = torch.device("cuda" if self.cuda else "cpu")
        if self.cuda:
            self.stream = torch.cuda.Stream()
            torch.cuda.set_stream(self.stream)
            for library in (torch.backends.cudnn, torch.backends.cuda.matmul):
                library.allow_tf32 = False  # float32 means float32, unless a contender says otherwise
            torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(1)  # tiny shapes, and threads that look for work are in everyone's way
        self.reason = "not asked for"
        self.entered = contextlib.ExitStack()  # for the life of the process
        if with_kernels:
            self._load_kernels()

    def _load_kernels(self):
        try:
            self.xp = self.entered.enter_context(backend.use_device(self.name))
        except RuntimeError as error:
            self.reason = str(error)
            return
        self.reason = None if self.kernels else "pydiff's kernels are switched off"
        if self.cuda:
            self.xp.cuda.ExternalStream(self.stream.cuda_stream).use()

    @property
    def kernels(self) -> Any:
        """pydiff._cuda or pydiff._simt."""
        return backend.cuda if self.cuda else backend.emulator

    def timings(self, module):
        """[(shape, dtype)] of what is timed."""
        return [(shape, dtype) for shape in module.TINY for dtype in self.dtypes] if self.tiny else module.GPU

    def limit(self, _limit, dtype):
        """The largest error allowed."""
        return LIMITS[dtype]

    def bound(self, dtype):
        """The ceiling of what is bound by arithmetic: for bfloat16 that of the tensor cores."""
        return "bf16_tflops" if dtype == "bfloat16" else "fp32_tflops"

    def ours(self, build):
        """The kernels as a contender."""

        def make(inputs):
            if self.reason:
                raise RuntimeError(self.reason)
            return build(inputs)

        yield Contender("pydiff", OURS, make, plain)

    def torch_ways(self, function):
        """[(name, function)]: torch, eager and compiled. Compiling begins with the first call; without a GPU the graph
        is captured but not compiled, which would take minutes."""
        return [("torch", function), ("torch.compile", self.compile(function))]

    def compile(self, function, **options):
        """torch.compile."""
        if not self.cuda:
            return self.torch.compile(function, dynamic=False, backend="eager")
        functorch = importlib.import_module("torch._functorch.config")
        functorch.donated_buffer = False  # a timed backward runs many times on what its forward saved
        return self.torch.compile(function, dynamic=False, **options)

    # ---- arrays: on cuda, made by torch, and looked at by CuPy, whose ways of casting do not all know bfloat16 ----

    def generator(self, seed):
        """torch's on cuda."""
        return self.torch.Generator(self.at).manual_seed(seed) if self.cuda else super().generator(seed)

    def normal(self, generator, shape, dtype, mean, scale):
        """Normal numbers."""
        if not self.cuda:
            return super().normal(generator, shape, dtype, mean, scale)
        drawn = scale * self.torch.randn(shape, device=self.at, generator=generator) + mean
        return self.array(drawn.to(getattr(self.torch, dtype)))

    def wide(self, a):
        """The float64 array of an array, a Tensor or a tensor."""
        a = a.data if isinstance(a, Tensor) else a
        return super().wide(self.tensor(a) if self.cuda and is_bfloat16(getattr(a, "dtype", np.dtype("f4"))) else a)

    def array(self, tensor):
        """A tensor's own memory as an array for the kernels."""
        dtype = numpy_type(str(tensor.dtype).removeprefix("torch."))
        if self.cuda:
            return borrowed(self.xp, tensor, dtype)
        return tensor.view(self.torch.int16).numpy().view(dtype) if is_bfloat16(dtype) else tensor.numpy()

    # ---- time ----

    def synchronize(self):
        """Waits for the GPU."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def release(self):
        """torch, CuPy and a graph each keep pools of their own."""
        torch = self.torch
        torch.compiler.reset()
        if self.cuda and torch.cuda.memory_reserved() > torch.cuda.get_device_properties(self.at).total_memory // 4:
            gc.collect()
            torch.cuda.empty_cache()
            if self.kernels:
                self.xp.get_default_memory_pool().free_all_blocks()

    def seconds(self, function, times):
        """How long `times` calls take: by the GPU's events, or by the clock."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                function()
            return time.perf_counter() - start
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self.stream)
        for _ in range(times):
            function()
        end.record(self.stream)
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def sets(self, nbytes):
        """As many as are more than three times the last cache in front of the memory, 32 at most."""
        if self.tiny:
            return 2
        cache = self.torch.cuda.get_device_properties(self.at).L2_cache_size
        return min(max(math.ceil(3.0 * cache / max(nbytes, 1)), 1), 32)

    def program(self, calls):
        """The calls as a CUDA graph."""
        from benchmarks.gpu import clock

        return clock.record(self, calls)

    def take_turns(self, programs):
        """{name: figures of a row} for {name: program}."""
        from benchmarks.gpu import clock

        return clock.take_turns(self, programs)


def borrowed(cupy, tensor, dtype):
    """A CuPy array that looks at a tensor's memory and keeps the tensor alive. CuPy's own ways of taking a tensor do
    not know bfloat16."""
    # the elements from the first to behind the last that the strides reach
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    memory = cupy.cuda.UnownedMemory(
        tensor.data_ptr(), span * dtype.itemsize if tensor.numel() else 0, tensor, tensor.device.index or 0
    )
    strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0), strides)
