"""What a training tells at its end, and that a disk that is full or gone does not end it."""

import contextlib
import errno
import json
import random
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff.formats.files import disk as of_the_system
from pydiff.store import sealed
from pydiff.store.log import IN_MEMORY, WAITING, Log
from pydiff.training import Interrupted, LoopOptions, train_task
from pydiff.training.health import Health
from tests.training.test_loop import Slope

TINY = {"steps": 8, "batch_size": 4, "channels": (8,), "groups": 4, "warmup": 1, "timesteps": 20, "sample_every": 0}
TINY |= {"checkpoint_every": 2, "keep": 9, "progress": False}


def seen(losses):
    health = Health()
    for step, loss in enumerate(losses, 1):
        health.saw({"step": step, "loss": loss})
    return health.sentences(30.0)


# ---- a loss that rose ------------------------------------------------------------------------------------------------


def test_a_loss_that_rose_and_came_back():
    (said,) = seen([1.07, *[1.0] * 9, 424_640.8, 900.0, 50.0, *[1.0] * 10])
    assert "the loss rose from 1 to 4.246e+05 at step 11 and was back at step 14; " in said
    assert said.endswith("a smaller lr than 30 may help")


def test_a_loss_that_rose_and_stayed():
    (said,) = seen([1.0] * 20 + [60.0] * 20)
    assert "rose from 1 to 60 at step 21 and did not come back" in said


def test_a_loss_that_rises_slowly_rises_too():
    (said,) = seen([1.5**k for k in range(30)] + [1.0] * 10)
    assert "at step 30 and was back at step 31" in said


def test_a_rise_is_over_when_the_loss_has_been_back_for_a_while():
    """Steps 21, 22, 24, 25 and 28 are high: one rise, back at step 29; then another one."""
    one = [1.0] * 20 + [60.0, 60.0, 1.0, 60.0, 60.0, 1.0, 1.0, 60.0] + [1.0] * 10
    (said,) = seen(one)
    assert "rose from 1 to 60 at step 21 and was back at step 29;" in said
    (said,) = seen([*one, 70.0, 70.0, 70.0, 1.0, 1.0, 1.0])
    assert "to 70 at step 39 and was back at step 42, the worst of 2 times;" in said


@pytest.mark.parametrize("spread", [0.1, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_rise(spread, seed):
    """Log-normal losses around a level that falls, as of batches of one sample where spread is large."""
    noise = random.Random(seed)
    assert seen([(1 / (1 + step / 50) + 0.02) * 2.718 ** noise.gauss(0, spread) for step in range(3000)]) == []


@pytest.mark.parametrize("losses", [[], [1.0], [None, None], [0.0, -1.0, 2.0], [1e-30, 1e-29], [1.0, 5.0, 1.0]])
def test_short_and_odd_histories(losses):
    assert seen(losses) == []


def test_a_diverged_training_says_so_and_a_calm_one_nothing():
    wild = pydiff.train("digits", **{**TINY, "steps": 40, "lr": 30.0, "warmup": 0})
    assert any("the loss rose from" in note and "a smaller lr than 30 may help" in note for note in wild.notes)
    assert pydiff.train("digits", **{**TINY, "steps": 40}).notes == ()


def test_skipped_steps_are_counted_over_all_lives(tmp_path, caplog):
    options = LoopOptions(steps=10, batch_size=3, checkpoint_every=2)
    train_task(Slope(bad=(3, 7)), options, tmp_path / "run", progress=False)
    assert "2 steps were skipped, the first of them step 3: the loss is nan" in caplog.text


# ---- a disk that is full ---------------------------------------------------------------------------------------------


class FullDisk:
    """ENOSPC from every write while `full`, in the places where a training writes."""

    def __init__(self, patch):
        self.full = False
        for module, name in ((sealed, "_write_file"), (pydiff.store.log, "_append")):
            patch.setattr(module, name, self.failing(getattr(module, name)))

    def failing(self, write):
        def maybe(*arguments):
            with of_the_system("write") if write.__module__ == sealed.__name__ else contextlib.nullcontext():
                if self.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(*arguments)

        return maybe


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def at_steps(monkeypatch, act):
    """Calls act(step) after each step of a training."""
    from pydiff.training import loop

    steps = loop.training_steps

    def acting(trainer):
        for state in steps(trainer):
            act(state.step)
            yield state

    monkeypatch.setattr(loop, "training_steps", acting)


def test_a_full_disk_is_waited_for(disk, tmp_path, monkeypatch):
    at_steps(monkeypatch, lambda step: setattr(disk, "full", 3 <= step < 7))
    run = pydiff.train("digits", out=tmp_path / "run", **TINY)
    monkeypatch.undo()
    whole = pydiff.train("digits", out=tmp_path / "whole", **TINY)
    assert [entry["loss"] for entry in run.log()] == [entry["loss"] for entry in whole.log()]  # nothing is lost
    assert sorted(p.name[-1] for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "8"]
    assert any("a checkpoint could not be written 2 times, from step 4 on" in note for note in run.notes)
    assert any("the log could not be written 4 times, from step 3 on (No space left" in note for note in run.notes)
    assert all("and then it could again" in note for note in run.notes)
    assert np.array_equal(run.sample(1, steps=2), pydiff.load(tmp_path / "run").sample(1, steps=2))


def test_a_disk_that_stays_full_ends_in_one_sentence_and_the_last_checkpoint_goes_on(disk, tmp_path, monkeypatch):
    at_steps(monkeypatch, lambda step: setattr(disk, "full", step >= 5))
    with pytest.raises(pydiff.CheckpointError, match="No space left on device") as error:
        pydiff.train("digits", out=tmp_path / "run", **TINY)
    assert "the same command goes on from step 4 once there is room" in str(error.value)
    assert "\n" not in str(error.value)
    disk.full = False
    monkeypatch.undo()
    assert pydiff.load(tmp_path / "run").step == 4
    run = pydiff.train("digits", out=tmp_path / "run", **TINY)  # the advice
    whole = pydiff.train("digits", **TINY)
    assert np.array_equal(run.sample(2, steps=3), whole.sample(2, steps=3))


def test_stopped_on_a_full_disk_it_does_not_claim_a_checkpoint(disk, tmp_path, monkeypatch):
    import os
    import signal

    def act(step):
        disk.full = step >= 5
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    at_steps(monkeypatch, act)
    with pytest.raises(Interrupted, match=r"stopped after step 5; its checkpoint could not be written .*an older one"):
        pydiff.train("digits", out=tmp_path / "run", **TINY)


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    run = pydiff.train("digits", out=tmp_path / "run", **{**TINY, "steps": 2})
    (tmp_path / "run" / "samples").write_text("a file where a folder should be")
    run = pydiff.train("digits", out=tmp_path / "run", **{**TINY, "steps": 4, "sample_every": 3})
    assert any("samples.png could not be written 2 times, from step 3 on" in note for note in run.notes)
    assert pydiff.load(tmp_path / "run").step == 4


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_a_log_in_memory_stays_of_bounded_size_and_keeps_the_newest():
    log = Log()
    for step in range(1, 10 * IN_MEMORY + 1):
        log.append({"step": step})
    steps = [entry["step"] for entry in log.entries]
    assert len(steps) <= IN_MEMORY
    assert steps == sorted(steps)
    assert steps[-IN_MEMORY // 2 :] == list(range(steps[-1] - IN_MEMORY // 2 + 1, steps[-1] + 1))
    assert steps[0] == 1


def test_a_log_on_disk_holds_nothing_in_memory(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in range(1, 101):
        assert log.append({"step": step}) is None
    assert (log._kept, list(log._waiting), log.last) == ([], [], {"step": 100})
    assert len(log.entries) == 100


@pytest.mark.parametrize("torn", [0, 5, 11])
def test_lines_wait_for_a_full_disk_and_half_a_line_is_taken_back(tmp_path, monkeypatch, torn):
    from pydiff.store import log as module

    path = tmp_path / "log.jsonl"
    log, real = Log(path), Path.open
    log.append({"step": 1})

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() >= 12 + torn:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(bytes(data)[: 12 + torn - self.file.tell()])

        def __getattr__(self, name):
            return getattr(self.file, name)

    def opening(self, mode="r", *more, **named):
        file = real(self, mode, *more, **named)
        return Full(file) if "a" in mode else file

    monkeypatch.setattr(module.Path, "open", opening)
    for step in range(2, 5):
        assert log.append({"step": step}) == "No space left on device"
    assert [entry["step"] for entry in log.entries] == [1, 2, 3, 4]
    assert path.read_bytes() == b'{"step": 1}\n'
    monkeypatch.undo()
    assert log.append({"step": 5}) is None
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert log.lost == 0


def test_a_disk_that_never_comes_back_costs_the_oldest_lines_and_says_how_many(tmp_path, disk):
    log = Log(tmp_path / "log.jsonl")
    disk.full = True
    for step in range(1, WAITING + 51):
        log.append({"step": step})
    assert log.lost == 50
    assert len(log.entries) == WAITING
