"""Samples as files: one image of all, an array, or a folder with one file each; sounds as WAV files."""

from pathlib import Path

import numpy as np

from pydiff.codecs import Frames
from pydiff.report.grid import grid, save_png
from pydiff.report.video import SUFFIXES as FILMS
from pydiff.report.video import save_clips
from pydiff.sound.codec import SoundCodec
from pydiff.sound.wav import wav_bytes
from pydiff.store.files import write_atomic, writing

PAUSE = 0.25  # seconds between sounds that share a file


def default_name(codec) -> Path:
    """Where samples go by default: one image, or a folder of sounds."""
    return Path("samples" if isinstance(codec, SoundCodec) else "samples.png")


def save_samples(out: Path, samples, codec, n: int, prompts=None, said=None):
    """Writes samples as a .png (all in one), a .npz (the array), a .wav (sounds, one after the other), a .gif, .webp or
    .mp4 (clips, side by side) or a folder.

    n: samples of each prompt. said: {keyword: text} for PNG files. Raises ValueError for another suffix.
    """
    check_name(out, codec)
    sounds, said, suffix = isinstance(codec, SoundCodec), said or {}, out.suffix.lower()
    (out if suffix == "" else out.parent).mkdir(parents=True, exist_ok=True)
    if suffix == ".npz":
        with writing(out) as file:
            np.savez_compressed(file, images=samples)
    elif suffix == ".png":
        together = said if prompts is None else {**said, "prompt": "\n".join(prompts)}
        save_png(out, grid(codec.show(samples), columns=n if prompts else None), together)
    elif suffix == ".wav":
        pause = np.zeros((round(PAUSE * codec.rate), codec.channels), np.float32)
        parts = [part for sound in samples for part in (sound[0], pause)][:-1]
        write_atomic(out, wav_bytes(np.concatenate(parts), codec.rate))
    elif suffix in FILMS:
        save_clips(out, samples, codec.rate, n if prompts else None)
    elif sounds:
        for i, sound in enumerate(samples):
            write_atomic(out / f"{i:06d}.wav", wav_bytes(sound[0], codec.rate))
    else:
        for i, image in enumerate(codec.show(samples)):
            told = {} if prompts is None else {"prompt": prompts[i // n]}
            save_png(out / f"{i:06d}.png", image, {**said, **told, "number": str(i % n)})


def check_name(out: Path, codec):
    """Raises ValueError for a file to which samples cannot be written, so that this is known before they are drawn."""
    more, what = (), "images are written to a .png"
    if isinstance(codec, SoundCodec):
        more, what = (".wav",), "sounds are written to a .wav, a .png"
    elif isinstance(codec, Frames):
        more, what = FILMS, "clips are written to a .gif, a .webp, a .mp4, a .png"
    if out.suffix.lower() not in ("", ".png", ".npz", *more):
        raise ValueError(f"{what}, a .npz or a folder, not to {out}")
