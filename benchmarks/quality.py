"""Is the demo any good? A digit classifier, trained with pydiff itself, judges what a diffusion run draws.

    python -m benchmarks.quality RUN [--json FILE]       RUN: folder of a finished run on digits, as `pydiff demo` makes

1. A small convolutional network learns the training digits; a fifth of them, never shown to it, says how often it errs.
2. It looks at 256 samples: how many does it recognise with confidence >= 0.9, and are all ten digits there?
3. Fréchet distance (Heusel et al. 2017, eq. 6) between Gaussians fitted to its last features, of samples and of real
   held-out digits, each against the digits it was trained on. Equal distances would mean: as good as real ones.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import pydiff
from pydiff import nn, ops
from pydiff.codec import from_uint8
from pydiff.data import load
from pydiff.data.order import batch_indices
from pydiff.training import LoopOptions, Task, train_task

CONFIDENT = 0.9
SAMPLES = 256


class DigitClassifier(nn.Module):
    """(N, 8, 8, 1) -> features (N, 128) and logits (N, 10)."""

    def __init__(self, seed=0):
        self.conv1, self.norm1 = nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32, activation="silu")
        self.conv2, self.norm2 = nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64, activation="silu")
        self.conv3, self.norm3 = nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64, activation="silu")
        self.hidden, self.dropout, self.out = nn.Linear(4 * 4 * 64, 128), nn.Dropout(0.3), nn.Linear(128, 10)
        self.initialize(seed)

    def features(self, x):
        h = self.norm1(self.conv1(x))
        h = self.norm2(self.conv2(h))
        h = self.norm3(self.conv3(h))
        return ops.silu(self.hidden(h.reshape(len(h), 4 * 4 * 64)))

    def forward(self, x):
        return self.out(self.dropout(self.features(x)))


class DigitTask(Task):
    """Digits from 8 x 8 images: what the product's loop trains besides diffusion models.

    Random shifts by a pixel make the classifier look at shape, not place.
    """

    unit = "images"

    def __init__(self, data, options):
        self.data, self.options, self.model = data, options, DigitClassifier(options.seed)

    def batch(self, step, numbers):
        """(x (N, 8, 8, 1), digits (N,))."""
        options = self.options
        chosen = batch_indices(len(self.data), options.batch_size, step - 1, options.seed)[numbers]
        x = shifted(self.data.normalized(chosen), step, options.seed, numbers)
        return self.xp.asarray(x), self.data.labels[chosen]

    def losses(self, batch):
        """Cross entropy, one a sample."""
        x, digits = batch
        log_p = ops.log_softmax(self.model(ops.Tensor(x)))
        return -log_p[np.arange(len(digits)), digits]

    def identity(self):
        """The data."""
        return {"data": self.data.name, "fingerprint": self.data.fingerprint()}


def train_classifier(data, steps=1200, batch_size=64, seed=0, out=None):
    """A classifier trained on a Dataset of 8 x 8 digits. out: folder for checkpoints; the same call goes on there."""
    recipe = {"lr": 2e-3, "warmup": 50, "weight_decay": 1e-2, "ema": 0.0, "clip": 1.0}
    options = LoopOptions(steps=steps, batch_size=batch_size, seed=seed, **recipe)
    task = DigitTask(data, options)
    train_task(task, options, out, progress=False)
    return task.model


def shifted(x, step, seed, numbers):
    """Every image moved by -1, 0 or 1 pixels both ways, half of the time; background moves in."""
    key = pydiff.random.key(seed, pydiff.random.AUGMENT, numbers, step)
    dy, dx = (np.minimum(pydiff.random.uniform(key, (2,)) * 6, 2.999).astype(int).clip(0, 2) - 1).T
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    return np.stack([p[1 + a : 9 + a, 1 + b : 9 + b] for p, a, b in zip(padded, dy, dx, strict=True)])


def judge(model, images):
    """images (N, 8, 8, 1) uint8 -> features (N, 128), probabilities (N, 10)."""
    with pydiff.no_grad():
        features = model.features(ops.Tensor(from_uint8(images)))
        return features.data.astype(np.float64), ops.softmax(model.out(features)).data


def frechet_distance(a, b):
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^½) for features (N, D) with covariances A and B."""
    mean_a, mean_b, cov_a, cov_b = a.mean(0), b.mean(0), np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # A B and root B root have the same eigenvalues; the latter is symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def evaluate(run, seed=0):
    """All figures for one run, as a dict."""
    rest, held_out = load("digits").split(0.2, seed)
    model = train_classifier(rest, seed=seed)
    real_features, real_p = judge(model, held_out.images)
    train_features, _ = judge(model, rest.images)
    features, p = judge(model, run.sample(SAMPLES, seed=seed + 1))
    counts = np.bincount(p.argmax(1), minlength=10)
    count = min(SAMPLES, len(held_out))
    return {
        "steps": run.step,
        "classifier_accuracy_held_out": float((real_p.argmax(1) == held_out.labels).mean()),
        "held_out_digits": len(held_out),
        "real_recognised": float((real_p.max(1) >= CONFIDENT).mean()),
        "samples": SAMPLES,
        "samples_recognised": float((p.max(1) >= CONFIDENT).mean()),
        "samples_per_digit": counts.tolist(),
        "frechet_samples": frechet_distance(features[:count], train_features),
        "frechet_real": frechet_distance(real_features[:count], train_features),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished run on digits")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = evaluate(pydiff.load(arguments.run), arguments.seed)
    for name, value in figures.items():
        print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
