"""Small pieces of HTML: escaping, images, sprite sheets. All text from the user passes through `text`."""

import base64
import html
import json
import math
import re

import numpy as np

from pydiff.report.grid import png_bytes

LARGEST_PIXELATED = 64  # images with a longer side are smoothed by the browser when it scales them


def text(value):
    """Any value as text that is safe inside an element and inside a quoted attribute."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def data_json(value):
    """JSON that is safe in a <script> element: no "<", and only numbers that JavaScript can parse (no NaN)."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def data_uri(image):
    """(H, W, C) uint8 as a data: URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def img(image, alt):
    """(H, W, C) uint8 as an <img>. alt is escaped here."""
    height, width = image.shape[:2]
    return f'<img class="image" src="{data_uri(image)}" width="{width}" height="{height}" alt="{text(alt)}">'


def sheet(name, images):
    """(R, N, H, W, C) uint8 as one <img id=name>: R rows of N images without gaps, for page.js to cut."""
    rows, n, height, width, channels = images.shape
    image = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, n * width, channels)
    return f'<img id="{name}" src="{data_uri(image)}" alt="">'


def canvas(images, **data):
    """An empty <canvas> with the size of one of the images (..., H, W, C), for page.js to draw in."""
    height, width = images.shape[-3:-1]
    attributes = "".join(f' data-{key}="{value}"' for key, value in data.items())
    return f'<canvas width="{width}" height="{height}" role="img"{attributes}></canvas>'


def kind(images):
    """CSS classes for a box of images (..., H, W, C): sharp pixels for small ones, a checkerboard for RGBA."""
    small = max(images.shape[-3:-1]) <= LARGEST_PIXELATED
    return " ".join(["pixels"] * small + ["alpha"] * (images.shape[-1] == 4))


def fill(template, values):
    """Replaces each {{name}} in one pass, so that braces inside a value stay. Raises KeyError for a missing name."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def number(value):
    """A value in short readable form: 1,797, 0.0002, 12.3; long lists by their length, other values as str."""
    if isinstance(value, (bool, np.bool_)) or value is None:
        return {True: "yes", False: "no", None: "none"}[value if value is None else bool(value)]
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"{len(value):,} values" if len(value) > 12 else ", ".join(map(number, value)) or "none"
    return str(value)


def duration(seconds):
    """A number of seconds in words, such as 42 s, 12 min or 3.4 h."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
