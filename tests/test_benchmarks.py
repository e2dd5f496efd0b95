"""The benchmark scripts: each runs, checks before it times, and refuses what is wrong. No test looks at a time."""

import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pydiff.bench
from benchmarks import (
    autoencoder_bands,
    bench_conv2d,
    cases,
    contenders,
    devices,
    harness,
    restraint,
    runtimes,
    sampling,
    scaling,
    stable_diffusion,
    tables,
    timing,
    training,
    whole,
    winograd,
)
from benchmarks.cases import OTHER, OURS, PEER, Case, Contender, Problem
from benchmarks.processes import ContenderFailed, in_a_line
from benchmarks.timing import Repetition
from benchmarks.workloads import WORKLOADS
from pydiff import backend, compiled, ops
from pydiff.models import UNet2D
from pydiff.ops.attention import Attention
from pydiff.ops.conv2d import Conv2d
from pydiff.ops.group_norm import GroupNorm
from pydiff.ops.group_norm import forward_arrays as group_norm_arrays
from pydiff.tensor import Tensor

OPS = ["adamw", "attention", "conv2d", "denoise", "dropout", "gelu", "group_norm", "layer_norm", "linear", "noise"]


@pytest.fixture(autouse=True)
def one_thread():
    """The scripts set the number of threads of everything; one is enough here. Put back afterwards."""
    before = backend.threads()
    yield
    contenders.set_threads(contenders.available_threads())
    backend.set_threads(before)


def run_script(module, path, *arguments):
    """(exit status, report) of a module, or of the script of an op."""
    arguments = ["--quick", "--threads", "1", "--json", str(path), *arguments]
    status = harness.main(module, arguments) if isinstance(module, str) else module.main(arguments)
    return status, json.loads(path.read_text())


# ---- every script ----


@pytest.mark.parametrize("op", OPS)
def test_kernel_script_checks_and_times_everyone(op, tmp_path):
    script = importlib.import_module(f"benchmarks.bench_{op}")
    status, report = run_script(op, tmp_path / "report.json", "--all-levels")
    assert status == 0
    assert report["wrong"] == []
    assert report["machine"]["threads"] == 1
    assert report["ceilings"]["sgemm_gflops"] > 0
    assert report["ceilings"]["copy_gbs"] > 0
    for row in report["rows"]:
        assert row["op"].startswith((op, "squared_norm"))
        assert row["dtype"] == "float32"
        assert row["error"] <= script.LIMIT
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row.get("gflops", row.get("gbs")) > 0
        assert row["share"] > 0
    names = {row["name"] for row in report["rows"]}
    assert {"reference (float64)", "array path"} <= names
    if backend.cpu is not None:
        assert {f"C++ {level}" for level in compiled.levels()} <= names
    if contenders.peer("torch"):
        assert any(row["kind"] == PEER for row in report["rows"])


@pytest.mark.parametrize("script", [training, sampling])
def test_script_of_whole_models_runs(script, tmp_path):
    status, report = run_script(script, tmp_path / "report.json", "--peers", "none")
    assert status == 0
    row, *others = report["rows"]
    assert row["name"] == "pydiff"
    assert [other["name"] for other in others] == (["pydiff recomputing"] if script is training else [])
    assert all(other["kind"] == "other" for other in others)
    assert row["peak_rss_mb"] > 10
    assert report["ratio"] is None
    assert report["left_out"] == {}
    assert math.isclose(row["images_s"] * row["total_s"], 2)
    assert f"| {row['op']}, {row['shape']} | pydiff | " in tables.table_of(report)
    if script is training:
        assert math.isclose(sum(report["profile"].values()), 1)
        assert report["profile"]["Conv2d backward"] > 0


@pytest.mark.parametrize("batch", ["1", "3"])
def test_sampling_draws_as_many_images_as_it_is_told(batch, tmp_path):
    path = tmp_path / "report.json"
    limits = ["--threads", "1", "--rounds", "1", "--seconds", "0"]
    assert sampling.main([*limits, "--peers", "none", "--batch", batch, "--json", str(path)]) == 0
    row = json.loads(path.read_text())["rows"][0]
    assert row["shape"].startswith(f"digits8: {batch} x ")
    assert math.isclose(row["images_s"] * row["total_s"], int(batch))


def test_a_batch_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        sampling.main(["--batch", "0"])
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err


def test_profile_adds_up_where_one_function_calls_another():
    class Inner:
        def forward(self):
            time.sleep(0.02)

    class Outer:
        def forward(self):
            time.sleep(0.01)
            Inner().forward()
            Inner().forward()

    seconds = Counter()
    undo = [training.watch(cls, "forward", seconds) for cls in (Outer, Inner)]
    start = time.perf_counter()
    Outer().forward()
    total = time.perf_counter() - start
    for restore in undo:
        restore()
    assert 0.04 <= seconds["Inner forward"] < total
    assert 0.01 <= seconds["Outer forward"] < total - 0.04
    assert seconds.total() <= total


def test_products_are_those_of_the_equation():
    rng = np.random.default_rng(0)
    x, w = (Tensor(rng.standard_normal(s).astype(np.float32)) for s in ((2, 5, 6, 3), (3, 3, 3, 4)))
    assert training.products_of(lambda: ops.conv2d(x, w, padding=1)) == 2 * (2 * 5 * 6 * 4) * (3 * 3 * 3)
    q = Tensor(rng.standard_normal((2, 5, 8)).astype(np.float32))
    k = Tensor(rng.standard_normal((2, 7, 8)).astype(np.float32))
    assert training.products_of(lambda: ops.attention(q, k, k, 2)) == 2 * 2 * (2 * 2) * 5 * 7 * 4


def test_scaling_script_runs(tmp_path):
    assert scaling.main(["--quick", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["what"] for row in report["scaling"]] == ["threads", "batch"]
    assert all(row["gflops"] > 0 for row in report["scaling"])
    assert "| batch | 1 | 2 x 8x8 | " in tables.table_of(report)


def test_wide_convolutions_are_none_of_the_workloads():
    wide = [shape for part in bench_conv2d.PARTS.values() for shape in part]
    assert not set(wide) & set(bench_conv2d.SHAPES)
    assert all(kernel == 3 and stride == 1 for _, _, kernel, stride, *_ in wide)


def test_winograd_script_runs(tmp_path):
    assert winograd.main(["--quick", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    rms = {(row["what"], row["algorithm"]): row["rms"] for row in report["errors"]}
    assert 1e-8 < rms["forward", "plain"] < rms["forward", "winograd"] < 1e-5
    assert "| forward | " in tables.table_of(report)
    assert 1.5 < report["points"]["1 and 2"] / report["points"]["5/8 and 3/2"] < 3  # as csrc/cpu/winograd.h says


@pytest.mark.filterwarnings("default")  # diffusers' own, at import
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_agrees_on_training_and_sampling(channels_last):
    pytest.importorskip("torch", reason="comparison with torch: not installed")
    pytest.importorskip("diffusers", reason="comparison with diffusers: not installed")
    contenders.set_threads(1)
    for script, ask, more in ((training, "loss_and_gradient", ()), (sampling, "images", (5,))):
        ours = script.Pydiff("digits8", 2, *more)
        theirs = script.Torch("digits8", 2, *more, channels_last)
        judge = script.Torch("digits8", 2, *more, exact=True)
        for contender in (theirs, judge):
            contender.load(ours.weights())
        right = getattr(judge, ask)()
        off = script.disagreement(getattr(theirs, ask)(), right)
        limit = whole.allowed({whole.EAGER: off})
        assert off < whole.SENSELESS / 100
        assert script.disagreement(getattr(ours, ask)(), right) <= limit
        for p in ours.model.parameters():  # a small fault is far beyond the limit
            p.data *= np.float32(1.001)
        assert script.disagreement(getattr(ours, ask)(), right) > 10 * limit

    theirs = training.Torch("digits8", 2, channels_last)
    theirs.load(training.Pydiff("digits8", 2).weights())
    before = [a.clone() for a in theirs.average]
    theirs.step()
    assert any((a != b).any() for a, b in zip(before, theirs.average, strict=True))


def test_what_disagrees_does():
    results = training.Pydiff("digits8", 2).loss_and_gradient()
    assert training.disagreement(results, results) == 0
    loss, gradients = results
    assert training.disagreement((1.5 * loss, gradients), results) == pytest.approx(0.5)
    name = next(iter(gradients))
    for other in ({**gradients, name: gradients[name] * np.nan}, {n: g for n, g in gradients.items() if n != name}):
        assert math.isnan(training.disagreement((loss, other), results))
    assert sampling.disagreement(np.array([3.0, 5.5]), np.array([3.0, 4.0])) == pytest.approx(0.3)
    assert math.isnan(sampling.disagreement(np.array([np.nan]), np.array([1.0])))


def test_allowed_is_a_multiple_of_what_torch_is_off():
    assert whole.allowed({whole.EAGER: 1e-5, whole.PYDIFF: 1.0}) == pytest.approx(4e-5, rel=0.02)
    assert 0 < whole.allowed({}) == whole.allowed({whole.EAGER: 0.0}) < 1e-6
    assert whole.allowed({whole.EAGER: 0.1}) == whole.allowed({whole.EAGER: math.nan}) == whole.SENSELESS


# ---- torch.compile may fail ----


class InProcess:
    """Stands in for processes.Worker."""

    def __init__(self, contender):
        self.contender = contender

    def ask(self, method, *arguments):
        try:
            return getattr(self.contender, method)(*arguments)
        except Exception as error:
            raise ContenderFailed(f"failed in {method}", in_a_line(error)) from error

    def repetition(self, _turn):
        self.ask("step")
        return Repetition(1.0, 0.0)

    def close(self):
        self.contender = None


class Steady:
    """A contender whose results are all `result`; `breaks` names the method that fails."""

    def __init__(self, breaks=None, result=0.0):
        self.breaks, self.result = breaks, result

    def __getattr__(self, method):
        if method == self.breaks:
            raise ValueError("No compiler\nfound.\n\nAdvice that is long.")
        return {"operations": lambda: 1e9, "peak_memory": lambda: 50.0}.get(method, lambda *_: self.result)


def compete_with(monkeypatch, entrants):
    monkeypatch.setattr(whole, "workers", lambda factories, _threads: contextlib.nullcontext(factories))
    running = {name: InProcess(entrant) for name, entrant in entrants.items()}
    options = SimpleNamespace(threads=1, rounds=1, seconds=1.0)
    difference = lambda ours, theirs: abs(ours - theirs)  # noqa: E731
    return whole.compete(whole.Title("step", "2 x 2", 2), running, options, "images", difference, 1.0)


@pytest.mark.parametrize("method", ["load", "images", "step"])
def test_a_failing_compiler_costs_its_row_only(method, monkeypatch, capsys):
    report = compete_with(monkeypatch, {whole.PYDIFF: Steady(), "torch": Steady(), "torch compile": Steady(method)})
    assert [row["name"] for row in report["rows"]] == [whole.PYDIFF, "torch"]
    assert report["ratio"] == 1.0
    assert report["wrong"] == []
    assert list(report["agreement"]) == ["torch"]
    sentence = "torch compile is left out because it failed to compile: ValueError: No compiler found."
    assert report["left_out"] == {"torch compile": sentence}
    assert sentence in capsys.readouterr().out
    report |= {"machine": machine_of("1 thread"), "ceilings": {"sgemm_gflops": 99, "copy_gbs": 9}}
    assert sentence in tables.table_of(report)


def test_another_failure_ends_the_benchmark(monkeypatch):
    with pytest.raises(ContenderFailed):
        compete_with(monkeypatch, {whole.PYDIFF: Steady(), "torch": Steady("step")})


def test_what_was_compiled_wrongly_is_left_out(monkeypatch):
    """Unless torch itself differs as well: then it may be pydiff that is wrong."""
    off = {"torch compile": Steady(result=0.125), "torch compile NCHW": Steady(result=math.nan)}
    report = compete_with(monkeypatch, {whole.PYDIFF: Steady(), "torch": Steady(), **off})
    assert [row["name"] for row in report["rows"]] == [whole.PYDIFF, "torch"]
    assert report["wrong"] == []
    assert report["left_out"] == {
        "torch compile": "torch compile is left out because it computes something else than torch, by 1e-01.",
        "torch compile NCHW": "torch compile NCHW is left out because it computes something else than torch, by nan.",
    }
    report = compete_with(monkeypatch, {whole.PYDIFF: Steady(), "torch": Steady(result=1.0), **off})
    assert report["wrong"] == [f"step 2 x 2: {name}" for name in ("torch", *off)]
    assert report["left_out"] == {}


@pytest.mark.parametrize("off", [1.1 * 4e-5, math.nan])
def test_what_torch_in_float64_finds_wrong_is_not_timed(off, monkeypatch):
    entrants = {"torch": Steady(result=1e-5), "pydiff recomputing": Steady(result=3e-5), whole.JUDGE: Steady()}
    report = compete_with(monkeypatch, {whole.PYDIFF: Steady(result=3e-5), **entrants})
    assert [row["name"] for row in report["rows"]] == [whole.PYDIFF, "torch", "pydiff recomputing"]
    assert report["wrong"] == []
    assert report["agreement"] == {whole.PYDIFF: 3e-5, "torch": 1e-5, "pydiff recomputing": 3e-5}
    assert report["judge"] == whole.JUDGE
    report = compete_with(monkeypatch, {whole.PYDIFF: Steady(result=off), **entrants})
    assert [row["name"] for row in report["rows"]] == ["torch", "pydiff recomputing"]
    assert report["wrong"] == ["step 2 x 2: pydiff"]


# ---- --simd ----


def test_restrained_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench_noise", "--quick", "--simd", "baseline", "--json", "report.json"]
    root = tables.HERE.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine = json.loads((tmp_path / "report.json").read_text())["machine"]
    assert machine["restrained"] == "baseline"
    assert "everyone restrained to baseline" in done.stdout
    if contenders.peer("torch"):
        assert machine["instruction_sets"]["torch"] == "DEFAULT"


def test_a_restrained_script_starts_itself_anew_once(monkeypatch):
    started = []
    for name in restraint.ENVIRONMENT["avx2"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", lambda *words: started.append(words))
    assert restraint.in_force() is None
    restraint.restrain(None)
    with pytest.raises(RuntimeError, match="from the command line only"):
        restraint.restrain("avx2", ["--simd", "avx2"])
    assert started == []
    restraint.restrain("avx2")
    (program, words, environment), *others = started
    assert (program, words[1:], others) == (sys.executable, sys.orig_argv[1:], [])
    for name, value in restraint.ENVIRONMENT["avx2"].items():
        assert environment[name] == value
        monkeypatch.setenv(name, value)
    assert not any(name.startswith(("X86_V3", "AVX2")) for name in environment["NPY_DISABLE_CPU_FEATURES"].split())
    assert restraint.in_force() == "avx2"
    restraint.restrain("avx2")
    assert len(started) == 1


def test_whoever_is_not_restrained_is_not_compared(monkeypatch):
    torch = SimpleNamespace(backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX512")))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "threadpoolctl", raising=False)
    monkeypatch.setattr(restraint, "in_force", lambda: None)
    assert restraint.instruction_sets() == {"torch": "AVX512"}
    monkeypatch.setattr(restraint, "in_force", lambda: "avx2")
    with pytest.raises(RuntimeError, match="torch was to be restrained to avx2, but works with AVX512"):
        restraint.instruction_sets()


# ---- everyone in a process of their own ----


@pytest.mark.parametrize("op", ["linear", "adamw"])
def test_contenders_in_processes_of_their_own(op, monkeypatch, tmp_path, capfd):
    """The first case: of adamw, whose contenders know a truth of their own, and of linear layers, with inference
    engines, which say if they are not there."""
    monkeypatch.setattr(harness, "timed", lambda op, device: [next(cases.timed(op, device))])
    status, report = run_script(op, tmp_path / "report.json", "--processes", "--rounds", "1", "--seconds", "0.1")
    assert status == 0
    assert report["wrong"] == []
    assert all(row["error"] <= 1e-5 and row["median_ms"] > 0 for row in report["rows"])
    names = {row["name"] for row in report["rows"]}
    assert "array path" in names
    if op == "linear":
        said = capfd.readouterr().err
        for module, name in (("openvino", "OpenVINO"), ("ncnn", "ncnn")):
            if contenders.peer(module) is None:
                assert f"{module} is not installed and is left out" in said
            elif module == "ncnn" or contenders.peer("torch"):
                assert name in names


@pytest.mark.filterwarnings("default")  # of torch, about what OpenVINO calls
def test_engines_compute_convolutions():
    device = devices.Cpu(devices.Settings(processes=True))
    if not runtimes.available(device):
        pytest.skip("neither OpenVINO nor ncnn is installed")
    for shape in (
        (1, 16, 3, 1, 8, 5), (1, (8, 6), 3, 1, 8, 5, "enlarged"), (1, 17, 3, 2, 8, 5), (2, 6, 1, 1, 8, 5, "addends"),
    ):  # fmt: skip
        case = next(bench_conv2d.cases_of(device, shape, "float32"))
        (inputs,), (exact,) = device.inputs(case.problem), case.exact(device.truth(case.problem))
        for contender in case.contenders:
            (got,) = contender.outputs(contender.make(inputs)())
            assert cases.error_of([device.wide(got)], [exact]) < 1e-5, contender.name
        names = {c.name for c in case.contenders}
        assert ("OpenVINO" in names) == bool(contenders.peer("openvino") and contenders.peer("torch"))
        assert ("ncnn" in names) == (bool(contenders.peer("ncnn")) and shape[0] == 1)


class Faulty:
    """In place of harness.Alone: a contender whose process fails, or ends."""

    def __init__(self, _settings, _op, _title, name):
        self.name = name

    def answer(self):
        if self.name == "ends":
            os._exit(7)
        raise ValueError("out of\nsomething")


def test_a_process_that_fails_costs_its_row_only(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(harness, "Alone", Faulty)
    entrants = [Contender(name, OTHER, Counted(0).make) for name in ("raises", "ends")]
    monkeypatch.setattr(harness, "timed", lambda _op, _device: [small_case(entrants)])
    status, report = run_script("adamw", tmp_path / "report.json", "--processes")
    assert status == 1
    assert [row["failure"] for row in report["rows"]] == [
        "ValueError: out of something",
        "its process ended with status 7",
    ]
    assert "Traceback" in capfd.readouterr().err


# ---- what is wrong is not timed ----


class Counted:
    """A contender that adds `off` to the right answer 1 2 3 and counts its calls."""

    def __init__(self, off):
        self.off, self.calls = off, 0

    def make(self, inputs):
        def call():
            self.calls += 1
            return [inputs + self.off]

        return call


def small_case(entrants):
    """A case whose right answer is 1 2 3."""
    exact = np.array([1.0, 2.0, 3.0])
    return Case("thing", Problem("thing", "3", "float32", lambda _random: exact, lambda _: [exact]), slice(1), entrants,
                limit=1e-6, flops=1.0)  # fmt: skip


def report_on(monkeypatch, tmp_path, *entrants):
    """(exit status, report) of a script with this one case."""
    monkeypatch.setattr(harness, "timed", lambda _op, _device: [small_case(list(entrants))])
    return run_script("adamw", tmp_path / "report.json")


@pytest.mark.parametrize("off", [0.01, math.nan, np.zeros((2, 3))], ids=["wrong", "nan", "shape"])
def test_wrong_contender_is_not_timed_and_fails_the_script(off, monkeypatch, tmp_path, capsys):
    right, wrong = Counted(0), Counted(off)
    entrants = [Contender(name, OTHER, c.make) for name, c in (("right", right), ("bad", wrong))]
    status, report = report_on(monkeypatch, tmp_path, *entrants)
    assert status == 1
    assert wrong.calls == 1
    assert right.calls > 5
    assert report["wrong"] == ["thing 3: bad"]
    bad = next(row for row in report["rows"] if row["name"] == "bad")
    assert bad["wrong"]
    assert bad["median_ms"] is None
    assert "WRONG" in capsys.readouterr().out


def test_a_contender_that_raises_leaves_the_others_their_turn(monkeypatch, tmp_path, capsys):
    def fails(_inputs):
        raise ValueError("no\nsuch thing")

    def cannot(_inputs):
        raise cases.Unsupported("needs another machine")

    entrants = [Contender(name, OTHER, make) for name, make in (("a", fails), ("b", cannot), ("c", Counted(0).make))]
    status, report = report_on(monkeypatch, tmp_path, *entrants)
    assert status == 1
    assert report["wrong"] == ["thing 3: a"]
    failed, unsupported, fine = report["rows"]
    assert failed["failure"] == "ValueError: no such thing"
    assert unsupported["unsupported"] == "needs another machine"
    assert fine["median_ms"] > 0
    said = capsys.readouterr()
    assert "not possible: needs another machine" in said.out
    assert "Traceback" in said.err


class WrongKernels:
    """Stands in for a compiled module; its group_norm forgets the SiLU's factor z."""

    def set_threads(self, _n):
        pass

    def group_norm_forward(self, x, gamma, beta, groups, eps, _silu, y, mean, rstd):
        y[...], mean[...], rstd[...] = group_norm_arrays(x, gamma, beta, groups, eps, silu=False)

    def group_norm_backward(self, *arguments):
        for gradient in arguments[-4:-1]:  # dx_sum, the last one, is None
            gradient[...] = np.nan


def test_wrong_kernel_fails_its_script(monkeypatch, tmp_path):
    for module in (contenders, devices):
        monkeypatch.setattr(module, "levels", lambda every=False: {"wrong": WrongKernels()})  # noqa: ARG005
    status, report = run_script("group_norm", tmp_path / "report.json")
    assert status == 1
    assert [name.rpartition(": ")[2] for name in report["wrong"]] == ["C++ wrong"] * 2
    assert report["ratio"] == {}
    for row in report["rows"]:
        assert row["wrong"] == (row["name"] == "C++ wrong")
    assert next(row for row in report["rows"] if row["op"].endswith("backward") and row["wrong"])["error"] is None


def test_wrong_array_path_is_not_taken_for_the_truth(monkeypatch, tmp_path):
    original = GroupNorm.backward
    monkeypatch.setattr(GroupNorm, "backward", lambda self, dy: original(self, dy * 1.001))
    with pytest.raises(AssertionError, match="does not agree with the reference"):
        run_script("group_norm", tmp_path / "report.json")


@pytest.mark.parametrize("scale", [1.001, math.nan])
def test_truth_notices_a_wrong_op(scale):
    x = np.random.default_rng(0).standard_normal((2, 3))
    square, device = lambda x: x * x, devices.Cpu()
    y, dx = cases.truth_of(device, square, square, (x, x))
    np.testing.assert_allclose(y, x**2)
    np.testing.assert_allclose(dx, 2 * x * x)
    with pytest.raises(AssertionError, match="does not agree"):
        cases.truth_of(device, lambda x: x * x * scale, square, (x, x))


def test_errors_are_relative_and_nan_never_passes():
    exact = np.array([[3.0, -4.0]])
    off = np.array([[3.0, -4.4]])
    assert cases.error_of([off], [exact]) == pytest.approx(0.1)
    assert cases.error_of([np.concatenate([off, 9 * off])], [exact]) == pytest.approx(0.1)  # the first rows
    for wrong in (np.array([[3.0, np.nan]]), np.array([[3.0, np.inf]]), np.zeros((1, 3)), np.zeros((0, 2)), np.zeros(2),
                  np.concatenate([off, off * np.nan])):  # fmt: skip
        assert math.isnan(cases.error_of([off, wrong], [exact, exact]))
        assert math.isnan(cases.error_of([wrong, off], [exact, exact]))
    assert math.isnan(cases.error_of([off], [exact, exact]))
    assert cases.error_of([np.array(2.0)], [np.array(1.0)]) == 1.0
    assert cases.error_of([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0.0


# ---- timing ----


def test_contenders_alternate_until_each_has_enough():
    order = []

    def measure(name):
        def one(turn):
            order.append((turn, name))
            return Repetition(1.0, waited=1.0 if name == "b" and turn == 1 else 0.0)

        return one

    timings = timing.alternate({name: measure(name) for name in "abc"}, rounds=6, seconds=60)
    assert order == [(turn, name) for turn in range(7) for name in "abc"]  # b needs one turn more
    assert timings["b"][2:] == (6, 1, True)


def test_a_call_that_warms_up_is_not_timed():
    calls = []

    def call(i):
        calls.append(i)
        time.sleep(0.05 if i == 0 else 0.001)

    assert timing.repeat(call, 3, warm_up=1).seconds < 0.05 / 3
    assert calls == [0, 1, 2, 3]


def test_disturbed_repetitions_are_left_out():
    quiet = [Repetition(s, 0.0) for s in (3.0, 1.0, 2.0, 5.0, 4.0)]
    noisy = [Repetition(100.0, 0.5)] * 3
    assert timing.summary(quiet + noisy) == (3.0, 1.0, 5, 3, True)
    least = [Repetition(float(i), 0.1 * i) for i in range(1, 9)]
    assert timing.summary(least) == (3.0, 1.0, 5, 3, False)


def test_no_ratio_from_disturbed_rows():
    ours = {"kind": OURS, "wrong": False, "quiet": True, "median_ms": 2.0}
    peer, slow = ours | {"kind": PEER, "median_ms": 3.0}, ours | {"kind": PEER, "median_ms": 9.0}
    assert harness.ratio([ours, slow, peer]) == 1.5
    assert harness.ratio([ours, slow, peer | {"quiet": False}]) is None
    assert harness.ratio([ours, slow, peer | {"wrong": True}]) == 4.5
    assert harness.ratio([ours]) is None


# ---- bands of rows ----


def test_an_autoencoder_is_compared_with_itself_in_bands(tmp_path):
    file = tmp_path / "report.json"
    assert autoencoder_bands.main(["--quick", "--size", "48", "40", "--rounds", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["directions"].keys() == {"decode", "encode"}
    assert "| decode | " in tables.table_of(report)
    turn = {"seconds": 2.0, "processor_seconds": 1.0, "gb": 1.0, "bits": "a"}
    assert autoencoder_bands.compared({"whole": [turn], "bands": [{**turn, "seconds": 3.0}]})["time_by_seconds"] == 1.5
    with pytest.raises(RuntimeError, match="other bits"):
        autoencoder_bands.compared({"whole": [turn], "bands": [{**turn, "bits": "b"}]})


# ---- Stable Diffusion ----


def pair(peer, ours, theirs):
    """Figures of one pair, of [(seconds, processor seconds), ..]."""
    figures = {name: {**stable_diffusion.summary(t), "peak_mb": 1e3, "error": 0.0} for name, t in
               (("pydiff", ours), (peer, theirs))}  # fmt: skip
    ratios = {f"ratio{which}": stable_diffusion.in_turns(theirs, ours, i)
              for i, which in enumerate(("", "_of_processor_seconds"))}  # fmt: skip
    return {**figures, **ratios, "load": [1.0, 2.0], "machine": {"versions": {peer: "7"}}}


def test_a_pair_measured_again_leaves_the_others():
    options = SimpleNamespace(quick=False, side=64, threads=2)
    report = stable_diffusion.settled(options, {"what": "an older report", "parts": {"unet": {"torch": {}}}})
    assert report["parts"] == {}
    report["parts"]["unet"] = {"torch": pair("torch", [(1, 2), (2, 2), (1, 2)], [(3, 2), (4, 2), (2, 6)])}
    forwards, guided = [(1, 2), (2, 3)], [(1.5, 3), (4, 6)]
    report["parts"]["unet"]["torch"]["pydiff"]["guided"] = stable_diffusion.guided_step(forwards, guided)
    report["parts"]["vae"] = {"openvino": pair("openvino", [(4, 4)], [(8, 6)])}
    assert stable_diffusion.settled(options, report) is report
    assert stable_diffusion.settled(SimpleNamespace(quick=False, side=32, threads=2), report)["parts"] == {}
    stable_diffusion.summed_up(report)
    assert report["ratio"] == {"unet_torch": 2, "vae_openvino": 2}
    assert report["ratio_of_processor_seconds"] == {"unet_torch": 1, "vae_openvino": 1.5}
    text = tables.table_of(report)
    assert "| decoding | openvino 7 | 4.0 / 4.0 | 8.0 / 6.0 | 2.00 | 1.50 | 1.00 / 1.00 GB | 2.0 |" in text
    assert "takes the processor time of 1.75 forward passes" in text


def test_a_folder_that_is_drawn_from_half_measured():
    part = {
        "seconds_until_first_forward": 2.0, "processor_seconds_until_first_forward": 1.5, "seconds_unet": 8.0,
        "seconds_decoder": 3.0, "processor_seconds": 20.0, "gb": {"opening": 0.1, "unet": 4.25, "decoder": 4.5},
        "image": "a", "load": 1.0,
    }  # fmt: skip
    machine = {"cpu": "one", "threads": 2}
    report = {"script": "stable_diffusion_folder", "latents": 64, "steps": 2, "parts": {"plain": part}}
    text = tables.table_of({**report, "machine": machine})
    assert "| a guided step, s by the clock | 4.00 |  |" in text
    assert "inversion" not in text


# ---- shapes, tables, command ----


def shapes_of(workload, monkeypatch):
    """All calls a U-Net makes, without their arithmetic: sets of the scripts' tuples."""
    seen = {"conv2d": set(), "group_norm": set(), "attention": set()}

    def conv2d(_self, x, w, bias, add, window, shape):
        stride = window.stride
        how = ("enlarged",) if window.upsample == (2, 2) else ("addends",) if bias.ndim == 2 or add is not None else ()
        seen["conv2d"].add((workload.batch, x.shape[1], w.shape[0], stride[0], *w.shape[2:], *how))
        if how == ("addends",):
            seen["conv2d"].add((workload.batch, x.shape[1], w.shape[0], stride[0], *w.shape[2:]))
        # The projections of attention are linear layers: one long row of pixels.
        if x.shape[1:3] == (1, 1):
            seen["conv2d"].add((workload.batch, math.isqrt(len(x)), 1, 1, *w.shape[2:]))
        return np.zeros(shape, np.float32)

    def group_norm(_self, x, _gamma, _beta, groups, **_):
        seen["group_norm"].add((workload.batch, x.shape[1], x.shape[3], groups))
        return x

    def attention(_self, q, _k, _v, _mask, heads, **_):
        seen["attention"].add((workload.batch, q.shape[1], heads, q.shape[2] // heads))
        return q

    for cls, stub in ((Conv2d, conv2d), (GroupNorm, group_norm), (Attention, attention)):
        monkeypatch.setattr(cls, "forward", stub)
    monkeypatch.setattr(UNet2D, "initialize", lambda self, _seed: self)
    UNet2D(**workload.config)(workload.images(1), 0)
    return seen


def test_shapes_are_those_of_the_workloads(monkeypatch):
    found = [shapes_of(workload, monkeypatch) for workload in WORKLOADS.values()]
    for op in ("conv2d", "group_norm", "attention"):
        script = importlib.import_module(f"benchmarks.bench_{op}")
        shapes = set(script.SHAPES)
        if op == "attention":
            shapes = {shape[:4] for shape in script.SHAPES[: script.OF_WORKLOADS]}
        known = set().union(*(seen[op] for seen in found))
        assert shapes <= known, shapes - known


def machine_of(simd, **more):
    """The machine of a report."""
    return {"cpu": "abacus", "threads": 3, "simd": simd, "versions": {"numpy": "2"}, "date": "2026-01-01"} | more


def test_table_says_who_was_restrained(tmp_path):
    file = tables.HERE / "results/training-digits16.json"
    report = json.loads(file.read_text())
    report["machine"] |= {"simd": "instruction set avx2", "restrained": "avx2"}
    (tmp_path / "training-digits16-avx2.json").write_text(json.dumps(report))
    rendered = tables.render("<!-- table: training-digits16-avx2 -->\n<!-- end -->", tmp_path)
    assert "instruction set avx2, everyone restrained to avx2; python" in rendered
    assert "| training step, digits16: 128 x 16x16x1 | pydiff | " in rendered


@pytest.mark.parametrize("file", sorted((tables.HERE / "results").glob("[ts]*ing-*.json")), ids=lambda file: file.stem)
def test_stored_results_have_the_names_of_the_contract(file):
    report = json.loads(file.read_text())
    assert {"machine", "rows", "ratio"} <= report.keys()
    for row in report["rows"]:
        assert {"name", "median_ms", "min_ms", "peak_rss_mb", "gflops"} <= row.keys()
    assert report["ratio"] == harness.ratio(report["rows"])
    if report["profile"]:
        assert math.isclose(sum(report["profile"].values()), 1)


def test_tables_come_from_the_results(tmp_path):
    ours = {"op": "conv2d forward", "shape": "tiny", "name": "C++ avx2", "kind": OURS, "wrong": False, "quiet": True}
    ours |= {"median_ms": 2.0, "gflops": 12.3, "share": 0.5, "error": 1e-7}
    rows = [ours, ours | {"name": "torch", "kind": PEER, "quiet": False, "median_ms": 3.0}]
    report = {
        "machine": machine_of("fingers"),
        "ceilings": {"sgemm_gflops": 99, "copy_gbs": 9},
        "rows": rows,
        "ratio": {},
    }
    (tmp_path / "conv2d.json").write_text(json.dumps(report))
    text = "before\n<!-- table: conv2d -->\nold\n<!-- end -->\nbetween\n<!-- table: adamw -->\n<!-- end -->\nafter\n"
    rendered = tables.render(text, tmp_path)
    assert "| conv2d forward | tiny | 2 | ~3 | 12 GFLOP/s | 50% | 1e-07 | - |" in rendered
    assert "abacus" in rendered
    assert "old" not in rendered
    assert "No results/adamw.json yet." in rendered
    assert tables.render(rendered, tmp_path) == rendered


def test_readme_shows_the_stored_results():
    readme = (tables.HERE / "README.md").read_text()
    assert tables.render(readme, tables.HERE / "results") == readme, "run python -m benchmarks.tables"


def test_bench_command_writes_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contenders, "available_threads", lambda: 1)
    monkeypatch.setattr(harness, "available_threads", lambda: 1)
    pydiff.bench.main(["noise"], tmp_path / "report.json", quick=True)
    assert {row["op"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]} == {
        "noise forward",
        "noise backward",
        "noise and loss",
    }
    assert "array path" in capsys.readouterr().out


def test_bench_command_explains_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no benchmark of 'conv3d'; choose from adamw, .*noise"):
        pydiff.bench.main(["conv3d"])
    monkeypatch.setattr(pydiff.bench, "__file__", str(tmp_path / "site-packages" / "pydiff" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="source checkout"):
        pydiff.bench.main([])
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "harness.py").touch()
    assert pydiff.bench.find_checkout() == Path(tmp_path)


def test_a_contender_without_kernels_is_the_array_path():
    build = lambda _inputs: lambda: backend.cpu  # noqa: E731
    device = devices.Cpu(devices.Settings(all_levels=True))
    entrants = {c.name: c.make(None)() for c in device.ours(build)}
    assert entrants.pop("array path") is None
    assert set(entrants.values()) == set(contenders.levels(every=True).values())


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
def test_the_traffic_of_several_processes(processes):
    """What is sent is received; of a power of two and many pieces, as much as in a ring."""
    from benchmarks.distributed import predicted, traffic_of

    elements = 1 << 24
    traffic = traffic_of(processes, elements, shards=8)
    assert sum(one.sent for one in traffic) == sum(one.received for one in traffic)
    ring = 2 * (processes - 1) / processes * elements * 4
    if processes == 3:  # shards 3 to 5 are two nodes of the tree, and travel twice
        assert ring < max(max(one) for one in traffic) < 2 * ring
    else:
        assert max(max(one) for one in traffic) == pytest.approx(ring, rel=0.01)
    slow, fast = (predicted(processes, 1000.0, 1.0, elements, 0.1, rate) for rate in (100.0, 10_000.0))
    assert slow.share > 0.2 > fast.share
    assert slow.best < slow.late
    assert fast.late < 1000.0 * -(-8 // processes) / 8 + 50
