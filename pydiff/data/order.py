"""Which images make up the batch of a step, which are mirrored, and which caption each is given. All are pure functions
of the step, so that resuming is exact.

The images form one endless stream, epoch after epoch, each epoch in its own random order. Step s takes positions s B ..
s B + B - 1 of the stream, so no image is dropped at the end of an epoch, and batches may span epochs.
"""

from functools import lru_cache

import numpy as np

from pydiff import random


def batch_indices(n: int, batch_size: int, step: int, seed: int = 0) -> np.ndarray:
    """Indices (batch_size,) int64 in 0 .. n - 1 of the images of this step. Steps may be requested in any order.

    Position p of the stream is entry p mod n of the permutation of epoch p // n. The stream does not depend on
    batch_size.
    """
    for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("step", step, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} is {value!r}, expected an integer; convert it with int()")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}; an empty stream has no batches")
    n, batch_size, step = int(n), int(batch_size), int(step)
    first, parts = step * batch_size, []
    stop = first + batch_size
    while first < stop:
        epoch, place = divmod(first, n)
        parts.append(_epoch_order(seed, epoch, n)[place : place + stop - first])
        first += len(parts[-1])
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # avoids sorting a large set again at each step; changes no result
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    order = random.permutation(seed, random.DATA, epoch, n)
    order.flags.writeable = False
    return order


def mirrored(step: int, seed: int = 0, numbers=None, count: int | None = None) -> np.ndarray:
    """Which samples of a batch are mirrored left to right: about half, chosen by (seed, step, number of the sample).

    numbers: (N,), the samples' positions in the global batch; 0 .. count - 1 if None. Returns (N,) bool.
    """
    numbers = random.numbers_of(numbers, count)
    return random.uniform(random.key(seed, random.AUGMENT, numbers, step)) < 0.5


def flip(images: np.ndarray, step: int, seed: int = 0, numbers=None) -> np.ndarray:
    """A batch (N, .., H, W, C) with about half of it mirrored left to right, see `mirrored`."""
    if images.ndim not in (4, 5):
        raise ValueError(f"samples have shape {images.shape}, expected images (N, H, W, C) or clips (N, F, H, W, C)")
    chosen = mirrored(step, seed, numbers, len(images)).reshape((-1,) + (1,) * (images.ndim - 1))
    return np.where(chosen, images[..., ::-1, :], images)


def pick_captions(captions, chosen, step: int, seed: int = 0, numbers=None) -> list[str]:
    """One caption for each image of a batch, chosen by (seed, step, number of the sample); "" where it has none.

    captions: Dataset.captions. chosen: (N,), the batch's images. numbers: (N,), their positions in the global batch;
    0 .. N-1 if None.
    """
    numbers = random.numbers_of(numbers, len(chosen))
    shares = random.uniform(random.key(seed, random.CAPTION, numbers, step), dtype=np.float64)
    rows = [captions[i] for i in chosen]
    return [row[int(share * len(row))] if row else "" for row, share in zip(rows, shares, strict=True)]
