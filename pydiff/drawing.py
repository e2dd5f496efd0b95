"""Samples into files: checks first that they can be written, writes each batch as it is finished, and adds the missing
samples to a folder that has some of them already.


    order = Order(n=64, seed=1, label="cat", options={"steps": 20})
    draw(pipeline, Path("cats"), order)         cats/000000-cat.png ..
"""

import contextlib
import hashlib
import itertools
import math
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff import memory
from pydiff.codecs import Frames
from pydiff.formats.files import advice_on
from pydiff.printed import printable, spelled
from pydiff.report import files
from pydiff.report.grid import save_png
from pydiff.report.video import save_clip
from pydiff.sound.codec import SoundCodec
from pydiff.sound.wav import told_in, wav_bytes
from pydiff.store.files import write_atomic

BATCH, LONG = 64, 40  # samples per batch; characters of a class or prompt in a file name


@dataclass(frozen=True)
class Order:
    """Which samples to draw. n: samples of each prompt, or in all. label: the class of all, by name or number, or None.

    options: of `Pipeline.sample`: sampler, steps, guidance, eta and those of the sampler. Sample number i of a prompt
    depends only on the seed, i and the prompt.
    """

    n: int = 16
    seed: int = 0
    prompts: list[str] | None = None
    negative_prompt: str | None = None
    label: str | None = None
    options: dict = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The total number of samples: n for each prompt."""
        return self.n * len(self.prompts or [""])

    def rows(self, conditioning, chosen):
        """(numbers, Condition) of the samples at these positions among all."""
        numbers = chosen % self.n
        labels = None if self.label is None else np.full(len(chosen), self.label)
        prompts = None if self.prompts is None else [self.prompts[i // self.n] for i in chosen]
        return numbers, conditioning.rows(numbers, labels, None, prompts, self.negative_prompt)

    def told(self, i) -> dict[str, str]:
        """The metadata of the sample at this position."""
        return ({} if self.prompts is None else {"prompt": spelled(self.prompts[i // self.n])}) | {
            "number": str(i % self.n)
        }

    def names(self, conditioning) -> list[str]:
        """File names of all samples, without the suffix: position, and prompt or class."""
        words = [""] * self.total
        if self.prompts is not None:
            words = [self.prompts[i // self.n] for i in range(self.total)]
        elif conditioning.classes is not None:
            fixed = None if self.label is None else conditioning.number_of(self.label)
            count = len(conditioning.classes)
            words = [conditioning.classes[i % count if fixed is None else fixed] for i in range(self.total)]
        return [f"{i:06d}{'-' * bool(slug(word))}{slug(word)}" for i, word in enumerate(words)]


class Stopped(KeyboardInterrupt):
    """Ctrl-C while sampling; the message says how many samples were written."""


class Drawn(NamedTuple):
    """drawn: samples drawn now. kept: samples that existed already. wanted: their sum, if nothing stopped it."""

    drawn: int
    kept: int
    wanted: int


def slug(words: str) -> str:
    """Words as part of a file name."""
    return re.sub(r"[^\w]+", "-", words)[:LONG].strip("-_")


def draw(pipeline, out: Path, order: Order, progress=False, group=None) -> Drawn:
    """Draws into a .png (a grid), .npz or .wav, or into a folder, which may have some of these samples already.

    Raises ValueError or OSError before anything is drawn if the output cannot be written, or if a folder has other
    samples under these names. Ctrl-C keeps what was drawn, and raises KeyboardInterrupt. group:
    training.distributed.Group, whose processes share a folder; None for this process only.
    """
    first = group is None or group.first
    if order.n < 1:
        raise ValueError(f"n must be at least 1, got {order.n}")
    check_room(order, out, pipeline.codec)
    names = order.names(pipeline.conditioning)
    if order.prompts is None:
        order.rows(pipeline.conditioning, np.arange(1))  # an unknown label raises before folders are made
    check_place(out, pipeline.codec)
    said = recipe(pipeline, order)
    missing, folder = np.arange(order.total), out.suffix == ""
    if group is not None and group.size > 1:
        if not folder:
            raise ValueError(f"several processes draw into a folder, not into {out}; give --out FOLDER")
        group.compare(said)
    if folder and first:
        suffix = suffix_of(pipeline.codec)
        missing = [i for i in range(order.total) if not there(out / f"{names[i]}{suffix}", said | order.told(i))]
    missing = np.array(
        missing if group is None else group.agree([int(i) for i in missing] if first else None), np.int64
    )
    wanted = missing if group is None else share(missing, group.rank, group.size)
    parts, done = [], 0
    try:
        for chosen, samples in _batches(pipeline, order, wanted, progress and first):
            if group is not None:
                group.listen()
            if folder:
                _write(out, [names[i] for i in chosen], samples, pipeline.codec, order, chosen, said)
            else:
                parts.append(samples)
            done += len(chosen)
    except KeyboardInterrupt:
        done = _in_folder(out, names, pipeline.codec) if folder else done
        left = "; the same command draws the others" if folder else ""
        raise Stopped(f"stopped; {done:,} of {order.total:,} are in {out}{left}") from None
    except OSError as error:
        if not folder or error.filename is None:
            raise
        done = _in_folder(out, names, pipeline.codec)
        raise ValueError(
            f"Could not write {printable(str(error.filename))}: {error.strerror}; {done:,} of {order.total:,} are in "
            f"{printable(str(out))}, and the same command draws the others"
        ) from error
    finally:
        if parts:
            shown = order.n if done == order.total else done
            prompts = order.prompts if done == order.total else None
            files.save_samples(out, np.concatenate(parts), pipeline.codec, shown, prompts, said)
    return Drawn(done, order.total - len(missing), order.total)


def check_room(order: Order, out: Path, codec):
    """Raises ValueError before anything is drawn if so many samples cannot be held in memory: the names of all of them,
    and, where they are written together, the samples, twice.
    """
    each = 200 if out.suffix == "" else 200 + 2 * math.prod(codec.image_shape)
    advice = (
        "give a smaller -n" if out.suffix == "" else "give a smaller -n, or a folder, where each is a file of its own"
    )
    memory.check(each * order.total, f"{order.total:,} {codec.noun}s in {printable(str(out))}", advice)


def _in_folder(out, names, codec) -> int:
    """How many of these samples are in the folder."""
    return sum((out / f"{name}{suffix_of(codec)}").exists() for name in names)


def share(missing, rank, size):
    """The missing samples that process `rank` of `size` draws: whole batches in turn, or smaller ones if there are few.

    The split does not affect the samples: a sample's bits do not depend on the others in its batch.
    """
    length = max(1, min(BATCH, -(-len(missing) // size)))
    return missing[np.arange(len(missing)) // length % size == rank]


def _batches(pipeline, order, wanted, progress):
    from tqdm import tqdm

    sampler, steps = order.options.get("sampler"), order.options.get("steps")
    steps = pipeline.default_steps(sampler) if steps is None else steps
    options = {**order.options, "steps": steps}
    with tqdm(total=len(wanted) * steps, unit="step", unit_scale=True, disable=not progress, delay=1) as bar:
        size = min(BATCH, pipeline.batch_size)
        for first in range(0, len(wanted), size):
            chosen = wanted[first : first + size]
            numbers, asked = order.rows(pipeline.conditioning, chosen)
            for state in pipeline.sample_states(numbers, order.seed, asked=asked, **options):
                x, bar.total = state.x, len(wanted) * state.steps  # some schedulers take one step more than requested
                with contextlib.suppress(OSError, ValueError):  # without a terminal, only the bar is lost
                    bar.update(len(chosen))
            yield chosen, pipeline.decoded(x)


def _write(out, names, samples, codec, order, chosen, said):
    if isinstance(codec, SoundCodec):
        for name, sound, i in zip(names, samples, chosen, strict=True):
            write_atomic(out / f"{name}.wav", wav_bytes(sound[0], codec.rate, said | order.told(i)))
        return
    if isinstance(codec, Frames):
        for name, clip in zip(names, samples, strict=True):
            save_clip(out / f"{name}.gif", clip, codec.rate)
    for name, image, i in zip(names, codec.show(samples), chosen, strict=True):
        save_png(out / f"{name}.png", image, said | order.told(i))


def recipe(pipeline, order: Order) -> dict[str, str]:
    """Metadata common to all samples of an order: the model's weights, the seed, the sampling options."""
    digest = hashlib.blake2b()  # fast, and without a copy: a model may have gigabytes
    for name, p in itertools.chain.from_iterable(network.named_parameters() for network in pipeline.networks):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(p.numpy()).reshape(-1).view(np.uint8))
    sampler, steps = order.options.get("sampler"), order.options.get("steps")
    steps = pipeline.default_steps(sampler) if steps is None else steps
    told = {"Software": "pydiff", "model": digest.hexdigest()[:16], "seed": order.seed}
    guidance = order.options.get("guidance")
    guidance = pipeline.default_guidance if guidance is None else guidance
    told |= {**order.options, "guidance": guidance, "sampler": sampler or _own(pipeline), "steps": steps}
    told |= {"negative_prompt": order.negative_prompt, "label": order.label, **pipeline.described}
    return {name: spelled(str(value)) for name, value in told.items() if value is not None}


def _own(pipeline):
    return "ddim" if pipeline.scheduler is None else pipeline.scheduler.name


def there(path: Path, said: dict[str, str]) -> bool:
    """Whether this very sample is already in a file. Raises ValueError if another sample is."""
    if not os.path.lexists(path):
        return False
    try:
        found = told_in(path.read_bytes()) if path.suffix == ".wav" else _told_in_image(path)
    except (OSError, ValueError, SyntaxError):
        return False  # damaged, so draw it again
    for name in {**said, **found}:
        if found.get(name) != said.get(name):
            raise ValueError(
                f"{path} is there already, and is another sample ({name} {found.get(name, 'unknown')}, not "
                f"{said.get(name, 'given')}); choose another folder, or remove it"
            )
    return True


def _told_in_image(path):
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return dict(getattr(image, "text", {}))


def suffix_of(codec) -> str:
    """The suffix of the file that is written last for each sample, and that carries its metadata."""
    return ".wav" if isinstance(codec, SoundCodec) else ".png"


def check_place(out: Path, codec):
    """Makes the folders; raises ValueError or OSError if samples cannot be written there."""
    files.check_name(out, codec)
    folder = out if out.suffix == "" else out.parent
    if folder is not out and out.is_dir():
        raise ValueError(f"{printable(str(out))} is a folder, and would have to be a file of that name; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written to
    except OSError as error:
        where = printable(str(folder))
        raise ValueError(f"Could not write into {where}: {error.strerror}; {advice_on(error)}") from error
