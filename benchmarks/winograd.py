"""What Winograd's algorithm costs in accuracy: the rounding error of a 3 x 3 convolution, and whether training notices.

    python -m benchmarks.winograd [--json FILE] [--quick]

First, the points: the error of F(4 x 4, 3 x 3) in float32 with the usual points, 1 and 2, and with ours. Then forward
and both gradients of a convolution in float32, by the plain and by Winograd's algorithm, against float64: root mean
square and largest error, relative to the root mean square of the result. Then the same training run with both, for
several seeds: the mean loss of its last steps. docs/winograd.md explains the figures.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from pydiff import backend
from pydiff.data import load
from pydiff.ops.conv2d import backward_input_arrays, backward_weight_arrays, forward_arrays
from pydiff.training import DiffusionTask, Options, Trainer, training_steps

ALGORITHMS = {"plain": False, "winograd": True}
POINTS = {"1 and 2": (1, 2), "5/8 and 3/2": (5 / 8, 3 / 2)}
# images, channels, size, channels; the second line has those of Stable Diffusion's U-Net
SHAPES = [(4, 32, 32, 64), (8, 32, 16, 128), (32, 64, 8, 64), (16, 256, 8, 256)]
SHAPES += [(1, 320, 64, 320), (1, 640, 32, 640), (1, 1280, 16, 1280), (1, 2560, 16, 1280), (1, 2560, 8, 1280)]
ONE = (1, 1)
SAME = ((1, 1), (1, 1))


def point_error(a, b, tiles=2000, channels=32, seed=0):
    """Root mean square error of F(4 x 4, 3 x 3) with the points 0, a, -a, b, -b and infinity (csrc/cpu/winograd.h),
    every transform and sum in float32, relative to the root mean square of the result; normal tiles and weights.
    """
    na, nb = 1 / (2 * a**2 * (a**2 - b**2)), 1 / (2 * b**2 * (b**2 - a**2))
    weight = [[1 / (a * b) ** 2, 0, 0]]
    weight += [[n, n * p, n * p * p] for n, p in ((na, a), (na, -a), (nb, b), (nb, -b))] + [[0, 0, 1]]
    sums, product = a * a + b * b, a * a * b * b
    data = [[product, 0, -sums, 0, 1, 0]]
    data += [[0, -p * q * q, -q * q, p, 1, 0] for p, q in ((a, b), (-a, b), (b, a), (-b, a))]
    data += [[0, product, 0, -sums, 0, 1]]
    output = [[1, 1, 1, 1, 1, 0]] + [[0, a**k, (-a) ** k, b**k, (-b) ** k, k == 3] for k in (1, 2, 3)]
    rng = np.random.default_rng(seed)
    d, g = (rng.standard_normal(shape) for shape in ((tiles, channels, 6, 6), (channels, 3, 3)))

    def compute(dtype):
        of_weight, of_data, of_output = (np.array(m, dtype) for m in (weight, data, output))
        u = of_weight @ g.astype(np.float32).astype(dtype) @ of_weight.T
        v = of_data @ d.astype(np.float32).astype(dtype) @ of_data.T
        return of_output @ (u * v).sum(axis=1) @ of_output.T

    exact = compute(np.float64)
    plain = sum(d[..., i : i + 4, j : j + 4] * g[:, i, j, None, None] for i in range(3) for j in range(3)).sum(axis=1)
    if not np.allclose(exact, plain, atol=1e-4):  # the inputs of `exact` were rounded to float32
        raise AssertionError(f"these matrices are not those of a correlation: points {a} and {b}")
    return float(np.sqrt(((compute(np.float32) - exact) ** 2).mean() / (exact**2).mean()))


def convolve(x, w, dy):
    """[y, dx, dw] of a 3 x 3 convolution with padding 1, by the compiled kernels."""
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    backend.native(x, "conv2d_forward")(x, w, None, None, ONE, ONE, 1, y)
    backend.native(x, "conv2d_backward_input")(dy, w, ONE, ONE, 1, dx)
    backend.native(x, "conv2d_backward_weight")(dy, x, ONE, ONE, 1, dw, None)
    return [y, dx, dw]


def errors(n, cin, size, cout, seed=0):
    """Rows of the report for one shape: the error of every result by both algorithms."""
    rng = np.random.default_rng(seed)
    shapes = (n, size, size, cin), (3, 3, cin, cout), (n, size, size, cout)
    x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    exact = [
        forward_arrays(wide[0], wide[1], ONE, SAME, dy.shape),
        backward_input_arrays(wide[2], wide[1], x.shape, ONE, SAME),
        backward_weight_arrays(wide[2], wide[0], w.shape, ONE, SAME),
    ]
    rows = []
    for algorithm, on in ALGORITHMS.items():
        backend.use_winograd(on)
        for what, got, truth in zip(("forward", "dx", "dw"), convolve(x, w, dy), exact, strict=True):
            scale = np.sqrt((truth**2).mean())
            off = np.abs(got - truth) / scale
            rms = float(np.sqrt((off**2).mean()))
            row = {"shape": f"{n} x {size}x{size}, {cin} to {cout}", "what": what, "algorithm": algorithm}
            rows.append(row | {"rms": rms, "largest": float(off.max())})
    backend.use_winograd(True)
    return rows


def last_losses(seed, algorithm, steps):
    """Mean loss of the last fifth of a training run on the digits."""
    backend.use_winograd(ALGORITHMS[algorithm])
    options = Options(steps=steps, seed=seed, channels=(32, 64))
    trainer = Trainer(DiffusionTask(load("digits"), options), options)
    losses = [state.loss for state in training_steps(trainer)]
    backend.use_winograd(True)
    return statistics.fmean(losses[-steps // 5 :])


def main(argv=None):
    """Prints both parts and writes them; status 1 where Winograd's algorithm is not in the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="one shape, few steps: to see whether it runs")
    options = parser.parse_args(argv)
    if backend.cpu is None:
        print(f"there are no compiled kernels to compare: {backend.cpu_reason}")
        return 1
    shapes, seeds, steps = (SHAPES[:1], (0,), 4) if options.quick else (SHAPES, (0, 1, 2, 3), 600)
    report = {"machine": describe(backend.threads()), "points": {}, "errors": [], "training": []}
    for name, points in POINTS.items():
        report["points"][name] = point_error(*points)
        print(f"points {name:<12}rms error {report['points'][name]:.2e}", flush=True)
    for shape in shapes:
        rows = errors(*shape)
        report["errors"] += rows
        for plain, fast in zip(rows[:3], rows[3:], strict=True):
            print(
                f"{plain['shape']:<28}{plain['what']:<9}rms error  plain {plain['rms']:.1e}  winograd {fast['rms']:.1e}"
                f"  ({fast['rms'] / plain['rms']:.1f} times)   largest {plain['largest']:.1e}  {fast['largest']:.1e}",
                flush=True,
            )
    for seed in seeds:
        row = {"seed": seed, "steps": steps} | {name: last_losses(seed, name, steps) for name in ALGORITHMS}
        report["training"].append(row)
        print(
            f"seed {seed}: loss of the last steps  plain {row['plain']:.5f}  winograd {row['winograd']:.5f}", flush=True
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
