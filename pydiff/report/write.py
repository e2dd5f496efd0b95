"""Writes the files of a report: report.html, the denoising film and the grid of samples."""

import math
import warnings

import numpy as np

from pydiff import memory, random
from pydiff.formats.files import folder_path
from pydiff.pipeline import how_many
from pydiff.printed import typed
from pydiff.report import attributes as patterns
from pydiff.report import listen, words
from pydiff.report.clips_page import clips_section, oversee, room
from pydiff.report.film import save_film
from pydiff.report.forward import add_noise
from pydiff.report.grid import grid, save_png
from pydiff.report.markup import duration, number
from pydiff.report.nearest import nearest, spread
from pydiff.report.page import Page, write_page
from pydiff.report.pixels import shrink, visible
from pydiff.report.points_page import write_points_page
from pydiff.report.sections import Neighbours
from pydiff.report.trace import record
from pydiff.sound.codec import SoundCodec
from pydiff.text import PromptWarning

SLIDER_VALUES = 1_500_000  # for x, x0, eps and the forward process each: keeps the page at a few megabytes
SEARCH_VALUES = 500_000_000  # of training pixels compared with the samples: a few seconds
FRAMES = 120  # a page has no more images than that of each sample: its way from noise, several times
LONG = 80  # characters of a caption under an image
SMALL, MEDIUM = 64, 128  # longest sides of images on the page; larger ones are reduced by block means

# What `write_report` is told by the run itself; all else are options.
OF_THE_RUN = ("pipeline", "dataset", "directory", "name", "log", "step", "options", "whole", "note", "count")


def write_report(
    pipeline, dataset, directory, *, name, log, step, options, n=16, seed=0, sampler="ddpm", steps=None, prompts=None,
    guidance=1.0, attributes=None, whole=True, note="", count=None, opening="",
):  # fmt: skip
    """Draws n samples and writes samples.png, film.webp (or .gif) and report.html. Returns the path of report.html.

    pipeline: the Pipeline to sample from. dataset: what it was trained on, or None. whole: False if that is only a few
    of the samples, among which no neighbours are searched; note then says why, and count how many there were. name, log
    (list of dicts), step, options: of the training. steps: of the sampler, by default 250, or all T if they are fewer.
    prompts: n of them or one for all, for a pipeline with a text encoder; None takes captions of the data. attributes:
    a pattern such as "{red,green} {heart,book}" for a grid of prompts; None derives one from the captions. opening:
    HTML of a section to begin with. Shows a progress bar while it samples.
    """
    from tqdm import tqdm

    how_many(n)
    memory.check_many(n, FRAMES * math.prod(pipeline.codec.image_shape), pipeline.codec.noun)
    directory = folder_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    codec, schedule = pipeline.codec, pipeline.process.schedule
    steps = min(250, schedule.T) if steps is None else steps
    if codec.kind == "points":
        facts = _facts(pipeline, dataset, log, step, count)
        told = {"name": name, "log": log, "options": options, "facts": facts, "sampler": sampler, "steps": steps}
        return write_points_page(pipeline, dataset, directory, n=n, seed=seed, **told)
    taken = min(50, schedule.T)  # steps for the section on words
    attributes = _attributes(pipeline, dataset, attributes)
    prompts = _prompts(pipeline.conditioning, dataset, n, prompts)
    asked = pipeline.conditioning.rows(np.arange(n), prompts=prompts)
    states = tqdm(
        pipeline.sample_states(n, seed, sampler, steps, asked, guidance),
        total=steps,
        desc="sampling",
        unit="step",
        delay=1,
        disable=None,
        leave=False,
    )
    if dataset is None:
        training, captions = codec.show_x(np.zeros((1, *codec.shape), np.float32))[:0], None
    else:
        shown = spread(len(dataset), 36)
        training, captions = codec.show(dataset.samples(shown)), _short(dataset.titles(shown))
    heard = listen.Heard([], [], []) if isinstance(codec, SoundCodec) else None
    states = states if heard is None else listen.overhear(states, codec, heard)
    overseen, kept = [], codec.kind == "frames"
    states = oversee(states, overseen, codec.shape) if kept else states
    trace, x = record(states, codec, schedule=schedule, **budget(n, training.shape[1:], values=slider_values(codec)))
    drawn = codec.decode(x)
    samples = codec.show(drawn)
    save_png(directory / "samples.png", grid(samples))
    save_film(directory / "film", [grid(frame) for frame in trace.x])
    more = _in_time(codec, dataset, overseen) if kept else ""
    more = more if heard is None else _listen(pipeline, drawn, asked, dataset, heard)
    page = Page(
        name=name,
        facts=_facts(pipeline, dataset, log, step, count),
        training=reduced(training, SMALL),
        captions=captions,
        forward=_forward(codec, drawn if dataset is None else dataset, schedule, seed, training.shape[1:]),
        log=log,
        options=options,
        trace=trace,
        sampler=f"{sampler}, {number(steps)} steps, seed {seed}{f', guidance {guidance:g}' if guidance != 1 else ''}",
        prompts=_short(prompts),
        samples=reduced(visible(samples), MEDIUM),
        neighbours=neighbours(samples, dataset, codec) if dataset is not None and whole else None,
        commands=_commands(directory, None if dataset is None else dataset.name, samples.shape),
        note=note,
        prediction=pipeline.process.prediction,
        attributes=_grid(pipeline, attributes, seed, taken, guidance),
        looks=[] if prompts is None or kept else words.looks(pipeline, prompts, seed, taken, guidance),
        noun=codec.noun,
        listen=more,
        opening=opening,
    )
    return write_page(directory / "report.html", page)


def _in_time(codec, dataset, overseen):
    data = None if dataset is None else dataset.samples(spread(len(dataset), room(codec.shape).clips))
    return clips_section(overseen, codec, data)


def _listen(pipeline, drawn, asked, dataset, heard):
    classes = pipeline.conditioning.classes
    wanted = None if classes is None else [classes[number] for number in asked["class_labels"]]
    if dataset is None:
        return listen.section(pipeline.codec, drawn, wanted, drawn[:0], None, heard)
    shown = spread(len(dataset), listen.SHOWN)
    titles = _short(dataset.titles(shown))
    return listen.section(pipeline.codec, drawn, wanted, dataset.samples(shown), titles, heard)


def _prompts(conditioning, dataset, n, given):
    """n prompts, or None for a pipeline without a text encoder."""
    encoder = conditioning.encoder
    if given is not None or encoder is None:
        return [given] * n if isinstance(given, str) else given
    if dataset is None:
        return [""] * n
    understood = dataset if encoder.languages is None else dataset.in_languages(encoder.languages)
    captions = [row[0] for row in understood.captions or () if row]
    return [captions[i] for i in spread(len(captions), n)] if len(captions) >= n else [""] * n


def _attributes(pipeline, dataset, pattern):
    """The Attributes of the grid of prompts; None without a text encoder, or if captions have no pattern."""
    encoder = pipeline.conditioning.encoder
    if encoder is None:
        if pattern is not None:
            raise ValueError("this model was trained without captions, so a grid of prompts cannot be drawn")
        return None
    if dataset is None:
        return None if pattern is None else patterns.parse(pattern)
    understood = dataset if encoder.languages is None else dataset.in_languages(encoder.languages)
    captions = [caption for row in understood.captions or () for caption in row]
    return patterns.found(captions) if pattern is None else patterns.parse(pattern, captions)


def _grid(pipeline, chosen, seed, steps, guidance):
    """One sample for every prompt, all with number 0, so from the same noise."""
    if chosen is None:
        return None
    prompts = chosen.prompts()
    numbers = np.zeros(len(prompts), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", PromptWarning
        )  # words of captions that an encoder does not know: said in training
        asked = pipeline.conditioning.rows(numbers, prompts=prompts)
    images = pipeline.codec.show(pipeline.sample(numbers, seed, "ddim", steps, asked, guidance))
    told = f"ddim, {number(steps)} steps, seed {seed}{f', guidance {guidance:g}' if guidance != 1 else ''}"
    return words.Grid(chosen, reduced(visible(images), SMALL), told)


def _short(titles):
    """Long captions shortened, to fit under small images."""
    return titles if titles is None else [t if len(t) <= LONG else t[: LONG - 3] + "..." for t in titles]


def shrinking(shape, largest=SMALL):
    """The factor by which images of shape (H, W, C) are reduced so that their sides are at most `largest`.

    1 for images with one short side, such as a row of numbers: nothing would be left of it.
    """
    return -(-max(shape[:2]) // largest) if min(shape[:2]) > largest else 1


def reduced(images, largest):
    """(N, H, W, C) uint8 reduced to sides of at most `largest`, see shrinking."""
    factor = shrinking(images.shape[1:], largest)
    return images if factor == 1 else np.rint(shrink(images, factor)).astype(np.uint8)


def slider_values(codec):
    """What a slider may hold; half as much of clips, which have sliders over time besides."""
    return SLIDER_VALUES // 2 if codec.kind == "frames" else SLIDER_VALUES


def budget(n, shape, keep=100, values=SLIDER_VALUES):
    """What to record of n images of shape (H, W, C): {"samples", "keep", "factor"}; at most `values` of them, for which
    the frames of a long clip, side by side, are reduced further than an image.
    """
    factor = shrinking(shape)

    def cells_at(factor):
        return values // ((shape[0] // factor) * (shape[1] // factor) * min(shape[2], 4))

    while cells_at(factor) < 4 * 10 and factor < min(shape[:2]):
        factor += 1
    cells = cells_at(factor)
    samples = min(n, max(cells // 30, 4))
    return {"samples": samples, "keep": min(keep, max(cells // samples, 10)), "factor": factor}


def _forward(codec, source, schedule, seed, shape):
    """The Forward for the page. source: a data set, or samples."""
    kept = budget(8, shape, keep=41, values=slider_values(codec))
    chosen = spread(len(source), kept["samples"])
    samples = source[chosen] if isinstance(source, np.ndarray) else source.samples(chosen)
    eps = random.normal(random.key(seed, random.NOISE, np.arange(len(samples))), codec.shape)
    return add_noise(codec, samples, eps, schedule.alpha, schedule.sigma, kept["keep"], kept["factor"])


def neighbours(samples, dataset, codec):
    """The training images nearest to samples (N, H, W, C) uint8, among at most SEARCH_VALUES of the data's pixels."""
    searched = spread(len(dataset), max(2, SEARCH_VALUES // samples[0].size))
    training = codec.show(dataset.samples(searched))
    index, distance = nearest(samples, training)
    usual = np.empty(0)
    if len(training) > 1:
        chosen = spread(len(training), 100)
        usual = nearest(training[chosen], training, exclude=chosen)[1]
    share = "All" if len(searched) == len(dataset) else f"{len(searched):,} of the"
    note = f"{share} {len(dataset):,} training images were searched."
    return Neighbours(reduced(visible(training[index]), MEDIUM), searched[index], distance, usual, note)


def _facts(pipeline, dataset, log, step, count):
    facts = {} if dataset is None else {"Data": dataset.name, **dataset.facts(count)}
    facts |= {"Training steps": number(step), "Parameters": number(pipeline.parameters)}
    seconds = training_time([row["time"] for row in log if "time" in row])
    if seconds > 0:
        facts["Training time"] = duration(seconds)
    rates = [row["images_per_second"] for row in log if row.get("images_per_second")]
    if rates:
        facts["Speed"] = f"{np.median(rates):,.0f} {'sample' if dataset is None else dataset.noun}s a second"
    return facts


def training_time(times):
    """Total seconds between log entries, from their times in seconds, without pauses (over 20 times the median)
    and without moments at which the clock was set back.
    """
    waits = np.diff(np.asarray(times, np.float64))
    waits = waits[waits >= 0]
    return float(waits[waits <= 20 * np.median(waits)].sum()) if waits.size else 0.0


def _commands(directory, data, shape):
    place, longer, data = map(typed, (directory, f"{directory}-longer", data or "DATA"))
    python = f"import pydiff\n\nrun = pydiff.load({str(directory)!r})\nimages = run.sample(16, seed=1)"
    return [
        ("Draw 64 new images", f"pydiff sample {place} -n 64 --seed 1"),
        ("Draw them in fewer steps", f"pydiff sample {place} -n 64 --sampler ddim --steps 20"),
        ("Train a model for longer", f"pydiff train {data} --out {longer} --steps 20000"),
        ("From Python", f"{python}  # {(16, *shape[1:])} uint8"),
    ]
