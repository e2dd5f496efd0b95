"""Sounds from data to page, with both codecs: trained, stopped, resumed, opened, sampled, edited, reported, from Python
and from the command line."""

import re

import numpy as np
import pytest

import pydiff
from pydiff import drawing
from pydiff.cli import main
from pydiff.data.tones import load_tones
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.sound.wav import read_wav
from pydiff.store import checkpoint
from tests.sound.make import sine, wav
from tests.trainers import train_until

TINY = {"steps": 4, "batch_size": 4, "warmup": 2, "timesteps": 30, "channels": (8, 8), "groups": 4, "head_dim": 4}
CODECS = ("waveform", "spectrogram")


@pytest.fixture(scope="module")
def data():
    return load_tones(22, rate=2000, seconds=0.25)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """{codec: a finished run}, with classes."""
    made = {}
    for codec in CODECS:
        out = tmp_path_factory.mktemp(codec) / "run"
        made[codec] = pydiff.train(data, out=out, progress=False, conditional=True, codec=codec, **TINY)
    return made


@pytest.mark.parametrize("codec", CODECS)
def test_it_is_trained_opened_and_makes_sounds(runs, codec):
    run = runs[codec]
    opened = pydiff.load(run.directory)
    assert opened.codec.to_config() == run.codec.to_config()
    assert opened.codec.kind == codec
    assert type(opened.model).__name__ == {"waveform": "UNet1D", "spectrogram": "UNet2D"}[codec]
    sounds = run.sample(3, seed=1, steps=4, labels=["C4", "up", "a"], guidance=2.0)
    assert (sounds.shape, sounds.dtype) == ((3, 1, 500, 1), np.float32)
    assert np.abs(sounds).max() <= 1
    assert np.array_equal(opened.sample(3, seed=1, steps=4, labels=["C4", "up", "a"], guidance=2.0), sounds)
    alone = run.sample_states(np.array([2]), 1, steps=4, labels=["a"], guidance=2.0)
    *_, last = alone
    assert np.allclose(run.codec.decode(last.x), sounds[2:], atol=1e-5)
    assert (run.directory / "samples.png").stat().st_size > 100


def test_a_folder_that_has_some_sounds_gets_the_others(runs, tmp_path, monkeypatch, capsys):
    run, out = runs["waveform"], tmp_path / "many"
    monkeypatch.setattr(drawing, "BATCH", 2)
    order = drawing.Order(n=5, label="a", options={"steps": 2})
    batches = drawing._batches

    def stopping(*arguments):
        yield next(iter(batches(*arguments)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "_batches", stopping)
        with pytest.raises(drawing.Stopped, match=r"stopped; 2 of 5 are in .*many; the same command draws the others"):
            drawing.draw(run.pipeline, out, order)
    kept = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert set(kept) == {"000000-a.wav", "000001-a.wav"}
    (out / "000001-a.wav").write_bytes((out / "000001-a.wav").read_bytes()[:-3])  # damaged
    assert drawing.draw(run.pipeline, out, order) == (4, 1, 5)
    assert (out / "000000-a.wav").stat().st_mtime_ns == kept["000000-a.wav"]
    expected = run.sample(5, labels=["a"] * 5, steps=2)
    for i, sound in enumerate(expected):
        read = read_wav((out / f"00000{i}-a.wav").read_bytes()).samples
        assert np.abs(read - sound[0].clip(-1, 1)).max() < 1e-4
    command = ["sample", str(run.directory), "--label", "a", "--steps", "2", "--out", str(tmp_path / "said"), "-n"]
    assert main([*command, "2"]) == main([*command, "3"]) == 0
    said = capsys.readouterr().out
    assert "3 sounds of class 'a'" in said
    assert "2 of them from before" in said
    assert main([*command, "3", "--seed", "1"]) == 1
    assert "000000-a.wav is there already, and is another sample (seed 0, not 1)" in capsys.readouterr().err
    (tmp_path / "000000-a.wav").write_bytes(wav(sine(440)))
    with pytest.raises(ValueError, match=r"is another sample \(Software unknown, not pydiff\)"):
        drawing.draw(run.pipeline, tmp_path, order)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_sounds(runs, sampler):
    assert runs["waveform"].sample(2, steps=3, sampler=sampler, guidance=1.5).shape == (2, 1, 500, 1)


@pytest.mark.parametrize("codec", CODECS)
def test_a_stopped_run_goes_on_to_the_same_bits(runs, data, codec, tmp_path):
    options = pydiff.Options(**TINY, conditional=True, codec=codec)
    train_until(tmp_path / "run", 2, data, options)
    resumed = pydiff.train(data, out=tmp_path / "run", progress=False, conditional=True, codec=codec, **TINY)
    arrays = [checkpoint.load(checkpoint.latest(r.directory / "checkpoints"))[0] for r in (resumed, runs[codec])]
    for name in ("p", "m", "ema"):
        assert np.array_equal(arrays[0]["optimizer"][name], arrays[1]["optimizer"][name])
    other = CODECS[codec == "waveform"]
    with pytest.raises(ValueError, match="holds a run with codec = "):
        pydiff.train(data, out=tmp_path / "run", progress=False, conditional=True, codec=other, **TINY)


@pytest.mark.parametrize("codec", CODECS)
def test_a_gap_is_filled_and_the_rest_kept(runs, data, codec):
    run, sounds = runs[codec], data.images[:2]
    gap = np.zeros((1, 500), bool)
    gap[:, 200:300] = True
    filled = run.inpaint(sounds, gap, steps=4, resample=2)
    assert np.allclose(filled[:, :, ~gap[0]], sounds[:, :, ~gap[0]], atol=2**-23)
    assert np.abs(filled - sounds)[:, :, gap[0]].max() > 0.01
    for edited in (run.image_to_image(sounds, 0.5, steps=4), run.variations(sounds, 0.2, steps=4)):
        assert edited.shape == sounds.shape
    assert run.interpolate(0, 1, [0.0, 1.0], steps=3, label=3).shape == (2, 1, 500, 1)


def test_bits_are_asked_for(runs, data):
    """What is measured of images is measured of sounds: the loss at a level is finite for either codec."""
    for run in runs.values():
        x0 = run.codec.encode(data.samples(np.arange(4)))
        loss = run.process.loss(
            run.model, x0, np.array([1, 5, 9, 20]), pydiff.random.key(0, pydiff.random.NOISE, np.arange(4)),
            class_labels=data.labels[:4],
        )  # fmt: skip
        assert np.isfinite(loss.item())


@pytest.mark.parametrize("codec", CODECS)
def test_the_page_has_players(runs, codec, tmp_path):
    page = runs[codec].report(tmp_path, n=3, steps=6).read_text("utf-8")
    players = re.findall(r'<audio controls[^>]*src="data:audio/wav;base64,([^"]+)"', page)
    assert len(players) == 3 + 8 + 2 * 2 * 6  # samples, training sounds, x and x0 of two samples at six steps
    import base64

    sounds = [read_wav(base64.b64decode(data)) for data in players]
    assert {(s.rate, s.samples.shape) for s in sounds} == {(2000, (500, 1))}
    assert sum(map(len, players)) < 4_000_000
    assert "media-src data:" in page
    assert "recognise the noise in a sound" in page
    assert "Play in turn" in page
    assert "new sound 2, E4" in page  # the classes take turns


def test_long_sounds_are_shortened_on_the_page_and_it_is_said():
    from pydiff.report import listen
    from pydiff.sound import Waveform

    codec = Waveform(44100, 44100 * 60, 2)
    seconds = listen.limited(codec, 2)
    assert 5 < seconds < 10
    sounds = np.zeros((1, 1, codec.length, 2), np.float32)
    assert f"the first {seconds:.3g} of 60 seconds" in listen.section(
        codec, sounds, None, sounds, None, listen.Heard([], [], [])
    )


def test_from_the_command_line(tmp_path, capsys):
    for i, (kind, pitch) in enumerate([("low", 200), ("low", 210), ("high", 400), ("high", 420)]):
        (tmp_path / "sounds" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sounds" / kind / f"{i}.wav").write_bytes(wav(sine(pitch, 8000, 0.3)))
    place, run = str(tmp_path / "sounds"), str(tmp_path / "run")
    assert main(["data", place, "--rate", "2000", "--seconds", "0.25"]) == 0
    assert "4 sounds of 0.25 s at 2,000 Hz, mono" in capsys.readouterr().out
    options = (
        "--steps 2 --batch-size 2 --timesteps 20 --channels 8 8 --groups 4 --conditional --rate 2000 --seconds 0.25"
    )
    for codec in CODECS:
        out = f"{run}-{codec}"
        assert main(["train", place, "--out", out, "--codec", codec, *options.split()]) == 0
        assert main(["sample", out, "-n", "3", "--steps", "2", "--label", "low", "--out", f"{out}/made"]) == 0
        assert "3 sounds of class 'low'" in capsys.readouterr().out
        files = sorted((tmp_path / f"run-{codec}" / "made").iterdir())
        assert [f.name for f in files] == [f"00000{i}-low.wav" for i in range(3)]
        assert read_wav(files[0].read_bytes()).samples.shape == (500, 1)
        assert main(["sample", out, "-n", "2", "--steps", "2", "--out", f"{out}/all.wav"]) == 0
        assert len(read_wav((tmp_path / f"run-{codec}" / "all.wav").read_bytes()).samples) == 500 + 500 + 500
        assert main(["sample", out, "-n", "2", "--steps", "2", "--out", f"{out}/all.mp3"]) == 1
        assert "sounds are written to a .wav" in capsys.readouterr().err
        assert main(["report", out, "-n", "2", "--steps", "3"]) == 0
    assert main(["train", place, "--flip", "--out", f"{run}-flip"]) == 1
    assert "flip mirrors images" in capsys.readouterr().err
    assert main(["train", "digits", "--codec", "waveform", "--out", f"{run}-digits"]) == 1
    assert "is for sounds, and digits holds images" in capsys.readouterr().err
