"""How a run is displayed in a notebook."""

import base64
from pathlib import Path

from pydiff.report import loss
from pydiff.report.grid import grid, png_bytes
from pydiff.report.markup import number, text


def html_summary(name, pipeline, log, directory=None):
    """A run as HTML: its name, samples, training steps and loss curve.

    Shows directory/samples.png if there is one, else draws 9 samples. log: list of dicts.
    """
    stored = Path(directory) / "samples.png" if directory is not None else None
    if stored and stored.is_file():
        png = stored.read_bytes()
    else:
        png = png_bytes(grid(pipeline.codec.show(pipeline.sample(9))))
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    curve = loss.curve(log)
    state = f"{number(pipeline.parameters)} parameters"
    if len(curve.step):
        state += f", {number(int(curve.step[-1]))} steps, loss {curve.smooth[-1]:.3g}"
    return (
        f'<div style="font-family:system-ui,sans-serif"><b>{text(name)}</b><br>{state}<br>'
        f"{loss.sparkline(curve)}<br>"
        f'<img src="{source}" alt="samples" style="max-width:100%;image-rendering:pixelated"></div>'
    )
