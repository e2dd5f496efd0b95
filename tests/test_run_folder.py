"""The folder of a run: whose checkpoints it holds, what was changed since, who may write there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff import backend, compiled
from pydiff.store import checkpoint
from pydiff.store.folder import KernelWarning, RunDirectory
from pydiff.training.keeping import Keeper

TINY = {"steps": 4, "batch_size": 4, "channels": (8,), "groups": 4, "warmup": 1, "timesteps": 20, "sample_every": 0}
TINY |= {"checkpoint_every": 2, "keep": 9}


def train(out, **options):
    return pydiff.train("digits", out=out, progress=False, **{**TINY, **options})


@pytest.fixture
def half_way(tmp_path):
    """A run with its checkpoint of step 2 alone."""
    train(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    return tmp_path / "run"


def test_a_checkpoint_of_another_run_is_not_taken(half_way, tmp_path):
    train(tmp_path / "other", seed=1)
    shutil.rmtree(half_way / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", half_way / "checkpoints")
    with pytest.raises(ValueError, match="is a checkpoint of another run than the one in"):
        train(half_way)


def test_options_without_effect_may_change(half_way):
    assert train(half_way, checkpoint_every=1, keep=1, recompute=True).step == 4


def rewrite_state(run, change):
    path = checkpoint.latest(run / "checkpoints")
    arrays, state = checkpoint.load(path)
    change(state)
    checkpoint.save(run / "checkpoints", state["step"], arrays, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": 0}, r"generation 0 then, \d+ now"),
        ({"kernels": "other"}, "kernels other then"),
        ({"winograd": None}, "winograd None then"),
    ],
)
def test_other_arithmetic_is_said(half_way, change, message):
    rewrite_state(half_way, lambda state: state["arithmetic"].update(change))
    with pytest.warns(KernelWarning, match=message):
        assert train(half_way).step == 4


def test_the_command_says_it_in_a_sentence(half_way):
    """Without the line of Python that Python shows with a warning."""
    rewrite_state(half_way, lambda state: state["arithmetic"].update(generation=0))
    flags = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", *typed(value))]
    command = [sys.executable, "-m", "pydiff", "train", "digits", "--out", half_way, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = [line for line in done.stderr.splitlines() if "arithmetic" in line]
    assert len(said) == 1
    assert said[0].startswith(f"pydiff: {half_way} goes on with other arithmetic")
    assert "main()" not in done.stderr


def typed(value):
    return map(str, value) if isinstance(value, tuple) else [str(value)]


def test_a_checkpoint_of_before_says_nothing(half_way):
    """pydiff 0.1 wrote the step alone, with kernels of generation 1."""
    rewrite_state(half_way, lambda state: [state.pop(name) for name in ("run", "arithmetic")])
    if backend.KERNEL_GENERATION == 1:
        assert train(half_way).step == 4
    else:
        with pytest.warns(KernelWarning, match="generation 1 then"):
            train(half_way)


@pytest.mark.parametrize(
    "line", ["", "{}", "[1]", "nonsense", '{"step": null}', '{"step": 3, "loss": 1', "\x00\xff" * 9]
)
def test_a_damaged_line_of_the_log_costs_that_line(half_way, line):
    log = half_way / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(line.encode("latin-1") + b"\n" + whole + line.encode("latin-1"))
    folder = RunDirectory(half_way)
    assert [entry["step"] for entry in folder.log.entries] == [1, 2, 3, 4]
    assert folder.log.damaged == (2 if line else 1)
    resumed = train(half_way)
    assert [entry["step"] for entry in resumed.log()] == [1, 2, 3, 4]
    assert [json.loads(text)["step"] for text in log.read_text().splitlines()] == [1, 2, 3, 4]
    assert pydiff.load(half_way).step == 4


def test_a_second_process_is_kept_out_whatever_is_deleted(tmp_path):
    script = (
        "import pydiff, sys; pydiff.train('digits', out=sys.argv[1], progress=False, steps=2, channels=(8,), groups=4)"
    )
    out = tmp_path / "run"
    with RunDirectory(out).locked():
        for file in out.iterdir():
            file.unlink()
        second = subprocess.run([sys.executable, "-c", script, out], capture_output=True, text=True, check=False)
        assert "another process is training in" in second.stderr
    subprocess.run([sys.executable, "-c", script, out], check=True, capture_output=True)


@pytest.mark.parametrize("model", ["unet", "autoencoder", "classifier"])
def test_a_folder_that_is_moved_while_it_trains_is_followed(model, tmp_path, monkeypatch, capfd):
    """Checkpoints, log and model come where the folder is now; another of its old name is not touched."""
    monkeypatch.chdir(tmp_path)
    kept = Keeper.took

    def moved(keeper, entry):
        if entry["step"] == 2:
            os.rename("run", "elsewhere")
            os.mkdir("run")
        kept(keeper, entry)

    monkeypatch.setattr(Keeper, "took", moved)
    options = {"steps": 4, "checkpoint_every": 3, "sample_every": 0, "batch_size": 2, "channels": (8,), "groups": 4}
    made = pydiff.train("digits", out="run", model=None if model == "unet" else model, **options)
    assert list(Path("run").iterdir()) == []
    assert made.directory == tmp_path / "elsewhere"
    assert len(Path("elsewhere/log.jsonl").read_text().splitlines()) == 4
    assert [path.name for path in sorted(Path("elsewhere/checkpoints").iterdir())] == ["step-00000003", "step-00000004"]
    assert pydiff.load("elsewhere").step == 4
    assert "step 2: the folder of the run was moved; it goes on in " in capfd.readouterr().err


def test_a_process_that_changes_its_folder_goes_on_where_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    kept = Keeper.took
    monkeypatch.setattr(Keeper, "took", lambda keeper, entry: (os.chdir(tmp_path / "other"), kept(keeper, entry)))
    train("run")
    assert list((tmp_path / "other").iterdir()) == []
    assert pydiff.load(tmp_path / "run").step == pydiff.load(tmp_path / "run").options["steps"]


def test_links_are_not_followed_when_writing(tmp_path):
    out, precious = tmp_path / "run", tmp_path / "precious.txt"
    out.mkdir()
    precious.write_text("mine")
    for name in (".lock", ".config.json.1.tmp", f".config.json.{os.getpid()}.tmp", f".samples.png.{os.getpid()}.tmp"):
        (out / name).symlink_to(precious)
    train(out, sample_every=2)
    assert precious.read_text() == "mine"


def test_arithmetic_is_what_this_process_computes_with():
    found = backend.arithmetic()
    assert found["generation"] == backend.KERNEL_GENERATION >= 1
    if backend.cpu is None:
        assert (found["kernels"], found["winograd"]) == ("arrays", False)
        return
    assert found["kernels"] in compiled.LEVELS
    backend.use_winograd(False)
    try:
        assert backend.arithmetic()["winograd"] is False
    finally:
        backend.use_winograd(found["winograd"])
    assert np.array_equal(backend.arithmetic(), found)
