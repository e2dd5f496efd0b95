"""Does a clip show what its caption says? Every word is measured, and whether it is one object throughout.

    python -m benchmarks.papers.clips --out DIR [--steps 6000] [--json FILE]

A model learns the moving shapes (pydiff.data.moving) and their captions, and draws combinations of the training clips
and the sixteen that no training clip has. The tracker (pydiff.data.track) that judges them is right about every clip
made by formula. Beside the model stand: real clips, the model without a caption, its clips with their frames shuffled,
which must fail, and chance. Continuation and interpolation in time are judged by the same tracker. Intervals are
Wilson's at 95 % (1927). Besides, for several noise levels, the model's error of the clean clip stands beside the least
that is possible: that of the mean over all clips of the caption, weighted by how well they explain the noisy clip, and
of the same mean frame by frame, which cannot know what moves. Where the model's lies says whether it looks along time.
The same command goes on where it was stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from benchmarks.papers.unseen import wilson
from pydiff import backend, no_grad, random
from pydiff.data.moving import COLOURS, COMBINATIONS, DIRECTIONS, SHAPES, SPEEDS, caption, held_out, moving_shapes
from pydiff.data.track import shuffled, track
from pydiff.report.film import save_film
from pydiff.report.grid import grid, save_png
from pydiff.tensor import Tensor

WORDS = ("shape", "colour", "direction", "speed", "constant", "all")
CHANCE = {
    "shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "direction": 1 / len(DIRECTIONS), "speed": 1 / len(SPEEDS),
}  # fmt: skip
RECIPE = {
    "batch_size": 4, "channels": (16, 32, 64), "groups": 4, "attention": (2,), "lr": 1.5e-3, "warmup": 50, "ema": 0.998,
    "prediction": "x0", "timestep_sampling": "logit_normal", "timestep_shift": 3.0, "sample_every": 0,
    "checkpoint_every": 100,
}  # fmt: skip
GUIDANCE = (1.0, 3.0)
LEVELS = (100, 300, 500, 700, 800, 850, 900, 950)  # of 1,000
WAY = {"sampler": "dpm_solver", "steps": 20}


def score(clips, wanted):
    """{word: {"share", "interval"}} of clips (N, F, H, W, 3) against combinations, N of them."""
    found = [track(clip).agrees(*combination) for clip, combination in zip(clips, wanted, strict=True)]
    result = {"clips": len(clips)}
    for word in WORDS:
        right = sum(f[word] for f in found)
        result[word] = {"share": right / len(found), "interval": wilson(right / len(found), len(found))}
    return result


def drawn(run, combinations, each, seed, guidance):
    """(clips, their combinations): `each` of every combination."""
    prompts = [caption(*c) for c in combinations]
    clips = run.sample(each, seed=seed, prompts=prompts, guidance=guidance, **WAY)
    return clips, [c for c in combinations for _ in range(each)]


def edits(run, clips, wanted, guidance):
    """What the tracker says of clips of which frames were drawn anew: the second half, and all but the ends."""
    frames, prompts = clips.shape[1], [caption(*c) for c in wanted]
    result = {}
    for name, known in (("continuation", range(frames // 2)), ("interpolation", (0, frames - 1))):
        mask = np.ones(frames)
        mask[list(known)] = 0
        made = run.inpaint(clips, mask, steps=25, resample=2, prompts=prompts, guidance=guidance)
        assert all(np.array_equal(made[:, f], clips[:, f]) for f in known)
        result[name] = score(made, wanted)
    return result


def errors_by_noise(run, count=24, candidates=400) -> dict:
    """Mean squared errors of the clean clip by the model, by the best guess, and by the best guess frame by frame:
    {t: {"model", "best", "best_by_frames"}}, of `count` clips of the training's combinations.
    """
    process, encoder = run.pipeline.process, run.conditioning.encoder
    seen = [c for c in COMBINATIONS if not held_out(*c)][:: len(COMBINATIONS) // count]
    x0 = run.codec.encode(moving_shapes(len(seen), seed=11, combinations=seen).images)
    known = [run.codec.encode(moving_shapes(candidates, seed=99, combinations=[c]).images) for c in seen]
    told, found = encoder.encode([caption(*c) for c in seen]), {}
    for t in LEVELS:
        times = np.full(len(seen), t)
        x_t, _ = process.q_sample(x0, times, random.key(0, random.DATA, np.arange(len(seen)), t))
        shown = process.network_input(x_t, times)
        with no_grad():
            answer = run.model(Tensor(shown[0]), shown[1], **told).data
        alpha, sigma = (float(a) for a in process.schedule.at(t))
        best = {"best": [], "best_by_frames": []}
        for noisy, clean, clips in zip(x_t, x0, known, strict=True):
            away = ((noisy - alpha * clips) ** 2).sum((2, 3, 4)) / (2 * sigma**2)  # (candidates, F)
            for name, distance in (("best", away.sum(1, keepdims=True)), ("best_by_frames", away)):
                weight = np.exp(distance.min(0) - distance)
                mean = np.einsum("kf...,kf->f...", clips, np.broadcast_to(weight / weight.sum(0), away.shape))
                best[name].append(((mean - clean) ** 2).mean())
        error = ((process.to_x0(x_t, answer, times) - x0) ** 2).mean()
        found[t] = {"model": float(error)} | {name: float(np.mean(values)) for name, values in best.items()}
    return found


def main(arguments=None):
    """Trains, draws, judges, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--each",
        type=int,
        default=2,
        help="clips of every held-out combination; of every other one of the rest a quarter",
    )
    parser.add_argument("--noise-only", action="store_true", help="renew the errors by noise in the JSON, no more")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.noise_only:
        found = json.loads(options.json.read_text())
        found["errors_by_noise"] = errors_by_noise(pydiff.load(options.out / "run"))
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(noise_table(found))
        return
    started, began = time.time(), time.process_time()
    run = pydiff.train("moving-shapes", out=options.out / "run", steps=options.steps, **RECIPE)
    trained, steps = time.process_time() - began, sum(row["time"] >= started for row in run.log())
    new = [c for c in COMBINATIONS if held_out(*c)]
    seen = [c for c in COMBINATIONS if not held_out(*c)]
    real = moving_shapes(len(COMBINATIONS), seed=7, combinations=COMBINATIONS)
    rows = {"real clips": score(real.images, COMBINATIONS)}
    rows["real clips, frames shuffled"] = score([shuffled(c, i) for i, c in enumerate(real.images)], COMBINATIONS)
    best = None
    for guidance in GUIDANCE:
        clips, wanted = drawn(run, new, options.each, 1, guidance)
        rows[f"held out, guidance {guidance:g}"] = score(clips, wanted)
        clips_seen, wanted_seen = drawn(run, seen[::2], max(1, options.each // 4), 2, guidance)
        rows[f"in training, guidance {guidance:g}"] = score(clips_seen, wanted_seen)
        share = rows[f"in training, guidance {guidance:g}"]["all"]["share"]
        if best is None or share > best[0]:
            best = share, guidance, clips, wanted
    _, guidance, clips, wanted = best
    rows["held out, frames shuffled"] = score([shuffled(c, i) for i, c in enumerate(clips)], wanted)
    free = run.sample(len(wanted), seed=3, condition=None, **WAY)
    rows["no caption"] = score(free, wanted)
    some = moving_shapes(16, seed=9, combinations=seen[::5])
    rows |= edits(run, some.images, seen[::5], guidance)
    options.out.mkdir(parents=True, exist_ok=True)
    save_png(options.out / "held-out.png", grid(run.codec.show(clips[:: options.each]), columns=2, scale=3))
    one = clips[:: options.each]
    save_film(options.out / "held-out.webp", [grid(one[:, f], scale=4) for f in range(one.shape[1])], fps=8)
    found = {
        "machine": describe(backend.threads()), "steps": options.steps, "recipe": RECIPE,
        "changes": json.loads((options.out / "run/config.json").read_text())["changes"],
        "parameters": run.parameters, "cpu_seconds_a_step": round(trained / steps, 3) if steps else None,
        "sampling": WAY, "best_guidance": guidance, "chance": CHANCE, "rows": rows,
        "errors_by_noise": errors_by_noise(run),
    }  # fmt: skip
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def table(found):
    """The rows in Markdown."""
    lines = [f"| clips | {' | '.join(WORDS)} |", "|---" * (len(WORDS) + 1) + "|"]
    for name, row in found["rows"].items():
        cells = [f"{row[w]['share']:.2f}" for w in WORDS]
        lines.append(f"| {name} ({row['clips']}) | {' | '.join(cells)} |")
    chance = [f"{found['chance'][w]:.2f}" if w in found["chance"] else "" for w in WORDS]
    lines.append(f"| chance | {' | '.join(chance)} |")
    return "\n".join(lines) + ("\n\n" + noise_table(found) if "errors_by_noise" in found else "")


def noise_table(found):
    """The errors by noise level, in thousandths, in Markdown."""
    errors = found["errors_by_noise"]
    lines = [f"| error at t = | {' | '.join(str(t) for t in errors)} |", "|---" * (len(errors) + 1) + "|"]
    for name, said in (("model", "the model"), ("best_by_frames", "best, frame by frame"), ("best", "best")):
        lines.append(f"| {said} | {' | '.join(f'{1000 * row[name]:.1f}' for row in errors.values())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
