"""Speech steered by a classifier: does a model of untranscribed speech say the digit that is asked for?

    python -m benchmarks.papers.speech --out DIR [--steps 600] [--json FILE]

The principle of Guided-TTS 2 (Kim et al. 2022), with voices that are nobody's (pydiff.data.spoken):

1. A spectrogram model learns forty words by one voice of espeak-ng, at many pitches and speeds, without a word on what
   is said: `synthetic-speech`.
2. A classifier of noisy spectrograms learns digits by other voices: two in three of `synthetic-digits`. It never heard
   the model's voice, nor was it told anything of the model's data.
3. The classifier's gradient, by our own autograd, steers the model: each digit is asked for --count times, for each
   guidance scale, measured against the norm of the noise (Guided-TTS, eq. 10) and, beside it, as it is.
4. A second recogniser, of another structure, taught by the remaining voices, says which digit it hears. Beside the
   samples: the model's own voice saying digits, as it is and through the spectrogram and back, which the recogniser
   never heard either; and samples that nobody steered, judged by what was asked for.
5. Is the voice kept? A third network learns to tell the model's voice from the classifier's by words that are no
   digits, and says what share of digits is in the model's voice: of real digits by either voice, and of the samples.

The same command goes on where it was stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from benchmarks.papers.recogniser import Rows, kept, recognised, recogniser
from benchmarks.papers.sound import distances, features, variety
from benchmarks.papers.unseen import wilson
from pydiff import backend
from pydiff.data import Sounds, spoken
from pydiff.report.write import training_time
from pydiff.sound.wav import wav_bytes

RECIPE = {"batch_size": 16, "lr": 2e-3, "ema": 0.998, "prediction": "v", "sample_every": 0, "checkpoint_every": 100}
RECIPE |= {"channels": (16, 32, 48), "codec": "spectrogram"}
JUDGE = {"batch_size": 32, "lr": 2e-3, "ema": 0.99, "checkpoint_every": 100, "codec": "spectrogram"}
JUDGE |= {"channels": (16, 32, 48), "attention": (), "dropout": 0.1}
SCALES = {"noise": (0.025, 0.05, 0.1, 0.2), "gradient": (1.0, 4.0)}
LEVELS = (0, 250, 500, 750)  # of noise, at which the classifier is judged
OTHERS = [word for word in spoken.WORDS if word not in spoken.DIGITS]
DRAWN = {"sampler": "dpm_solver", "steps": 25}


def voices_of_three():
    """(the classifier's voices, the second recogniser's, some of each that both are tested on): all of them others."""
    voices = spoken.synthetic_voices()
    order = pydiff.random.permutation(0, pydiff.random.DATA, 1, len(voices))
    shuffled = [voices[i] for i in order]
    third = len(voices) // 3
    return shuffled[: 2 * third - 6], shuffled[2 * third :], shuffled[2 * third - 6 : 2 * third]


def data(folder):
    """{name: Sounds} of everything that is learned from or tested on."""
    ours, theirs, tested = voices_of_three()
    speaker = spoken.speaker_voices()

    def digits(name, voices):
        return kept(folder / f"{name}.npz", lambda: spoken.load_synthetic_digits(voices=voices))

    def words(name, voices, said):
        return kept(folder / f"{name}.npz", lambda: spoken.load_synthetic_speech(voices=voices, words=said))

    return {
        "speech": words("speech", speaker, spoken.WORDS),
        "classifier": digits("classifier", ours),
        "recogniser": digits("recogniser", theirs),
        "tested": digits("tested", tested),
        "speaker": digits("speaker", speaker),
        "speaker's words": words("speakers-words", speaker[::2], OTHERS),
        "others' words": words("others-words", [*ours[::4], *theirs[::4]], OTHERS[:12]),
    }


def of_two_voices(speaker, others) -> Sounds:
    """Two data sets as one with the classes "speaker" and "others"."""
    images = np.concatenate([speaker.images, others.images])
    labels = np.repeat([0, 1], [len(speaker), len(others)])
    return Sounds("two voices", images, labels, ["speaker", "others"], rate=speaker.rate)


def share(right) -> dict:
    """{"share", "interval"} of a list of yes and no."""
    found = float(np.mean(right))
    return {"share": found, "interval": wilson(found, len(right))}


def judged(sounds, wanted, second, voice, known) -> dict:
    """What is said of digits (N, 1, L, 1) that were to be `wanted` (N,): understood, in the voice, how varied."""
    made = Sounds("made", sounds, wanted, spoken.DIGITS, rate=known.rate)
    as_speaker = Sounds("made", sounds, np.zeros(len(sounds), int), ["speaker", "others"], rate=known.rate)
    heard, kept_voice = recognised(second, made), recognised(voice, as_speaker)
    return {
        "understood": {"share": heard["recognised"], "interval": heard["interval"]},
        "voice_kept": {"share": kept_voice["recognised"], "interval": kept_voice["interval"]},
        "variety_db": variety(sounds, wanted),
        "nearest_training_db": float(np.median(distances(features(sounds), features(known.images)).min(1))),
        "sounds": len(sounds),
    }


def main(arguments=None):
    """Trains, steers, judges, prints, writes the JSON. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--classifier-steps", type=int, default=350)
    parser.add_argument("--recogniser-steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=10, help="samples of each digit, for each scale")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    known = data(chosen.out / "data")
    run = pydiff.train(known["speech"], out=chosen.out / "speech", steps=chosen.steps, announce=print, **RECIPE)
    judge = pydiff.train(
        known["classifier"], model="classifier", out=chosen.out / "classifier", steps=chosen.classifier_steps,
        announce=print, **JUDGE,
    )  # fmt: skip
    steps, folder = chosen.recogniser_steps, chosen.out
    second = recogniser(known["recogniser"], steps, 2, folder / "second-recogniser")
    voices = of_two_voices(known["speaker's words"], known["others' words"])
    voice = recogniser(voices, steps, 3, folder / "voice-recogniser")
    found = {"steps": chosen.steps, "classifier_steps": chosen.classifier_steps, "recogniser_steps": steps}
    found |= {"parameters": run.parameters, "classifier_parameters": judge.parameters}
    found["training_seconds"] = round(training_time([row["time"] for row in run.log()]))
    found["classifier"] = {
        str(t): {"voices held out": judge.accuracy(known["tested"], t), "speaker": judge.accuracy(known["speaker"], t)}
        for t in LEVELS
    }
    rows = Rows(folder / "rows.json", [chosen.steps, chosen.classifier_steps, steps, chosen.count])
    wanted = np.arange(10 * chosen.count) % 10
    digits = partial(judged, second=second, voice=voice, known=known["speech"])
    real, others = known["speaker"], known["tested"]
    rows.add("the voice itself", lambda: digits(real.images, real.labels))
    back = run.codec.decode(run.codec.encode(real.images))
    rows.add("the voice itself, through the spectrogram", lambda: digits(back, real.labels))
    rows.add("the classifier's voices", lambda: digits(others.images, others.labels))

    def drawn(name, source, **how):
        made = source.sample(len(wanted), seed=1, **how, **DRAWN)
        listen(folder / "samples", name, made, run.codec.rate)
        return digits(made, wanted)

    def written():
        """What was found so far, and the file with it, after every row: a stopped call has not been for nothing."""
        result = {"machine": describe(backend.threads()), "speech": found | {"rows": dict(rows)}}
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(result, indent=1) + "\n")
        return result

    rows.add("not steered", partial(drawn, "not-steered", run))
    for by, scales in SCALES.items():
        steered = run.steered(judge, by)
        for scale in scales:
            written()
            how = {"labels": wanted, "guidance": scale}
            rows.add(f"by {by}, scale {scale:g}", partial(drawn, f"{by}-{scale:g}", steered, **how))
    result = written()
    print(table(result["speech"]))
    return result


def listen(folder, name, sounds, rate):
    """The first ten samples, one of each digit, one after the other in a .wav: to be listened to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.wav").write_bytes(wav_bytes(np.concatenate(list(sounds[:10, 0])), rate))


def table(found) -> str:
    """The rows in Markdown."""
    lines = ["| digits | understood | in the model's voice | variety | nearest |", "| --- | --- | --- | --- | --- |"]
    for name, row in found["rows"].items():
        cells = [
            f"{row[key]['share']:.0%} ({row[key]['interval'][0]:.0%} to {row[key]['interval'][1]:.0%})"
            for key in ("understood", "voice_kept")
        ]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {row['variety_db']:.1f} dB | {row['nearest_training_db']:.1f} dB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
