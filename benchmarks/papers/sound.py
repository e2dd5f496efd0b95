"""Are the sounds right? Pitch, glides and formants of generated tones, measured beside real ones.

    python -m benchmarks.papers.sound --out DIR [--steps 5000] [--json FILE]

A waveform model learns 1,650 quarter seconds made by formula (pydiff.data.tones), with their classes: four notes, two
sweeps, five vowels. Then, for each guidance scale, it makes --count sounds of each class, and these are measured:

    notes     pitch by FFT, in cents from the note; right within 50 (half a semitone)
    sweeps    octaves a second by a line through the strongest partial; right within 0.5 of +2 or -2; and whether they
              go the right way, faster than a quarter octave a second
    vowels    two formants by linear prediction; right if of the five vowels of the table their own is nearest

Beside them: as many sounds that the formula makes with another seed (what a perfect model would score), and the
training sound that is nearest to each sample (what copying would score, and how far the samples are from it).
Nearness is the distance of spectra in decibels. The same command goes on where it was stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from pydiff import backend
from pydiff.data.tones import CLASSES, NOTES, SWEEPS, VOWELS, load_tones
from pydiff.sound import measure, stft

SECONDS, RATE = 0.25, 8000
RECIPE = {"batch_size": 16, "lr": 1.5e-3, "ema": 0.998, "prediction": "x0", "conditional": True, "sample_every": 0}
RECIPE |= {"timestep_sampling": "logit_normal", "timestep_shift": 2.0, "checkpoint_every": 50, "channels": (24, 48, 72)}
GUIDANCE = (1.0, 2.0)
NEAR_CENTS, NEAR_SLOPE, ANY_SLOPE = 50.0, 0.5, 0.25
FLOOR = 50.0  # dB below full scale; beneath it lies what no ear minds beside a tone of -20 dB


def trained(folder, steps):
    """(run, seconds of training by its log, which leaves out pauses)."""
    from pydiff.report.write import training_time

    run = pydiff.train("tones", rate=RATE, seconds=SECONDS, out=folder, steps=steps, announce=print, **RECIPE)
    return run, training_time([row["time"] for row in run.log()])


def judged(sounds, labels) -> dict:
    """Figures of sounds (N, 1, L, 1) that were asked to be of these classes (N,)."""
    measured = {"cents": [], "slope": [], "formants": []}
    right = {"notes": [], "sweeps": [], "vowels": [], "sweep_directions": []}
    table = np.log2([VOWELS[name][:2] for name in VOWELS])
    for sound, label in zip(sounds[:, 0, :, 0].astype(np.float64), labels, strict=True):
        kind = CLASSES[label]
        if kind in NOTES:
            error = measure.cents(measure.pitch(sound, RATE), NOTES[kind])
            measured["cents"].append(abs(error))
            right["notes"].append(abs(error) <= NEAR_CENTS)
        elif kind in SWEEPS:
            slope = measure.slope(sound, RATE)
            error = abs(slope - SWEEPS[kind])
            measured["slope"].append(error)
            right["sweep_directions"].append(slope * np.sign(SWEEPS[kind]) > ANY_SLOPE)
            right["sweeps"].append(error <= NEAR_SLOPE)
        else:
            found = np.log2(measure.formants(sound, RATE))
            wanted = np.log2(VOWELS[kind][:2])
            measured["formants"].append(100 * np.abs(2 ** (found - wanted) - 1).mean())
            distances = np.nan_to_num(np.abs(table - found).sum(1), nan=np.inf)
            right["vowels"].append(np.isfinite(distances).any() and list(VOWELS)[int(distances.argmin())] == kind)
    return {
        **{f"{name}_right": float(np.mean(values)) for name, values in right.items()},
        "median_cents": float(np.nanmedian(measured["cents"])),
        "median_slope_error": float(np.nanmedian(measured["slope"])),
        "median_formant_error_percent": float(np.nanmedian(measured["formants"])),
    }


def features(sounds) -> np.ndarray:
    """(N, 1, L, 1) -> (N, D): spectra in decibels, nothing below -FLOOR, scaled so that distances are dB a bin."""
    spectra = np.abs(stft(sounds[:, 0, :, 0], 256, 128)) / 64
    level = np.maximum(20 * np.log10(spectra + 1e-12), -FLOOR).reshape(len(sounds), -1)
    return level / np.sqrt(level.shape[1])


def distances(a, b) -> np.ndarray:
    """(N, M) between rows."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0))


def variety(sounds, labels) -> float:
    """Mean distance between sounds of one class, in decibels."""
    found = features(sounds)
    parts = []
    for label in np.unique(labels):
        between = distances(found[labels == label], found[labels == label])
        parts.append(between[np.triu_indices(len(between), 1)].mean())
    return float(np.mean(parts))


def evaluate(run, count, steps, sampler="dpm_solver") -> list[dict]:
    """A row for each source of sounds: the model at each scale, the formula, the nearest training sounds."""
    labels = np.arange(count * len(CLASSES)) % len(CLASSES)
    training = load_tones(rate=RATE, seconds=SECONDS)
    known = features(training.images)
    fresh = load_tones(len(labels), seed=1, rate=RATE, seconds=SECONDS).images
    rows = []
    for guidance in GUIDANCE:
        made = run.sample(len(labels), seed=1, labels=labels, guidance=guidance, sampler=sampler, steps=steps)
        between = distances(features(made), known)
        name = f"model, guidance {guidance:g}"
        rows.append({"source": name, "guidance": guidance, **judged(made, labels), "variety_db": variety(made, labels)})
        rows[-1]["nearest_training_db"] = float(np.median(between.min(1)))
        if guidance == GUIDANCE[0]:
            copies = training.images[between.argmin(1)]
    rows.append({"source": "formula, another seed", **judged(fresh, labels), "variety_db": variety(fresh, labels)})
    rows[-1]["nearest_training_db"] = float(np.median(distances(features(fresh), known).min(1)))
    rows.append({"source": "nearest training sounds", **judged(copies, labels), "variety_db": variety(copies, labels)})
    return rows


def table(rows) -> str:
    """The rows as Markdown."""
    head = [
        "sounds of",
        "notes right",
        "median cents",
        "sweeps right",
        "vowels right",
        "formants off",
        "variety",
        "nearest",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        near = f"{row['nearest_training_db']:.1f} dB" if "nearest_training_db" in row else "0"
        lines.append(
            f"| {row['source']} | {row['notes_right']:.0%} | {row['median_cents']:.1f} | {row['sweeps_right']:.0%} "
            f"| {row['vowels_right']:.0%} | {row['median_formant_error_percent']:.1f} % | {row['variety_db']:.1f} dB "
            f"| {near} |"
        )
    return "\n".join(lines)


def main(arguments=None):
    """Trains, makes sounds, measures, prints the table, writes the JSON. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    run, seconds = trained(chosen.out, chosen.steps)
    began = time.perf_counter()
    rows = evaluate(run, chosen.count, chosen.sampling_steps)
    result = {
        "tones": rows,
        "steps": chosen.steps,
        "recipe": RECIPE,
        "training_seconds": round(seconds, 1),
        "sampling_seconds": round(time.perf_counter() - began, 1),
        "sounds_of_each_class": chosen.count,
        "parameters": run.parameters,
        "machine": describe(backend.threads()),
    }
    print(table(rows))
    if chosen.json is not None:
        kept = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
        chosen.json.write_text(json.dumps(kept | result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
