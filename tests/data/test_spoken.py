"""Speech that is installed, or made by installed programs: read at use, the same on repeat; skipped where it is not."""

import io
import shutil
import subprocess

import numpy as np
import pytest

from pydiff.data import load, spoken
from tests.sound.make import sine, wav

recorded = pytest.mark.skipif(
    not spoken.digit_recordings(), reason="tuxpaint-stamps-default and asterisk-core-sounds are not installed"
)
programs = pytest.mark.skipif(not spoken.synthetic_voices(), reason="espeak-ng and flite are not installed")


@recorded
def test_recorded_digits_are_found_and_read():
    pytest.importorskip("soundfile", reason="ogg needs soundfile: not installed")
    found = spoken.digit_recordings()
    assert all(0 <= one.digit <= 9 and one.path.is_file() for one in found)
    assert len({one.voice for one in found}) >= 5
    few = [one for one in found if one.voice.startswith("en")][:10]
    sounds = spoken.load_spoken_digits(recordings=few)
    assert sounds.shape == (1, 8000, 1)
    assert len(sounds) == len(few)  # no word is cut in two
    assert sounds.classes == spoken.DIGITS
    assert set(sounds.labels) == {one.digit for one in few}


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_espeak_says_the_same_bits_twice():
    voices = [v for v in spoken.synthetic_voices() if v.startswith("espeak-ng")][:2]
    one, two = (spoken.load_synthetic_digits(voices=voices) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    assert len(one) >= 20
    first, second = (spoken.say(v, "seven").samples for v in voices)
    assert first.shape != second.shape or not np.array_equal(first, second)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_digits_are_said_in_other_languages():
    voices = spoken.foreign_voices()
    assert len(voices) == 60
    assert spoken.digit_for(voices[0], 7) == "7"
    assert spoken.digit_for(spoken.synthetic_voices()[0], 7) == "seven"
    made = spoken.load_synthetic_digits(voices=[voices[0], voices[24]])
    assert made.labels.tolist() == [*range(10), *range(10)]
    seven, sept = made.images[7], made.images[17]
    assert np.abs(seven - sept).max() > 0.05


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_speech_without_words_is_by_a_voice_of_its_own():
    speaker = spoken.speaker_voices()
    assert not {v.rsplit(" ", 2)[0] for v in speaker} & {v.rsplit(" ", 2)[0] for v in spoken.synthetic_voices()}
    made = spoken.load_synthetic_speech(voices=speaker[:2], words=("seven", "tree"))
    assert made.labels is None
    assert made.classes is None
    assert made.shape == (1, 6000, 1)
    assert made.fingerprint() == spoken.load_synthetic_speech(voices=speaker[:2], words=("seven", "tree")).fingerprint()


@programs
def test_every_program_speaks():
    programs = {voice.split()[0]: voice for voice in spoken.synthetic_voices()}
    for voice in programs.values():
        sound = spoken.say(voice, "three")
        assert len(sound.samples) > 0.15 * sound.rate
        assert np.abs(sound.samples).max() > 0.02


@pytest.mark.parametrize(("status", "sound"), [(1, wav(sine(400))), (0, b""), (0, wav(np.zeros(0)))])
def test_a_program_that_fails_is_told_in_one_sentence(monkeypatch, status, sound):
    made = subprocess.CompletedProcess([], status, sound, b"out of\nbreath")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: made)
    with pytest.raises(RuntimeError, match=r"flite made no sound of 'three' \(out of.*breath\)") as error:
        spoken.say("flite slt 1.0", "three")
    assert "\n" not in str(error.value)


def test_bytes_without_a_header_are_read_as_the_telephone_device_wrote_them(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="mu-law needs soundfile: not installed")
    x = (0.5 * sine(440, 8000, 0.3)).astype(np.float32)
    bare, whole = tmp_path / "4.au", tmp_path / "5.au"
    soundfile.write(bare, x[:-1], 8000, format="RAW", subtype="ULAW")  # an odd number of bytes, which RIFF pads
    soundfile.write(whole, x, 8000, format="AU", subtype="ULAW")
    assert spoken.with_header(whole) == whole
    read, rate = soundfile.read(io.BytesIO(spoken.with_header(bare)))
    assert rate == 8000
    assert len(read) == len(x) - 1
    assert np.abs(read - x[:-1]).max() < 0.02
    sounds = spoken.load_spoken_digits(
        recordings=[spoken.Recording(path, int(path.stem), "en") for path in (bare, whole)]
    )
    assert sounds.labels.tolist() == [4, 5]
    assert np.abs(sounds.images[0, 0, 3000:5000] - sounds.images[1, 0, 3000:5000]).max() < 0.02


def test_names_of_files_are_understood(tmp_path, monkeypatch):
    stamps, prompts = tmp_path / "stamps", tmp_path / "asterisk"
    (stamps / "symbols/math").mkdir(parents=True)
    for folder in ("xx_YY_f_Nobody", "xx_YY_m_Noone", "zz"):
        (prompts / folder / "digits").mkdir(parents=True)
    for name in ("3.ogg", "3_de.ogg", "3_desc_fr.ogg", "10.ogg", "x.ogg"):
        (stamps / "symbols/math" / name).write_bytes(wav(sine(400)))
    for name in ("7.wav", "h-7.wav", "17.wav"):
        (prompts / "xx_YY_f_Nobody/digits" / name).write_bytes(wav(sine(500)))
    (prompts / "xx_YY_m_Noone/digits/2.wav").write_bytes(wav(sine(500)))
    (prompts / "zz/digits/4.gsm").write_bytes(bytes(33))
    clock = tmp_path / "saytime"
    clock.mkdir()
    for name in ("5.au", "15.au", "oh.au"):
        (clock / name).write_bytes(bytes(33))
    voices = ["de 1", "en_US 1", "en_US clock", "fr 2", "xx_YY prompts", "xx_YY prompts 2", "zz prompts"]
    found = spoken.digit_recordings(stamps, prompts, clock)
    assert [(one.voice, one.digit) for one in found] == list(zip(voices, (3, 3, 5, 3, 7, 2, 4), strict=True))
    found = [found[i] for i in (0, 1, 3, 4)]
    sounds = spoken.load_spoken_digits(recordings=found)
    assert sounds.labels.tolist() == [3, 3, 3, 7]
    monkeypatch.setattr(spoken, "STAMPS", tmp_path / "none")
    monkeypatch.setattr(spoken, "PROMPTS", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for name, package in (
        ("spoken-captions", "tuxpaint-stamps-default"),
        ("spoken-prompts", "asterisk-core-sounds-en-wav"),
        ("synthetic-digits", "espeak-ng or flite"),
        ("synthetic-speech", "espeak-ng or flite"),
    ):
        with pytest.raises(FileNotFoundError, match=package):
            load(name)
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default or"):
        spoken.load_spoken_digits(recordings=[])
