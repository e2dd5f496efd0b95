"""The part of a page that shows clips as clips: a slider over time, and one over the steps of the noise.

Noise cannot be compressed, so what a panel holds is bounded: see `room`.
"""

from typing import NamedTuple

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.grid import grid
from pydiff.report.pixels import shrink, visible
from pydiff.report.story import embedded, player
from pydiff.report.trace import steps_to_record

CLIPS = 9  # that are shown, if they are small
STEPS = 16  # of the noise, about as many
PANEL_VALUES = 650_000  # of a panel's clips, a byte each on a page that noise fills: about as many bytes


class Room(NamedTuple):
    """What a panel has room for: clips, about so many steps of the noise, and frames reduced by a factor."""

    clips: int
    steps: int
    factor: int

    def values(self, shape):
        """Numbers that a panel holds of clips of this shape (F, H, W, C)."""
        frames, height, width, c = shape
        moments = len({1, *steps_to_record(10**9, self.steps)} - {0})
        return self.clips * moments * frames * (height // self.factor) * (width // self.factor) * min(c, 4)


def room(shape) -> Room:
    """The most of clips (F, H, W, C) that fits into PANEL_VALUES: first fewer steps are shown, then fewer clips, then
    their frames are reduced by block means, to no less than a pixel.
    """
    for clips, steps in ((CLIPS, STEPS), (CLIPS, STEPS // 2), (4, STEPS // 2)):
        if (made := Room(clips, steps, 1)).values(shape) <= PANEL_VALUES:
            return made
    made = Room(1, STEPS // 2, 1)
    while made.values(shape) > PANEL_VALUES and made.factor < min(shape[1:3]):
        made = made._replace(factor=made.factor + 1)
    return made


def oversee(states, kept, shape):
    """The states of a sampler, unchanged; `kept` gets (step, steps, x, x0) of some of them, x of the first clips.

    shape: (F, H, W, C) of a clip; how many are kept: see `room`.
    """
    wanted, (clips, steps, _) = None, room(shape)
    for state in states:
        wanted = wanted or {1, *steps_to_record(state.steps, steps)}
        if state.step in wanted:
            kept.append((state.step, state.steps, to_host(state.x)[:clips], to_host(state.x0)[:clips]))
        yield state


def clips_section(kept, codec, data=None):
    """HTML: the clips as they emerge from the noise, beside the predicted clean clips. data: real clips."""
    columns = int(np.ceil(np.sqrt(len(kept[0][2]))))
    wait, factor = round(1000 / codec.rate), room(codec.shape).factor

    def sheet(clips):
        """(frames, height, width, C) of clips uint8, every moment's frames in a grid."""
        clips = shrink(visible(clips), factor)
        return np.stack([grid(clips[:, f], columns, scale=1) for f in range(clips.shape[1])])

    x, guess = (np.stack([sheet(codec.decode(k[part])) for k in kept]) for part in (2, 3))
    frames = x.shape[1]
    said = [
        f"after {step} of {steps} steps, frame {f + 1} of {frames}" for step, steps, *_ in kept for f in range(frames)
    ]
    panels = [("the clips so far", x), ("what the network takes them for", guess)]
    html = player(panels, said, "time", "noise", 3 * factor, wait)
    if data is not None and len(data):
        html += "<p>Clips of the data, at the same speed:</p>"
        html += player([("data", sheet(data))], scale=3 * factor, wait=wait)
    return embedded("In time", f"<p>The same way back, with the clips as clips.</p>{html}")
