"""Can the spoken digits be understood? A recogniser judges what a model of recorded digits says.

    python -m benchmarks.papers.spoken --out DIR [--steps 600] [--json FILE]

1. A recogniser, layers of pydiff's own through the Task interface, learns digits from synthetic voices alone: English
   by espeak-ng and flite. It is judged on voices that it never heard: synthetic ones, and the recordings in English.
2. Recordings of digits are installed of some thirty people in twenty languages (pydiff.data.spoken). Of each language
   that three people or more speak, one is held out. A second recogniser learns the other people, at five tempos each
   (which moves pitch and formants, too), together with synthetic voices in these languages, everything shifted,
   filtered and with noise; how many of the held-out people's digits it recognises says what its verdict is worth.
3. A spectrogram model learns the digits of those who were not held out, with ten classes. The second recogniser says
   how many of its samples it understands, beside the held-out people, the training recordings that are nearest to the
   samples, and recordings through the spectrogram and back; and how much the samples differ from each other.

Only figures leave this script: the recordings are GPL and CC-BY-SA, and nothing made from them is kept in pydiff.
The same command goes on where it was stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from benchmarks.papers.sound import distances, features, variety
from benchmarks.papers.unseen import wilson
from pydiff import backend, nn, ops
from pydiff.data import Sounds
from pydiff.data.order import batch_indices
from pydiff.data.spoken import (
    digit_recordings,
    foreign_voices,
    load_spoken_digits,
    load_synthetic_digits,
    synthetic_voices,
)
from pydiff.sound import resample
from pydiff.training import LoopOptions, Task, train_task

RECIPE = {"batch_size": 16, "lr": 2e-3, "ema": 0.998, "prediction": "v", "conditional": True, "sample_every": 0}
RECIPE |= {"checkpoint_every": 50, "channels": (16, 32, 48), "codec": "spectrogram"}
ENGLISH = ("en_US 1", "en_GB 1", "en_US prompts")
TEMPOS = (0.85, 0.92, 1.09, 1.18)
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


def main(arguments=None):
    """Trains, judges, prints, writes the JSON. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--recogniser-steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=10, help="samples of each digit")
    parser.add_argument("--voices", type=int, default=40, help="synthetic voices that the first recogniser learns from")
    parser.add_argument("--only", choices=("synthetic", "recordings"), help="one half of it; left out, both")
    parser.add_argument("--judge-only", action="store_true", help="train and judge the second recogniser, and no model")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    earlier = json.loads(chosen.json.read_text()) if chosen.json is not None and chosen.json.exists() else {}
    found = earlier.get("digits", {})
    if chosen.only != "recordings":
        found["taught_by_synthetic_voices"] = taught_by_programs(chosen)
    if chosen.only != "synthetic":
        found["taught_by_recordings"] = taught_by_recordings(chosen)
    result = {**earlier, "digits": found, "machine": describe(backend.threads())}
    print(table(found) if len(found) == 2 else json.dumps(found, indent=1))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def taught_by_programs(chosen) -> dict:
    """A recogniser that learned from synthetic voices, judged on voices that it never heard."""
    voices = synthetic_voices()
    order = pydiff.random.permutation(0, pydiff.random.DATA, 0, len(voices))
    learned, held = order[: chosen.voices], order[chosen.voices : chosen.voices + 12]
    digits = kept(chosen.out / "learned.npz", lambda: load_synthetic_digits(voices=[voices[i] for i in learned]))
    model = recogniser(digits, chosen.recogniser_steps, out=chosen.out / "first-recogniser")
    english = load_spoken_digits(recordings=[one for one in digit_recordings() if one.voice in ENGLISH])
    return {
        "voices": len(learned),
        "recogniser_steps": chosen.recogniser_steps,
        "synthetic voices held out": recognised(model, load_synthetic_digits(voices=[voices[i] for i in held])),
        "recordings in English": recognised(model, english),
    }


def people() -> tuple[list, list]:
    """(recordings of those that are heard in training, of those that are held out): one of each language with three."""
    found = digit_recordings()
    spoken_by = {}
    for one in found:
        spoken_by.setdefault(one.voice[:2], {}).setdefault(one.voice, []).append(one)
    held = set()
    for number, language in enumerate(sorted(spoken_by)):
        voices = sorted(spoken_by[language])
        if len(voices) >= 3:
            order = pydiff.random.permutation(2, pydiff.random.DATA, number, len(voices))
            held.add(voices[order[0]])
    return [one for one in found if one.voice not in held], [one for one in found if one.voice in held]


def at_other_tempos(data):
    """The sounds and, besides, each of them slower and faster, which lowers and raises pitch and formants with it."""
    parts, (_, length, _) = [data.images], data.shape
    for tempo in TEMPOS:
        made = np.zeros_like(data.images)
        for place, sound in zip(made, data.images, strict=True):
            other = resample(sound[0].astype(np.float64), round(tempo * data.rate), data.rate)
            longest = min(length, len(other))
            first, to = (len(other) - longest) // 2, (length - longest) // 2
            place[0, to : to + longest] = other[first : first + longest].clip(-1, 1)
        parts.append(made)
    labels = np.tile(data.labels, len(parts))
    return Sounds(data.name, np.concatenate(parts), labels, data.classes, rate=data.rate)


def together(name, *parts):
    """Several data sets of the same classes as one."""
    images, labels = (np.concatenate([getattr(part, kind) for part in parts]) for kind in ("images", "labels"))
    return Sounds(name, images, labels, parts[0].classes, rate=parts[0].rate)


def taught_by_recordings(chosen) -> dict:
    """A recogniser that learned from people and programs, judging other people, the model's samples and their nearest
    recordings.
    """
    heard_from, held_from = people()
    data, held = load_spoken_digits(recordings=heard_from), load_spoken_digits(recordings=held_from)
    foreign = kept(chosen.out / "foreign.npz", lambda: load_synthetic_digits(voices=foreign_voices()))
    english = kept(chosen.out / "english.npz", lambda: load_synthetic_digits(voices=synthetic_voices()[::2]))
    learned = together("people and programs", at_other_tempos(data), foreign, english)
    judge = recogniser(learned, chosen.recogniser_steps, seed=1, out=chosen.out / "second-recogniser")
    rows = Rows(chosen.out / "rows.json", [chosen.recogniser_steps, chosen.steps, chosen.count])
    own = {"variety_db": variety(held.images, held.labels)}
    rows.add("people held out", lambda: recognised(judge, held) | own)
    for language in sorted({one.voice[:2] for one in held_from}):
        theirs = load_spoken_digits(recordings=[one for one in held_from if one.voice[:2] == language])
        rows.add(f"of them, {language}", partial(recognised, judge, theirs))
    figures = {"recordings": len(data), "people": len({one.voice for one in heard_from}), "learned_from": len(learned)}
    figures |= {"recogniser_steps": chosen.recogniser_steps}
    if chosen.judge_only:
        return {**figures, "rows": dict(rows)}
    run = pydiff.train(data, out=chosen.out / "model", steps=chosen.steps, announce=print, **RECIPE)
    back = Sounds("back", run.codec.decode(run.codec.encode(held.images)), held.labels, held.classes, rate=held.rate)
    rows.add("people held out, through the spectrogram", lambda: recognised(judge, back))
    labels = np.arange(10 * chosen.count) % 10
    for guidance in (1.0, 2.0):
        names = f"samples, guidance {guidance:g}", f"their nearest training recordings, guidance {guidance:g}"
        if all(name in rows for name in names):
            continue
        made = run.sample(len(labels), seed=1, labels=labels, guidance=guidance, sampler="dpm_solver", steps=25)
        between = distances(features(made), features(data.images))
        own = {"variety_db": variety(made, labels), "nearest_training_db": float(np.median(between.min(1)))}
        for name, sounds, more in zip(names, (made, data.images[between.argmin(1)]), (own, {}), strict=True):
            found = recognised(judge, Sounds("made", sounds, labels, data.classes, rate=data.rate)) | more
            rows.add(name, partial(dict, found))
    figures |= {"steps": chosen.steps, "parameters": run.parameters}
    return {**figures, "rows": dict(rows)}


def table(found) -> str:
    """What was found by both recognisers, in Markdown."""
    lines = ["| digits | sounds | recognised | variety | nearest |", "| --- | --- | --- | --- | --- |"]
    first = found["taught_by_synthetic_voices"]
    rows = {
        f"{name}, taught by programs": first[name] for name in ("synthetic voices held out", "recordings in English")
    }
    for name, row in {**rows, **found["taught_by_recordings"]["rows"]}.items():
        low, high = row["interval"]
        more = [f"{row[key]:.1f} dB" if key in row else "" for key in ("variety_db", "nearest_training_db")]
        share = f"{row['recognised']:.0%} ({low:.0%} to {high:.0%})"
        lines.append(f"| {name} | {row['sounds']} | {share} | {' | '.join(more)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
