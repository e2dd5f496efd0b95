"""Stop a save or a prune after every system call, and let every one of them fail: nothing that was there may be lost.

    python -m tests.stress.checkpoint_crash --json tests/stress/checkpoint_crash.json

Crash: the calls of one save are recorded, and after each of them every state is built that the disk may be in when what
was not fsynced is lost in part (checkpoint_faults.Recorder). Failure: each call in turn gives an error, once or always.
After either the newest checkpoint must load and be right, and the next save must work and leave nothing behind.
"""

import argparse
import errno
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from pydiff.store import checkpoint
from tests.stress import checkpoint_faults as faults
from tests.stress.checkpoint_faults import is_model, newest, save, save_model


def interrupted_replacement(directory: Path) -> None:
    """As a crash between steps 2b and 2c of sealed.py leaves it: the new folder under its pending name, and rubbish."""
    new = save(directory, 1, revision=1)
    new.rename(directory / f".{new.name}.pydiff-new")
    save(directory, 2).rename(directory / ".partial")


# What is there before, the call that is interrupted, and the (step, revision) that may be the newest then, in order.
SCENARIOS = {
    "first": (lambda _: None, lambda d: save(d, 1), [None, (1, 0)]),
    "next": (lambda d: save(d, 1), lambda d: save(d, 2), [(1, 0), (2, 0)]),
    "replace": (lambda d: save(d, 1), lambda d: save(d, 1, 1), [(1, 0), (1, 1)]),
    "replace after a crash": (interrupted_replacement, lambda d: save(d, 1, 2), [(1, 1), (1, 2)]),
    "next after a crash": (interrupted_replacement, lambda d: save(d, 2), [(1, 1), (2, 0)]),
    "prune": (lambda d: [save(d, s) for s in (1, 2)], lambda d: checkpoint.prune(d, keep=1), [(2, 0)]),
}
ERRORS = {"full": errno.ENOSPC, "EIO": errno.EIO, "read-only": errno.EROFS, "quota": errno.EDQUOT}


def outcome(act, *arguments):
    """What a call returns, or the CheckpointError or AssertionError it raises."""
    try:
        return act(*arguments)
    except (checkpoint.CheckpointError, AssertionError) as error:
        return error


def next_save_works(directory: Path) -> bool:
    save(directory, 3)
    return newest(directory) == (3, 0) and not (directory / ".partial").exists()


def crash(name: str, folder: Path) -> dict:
    """Every state after every call of one scenario: how many, and which were wrong."""
    before, act, accepted = SCENARIOS[name]
    (folder / "disk").mkdir(parents=True)
    before(folder / "disk" / "run")
    recorder = faults.Recorder(folder / "disk")
    with recorder.recording():
        act(folder / "disk" / "run")
    states, wrong = 0, []
    for done, state in recorder.crash_states():
        faults.materialise(state, folder / "after")
        found = outcome(newest, folder / "after" / "run")
        finished = done == len(recorder.operations)  # once save has returned, the new one is what survives
        with mock.patch.object(os, "fsync"):
            works = outcome(next_save_works, folder / "after" / "run")
        if found not in (accepted[-1:] if finished else accepted) or works is not True:
            wrong.append(f"{name}, {done} calls done: found {found!r}, next save {works!r}, files {sorted(state)}")
        shutil.rmtree(folder / "after")
        states += 1
    return {"calls": len(recorder.operations), "states": states, "wrong": wrong}


def crash_model(replace: bool, folder: Path) -> dict:
    """The same for a model folder, new or replaced."""
    (folder / "disk").mkdir(parents=True)
    if replace:
        save_model(folder / "disk" / "model", 1)
    recorder = faults.Recorder(folder / "disk")
    with recorder.recording():
        save_model(folder / "disk" / "model", 2)
    states, wrong = 0, []
    for done, state in recorder.crash_states():
        faults.materialise(state, folder / "after")
        loaded = outcome(checkpoint.load_model, folder / "after" / "model")
        if isinstance(loaded, checkpoint.CheckpointError):
            right = not replace and done < len(recorder.operations)
        else:
            right = is_model(loaded, 2) or (replace and done < len(recorder.operations) and is_model(loaded, 1))
        with mock.patch.object(os, "fsync"):
            save_model(folder / "after" / "model", 3)
        right = right and is_model(checkpoint.load_model(folder / "after" / "model"), 3)
        if not right or os.listdir(folder / "after") != ["model"]:
            wrong.append(f"model, replace={replace}, {done} calls done, files {sorted(state)}")
        shutil.rmtree(folder / "after")
        states += 1
    return {"calls": len(recorder.operations), "states": states, "wrong": wrong}


def fail(name: str, error: str, for_good: bool, folder: Path) -> dict:
    """Each call of one scenario fails in turn: how many there are, and after which something was wrong."""
    wrong = []
    with mock.patch.object(os, "fsync"):
        for at in itertools.count():
            before, act, accepted = SCENARIOS[name]
            directory = folder / str(at) / "run"
            before(directory)
            descriptors = open_descriptors()
            with faults.failing(at, ERRORS[error], for_good) as calls:
                raised = outcome(act, directory)
            if at >= len(calls):  # there was none left to fail
                break
            left = [entry for entry in names(directory) if not entry.startswith(("step-", ".step-"))]
            may_stay = for_good or name == "prune" or calls[at] in ("unlink", "rmdir")  # else it is removed at once
            checks = {
                "message": says_what(raised, calls[at], ERRORS[error], folder) or name == "prune",  # which reads first
                "descriptors": open_descriptors() == descriptors,
                "left behind": not left or (left == [".partial"] and may_stay),
                "newest": outcome(newest, directory) in accepted,
                "next save": outcome(next_save_works, directory) is True,
            }
            wrong += [
                f"{name}, call {at} ({calls[at]}): {what}, {raised!r}" for what, right in checks.items() if not right
            ]
    return {"calls": at, "wrong": wrong}


def says_what(raised: object, call: str, number: int, folder: Path) -> bool:
    """Whether an error names the path and the reason, and for a write the number of bytes."""
    if not isinstance(raised, checkpoint.CheckpointError) or str(folder) not in str(raised):
        return False
    if call == "write" and not re.search(r"write [1-9]\d+ bytes to /", str(raised)):
        return False
    return os.strerror(number) in str(raised)


def names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.exists() else []


def open_descriptors() -> int | None:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    start = time.perf_counter()
    result = {"crashes": {}, "failures": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / str(i) for i in itertools.count())
        for name in SCENARIOS:
            result["crashes"][name] = crash(name, next(folders))
            for error, for_good in itertools.product(ERRORS, (False, True)):
                label = f"{name}, {error}, {'for good' if for_good else 'once'}"
                result["failures"][label] = fail(name, error, for_good, next(folders))
        for replace in (False, True):
            result["crashes"]["model, replaced" if replace else "model, new"] = crash_model(replace, next(folders))
    parts = [*result["crashes"].values(), *result["failures"].values()]
    result["crash_states"] = sum(part["states"] for part in result["crashes"].values())
    result["failing_calls"] = sum(part["calls"] for part in result["failures"].values())
    result["wrong"] = sum(len(part["wrong"]) for part in parts)
    result["seconds"] = time.perf_counter() - start
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
