"""The swiss roll of Sohl-Dickstein et al. (2015): how many bits a point costs a diffusion model, and how many it must.

    python -m benchmarks.papers.points --out DIR [--steps 3000] [--json FILE]

A small network learns the roll. The variational bound of its likelihood, in bits a number, stands beside the exact
value, which can be computed, because the roll's density is known; the difference is what the model wastes. Beside it:
a normal distribution fitted to the points, whose bits are known in closed form. The points drawn are judged by their
distance to the roll's line, and by how evenly they lie along it, beside as many real points.
Samplers are asked with an exact network, too, whose data are one normal distribution: what they then get wrong is their
own doing. The same command goes on where it was stopped.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from pydiff import backend
from pydiff.data.points import FIRST_TURN, LAST_TURN, swiss_roll, swiss_roll_density
from pydiff.diffusion import path
from pydiff.diffusion.samplers import SAMPLERS as SAMPLERS_BY_NAME
from pydiff.likelihood import bits

RECIPE = {
    "batch_size": 512, "lr": 2e-3, "timesteps": 500, "ema": 0.999, "sample_every": 0, "checkpoint_every": 500,
    "channels": (128,),
}  # fmt: skip
HELD_OUT = 1000
SAMPLERS = (
    ("ddpm", 500, "trailing"), ("ddpm", 50, "trailing"), ("ddim", 50, "trailing"), ("dpm_solver", 20, "trailing"),
    ("heun", 20, "trailing"), ("heun", 20, "leading"),
)  # fmt: skip


def along(points, parts=4000):
    """(distances to the roll's line (N,), places along it from 0 to 1 (N,)) of points (N, 2)."""
    u = np.linspace(FIRST_TURN, LAST_TURN, parts)
    line = u[:, None] * np.stack([np.cos(u), np.sin(u)], axis=1) / 4
    near = [((line - p) ** 2).sum(axis=1) for p in np.asarray(points, np.float64)]
    return np.sqrt([d.min() for d in near]), np.array([d.argmin() for d in near]) / (parts - 1)


def judged(points):
    """Mean distance to the line, the share further than three standard deviations, unevenness along the line.

    Unevenness: the largest difference between the shares up to a place and that place (Kolmogorov and Smirnov).
    """
    distance, place = along(points)
    place = np.sort(place)
    ranks = np.arange(1, len(place) + 1) / len(place)
    return {
        "mean distance": float(distance.mean()),
        "share off the line": float((distance > 0.3).mean()),
        "unevenness": float(np.abs(ranks - place).max()),
    }


def spent(pipeline, points):
    """(mean bits a number, its standard error) of the bound."""
    each = bits(pipeline, points)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def of_a_normal_distribution(process, sampler, steps, spacing):
    """How many times too wide a sampler draws a standard normal distribution with the exact network, in float64; and
    the noise levels rho = sigma / alpha where its first step begins and ends.

    The exact network knows eps-hat = sigma x / (alpha^2 + sigma^2), and nothing in it is clipped.
    """

    def exact(x, t):
        alpha, sigma = (a[:, None] for a in process.schedule.at(np.asarray(t)))
        eps = sigma * x / (alpha**2 + sigma**2)
        return process.target((x - sigma * eps) / alpha, eps, np.asarray(t))

    way, x = path(process.schedule, steps, spacing), np.ones((1, 1))
    for state in SAMPLERS_BY_NAME[sampler](exact, x, process, way, clip=None):
        found = state.x
    first, second = (float(way.sigma[i] / way.alpha[i]) for i in range(2))
    return {"too wide": float(found[0, 0]), "first step": [first, second]}


def main(arguments=None):
    """Trains, bounds, draws, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    finished = (options.out / "model").is_dir()  # by an earlier call, which wrote how long it took
    earlier = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    began, cpu = time.perf_counter(), time.process_time()
    run = pydiff.train("swiss-roll", out=options.out, steps=options.steps, **RECIPE)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    held = swiss_roll(HELD_OUT, seed=1).images
    exact = -np.log2(swiss_roll_density(held)) / 2
    normal = np.cov(swiss_roll().images.T)
    entropy = 0.5 * math.log2((2 * math.pi * math.e) ** 2 * np.linalg.det(normal)) / 2
    bound, error = spent(run.pipeline, held)
    rows, exactly = {}, {}
    for sampler, steps, spacing in SAMPLERS:
        name = f"{sampler}, {steps} steps" + (f", {spacing}" if spacing != "trailing" else "")
        rows[name] = judged(run.sample(HELD_OUT, sampler=sampler, steps=steps, spacing=spacing, seed=2))
        if sampler != "ddpm":  # which adds noise of its own
            exactly[name] = of_a_normal_distribution(run.process, sampler, steps, spacing)
    found = {
        "machine": describe(backend.threads()), "steps": options.steps, "recipe": RECIPE,
        "parameters": run.parameters,
        "training": earlier.get("training") if finished else {"wall_s": round(seconds, 1), "cpu_s": round(cpu, 1)},
        "bits": {
            "bound": bound, "standard error": error, "exact": float(exact.mean()), "normal distribution": entropy,
            "points": HELD_OUT,
        },
        "samples": {"real points": judged(held), **rows}, "exact network": exactly,
    }  # fmt: skip
    print(json.dumps({name: found[name] for name in ("training", "bits", "samples", "exact network")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def table(found) -> str:
    """The samples in Markdown."""
    lines = [
        "| points | mean distance | off the line | unevenness | too wide, exact network |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in found["samples"].items():
        exact = found["exact network"].get(name)
        cells = [f"{row['mean distance']:.3f}", f"{row['share off the line']:.1%}", f"{row['unevenness']:.3f}"]
        cells.append(f"{exact['too wide']:.2f} times" if exact else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
