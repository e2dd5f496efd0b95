"""Many samples into a folder of images: in parts, by one process or several, and going on where it was stopped.

A sample depends on the seed and its number alone, so it does not matter who draws it, when, or beside which others. The
folder remembers what its images were drawn with; another model, seed or sampler needs another folder.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.grid import save_png
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


def name_of(number: int) -> str:
    """The file of a sample."""
    return f"{number:06d}.png"


def draw_into(folder: Path, total: int, draw, said, settings: dict, group, progress=True) -> int:
    """Draws the samples 0 .. total - 1 that are not in the folder yet, and returns how many there were left to draw.

    draw(numbers) -> images (N, H, W, C) uint8. said(number) -> texts to keep in its file. settings: JSON of everything
    that changes an image. group: distributed.Group. ValueError, in one sentence, for a folder with other images.
    """
    from tqdm import tqdm

    if group.first:
        _claim(folder, settings)
        left = [number for number in range(total) if not (folder / name_of(number)).exists()]
    left = group.agree(left if group.first else None)
    parts = [left[i : i + PART] for i in range(0, len(left), PART)]
    if len(parts) < group.size:  # or some would have nothing to do
        parts = [part.tolist() for part in np.array_split(left, min(group.size, len(left)) or 1)]
    mine = parts[group.rank :: group.size]
    with tqdm(total=len(left), unit="picture", disable=not (progress and group.first), delay=1) as bar:
        for part in mine:
            if part:
                for number, image in zip(part, draw(np.array(part)), strict=True):
                    save_png(folder / name_of(number), image, said(number))
            group.listen()
            bar.update(min(len(part) * group.size, len(left) - bar.n))
    return len(left)


def _claim(folder: Path, settings: dict):
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
                f"{folder} holds images that were drawn with another {' and '.join(differing)}; choose another folder"
            )
        return
    if any(folder.glob("[0-9]*.png")):
        raise ValueError(f"{folder} holds images, and does not say how they were drawn; choose another folder")
    write_atomic(record, text.encode())
