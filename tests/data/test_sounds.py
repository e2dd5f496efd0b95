"""Folders of sounds, the nasty ones too: what is read, what is said, what is refused; and the sounds made by
formula.
"""

import io

import numpy as np
import pytest

from pydiff.data import Sounds, describe, load
from pydiff.data.sounds import active, is_clipped, pieces_of, prepared
from pydiff.data.tones import CLASSES, NOTES, load_tones
from pydiff.sound.wav import Sound, Unreadable
from tests.sound.make import sine, wav


@pytest.fixture
def folder(tmp_path):
    """Two classes, and every kind of trouble."""

    def put(name, data):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)

    quiet = np.concatenate([np.zeros(4000), sine(500, seconds=0.3), np.zeros(6000)])
    put("a/plain.wav", wav(sine(400, 8000, 1.0)))
    put("a/24 bit at 192 kHz.wav", wav(sine(600, 192_000, 1.0), 192_000, "i24", extensible=True))
    put("a/stereo.WAV", wav(np.stack([sine(300, 44100, 1.0), sine(900, 44100, 1.0)], 1), 44100, "f32"))
    put("a/loud.wav", wav((3 * sine(350, 8000, 1.0)).clip(-0.9, 0.9)))
    put("b/offset.wav", wav(0.2 * sine(400, 8000, 1.0) + 0.5))
    put("b/much silence.wav", wav(quiet))
    put("b/long.wav", wav(sine(700, 8000, 3.4), kind="u8"))
    put("b/slow.wav", wav(sine(100, 1000, 1.0), 1000))
    put("b/one sample.wav", wav([0.7]))
    put("b/click.wav", wav([0.7, -0.7, 0.2]))
    put("b/no sample.wav", wav(np.zeros(0)))
    put("b/silence.wav", wav(np.full(8000, 0.25)))
    put("b/cut off.wav", wav(sine(400))[:1000])
    put("b/no sound.wav", b"<html>404</html>")
    put("b/nan.wav", wav([0.1, np.nan, 0.2], kind="f32"))
    put("cover.jpg", b"not looked at")
    return tmp_path


def test_everything_is_read_or_listed(folder):
    sounds = load(folder)
    assert isinstance(sounds, Sounds)
    assert sounds.images.shape == (10, 1, 8000, 1)  # the long one gives three
    assert sounds.classes == ["a", "b"]
    assert sounds.labels.tolist() == [0] * 4 + [1] * 6
    assert dict(sounds.skipped) == {
        "b/click.wav": "it is 0.38 ms long",
        "b/cut off.wav": "cut off: 956 of 8,000 bytes of sound are there",
        "b/nan.wav": "it holds NaN or infinite numbers",
        "b/no sample.wav": "it holds no samples",
        "b/no sound.wav": "it does not begin like a WAV file",
        "b/one sample.wav": "it holds a single sample",
        "b/silence.wav": "it holds one value alone, which nobody hears",
    }
    text = describe(sounds)
    for said in (
        "10 sounds of 1 s at 8,000 Hz, mono",
        "resampled to 8,000 Hz from 1,000 Hz (1), 44,100 Hz (1), 192,000 Hz (1)",
        "1 sound of a lower rate",
        "1 sound of several channels mixed to one",
        "1 sound had a DC offset",
        "1 sound clipped",
        "silence trimmed at the ends of 1 sound, 1.2 s in all",
        "1 sound shorter than 1 s put in the middle of silence",
        "1 sound longer than 1 s cut into 3 pieces",
        "loudness of each set to -20 dB",
        "10 sounds may be learned by heart",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        (0 * sine(440, 8000, 0.5), 0 * sine(440, 8000, 0.5), "it holds silence alone"),
        (
            0 * sine(440, 8000, 0.5) + 0.5,
            0 * sine(440, 8000, 0.5) - 0.2,
            "it holds one value alone, which nobody hears",
        ),
        (sine(440, 8000, 0.5), -sine(440, 8000, 0.5), "its channels cancel each other"),
    ],
)
def test_a_sound_without_sound_says_why(left, right, why):
    sound = Sound(np.stack([left, right], 1), 8000)
    with pytest.raises(Unreadable, match=why):
        prepared(sound, 8000, 4000, 1)
    if "cancel" in why:
        assert len(prepared(sound, 8000, 4000, 2).pieces) == 1  # heard by themselves, they are sounds


def test_loudness_offset_and_pitch_are_what_was_said(folder):
    sounds = load(folder)
    x = sounds.images[:, 0, :, 0].astype(float)
    whole = [i for i in range(10) if (x[i] != 0).mean() > 0.9]
    assert np.allclose(np.sqrt((x[whole] ** 2).mean(1)), 0.1, atol=0.002)
    assert np.abs(x.mean(1)).max() < 1e-3
    spectra = np.abs(np.fft.rfft(x))
    # in order of path: 24 bit, loud, plain, stereo (two tones), long (three pieces), much silence, offset, slow
    assert spectra.argmax(1).tolist()[:3] == [600, 350, 400]
    assert set(np.argsort(spectra[3])[-2:]) == {300, 900}
    assert spectra.argmax(1).tolist()[4:7] == [700] * 3
    assert spectra.argmax(1).tolist()[8:] == [400, 100]


def test_rate_seconds_and_channels_are_asked_for(folder):
    sounds = load(folder, rate=16000, seconds=0.25, channels=2)
    assert sounds.shape == (1, 4000, 2)
    assert sounds.rate == 16000
    stereo = [x for x in sounds.images if not np.array_equal(x[..., 0], x[..., 1])]
    assert len(stereo) == 4  # the one second of it in quarters
    assert load(sounds) is sounds
    assert sounds.subset([1, 0]).rate == 16000
    assert sounds.split(0.3)[1].rate == 16000


def test_what_cannot_be_asked_for_is_refused(folder, tmp_path_factory):
    for given, message in (
        ({"rate": 7}, "rate is 7"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": 1, "channels": 5}, "channels is 5"),
        ({"size": 8}, "size was given with sounds"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder, **given)
    with pytest.raises(ValueError, match="for a folder of sounds or a named set"):
        load("digits", rate=8000)
    with pytest.raises(ValueError, match="is not there"):
        load("nowhere", rate=8000)
    with pytest.raises(ValueError, match="has its rate and length"):
        load(load(folder), rate=4000)
    with pytest.raises(ValueError, match="codec 'waveform' is for sounds, and digits holds images"):
        load("digits").coded("waveform")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="holds no sounds"):
        load(empty, rate=8000)
    (empty / "x.wav").write_bytes(wav(np.zeros(100)))
    with pytest.raises(ValueError, match=r"1 of 1 sounds in .* cannot be used \(first: x.wav: it holds silence"):
        load(empty)


def test_other_formats(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="flac, ogg and mp3 need soundfile: not installed")
    x = np.stack([sine(440, 44100, 1.0), sine(440, 44100, 1.0)], 1)
    for name in ("a.flac", "b.ogg", "c.mp3", "d.aiff"):
        soundfile.write(tmp_path / name, x, 44100)
    soundfile.write(tmp_path / "e.wav", x[:, 0], 44100, "ALAW")  # compressed, which the library knows
    cover = b"APIC" + (700).to_bytes(4, "big") + b"\0\0" + b"\0image/jpeg\0\x03\0" + bytes(700 - 14)
    size = len(cover)
    head = b"ID3\x03\0\0" + bytes([0, 0, size >> 7, size & 127])
    (tmp_path / "f.mp3").write_bytes(head + cover + (tmp_path / "c.mp3").read_bytes())
    (tmp_path / "g.ogg").write_bytes(b"OggS, but no more")
    buffer = io.BytesIO()
    soundfile.write(buffer, x, 44100, format="FLAC")
    (tmp_path / "h.flac").write_bytes(buffer.getvalue()[:200])
    sounds = load(tmp_path)
    assert [path for path, _ in sounds.skipped] == ["g.ogg", "h.flac"]
    assert all("\n" not in why for _, why in sounds.skipped)
    spectra = np.abs(np.fft.rfft(sounds.images[:, 0, :, 0]))
    assert spectra.argmax(1).tolist() == [440] * 6


def test_an_mp3_with_a_cover_is_read_and_one_that_ends_at_once_is_listed(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="mp3 needs soundfile: not installed")
    buffer = io.BytesIO()
    soundfile.write(buffer, sine(440, 44100, 1.0), 44100, format="MP3")
    image = b"\0image/png\0\3\0\x89PNG" + bytes(range(256)) * 300
    frame = b"APIC" + len(image).to_bytes(4, "big") + b"\0\0" + image
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))  # ID3v2's seven bits a byte
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_bytes(b"ID3\3\0\0" + size + frame + buffer.getvalue())
    (tmp_path / "c.mp3").write_bytes(buffer.getvalue()[:300])
    sounds = load(tmp_path)
    assert np.abs(np.fft.rfft(sounds.images[:, 0, :, 0])).argmax(1).tolist()[:1] == [440]
    ((path, why),) = sounds.skipped
    assert path == "c.mp3"
    assert why.startswith("cannot be decoded")
    assert "regular file" not in why


def test_without_the_library_they_are_listed(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    for i in range(2):
        (tmp_path / f"{i}.wav").write_bytes(wav(sine(400 + i)))
    assert load(tmp_path).skipped == [("a.flac", "needs the library soundfile: pip install 'pydiff[audio]'")]


def test_a_folder_is_one_of_sounds_if_it_holds_more_of_them_than_images(tmp_path):
    from PIL import Image

    (tmp_path / "a.wav").write_bytes(wav(sine(400)))
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    assert load(tmp_path).shape == (8, 8, 1)
    (tmp_path / "b.wav").write_bytes(wav(sine(500)))
    assert load(tmp_path).shape == (1, 8000, 1)


def test_files_that_are_no_sounds_are_told_with_what_to_do(tmp_path):
    for name in ("a.m4a", "b.wma", "cover.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no .*; left out: 1 \.m4a, 1 \.wma; convert them to \.wav or \.flac"):
        load(tmp_path, rate=8000)
    for i in range(2):
        (tmp_path / f"{i}.wav").write_bytes(wav(sine(300 + i, 8000), 8000))
    notes = load(tmp_path).notes
    assert "left out: 1 .m4a, 1 .wma; convert them to .wav or .flac, with ffmpeg" in notes
    assert "2 other files left out (.jpg 1, .txt 1)" in notes


def test_pieces_and_ends():
    x = np.arange(10.0)[:, None]
    (only,), padded, cut = pieces_of(x, 13)
    assert (only[:, 0].tolist(), padded, cut) == ([0.0, *range(10), 0, 0], 3, False)
    (middle,), _, cut = pieces_of(x, 8)
    assert (middle[0, 0], cut) == (1.0, True)
    several, _, _ = pieces_of(np.arange(1.0, 11.0)[:, None], 3)
    assert [p[0, 0] for p in several] == [1, 5, 8]  # evenly, both ends included
    loud = np.concatenate([np.zeros(1000), np.ones(500), np.zeros(1000)])[:, None]
    first, last = active(loud, 1000)
    assert 970 <= first <= 1000
    assert 1500 <= last <= 1530
    assert is_clipped(sine(100, loud=3)[:, None].clip(-1, 1))
    assert not is_clipped(sine(100, loud=0.99)[:, None])


def test_tones_are_what_their_formula_says():
    tones = load("tones", seconds=0.5)
    assert (tones.classes, len(tones), tones.shape) == (CLASSES, 1650, (1, 4000, 1))
    assert np.bincount(tones.labels).tolist() == [150] * 11
    assert np.array_equal(tones.images[:40], load_tones(40).images)  # of each by itself
    x = tones.images[:, 0, :, 0].astype(float)
    assert np.allclose(np.sqrt((x**2).mean(1)), 0.1, atol=1e-4)
    for label, (name, pitch) in enumerate(NOTES.items()):
        chosen = x[tones.labels == label][:20]
        found = np.abs(np.fft.rfft(chosen, 40000)).argmax(1) * 8000 / 40000
        assert (np.abs(1200 * np.log2(found / pitch)) < 12).all(), name
    assert load_tones(22).fingerprint() == tones.subset(range(22)).fingerprint()
    assert load_tones(11, rate=4000, seconds=0.25).shape == (1, 1000, 1)
    assert not np.array_equal(load_tones(11, seed=1).images, load_tones(11).images)


def test_telephone_files_are_read(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="gsm needs soundfile: not installed")
    x = sine(400, 8000)
    soundfile.write(tmp_path / "one.gsm", x, 8000, format="RAW", subtype="GSM610")
    data = load(tmp_path, seconds=0.25)
    found = np.abs(np.fft.rfft(data.images[0, 0, :, 0]))
    assert abs(int(found.argmax()) - 100) <= 1  # of a quarter second: 4 Hz a place
