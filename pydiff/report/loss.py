"""The loss curve: numbers from the training log, and an SVG that scales with the page."""

import math
from dataclasses import dataclass

import numpy as np

POINTS = 600  # as many as a screen can resolve


@dataclass(frozen=True)
class Curve:
    """At most POINTS points of a log: step, loss (means of neighbours) and smooth, (P,). skipped: entries left out."""

    step: np.ndarray
    loss: np.ndarray
    smooth: np.ndarray
    skipped: int

    @property
    def is_line(self):
        """Whether there are two points to draw a line through."""
        return len(self.step) > 1 and bool(self.step[-1] > self.step[0])


def curve(log):
    """The loss curve of a log, a list of dicts with "step" and "loss".

    Entries without a positive finite loss are left out and counted, as the axis is logarithmic. smooth is a centred
    moving average over 1/30 of the entries; unlike a trailing one, it does not lag.
    """
    step = np.array([row["step"] for row in log], np.float64)
    loss = np.array([row.get("loss") for row in log], np.float64)  # None becomes NaN
    good = np.isfinite(loss) & (loss > 0)
    step, loss = step[good], loss[good]
    smooth = _smooth(loss)
    if len(loss) > POINTS:
        starts = np.linspace(0, len(loss), POINTS, endpoint=False).astype(np.int64)
        counts = np.diff([*starts, len(loss)])
        last = starts + counts - 1
        step, loss, smooth = step[last], np.add.reduceat(loss, starts) / counts, smooth[last]
    return Curve(step, loss, smooth, int(np.count_nonzero(~good)))


def _smooth(values):
    """Centred means over 1/30 of all values; near the ends over fewer, equally many on both sides."""
    i, n = np.arange(len(values)), len(values)
    half = np.minimum(n // 60, np.minimum(i, n - 1 - i))
    total = np.append(0.0, np.cumsum(values))
    return (total[i + half + 1] - total[i - half]) / (2 * half + 1)


def log_ticks(low, high):
    """Round numbers (1, 2, 5 times powers of ten) in [low, high]; only the powers of ten if there are many decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    # 10.0 ** -2 is exact to the digit that is printed; the factor of 1 +- 1e-9 admits a limit that is a tick itself.
    return [f * 10.0**d for d in decades for f in factors if low * (1 - 1e-9) <= f * 10.0**d <= high * (1 + 1e-9)]


def step_ticks(first, last):
    """Three to eight round step numbers in [first, last], first < last: multiples of 1, 2 or 5 times a power of ten."""
    wanted = (last - first) / 8
    power = 10 ** math.floor(math.log10(wanted)) if wanted > 1 else 1
    interval = next(f * power for f in (1, 2, 5, 10) if f * power >= wanted)
    return range(math.ceil(first / interval) * interval, math.floor(last) + 1, interval)


def axis(loss):
    """Limits (low, high) of a logarithmic axis that shows all of `loss` with a small margin."""
    low, high = float(loss.min()), float(loss.max())
    room = max((high / low) ** 0.05, 1.05)
    return low / room, high * room


def path(x, y):
    """SVG path data through the points x (P,), y (P,), with one decimal."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def place(c, low, high, width, height):
    """Coordinates of the points of Curve c in a box of width x height, y down: x (P,), y of loss (P,), y of smooth
    (P,).
    """
    y = height * np.log(high / np.stack([c.loss, c.smooth])) / math.log(high / low)
    return width * (c.step - c.step[0]) / (c.step[-1] - c.step[0]), *y


def sparkline(c, width=240, height=48):
    """A small SVG of the smoothed curve without text, for a notebook. "" if there are fewer than 2 points."""
    if not c.is_line:
        return ""
    low, high = axis(c.smooth)
    x, _, y = place(c, low, high, width, height)
    label = f"loss from {c.smooth[0]:.3g} to {c.smooth[-1]:.3g}"
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<path d="{path(x, y)}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def chart(c, width=1000, height=320):
    """The page's loss curve as HTML: an SVG that stretches with its box, and labels of fixed size."""
    if not c.is_line:
        return '<p class="note">The log has fewer than two losses, so there is no curve yet.</p>'
    low, high = axis(np.concatenate([c.loss, c.smooth]))
    x, y_loss, y_smooth = place(c, low, high, width, height)
    ticks = log_ticks(low, high)
    y_ticks = [height * math.log(high / tick) / math.log(high / low) for tick in ticks]
    lines = "".join(f'<line x1="0" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in y_ticks)
    labels = "".join(
        f'<span class="y" style="top:{100 * y / height:.2f}%">{tick:g}</span>'
        for tick, y in zip(ticks, y_ticks, strict=True)
    )
    first, last = float(c.step[0]), float(c.step[-1])
    labels += "".join(
        f'<span class="x" style="left:{100 * (step - first) / (last - first):.2f}%">{step:,}</span>'
        for step in step_ticks(first, last)
    )
    ends = (f"{loss:.3g} at step {step:,.0f}" for loss, step in ((c.smooth[0], first), (c.smooth[-1], last)))
    summary = f"Loss over training steps: {', '.join(ends)}; arrow keys read values"
    return f"""<div class="chart" id="chart"><div class="plot" tabindex="0" role="group" aria-label="{summary}">
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">
<g class="gridlines">{lines}</g>
<path class="raw" d="{path(x, y_loss)}"/>
<path class="smooth" d="{path(x, y_smooth)}"/>
</svg>
{labels}<i class="cursor" hidden></i>
</div></div>"""
