"""A word for what words do not name: `learn` trains the vectors of a new word on a few images, for an unchanged Stable
Diffusion model, and writes them to a file that pydiff and other programs read.

    from pydiff import invert

    pipeline = pydiff.load("FOLDER").pipeline
    made = invert.learn(pipeline, "photos-of-my-cat", "<mine>", out="mine")
    made.file                                           mine/mine.safetensors, for embedding= and --embedding
    pydiff.load("FOLDER", embedding=[made.file]).sample(1, prompts=["<mine> in the snow"])
"""

import math
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff import memory
from pydiff.data import is_sound
from pydiff.data import load as load_data
from pydiff.formats import embeddings
from pydiff.printed import expanded
from pydiff.store.files import write_atomic
from pydiff.text.clip import Clip
from pydiff.training import Interrupted, train_task
from pydiff.training.changes import heard
from pydiff.training.forecast import MARGIN, duration, fitted, peak
from pydiff.training.inversion import InversionOptions, InversionTask
from pydiff.training.loop import Trainer

SIDES = (8, 16, 24)  # of latents in the small steps for the forecast


class Learned(NamedTuple):
    """word. vectors: (k, C) float32. file: where they were written, or None. steps: taken."""

    word: str
    vectors: np.ndarray
    file: Path | None
    steps: int


def learn(pipeline, data, word: str, *, out=None, device="cpu", progress=True, announce=None, dry_run=False, **options):
    """Trains the vectors of a new word and returns Learned; afterwards `pipeline` also knows the word.

    pipeline: of a Stable Diffusion model. data: a folder of images, or whatever pydiff.data.load takes; each is resized
    to the model's image size. out: folder of the training, which the same call resumes, and of the word's file.
    announce: called with a few lines before the first step, on what it will take. dry_run: takes no step and returns
    None. options: of InversionOptions. Raises ValueError for inputs that cannot work, and Interrupted (a
    KeyboardInterrupt) after Ctrl-C, with checkpoint and file of what was learned so far.
    """
    announce, _ = heard(announce, first=True)
    options = InversionOptions.from_keywords(options)
    encoder = _checked(pipeline, word, options)
    height, width, channels = pipeline.codec.image_shape
    if is_sound(data):
        raise ValueError("words are learned from images, and these data are sounds")
    dataset = load_data(data, size=(height, width), channels=channels)
    if dataset.noun != "image":
        raise ValueError(f"words are learned from images, and {dataset.name} holds {dataset.noun}s")
    begin_at(encoder, word, options)
    pipeline.to(device).check_memory(pipeline.codec.shape[:2])
    task = InversionTask(dataset, pipeline.model, pipeline.process, pipeline.codec, encoder, word, options)
    file = None if out is None else expanded(out) / f"{_file_name(word)}.safetensors"
    announce(f"{dataset.summary()}; learning {word} ({options.vectors} x {encoder.width} numbers) on {device}")
    try:
        with task.as_it_is():
            announce(foretold(task, options, device))
            if dry_run:
                return None
            steps = train_task(task, options, out, device=device, progress=progress, distributed="off").step
    except Interrupted:
        _finish(task, encoder, word, file)
        raise
    vectors = _finish(task, encoder, word, file)
    return Learned(word, vectors, file, steps)


def _finish(task, encoder, word, file) -> np.ndarray:
    """Puts the learned vectors into the token embedding and into the file."""
    vectors = np.array(task.model.vectors.numpy(), np.float32)
    encoder.relearn(word, vectors)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, b"".join(embeddings.pieces(word, vectors)))
    return vectors


def _checked(pipeline, word: str, options) -> Clip:
    """The text encoder. Raises ValueError if this model cannot learn this word."""
    encoder = None if pipeline is None else pipeline.conditioning.encoder
    if pipeline is None or not isinstance(encoder, Clip) or not hasattr(pipeline, "seen_beside"):
        raise ValueError("words are learned for models of Stable Diffusion; give the folder or file of one")
    if pipeline.seen_beside or pipeline.told:
        kind = "fills in what a mask says" if pipeline.seen_beside else "is told its guidance (LCM)"
        raise ValueError(f"this model {kind}, and a word cannot be learned for it; take the one it was made from")
    if not word.strip() or word != word.strip() or len(word) > 80 or not word.isprintable():
        raise ValueError(f"the word {word!r:.60} cannot be written in a prompt; take one such as '<mine>'")
    if re.fullmatch("[a-z]+", word.lower()):
        raise ValueError(f"{word!r:.60} would hide that word wherever it stands in a prompt; take one such as '<mine>'")
    if options.vectors > encoder.tokens - 4:
        raise ValueError(f"a prompt has {encoder.tokens - 2} tokens, too few for a word of {options.vectors}")
    return encoder


def begin_at(encoder: Clip, word: str, options: InversionOptions):
    """Adds the word to the encoder, with the mean vector of a similar word."""
    numbers = encoder.tokenizer.numbers(options.start)
    if not numbers:
        raise ValueError("start needs a word that is near, such as 'cat'")
    vector = encoder.table.numpy()[numbers].mean(axis=0, dtype=np.float64).astype(np.float32)
    encoder.learn(word, np.repeat(vector[None], options.vectors, axis=0))


def foretold(task, options, device="cpu") -> str:
    """A line on the memory and time that the training will take, from small steps that change nothing.

    Raises ValueError if there is not enough memory.
    """
    trainer = Trainer(task, options, device)
    batch = task.batch(1, np.arange(1))
    shape = batch.x0.shape[1:3]
    sides = [side for side in SIDES if side <= min(shape)] or [min(shape)]
    if len(sides) < len(SIDES) or max(shape) <= SIDES[-1]:
        sides = [None]  # small as it is
    pixels, peaks, seconds = [], [], []
    for side in [sides[0], *sides]:  # the first time, weights are read
        small = batch.corner(side)
        began = time.perf_counter()
        peaks.append(peak(trainer, small))
        seconds.append(time.perf_counter() - began)
        pixels.append(math.prod(small.x0.shape[1:3]))
    pixels, peaks, seconds = pixels[1:], peaks[1:], seconds[1:]
    samples = options.batch_size if not options.shards else -(-options.batch_size // options.shards)
    whole = shape[0] * shape[1]
    need = MARGIN * _at(pixels, peaks, whole) * samples
    each = max(_at(pixels, seconds, whole), seconds[-1]) * options.batch_size
    memory.check(need, "a step", "take a smaller size or batch_size")
    free = memory.free() if device == "cpu" else None
    beside = "" if free is None else f", and {memory.told(free)} are free"
    return (
        f"a step takes about {memory.told(need)} besides the model{beside}; about {each:.2g} s, "
        f"{duration(each * options.steps)} for {options.steps:,} steps"
    )


def _at(pixels, values, whole) -> float:
    """Extrapolates values measured on small squares to `whole` pixels: a constant, a linear and a quadratic part."""
    if len(values) == 1:
        return float(values[0])
    fixed, linear, square = fitted(pixels, values)
    return float(fixed + linear * whole + square * whole * whole)


def _file_name(word: str) -> str:
    """The word as a file name."""
    return re.sub(r"[^\w-]+", "", word, flags=re.ASCII) or "word"
