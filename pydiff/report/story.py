"""Pages with free content: sections of text, tables, images and players, in one file that loads nothing.

player([("the density", frames)], said=[...])      frames (T, H, W, C), or (S, T, H, W, C): a second slider for S
"""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from pydiff.report.markup import data_uri, fill, text
from pydiff.report.pixels import visible
from pydiff.store.files import write_atomic

WAIT = 120  # milliseconds per image


def write_story(path, name, lead, sections):
    """Writes the page, atomically. lead: a sentence or two. sections: pairs of heading and HTML. Returns the path."""
    parts = "".join(f"<section><h2>{text(heading)}</h2>{html}</section>" for heading, html in sections)
    values = {"css": _asset("page.css"), "more": _asset("story.css"), "js": _asset("story.js"), "sections": parts}
    page = fill(_asset("story.html"), {**values, "name": text(name), "lead": text(lead)})
    write_atomic(Path(path), page.encode("utf-8"))
    return Path(path)


def embedded(heading, html):
    """A section with players for a page of another kind, with the styles and the script that they need."""
    style, script = _asset("story.css"), _asset("story.js")
    return f"<section><style>{style}</style><h2>{text(heading)}</h2>{html}<script>{{{script}}}</script></section>"


def player(panels, said=(), across="time", down="step of the noise", scale: float = 1, wait=WAIT):
    """Panels that move together, as HTML. panels: (caption, frames) with frames (T, H, W, C) or (S, T, H, W, C) uint8.

    said: a line for each moment, S T of them, or none. across, down: names of the sliders. scale: CSS pixels per pixel.
    """
    figures, shape = "", (0, 0)
    for caption, frames in panels:
        frames = visible(np.asarray(frames))
        frames = frames[None] if frames.ndim == 4 else frames
        rows, columns, height, width, channels = frames.shape
        if shape not in ((0, 0), (rows, columns)):
            raise ValueError(f"panels of a player move together, and have {shape} and {(rows, columns)} images")
        shape = rows, columns
        sheet = frames.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
        figures += (
            f'<figure><canvas width="{width}" height="{height}" role="img" aria-label="{text(caption)}" '
            f'style="width:{width * scale}px"></canvas><img class="sheet" src="{data_uri(sheet)}" alt="">'
            f"<figcaption>{text(caption)}</figcaption></figure>"
        )
    rows, columns = shape
    if said and len(said) != rows * columns:
        raise ValueError(f"a player of {rows} x {columns} images was given {len(said)} lines to say")
    controls = _slider("column", across, columns, 0) + _slider("row", down, rows, rows - 1)
    return (
        f'<div class="player2" data-columns="{columns}" data-rows="{rows}" data-wait="{wait}" '
        f'data-said="{text(json.dumps(list(said)))}"><div class="panels2">{figures}</div>'
        f'<div class="controls2">{controls}<button type="button">Play</button>'
        f'<span class="said2" aria-live="polite"></span></div></div>'
    )


def _slider(name, label, count, value):
    if count < 2:
        return ""
    return (
        f"<label>{text(label)}</label>"
        f'<input type="range" name="{name}" min="0" max="{count - 1}" value="{value}" aria-label="{text(label)}">'
    )


def table(header, rows):
    """A table as HTML. header, rows: sequences of values, shown as text."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _asset(name):
    return (files("pydiff.report") / name).read_text("utf-8")
