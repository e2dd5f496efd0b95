"""The sections of the page as HTML, from plain arrays. page.css has their style, page.js their behaviour."""

from dataclasses import dataclass
from math import comb

import numpy as np

from pydiff.report.markup import canvas, img, kind, number, text

X_T, X_0, X_0_HAT = "<var>x<sub>t</sub></var>", "<var>x<sub>0</sub></var>", "<var>x̂<sub>0</sub></var>"
EPS, EPS_HAT = "<var>ε</var>", "<var>ε̂</var>"


@dataclass(frozen=True)
class Neighbours:
    """Each sample's nearest training image.

    images: (N, H, W, C) uint8. index: (N,) int in the data set. distance: (N,) float. usual: (R,) float, distances
    from some training images to their nearest other one, R may be 0. note: a sentence on what was searched, or "".
    """

    images: np.ndarray
    index: np.ndarray
    distance: np.ndarray
    usual: np.ndarray
    note: str = ""


def facts(values):
    """A list of terms and their descriptions, {str: str}, as HTML."""
    return "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in values.items())


def commands(rows):
    """Pairs (what a command does, the command) as HTML."""
    return "".join(f"<dt>{text(what)}</dt><dd><pre><code>{text(command)}</code></pre></dd>" for what, command in rows)


def options(config):
    """Rows of an HTML table for a dict of options; nested dicts get dotted names."""
    return "".join(f"<tr><th>{text(key)}</th><td>{text(number(value))}</td></tr>" for key, value in _flat(config))


def _flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def note(sentence):
    """A sentence under a section, as HTML; nothing for ""."""
    return f'<p class="note">{text(sentence[:1].upper() + sentence[1:])}.</p>' if sentence else ""


def gallery(images, captions):
    """Images (M, H, W, C) with captions, M strings or None, as HTML."""
    figures = ""
    for i, image in enumerate(images):
        alt, caption = f"training image {i + 1}", ""
        if captions:
            alt, caption = f"{alt}, {captions[i]}", f"<figcaption>{text(captions[i])}</figcaption>"
        figures += f"<figure>{img(image, alt)}{caption}</figure>"
    told = " told" if captions else ""
    return f'<div class="gallery {kind(images)}{told}">{figures}</div>' if figures else ""


def forward(process):
    """The forward process: choose an image, see x_t as a sum, move a slider for t. process: Forward."""
    names = [f"training image {i + 1}" for i in range(len(process.x0))]
    thumbnails = [img(image, name) for image, name in zip(process.x0, names, strict=True)]
    x, x0, eps = (
        _panel(process.x0, show, caption)
        for show, caption in (("x", f"{X_T} noisy"), ("x0", f"{X_0} clean"), ("eps", f"{EPS} noise"))
    )
    preserving = np.allclose(process.alpha**2 + process.sigma**2, 1, rtol=0, atol=1e-6)
    share = "<var>ᾱ<sub>t</sub></var>" if preserving else "<var>α<sub>t</sub></var>²"
    meaning = ", the share of the image in the variance" if preserving else ""
    last = len(process.t) - 1
    strip = "".join(
        _moment(k, process.x0, f"<var>t</var> = {process.t[k]}<br>{share} = {_short(process.alpha[k] ** 2)}")
        for k in np.unique(np.linspace(0, last, 9).round().astype(int))
    )
    return f"""<div class="{kind(process.x0)}">
{_choice("image", "Choose an image", names, thumbnails)}
<div class="equation">
{x}<span class="op">= <output name="alpha"></output> ×</span>
{x0}<span class="op">+ <output name="sigma"></output> ×</span>
{eps}
</div>
<div class="player single"><div class="track">
<input type="range" min="0" max="{last}" value="{last // 3}" aria-label="time t of the forward process">
<p class="readout"><var>t</var> = <b><output name="t"></output></b>,
{share} = <b><output name="share"></output></b>{meaning}</p>
</div></div>
<div class="strip">{strip}</div>
</div>
<p class="note">Images are shown from −1 (black) to 1 (white), noise from −3 to 3 standard deviations.</p>"""


def reverse(trace, sampler):
    """The reverse process: all samples at one step, the predictions for one, a slider, the lecture's moments."""
    n, last = trace.x.shape[1], len(trace.steps) - 1
    names = [f"sample {i + 1}" for i in range(n)]
    panels = "".join(
        _panel(trace.x, show, caption)
        for show, caption in (
            ("x", f"{X_T} the image so far"),
            ("eps", f"{EPS_HAT} predicted noise"),
            ("x0", f"{X_0_HAT} predicted clean image"),
        )
    )
    ticks = moments = ""
    for thousandths, k in trace.marks().items():
        ticks += (
            f'<button class="tick" type="button" style="--at:{k / max(last, 1):.4f}" data-position="{k}" '
            f'aria-label="after {thousandths} of 1000 steps">{thousandths}</button>'
        )
        when = f"{thousandths} steps" if trace.total == 1000 else f"{thousandths / 10:g} %"
        moments += _moment(k, trace.x, f"after {when}")
    scale = (
        ""
        if trace.total == 1000
        else (f"This sampler takes {number(trace.total)} steps; the marks stand for the same fractions of its way.")
    )
    return f"""<div class="{kind(trace.x)}">
<div class="stage" style="--columns:{int(np.ceil(np.sqrt(n)))}">
{_choice("sample", "Choose a sample", names, [canvas(trace.x, column=i) for i in range(n)])}
<div class="panels">{panels}</div>
</div>
<div class="player">
<button class="play" type="button">Play</button>
<div class="track">
<input type="range" min="0" max="{last}" value="{last}" aria-label="step of the reverse process">
<div class="ticks">{ticks}</div>
<p class="readout">After <b><output name="step"></output></b> of {number(trace.total)} steps,
<var>t</var> = <output name="t"></output></p>
</div>
</div>
<div class="moments">{moments}</div>
</div>
<p class="note">Sampler: {text(sampler)}. In the lecture, nothing could be recognised after 700 of 1000 steps, a face
began to show after 800, and after 1000 the image was finished. When does yours appear? {scale}</p>"""


def _choice(name, legend, labels, contents):
    """Radio buttons in the form of images, the first one selected. contents: HTML for each label."""
    buttons = ""
    for i, (label, content) in enumerate(zip(labels, contents, strict=True)):
        state = " checked" if i == 0 else ""
        buttons += f'<label><input type="radio" name="{name}" value="{i}" aria-label="{label}"{state}>{content}</label>'
    return f'<fieldset><legend>{legend}</legend><div class="choice">{buttons}</div></fieldset>'


def _panel(images, show, caption):
    return f"<figure>{canvas(images, show=show)}<figcaption>{caption}</figcaption></figure>"


def _moment(k, images, caption):
    return (
        f'<button class="chosen" type="button" data-position="{k}">{canvas(images)}'
        f'<span class="caption">{caption}</span></button>'
    )


def _short(value):
    return f"{value:.2f}" if value >= 0.005 or value == 0 else f"{value:.1g}"


def samples(images, near, prompts=None):
    """Samples (N, H, W, C) with their Neighbours and prompts, N or None; a plot of distances, and a verdict.

    near: None if the training data are not available.
    """
    if near is None:
        captions = [text(prompt) for prompt in prompts] if prompts else [""] * len(images)
        figures = "".join(
            f"<figure>{img(image, f'sample {i + 1}')}<figcaption>{caption}</figcaption></figure>"
            for i, (image, caption) in enumerate(zip(images, captions, strict=True))
        )
        unsearched = "The training images are not all here, so nothing is said of which of them are nearest"
        return f'<div class="pairs {kind(images)}">{figures}</div>{note(unsearched)}'
    threshold = np.quantile(near.usual, 0.05) if near.usual.size else 0.0
    close = near.distance < threshold
    figures = ""
    for i, image in enumerate(images):
        found = f"training image {near.index[i]}, the nearest to sample {i + 1}"
        asked = f"{text(prompts[i])}<br>" if prompts else ""
        figures += (
            f"<figure{' class=near' if close[i] else ''}>{img(image, f'sample {i + 1}')}"
            f"{img(near.images[i], found)}"
            f"<figcaption>{asked}{near.distance[i]:#.3g}<br>#{near.index[i]}</figcaption></figure>"
        )
    end = 1.04 * float(np.concatenate([near.distance, near.usual]).max()) or 1.0
    verdict = f"<p>{_verdict(int(close.sum()), len(close))}</p>" if near.usual.size else ""
    return f"""<div class="pairs {kind(images)}{" told" if prompts else ""}">{figures}</div>
<p class="note">Above: the sample. Below: the training image nearest to it, their L2 distance over pixels in [−1, 1],
and the number of the training image. {text(near.note)}</p>
<div class="dots">
{_dots("Samples to the nearest training image", "own", near.distance, end)}
{_dots("Training images to the nearest other one", "others", near.usual, end)}
<div class="scale"><span>0</span><span>distance {end:.3g}</span></div>
</div>
{verdict}"""


def _dots(title, css, values, end):
    if not values.size:
        return ""
    dots = "".join(f'<i style="left:{100 * value / end:.2f}%"></i>' for value in values)
    return f'{title}<div class="{css}" role="img" aria-label="{title}: median {np.median(values):.3g}">{dots}</div>'


def _verdict(close, n):
    """A sentence on whether more samples are near to training images than the one in twenty that is usual."""
    chance = sum(comb(n, k) * 0.05**k * 0.95 ** (n - k) for k in range(close, n + 1))  # of at least this many
    said = (
        f"{close} of {n} samples are nearer to a training image than 95 % of the training images are to each "
        "other; of new images from the same source, about one in twenty would be."
    )
    if chance < 0.01:
        return f"{said} That is more than chance explains: look at the pairs in bold, the model may be copying."
    return f"{said} That is no sign of copying."
