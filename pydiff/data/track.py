"""Measures what happens in a clip of one object on black: its shape, colour, direction and speed, and whether it stays
the same object. On the clips that moving.py makes, the measurement is exact.
"""

from dataclasses import dataclass

import numpy as np

from pydiff.data.moving import COLOURS, DIRECTIONS, RADIUS, SHAPES, SIZE, SPEEDS, coverage

OFF_THE_LINE = 0.5  # pixels at SIZE: motion that deviates further is not steady
AREA_CHANGE = 0.3  # relative deviation of the area from its median that is allowed
STRAY = 0.1  # fraction of the light that may be away from the object


@dataclass(frozen=True)
class Track:
    """What a clip shows. shape, colour, direction, speed: words, "" if there is no object or nothing moves.

    velocity: (down, right), pixels per frame. off: the largest deviation from steady motion, in pixels. steady: whether
    it moves steadily. constant: whether it is one object of one shape, colour and size in all frames.
    """

    shape: str
    colour: str
    direction: str
    speed: str
    velocity: tuple
    off: float
    steady: bool
    constant: bool

    def agrees(self, shape, colour, direction, speed) -> dict:
        """Which of a caption's words are right: {"shape": bool, ..., "all": bool}; "all" also requires constancy."""
        right = {
            "shape": self.shape == shape,
            "colour": self.colour == colour,
            "direction": self.steady and self.direction == direction,
            "speed": self.steady and self.speed == speed,
            "constant": self.constant,
        }
        return right | {"all": all(right.values())}


def track(clip) -> Track:
    """Measures a clip (F, H, W, 3) uint8 with square frames."""
    clip = np.asarray(clip, np.float64)
    frames, size = len(clip), clip.shape[1]
    unit = size / SIZE
    light = clip.max(axis=-1)
    light = np.where(light < 40, 0, light)
    if (light.reshape(frames, -1).max(axis=1) < 100).any():  # missing in some frame
        return Track("", "", "", "", (0.0, 0.0), np.inf, False, False)
    centres = np.array([_centre(frame, unit) for frame in light])
    colours = [_colour(frame, mask) for frame, mask in zip(clip, light, strict=True)]
    covers = light / light.reshape(frames, -1).max(axis=1)[:, None, None]
    shapes = [_shape(cover, centre) for cover, centre in zip(covers, centres, strict=True)]
    areas = covers.sum(axis=(1, 2))
    stray = [_stray(cover, centre, unit) for cover, centre in zip(covers, centres, strict=True)]
    steps = np.arange(frames) - (frames - 1) / 2
    velocity = (steps[:, None] * (centres - centres.mean(axis=0))).sum(axis=0) / max((steps**2).sum(), 1e-9)
    line = centres.mean(axis=0) + steps[:, None] * velocity
    off = float(np.sqrt(((centres - line) ** 2).sum(axis=1)).max())
    axis = int(np.argmax(np.abs(velocity)))
    pace = float(np.abs(velocity[axis]))
    moves = pace > 0.5 * min(SPEEDS.values()) * unit and np.abs(velocity[1 - axis]) < 0.35 * pace
    direction = ""
    if moves:
        direction = next(d for d, v in DIRECTIONS.items() if v[axis] == np.sign(velocity[axis]))
    speed = min(SPEEDS, key=lambda name: abs(np.log(pace / (SPEEDS[name] * unit)))) if moves else ""
    same = len(set(shapes)) == 1 and len(set(colours)) == 1
    whole = np.abs(areas / np.median(areas) - 1).max() < AREA_CHANGE and max(stray) < STRAY
    return Track(
        _most(shapes), _most(colours), direction, speed, tuple(velocity.tolist()), off,
        off < OFF_THE_LINE * unit and bool(moves), bool(same and whole),
    )  # fmt: skip


def _centre(light, unit):
    """The centre of mass of the light around the brightest part of the frame."""
    y, x = np.indices(light.shape) + 0.5
    total = light.sum()
    centre = np.array([(y * light).sum(), (x * light).sum()]) / total
    for _ in range(3):  # ignores light that is far away
        near = light * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= (1.9 * RADIUS * unit) ** 2)
        if near.sum() == 0:
            break
        centre = np.array([(y * near).sum(), (x * near).sum()]) / near.sum()
    return centre


def _colour(frame, light):
    """The named colour nearest to the mean over the brightest pixels."""
    seen = frame[light >= 0.7 * light.max()].mean(axis=0)
    return min(COLOURS, key=lambda name: ((seen - np.array(COLOURS[name])) ** 2).sum())


def _shape(cover, centre):
    """The shape whose image around this centre is nearest to `cover`."""
    return min(SHAPES, key=lambda shape: ((coverage(shape, centre, len(cover)) - cover) ** 2).sum())


def _stray(cover, centre, unit):
    """The fraction of the light that is further from the centre than any part of a shape."""
    y, x = np.indices(cover.shape) + 0.5
    far = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 > (1.9 * RADIUS * unit) ** 2
    return float((cover * far).sum() / cover.sum())


def _most(values):
    return max(sorted(set(values)), key=values.count)


def shuffled(clip, seed=0):
    """The same frames in random order, without steady motion: the negative control for the tracker."""
    order = np.random.default_rng(seed).permutation(len(clip))
    return np.asarray(clip)[order]
