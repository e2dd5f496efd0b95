"""Every planted fault is caught, by a message that names the line or by a result that is not the kernel's; and the
kernels without a fault are silent and right for every order of their threads."""

import numpy as np
import pytest

from tests.emulated import simt

SEEDS = range(20)
x = np.random.default_rng(0).standard_normal(150).astype(np.float32)
lanes = np.random.default_rng(1).integers(0, 100, 32).astype(np.int32)


@pytest.fixture(params=[0, 1, 2, 3])
def seed(request):
    """Even seeds: asynchronous copies land late; odd ones: early, at random."""
    simt.set_seed(request.param)
    yield request.param
    simt.set_seed(0)


def block_sums(x):
    padded = np.zeros(-(-x.size // 64) * 64)
    padded[: x.size] = x
    return padded.reshape(-1, 64).sum(axis=1)


def reversed_tiles(x):
    padded = np.zeros(-(-x.size // 64) * 64, x.dtype)
    padded[: x.size] = x
    return padded.reshape(-1, 64)[:, ::-1].ravel()[: x.size]


def right(got, expected):
    return bool(np.all(np.abs(got - expected) <= 1e-5 * (1 + np.abs(expected))))  # False for NaN


# ---- kernels without a fault ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 65, 150])
def test_right_kernels_are_right_in_every_order(n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    for seed in SEEDS:
        simt.set_seed(seed)
        assert right(simt.block_sum(x), block_sums(x))
        np.testing.assert_array_equal(simt.scale(x, 2.0), 2 * x)
        tiles = -(-n // 64) * 64
        np.testing.assert_array_equal(simt.stage(np.pad(x, (0, tiles - n))), reversed_tiles(np.pad(x, (0, tiles - n))))
        np.testing.assert_array_equal(simt.stage(x), reversed_tiles(x))
    simt.set_seed(0)


def test_a_seed_gives_the_same_run_again():
    runs = []
    for seed in (3, 3, 4):
        simt.set_seed(seed)
        runs.append(simt.block_sum(x, "missing_barrier").tobytes())
    simt.set_seed(0)
    assert runs[0] == runs[1] != runs[2]


# ---- faults that are reported --------------------------------------------------------------------------------------

# plant: kernel, its arguments, what the message says
REPORTED = {
    "divergent_barrier": (simt.block_sum, (x,), r"kernel block_sum_kernel, .*block_sum.cu:2\d: divergent barrier"),
    "off_by_one": (
        simt.block_sum,
        (x,),
        r"thread \(63, 0, 0\), block_sum.cu:\d+: out of bounds: index 64 of 'partial'",
    ),
    "overrun": (simt.block_sum, (x,), r"block_sum.cu:\d+: shared memory was overrun .* 0 bytes behind .*'partial'"),
    "misaligned": (simt.scale, (x, 2.0), r"scale.cu:12: misaligned access: a vector load of 16 bytes .* 4 bytes"),
    "past_end": (simt.scale, (x, 2.0), r"overrun: a write 0 bytes behind the end of 'y'"),
    "missing_wait": (simt.stage, (x,), r"stage.cu:\d+: missing wait: .* covered by no cp.async.wait_group"),
    "own_lane_missing": (simt.collectives, (lanes,), r"collectives.cu:\d+: __syncwarp: lane \d+ is not in its own"),
    "divergent_warp": (simt.collectives, (lanes,), r"collectives.cu:\d+: divergent warp: .* wait in __\w+ at"),
    "deadlock": (simt.collectives, (lanes,), r"deadlock: .* 16 wait in __syncthreads at .* 16 wait in __syncwarp"),
}


@pytest.mark.parametrize("plant", REPORTED)
def test_fault_is_reported_with_its_line(plant, seed):
    kernel, arguments, message = REPORTED[plant]
    assert seed in SEEDS
    with pytest.raises(simt.Fault, match=message):
        kernel(*arguments, plant)


def test_a_fault_leaves_the_emulator_usable():
    with pytest.raises(simt.Fault):
        simt.block_sum(x, "off_by_one")
    assert right(simt.block_sum(x), block_sums(x))


def test_an_unknown_plant_is_refused():
    with pytest.raises(ValueError, match="no plant is called 'nothing'"):
        simt.block_sum(x, "nothing")


# ---- faults that show in the result --------------------------------------------------------------------------------


def test_missing_barrier_gives_a_wrong_sum(seed):
    assert seed in SEEDS
    assert not right(simt.block_sum(x, "missing_barrier"), block_sums(x))


def test_uninitialised_shared_memory_is_nan(seed):
    assert seed in SEEDS
    got = simt.block_sum(x, "uninitialised")
    assert right(got[:-1], block_sums(x)[:-1])
    assert np.isnan(got[-1])


def test_missed_tail_stays_nan(seed):
    assert seed in SEEDS
    got = simt.scale(x, 2.0, "missed_tail")
    np.testing.assert_array_equal(got[:148], 2 * x[:148])
    assert np.isnan(got[148:]).all()


def test_waiting_for_the_wrong_group_reads_nan(seed):
    """All of the first tile when copies are late; some of it when a few land early."""
    late = np.isnan(simt.stage(x, "late_wait")[:64])
    assert late.all() if seed % 2 == 0 else late.any() and not late.all()


@pytest.mark.parametrize("kernel", ["matmul_bf16", "matmul_tf32"])
def test_wrong_fragment_gives_a_wrong_product(kernel):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((16, 16)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    assert not np.all(np.abs(getattr(simt, kernel)(a, b, "wrong_fragment") - a @ b) <= 1.0)
