"""Animated emoji, read from an npm package where one is installed; here from a folder that looks like it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff.cli import main
from pydiff.data import Clips, animated, load


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two animated files and a still one in node_modules of the folder where we then are; no other is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(animated, "ROOTS", ())
    folder = tmp_path / animated.PACKAGE
    folder.mkdir(parents=True)
    (folder.parent / "package.json").write_text(json.dumps({"license": "MIT"}))
    for name, count in (("1f44b-1f3fd", 12), ("2764-fe0f", 8), ("1f600", 1)):
        made = []
        for i in range(count):
            pixels = np.zeros((40, 40, 4), np.uint8)
            pixels[5:20, i : i + 15] = (200, 40, 90, 255)
            made.append(Image.fromarray(pixels))
        more = {"save_all": True, "append_images": made[1:], "duration": 125} if count > 1 else {}
        made[0].save(folder / f"{name}.webp", lossless=True, **more)


@pytest.mark.usefixtures("package")
def test_the_animated_ones_are_clips_with_captions(tmp_path, monkeypatch):
    data = load("animated-emoji")
    assert isinstance(data, Clips)
    assert data.name == "animated-emoji"
    assert data.shape == (8, 32, 32, 3)
    assert data.captions == (("waving hand sign, medium tone",), ("heavy black heart",))
    assert (data.images[:, :, -1, -1] == 255).all()  # what is transparent lies on white
    assert load("animated-emoji", frames=4, size=16).shape == (4, 16, 16, 3)
    deep = tmp_path / "some/where"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert np.array_equal(load("animated-emoji").images, data.images)  # found from a folder below, too


@pytest.mark.usefixtures("package")
def test_it_is_trained_on_by_name(capsys):
    run = pydiff.train(
        "animated-emoji", frames=2, size=8, steps=1, batch_size=2, channels=(8,), groups=4, text="none", progress=False
    )
    assert run.data_name == "animated-emoji"
    assert main(["data", "animated-emoji", "--frames", "8"]) == 0
    assert "2 clips of 8 frames" in capsys.readouterr().out


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(animated, "ROOTS", (tmp_path / "nowhere",))
    with pytest.raises(FileNotFoundError, match="npm install @lobehub/fluent-emoji-anim-1"):
        load("animated-emoji")


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("1f600.webp", "grinning face"),
        ("1f468-1f3ff-200d-1f692.webp", "man, fire engine, dark tone"),
        ("0023-fe0f-20e3.webp", "number sign"),
        ("1f1e9-1f1ea.webp", "regional indicator symbol letter d, regional indicator symbol letter e"),
    ],
)
def test_codes_become_words(name, caption):
    assert animated.caption_of(Path("x") / name) == caption
