"""benchmarks.gpu, rehearsed without a GPU: every case is computed by everyone who takes part and compared with its
truth, every kernel is called as it will be there, and the parent process survives whatever may befall the others."""

import contextlib
import importlib
import json
import math
import sys
import time
import types
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the script for GPUs compares with torch, which is not installed")
pytest.importorskip("ml_dtypes")

from benchmarks import bench_conv2d, bench_group_norm, bench_layer_norm, harness, tables  # noqa: E402
from benchmarks.cases import OURS, checked, timed  # noqa: E402
from benchmarks.devices import Gpu, borrowed, numpy_type  # noqa: E402
from benchmarks.gpu import __main__ as script  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    clock,
    models,
    sanitizer,
    stages,
    triton_group_norm,
    unet_shapes,
    worker,
)
from benchmarks.gpu.summary import summary  # noqa: E402
from benchmarks.gpu.torch_unet import UNet2DModel  # noqa: E402
from pydiff import backend  # noqa: E402
from pydiff.models import UNet2D  # noqa: E402
from pydiff.ops.attention import Attention  # noqa: E402
from pydiff.ops.conv2d import Conv2d  # noqa: E402
from pydiff.ops.group_norm import GroupNorm  # noqa: E402
from tests import emulated  # noqa: E402
from tests.native_functions import FUNCTIONS  # noqa: E402
from tests.stand_in_kernels import StandIns  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
SEED = 20261122


@pytest.fixture(scope="module", autouse=True)
def emulator():
    emulated.module()


@pytest.fixture(scope="module")
def device():
    """The emulator, left again afterwards; torch's threads are put back."""
    threads = torch.get_num_threads()
    device = Gpu("simt", seed=SEED)
    with device.entered:
        yield device
    torch.set_num_threads(threads)


@pytest.fixture
def stand_ins(device, monkeypatch):
    """The device with kernels in NumPy."""
    return use(StandIns(), device, monkeypatch)


def use(kernels, device, monkeypatch):
    """Gives the device these kernels."""
    assert device.name == "simt"
    monkeypatch.setattr(backend.here, "emulator", kernels)
    monkeypatch.setattr(backend, "_emulator", lambda: kernels)  # for blocks that enter the device once more
    return kernels


def first_of(module, device, op, dtype="float32", which=0):
    """The case of this op at one of its tiny shapes."""
    return next(case for case in module.cases_of(device, module.TINY[which], dtype) if case.op == op)


# ---- every case, with kernels that are known to be right, and with those of the emulator -----------------------------


def test_every_truth_agrees_with_the_array_path(device, stand_ins):
    """What the kernels will be judged by is right, for every launcher, naive and fast."""
    rows = [row for case in worker.cases(device, checked) for row in harness.check(device, case)]
    assert [row for row in rows if not row["ok"]] == []
    assert {name for name, naive in stand_ins.called if naive} == {
        name for name, naive in stand_ins.called if not naive
    }
    assert {name for name, _ in stand_ins.called} >= set(FUNCTIONS)
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}


@pytest.mark.usefixtures("stand_ins")
def test_every_peer_computes_what_the_kernels_do(device):
    """All contenders of the timing stage that can work here agree with the truth; times and ratios are numbers."""
    names = Counter()
    for case in worker.cases(device, timed):
        rows, ratio = harness.measure(device, case, {"copy_gbs": 10.0, "bf16_tflops": 1.0, "fp32_tflops": 1.0})
        failures = [harness.line_of(row) for row in rows if "failure" in row]
        assert failures == [], case.title
        assert rows[0]["kind"] == OURS
        for row in rows:
            names[row["name"]] += 1
            if "unsupported" not in row:
                assert row["error"] is not None
                assert 0 < row["min_ms"] <= row["median_ms"]
                assert row["share"] > 0
        assert ratio is None or ratio > 0
        json.dumps(rows, allow_nan=False)
    assert set(names) == {
        "pydiff", "torch", "torch.compile", "torch channels_last", "torch.compile channels_last", "torch fused",
        "torch fused, flat", "torch vector_norm", "Triton", "SDPA flash", "SDPA cuDNN", "SDPA efficient", "SDPA math",
        "cuDNN",
    }  # fmt: skip


@pytest.mark.parametrize("op", worker.OPS)
def test_emulated_kernels_pass_the_checks(device, op):
    """The correctness stage as it is, at tiny shapes: call signatures, and the kernels themselves."""
    rows = [row for case in checked(op, device) for row in harness.check(device, case)]
    assert [(row["op"], row["shape"], row["dtype"], row) for row in rows if not row["ok"]] == []


@pytest.mark.usefixtures("stand_ins")
def test_whole_models_agree_and_are_timed(device):
    found = {name: task() for name, task in models.tasks(device).items()}
    (agreement,) = found.pop("agreement")
    assert agreement["ok"]
    assert agreement["error"] < 1e-5
    for rows in found.values():
        assert [row.get("failure") for row in rows] == [None] * 4
        assert rows[0]["ratio"] > 0
        assert all(row["images_s"] > 0 for row in rows)


# ---- what is wrong is seen -------------------------------------------------------------------------------------------


def spoil(position, value):
    """A fault: the argument at this position gets one wrong element."""

    def fault(*arguments):
        arguments[position].reshape(-1)[-1] = value

    return fault


@pytest.mark.parametrize("value", [0.5, math.nan], ids=["wrong", "nan"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_wrong_element_is_noticed(device, monkeypatch, name, value):
    elsewhere = {"normal": "noise", "squared_norm": "adamw", "geglu_forward": "gelu", "geglu_backward": "gelu"}
    op = elsewhere.get(name) or next(op for op in worker.OPS if name.startswith(op))
    position = {"adamw": 0, "conv2d_backward_weight": 5}.get(name, -1)
    if name == "group_norm_backward":
        position = 8  # dx: the last argument is not always there
    if name == "layer_norm_backward":
        position = 5
    if name == "noise_forward":
        position = 7
    use(StandIns((name, spoil(position, value))), device, monkeypatch)
    rows = [row for case in checked(op, device) for row in harness.check(device, case)]
    wrong = [row for row in rows if not row["ok"]]
    assert wrong, f"a wrong element of {name} went unnoticed"
    assert [row["failure"] for row in wrong if "failure" in row] == []
    assert any(row["ok"] for row in rows) or name == "dropout_forward"  # part of every case


def test_a_result_that_does_not_repeat_is_noticed(device, monkeypatch):
    """A float32 rounding apart is right, but not the same."""
    calls = []

    def fault(_x, _gamma, _beta, _groups, _eps, _silu, y, *_):
        calls.append(1)
        y[...] *= np.float32(1 + 1e-6 * (len(calls) % 2))

    use(StandIns(("group_norm_forward", fault)), device, monkeypatch)
    rows = harness.check(device, first_of(bench_group_norm, device, "group_norm forward"))
    for row in rows:
        assert row["error"] <= row["limit"]
        assert row["repeats"] is False
        assert not row["ok"]


def test_a_wrong_kernel_is_not_timed(device, monkeypatch):
    use(StandIns(("conv2d_forward", lambda *a: a[-1].fill(1))), device, monkeypatch)
    rows, ratio = harness.measure(device, first_of(bench_conv2d, device, "conv2d forward"), {})
    assert [(row["kind"], row["wrong"]) for row in rows] == [("ours", True), ("peer", False)]
    assert rows[0]["median_ms"] is None
    assert ratio is None


def test_an_output_that_is_not_written_is_noticed(device, monkeypatch):
    """The last time, it was right: who asks for memory may get what that has left."""
    kernels = StandIns()
    monkeypatch.setattr(StandIns, "layer_norm_forward", lambda _self, *_: None)
    use(kernels, device, monkeypatch)
    for row in harness.check(device, first_of(bench_layer_norm, device, "layer_norm forward")):
        assert row["error"] is None
        assert not row["ok"]


# ---- the parts that only a GPU uses ----------------------------------------------------------------------------------


class FakeGraph:
    """torch.cuda.CUDAGraph: takes down what is called between begin and end; here, nothing is captured."""

    capturing, refuses, replays = False, False, 0

    def capture_begin(self, capture_error_mode):
        assert capture_error_mode == "relaxed"
        FakeGraph.capturing = True

    def capture_end(self):
        FakeGraph.capturing = False
        if FakeGraph.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")

    def replay(self):
        FakeGraph.replays += 1


class FakeEvent:
    """torch.cuda.Event by the clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "stream"
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.time - self.time) * 1e3


@pytest.fixture
def fake_gpu(device, stand_ins, monkeypatch):
    """A device that takes the ways of a GPU, with torch.cuda and CuPy replaced by little."""
    assert backend.emulator is stand_ins
    monkeypatch.setattr(Gpu, "kernels", stand_ins)
    properties = types.SimpleNamespace(L2_cache_size=10_000, total_memory=10**9)
    fakes = {"CUDAGraph": FakeGraph, "Event": FakeEvent, "synchronize": lambda: None, "empty_cache": lambda: None,
             "memory_reserved": lambda: 10**9, "get_device_properties": lambda _: properties}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    pools = []

    class Pool:
        def __init__(self):
            pools.append(self)

        def malloc(self, _):
            raise AssertionError("no kernel of the stand-ins needs a workspace")

    @contextlib.contextmanager
    def using_allocator(malloc):
        assert not FakeGraph.capturing
        assert malloc == pools[-1].malloc  # a pool of its own for every graph
        yield

    class Everything:
        free_all_blocks = staticmethod(lambda: pools.append("freed"))

    cupy = types.SimpleNamespace(
        cuda=types.SimpleNamespace(MemoryPool=Pool, using_allocator=using_allocator),
        get_default_memory_pool=Everything,
    )
    plain = Gpu("simt", with_kernels=False)
    arrays = {name: getattr(plain, name) for name in ("array", "generator", "normal", "wide")}
    for name, value in {"cuda": True, "tiny": False, "stream": "stream", "xp": cupy, **arrays}.items():
        monkeypatch.setattr(device, name, value, raising=False)
    device.at_hand = None
    monkeypatch.setattr(FakeGraph, "refuses", False)
    monkeypatch.setattr(clock, "REPETITION", 1e-6)
    return device, pools


@pytest.mark.parametrize("refuses", [False, True])
def test_graphs_are_captured_with_memory_of_their_own(fake_gpu, monkeypatch, refuses):
    """What runs on GPUs only is run once, as far as it goes: a graph for each contender, events, turns; and launches
    where capturing is refused."""
    gpu, pools = fake_gpu
    monkeypatch.setattr(FakeGraph, "refuses", refuses)
    FakeGraph.replays = 0
    rows, ratio = harness.measure(gpu, first_of(bench_conv2d, gpu, "conv2d forward"), {})
    assert [row["wrong"] for row in rows] == [False, False], rows
    assert all(row["turns"] >= clock.LEAST for row in rows)
    assert ratio > 0
    assert pools[0] == "freed"  # memory was full
    assert len(pools) == 3
    if refuses:
        assert all(row["how"].startswith("launches: RuntimeError: operation not permitted") for row in rows)
        assert FakeGraph.replays == 0
    else:
        assert [row["how"] for row in rows] == ["graph", "graph"]
        assert FakeGraph.replays > 2 * clock.LEAST
    assert rows[0]["sets"] == 2  # of 17 kB, to fill three times a cache of 10 kB


def test_cupy_arrays_share_the_tensors_memory():
    """CuPy's arrays can be made without a GPU as long as nobody looks at their elements."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    packed = torch.zeros(2, 5, 12, dtype=torch.bfloat16)
    view = packed.chunk(3, dim=2)[1]
    array = borrowed(cupy, view, numpy_type("bfloat16"))
    assert array.dtype.name == "bfloat16"
    assert (array.shape, array.strides) == (view.shape, tuple(2 * s for s in view.stride()))
    assert array.data.ptr == view.data_ptr()
    assert not array.flags.c_contiguous
    assert borrowed(cupy, torch.zeros(3, 4), numpy_type("float32")).flags.c_contiguous


@pytest.mark.skipif(triton_group_norm.triton is None, reason="Triton is not installed")
def test_triton_kernel_compiles_for_hopper():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"x": "*bf16", "y": "*bf16", "dy": "*bf16", "dx": "*bf16", "eps": "fp32"}
    tile = {"rows": triton_group_norm.ROWS, "columns": triton_group_norm.COLUMNS}
    inside = {"rows": triton_group_norm.ROWS, "chunks": 16, "width": 16}
    names = {"moments": tile, "groups": inside, "apply": tile, "sums": tile, "means": inside, "dx": tile}
    if triton_group_norm.interpreted():
        pytest.skip("Triton interprets its kernels here")
    for name, constants in names.items():
        kernel = getattr(triton_group_norm, f"{name}_kernel")
        types = {a: pointers.get(a, "i32" if a in ("s", "c", "groups") else "*fp32") for a in kernel.arg_names}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        assert importlib.import_module("triton").compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_shapes_are_those_of_the_model(monkeypatch):
    """unet_shapes.py against pydiff's own U-Net of that configuration, traced without arithmetic."""
    seen = Counter()

    def convolve(_self, x, w, _bias, _add, window, shape):
        side = window.upsample[0] * math.isqrt(math.prod(x.shape[:3]))  # of an image, or of its pixels as a matrix
        if side > 1:
            seen[(side, w.shape[0], window.stride[0], *w.shape[2:])] += 1
        return np.zeros(shape, np.float32)

    monkeypatch.setattr(Conv2d, "forward", convolve)
    monkeypatch.setattr(GroupNorm, "forward", lambda _self, x, *_, **__: x)
    monkeypatch.setattr(Attention, "forward", lambda _self, q, *_, **__: q)
    monkeypatch.setattr(UNet2D, "initialize", lambda self, _seed: self)
    model = UNet2D(**unet_shapes.CONFIG)
    model(np.zeros((1, 32, 32, 3), np.float32), 0)
    assert dict(seen) == unet_shapes.CONVS
    assert Counter(p.size for p in model.parameters()) == unet_shapes.PARAMETERS
    assert 6.0e9 < unet_shapes.macs() < 6.1e9  # Ho et al.'s U-Net has 6.1 G multiplications and additions


def test_plain_unet_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="comparison with diffusers: not installed")
    theirs = diffusers.UNet2DModel(**unet_shapes.TINY_CONFIG)
    ours = UNet2DModel(**unet_shapes.TINY_CONFIG)
    ours.load_state_dict(theirs.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    torch.testing.assert_close(ours(x, t), theirs(x, t).sample, rtol=1e-4, atol=1e-5)
    big = UNet2DModel(**unet_shapes.CONFIG)
    assert Counter(p.numel() for p in big.parameters()) == unet_shapes.PARAMETERS


def test_sanitizer_builds_every_kernel(monkeypatch, tmp_path):
    """The commands, taken down by something that is not nvcc."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "$@" >> ' + f"{tmp_path}/commands\n" + 'case "$*" in *broken*) exit 2;; esac\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(sanitizer, "tool", lambda _: str(nvcc))
    monkeypatch.setattr(sanitizer, "SOURCES", tmp_path / "cuda")
    monkeypatch.setattr(sanitizer, "PLACE", tmp_path / "place")
    with (tmp_path / "log").open("w") as log:
        assert "does not exist" in sanitizer.compile_program(log, 10)["skipped"]
        (tmp_path / "cuda/check").mkdir(parents=True)
        for name in ("noise.cu", "check/noise.cpp", "check/main.cpp"):
            (tmp_path / "cuda" / name).touch()
        assert sanitizer.compile_program(log, 10)["ok"]
        commands = (tmp_path / "commands").read_text().splitlines()
        (tmp_path / "cuda/broken.cu").touch()
        assert sanitizer.compile_program(log, 10)["status"] == 2
        assert sanitizer.sanitize(log, 10) == [{"tool": "alone", "ok": None, "skipped": "the program was not built"}]
    objects = {command.split()[-1] for command in commands[:3]}
    assert len(objects) == 3  # two of them are called noise
    assert set(commands[3].split()) >= objects
    assert commands[3].endswith(str(tmp_path / "place/check"))
    assert all("-DPYDIFF_GPU" in command and "-gencode=arch=compute_" in command for command in commands)


def test_sanitizer_tells_what_a_tool_said(tmp_path):
    with (tmp_path / "log").open("w") as log:
        bad = sanitizer.run(
            "memcheck", lambda left: sanitizer.execute(["sh", "-c", "echo bad address; exit 99"], log, left), 9
        )
        slow = sanitizer.run("racecheck", lambda left: sanitizer.execute(["sleep", "9"], log, left), 1)
        good = sanitizer.run("alone", lambda left: sanitizer.execute(["true"], log, left), 9)
    assert (bad["ok"], bad["status"], bad["failure"].strip()) == (False, 99, "bad address")
    assert (slow["ok"], slow["failure"]) == (False, "took more than 1 s")
    assert good["ok"]
    assert "bad address" in (tmp_path / "log").read_text()


# ---- the parent ------------------------------------------------------------------------------------------------------

PUPPET = """
import json, os, sys, time
first = int(sys.argv[sys.argv.index("--first") + 1])
tasks = ["good", "raises", "crashes", "hangs", "loses", "good again"]
tell = lambda message: print(json.dumps(message), flush=True)
tell({"tasks": tasks})
for k, task in list(enumerate(tasks))[first:]:
    tell({"start": k})
    if task == "crashes": os.kill(os.getpid(), 11)
    if task == "hangs": time.sleep(60)
    if task in ("raises", "loses"):
        tell({"failed": k, "failure": "ValueError: no"})
        if task == "loses": sys.exit(3)
    else:
        tell({"done": k, "seconds": 0.1, "result": {"rows": [{"op": task}], "ratio": {task: 2.0}}})
"""


class PuppetRun(stages.Run):
    """A run whose workers are the script above, or another one."""

    text = PUPPET

    def command(self, name, first):
        return [sys.executable, "-c", self.text, *super().command(name, first)[3:]]


def test_nothing_takes_the_rest_with_it(tmp_path, monkeypatch):
    monkeypatch.setitem(stages.BUDGETS, "timing", stages.Budget(30, 1.0, 0))
    run = PuppetRun(tmp_path, "x", "simt", ["timing"], 60, SEED)
    report = run.go()
    stage = report["stages"]["timing"]
    assert [row["op"] for row in report["timing"]["rows"]] == ["good", "good again"]
    assert report["timing"]["ratio"] == {"good": 2.0, "good again": 2.0}
    assert stage["not_reached"] == []
    assert [(f["task"], f["failure"]) for f in stage["failures"]] == [
        ("raises", "ValueError: no"),
        ("crashes", "the process ended with status -11"),
        ("hangs", "the process said nothing for 1 s"),
        ("loses", "ValueError: no"),
    ]
    assert json.loads(run.path.read_text()) == report
    assert script.wrong(report)


def test_a_budget_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(stages.BUDGETS, "timing", stages.Budget(1.5, 60.0, 0))
    start = time.perf_counter()
    stage = PuppetRun(tmp_path, "x", "simt", ["timing"], 60, SEED).go()["stages"]["timing"]
    assert time.perf_counter() - start < 8
    assert stage["not_reached"] == ["hangs", "loses", "good again"]
    assert [f["task"] for f in stage["failures"]] == ["raises", "crashes"]


@pytest.mark.parametrize("text", ["import sys; sys.exit(1)", 'print(\'{"tasks": ["a", "b"]}\')'])
def test_a_worker_that_cannot_begin_is_given_up(tmp_path, text):
    run = PuppetRun(tmp_path, "x", "simt", ["ceilings"], 60, SEED)
    run.text = text
    stage = run.go()["stages"]["ceilings"]
    assert len(stage["failures"]) == 1
    assert "ended with status" in stage["failures"][0]["failure"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path):
    assert script.main(["--out", str(tmp_path), "--stages", "ceilings"]) == 1
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("gpu-*.json"))
    (failure,) = report["stages"]["ceilings"]["failures"]
    assert "CUDA" in failure["failure"]


def test_stages_keep_time_for_those_behind():
    """All stages at their worst, and still the budgets of the last ones are there."""
    least = sum(max(stages.BUDGETS[s].least for s in group) for group in stages.GROUPS)
    assert least < 0.5 * script.TOTAL
    assert {s for group in stages.GROUPS for s in group} == set(stages.BUDGETS)
    assert set(stages.WARM) <= set(worker.STAGES)
    assert script.TOTAL <= 540


def test_rehearsal_writes_a_report(tmp_path, monkeypatch, capsys):
    """The command itself, with real workers, which on a busy machine may take minutes; models are rehearsed above."""
    names = "machine,ceilings,correctness"
    for stage in names.split(","):
        monkeypatch.setitem(stages.BUDGETS, stage, stages.Budget(300, 300, 0))
    monkeypatch.setattr(stages, "START", 300)
    status = script.main(["--out", str(tmp_path), "--device", "simt", "--stages", names, "--total", "900"])
    report = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert report["machine"]["device"] == "simt"
    assert report["ceilings"]["copy_gbs"] > 0
    assert [row["op"] for row in report["correctness"]["rows"] if not row["ok"]] == []
    assert all(stage["not_reached"] == [] for stage in report["stages"].values())
    assert status == 0
    assert "right" in capsys.readouterr().out
    assert tables.gpu_tables([report]) == "Not yet measured on a GPU.\n"  # it was none


def test_summary_is_short_and_names_what_failed():
    ratios = {f"conv2d forward, {n} x 8x8, 3x3, bfloat16": float(n) for n in (1, 2, 4)} | {
        "adamw, 7 in 1, float32": 0.5
    }
    wrong = {"op": "noise", "shape": "1", "dtype": "float32", "kernel": "fast", "ok": False, "error": 0.5, "limit": 0.1}
    report = {
        "seed": 1,
        "correctness": {"rows": [wrong | {"repeats": True}] * 100 + [wrong | {"failure": "boom"}]},
        "timing": {
            "rows": [{"op": "conv2d", "shape": "2", "name": "cuDNN", "failure": "out of memory"}],
            "ratio": ratios,
        },
        "stages": {"timing": {"failures": [{"task": "t", "failure": "f"}], "not_reached": ["a", "b"], "seconds": 1.0}},
    }
    text = summary(report)
    assert len(text) < 10000
    assert "0 of 101 right" in text
    assert "WRONG noise, 1, float32, fast: error 5.0e-01, allowed 1.0e-01" in text
    assert ".. and 71 more" in text
    assert "FAILED conv2d, 2: cuDNN: out of memory" in text
    assert "  2.00 (1.00 to 4.00 in 3)   conv2d forward, bfloat16" in text
    assert "timing FAILED t: f" in text
    assert "timing: 2 tasks not reached, from a on" in text


def test_unknown_stage_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path), "--stages", "cookies"])


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
def test_tables_come_from_a_report(device, monkeypatch, tmp_path):
    monkeypatch.setitem(bench_conv2d.OFTEN, bench_conv2d.TINY[2], 7)
    case = first_of(bench_conv2d, device, "conv2d forward", "bfloat16", which=2)
    rows, ratio = harness.measure(device, case, {"bf16_tflops": 1e-3})
    for row in rows:
        row["how"] = "graph"
    rows[0] |= {"median_ms": 2.0, "tflops": 123.44, "share": 0.155}
    rows[1] |= {"median_ms": 1.0}
    model = {"op": "training step, batch 16", "name": "pydiff", "kind": "ours", "wrong": False, "quiet": True}
    report = {
        "device": "cuda",
        "seed": 5,
        "machine": {"gpu": "Abacus 9000", "versions": {"torch": "9"}, "date": "2026-01-01", "smi": {}},
        "ceilings": {"copy_gbs": 3000.0, "bf16_tflops": 800.0},
        "correctness": {"rows": harness.check(device, case)},
        "sanitizer": {"rows": [{"tool": "memcheck", "ok": True}, {"tool": "racecheck", "ok": False, "failure": "x"}]},
        "timing": {"rows": rows, "ratio": {case.title: 0.5}},
        "models": {
            "rows": [model | {"median_ms": 20.0, "images_s": 800.0, "tflops": 9.0}],
            "ratio": {"training": 1.25},
        },
        "stages": {"timing": {"failures": [{"task": "t", "failure": "f"}], "not_reached": ["a", "b"], "seconds": 1.0}},
    }
    assert ratio is not None
    (tmp_path / "gpu-abacus.json").write_text(json.dumps(report))
    text = tables.render("<!-- table: gpu -->\nold\n<!-- end -->\n", tmp_path)
    assert "Abacus 9000" in text
    assert "copy 3000 GB/s, bfloat16 800 TFLOP/s" in text
    assert "2 of 2 checks (seed 5)" in text
    assert "memcheck clean, racecheck FAILED" in text
    assert "| conv2d forward | 2 x 8x8, 3x3 stride 2, 8 to 16 (7x) | bfloat16 | 2 | 1 | 123.4 TFLOP/s | 16% |" in text
    assert "| 0.50 |" in text
    assert "| training step, batch 16 | pydiff | 20 | 800 | 9.0 |" in text
    assert "Not reached in timing: 2 of its cases." in text
    assert "old" not in text
    assert tables.render(text, tmp_path) == text
    assert "Not yet measured on a GPU." in tables.render(text, tmp_path / "nothing")
