"""Lost terminals, dead pipes and missing streams stop no training; a hang-up leaves a checkpoint."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from pydiff import cli
from pydiff.store import checkpoint

TRAIN = [sys.executable, "-m", "pydiff", "train", "digits", "--channels", "8", "--groups", "4", "--batch-size", "4"]
TRAIN += ["--sample-every", "0", "--timesteps", "30"]


def finished(out):
    return checkpoint.holds_model(out / "model")


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true", "2>&1 | head -c 1"])
def test_a_training_ends_whatever_becomes_of_its_streams(streams, tmp_path):
    out = tmp_path / "run"
    command = f"{' '.join([*TRAIN, '--steps', '30', '--out', str(out)])} {streams}"
    subprocess.run(["bash", "-c", command], check=False, timeout=300, stdin=subprocess.DEVNULL)
    assert finished(out)


def test_commands_that_begin_without_streams(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as without:
        without.setattr("sys.stdout", None)
        assert cli.main(["data", "digits"]) == 0
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["sample", "digits", "-n", "1", "--prompts", "-"]) == 1
    assert capsys.readouterr().err == "pydiff: the standard input is closed; give a file with a prompt a line\n"


LONG = [*TRAIN, "--steps", "100000", "--checkpoint-every", "100000", "--out"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_leaves_a_checkpoint(number, training, tmp_path):
    process = training([*LONG, tmp_path / "run"], tmp_path / "run")
    process.send_signal(number)
    assert process.wait(120) == 130
    assert checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))[1]["step"] >= 3


def test_nohup_survives_a_hang_up(training, tmp_path):
    process = training(["nohup", *LONG, tmp_path / "run"], tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    log = tmp_path / "run" / "log.jsonl"
    before, deadline = log.read_text().count("\n"), time.monotonic() + 120
    while log.read_text().count("\n") < before + 5:
        assert process.poll() is None, "the hang-up ended it"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(120) == 130


def test_without_docstrings(tmp_path):
    """python -OO: no help texts, but every command works."""
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    command = [*TRAIN, "--steps", "2", "--out", str(tmp_path / "run")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert finished(tmp_path / "run")


def test_the_home_folder_is_where_the_user_has_it(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [*TRAIN, "--steps", "2", "--out", "~/runs/x"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300, cwd=tmp_path)
    assert finished(tmp_path / "runs" / "x")
    assert not (tmp_path / "~").exists()


def test_names_that_a_terminal_cannot_show_are_written_out(tmp_path, monkeypatch):
    for name in ("日本", "ü"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 99).save(tmp_path / name / "0.png")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main(["data", str(tmp_path)]) == 0
    sys.stdout.flush()
    told = written.getvalue().decode("ascii")
    assert r"\u65e5\u672c" in told
    assert r"\xfc" in told
    assert told.count("2 classes") == 1  # and nothing is said twice
