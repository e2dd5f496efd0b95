"""Moving shapes, generated: clips of one object on black, with captions that describe them completely.

    a slow red circle moving left

track.py measures in a clip what its caption says, so that a model's samples can be judged exactly. One combination in
six is held out: no training clip has it, though each of its words occurs in others.
"""

import itertools

import numpy as np

from pydiff import random
from pydiff.data.clips import Clips

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (240, 220, 50)}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (down, right) per frame
SPEEDS = {"slow": 0.5, "fast": 1.2}  # pixels per frame, at SIZE
FRAMES, SIZE, COUNT = 8, 16, 3200
RADIUS = 3.0  # pixels, at SIZE
FINE = 8  # subpixels per pixel side, for antialiased edges
COMBINATIONS = tuple(itertools.product(SHAPES, COLOURS, DIRECTIONS, SPEEDS))


def held_out(shape, colour, direction, speed) -> bool:
    """Whether this combination is held out, as one in six is: no training clip has it."""
    places = (SHAPES.index(shape), list(COLOURS).index(colour), list(DIRECTIONS).index(direction))
    return (2 * places[0] + places[1] + places[2] + 3 * list(SPEEDS).index(speed)) % 6 == 0


def caption(shape, colour, direction, speed) -> str:
    """The caption of a clip in which this shape of this colour moves this way, this fast."""
    return f"a {speed} {colour} {shape} moving {direction}"


def moving_shapes(
    n: int = COUNT, seed: int = 0, frames: int | None = None, size: int = SIZE, combinations=None, rate: float = 8.0
) -> Clips:
    """n clips (n, frames, size, size, 3) of one shape each, the combinations taking turns; a pure function of these
    arguments.

    combinations: those that are shown; None: all but the held-out ones. rate: frames per second. Raises ValueError if
    the path of the fast ones does not fit into the image.
    """
    frames = FRAMES if frames is None else frames
    unit = size / SIZE
    room = size - 2 * (RADIUS + 0.5) * unit
    if n < 1 or frames < 1 or size < 8 or (frames - 1) * max(SPEEDS.values()) * unit > room:
        raise ValueError(
            f"moving shapes need n >= 1, size >= 8 and 1 to {int(room / (max(SPEEDS.values()) * unit)) + 1} frames, "
            f"got n {n}, size {size}, frames {frames}"
        )
    shown = [c for c in COMBINATIONS if not held_out(*c)] if combinations is None else list(combinations)
    numbers = np.arange(n)
    places = random.uniform(random.key(seed, random.DATA, numbers, 3), (2,), np.float64)
    clips, captions = np.empty((n, frames, size, size, 3), np.uint8), []
    for i, share in enumerate(places):
        shape, colour, direction, speed = shown[i % len(shown)]
        step = np.array(DIRECTIONS[direction]) * SPEEDS[speed] * unit
        way = step * (frames - 1)
        least = (RADIUS + 0.5) * unit + np.maximum(-way, 0)  # lower bound of the start
        start = least + share * (size - 2 * (RADIUS + 0.5) * unit - np.abs(way))
        for f in range(frames):
            cover = coverage(shape, start + f * step, size)
            clips[i, f] = np.rint(cover[..., None] * np.array(COLOURS[colour], np.float64))
        captions.append((caption(shape, colour, direction, speed),))
    languages = (("en",),) * n
    return Clips("moving-shapes", clips, captions=tuple(captions), languages=languages, rate=rate)


def coverage(shape, centre, size) -> np.ndarray:
    """The fraction of every pixel that a shape around `centre` (down, right) covers: (size, size) from 0 to 1.

    Coordinates are in pixels from the upper left corner of the image. The centre is the centre of mass.
    """
    radius = RADIUS * size / SIZE
    ticks = (np.arange(size * FINE) + 0.5) / FINE
    y, x = ticks[:, None] - centre[0], ticks[None, :] - centre[1]
    if shape == "circle":
        inside = x**2 + y**2 <= radius**2
    elif shape == "square":
        side = 0.86 * radius
        inside = (np.abs(x) <= side) & (np.abs(y) <= side)
    else:  # apex up, as high as wide; its centre of mass is a third of the height above the base
        height = 2.2 * radius
        from_top = y + 2 / 3 * height
        inside = (from_top >= 0) & (from_top <= height) & (np.abs(x) <= from_top / 2)
    return inside.reshape(size, FINE, size, FINE).mean(axis=(1, 3))
