"""One self-contained HTML page that tells a run's story: data, forward process, training, reverse process, samples.

`write_page` needs only arrays and dicts; `pydiff.report.write_report` fills a Page from a Run.
The file loads nothing: images are data: URLs, and its Content-Security-Policy forbids everything else.
"""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np

from pydiff.report import loss, sections, words
from pydiff.report.forward import Forward
from pydiff.report.markup import data_json, fill, number, sheet, text
from pydiff.report.pixels import visible
from pydiff.report.sections import Neighbours
from pydiff.report.trace import Trace
from pydiff.report.words import Grid
from pydiff.store.files import write_atomic

# What the network is trained to predict, in words for the page.
TARGETS = {
    "eps": "the noise that was added",
    "x0": "the clean image, and so also the noise",
    "v": "<var>v</var> = <var>α<sub>t</sub></var> <var>ε</var> − <var>σ<sub>t</sub></var> <var>x<sub>0</sub></var>, "
    "which tells the noise and the clean image apart",
    "flow": "<var>ε</var> − <var>x<sub>0</sub></var>, the way from the image to the noise",
    "edm": "the clean image, mixed with the noise so that the answer is of the same size at every <var>t</var>",
    "edm_v": "the clean image, mixed with the noise so that the answer is of the same size at every <var>t</var>",
}


@dataclass(frozen=True)
class Page:
    """The contents of the page. Images are uint8, channels last; N samples, M training images.

    name: title. facts: {term: description} below it. training: (M, H, W, C), captions: M strings or None. log: list of
    dicts with "step" and "loss". options: (nested) dict. samples: (N, H, W, C). sampler: a few words. commands: pairs
    (what it does, command). prediction: what the network was trained to predict, a key of TARGETS. prompts: what each
    sample was asked to be, N strings, or None. note: why the training data are not complete, or "". noun: what a sample
    is called. listen: HTML of a section with sounds, see listen.py, or "". opening: HTML of a section before all
    others, see acts.py, or "". forward, trace, neighbours: see their classes; neighbours is None if the training data
    are not complete. attributes, looks: see words.py.
    """

    name: str
    facts: dict
    training: np.ndarray
    captions: list | None
    forward: Forward
    log: list
    options: dict
    trace: Trace
    sampler: str
    samples: np.ndarray
    neighbours: Neighbours | None
    commands: list = field(default_factory=list)
    prediction: str = "eps"
    prompts: list | None = None
    attributes: Grid | None = None
    looks: list = field(default_factory=list)
    note: str = ""
    noun: str = "image"
    listen: str = ""
    opening: str = ""


def write_page(path, page):
    """Writes a Page as one HTML file, atomically. Returns the path. The same Page gives the same bytes."""
    path = Path(path)
    write_atomic(path, render(page).encode("utf-8"))
    return path


def render(page):
    """A Page as the text of one HTML file."""
    curve = loss.curve(page.log)
    return fill(
        _told(asset("page.html"), page.noun),
        {
            "css": asset("page.css"),
            "js": asset("page.js"),
            "name": text(page.name),
            "facts": sections.facts(page.facts),
            "opening": page.opening,
            "data": sections.gallery(visible(page.training), page.captions) + sections.note(page.note),
            "forward": sections.forward(page.forward),
            "target": _told(TARGETS[page.prediction], page.noun),
            "loss": training(curve),
            "options": sections.options(page.options),
            "reverse": sections.reverse(page.trace, page.sampler),
            "listen": page.listen,
            "samples": sections.samples(visible(page.samples), page.neighbours, page.prompts),
            "words": words.section(page.attributes, page.looks),
            "commands": sections.commands(page.commands),
            "sprites": _sprites(page.forward, page.trace),
            "numbers": data_json(_numbers(page.forward, page.trace, curve)),
        },
    )


def _told(prose, noun):
    """The page's prose with "image" replaced by another noun, such as "sound"."""
    return prose.replace("an image", f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}").replace("image", noun)


def asset(name):
    """The text of a file of this package."""
    return (files("pydiff.report") / name).read_text("utf-8")


def training(curve):
    """The loss.Curve of a training as HTML, with a note."""
    if not curve.is_line:
        return loss.chart(curve)
    skipped = f" {number(curve.skipped)} steps without a positive finite loss are left out." if curve.skipped else ""
    return f"""{loss.chart(curve)}
<p class="readout" id="loss-readout" aria-live="polite">Point at the curve, or focus it and use the arrow keys.</p>
<p class="note">Thin: the loss over the training steps, on a logarithmic axis. Thick: smoothed.{skipped}</p>
"""


def _sprites(forward, trace):
    sheets = [sheet(f"trace-{name}", getattr(trace, name)) for name in ("x", "x0", "eps")]
    sheets += [sheet("forward-x", forward.x)]
    sheets += [sheet(f"forward-{name}", getattr(forward, name)[None]) for name in ("x0", "eps")]
    return "".join(sheets)


def _numbers(forward, trace, curve):
    """The numbers that page.js computes with."""
    return {
        "forward": {"t": forward.t.tolist(), "alpha": _rounded(forward.alpha), "sigma": _rounded(forward.sigma)},
        "trace": {"steps": trace.steps.tolist(), "t": trace.t.tolist(), "total": int(trace.total)},
        "loss": loss_numbers(curve),
    }


def loss_numbers(curve):
    """What page.js shows of a loss.Curve at the pointer; None if there is no line."""
    names = ("step", "loss", "smooth")
    return {name: _rounded(getattr(curve, name)) for name in names} if curve.is_line else None


def _rounded(values):
    return [float(f"{value:.6g}") for value in values]
