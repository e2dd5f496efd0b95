"""What a run shows of itself in a notebook."""

import base64
from pathlib import Path

from pydiff.report import loss
from pydiff.report.grid import grid, png_bytes
from pydiff.report.markup import number, text


def html_summary(run):
    """A run as HTML: its name, samples, training steps and loss curve.

    Shows the samples.png of run.directory where there is one, and draws 9 samples otherwise.
    run: name, directory (or None), parameters (int), log() (list of dicts), sample(n) -> (n, H, W, C) uint8.
    """
    stored = Path(run.directory) / "samples.png" if run.directory is not None else None
    png = stored.read_bytes() if stored and stored.is_file() else png_bytes(grid(run.sample(9)))
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    curve = loss.curve(run.log())
    state = f"{number(run.parameters)} parameters"
    if len(curve.step):
        state += f", {number(int(curve.step[-1]))} steps, loss {curve.smooth[-1]:.3g}"
    return (
        f'<div style="font-family:system-ui,sans-serif"><b>{text(run.name)}</b><br>{state}<br>'
        f"{loss.sparkline(curve)}<br>"
        f'<img src="{source}" alt="samples" style="max-width:100%;image-rendering:pixelated"></div>'
    )
