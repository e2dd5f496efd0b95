"""Points as images: a cloud of particles, each in its own colour."""

import numpy as np

SIDE = 240
PAPER = np.array([255, 255, 255], np.float64)


def rainbow(values):
    """Colours (N, 3) uint8 for values (N,), from the smallest to the largest around the colour wheel."""
    order = np.argsort(np.argsort(values)) / max(len(values), 1)
    phase = 2 * np.pi * (order[:, None] + np.array([0, 1 / 3, 2 / 3]))
    return np.rint(110 + 100 * np.cos(phase)).astype(np.uint8)


def cloud(points, colours, reach, side=SIDE, strength=0.75):
    """Points (N, D) as an image (side, side, 3) uint8, white where there are none.

    The first two coordinates point right and up, from -reach to reach; points outside are left out. colours: (N, 3).
    """
    points = np.asarray(points, np.float64)
    up = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    place = np.stack([(1 - up / reach) / 2, (1 + points[:, 0] / reach) / 2], axis=1) * side
    total, ink = np.zeros((side, side, 3)), np.zeros((side, side, 1))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (np.floor(place[:, 0]).astype(int) + dy, np.floor(place[:, 1]).astype(int) + dx)
            kept = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            weight = strength if dy == dx == 0 else strength / (4 if dy * dx else 2)
            np.add.at(total, (row[kept], column[kept]), weight * np.asarray(colours, np.float64)[kept])
            np.add.at(ink, (row[kept], column[kept]), weight)
    cover = np.clip(ink, 0, 1)
    return np.rint(PAPER * (1 - cover) + cover * total / np.maximum(ink, 1e-12)).astype(np.uint8)
