"""Does the U-Net find what a threshold cannot? Intersection over union on held-out images, beside thresholds.

    python -m benchmarks.papers.segmentation --out DIR [--steps 150] [--json FILE]

Two sets, a fifth of each held out: `shapes`, grey, four classes, under uneven light; and a folder that is written to
DIR/emoji first, images and masks as a user would have them: emoji on grounds that other emoji's colours make, the mask
white where the emoji is. What thresholds reach was chosen on the same images that the network learns from.
Intervals are the 2.5 and 97.5 % quantiles over 1,000 draws of the held-out images with replacement (Efron 1979).
The same command goes on where it was stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from pydiff import backend, segment
from pydiff.data import load
from pydiff.report.grid import save_png

RECIPE = {"batch_size": 16, "channels": (16, 32, 64), "lr": 2e-3, "ema": 0.99, "checkpoint_every": 50}
COUNT, SIZE = 600, 32  # emoji in the folder, and their side in pixels
DRAWS = 1000


def write_folder(folder, count=COUNT, seed=0):
    """images/ and masks/ of emoji on grounds: of each ground the colours are another emoji's, in soft stripes."""
    rng = np.random.default_rng(seed)
    emoji = load("emoji").images
    chosen, grounds = (rng.permutation(len(emoji))[:count] for _ in range(2))
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    for i, (one, other) in enumerate(zip(emoji[chosen], emoji[grounds], strict=True)):
        inside = other[drawn_in(other)]
        colours = inside[rng.integers(0, len(inside), 2)].astype(np.float64)
        angle, turn = rng.uniform(0, np.pi), rng.uniform(1, 4)
        share = 0.5 + 0.5 * np.sin(2 * np.pi * turn * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6))
        ground = share[..., None] * colours[0] + (1 - share[..., None]) * colours[1]
        cover = drawn_in(one)[..., None]
        image = np.where(cover, one, ground) + 6 * rng.standard_normal((SIZE, SIZE, 1))
        save_png(folder / "images" / f"{i:04d}.png", np.rint(image.clip(0, 255)).astype(np.uint8))
        save_png(folder / "masks" / f"{i:04d}.png", np.where(cover, 255, 0).astype(np.uint8))


def drawn_in(emoji):
    """Where an emoji (H, W, 3) on white is drawn: (H, W), everything but the white that is connected to the edges."""
    white = (emoji > 245).all(axis=-1)
    ground = np.zeros_like(white)
    ground[[0, -1]], ground[:, [0, -1]] = white[[0, -1]], white[:, [0, -1]]
    while True:
        wider = ground.copy()
        wider[1:] |= ground[:-1]
        wider[:-1] |= ground[1:]
        wider[:, 1:] |= ground[:, :-1]
        wider[:, :-1] |= ground[:, 1:]
        wider &= white
        if (wider == ground).all():
            return ~ground
        ground = wider


def interval(predicted, truth, classes, seed=0):
    """The middle 95 % of the mean IoU over draws of the images with replacement."""
    rng = np.random.default_rng(seed)
    overlap = np.stack([((predicted == k) & (truth == k)).sum((1, 2)) for k in range(classes)], 1)
    union = np.stack([((predicted == k) | (truth == k)).sum((1, 2)) for k in range(classes)], 1)
    draws = rng.integers(0, len(truth), (DRAWS, len(truth)))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.nanmean(overlap[draws].sum(1) / union[draws].sum(1), axis=1)
    return [float(edge) for edge in np.quantile(found, (0.025, 0.975))]


def scored(data, out, steps):
    """What one training finds: {"network", "threshold": {"mean iou", "interval", "iou", "accuracy"}, ..}."""
    began = time.process_time()
    result = segment.train(data, out=out, steps=steps, **RECIPE)
    found = dict(result.scores) | {"steps": steps, "parameters": parameters(result.segmenter.model)}
    found["training_cpu_seconds_of_this_call"] = round(time.process_time() - began)
    for name, masks in (("network", result.predicted), ("threshold", result.threshold)):
        found[name] = found[name] | {"interval": interval(masks, result.held_out.masks, len(found["classes"]))}
    return found


def parameters(model):
    """How many numbers it has learned."""
    return sum(p.size for p in model.parameters())


def main(arguments=None):
    """Trains, judges, prints, writes the JSON. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    folder = chosen.out / "emoji"
    if not (folder / "masks").is_dir():
        write_folder(folder)
    found = {
        "shapes": scored("shapes", chosen.out / "shapes-run", chosen.steps),
        "folder of emoji": scored(folder, chosen.out / "emoji-run", chosen.steps),
    }
    result = {"machine": describe(backend.threads()), "recipe": RECIPE, "segmentation": found}
    print(table(found))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(found) -> str:
    """The sets in Markdown."""
    lines = ["| images | held out | classes | network, mean IoU | threshold, mean IoU | pixels right |"]
    lines.append("|" + " --- |" * 6)
    for name, row in found.items():
        iou = [
            f"{row[kind]['mean iou']:.3f} ({row[kind]['interval'][0]:.3f} to {row[kind]['interval'][1]:.3f})"
            for kind in ("network", "threshold")
        ]
        right = f"{row['network']['accuracy']:.1%}, {row['threshold']['accuracy']:.1%}"
        lines.append(f"| {name} | {row['images']} | {len(row['classes'])} | {' | '.join(iou)} | {right} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
