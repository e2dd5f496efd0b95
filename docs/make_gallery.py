"""Makes the images of docs/gallery.md: `python docs/make_gallery.py [NAME ..]`, by the model that comes with pydiff, or
by what is trained here, in minutes. Only of data whose licence allows it: digits, points, shapes, emoji; see NOTICE.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

import pydiff
from pydiff import random
from pydiff.report.film import save_film
from pydiff.report.grid import grid, save_png
from pydiff.report.trace import steps_to_record

HERE = Path(__file__).parent / "gallery"
TEN = np.arange(10)


def digits():
    """Ten of each class, by the model that comes with pydiff."""
    drawn = pydiff.load("digits").sample(100, seed=1, labels=np.repeat(TEN, 10))
    save_png(HERE / "digits.png", grid(drawn, columns=10, scale=4))


def denoising():
    """The way from noise to twenty digits, all noise levels, as a film."""
    model, frames = pydiff.load("digits"), []
    for state in model.sample_states(20, seed=2, sampler="ddpm", steps=1000):
        if state.step in steps_to_record(state.steps, 100):
            frames.append(grid(model.codec.show(model.codec.decode(state.x)), columns=10, scale=4))
    save_film(HERE / "denoising.webp", frames)


def steps():
    """A row a sampler and number of steps, the same noise in every row."""
    model, rows = pydiff.load("digits"), []
    for sampler in ("ddpm", "ddim", "dpm_solver"):
        for count in (5, 10, 25, 100):
            rows.append(model.sample(10, seed=3, sampler=sampler, steps=count))
    save_png(HERE / "steps.png", grid(np.concatenate(rows), columns=10, scale=4))


def guidance():
    """The same noise as a seven, with guidance 0 (nothing is asked for), 1, 2, 4 and 8."""
    model = pydiff.load("digits")
    rows = [model.sample(10, seed=4, labels=np.full(10, 7), guidance=weight) for weight in (0, 1, 2, 4, 8)]
    save_png(HERE / "guidance.png", grid(np.concatenate(rows), columns=10, scale=4))


def filling_in():
    """Real digits, their left halves alone, and what was drawn for the right halves."""
    model = pydiff.load("digits")
    real, labels = pydiff.data.load("digits").images[:10], pydiff.data.load("digits").labels[:10]
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    kept = np.where(mask[None, :, :, None] == 1, 128, real).astype(np.uint8)
    rows = [real, kept, *(model.inpaint(real, mask, labels=labels, seed=seed) for seed in range(3))]
    save_png(HERE / "filling-in.png", grid(np.concatenate(rows), columns=10, scale=4))


def between():
    """From the noise of one digit to that of another, for each class."""
    model = pydiff.load("digits")
    rows = [model.interpolate(5, 6, np.linspace(0, 1, 10), label=label) for label in TEN]
    save_png(HERE / "between.png", grid(np.concatenate(rows), columns=10, scale=4))


def noising():
    """Emoji at ten levels of noise: the forward process."""
    data = pydiff.data.load("emoji", channels=3)
    words = [" ".join(row).lower() for row in data.captions]
    chosen = [next(i for i, told in enumerate(words) if word in told) for word in ("red heart", "firefighter", "tree")]
    x0 = data.codec.encode(data.samples(chosen))
    schedule = pydiff.diffusion.schedule("cosine", 1000)
    eps = random.normal(random.key(0, random.NOISE, np.arange(len(x0))), x0.shape[1:])
    levels = np.linspace(0, 999, 10).round().astype(int)
    rows = [[data.codec.decode((schedule.alpha[t] * x + schedule.sigma[t] * e)[None].astype(np.float32))[0]
             for t in levels] for x, e in zip(x0, eps, strict=True)]  # fmt: skip
    save_png(HERE / "noising.png", grid(np.concatenate(rows), columns=10, scale=2))


def points():
    """Particles that find back to the swiss roll: the film of a run's page."""
    with tempfile.TemporaryDirectory() as work:
        run = pydiff.train("swiss-roll", out=Path(work) / "run", steps=4000, sample_every=0)
        run.report(steps=100)
        smaller(next((Path(work) / "run").glob("film.*")), HERE / "points.webp")


def ink():
    """The drop of ink and the emoji of `pydiff ink`."""
    from pydiff.report.ink import write_ink_page

    data = pydiff.data.load("emoji", channels=3)
    found = next(i for i, row in enumerate(data.captions) if "firefighter" in " ".join(row).lower())
    with tempfile.TemporaryDirectory() as work:
        write_ink_page(Path(work), data.images[found], 0)
        film = next(Path(work).glob("*.webp"))
        shutil.copy(film, HERE / "ink.webp")


def smaller(film, out):
    """Every other frame of a film, with some loss: for a page of many."""
    from PIL import Image

    with Image.open(film) as opened:
        frames = []
        for number in range(0, opened.n_frames, 2):
            opened.seek(number)
            frames.append(opened.convert("RGB"))
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=100, loop=0, quality=60)


MADE = {made.__name__: made for made in (digits, denoising, steps, guidance, filling_in, between, noising, points, ink)}


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MADE)}; left out, all")
    HERE.mkdir(exist_ok=True)
    for name in parser.parse_args().names or MADE:
        print(name)
        MADE[name]()


if __name__ == "__main__":
    main()
