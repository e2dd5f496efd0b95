"""Can the digits that a model says be understood? A recogniser that learned from other people says which it hears.

    python -m benchmarks.papers.spoken --out DIR [--steps 1400] [--json FILE]

1. The judge is PocketSphinx (Huggins-Daines et al. 2006) with the acoustic model of digits that its developers trained
   on TIDIGITS (Leonard 1984), recordings of people from all over the United States. It has to say one of ten words.
   Everybody's recordings in English are new to it: how many of them it recognises says what its verdict is worth.
2. A spectrogram model learns the digits of these people but one, each recording at five tempos, which moves pitch and
   formants, too; ten classes.
3. The judge listens to its samples, at several scales of guidance. Beside them: the person held out; the training
   sounds through the spectrogram and back, which is what a perfect copy would score; and the training sounds that are
   nearest to the samples. Variety is the mean distance between sounds of one digit, in decibels.

Needs `pip install pocketsphinx` (BSD), pydiff[audio], and from Debian pocketsphinx-testdata (BSD), saytime (GPL),
tuxpaint-stamps-default (GPL-2) and asterisk-core-sounds-en-wav (CC-BY-SA-3.0). Only figures leave this script: nothing
made from the recordings is kept in pydiff. The same command goes on where it was stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from benchmarks.papers.recogniser import Rows, kept
from benchmarks.papers.sound import distances, features, variety
from benchmarks.papers.unseen import wilson
from pydiff import backend
from pydiff.data import Sounds
from pydiff.data.sounds import fitting
from pydiff.data.spoken import DIGITS, digit_recordings, load_spoken_digits, load_synthetic_digits, synthetic_voices
from pydiff.report.write import training_time
from pydiff.sound import Spectrogram, resample

RECIPE = {"batch_size": 16, "lr": 2e-3, "ema": 0.998, "prediction": "x0", "conditional": True, "sample_every": 0}
RECIPE |= {"timestep_sampling": "logit_normal", "timestep_shift": 2.0, "checkpoint_every": 50, "channels": (16, 32, 48)}
BANDS = 32  # of the spectrogram; through twice as many, recordings lose less, but a model of them takes longer to learn
DRAWN = {"sampler": "dpm_solver", "steps": 25}
GUIDANCE = (1.0, 2.0, 3.0)
HELD_OUT = "en_GB 1"  # the voice that the model does not learn
TEMPOS = (0.88, 0.94, 1.06, 1.12)
TIDIGITS = Path("/usr/share/pocketsphinx/test/data/tidigits")  # where Debian's package puts it
GRAMMAR = f"#JSGF V1.0;\ngrammar digits;\npublic <digit> = {' | '.join(DIGITS)};\n"
# As the recordings of TIDIGITS are: before and after, a third of a second of a quiet room, some 50 dB below the speech.
LOUDNESS, ROOM, PAUSE = 0.1, 2e-4, 0.3  # root of the mean square, of full scale, of both; seconds


class Judge:
    """Hears which digit is said. Raises ImportError or FileNotFoundError, each with a sentence, if it is not installed.

    folder: of the acoustic model. rate: samples a second of what it hears, 8,000 or more.
    """

    def __init__(self, rate: int, folder: Path = TIDIGITS):
        try:
            from pocketsphinx import Decoder
        except ImportError:
            raise ImportError("the judge of spoken digits needs PocketSphinx: pip install pocketsphinx") from None
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the judge of spoken digits needs {folder}: install Debian's package pocketsphinx-testdata"
            )
        files = {"hmm": str(folder / "hmm"), "dict": str(folder / "lm/tidigits.dic"), "lm": None}
        self.rate, self.decoder = rate, Decoder(samprate=rate, loglevel="FATAL", **files)
        self.decoder.config["dither"] = False  # so that what it hears does not depend on what it heard before
        self.decoder.reinit_feat()
        self.decoder.add_jsgf_string("digits", GRAMMAR)
        self.decoder.activate_search("digits")

    def hears(self, sounds) -> np.ndarray:
        """Sounds (N, 1, L, 1) -> the digit heard in each (N,), -1 for none."""
        pause = round(PAUSE * self.rate)
        x = sounds[:, 0, :, 0].astype(np.float64)
        x = x * LOUDNESS / np.sqrt((x**2).mean(1, keepdims=True) + 1e-20)
        x = np.pad(x, ((0, 0), (pause, pause)))
        x = x + ROOM * pydiff.random.normal(pydiff.random.key(0, pydiff.random.DATA, 0), x.shape[1:], np.float64)
        return np.array([self._heard((one.clip(-1, 1) * 32767).astype(np.int16)) for one in x], int)

    def _heard(self, samples) -> int:
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return DIGITS.index(found.hypstr) if found is not None and found.hypstr in DIGITS else -1


def recognised(judge, sounds, labels) -> dict:
    """Share of the sounds (N, 1, L, 1) in which the judge hears their labels (N,), its 95 % interval, how many sounds
    these are, and of which digits how many were not recognised.
    """
    heard = judge.hears(sounds)
    share = float((heard == labels).mean())
    wrong = {DIGITS[k]: int(((labels == k) & (heard != k)).sum()) for k in range(10)}
    found = {"recognised": share, "interval": wilson(share, len(labels)), "sounds": len(labels)}
    return found | {"not_recognised": {name: count for name, count in wrong.items() if count}}


def people() -> dict:
    """{voice: its recordings} of everyone who recorded the digits in English."""
    found = {}
    for one in digit_recordings():
        if one.voice.startswith("en"):
            found.setdefault(one.voice, []).append(one)
    return found


def made_by(run, labels, guidance) -> Sounds:
    """Sounds of these classes (N,) by the model."""
    made = run.sample(len(labels), seed=1, labels=labels, guidance=guidance, **DRAWN)
    return Sounds("samples", made, labels, DIGITS, rate=run.codec.rate)


def spectrogram(data, bands) -> Spectrogram:
    """The usual codec of these sounds with another number of bands."""
    return Spectrogram(data.rate, data.shape[1], **{**fitting(data.rate, data.shape[1]), "bands": bands})


def through(codec, data):
    """The sounds as they come back from the codec."""
    return codec.decode(codec.encode(data.images))


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


def main(arguments=None):
    """Judges the judge, trains, judges the model, prints, writes the JSON. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--count", type=int, default=10, help="samples of each digit, for each scale; at least 2")
    parser.add_argument("--judge-only", action="store_true", help="judge the recordings, and train no model")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    spoken = people()
    if HELD_OUT not in spoken or len(spoken) < 2:
        raise SystemExit("there are no recordings of two people, one of them English: install the packages above")
    everyone = load_spoken_digits(recordings=[one for voice in spoken.values() for one in voice])
    try:
        judge = Judge(everyone.rate)
    except (ImportError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    rows = Rows(chosen.out / "rows.json", [chosen.steps, chosen.count])
    judged = partial(recognised, judge)
    for voice, theirs in spoken.items():
        sounds = load_spoken_digits(recordings=theirs)
        rows.add(f"recordings, {voice}", partial(judged, sounds.images, sounds.labels))
    own = {"variety_db": variety(everyone.images, everyone.labels)}
    rows.add("recordings, together", lambda: judged(everyone.images, everyone.labels) | own)
    for bands in (BANDS, 2 * BANDS):
        codec = spectrogram(everyone, bands)
        rows.add(
            f"recordings, through {bands} bands", lambda codec=codec: judged(through(codec, everyone), everyone.labels)
        )
    programs = synthetic_voices()[::8]
    if programs:
        said = load_synthetic_digits(seconds=everyone.shape[1] / everyone.rate, voices=programs)
        rows.add("synthetic voices", lambda: judged(said.images, said.labels))
    found = {"people": len(spoken), "held_out": HELD_OUT}
    if not chosen.judge_only:
        found |= said_by_a_model(chosen, spoken, judged, rows)
    result = {"digits": {**found, "rows": dict(rows)}, "machine": describe(backend.threads())}
    print(table(result["digits"]))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def said_by_a_model(chosen, spoken, judged, rows) -> dict:
    """Trains on everyone but HELD_OUT; adds rows on what the model says and what is beside it. Returns its figures."""
    held = load_spoken_digits(recordings=spoken[HELD_OUT])
    heard = load_spoken_digits(recordings=[one for name in spoken if name != HELD_OUT for one in spoken[name]])
    data = at_other_tempos(heard)
    how = {"codec": spectrogram(data, BANDS), "steps": chosen.steps, "announce": print}
    run = pydiff.train(data, out=chosen.out / "model", **how, **RECIPE)
    known = features(data.images)

    rows.add("training sounds", lambda: judged(data.images, data.labels))

    def copied():
        back = through(run.codec, data)
        near = float(np.median(distances(features(back), known).min(1)))
        return judged(back, data.labels) | {"variety_db": variety(back, data.labels), "nearest_training_db": near}

    rows.add(f"training sounds, through {BANDS} bands", copied)

    def beside(name, sounds, labels, more):
        """A row for sounds, and one for the training sounds that are nearest to them."""
        between = distances(features(sounds), known)
        copies = data.images[between.argmin(1)]
        more = {"nearest_training_db": float(np.median(between.min(1))), **more}
        rows.add(name, lambda: judged(sounds, labels) | more)
        rows.add(f"{name}: nearest training sounds", lambda: judged(copies, labels))

    beside(f"held out ({HELD_OUT})", held.images, held.labels, {})
    labels = np.arange(10 * chosen.count) % 10
    for guidance in GUIDANCE:
        name = f"samples, guidance {guidance:g}"
        made = kept(
            chosen.out / f"{chosen.steps} steps, {name}, {chosen.count} of each.npz",
            lambda scale=guidance: made_by(run, labels, scale),
        )
        beside(name, made.images, labels, {"variety_db": variety(made.images, labels)})
    figures = {"steps": chosen.steps, "parameters": run.parameters, "learned_from": len(data)}
    return figures | {"training_seconds": round(training_time([row["time"] for row in run.log()]))}


def table(found) -> str:
    """What was found, in Markdown."""
    lines = ["| digits | sounds | recognised | variety | nearest |", "| --- | --- | --- | --- | --- |"]
    for name, row in found["rows"].items():
        low, high = row["interval"]
        more = [f"{row[key]:.1f} dB" if key in row else "" for key in ("variety_db", "nearest_training_db")]
        share = f"{row['recognised']:.0%} ({low:.0%} to {high:.0%})"
        lines.append(f"| {name} | {row['sounds']} | {share} | {' | '.join(more)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
