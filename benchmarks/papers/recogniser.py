"""A recogniser of spoken digits in layers of pydiff's own, taught by synthetic voices; and what its benchmarks share.

`benchmarks.papers.speech` trains several of them. They understand programs like those that they learned from, and few
of the digits that people have recorded: a judge of people's voices must have learned from many people, and is a library
(`benchmarks.papers.spoken`).
"""

import json

import numpy as np

import pydiff
from benchmarks.papers.unseen import wilson
from pydiff import nn, ops
from pydiff.data import Sounds
from pydiff.data.order import batch_indices
from pydiff.training import LoopOptions, Task, train_task

SHIFT, NOISE, TILT = 0.12, 0.1, 0.15  # of the augmentation: of the length, of the image's range, of its slope


class Recogniser(nn.Module):
    """Spectrograms (N, bands, frames, 1) in [-1, 1] -> logits (N, 10)."""

    def __init__(self, seed=0, width=24):
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(8, width, activation="silu")
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(8, 2 * width, activation="silu")
        self.conv3, self.norm3 = nn.Conv2d(2 * width, 3 * width, 3, 2, 1), nn.GroupNorm(8, 3 * width, activation="silu")
        self.conv4, self.norm4 = nn.Conv2d(3 * width, 4 * width, 3, 2, 1), nn.GroupNorm(8, 4 * width, activation="silu")
        self.dropout, self.out = nn.Dropout(0.3), nn.Linear(3 * 4 * width, 10)
        self.initialize(seed)

    def forward(self, x):
        for i in "1234":
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
        n, _, frames, channels = x.shape
        third = frames // 3  # beginning, middle and end each by its mean
        parts = [x[:, :, i * third : (i + 1) * third if i < 2 else frames].mean(axis=(1, 2)) for i in range(3)]
        return self.out(self.dropout(ops.concatenate(*parts).reshape(n, 3 * channels)))


class Recognise(Task):
    """Learns the class of sounds, seen as spectrograms that are shifted in time and pitch, tilted and made noisy."""

    unit = "sounds"

    def __init__(self, data, options):
        self.x, self.labels = spectra(data), data.labels
        self.data, self.options, self.model = data, options, Recogniser(options.seed)

    def batch(self, step, numbers):
        """(x (N, bands, frames, 1), classes (N,))."""
        options = self.options
        chosen = batch_indices(len(self.labels), options.batch_size, step - 1, options.seed)[numbers]
        key = pydiff.random.key(options.seed, pydiff.random.AUGMENT, numbers, step)
        return self.xp.asarray(augmented(self.x[chosen], key)), self.labels[chosen]

    def losses(self, batch):
        """Cross entropy, one a sound."""
        x, labels = batch
        return -ops.log_softmax(self.model(ops.Tensor(x)))[np.arange(len(labels)), labels]

    def identity(self):
        """The data."""
        return {"data": self.data.name, "fingerprint": self.data.fingerprint()}

    def twin(self):
        """A second recogniser, for the average of the weights."""
        return Recogniser(self.options.seed)


def spectra(data):
    """Sounds as the spectrogram codec sees them, each brought to the same mean level."""
    x = data.coded("spectrogram").encode(data.images)
    loud = x > -0.9
    return np.where(loud, x - (x * loud).sum((1, 2), keepdims=True) / loud.sum((1, 2), keepdims=True), -1.0).astype("f")


def augmented(x, key):
    """Moved in time and by a band or two, tilted, louder or softer, a share of the bands or frames hidden, noisy."""
    n, bands, frames, _ = x.shape
    u = pydiff.random.uniform(key, (8,))
    noise = pydiff.random.normal(key._replace(purpose=key.purpose + 256), x.shape[1:], np.float32)
    made = np.full_like(x, -1.0)
    for i in range(n):
        dt, df = round((2 * u[i, 0] - 1) * SHIFT * frames), round((2 * u[i, 1] - 1) * 2)
        moved = np.roll(x[i], (df, dt), (0, 1))
        moved = moved + (2 * u[i, 2] - 1) * TILT * np.linspace(-1, 1, bands, dtype="f")[:, None, None]
        moved = moved * (0.8 + 0.4 * u[i, 3])
        first, length = int(u[i, 4] * frames), int(u[i, 5] * 0.15 * frames)
        moved[:, first : first + length] = -1.0
        first, length = int(u[i, 6] * bands), int(u[i, 7] * 0.15 * bands)
        moved[first : first + length] = -1.0
        made[i] = moved
    return made + np.float32(NOISE) * noise


def kept(path, make) -> Sounds:
    """The Sounds that `make` makes, from a file where it has been made before: programs take their time to speak."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {} if made.labels is None else {"labels": made.labels, "classes": made.classes}
        np.savez(path, name=made.name, images=made.images, rate=made.rate, **known)
    with np.load(path) as file:
        more = {"labels": file["labels"], "classes": file["classes"].tolist()} if "labels" in file else {}
        return Sounds(str(file["name"]), file["images"], rate=int(file["rate"]), **more)


def recogniser(data, steps, seed=0, out=None):
    """A trained Recogniser. out: the folder of its training, which goes on there where it was stopped."""
    options = LoopOptions(steps=steps, batch_size=32, lr=2e-3, warmup=50, ema=0.99, seed=seed, checkpoint_every=50)
    trainer = train_task(Recognise(data, options), options, out, progress=False)
    return trainer.ema_model()


class Rows(dict):
    """Rows of a table by name, each written to a file as soon as it is there, and not made again by the next call.

    settings: what they depend on; rows of others are thrown away.
    """

    def __init__(self, path, settings):
        found = json.loads(path.read_text()) if path.exists() else {}
        super().__init__(found["rows"] if found.get("settings") == settings else {})
        self.path, self.settings = path, settings

    def add(self, name, make):
        """The row of this name, made now unless it has been before; `make` gives it as a dict."""
        if name not in self:
            self[name] = make()
            self.path.write_text(json.dumps({"settings": self.settings, "rows": self}, indent=1) + "\n")
            print(name, json.dumps(self[name]), flush=True)
        return self[name]


def recognised(model, data) -> dict:
    """Share of the sounds whose class is recognised, its 95 % interval, and how many they are."""
    with pydiff.no_grad():
        right = model(ops.Tensor(spectra(data))).data.argmax(1) == data.labels
    share = float(right.mean())
    return {"recognised": share, "interval": wilson(share, len(right)), "sounds": len(right)}
