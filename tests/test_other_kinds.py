"""What belongs to images, asked of sounds, clips and points; the folder of one kind of run given to another: refused in
a sentence that says what is there, before anything is trained or drawn.
"""

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import cli, segment
from pydiff.formats.safetensors import CheckpointError
from pydiff.sound.wav import wav_bytes

TINY = {"steps": 1, "batch_size": 2, "channels": (8,), "groups": 4, "timesteps": 20, "sample_every": 0}
QUIET = {"progress": False}
AUTOENCODER = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4}
FLAGS = ["--steps=1", "--batch-size=2", "--channels=8", "--groups=4", "--sample-every=0", "--timesteps=20"]
RNG = np.random.default_rng(3)


def folder_of(where, make, names):
    where.mkdir(parents=True, exist_ok=True)
    for name in names:
        make(where / name)
    return where


def image(path, size=8):
    Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def sound(path):
    path.write_bytes(wav_bytes(RNG.uniform(-0.5, 0.5, 400), 400))


def animation(path):
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and a run of every kind, by the names of their folders."""
    home = tmp_path_factory.mktemp("kinds")
    pictures = folder_of(home / "images" / "a", image, ["1.png", "2.png"]).parent
    folder_of(home / "images" / "b", image, ["1.png", "2.png"])
    sounds = folder_of(home / "sounds" / "a", sound, ["1.wav", "2.wav"]).parent
    folder_of(home / "sounds" / "b", sound, ["1.wav"])
    clips = folder_of(home / "clips" / "a", animation, ["1.gif", "2.gif"]).parent
    folder_of(home / "masked" / "images", image, [f"{i}.png" for i in range(6)])
    (home / "masked" / "masks").mkdir()
    for i in range(6):
        Image.fromarray(np.eye(8, k=i, dtype=np.uint8) * 255).save(home / "masked" / "masks" / f"{i}.png")
    heard = {"rate": 400, "seconds": 0.5}
    pydiff.train(pictures, out=home / "of images", **TINY, **QUIET)
    pydiff.train(sounds, out=home / "of sounds", **heard, **TINY, **QUIET)
    pydiff.train(clips, out=home / "of clips", frames=4, **TINY, **QUIET)
    pydiff.train("swiss-roll", out=home / "of points", **TINY, **QUIET)
    pydiff.train(pictures, model="autoencoder", out=home / "autoencoder", **AUTOENCODER, **QUIET)
    pydiff.train(pictures, model="classifier", out=home / "classifier", **TINY, **QUIET)
    segment.train(home / "masked", out=home / "segmenter", steps=1, batch_size=2, channels=(8,), **QUIET)
    return home


def told(capsys, *arguments) -> str:
    """What a command that fails says."""
    assert cli.main([str(word) for word in arguments]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("data", "noun"), [("sounds", "sounds"), ("clips", "clips"), ("swiss-roll", "points")])
def test_autoencoders_and_latents_are_of_images(home, data, noun):
    data = data if data == "swiss-roll" else home / data
    more = {"frames": 4} if noun == "clips" else {}
    with pytest.raises(ValueError, match=f"autoencoders are for images, and .* holds {noun}"):
        pydiff.train(pydiff.data.load(data, **more), model="autoencoder", **AUTOENCODER, **QUIET)
    with pytest.raises(ValueError, match=f"latents are those of images, and .* holds {noun}; leave latent out"):
        pydiff.train(data, latent=home / "autoencoder", **more, **TINY, **QUIET)


@pytest.mark.parametrize("noun", ["sounds", "clips", "points"])
def test_a_given_image_is_for_models_of_images(home, tmp_path, noun, capsys):
    given = home / "images" / "a" / "1.png"
    out = tmp_path / ("x.wav" if noun == "sounds" else "x.png")
    said = told(capsys, "sample", home / f"of {noun}", "--image", given, "--steps", 2, "--out", out)
    assert said == f"pydiff: --image is for models that draw images, and this one makes {noun}; leave it out"
    assert not out.exists()


@pytest.mark.parametrize("n", [0, -1])
def test_no_image_at_all_is_refused_with_a_given_one_too(home, tmp_path, n, capsys):
    given = ["--image", home / "images" / "a" / "1.png"]
    for more in ([], given):
        said = told(capsys, "sample", home / "of images", "-n", n, *more, "--steps", 2, "--out", tmp_path / "x.png")
        assert said == f"pydiff: n must be at least 1, got {n}"


RUNS = {"of images": "a diffusion model", "autoencoder": "an autoencoder", "classifier": "a classifier",
        "segmenter": "a segmenter"}  # fmt: skip


@pytest.mark.parametrize("there", RUNS)
@pytest.mark.parametrize("begun", RUNS)
def test_a_run_of_another_kind_has_its_folder(home, there, begun, capsys):
    commands = {
        "of images": ["train", home / "images", *FLAGS],
        "autoencoder": ["train", home / "images", "--model", "autoencoder", FLAGS[0]],
        "classifier": ["train", home / "images", "--model", "classifier", *FLAGS],
        "segmenter": ["segment", home / "masked", FLAGS[0]],
    }
    if there == begun:
        return
    before = (home / there / "config.json").read_bytes()
    said = told(capsys, *commands[begun], "--out", home / there)
    assert said == f"pydiff: {home / there} holds the run of {RUNS[there]}, and this is one of {RUNS[begun]}; " \
        "choose another folder"  # fmt: skip
    assert (home / there / "config.json").read_bytes() == before


def test_a_segmenter_draws_nothing(home, capsys):
    for command in ("sample", "report"):
        assert "holds the run of a segmenter, which draws nothing by itself; " in told(
            capsys, command, home / "segmenter"
        )
        assert "pydiff.segment.load opens it" in told(capsys, command, home / "segmenter" / "model")
    with pytest.raises(CheckpointError, match="segments nothing"):
        segment.load(home / "of images")


def test_progress_counts_what_is_learned(home, capsys):
    for noun, data, more in (
        ("sounds", home / "sounds", {"rate": 400, "seconds": 0.5}),
        ("points", "swiss-roll", {}),
        ("clips", home / "clips", {"frames": 4}),
    ):
        pydiff.train(data, **TINY, **more)
        assert f" {noun}/s" in capsys.readouterr().err
    pydiff.train(home / "sounds", model="classifier", rate=400, seconds=0.5, **TINY)
    assert " sounds/s" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), "7", [1, 2], None])
def test_guidance_that_is_no_number_is_refused_before_a_step(home, guidance):
    images = np.zeros((1, 8, 8, 3), np.uint8)
    run = pydiff.train(home / "images", conditional=True, **TINY, **QUIET)
    steered = pydiff.load(home / "of images").steered(home / "classifier")
    for model in (run, steered):
        drawn = [
            lambda model=model: model.sample(1, steps=2, guidance=guidance),
            lambda model=model: model.image_to_image(images, labels=["a"], steps=3, guidance=guidance),
        ]
        for draw in drawn:
            if guidance is None:
                assert draw().shape == (1, 8, 8, 3)  # which leaves it to the model
                continue
            with pytest.raises(ValueError, match=r"guidance is .* expected a finite number"):
                draw()


def test_a_file_of_prompts_that_has_none(home, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    for name, why in (
        ("empty.txt", "holds no prompts; write one a line"),
        ("latin.txt", "is no text in UTF-8; save it as that"),
        ("none.txt", "cannot be read (No such file or directory); give a file with a prompt a line"),
        (".", "cannot be read (Is a directory); give a file with a prompt a line"),
    ):
        said = told(capsys, "sample", home / "of images", "--prompts", tmp_path / name, "--out", tmp_path / "x.png")
        assert said == f"pydiff: {tmp_path / name} {why}"


def test_one_file_is_no_folder(home):
    for name, what in (("sounds/a/1.wav", "sound"), ("images/a/1.png", "image")):
        with pytest.raises(ValueError, match=f"is one {what}; give the folder that it is in"):
            pydiff.data.load(home / name)
    (home / "film.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="is one clip; give the folder that it is in"):
        pydiff.data.load(home / "film.mp4")


def test_masks_without_images_are_said(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="has no image with a mask of its name: 0 images in images, 0 masks in masks"):
        segment.train(tmp_path, steps=1)
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "masks" / "b.png")
    with pytest.raises(ValueError, match="has no image with a mask of its name: 1 image in images, 1 mask in masks"):
        segment.train(tmp_path, steps=1)
