"""`pydiff demo`, in two acts: digits at once, from the model that comes with pydiff; then a model trained from scratch,
with an estimate of how long that takes on this machine; and a page with both.

Every act writes its files before the next starts. So Ctrl-C keeps what is finished, and the same call resumes from
there.
"""

import contextlib
import shutil
import time
from typing import NamedTuple

import numpy as np

from pydiff import trained
from pydiff.data import load as load_data
from pydiff.printed import expanded, typed
from pydiff.report.acts import Moment, section
from pydiff.report.grid import grid, save_png
from pydiff.report.terminal import show
from pydiff.run import load, train
from pydiff.store.folder import RunDirectory
from pydiff.store.newest import newest_step
from pydiff.training import Interrupted, Trainer, join, settled, task_for
from pydiff.training.forecast import duration, pace

SHOWN, QUICKLY = 20, 25  # digits of the first act, and the steps to draw them
BESIDE = 3.0  # seconds for the rest of the page: the film, neighbours, files
PAGE_SAMPLES = 16


class FirstAct(NamedTuple):
    """images: (SHOWN, 8, 8, 1) uint8, of the digits 0 to 9 in turn. seconds: from opening the model to the last image.
    each: seconds per step of one image.
    """

    images: np.ndarray
    seconds: float
    each: float


def demo(out, options, device="cpu", page_steps=None, say=print):
    """Both acts and the page. Returns the finished run's page, a Path.

    out: folder for shipped.png, samples.png, film, report.html and the run. options: Options of the second act.
    page_steps: steps of the reverse process on the page; None for all of them, as in the lecture. say: called with
    lines of text, and with image=True for lines that form an image.
    """
    out, options = expanded(out), options.check()
    first = first_act(out, device)
    say(f"Act 1: digits that nobody wrote, drawn in {first.seconds:.1f} s by the model that comes with pydiff.")
    say(in_terminal(first.images), image=True)
    page_steps = options.timesteps if page_steps is None else page_steps
    say(foretold(out, options, device, first.each, page_steps))
    try:
        own = train("digits", out=out, device=device, announce=say, watch=watcher(say), **options.to_config())
    except Interrupted:
        say(f"There is {out / 'shipped.png'}; {out / 'samples'} has what was drawn on the way.")
        raise
    say(in_terminal(own.codec.show(own.pipeline.preview())), image=True)
    say(f"Act 2 is done; writing {out / 'report.html'}")
    moments = [Moment(path.stem.rpartition("-")[2], path.read_bytes()) for path in sorted(out.glob("samples/*.png"))]
    opening = section(first.images, f"{first.seconds:.1f} s", moments)
    try:
        return own.report(steps=page_steps, n=PAGE_SAMPLES, opening=opening)
    except KeyboardInterrupt:
        left = f"the model is in {out / 'model'}, and pydiff report {typed(out)} writes its page"
        raise KeyboardInterrupt(f"stopped; {left}") from None


def first_act(out, device="cpu"):
    """Samples the model that comes with pydiff into shipped.png in the folder `out`. Returns the FirstAct."""
    began = time.perf_counter()
    made = load(trained.FOLDER / "digits").to(device)
    drawing = time.perf_counter()
    images = made.sample(SHOWN, seed=1, sampler="ddim", steps=QUICKLY)
    done = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "shipped.png", grid(images, columns=10))
    return FirstAct(images, done - began, (done - drawing) / (SHOWN * QUICKLY))


def foretold(out, options, device, each, page_steps):
    """A sentence: what the second act is, and how long it takes here. each: seconds per step of one image.

    The estimate is based on a few steps of a training that is discarded, and on the time of the first act.
    """
    taken = newest_step(RunDirectory(out).checkpoints) or 0
    left = max(0, options.steps - taken)
    seconds = BESIDE + each * PAGE_SAMPLES * page_steps
    if not left:
        return f"Act 2: {out} has learned them already; writing the page takes about {duration(seconds)}."
    short = settled(options, None, join("off"))
    step = pace(Trainer(task_for(load_data("digits"), short), short, device), 8) or 0.0
    previews = left // options.sample_every if options.sample_every else 0
    seconds += step * left + previews * each * PAGE_SAMPLES * QUICKLY
    gone_on = f", of which {taken:,} are done" if taken else ""
    return (
        f"Act 2: a model of your own learns them from nothing: {options.steps:,} steps{gone_on}, then a page. On this "
        f"machine, at {1000 * step:.0f} ms a step, that takes about {duration(seconds)}. Ctrl-C stops it, and leaves "
        "what there is."
    )


def watcher(say):
    """The function that `train` calls with preview samples: it prints a row of them above the progress bar."""

    def watch(step, images):
        from tqdm import tqdm

        with contextlib.suppress(OSError, ValueError), tqdm.external_write_mode():  # a bar on a terminal that is gone
            say(f"after {step:,} steps it draws")
            say(in_terminal(images[:8]), image=True)

    return watch


def in_terminal(images):
    """Images (N, H, W, C) uint8 as text, as many per row as fit the terminal: ten, eight, five, two or one."""
    width = images.shape[2] + 1
    fitting = [n for n in (10, 8, 5, 2) if len(images) % n == 0 and n * width < shutil.get_terminal_size().columns]
    return show(grid(images, columns=max(fitting, default=1), scale=1))
