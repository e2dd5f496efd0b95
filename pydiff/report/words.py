"""The page's section on words: a grid over two attributes of prompts, and the attention to each word, step by step."""

from dataclasses import dataclass

import numpy as np

from pydiff.arrays import to_host
from pydiff.backend import use_device
from pydiff.report.attributes import Attributes
from pydiff.report.looks import listen, maps
from pydiff.report.markup import img, kind, text
from pydiff.report.pixels import visible

MOMENTS = 6  # steps at which the attention is recorded
SHOWN = 3  # samples whose words are shown
WORDS = 12  # of a prompt, at most
COLOURS = np.array([[0.06, 0.09, 0.16], [0.06, 0.42, 0.41], [0.98, 0.93, 0.62]])  # dark, middle, bright


@dataclass(frozen=True)
class Looks:
    """The attention to the words of one prompt. words: W of them. steps: (S,) denoising steps done before. x0: (S, H,
    W, C) uint8, the clean image that the network predicted then. shares: (S, W, h, w), each word's weight in a pixel's
    attention.
    """

    prompt: str
    words: list[str]
    steps: np.ndarray
    x0: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Grid:
    """One image for each prompt of `attributes`, row by row, all from the same noise: (R · C, H, W, C) uint8."""

    attributes: Attributes
    images: np.ndarray
    told: str


def looks(pipeline, prompts, seed, steps, guidance, count=SHOWN) -> list[Looks]:
    """The attention to the words of the first prompts while samples 0, 1, .. are drawn by ddim. [] for a network whose
    attention cannot be observed, or an encoder that does not name its states.
    """
    encoder, network = pipeline.conditioning.encoder, pipeline.model
    if encoder is None or "context" not in getattr(network, "fixed", ()):
        return []
    if pipeline.self_conditioning or pipeline.process.preconditioned or pipeline.scheduler is not None:
        return []  # the network's input then differs from the x of the sampler
    numbers = np.arange(len(prompts))
    chosen = [i for i in numbers if len(encoder.rows(prompts[i])) > 0 and "[" not in prompts[i]][:count]
    if not chosen:
        return []
    asked = pipeline.conditioning.rows(numbers, prompts=prompts).take(np.array(chosen))
    states = pipeline.sample_states(np.array(chosen), seed, "ddim", steps, asked, guidance)
    wanted = set(np.unique(np.linspace(1, steps, MOMENTS).round().astype(int)).tolist())
    heard, x = [], None
    for state in states:
        if state.step in wanted:
            if x is None:  # the initial noise, see trace.record
                alpha, sigma = (
                    to_host(a)[state.t] for a in (pipeline.process.schedule.alpha, pipeline.process.schedule.sigma)
                )
                x = (alpha * state.x0 + sigma * state.eps).astype(state.x0.dtype)
            with use_device(pipeline.device) as xp:
                t = np.full(len(chosen), state.t)
                one = listen(network, xp.asarray(x, state.x.dtype), t, **asked.to(xp))
            if not one:
                return []
            image = visible(pipeline.codec.show_x(to_host(state.x0)))
            heard.append((state.step - 1, image, maps(one, x.shape[1:3])))
        x = state.x
    when, images, shares = (np.stack(column) for column in zip(*heard, strict=True))
    found = []
    for row, i in enumerate(chosen):
        words = encoder.rows(prompts[i])[:WORDS]
        found.append(Looks(prompts[i], words, when, images[:, row], shares[:, row, : len(words)]))
    return found


def section(grid: Grid | None, found: list[Looks]) -> str:
    """The section as HTML; "" if there is nothing to show."""
    parts = [_grid(grid)] if grid is not None else []
    if found:
        parts.append(_looks(found))
    if not parts:
        return ""
    return f"""<section id="words">
<h2>Words</h2>
<p>What to draw is told in words: each became a vector, and every pixel looks at all of them.</p>
{"".join(parts)}
</section>
"""


def _grid(grid):
    attributes, images = grid.attributes, iter(zip(grid.attributes.prompts(), grid.images, strict=True))
    head = "".join(f"<th scope=col>{text(column)}</th>" for column in attributes.columns)
    rows = ""
    for row in attributes.rows:
        cells = ""
        for prompt, image in (next(images) for _ in attributes.columns):
            new = attributes.known is not None and prompt not in attributes.known
            cells += f"<td{' class=new' if new else ''}>{img(image, prompt)}</td>"
        rows += f"<tr><th scope=row>{text(row)}</th>{cells}</tr>"
    pattern = text(attributes.pattern).replace("{}", "…")
    note = ""
    if attributes.known is not None:
        count = sum(prompt not in attributes.known for prompt in attributes.prompts())
        note = " All of these prompts are captions of the data."
        if count:
            note = f" Framed: {count} prompts that are no captions of the data, so that they were never seen."
    return f"""<h3>Two attributes</h3>
<p>“{pattern}”, with all else the same, the noise included.</p>
<div class="scroll"><table class="attributes {kind(grid.images)}"><tr><td></td>{head}</tr>{rows}</table></div>
<p class="note">{text(grid.told)}.{note}</p>
"""


def _looks(found):
    figures = ""
    for one in found:
        largest = max(float(one.shares.max()), 1e-12)
        when = "".join(f"<th scope=col>{'start' if step == 0 else f'after {step}'}</th>" for step in one.steps)
        images = "".join(f"<td>{img(image, 'predicted clean image')}</td>" for image in one.x0)
        rows = ""
        for i, word in enumerate(one.words):
            cells = "".join(f"<td>{_heat(one.shares[k, i], largest, word)}</td>" for k in range(len(one.steps)))
            rows += f"<tr><th scope=row>{text(word)}</th>{cells}</tr>"
        figures += f"""<figure><figcaption>{text(one.prompt)}</figcaption><div class="scroll">
<table class="looks pixels"><tr><td></td>{when}</tr><tr><th scope=row>the image so far</th>{images}</tr>{rows}</table>
</div><p class="note">Bright: {largest:.0%} of a pixel's attention; dark: none.</p></figure>"""
    return f"""<h3>Which word looks where</h3>
<p>The shares of their attention that the pixels give to each word, the mean over all layers and heads, at some of the
steps. What is missing to 100 % goes to places behind the prompt that are filled up.</p>
{figures}"""


def _heat(share, largest, word):
    """A map (h, w) of weights as a coloured image, in HTML."""
    x = np.clip(share / largest, 0, 1)[..., None] * (len(COLOURS) - 1)
    below = np.minimum(x.astype(int), len(COLOURS) - 2)
    mixed = COLOURS[below[..., 0]] * (1 - (x - below)) + COLOURS[below[..., 0] + 1] * (x - below)
    return img(np.rint(mixed * 255).astype(np.uint8), f"where {word} is looked at")
