"""The command line as a user meets it: subprocesses, files, exit codes, one-sentence errors."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import cli
from pydiff.console import refuse_empty

TINY = ["--channels", "8", "8", "--groups", "4", "--batch-size", "4"]


def pydiff_command(*arguments, **options):
    command = [sys.executable, "-m", "pydiff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    done = pydiff_command("train", "digits", "--steps", 3, *TINY, "--seed", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_train_writes_the_model_where_it_says(run_folder):
    found = {str(path.relative_to(run_folder / "model")) for path in (run_folder / "model").rglob("*.*")}
    weights = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert found == {"model_index.json", "scheduler/scheduler_config.json", "pydiff.json", *weights}
    assert pydiff.load(run_folder).step == 3


def test_train_equals_the_keywords_of_the_function(run_folder):
    run = pydiff.train("digits", steps=3, batch_size=4, channels=(8, 8), groups=4, seed=3, progress=False)
    loaded = pydiff.load(run_folder).model.state_dict()
    assert all(np.array_equal(loaded[k], v) for k, v in run.model.state_dict().items())


@pytest.mark.parametrize("suffix", [".png", ".npz", ""])
def test_sample_writes_a_grid_an_array_or_a_folder(run_folder, tmp_path, suffix):
    out = tmp_path / f"images{suffix}"
    done = pydiff_command("sample", run_folder, "-n", 5, "--steps", 2, "--seed", 7, "--out", out)
    assert done.returncode == 0, done.stderr
    expected = pydiff.load(run_folder).sample(5, seed=7, steps=2)
    if suffix == ".npz":
        with np.load(out) as file:
            assert np.array_equal(file["images"], expected)
    elif suffix == "":
        files = sorted(out.iterdir())
        assert len(files) == 5
        assert all(np.array_equal(pixels(file), image[:, :, 0]) for file, image in zip(files, expected, strict=True))
    else:
        assert pixels(out).shape[0] > 8


def test_sample_options_change_the_images(run_folder, tmp_path):
    outputs = []
    for options in ([], ["--seed", 1], ["--sampler", "ddpm"], ["--eta", 0.5], ["--steps", 3]):
        out = tmp_path / "x.npz"
        done = pydiff_command("sample", run_folder, "-n", 1, "--steps", 4, *options, "--out", out)
        assert done.returncode == 0, done.stderr
        with np.load(out) as file:
            outputs.append(file["images"].tobytes())
    assert len(set(outputs)) == len(outputs)


def test_info_names_what_is_used():
    done = pydiff_command("info")
    assert done.returncode == 0
    assert re.search(r"CPU kernels +(used: instruction set|not used: )", done.stdout)
    off = subprocess.run(
        [sys.executable, "-m", "pydiff", "info"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYDIFF_NATIVE": "off"},
    )
    assert "not used: switched off by PYDIFF_NATIVE=off" in off.stdout


def test_a_setting_that_is_none_is_one_sentence_for_the_command():
    """It is read before the command begins; a program that imports pydiff gets its error."""
    for command in (["-m", "pydiff", "info"], ["-c", "import pydiff"]):
        ended = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env={"PYDIFF_SIMD": "x"}, check=False
        )
        assert ended.returncode == 1
        assert ended.stderr.endswith("PYDIFF_SIMD must be one of avx512, avx2, baseline; got 'x'\n")
        assert ("Traceback" in ended.stderr) == (command[0] == "-c")


def test_data_describes():
    done = pydiff_command("data", "digits")
    assert done.returncode == 0
    assert "1,797 images, 8 x 8" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "there is no 'nowhere'"),
        (["train", "digits", "--groups", "7"], "groups=7 does not divide 32 channels"),
        (["train", "digits", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["sample", "nowhere"], "nowhere is not a folder"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["data", "nowhere"], "there is no 'nowhere'"),
    ],
)
def test_errors_are_one_sentence(arguments, message, tmp_path):
    done = pydiff_command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_sample_refuses_bad_input_in_one_sentence(run_folder, tmp_path):
    for options, message in [
        (["-n", 0], "n must be at least 1, got 0"),
        (["--steps", 5000], "expected 1 .. 1000"),
        (["--label", 3], "trained without classes"),
        (["--guidance", 2], "guidance needs a model with classes"),
        (["--out", tmp_path / "x.jpeg"], "are written to a .png, a .npz or a folder"),
    ]:
        done = pydiff_command("sample", run_folder, *options, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unfinished_or_damaged_model_is_refused(run_folder, tmp_path):
    with pytest.raises(pydiff.CheckpointError, match=r"expected config.json and diffusion_pytorch_model.safetensors"):
        pydiff.load(tmp_path)
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(pydiff.CheckpointError, match=r"config\.json"):
        pydiff.load(tmp_path)
    damaged = tmp_path / "model"
    shutil.copytree(run_folder / "model", damaged)
    weights = (damaged / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    (damaged / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(pydiff.CheckpointError, match="damaged"):
        pydiff.load(damaged)


def test_guidance_options_reach_the_sampler(tmp_path):
    run = pydiff.train("digits", steps=2, channels=(8,), groups=4, conditional=True, progress=False)
    run.model.conv_out.weight.data *= 30
    run.save(tmp_path / "model")
    flags = ["--guidance", 3, "--interval", 0.1, 2, "--rescale", 0.7, "--threshold", 0.9]
    done = pydiff_command("sample", tmp_path / "model", "-n", 2, "--steps", 4, *flags, "--out", tmp_path / "a.npz")
    assert done.returncode == 0, done.stderr
    expected = run.sample(2, steps=4, guidance=3.0, interval=(0.1, 2.0), rescale=0.7, threshold=0.9)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], expected)
    assert (expected != run.sample(2, steps=4, guidance=3.0)).any()
    done = pydiff_command("sample", tmp_path / "model", "-n", 2, "--steps", 4, "--no-clip", "--out", tmp_path / "b.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "b.npz") as file:
        assert np.array_equal(file["images"], run.sample(2, steps=4, clip=None))


def test_train_takes_the_objectives(tmp_path):
    out = tmp_path / "run"
    flags = ["--variance", "learned", "--self-conditioning", "--timestep-sampling", "loss_aware"]
    done = pydiff_command("train", "digits", "--steps", 2, *TINY, *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    run = pydiff.load(out)
    assert (run.variance, run.self_conditioning, run.options["timestep_sampling"]) == ("learned", True, "loss_aware")


@pytest.mark.parametrize("columns", [1, 5, 19])
def test_help_and_mistakes_end_in_a_terminal_of_few_columns(columns):
    environment = {**os.environ, "COLUMNS": str(columns)}
    # tyro writes of mistakes in 40 columns at least.
    for arguments, code, stream, width in (["info", "--help"], 0, "stdout", 20), (["train"], 2, "stderr", 40):
        command = [sys.executable, "-m", "pydiff", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == code
        frames = [line for line in getattr(done, stream).splitlines() if line.startswith("╰")]
        assert frames, "nothing was written"
        assert all(len(line) == width for line in frames)


def test_a_narrow_terminal_is_as_narrow_as_it_was(monkeypatch, capsys):
    for columns in ("3", None):
        monkeypatch.delenv("COLUMNS", raising=False) if columns is None else monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((3, 24)))
        assert cli.main(["info"]) == 0
        assert os.environ.get("COLUMNS") == columns
    assert "CPU kernels" in capsys.readouterr().out


def test_help_of_an_option_is_one_line():
    """tyro takes the indented second line of one for a paragraph, and breaks the text there, be there room or not."""
    root = Path(pydiff.__file__).parent
    several = []
    for path in (root / "cli.py", root / "training" / "config.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for field, text in zip(node.body, node.body[1:], strict=False) if isinstance(node, ast.ClassDef) else ():
                if isinstance(field, ast.AnnAssign) and "\n" in str(getattr(getattr(text, "value", None), "value", "")):
                    several.append(f"{path.name}: {node.name}.{ast.unparse(field.target)}")
    assert several == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["train", "digits", "--out", ""], "--out is empty"),
        (["train", "digits", "--out="], "--out is empty"),
        (["train", "digits", "--init-from", ""], "--init-from is empty"),
        (["sample", "", "-n", "1"], "the argument after sample is empty"),
        (["sample", "digits", "--label", ""], "--label is empty"),
        (["sample", "digits", "-n", ""], "-n is empty"),
        (["report", "digits", "--out", ""], "--out is empty"),
        (["sample", "digits", "--prompt", "", "a cat", "--n=3", ""], "the argument after --n=3 is empty"),
        ([""], "the command is empty"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_no_path(arguments, what, tmp_path, monkeypatch, capsys):
    """An empty path would be the current folder, which results would be written over."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"pydiff: {what}; give it a value, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


def test_prompts_may_be_empty():
    refuse_empty(["sample", "RUN", "--prompt", "", "a cat", "", "--negative-prompt=", "--sentence", "", "-n", "-3"])
