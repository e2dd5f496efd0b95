"""Fixed runs give the bits that are recorded in tests/recorded/bits.json, at every instruction set this machine has.

Whoever changes kernel arithmetic on purpose renews them in the same commit: python -m tests.recorded.runs --update
"""

import json

import pytest

from pydiff import backend, compiled
from tests.recorded import runs

RECORDED = json.loads(runs.RECORDED.read_text())
LEVELS = [level for level in RECORDED if level != "circumstances"]

if backend.NATIVE == "off" or backend.cpu is None:
    pytest.skip("the recorded bits are those of the compiled kernels", allow_module_level=True)
if runs.circumstances() != RECORDED["circumstances"]:
    pytest.skip(
        f"the recorded bits are those of {RECORDED['circumstances']}, this is {runs.circumstances()}",
        allow_module_level=True,
    )


@pytest.mark.parametrize("name", runs.RUNS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_bit_is_the_recorded_one(name, level):
    if level not in compiled.levels():
        pytest.skip(f"this processor has no {level}, or it was not built")
    assert runs.computed(name, level) == RECORDED[level][name]


def test_a_sum_notices_names_bits_and_shapes():
    import numpy as np

    a = np.arange(6, dtype=np.float32)
    sums = [{"a": a}, {"b": a}, {"a": a.reshape(2, 3)}, {"a": a.astype(np.float64)}, {"a": np.nextafter(a, 9)}]
    assert len({runs.digest(arrays) for arrays in sums}) == len(sums)
