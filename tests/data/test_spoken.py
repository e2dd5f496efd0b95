"""Speech that is installed, or made by installed programs: read at use, the same on repeat; skipped where it is not."""

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
    assert sounds.shape == (1, 6000, 1)
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
    voices = ["de 1", "en_US 1", "fr 2", "xx_YY prompts", "xx_YY prompts 2", "zz prompts"]
    found = spoken.digit_recordings(stamps, prompts)
    assert [(one.voice, one.digit) for one in found] == list(zip(voices, (3, 3, 3, 7, 2, 4), strict=True))
    found = found[:4]
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
