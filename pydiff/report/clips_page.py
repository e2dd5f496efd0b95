"""The part of a page that plays clips: one slider for time, one for the denoising steps."""

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.grid import grid
from pydiff.report.story import embedded, player
from pydiff.report.trace import steps_to_record

CLIPS, STEPS = 9, 16  # clips and denoising steps that are shown


def oversee(states, kept, clips=CLIPS, steps=STEPS):
    """Passes the states of a sampler through; appends (step, steps, x, x0) of some, for the first clips, to `kept`."""
    wanted = None
    for state in states:
        wanted = wanted or {1, *steps_to_record(state.steps, steps)}
        if state.step in wanted:
            kept.append((state.step, state.steps, to_host(state.x)[:clips], to_host(state.x0)[:clips]))
        yield state


def clips_section(kept, codec, data=None):
    """HTML: the clips as they emerge from the noise, beside the predicted clean clips. data: real clips."""
    columns = int(np.ceil(np.sqrt(len(kept[0][2]))))
    wait = round(1000 / codec.rate)

    def sheets(arrays):
        """(steps, frames, height, width, C) from arrays of x, with the clips' frames in a grid."""
        decoded = [codec.decode(x) for x in arrays]
        return np.stack([np.stack([grid(c[:, f], columns, scale=2) for f in range(c.shape[1])]) for c in decoded])

    x, guess = sheets([k[2] for k in kept]), sheets([k[3] for k in kept])
    frames = x.shape[1]
    said = [
        f"after {step} of {steps} steps, frame {f + 1} of {frames}" for step, steps, *_ in kept for f in range(frames)
    ]
    panels = [("the clips so far", x), ("what the network takes them for", guess)]
    html = player(panels, said, "time", "noise", 1.5, wait)
    if data is not None and len(data):
        real = np.stack([grid(data[:, f], columns, scale=2) for f in range(data.shape[1])])
        html += "<p>Clips of the data, at the same speed:</p>" + player([("data", real)], scale=1.5, wait=wait)
    return embedded("In time", f"<p>The same way back, with the clips as clips.</p>{html}")
