"""Does the model draw descriptions that it has never seen? The lecture says so; here it is measured.

    python -m benchmarks.papers.unseen --out DIR [--json FILE] [--docs docs/words.md]

Of the emoji's 960 drawings of 80 roles, two genders and six tones, 144 are held out (pydiff.data.emoji). A model is
trained on the captions and images of the other 816, and draws the 144 captions that it has not seen. A drawing is
right if, of all 960 images, its own true image is the nearest one (root of the mean square over pixels): one in 960
by chance. Role, gender and tone of the nearest image count for themselves, too; by chance 1/80, 1/2 and 1/6.

Three experiments: the best encoder (--text, --steps), against guidance; the control, the same with captions dealt out
to the wrong images: whoever draws well then has learned the images, not the words, and the score must be at chance;
and every encoder (--encoders, --encoder-steps) at an equal, smaller budget. Intervals are Wilson's at 95 % (1927) over
the held-out descriptions. The same command goes on where it was stopped, and judges nothing twice (DIR/*/scores.json);
--newest trains no further, and judges the newest checkpoint of each run that there is. DIR/grid.png shows what was
drawn, held-out cells framed; with --docs it is copied beside the document.

--steps 15000 is what two cores do in about 30 minutes.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np

import pydiff
from benchmarks.machine import describe
from pydiff import backend
from pydiff.data import load
from pydiff.data.emoji import GENDERS, TONES, factorial
from pydiff.pipeline import Pipeline
from pydiff.report.grid import grid, save_png
from pydiff.report.write import training_time
from pydiff.training import DiffusionTask
from pydiff.training.loop import opened

GUIDANCE, FEWER = (1.0, 2.0, 3.0, 5.0), (1.0, 3.0)  # of the best run, of the others
# prediction v: at the noisiest steps, where the words decide, the error of eps says next to nothing of the image.
RECIPE = {
    "prediction": "v", "batch_size": 16, "lr": 1e-3, "ema": 0.998, "label_drop": 0.1, "sample_every": 0, "size": None,
    "channels": (16, 32, 64, 128), "attention": (2, 3),
}  # fmt: skip
FRAME = (255, 0, 0)
MARKS = "<!-- benchmarks/papers/unseen.py -->", "<!-- until here -->"  # in docs/words.md


def captioned(control=False):
    """(the set with its English captions, the factorial). control: captions dealt out among the kept images."""
    data, cells = load("emoji").in_languages(["en"]), factorial()
    if control:
        order, captions = pydiff.random.permutation(0, pydiff.random.CAPTION, 0, len(cells.kept)), list(data.captions)
        for place, source in zip(cells.kept, cells.kept[order], strict=True):
            captions[place] = data.captions[source]
        data = load(data.images, captions={"en": captions})
    return data, cells


def nearest(drawn, images):
    """The number of the image (M, H, W, C) that is nearest to each drawing (N, H, W, C), uint8: (N,)."""
    drawn, images = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (drawn, images))
    squares = (images**2).sum(1) - 2 * drawn @ images.T  # less the drawing's own, which is the same for all
    return squares.argmin(1)


def score(drawn, wanted, images, cells):
    """{attribute: share}: how often the nearest of the 960 is the image wanted, or has its role, gender or tone.

    drawn: (N, H, W, C). wanted: (N,) numbers of the true images in the set. images: the set's. cells: (R, 2, 6).
    """
    numbers = cells.ravel()
    found = nearest(drawn, images[numbers])
    truth = np.array([np.flatnonzero(numbers == number)[0] for number in wanted])
    places = [np.stack(np.unravel_index(flat, cells.shape)) for flat in (found, truth)]
    role, gender, tone = (places[0] == places[1]).mean(axis=1)
    return {"top1": float((found == truth).mean()), "role": float(role), "gender": float(gender), "tone": float(tone)}


def distances(drawn, wanted, data, cells):
    """How far half of the drawings are from their true images, and which captions were taken for which others."""
    numbers = cells.cells.ravel()
    found = numbers[nearest(drawn, data.images[numbers])]
    squares = (drawn.astype(np.float64) - data.images[wanted]) ** 2
    return {
        "median_rms": float(np.median(np.sqrt(squares.mean(axis=(1, 2, 3))))),
        "wrong": [[data.captions[a][0], data.captions[b][0]] for a, b in zip(wanted, found, strict=True) if a != b],
    }


def wilson(share, n, z=1.96):
    """The 95 % interval of a share of n trials (Wilson 1927)."""
    middle, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [(middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)]


def trained(folder, text, control, steps, newest=False, **options):
    """The Run of a training, to its end or, with `newest`, as far as its newest checkpoint goes; None without one."""
    data, cells = captioned(control)
    recipe = {**RECIPE, "steps": steps, "text": text, **options}
    if not newest:
        return pydiff.train(data.subset(cells.kept), out=folder, progress=True, announce=print, **recipe)
    if not (folder / "checkpoints").is_dir():
        return None
    options = pydiff.Options(**recipe)
    task = DiffusionTask(data.subset(cells.kept), options)
    with opened(task, options, folder) as (trainer, directory):
        network, conditioning = task.parts(trainer.ema_model())
        pipeline = Pipeline(network, task.process, task.codec, conditioning)
        log = directory.log.entries[: trainer.step]
        return pydiff.Run.of_pipeline(pipeline, options.to_config(), step=trainer.step, log=log)


def judged(run, guidance, sampling, seed=0):
    """The scores of one run at one guidance scale: of the held-out descriptions, and of as many that it has seen."""
    data, cells = captioned()
    seen = cells.kept[np.linspace(0, len(cells.kept) - 1, len(cells.unseen)).round().astype(int)]
    results = {"guidance": guidance}
    for name, wanted in (("unseen", cells.unseen), ("seen", seen)):
        prompts = [data.captions[i][0] for i in wanted]
        drawn = run.sample(1, seed, prompts=prompts, guidance=guidance, progress=True, **sampling)
        results[name] = score(drawn, wanted, data.images, cells.cells)
        results[name]["interval"] = wilson(results[name]["top1"], len(wanted))
        results[name] |= distances(drawn, wanted, data, cells)
    return results


def image(run, guidance, sampling, roles=12):
    """What is drawn for the first roles, a role a row, cells by gender and tone; those held out are framed."""
    data, cells = captioned()
    numbers, held = cells.cells[:roles].reshape(-1), cells.held_out[:roles].reshape(-1)
    prompts = [data.captions[i][0] for i in numbers]
    drawn = run.sample(1, prompts=prompts, guidance=guidance, **sampling)
    for i in np.flatnonzero(held):
        drawn[i, [0, -1]] = drawn[i][:, [0, -1]] = FRAME
    return grid(drawn, columns=len(GENDERS) * len(TONES), scale=2)


def experiment(run, name, guidance, sampling, kept):
    """What is known of one run, as JSON. kept: the file of what was judged before, by step, sampling and guidance."""
    before = json.loads(kept.read_text()) if kept.exists() else {}
    for scale in guidance:
        key = f"step {run.step}, {sampling['steps']} sampling steps, guidance {scale:g}"
        before[key] = before.get(key) or judged(run, scale, sampling)
        kept.write_text(json.dumps(before, indent=1) + "\n")
        print(name, key, {k: v["top1"] for k, v in before[key].items() if k != "guidance"})
    ends = f"step {run.step}, {sampling['steps']} sampling steps, "
    scores = sorted((row for key, row in before.items() if key.startswith(ends)), key=lambda row: row["guidance"])
    return {
        "name": name,
        "text": run.options["text"],
        "steps": run.step,
        "of": run.options["steps"],
        "seconds": round(training_time([entry["time"] for entry in run.log()]), 1),
        "parameters": run.parameters,
        "best": max(scores, key=lambda row: row["unseen"]["top1"])["guidance"],
        "scores": scores,
    }


def table(result):
    """The result as lines of Markdown."""
    lines = [
        "| run | steps | guidance | top-1, never seen | 95 % | role | gender | tone | top-1, seen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        for row in run["scores"]:
            new, (low, high) = row["unseen"], row["unseen"]["interval"]
            done = f"{run['steps']:,}" + ("" if run["steps"] == run["of"] else f" of {run['of']:,}")
            cells = [run["name"], done, f"{row['guidance']:g}", f"{new['top1']:.1%}", f"{low:.1%} - {high:.1%}"]
            cells += [f"{new[name]:.1%}" for name in ("role", "gender", "tone")] + [f"{row['seen']['top1']:.1%}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("| chance | | | 0.1% | | 1.2% | 50.0% | 16.7% | 0.1% |")
    return "\n".join(lines)


def written(docs, result):
    """Puts the table between the two marks of a Markdown file."""
    text = docs.read_text("utf-8")
    before, rest = text.split(MARKS[0])
    docs.write_text(f"{before}{MARKS[0]}\n\n{table(result)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


def main(arguments=None):
    """Trains, draws, judges, prints the table, writes grid.png, the JSON and the docs. Returns the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--text", default="glove")
    parser.add_argument("--encoders", nargs="*", default=["glove", "learned", "minilm"])
    parser.add_argument("--encoder-steps", type=int, default=3000)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE, help="of the best run")
    parser.add_argument("--fewer", type=float, nargs="+", default=FEWER, help="guidance of the others")
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--channels", type=int, nargs="+", default=RECIPE["channels"])
    parser.add_argument("--newest", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args(arguments)
    options, sampling = {"channels": tuple(chosen.channels)}, {"steps": chosen.sampling_steps}
    plan = [(f"best: {chosen.text}", chosen.text, False, chosen.steps)]
    plan += [(f"shorter: {text}", text, False, chosen.encoder_steps) for text in chosen.encoders]
    plan += [("control", chosen.text, True, chosen.steps)]
    runs = []
    for name, text, control, steps in plan:
        folder = chosen.out / name.replace(": ", "-")
        run = trained(folder, text, control, steps, chosen.newest, **options)
        if run is None:
            print(f"{name}: not begun")
            continue
        guidance = chosen.fewer if runs else chosen.guidance
        runs.append(experiment(run, name, guidance, sampling, folder / "scores.json"))
        if len(runs) == 1 and not (chosen.out / "grid.png").exists():
            save_png(chosen.out / "grid.png", image(run, runs[0]["best"], sampling))
        result = {"top1": max(row["unseen"]["top1"] for row in runs[0]["scores"]), "runs": runs}
        result["machine"] = describe(backend.threads())
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if chosen.docs is not None:
        written(chosen.docs, result)
        shutil.copy(chosen.out / "grid.png", chosen.docs.with_name("never-seen.png"))
    return result


if __name__ == "__main__":
    main()
