"""What property tests draw: awkward sizes, strided views, and every compiled instruction set this machine can run."""

import importlib

import numpy as np
import pytest
from hypothesis import strategies as st

from pydiff import backend, compiled, random
from tests import emulated

# 1, primes, powers of two, and neighbours of vector widths (4, 8, 16) and of tiles
sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33])
small = st.sampled_from([1, 2, 3, 4, 5, 7, 8])
seeds = words = st.integers(0, 2**32 - 1)

LEVELS = compiled.levels() if backend.cpu is not None else []


@st.composite
def strided(draw, rng, shape, dtype=np.float64):
    """Standard normals of this shape, in memory as drawn: contiguous, transposed, every second element, or reversed."""
    a = rng.standard_normal(shape).astype(dtype)
    kind = draw(st.sampled_from(["contiguous", "transposed", "every second", "reversed"]))
    if kind == "transposed":
        return np.asfortranarray(a)
    if kind == "every second":
        wide = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)
        wide[..., ::2] = a
        return wide[..., ::2]
    return a[..., ::-1] if kind == "reversed" else a


@pytest.fixture(
    params=LEVELS or [pytest.param(None, marks=pytest.mark.skip(reason="no compiled CPU kernels in this install"))]
)
def simd(request, monkeypatch):
    """Runs a test once for every instruction set this machine supports."""
    monkeypatch.setattr(backend, "cpu", importlib.import_module(compiled.LEVELS[request.param]))
    return request.param


@st.composite
def keys(draw, n, purposes):
    """A random.Key of n samples for one of these purposes; samples, steps and seed up to the ends of their range."""
    purpose = draw(st.sampled_from(purposes))
    sample, step = ([draw(words) for _ in range(n)] for _ in range(2))
    return random.key(draw(st.integers(0, 2**64 - 1)), purpose, sample, step)


@pytest.fixture(params=[*LEVELS, "simt"])
def kernels(request, monkeypatch):
    """Runs a test once for every instruction set this machine supports, and once with the CUDA kernels, emulated."""
    if request.param != "simt":
        monkeypatch.setattr(backend, "cpu", importlib.import_module(compiled.LEVELS[request.param]))
        yield request.param
        return
    emulated.module()
    with backend.use_device("simt"):
        yield "simt"


@pytest.fixture
def simt():
    """The emulator's module, in use."""
    emulated.module()
    with backend.use_device("simt"):
        yield backend.emulator


@pytest.fixture
def bfloat16(simt):  # noqa: ARG001
    """The dtype, with the emulator in use: only CUDA kernels take it."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
