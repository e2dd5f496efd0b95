"""WAV files of every kind, written by formula: what the reader is tested with."""

import struct

import numpy as np


def wav(samples, rate=8000, kind="i16", extensible=False, extra=b"", size=None):
    """The bytes of a WAV file. samples: (L,) or (L, C) floats in [-1, 1]. kind: u8, i16, i24, i32, f32 or f64.

    extra: chunks before the sound. size: what the data chunk says of its size, the truth if None.
    """
    samples = np.atleast_2d(np.asarray(samples, np.float64).T).T
    bits = int(kind[1:])
    if kind[0] == "f":
        body = samples.astype(f"<f{bits // 8}").tobytes()
    elif kind == "u8":
        body = np.clip(np.rint(samples * 128) + 128, 0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.clip(np.rint(samples * 2.0 ** (bits - 1)), -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1).astype("<i8")
        body = b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole.ravel())
    channels, width, tag = samples.shape[1], bits // 8, 3 if kind[0] == "f" else 1
    form = struct.pack(
        "<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * channels * width, channels * width, bits
    )
    if extensible:
        form += (
            struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        )
    said = len(body) if size is None else size
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + extra + b"data" + struct.pack("<I", said) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def sine(frequency, rate=8000, seconds=0.5, loud=0.5, phase=0.3):
    """A steady tone, (L,)."""
    return loud * np.sin(2 * np.pi * (frequency * np.arange(round(rate * seconds)) / rate + phase))
