"""Exactness: results that may not change by a single bit, whatever else is in the batch, however many threads work."""

import numpy as np

from pydiff import backend


def assert_same_bits(got, expected):
    """Two lists of arrays, equal in dtype, shape and every byte (so NaN equals the same NaN, and 0 is not -0)."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype, f"array {i}: dtype {a.dtype}, expected {b.dtype}"
        assert a.shape == b.shape, f"array {i}: shape {a.shape}, expected {b.shape}"
        assert a.tobytes() == b.tobytes(), f"array {i}: {np.sum(a != b)} of {a.size} elements differ"


def check_any_batch(run, n):
    """run(slice of the batch) -> arrays with the batch as first axis: a sample alone equals itself in the batch."""
    together = run(slice(None))
    for part in [slice(i, i + 1) for i in range(n)] + [slice(1, n)]:
        assert_same_bits(run(part), [a[part] for a in together])


def check_any_thread_count(run):
    """run() -> arrays: the same on 1, 2, 3 and 8 threads of the kernels in use."""
    kernels = backend.emulator or backend
    before = kernels.threads()
    try:
        kernels.set_threads(1)
        expected = run()
        for threads in (2, 3, 8):
            kernels.set_threads(threads)
            assert kernels.threads() == threads
            assert_same_bits(run(), expected)
    finally:
        kernels.set_threads(before)
