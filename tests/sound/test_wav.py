"""WAV files of every kind that is read, those that are refused, and those that are written."""

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.sound.wav import Unreadable, read_wav, told_in, wav_bytes
from tests.sound.make import sine, wav

STEP = {"u8": 1 / 128, "i16": 2**-15, "i24": 2**-23, "i32": 2**-31, "f32": 0.0, "f64": 0.0}


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", STEP)
def test_every_kind_is_read(kind, channels, extensible):
    x = np.random.default_rng(0).uniform(-0.99, 0.99, (37, channels)).astype(np.float32)
    sound = read_wav(wav(x, 44100, kind, extensible))
    assert sound.rate == 44100
    assert sound.samples.shape == x.shape
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples - x).max() <= STEP[kind] / 2 + 2**-24  # half a step, and what float32 cannot say


def test_full_scale_is_one():
    for kind in ("u8", "i16", "i24", "i32"):
        low = read_wav(wav([-1.0], kind=kind)).samples
        assert low[0, 0] == -1.0, kind


def test_python_wave_agrees():
    """The standard library writes, we read, and the other way round."""
    x = np.rint(sine(440) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(x.tobytes())
    sound = read_wav(buffer.getvalue())
    assert sound.rate == 22050
    assert np.array_equal(np.rint(sound.samples[:, 0] * 32768), x)
    with wave.open(io.BytesIO(wav_bytes(sine(440, 8000), 8000))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 8000, 4000)


@given(length=st.integers(0, 30), channels=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_is_written_is_read(length, channels, seed):
    x = np.random.default_rng(seed).uniform(-1.2, 1.2, (length, channels)).astype(np.float32)
    sound = read_wav(wav_bytes(x, 16000))
    assert sound.samples.shape == x.shape
    assert np.abs(sound.samples - x.clip(-1, 1)).max(initial=0) < 1.6 / 32768


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3), st.integers(0, 5))
def test_what_a_file_was_told_it_says_again(told, length):
    data = wav_bytes(np.zeros(length, np.float32), 8000, told)
    assert told_in(data) == told
    assert read_wav(data).samples.shape == (length, 1)
    with wave.open(io.BytesIO(data)) as file:  # other readers pass it over
        assert file.getnframes() == length


def test_files_of_others_say_nothing():
    assert told_in(wav(sine(300))) == {}
    assert told_in(wav(sine(300), extra=b"LIST" + struct.pack("<I", 12) + b"INFOICMT\xff\0\0\0")) == {}
    assert told_in(wav_bytes(sine(300), 8000, {"a": "b"}).replace(b'"b"', b"[b]")) == {}
    with pytest.raises(Unreadable, match="cut off"):
        told_in(wav_bytes(sine(300), 8000, {"a": "b"})[:-1])


def test_other_chunks_odd_sizes_and_streams():
    x = sine(300)
    expected = read_wav(wav(x)).samples
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    for data in (
        wav(x, extra=odd),
        wav(x, size=0xFFFFFFFF),
        wav(x, size=0),
        wav(x, size=0x7FFFF000),
        wav(x) + b"trailing rubbish",
    ):
        assert np.array_equal(read_wav(data).samples[:4000], expected)
    assert len(read_wav(wav(x), longest=0.1).samples) == 800


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"ID3\x04 an mp3 that lies", "does not begin like a WAV file"),
        (wav(sine(300))[:400], r"cut off: 356 of 8,000 bytes"),
        (wav(sine(300))[:30], "its format chunk is too short"),
        (wav(sine(300))[:40], "it has no sound chunk"),
        (wav(sine(300)).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 6, 1), 1), "compressed .A-law."),
        (wav(sine(300)).replace(struct.pack("<HH", 2, 16), struct.pack("<HH", 2, 12), 1), "12 bits a number"),
        (wav(sine(300), rate=8000).replace(struct.pack("<I", 8000), bytes(4), 1), "1 channels at 0 Hz"),
    ],
)
def test_what_is_no_sound_is_refused(data, message):
    with pytest.raises(Unreadable, match=message):
        read_wav(data)


@given(st.binary(max_size=80))
def test_no_bytes_crash_the_reader(tail):
    for head in (b"", b"RIFF\0\0\0\0WAVE", wav([0.1, 0.2])[:20], wav([0.1, 0.2])[:36]):
        try:
            sound = read_wav(head + tail)
        except Unreadable:
            continue
        assert sound.samples.ndim == 2


def test_nan_is_not_written():
    with pytest.raises(ValueError, match="NaN or infinite"):
        wav_bytes(np.array([0.0, np.nan]), 8000)
    with pytest.raises(ValueError, match="floats"):
        wav_bytes(np.zeros(3, int), 8000)
