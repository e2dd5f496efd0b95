"""Many samples into a folder: in parts, by one process or several, and going on where it was stopped.

A sample depends on the seed and its number alone, so it does not matter who draws it, when, or beside which others. The
folder remembers what its samples were drawn with; another model, seed or sampler needs another folder.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.files import file_of, save_one
from pydiff.store.files import write_atomic

PART = 64  # samples that are drawn together
RECORD = ".samples.json"


def digest(model) -> str:
    """SHA-256 of a model's weights."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {parameter.shape} {parameter.dtype}".encode())
        found.update(np.ascontiguousarray(to_host(parameter.data)))
    return found.hexdigest()


def fill(pipeline, folder: Path, n: int, seed: int, ask, said, settings: dict, group, prompts=None, **choices):
    """Fills a folder with samples of a Pipeline, n of each prompt, a file for each. Returns how many were there.

    ask(places) -> the Condition of samples of the folder. said: texts to keep in every file. settings: JSON of what
    else changes a sample. choices: the other keywords of `Pipeline.sample`. The same for every process of the group.
    """
    settings = settings | choices | {"seed": seed, "device": pipeline.device, "model": digest(pipeline.model)}
    settings |= {} if prompts is None else {"n": n, "prompts": prompts}
    group.compare(settings)

    def draw(places):
        return pipeline.sample(places % n, seed, asked=ask(places), **choices)

    def save(place, sample):
        save_one(folder, place, sample, pipeline.codec, n, prompts, said)

    files = [file_of(folder, place, pipeline.codec) for place in range(n * len(prompts or [""]))]
    return len(files) - draw_into(folder, files, draw, save, settings, group)


def draw_into(folder: Path, files, draw, save, settings: dict, group, progress=True) -> int:
    """Draws those samples whose files are not there yet, and returns how many these were.

    files: [Path] of every sample. draw(numbers) -> samples. save(number, sample) writes the file. settings: JSON of
    everything that changes a sample. group: distributed.Group. ValueError, in one sentence, for a folder with others.
    """
    from tqdm import tqdm

    if group.first:
        _claim(folder, files, settings)
    left = group.agree([n for n, file in enumerate(files) if not file.exists()] if group.first else None)
    parts = [left[i : i + PART] for i in range(0, len(left), PART)]
    if len(parts) < group.size:  # or some would have nothing to do
        parts = [part.tolist() for part in np.array_split(left, max(1, min(group.size, len(left))))]
    with tqdm(total=len(left), unit="sample", disable=not (progress and group.first), delay=1) as bar:
        for part in parts[group.rank :: group.size]:
            for number, sample in zip(part, draw(np.array(part)) if part else (), strict=True):
                save(number, sample)
            group.listen()
            bar.update(min(len(part) * group.size, len(left) - bar.n))
    return len(left)


def _claim(folder: Path, files, settings: dict):
    """Makes the folder one of images with these settings, or finds that it is."""
    folder.mkdir(parents=True, exist_ok=True)
    record, text = folder / RECORD, json.dumps(settings, indent=1, sort_keys=True)
    if record.exists():
        try:
            before = json.loads(record.read_text())
        except ValueError:
            before = {}
        settings = json.loads(text)
        differing = [name for name in settings | before if before.get(name) != settings.get(name)]
        if differing:
            raise ValueError(
                f"{folder} holds samples that were drawn with another {' and '.join(differing)}; choose another folder"
            )
        return
    if any(file.exists() for file in files):
        raise ValueError(f"{folder} holds samples, and does not say how they were drawn; choose another folder")
    write_atomic(record, text.encode())
