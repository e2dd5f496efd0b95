"""Diffusion in latents against diffusion in pixels: the same data, the same training time, how good and how fast?

    python -m benchmarks.papers.latent train WORK --data emoji64.npz --side pixels --minutes 5
    python -m benchmarks.papers.latent train WORK --data emoji64.npz --side latent --minutes 5
    python -m benchmarks.papers.latent judge WORK --data emoji64.npz --json benchmarks/results/latent.json

emoji64.npz is made by `python -m pydiff.data.make_emoji --size 64 emoji64.npz`. Rombach et al. 2022, section 4.1,
compare so: equal computation, distances of what is drawn. Minutes are those of the processors (user and system time of
the process, all threads), which do not depend on what else the machine does; those of the latent side are for the
autoencoder (a third), for encoding the data, and for the U-Net (the rest). A tenth of the images is left out.

The judge: Fréchet distance (Heusel et al. 2017, equation 6) between Gaussians fitted to features of 128 drawn images
and of all training images. The features are plain and know no labels: means of the colours and standard deviations of
the grey in 4 x 4 blocks, 48 + 16 numbers. The same distance of as many held-out images says what the best possible is,
and that of these images encoded and decoded, what the autoencoder alone costs.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from benchmarks.quality import frechet_distance
from pydiff import backend
from pydiff.data import load
from pydiff.report.autoencoder import psnr
from pydiff.report.grid import grid, save_png

HELD_OUT = 0.1
DRAWN, DRAWING = 128, {"sampler": "ddim", "steps": 12}
BLOCKS = 4  # a side
PROBE = 12  # steps that say how long one takes
COMMON = {"batch_size": 16, "seed": 0, "ema": 0.99, "sample_every": 0, "checkpoint_every": 10**6, "warmup": 20}
DIFFUSION = {**COMMON, "text": "none", "lr": 1e-3}
AUTOENCODER = {**COMMON, "lr": 2e-3, "channels": (16, 32, 64), "latent_channels": 4, "kl_weight": 1e-6}
LATENT = {"channels": (64, 128)}
SHARE = 1 / 3  # of the minutes, for the autoencoder


def data_of(path):
    """(training data, held-out data)."""
    return load(path).split(HELD_OUT, seed=0)


def features(images):
    """(N, H, W, 3) uint8 -> (N, 64): means of blocks by channel, and standard deviations inside of them."""
    n, height, width, c = images.shape
    x = images.astype(np.float64) / 255
    blocks = x.reshape(n, BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS, c)
    grey = blocks.mean(-1)
    return np.concatenate([blocks.mean((2, 4)).reshape(n, -1), grey.std((2, 4)).reshape(n, -1)], axis=1)


def steps_for(seconds, train):
    """How many steps take that many processor seconds: train(steps) is called with a few."""
    train(1)  # loads and fills what is loaded and filled once
    began = time.process_time()
    train(PROBE)
    each = (time.process_time() - began) / PROBE
    return max(PROBE, round(seconds / each))


def train_side(work, path, side, minutes, prediction):
    """Trains one side into WORK/side and writes what it took to WORK/side.json."""
    data, _ = data_of(path)
    budget, said = 60 * minutes, {"side": side, "minutes": minutes, "prediction": prediction}
    made, began = {"prediction": prediction}, time.process_time()
    if side == "latent":
        steps = steps_for(SHARE * budget, lambda n: pydiff.train(data, model="autoencoder", steps=n, progress=False,
                                                                 **AUTOENCODER))  # fmt: skip
        began = time.process_time()
        autoencoder = pydiff.train(data, model="autoencoder", steps=steps, out=work / "autoencoder", **AUTOENCODER)
        said["autoencoder"] = {"steps": steps, "seconds": time.process_time() - began}
        said["autoencoder"]["parameters"] = autoencoder.parameters
        spent, made = time.process_time() - began, {**made, "latent": autoencoder, **LATENT}
        encoding = time.process_time()
        autoencoder.codec.reader(data)([0])
        budget -= spent + time.process_time() - encoding
    steps = steps_for(
        budget, lambda n: pydiff.train(data.subset(range(64)), steps=n, progress=False, **DIFFUSION, **made)
    )
    began_unet = time.process_time()
    run = pydiff.train(data, steps=steps, out=work / side, **DIFFUSION, **made)
    spent = {"latent": said.get("autoencoder", {}).get("seconds", 0.0)}.get(side, 0.0)
    said["unet"] = {"steps": steps, "seconds": time.process_time() - began_unet, "parameters": run.parameters}
    said["seconds"] = spent + said["unet"]["seconds"]
    (work / f"{side}.json").write_text(json.dumps(said, indent=1))


def judge(work, path):
    """Draws from both sides and compares. Returns the result for JSON."""
    data, held = data_of(path)
    truth, rows, shown = features(data.images), [], []
    chosen = np.unique(np.linspace(0, len(held) - 1, DRAWN).round().astype(int))
    for side in ("pixels", "latent"):
        run, said = pydiff.load(work / side), json.loads((work / f"{side}.json").read_text())
        run.sample(2, steps=2)
        began, wall = time.process_time(), time.perf_counter()
        drawn = run.sample(DRAWN, seed=1, **DRAWING)
        said["seconds_an_image"] = (time.process_time() - began) / DRAWN
        said["wall_seconds_an_image"] = (time.perf_counter() - wall) / DRAWN
        said["distance"] = frechet_distance(features(drawn), truth)
        rows.append(said)
        shown.append(drawn[:16])
    real = held.images[chosen]
    back = pydiff.load(work / "autoencoder").reconstruct(real)
    save_png(work / "grid.png", grid(np.concatenate([*shown, back[:16]]), columns=16))
    return {
        "script": "papers.latent",
        "data": f"{len(data)} images of {data.shape[0]} x {data.shape[1]}, {len(held)} held out",
        "drawn": DRAWN,
        "drawing": DRAWING,
        "rows": rows,
        "held_out": {"distance": frechet_distance(features(real), truth)},
        "reconstructed": {"distance": frechet_distance(features(back), truth), "psnr": float(psnr(real, back).mean())},
        "machine": describe(backend.threads()),
    }


def table(result):
    """The result as lines of Markdown, and the verdict."""
    lines = [
        "| | predicted | training, processor minutes | steps | parameters | Fréchet distance | processor ms an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        steps = " + ".join(f"{row[part]['steps']:,}" for part in ("autoencoder", "unet") if part in row)
        parameters = sum(row[part]["parameters"] for part in ("autoencoder", "unet") if part in row)
        lines.append(
            f"| {row['side']} | {row.get('prediction', 'eps')} | {row['seconds'] / 60:.1f} | {steps} | "
            f"{parameters:,} | {row['distance']:.3f} | {1000 * row['seconds_an_image']:.0f} |"
        )
    lines.append(f"| held-out images | | | | | {result['held_out']['distance']:.3f} | |")
    lines.append(f"| the same, encoded and decoded | | | | | {result['reconstructed']['distance']:.3f} | |")
    pixels, latent = result["rows"]
    better = [name for name in ("distance", "seconds_an_image") if latent[name] < pixels[name]]
    names = {"distance": "the distance", "seconds_an_image": "the time of an image"}
    lost = [name for name in names if name not in better]
    verdict = f"Latents win in {' and in '.join(names[name] for name in better)}" if better else ""
    if lost:
        verdict += f"{', and lose' if better else 'Latents lose'} in {' and in '.join(names[name] for name in lost)}"
    ratio = pixels["seconds_an_image"] / latent["seconds_an_image"]
    psnr = result["reconstructed"]["psnr"]
    said = f"An image in pixels takes {ratio:.1f} times as long; the autoencoder gives images back at {psnr:.1f} dB."
    return "\n".join([*lines, "", f"{verdict}. {said}"])


def main(arguments=None):
    """Trains one side, or judges both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "judge"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--side", choices=["pixels", "latent"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--prediction", choices=["v", "eps"], default="v", help="of the networks, see docs/latents.md")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.what == "train":
        return train_side(chosen.work, chosen.data, chosen.side, chosen.minutes, chosen.prediction)
    result = judge(chosen.work, chosen.data)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return result


if __name__ == "__main__":
    main()
