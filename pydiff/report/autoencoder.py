"""The page of an autoencoder: originals, latents, reconstructions, neighbours and interpolations in both spaces."""

import numpy as np

from pydiff.printed import expanded, typed
from pydiff.report import loss, sections
from pydiff.report.grid import grid, save_png
from pydiff.report.markup import data_json, duration, fill, img, kind, number, text
from pydiff.report.nearest import spread
from pydiff.report.page import asset, loss_numbers, training
from pydiff.report.pixels import visible
from pydiff.report.write import MEDIUM, reduced, training_time
from pydiff.store.files import write_atomic

SEARCHED = 1000  # images whose latents are compared
QUERIES, NEAR = 5, 6
WALKS, STEPS = 4, 9


def write_autoencoder_report(codec, dataset, directory, *, name, log, step, options, n=12, seed=0):
    """Writes samples.png (originals above reconstructions) and report.html. Returns the path of report.html.

    codec: LatentSpace. dataset: what it was trained on. name, log (list of dicts), step, options: of the training. n:
    how many images are shown. seed: of the choice of pairs and of images whose neighbours are shown. Raises ValueError
    unless n is at least 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    directory = expanded(directory)
    directory.mkdir(parents=True, exist_ok=True)
    images = dataset.samples(spread(len(dataset), n))
    searched = spread(len(dataset), SEARCHED)
    samples = dataset.samples(searched)
    latents = codec.encode(samples)
    shown, x = codec.show(images), codec.encode(images)
    back = codec.decode(x)
    save_png(directory / "samples.png", grid(np.concatenate([shown, back]), columns=len(images)))
    curve, signal = loss.curve(log), psnr(shown, back)
    order = np.random.default_rng(seed).permutation(len(searched))
    labels = None if dataset.labels is None else dataset.labels[searched]
    page = fill(
        asset("autoencoder.html"),
        {
            "css": asset("page.css"),
            "js": asset("page.js"),
            "name": text(name),
            "smaller": number(round(np.prod(codec.pixels.shape) / np.prod(codec.shape), 1)),
            "facts": sections.facts(_facts(codec, dataset, log, step, signal)),
            "reconstructions": _reconstructions(shown, codec.show_noise(x), back, signal),
            "loss": training(curve),
            "options": sections.options(options),
            "neighbours": _neighbours(codec.show(samples), latents, order[:QUERIES], labels),
            "walks": _walks(codec, samples, latents, order[QUERIES:]),
            "commands": sections.commands(_commands(directory, dataset.name)),
            "numbers": data_json({"forward": None, "trace": None, "loss": loss_numbers(curve)}),
        },
    )
    path = directory / "report.html"
    write_atomic(path, page.encode("utf-8"))
    return path


def psnr(images, others):
    """Peak signal-to-noise ratio of uint8 images (N, ..) against others, in dB: (N,)."""
    squared = np.square(images.astype(np.float64) - others).reshape(len(images), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / squared)


def nearest_of(vectors, queries, count):
    """For each number in `queries` (Q,), the `count` nearest of the vectors (N, D), itself excluded: (Q, count).

    Of equally near ones, the first.
    """
    vectors = vectors.reshape(len(vectors), -1).astype(np.float64)
    found = []
    for query in queries:
        distance = np.square(vectors - vectors[query]).sum(1)
        distance[query] = np.inf
        found.append(np.argsort(distance, kind="stable")[:count])
    return np.stack(found)


def _facts(codec, dataset, log, step, signal):
    height, width, channels = codec.pixels.shape
    h, w, c = codec.shape
    facts = {
        "Data": dataset.name,
        "Images": f"{len(dataset):,}, {height} × {width} × {channels} = {number(height * width * channels)} numbers",
        "Latents": f"{h} × {w} × {c} = {number(h * w * c)} numbers",
        "Training steps": number(step),
        "Parameters": number(sum(p.size for p in codec.autoencoder.parameters())),
        "PSNR of those below": f"{np.mean(signal[np.isfinite(signal)]):.1f} dB" if np.isfinite(signal).any() else "∞",
    }
    seconds = training_time([row["time"] for row in log if "time" in row])
    return facts | ({"Training time": duration(seconds)} if seconds > 0 else {})


def _row(figures, images):
    return f'<div class="row {kind(images)}" style="--columns:{len(figures)}">{"".join(figures)}</div>'


def _figures(images, alt, captions=None, chosen=()):
    """A figure for each of images (N, H, W, C). chosen: the numbers of those that are framed."""
    made = []
    for i, image in enumerate(reduced(visible(images), MEDIUM)):
        caption = f"<figcaption>{text(captions[i])}</figcaption>" if captions else ""
        css = ' class="asked"' if i in chosen else ""
        made.append(f"<figure{css}>{img(image, f'{alt} {i + 1}')}{caption}</figure>")
    return made


def _reconstructions(images, latents, back, signal):
    captions = [f"{value:.1f} dB" if np.isfinite(value) else "∞ dB" for value in signal]
    rows = (("image", images, None), ("latent of image", latents, None), ("image drawn from latent", back, captions))
    return "".join(_row(_figures(shown, alt, said), shown) for alt, shown, said in rows)


def _neighbours(images, latents, queries, labels):
    pixels, html = visible(images), ""
    spaces = {"latents": latents, "pixels": images}
    for query in queries:
        for space, vectors in spaces.items():
            found = nearest_of(vectors, [query], NEAR)[0] if len(images) > NEAR else np.arange(0)
            row = pixels[np.concatenate([[query], found])]
            html += f"<h3>By {space}</h3>" + _row(_figures(row, f"nearest by {space}, number", chosen=(0,)), row)
    if labels is not None and len(images) > NEAR:
        queries = np.arange(len(images))
        shares = {
            space: float((labels[nearest_of(vectors, queries, 1)[:, 0]] == labels).mean())
            for space, vectors in spaces.items()
        }
        html += (
            f'<p class="note">Of {len(images):,} images, {shares["latents"]:.1%} have a nearest neighbour of their own '
            f"class by latents, and {shares['pixels']:.1%} by pixels. No class was known in training.</p>"
        )
    return html


def _walks(codec, samples, latents, order):
    shares = np.linspace(0, 1, STEPS)
    html = ""
    for first in range(0, min(2 * WALKS, len(order) // 2 * 2), 2):
        a, b = order[first : first + 2]
        way = np.stack([(1 - share) * latents[a] + share * latents[b] for share in shares]).astype(np.float32)
        drawn = codec.decode(way)
        ends = codec.show(samples[[a, b]]).astype(np.float64)
        mixed = np.rint(np.stack([(1 - share) * ends[0] + share * ends[1] for share in shares])).astype(np.uint8)
        for title, row in (("Between the latents", drawn), ("Between the pixels", mixed)):
            html += f"<h3>{title}</h3>" + _row(_figures(row, f"{title.lower()}, step"), row)
    return html


def _commands(directory, data):
    place, further, data = map(typed, (directory, f"{directory}-diffusion", data))
    python = f"import pydiff\n\nmade = pydiff.load({str(directory)!r})\nx = made.encode(images)  # uint8 (N, H, W, C)"
    return [
        ("Train a diffusion model in these latents", f"pydiff train {data} --latent {place} --out {further}"),
        ("Draw with it", f"pydiff sample {further} -n 64"),
        ("From Python", f"{python}\nimages = made.decode(x)"),
    ]
