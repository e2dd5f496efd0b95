"""Images with masks, for segmentation: from a folder, and shapes made by formula.

FOLDER/images/a.jpg   FOLDER/masks/a.png        the same names; every value or colour in a mask is a class
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pydiff import random
from pydiff.codec import from_uint8
from pydiff.data.asked import asked
from pydiff.data.dataset import colours, plural, some
from pydiff.data.folder import read_images
from pydiff.data.image import opened, read_size
from pydiff.data.limits import check_memory
from pydiff.data.listing import find_files
from pydiff.data.moving import SHAPES, coverage
from pydiff.data.pixels import check_size, crop_box
from pydiff.printed import expanded, printable

IMAGES, MASKS = ("images", "image", "imgs"), ("masks", "mask", "labels", "annotations", "segmentations")
MOST = 64  # classes; more values than this are smoothed edges, not classes
SIZE, COUNT = 32, 600


@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """Images and the class of every pixel.

    name: what they come from. images: (N, H, W, C) uint8. masks: (N, H, W) int64 in 0 .. K-1. classes: K names.
    skipped: (path, reason). notes: sentences on what was decided.
    """

    name: str
    images: np.ndarray
    masks: np.ndarray
    classes: list
    skipped: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        images, masks = np.asarray(self.images), np.asarray(self.masks)
        if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)")
        if masks.shape != images.shape[:3] or masks.dtype.kind not in "iub":
            raise ValueError(f"masks are {masks.dtype} {masks.shape}, expected whole numbers {images.shape[:3]}")
        masks = masks.astype(np.int64)
        if len(self.classes) < 2 or masks.min() < 0 or masks.max() >= len(self.classes):
            count = len(self.classes)
            raise ValueError(
                f"masks run from {masks.min()} to {masks.max()}, expected 2 classes or more, 0 .. {count - 1}"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "masks", masks)

    def __len__(self):
        return len(self.images)

    def normalized(self, indices):
        """The images with these indices as float32 in [-1, 1]."""
        return from_uint8(self.images[np.asarray(indices)])

    def subset(self, indices):
        """The images and masks with these indices, in this order."""
        return dataclasses.replace(self, images=self.images[indices], masks=self.masks[indices])

    def split(self, fraction, seed=0):
        """(rest, held out), a pure function of N, fraction and seed. Raises ValueError if one would be empty."""
        n = len(self)
        if not 0 < fraction < 1 or n < 2:
            raise ValueError(f"cannot hold {fraction} of {n} images out; give a share between 0 and 1, and 2 images")
        count, order = min(max(round(n * fraction), 1), n - 1), random.permutation(seed, random.DATA, 2**32 - 1, n)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def fingerprint(self):
        """SHA-256 of shape, pixels, masks and classes."""
        import hashlib
        import json

        digest = hashlib.sha256(json.dumps([self.images.shape, self.classes]).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.masks, "<i8"))
        return digest.hexdigest()

    def summary(self):
        """A few lines: count, size, classes with their share of the pixels, what was decided and how much skipped."""
        _, height, width, c = self.images.shape
        shares = np.bincount(self.masks.ravel(), minlength=len(self.classes)) / self.masks.size
        told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(self.classes, shares, strict=True))
        lines = [
            f"{self.name}: {plural(len(self), 'image')} with masks, {height} x {width}, {colours(c)}",
            told,
            *self.notes,
        ]
        if self.skipped:
            path, reason = self.skipped[0]
            lines.append(f"{plural(len(self.skipped), 'file')} skipped (first: {path}: {reason})")
        return "\n".join(lines)


def shapes(n=COUNT, seed=0, size=SIZE) -> Masked:
    """n grey images (n, size, size, 1) of one to three shapes under uneven light, with noise; classes by shape.

    Across the image the light varies by more than the contrast between shapes and background, so that no brightness
    threshold can separate them, let alone tell them apart.
    """
    if n < 1 or size < 8:
        raise ValueError(f"shapes need n >= 1 and size >= 8, got {n} and {size}")
    images, masks = np.empty((n, size, size, 1), np.uint8), np.zeros((n, size, size), np.int64)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    for i in range(n):
        u = random.uniform(random.key(seed, random.DATA, [i], 5), (16,), np.float64)[0]
        angle, slope = 2 * np.pi * u[0], 60 + 60 * u[1]
        light = 120 + slope * (np.cos(angle) * x + np.sin(angle) * y)
        for k in range(1 + int(3 * u[2])):
            shape = int(3 * u[3 + 4 * k])
            centre = size * (0.2 + 0.6 * u[4 + 4 * k : 6 + 4 * k])
            cover = coverage(SHAPES[shape], centre, size)
            light = light + cover * (30 + 25 * u[6 + 4 * k]) * (1 - (masks[i] > 0))
            masks[i] = np.where((cover > 0.5) & (masks[i] == 0), shape + 1, masks[i])
        z = random.normal(random.key(seed, random.NOISE, [i], 5), (size, size), np.float64)[0]
        images[i] = np.clip(np.rint(light + 8 * z), 0, 255)[..., None]
    return Masked("shapes", images, masks, ["ground", *SHAPES])


def load_masked(source, size=None) -> Masked:
    """ "shapes", a folder of images with masks, or a Masked. size: (height, width) or a side; None as for images.

    Raises ValueError for data that cannot be used.
    """
    size = check_size(size)
    if isinstance(source, Masked):
        return source
    if isinstance(source, str) and source == "shapes":
        return shapes(size=SIZE if size is None else size[0])
    root = expanded(source)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(source)!r}; expected shapes, or a folder with images and masks"
        )
    return _load_folder(root, size)


def _load_folder(root, size) -> Masked:
    places: list[Any] = [
        next((root / name for name in names if (root / name).is_dir()), None) for names in (IMAGES, MASKS)
    ]
    if None in places:
        raise ValueError(f"{root} needs the subfolders images and masks, with files of the same names")
    (found, _, skipped), (masks, _, more) = (find_files(place) for place in places)
    by_stem = {str(Path(path).with_suffix("")): path for path in masks}
    pairs: dict[str, Any] = {path: by_stem.get(str(Path(path).with_suffix(""))) for path in found}
    skipped = (
        skipped + more + [(printable(path), "no mask of that name") for path, mask in pairs.items() if mask is None]
    )
    lonely = sorted(set(masks) - set(pairs.values()))
    notes = (
        [f"{plural(len(lonely), 'mask')} without an image: {some([printable(path) for path in lonely], ', ', 5)}"]
        if lonely
        else []
    )
    sources = {path: places[0] / path for path, mask in pairs.items() if mask is not None}
    if not sources:
        raise ValueError(
            f"{printable(str(root))} has no image with a mask of its name: {plural(len(found), 'image')} in "
            f"{printable(places[0].name)}, {plural(len(masks), 'mask')} in {printable(places[1].name)}"
        )
    names, images, image_notes = read_images(root, sources, asked(size), skipped)
    values, kept = [], []
    for i, name in enumerate(names):
        read = _read_mask(places[0] / name, places[1] / pairs[name], images.shape[1:3])
        if isinstance(read, str):
            skipped.append((printable(pairs[name]), read))
        else:
            values.append(read)
            kept.append(i)
    if not kept:
        raise ValueError(f"no image in {root} has a mask that can be used (first: {skipped[0][0]}: {skipped[0][1]})")
    if any(value.shape[-1] == 3 for value in values):  # some are grey, others coloured
        values = [np.broadcast_to(value, (*value.shape[:2], 3)) for value in values]
    levels, masks = np.unique(np.stack(values).reshape(-1, values[0].shape[-1]), axis=0, return_inverse=True)
    if not 2 <= len(levels) <= MOST:
        hint = "were they smoothed or saved as JPEG?" if len(levels) > MOST else "there is nothing to tell apart"
        raise ValueError(f"the masks in {root} hold {plural(len(levels), 'value')}, expected 2 to {MOST}; {hint}")
    classes = [",".join(map(str, level)) for level in levels.tolist()]
    shape = (len(kept), *images.shape[1:3])
    return Masked(root.name, images[kept], masks.reshape(shape), classes, sorted(skipped), notes + image_notes)


def _read_mask(image, mask, size):
    """The values of a mask at (height, width) size: (H, W, 1), or (H, W, 3) for colours; or why it cannot be used."""
    from PIL import Image

    try:
        expected: Any = read_size(image)
        with opened(mask) as decoded:
            if (decoded.height, decoded.width) != expected:
                return f"{decoded.width} x {decoded.height} pixels, and its image {expected[1]} x {expected[0]}"
            plain = (
                decoded if decoded.mode in ("L", "P", "RGB") else decoded.convert("L" if decoded.mode == "1" else "RGB")
            )
            box = crop_box(plain.height, plain.width, size)
            values = np.asarray(plain.resize((size[1], size[0]), Image.Resampling.NEAREST, box=box)).astype(np.int64)
    except Exception as error:  # decoders raise a dozen types of error for damaged files
        check_memory(error)
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return values[..., None] if values.ndim == 2 else values
