"""What `pydiff data DATA` prints: what was found, what was skipped and why, and what to think of before training."""

import numpy as np

from pydiff.data.dataset import Dataset, some

SHOWN = 20  # classes and skipped files that are listed before "and N more"
EXAMPLES, LINE = 5, 100  # images whose captions are shown, characters of each


def describe(dataset: Dataset) -> str:
    """Several lines: count, size, channels, notes, classes, values, skipped files with reasons, hints for training."""
    lines = [dataset.summary()]
    if dataset.classes is not None:
        counts = np.bincount(dataset.labels, minlength=len(dataset.classes))  # pyright: ignore[reportArgumentType]
        lines.append(
            "classes: " + some([f"{c} ({k})" for c, k in zip(dataset.classes, counts, strict=True)], ", ", SHOWN)
        )
    if dataset.captions is not None:
        lines.append(captions(dataset))
    low, high, mean, std = statistics(dataset)
    scale = ", scaled" if dataset.noun == "point" else " in [-1, 1]"
    lines.append(f"values: {low:.3f} .. {high:.3f}{scale}; mean {_numbers(mean)}, std {_numbers(std)}")
    if dataset.skipped:
        lines.append("skipped:\n  " + some([f"{path}: {reason}" for path, reason in dataset.skipped], "\n  ", SHOWN))
    return "\n".join(lines + [f"hint: {hint}" for hint in dataset.hints()])


def captions(dataset: Dataset) -> str:
    """How long the captions are, and those of the first images that have any."""
    words = [len(text.split()) for row in dataset.captions or () for text in row]
    tell = [
        " | ".join(text[:LINE] + "..." * (len(text) > LINE) for text in row) for row in dataset.captions or () if row
    ]
    first = "\n  ".join(tell[:EXAMPLES])
    return f"captions: {min(words)} to {max(words)} words, {np.median(words):g} in the middle; the first are\n  {first}"


def statistics(dataset: Dataset) -> tuple[float, float, np.ndarray, np.ndarray]:
    """(least, greatest, mean (C,), standard deviation (C,)) of the values in [-1, 1], in float64."""
    n, channels = len(dataset), dataset.shape[-1]
    blocks = [np.arange(start, min(start + 256, n)) for start in range(0, n, 256)]
    low, high, total = np.inf, -np.inf, np.zeros(channels)
    for block in blocks:
        x = dataset.normalized(block)
        low, high = min(low, float(x.min())), max(high, float(x.max()))
        total += x.reshape(-1, channels).sum(axis=0, dtype=np.float64)
    mean = total / (dataset.images.size // channels)
    squares = np.zeros(channels)
    for block in blocks:  # a second pass: E[x^2] - E[x]^2 loses digits
        squares += ((dataset.normalized(block).reshape(-1, channels) - mean) ** 2).sum(axis=0)
    return low, high, mean, np.sqrt(squares / (dataset.images.size // channels))


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
