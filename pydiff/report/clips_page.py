"""The part of a page that plays clips: one slider for time, one for the denoising steps.

Noise cannot be compressed, so the size of a panel is bounded: see `room`.
"""

from typing import NamedTuple

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.grid import grid
from pydiff.report.pixels import shrink, visible
from pydiff.report.story import embedded, player
from pydiff.report.trace import steps_to_record

CLIPS = 9  # that are shown, if they are small
STEPS = 16  # denoising steps that are shown, about
PANEL_VALUES = 650_000  # in a panel's clips; noise takes about one byte per value on the page


class Room(NamedTuple):
    """What a panel shows: this many clips and, about, denoising steps; frames reduced in size by a factor."""

    clips: int
    steps: int
    factor: int

    def values(self, shape):
        """The number of values in a panel of clips of this shape (F, H, W, C)."""
        frames, height, width, c = shape
        moments = len({1, *steps_to_record(10**9, self.steps)} - {0})
        return self.clips * moments * frames * (height // self.factor) * (width // self.factor) * min(c, 4)


def room(shape) -> Room:
    """The largest Room for clips (F, H, W, C) within PANEL_VALUES: first fewer steps are shown, then fewer clips, then
    the frames are reduced by block means, at most to one pixel.
    """
    for clips, steps in ((CLIPS, STEPS), (CLIPS, STEPS // 2), (4, STEPS // 2)):
        if (made := Room(clips, steps, 1)).values(shape) <= PANEL_VALUES:
            return made
    made = Room(1, STEPS // 2, 1)
    while made.values(shape) > PANEL_VALUES and made.factor < min(shape[1:3]):
        made = made._replace(factor=made.factor + 1)
    return made


def oversee(states, kept, shape):
    """Passes the states of a sampler through; appends (step, steps, x, x0) of some, for the first clips, to `kept`.

    shape: (F, H, W, C) of a clip, from which `room` determines how many are kept.
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
        """(frames, height, width, C) of clips uint8, the frames of each moment in a grid."""
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
