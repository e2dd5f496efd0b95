"""Where a run takes place: on a GPU with pydiff._cuda, or on this processor with pydiff._simt, which runs the same
kernels in an emulator (docs/simt.md). On the second, shapes are tiny and times mean nothing: it is there to find out,
without a GPU, whether everything that a GPU will be asked for is written correctly.

torch makes all arrays. The kernels see the same memory as CuPy or NumPy arrays, and work on the same stream as torch,
so that one CUDA graph, or one pair of events, can hold either.
"""

import contextlib
import gc
import importlib
import math
import time

import numpy as np
import torch

from pydiff import backend

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = ("cuda", "simt")


class Device:
    """One of DEVICES. with_kernels: False leaves pydiff's kernels out, for work that happens before they are built.

    kernels: pydiff._cuda or pydiff._simt, or None, and then `reason` says why. tiny: whether shapes should be.
    """

    def __init__(self, name, with_kernels=True):
        if name not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
        self.name, self.cuda, self.tiny = name, name == "cuda", name != "cuda"
        self.at = torch.device("cuda" if self.cuda else "cpu")
        if not self.cuda:
            torch.set_num_threads(1)  # tiny shapes, and threads that look for work are in everyone's way
        else:
            self.stream = torch.cuda.Stream()
            torch.cuda.set_stream(self.stream)
            for library in (torch.backends.cudnn, torch.backends.cuda.matmul):
                library.allow_tf32 = False  # float32 means float32, unless a contender says otherwise
            torch.backends.cudnn.benchmark = True
        self.kernels, self.reason, self.xp = None, "not asked for", np
        self.entered = contextlib.ExitStack()  # for the life of the process
        if with_kernels:
            self._load_kernels()

    def _load_kernels(self):
        try:
            self.xp = self.entered.enter_context(backend.use_device(self.name))
        except RuntimeError as error:
            self.reason = str(error)
            return
        self.kernels = backend.cuda if self.cuda else backend.emulator
        if self.cuda:
            self.xp.cuda.ExternalStream(self.stream.cuda_stream).use()

    # ---- arrays ----

    def array(self, tensor, dtype=None):
        """The tensor's own memory as an array for the kernels; dtype: what its elements are taken for."""
        wanted = numpy_type(dtype or str(tensor.dtype).removeprefix("torch."))
        if not self.cuda:
            return tensor.detach().view(torch.int16).numpy().view(wanted) if wanted.itemsize == 2 else (
                tensor.detach().numpy().view(wanted)
            )  # fmt: skip
        return borrowed(self.xp, tensor, wanted)

    def nan(self, *shape, dtype=torch.float32):
        """An output before it is written: all NaN, so that what a kernel forgets is seen."""
        return torch.full(shape, math.nan, dtype=dtype, device=self.at)

    # ---- time ----

    def synchronize(self):
        """Waits for the device. Raises whatever went wrong there; after that, this process is of no more use."""
        if self.cuda:
            torch.cuda.synchronize()

    def release(self):
        """Gives unused memory back, before something large: torch, CuPy and a graph each keep pools of their own."""
        torch.compiler.reset()
        if self.cuda and torch.cuda.memory_reserved() > torch.cuda.get_device_properties(self.at).total_memory // 4:
            gc.collect()
            torch.cuda.empty_cache()
            if self.kernels is not None:
                self.xp.get_default_memory_pool().free_all_blocks()

    def seconds(self, function, times):
        """How long `times` calls take: by the GPU's events, or by the clock."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                function()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self.stream)
        for _ in range(times):
            function()
        end.record(self.stream)
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def cache_bytes(self):
        """Bytes of the last cache in front of the memory."""
        return torch.cuda.get_device_properties(self.at).L2_cache_size if self.cuda else 1

    def compile(self, function, **options):
        """torch.compile, which begins with the first call. Without a GPU the graph is captured but not compiled, which
        would take minutes."""
        if not self.cuda:
            return torch.compile(function, dynamic=False, backend="eager")
        functorch = importlib.import_module("torch._functorch.config")
        functorch.donated_buffer = False  # a timed backward runs many times on what its forward saved
        return torch.compile(function, dynamic=False, **options)


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


def numpy_type(name):
    """NumPy's dtype of that name, bfloat16 included."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
