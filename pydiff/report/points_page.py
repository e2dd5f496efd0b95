"""The page of a run on points: the data, the film of particles to noise and back, new points, and the loss."""

import numpy as np

from pydiff import random
from pydiff.arrays import to_host
from pydiff.report import loss, sections
from pydiff.report.film import save_film
from pydiff.report.grid import save_png
from pydiff.report.nearest import spread
from pydiff.report.particles import cloud, rainbow
from pydiff.report.story import player, write_story
from pydiff.report.trace import steps_to_record

SHOWN, MOMENTS, REACH = 1500, 41, 3.5


def write_points_page(pipeline, dataset, directory, *, log, options, facts, name, n, seed, sampler, steps):
    """Draws the particles' film and writes report.html, samples.png and the film. Returns the page's path.

    n: points drawn for samples.png and the page, at least SHOWN. dataset: None if the data are missing. The other
    arguments: as for write_report.
    """
    codec, count = pipeline.codec, max(n, SHOWN)
    back, back_said, drawn = reverse_film(pipeline, count, seed, sampler, steps)
    shown = drawn if dataset is None else dataset.samples(spread(len(dataset), count))
    x0 = codec.encode(shown)
    forth, forth_said = forward_film(x0, pipeline.process.schedule, seed)
    save_png(directory / "samples.png", back[-1])
    save_film(directory / "film", [*forth, *back])
    forth_player = player([("data to noise", np.stack(forth))], forth_said, across="t")
    clouds = [cloud(codec.encode(a), np.full((len(a), 3), 40), REACH)[None] for a in (shown, drawn)]
    pair = [("data", clouds[0]), ("drawn", clouds[1])][dataset is None :]
    told = f"<dl class='facts'>{sections.facts(facts)}</dl>"
    table = f"<div class='scroll'><table>{sections.options(options)}</table></div>"
    parts = [
        ("The data, and new points", player(pair) + told),
        ("Forth", f"<p>Every particle moves at random; the colours show where each began.</p>{forth_player}"),
        (
            "Back",
            "<p>From noise alone, the network leads every particle back to where the data are; the colours show where "
            f"each ends.</p>{player([('noise to data', np.stack(back))], back_said, across='step')}",
        ),
        (
            "Training",
            f"{loss.chart(loss.curve(log))}<details><summary>All options of this run</summary>{table}</details>",
        ),
    ]
    lead = (
        "Points that diffuse. Noise spreads them until nothing of their shape is left, and a network that has learned "
        "to recognise the noise takes it away again."
    )
    return write_story(directory / "report.html", name, lead, parts)


def forward_film(x0, schedule, seed, moments=MOMENTS):
    """(frames, a caption for each): the particles x0 (N, D) on their way to noise.

    Step by step, by q(x_t | x_s), so that every particle does a random walk and does not jump.
    """
    ts = np.unique(np.linspace(0, schedule.T - 1, moments).round().astype(int))
    colours, x = rainbow(np.arctan2(x0[:, -1], x0[:, 0])), np.asarray(x0, np.float64)
    frames, said, before = [cloud(x, colours, REACH)], ["t = 0, the data"], (1.0, 0.0)
    for t in ts:
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        ratio = alpha / before[0]
        key = random.key(seed, random.NOISE, np.arange(len(x)), int(t))
        std = np.sqrt(max(sigma**2 - (ratio * before[1]) ** 2, 0.0))
        x = ratio * x + std * random.normal(key, x.shape[1:], np.float64)
        before = alpha, sigma
        frames.append(cloud(x, colours, REACH))
        said.append(f"t = {t}: {alpha:.3f} of the data, {sigma:.3f} of noise")
    return frames, said


def reverse_film(pipeline, count, seed, sampler, steps, moments=MOMENTS):
    """(frames, a caption for each, the points drawn): particles on their way back, coloured by where they end."""
    wanted, kept = None, []
    for state in pipeline.sample_states(count, seed, sampler, steps):
        wanted = wanted or {1, *steps_to_record(state.steps, moments)}
        if state.step in wanted:
            kept.append((state.step, state.steps, to_host(state.x)))
    end = kept[-1][2]
    colours = rainbow(np.arctan2(end[:, -1], end[:, 0]))
    frames = [cloud(x, colours, REACH) for _, _, x in kept]
    return frames, [f"after {step} of {steps} steps" for step, steps, _ in kept], pipeline.codec.decode(end)
