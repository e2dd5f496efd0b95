"""Training: exact resume from any step, by any means of interruption; skipped steps; options that do what they say."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

import pydiff
from pydiff.store import checkpoint
from pydiff.store.folder import RunDirectory
from pydiff.training import training_steps
from tests.trainers import train_until

TINY = {"steps": 8, "batch_size": 4, "channels": (8, 8), "groups": 4, "warmup": 2, "sample_every": 0, "progress": False}
COMMAND = [sys.executable, "-m", "pydiff", "train", "digits", "--steps", "150", "--batch-size", "8", "--seed", "3"]
COMMAND += ["--channels", "8", "16", "--groups", "4", "--checkpoint-every", "10", "--sample-every", "50"]


def folder_hash(folder):
    """SHA-256 of every file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def losses(run):
    return [entry["loss"] for entry in run.log()]


def optimizer_arrays(directory):
    return checkpoint.load(checkpoint.latest(directory / "checkpoints"))[0]["optimizer"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One run of 8 steps that nothing disturbed, with dropout, classes and mirroring: everything random in use."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    return pydiff.train("digits", out=out, conditional=True, dropout=0.1, flip=True, **TINY)


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_resume_at_every_step_gives_the_same_bits(uninterrupted, tmp_path, stop_after):
    options = pydiff.Options.from_keywords(
        {**{k: v for k, v in TINY.items() if k != "progress"}, "conditional": True, "dropout": 0.1, "flip": True}
    )
    out = tmp_path / "run"
    train_until(out, stop_after, pydiff.data.load("digits"), options)
    resumed = pydiff.train("digits", out=out, conditional=True, dropout=0.1, flip=True, **TINY)
    assert losses(resumed) == losses(uninterrupted)
    for name, array in optimizer_arrays(out).items():
        assert np.array_equal(array, optimizer_arrays(uninterrupted.directory)[name]), name
    assert folder_hash(out / "model") == folder_hash(uninterrupted.directory / "model")
    assert np.array_equal(resumed.sample(3, seed=5, steps=4), uninterrupted.sample(3, seed=5, steps=4))


def test_same_seed_same_bits_and_other_seed_other_bits():
    runs = [pydiff.train("digits", seed=seed, **TINY) for seed in (1, 1, 2)]
    assert losses(runs[0]) == losses(runs[1]) != losses(runs[2])
    assert np.array_equal(runs[0].sample(2, steps=3), runs[1].sample(2, steps=3))


def test_killed_at_random_moments_the_same_command_ends_with_the_same_bytes(tmp_path):
    """kill -9, again and again. tests/stress/kill.py does the same a thousand times."""
    expected, out = tmp_path / "expected", tmp_path / "killed"
    subprocess.run([*COMMAND, "--out", expected], check=True, capture_output=True)
    moments, kills = random.Random(0), 0
    while kills < 200:
        process = subprocess.Popen([*COMMAND, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Lives grow longer, so that the run comes to its end on the most loaded machine, too.
            status = process.wait(timeout=moments.uniform(0.4, 1.6) * (1 + kills / 10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            assert status == 0
            break
    assert kills > 0, "the run was over before it could be killed"
    assert folder_hash(out / "model") == folder_hash(expected / "model")
    assert (out / "samples.png").read_bytes() == (expected / "samples.png").read_bytes()
    logs = [[(e["step"], e["loss"]) for e in RunDirectory(d).log.entries] for d in (out, expected)]
    assert logs[0] == logs[1]


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(training, tmp_path):
    command = [*COMMAND, "--out", tmp_path / "run", "--steps", "100000", "--checkpoint-every", "100000"]
    process = training(command, tmp_path / "run", subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in message
    step = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))[1]["step"]
    assert f"stopped after step {step}" in message


def test_a_run_folder_refuses_another_run(uninterrupted, tmp_path):
    out = uninterrupted.directory
    options = {**TINY, "conditional": True, "dropout": 0.1, "flip": True}
    with pytest.raises(ValueError, match=r"holds a run with dropout = 0.1, not 0.5"):
        pydiff.train("digits", out=out, **{**options, "dropout": 0.5})
    with pytest.raises(ValueError, match=r"other data \(digits.*: 1797 of 8 x 8 x 1 then, 9 of 8 x 8 x 1 now\)"):
        pydiff.train(np.zeros((9, 8, 8, 1), np.uint8), out=out, **TINY)
    with pytest.raises(ValueError, match=r"on other data \(digits, size = None, not 6: 1797 of 8 x 8 x 1 then"):
        pydiff.train("digits", out=out, **options, size=6)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"is not empty and holds no run \(it has mine.txt\)"):
        pydiff.train("digits", out=tmp_path, **TINY)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.locked(), pytest.raises(RuntimeError, match="another process is training"):
        pydiff.train("digits", out=tmp_path / "run", **TINY)


def test_a_finished_run_is_not_trained_again(uninterrupted):
    before = folder_hash(uninterrupted.directory / "model")
    again = pydiff.train("digits", out=uninterrupted.directory, conditional=True, dropout=0.1, flip=True, **TINY)
    assert losses(again) == losses(uninterrupted)
    assert folder_hash(uninterrupted.directory / "model") == before


def test_log_holds_every_step_once(uninterrupted):
    entries = [json.loads(line) for line in (uninterrupted.directory / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == list(range(1, 9))
    assert all(e["loss"] > 0 and e["grad_norm"] > 0 and e["images_per_second"] > 0 for e in entries)
    assert [e["lr"] for e in entries][:2] == [0.0005, 0.001]


def test_options_that_change_only_what_is_written(tmp_path):
    first = pydiff.train("digits", out=tmp_path / "a", **{**TINY, "checkpoint_every": 2, "keep": 1, "sample_every": 4})
    assert len(list((tmp_path / "a" / "checkpoints").glob("step-*"))) == 1
    assert sorted(p.name for p in (tmp_path / "a" / "samples").iterdir()) == ["step-00000004.png", "step-00000008.png"]
    second = pydiff.train("digits", out=tmp_path / "b", **{**TINY, "checkpoint_every": 3, "keep": 9})
    assert len(list((tmp_path / "b" / "checkpoints").glob("step-*"))) == 3
    assert losses(first) == losses(second)


def test_classes_are_needed_for_conditional_training():
    with pytest.raises(ValueError, match="needs classes, but"):
        pydiff.train(np.zeros((4, 8, 8, 1), np.uint8), conditional=True, **TINY)


@pytest.mark.parametrize("shape", [(6, 5, 7, 1), (3, 8, 12, 2), (1, 1, 1, 3), (4, 25, 25, 1), (2, 9, 4, 5)])
def test_any_size_and_channel_count(shape):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    run = pydiff.train(x, **{**TINY, "steps": 2, "batch_size": 2})
    assert run.sample(2, steps=2).shape == (2, *shape[1:])


def test_interrupt_through_the_api_carries_the_run(tmp_path, monkeypatch):
    from pydiff.training import Interrupted

    def interrupting(trainer):
        for state in training_steps(trainer):
            if state.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield state

    monkeypatch.setattr(sys.modules["pydiff.training.loop"], "training_steps", interrupting)
    with pytest.raises(Interrupted) as caught:
        pydiff.train("digits", out=tmp_path / "run", **TINY)
    assert caught.value.run.step == 3
    assert checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))[1]["step"] == 3
