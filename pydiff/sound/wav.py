"""WAV files: reads RIFF chunks with only the standard library and NumPy, and writes 16-bit PCM.

PCM of 8 (unsigned), 16, 24 and 32 bits and floats of 32 and 64, any number of channels, also as WAVE_FORMAT_EXTENSIBLE
(Microsoft, "Multiple channel audio data and WAVE files", 2001). Python's own `wave` does not read floats.
"""

import contextlib
import json
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "μ-law", 0x11: "IMA ADPCM", 0x31: "GSM", 0x50: "MPEG", 0x55: "MP3"}
STREAMED = 0x7FFFF000  # programs that write to a pipe give sizes from here on; espeak-ng gives this one
HIGHEST_RATE, MOST_CHANNELS = 1_000_000, 64


class Sound(NamedTuple):
    """samples: (L, C) float32, full scale is [-1, 1], floats may go beyond. rate: samples per second."""

    samples: np.ndarray
    rate: int


class Unreadable(ValueError):
    """The file is not a sound, or not of a supported kind; the message is half a sentence."""


def read_wav(data: bytes, longest: float | None = None, check: Callable[[int], None] | None = None) -> Sound:
    """The sound in the bytes of a WAV file; at most `longest` seconds of it. Raises Unreadable for anything else.

    check: called with the number of samples before memory is allocated for them; may raise. A data chunk without a
    length (0, or near the maximum), as written by programs into a pipe, extends to the end of the file.
    """
    if len(data) < 12 or data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        raise Unreadable("empty file" if not data else "it does not begin like a WAV file")
    form, body, here = None, None, 12
    while here + 8 <= len(data) and body is None:
        name, size = data[here : here + 4], int.from_bytes(data[here + 4 : here + 8], "little")
        here += 8
        if name == b"fmt ":
            form = _format(data[here : here + size])
        elif name == b"data":
            streamed = size == 0 or size >= STREAMED
            body = memoryview(data)[here : None if streamed else here + size]
            if not streamed and len(body) < size:
                raise Unreadable(f"cut off: {len(body):,} of {size:,} bytes of sound are there")
        here += size + size % 2
    if form is None or body is None:
        raise Unreadable(f"it has no {'format' if form is None else 'sound'} chunk")
    kind, channels, rate, width = form
    count = len(body) // (width * channels)
    count = count if longest is None else min(count, int(longest * rate))
    if check is not None:
        check(count * channels)
    return Sound(_samples(body[: count * width * channels], kind, width).reshape(count, channels), rate)


def _format(chunk):
    """(PCM or FLOAT, channels, rate, bytes per number) of a format chunk."""
    if len(chunk) < 16:
        raise Unreadable("its format chunk is too short")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if kind == EXTENSIBLE:
        if len(chunk) < 40:
            raise Unreadable("its extensible format chunk is too short")
        kind = int.from_bytes(chunk[24:26], "little")  # the first two bytes of the subformat's GUID
    if kind not in (PCM, FLOAT):
        raise Unreadable(f"it is compressed ({COMPRESSED.get(kind, f'format {kind}')}); convert it to PCM")
    if bits not in ((8, 16, 24, 32) if kind == PCM else (32, 64)):
        raise Unreadable(f"it has {bits} bits a number, expected 8, 16, 24 or 32, or floats of 32 or 64")
    if not (1 <= channels <= MOST_CHANNELS and 1 <= rate <= HIGHEST_RATE):
        raise Unreadable(f"it claims {channels} channels at {rate:,} Hz")
    return kind, channels, rate, bits // 8


def _samples(body, kind, width):
    """The numbers of a data chunk as float32, with full scale 1."""
    if kind == FLOAT:
        return np.frombuffer(body, f"<f{width}").astype(np.float32)
    if width == 1:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # placed above an empty byte: the number times 256
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return (np.frombuffer(body, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)


def wav_bytes(samples, rate: int, told: dict[str, str] | None = None) -> bytes:
    """A WAV file of 16-bit PCM. samples: (L,) or (L, C) floats; values outside [-1, 1] are clipped. told: metadata that
    `told_in` reads back; players show it as a comment.

    Raises ValueError for NaN and infinity, and for other shapes or dtypes.
    """
    samples = np.asarray(samples)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.dtype.kind != "f" or not samples.shape[1]:
        raise ValueError(f"a sound is floats (L,) or (L, C), got {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("a sound with NaN or infinite numbers cannot be written; look for what made them")
    numbers = np.rint(samples.astype(np.float64).clip(-1, 1) * 32767).astype("<i2").tobytes()
    channels = samples.shape[1]
    form = struct.pack("<HHIIHH", PCM, channels, rate, rate * 2 * channels, 2 * channels, 16)
    chunks = b"WAVE" + _chunk(b"fmt ", form)
    if told:
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", json.dumps(told).encode() + b"\0"))
    chunks += _chunk(b"data", numbers)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def told_in(data: bytes) -> dict[str, str]:
    """The metadata that `wav_bytes` stored beside the sound; {} for other files. Raises Unreadable for a
    damaged file.
    """
    read_wav(data)
    with contextlib.suppress(ValueError):
        found = _chunk_of(_chunk_of(data[12:], b"LIST").removeprefix(b"INFO"), b"ICMT")
        told = json.loads(found.rstrip(b"\0"))
        if isinstance(told, dict):
            return {str(name): str(value) for name, value in told.items()}
    return {}


def _chunk(name, content):
    """A RIFF chunk: its name, its length and its content, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _chunk_of(data, wanted):
    """The content of the first chunk of this name; b"" if there is none."""
    here = 0
    while here + 8 <= len(data):
        name, size = data[here : here + 4], int.from_bytes(data[here + 4 : here + 8], "little")
        if name == wanted:
            return data[here + 8 : here + 8 + size]
        here += 8 + size + size % 2
    return b""
