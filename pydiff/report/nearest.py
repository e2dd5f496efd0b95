"""The nearest training image of each sample: does the model create new images, or repeat what it has seen?"""

import numpy as np

BLOCK_BYTES = 1 << 26  # 64 MiB of float64 pixels at a time


def nearest(samples, training, exclude=None):
    """For each sample, the training image at the smallest L2 distance, over pixels scaled to [-1, 1].

    samples: (N, H, W, C) uint8. training: (M, H, W, C) uint8. exclude: (N,) int, for each sample a training image
    that does not count: the sample itself, if it is one of them. Returns index (N,) int64 (the first of equals) and
    distance (N,) float64. Memory beyond the arguments is bounded by N rows and one block of training images.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b in float64, where sums of products of uint8 pixels are exact integers: no
    cancellation, so the distance of an image to its copy is exactly 0.
    """
    samples, training = np.asarray(samples), np.asarray(training)
    if samples.shape[1:] != training.shape[1:] or samples.ndim < 2 or not samples.dtype == training.dtype == np.uint8:
        raise ValueError(
            "samples and training images must be uint8 of one size, got "
            f"{samples.shape} {samples.dtype} and {training.shape} {training.dtype}"
        )
    if len(training) < (1 if exclude is None else 2):
        raise ValueError(f"nearest needs a training image to compare with, got {len(training)} in all")
    a = samples.reshape(len(samples), -1).astype(np.float64)
    best, index = np.full(len(a), np.inf), np.zeros(len(a), np.int64)
    rows = max(1, BLOCK_BYTES // (8 * a.shape[1]))
    for start in range(0, len(training), rows):
        b = training[start : start + rows].reshape(-1, a.shape[1]).astype(np.float64)
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
        if exclude is not None:
            here = np.flatnonzero((exclude >= start) & (exclude < start + len(b)))
            squared[here, exclude[here] - start] = np.inf
        first = squared.argmin(1)
        smallest = squared[np.arange(len(a)), first]
        closer = smallest < best
        best[closer], index[closer] = smallest[closer], start + first[closer]
    return index, np.sqrt(best) / 127.5  # one step of uint8 is 1 / 127.5 in [-1, 1]


def spread(total, count):
    """At most `count` indices of 0..total-1, evenly spaced, including first and last: (min(total, count),) int64."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))
