"""Sealed folders under crashes, kills and failing disks: what was there before is never lost.

The scenarios go through checkpoint.py, because it is there that a loss would be felt.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pydiff.store import sealed
from pydiff.store.checkpoint import CheckpointError
from tests.stress import checkpoint_crash, checkpoint_faults

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", checkpoint_crash.SCENARIOS)
def test_whatever_a_crash_leaves_a_valid_checkpoint_loads(tmp_path, name):
    result = checkpoint_crash.crash(name, tmp_path)
    assert result["wrong"] == []
    assert result["calls"] > 5
    assert result["states"] > 5


@pytest.mark.parametrize("replace", [False, True])
def test_whatever_a_crash_leaves_a_model_loads(tmp_path, replace):
    result = checkpoint_crash.crash_model(replace, tmp_path)
    assert result["wrong"] == []
    assert result["calls"] > 5
    assert result["states"] > 5


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("error", ["full", "EIO"])
@pytest.mark.parametrize("name", checkpoint_crash.SCENARIOS)
def test_a_failing_disk_costs_nothing_that_was_there(tmp_path, name, error, for_good):
    result = checkpoint_crash.fail(name, error, for_good, tmp_path)
    assert result["wrong"] == []
    assert result["calls"] > 5


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*(Not a directory|File exists)"):
        checkpoint_faults.save(tmp_path / "file", 1)
    with checkpoint_faults.failing(0, errno.EROFS), pytest.raises(CheckpointError, match="Read-only file system"):
        checkpoint_faults.save(tmp_path / "run", 1)
    if os.geteuid() != 0:  # permissions do not stop root
        tmp_path.chmod(0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoint_faults.save(tmp_path / "run", 1)
        tmp_path.chmod(0o700)


def test_killed_while_saving(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.stress.checkpoint_kill", "--rounds", "15"]
    subprocess.run([*command, "--directory", tmp_path / "run", "--json", out], check=True, cwd=ROOT)
    result = json.loads(out.read_text())
    assert result["kills"] == 15
    assert result["kills_inside_a_write"] >= 5
    assert result["saves_returned"] > 0
    assert result["lost"] == result["damaged_seen"] == 0


def test_what_an_interrupted_removal_left_is_in_nobodys_way(tmp_path):
    """The partial folder of before, a file or a link under that name."""
    for left in ("folder", "file", "link"):
        path, partial, other = tmp_path / "step", tmp_path / ".partial", tmp_path / "other"
        for folder in (path, other):
            folder.mkdir(exist_ok=True)
            (folder / "data").write_text("x")
        if left == "folder":
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / "data").write_text("old")
        elif left == "file":
            partial.write_text("old")
        else:
            partial.symlink_to(other)
        sealed.discard(path, partial)
        assert not path.exists()
        assert not os.path.lexists(partial)
        assert (other / "data").read_text() == "x"  # a link is removed, and not what it leads to
