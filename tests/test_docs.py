"""The Python of docs/sampling.md and docs/extending.md runs as it stands, top to bottom, with less training."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff import cli, codec, models, text

PAGE = Path(__file__).parents[1] / "docs/sampling.md"
EXTENDING = PAGE.with_name("extending.md")
LESS = {"steps": 4, "batch_size": 8, "channels": (8,), "groups": 4, "sample_every": 0, "progress": False}


@pytest.mark.skipif(not PAGE.is_file(), reason="the pages are not here, only the installed package")
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    train = pydiff.train
    monkeypatch.setattr(
        pydiff,
        "train",
        lambda data, **options: train(
            data, **{**options, **LESS, **({"checkpoint_every": 1} if "checkpoint_every" in options else {})}
        ),
    )
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for name in (
        "images",
        "fast",
        "noisy",
        "bounded",
        "sevens",
        "limited",
        "asked",
        "filled",
        "again",
        "similar",
        "row",
        "drawn",
    ):
        assert names[name].dtype == np.uint8, name
        assert names[name].shape[1:] == (8, 8, 1), name
    assert (names["filled"][:, :, :4] == names["real"][:, :, :4]).all()
    assert np.isfinite(names["state"].x).all()
    assert (names["early"].conv_out.weight.data != names["run"].model.conv_out.weight.data).any()


@pytest.mark.skipif(not EXTENDING.is_file(), reason="the pages are not here, only the installed package")
def test_what_one_can_add_from_outside(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", EXTENDING.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    train = pydiff.train
    monkeypatch.setattr(pydiff, "train", lambda data, **options: train(data, **{**options, **LESS}))
    monkeypatch.chdir(tmp_path)
    registries = [codec.CODECS, models.MODELS, text.ENCODERS]
    before = [dict(registry) for registry in registries]
    names = {"__name__": "page"}
    try:
        for block in blocks:
            exec(compile(block.replace("LoopOptions(steps=600", "LoopOptions(steps=60"), "page", "exec"), names)
    finally:
        for registry, known in zip(registries, before, strict=True):
            registry.clear()
            registry.update(known)
    assert names["sevens"].shape == names["tiny"].shape == (4, 8, 8, 1)
    assert np.array_equal(names["again"], names["sevens"])
    assert names["drawn"].shape == (8, 8, 8, 1)
    assert names["run"].conditioning.encoder.kind == "letters"
    assert names["folded"].shape == (16, 8, 8, 1)
    assert names["trainer"].step == 60
    x = names["digits"].normalized(np.arange(500)).reshape(-1, 64)
    right = names["trainer"].model(pydiff.Tensor(x)).data.argmax(1) == names["digits"].labels[:500]
    assert right.mean() > 0.7


@pytest.mark.skipif(not PAGE.is_file(), reason="the pages are not here, only the installed package")
def test_every_page_is_on_the_site():
    """In a table of contents of docs/index.md; what Sphinx itself says, .ci/run sees."""
    listed = re.findall(r"^([\w/]+)$", PAGE.with_name("index.md").read_text(), re.MULTILINE)
    assert sorted(page for page in listed if "/" not in page) == sorted(
        page.stem for page in PAGE.parent.glob("*.md") if page.stem != "index"
    )


README = PAGE.parents[1] / "README.md"
WITH_COMMANDS = ("README.md", "docs/index.md", "docs/gallery.md", "docs/gpu.md")


def commands():
    """(page, command) for every `pydiff ..` on these pages."""
    for name in WITH_COMMANDS if README.is_file() else ():
        text = README.parent.joinpath(name).read_text()
        found = re.findall(r"`(pydiff [^`]+)`", text) + re.findall(
            r"^ {4}(?:\.venv/bin/)?(pydiff .+)", text, re.MULTILINE
        )
        for command in dict.fromkeys(found):
            yield name, re.split(r" {3,}", command)[0]


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_a_command_on_the_first_pages_is_understood(page, command, monkeypatch):
    """Its words and options, that is; what it then does is not done here."""
    if "COMMAND" in command:
        pytest.skip(f"{page} has a word there that stands for all of them")
    done = []
    for kind in cli.COMMANDS.values():
        monkeypatch.setattr(kind, "run", lambda self: done.append(type(self)))
    assert cli.main(shlex.split(command)[1:]) == 0
    assert done == [cli.COMMANDS[shlex.split(command)[1]]]


@pytest.mark.skipif(not README.is_file(), reason="the pages are not here, only the installed package")
def test_the_readme_is_one_screen_whose_links_lead_somewhere():
    text = README.read_text()
    assert len(text.splitlines()) <= 70
    for page in (README, *PAGE.parent.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.skipif(not PAGE.is_file(), reason="the scripts are not here, only the installed package")
def test_every_step_of_the_night_is_in_the_table_and_in_the_workflow():
    """All but slurm, which needs a Slurm that answers."""
    script, workflow = (
        (PAGE.parents[1] / name).read_text() for name in (".ci/nightly", ".github/workflows/nightly.yml")
    )
    functions = re.findall(r"^step_(\w+)\(\)", script, re.MULTILINE)
    listed = re.findall(r"^(\w+) +\d+ min", script, re.MULTILINE)
    assert sorted(functions) == sorted(listed)
    (matrix,) = re.findall(r"step: \[(.*)\]", workflow)
    assert sorted([*matrix.split(", "), "slurm"]) == sorted(listed)
