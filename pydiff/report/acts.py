"""The opening of the page of `pydiff demo`: digits by the model that comes with pydiff, and how the user's model
learned.
"""

import base64
from typing import NamedTuple

from pydiff.report.markup import img, kind, number, text


class Moment(NamedTuple):
    """A moment of a training. step: its step number, as digits. png: a PNG file, as bytes, of what was drawn then."""

    step: str
    png: bytes


def section(images, took, moments) -> str:
    """The section as HTML. images: (N, H, W, C) uint8, of the digits 0 to 9 in turn. took: how long drawing them took.

    moments: Moments, in order.
    """
    drawn = "".join(
        f"<figure>{img(image, f'drawn {i % 10}')}<figcaption>{i % 10}</figcaption></figure>"
        for i, image in enumerate(images)
    )
    way = "".join(
        f'<figure><img class="image" alt="drawn after {number(int(step))} steps" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode("ascii")}"><figcaption>after {number(int(step))} steps</figcaption></figure>'
        for step, png in moments
    )
    learned = (
        "<p>Then a model of your own began with weights that knew nothing, and was asked to draw on the way:</p>"
        f'<div class="moments pixels">{way}</div>'
        "<p>The rest of this page is about that one.</p>"
    )
    return f"""<section id="acts">
<h2>Two models</h2>
<p>The first came with pydiff, already trained. These digits nobody wrote; it was told which digit to draw,
and drew them all in {text(took)}:</p>
<div class="gallery tens {kind(images)}">{drawn}</div>
{learned if moments else ""}
</section>"""
