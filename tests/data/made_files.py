"""Files as people have them, for the tests beside: random images, folders, archives, IDX; and what was noted."""

import shutil
import struct

import numpy as np
from PIL import Image


def image(seed=0, size=(16, 16), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def image_folder(folder, n=3, suffix="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image(i, **options).save(folder / f"{i}.{suffix}")
    return folder


def noted(dataset, *parts):
    """Whether one note holds all of these."""
    return any(all(part in note for part in parts) for note in dataset.notes)


def spoken(dataset):
    return " | ".join(dataset.notes)


def packed(folder, path):
    kind = {"zip": "zip", "tar": "tar", "tgz": "gztar", "tar.gz": "gztar", "tar.xz": "xztar", "tar.bz2": "bztar"}
    made = shutil.make_archive(str(path.parent / "made"), kind[path.name.split(".", 1)[1]], folder)
    shutil.move(made, path)
    return path


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
