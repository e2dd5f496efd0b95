"""A folder of Stable Diffusion 1.5 at its full size, random weights in half precision: how soon the first forward pass
begins, how much memory an image takes, with and without --low-memory, and what a step of textual inversion takes.

    python -m benchmarks.stable_diffusion_folder FOLDER           makes the folder if it is not there (2.1 GB)
    python -m benchmarks.stable_diffusion_folder FOLDER --quick   a small model

Writes benchmarks/results/stable_diffusion_folder.json after every part, and leaves out parts that are there already,
unless they are named: --parts "low memory" measures that one again.
Every part is a process of its own. Memory is what the system counts as the process's own (RssAnon: not what it has
mapped of files), looked at every few milliseconds, in the U-Net's time and in the decoder's.
"""

import argparse
import compileall
import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.stable_diffusion import SMALL_UNET, SMALL_VAE, UNET, VAE

TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
PARTS = ("plain", "low memory", "a word")
PROMPT = "a photo of a cat"


def make_folder(path, quick):
    """Writes the folder by pydiff's own writer."""
    from pydiff.condition import Conditioning
    from pydiff.formats import opened
    from pydiff.formats.diffusers.scheduler.stored import StoredScheduler
    from pydiff.formats.single_file import SCHEDULE
    from pydiff.latents import Latents
    from pydiff.models import AutoencoderKL, CLIPTextModel, UNet2DCondition
    from pydiff.stable_diffusion import StableDiffusion
    from pydiff.text import bpe
    from pydiff.text.clip import Clip

    unet = UNet2DCondition(**(SMALL_UNET if quick else UNET), seed=1)
    vae = AutoencoderKL(**(SMALL_VAE if quick else VAE), scaling_factor=0.18215, seed=2)
    text = CLIPTextModel(**(SMALL_TEXT if quick else TEXT), seed=3)
    scheduler = StoredScheduler({**SCHEDULE, "prediction_type": "epsilon"}, "the benchmark")
    parts = scheduler.process, Latents(vae, (512, 512)), Conditioning(encoder=Clip(text, bpe.clip()))
    opened.save(path, StableDiffusion(unet, *parts, scheduler=scheduler), {}, "float16")


class Watch:
    """The most memory of its own that this process had, by what it was doing."""

    def __init__(self):
        self.doing, self.most, self.stopped = "opening", {}, False
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self):
        """Until `stopped`."""
        while not self.stopped:
            self.note()
            time.sleep(0.005)

    def note(self):
        """Looks once."""
        with open("/proc/self/status") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))
        self.most[self.doing] = max(self.most.get(self.doing, 0), kilobytes / 1e6)


def drawn(path, options, began, low_memory):
    """Of one image: seconds until the first forward pass begins, and of the parts; GB of the process's own memory."""
    import pydiff
    from pydiff.graph import Played

    watch, first, spent = Watch(), [], []
    run = pydiff.load(path, low_memory=low_memory, size=8 * options.side)
    asked = Played.__call__

    def marked(self, *arguments, **more):
        watch.doing = "unet"
        first.append(time.time())
        spent.append(time.process_time())
        return asked(self, *arguments, **more)

    decoded = run.pipeline.decoded

    def decode(x):
        watch.doing = "decoder"
        first.append(time.time())
        return decoded(x)

    Played.__call__, run.pipeline.decoded = marked, decode
    images = run.sample(1, prompts=[PROMPT], steps=options.steps, guidance=7.5, sampler="ddim")
    end = time.time()
    watch.stopped = True
    return {
        "seconds_until_first_forward": first[0] - began,
        "processor_seconds_until_first_forward": spent[0],
        "seconds_unet": first[-1] - first[0],
        "seconds_decoder": end - first[-1],
        "processor_seconds": time.process_time(),
        "gb": watch.most,
        "image": hashlib.sha256(images.tobytes()).hexdigest()[:16],
    }


def inverted(path, options):
    """Of one step of textual inversion: what was foretold, and what it took."""
    import pydiff
    from pydiff import invert

    pipeline, said = pydiff.load(path, size=8 * options.side).pipeline, []
    images = np.random.default_rng(0).integers(0, 256, (1, 8 * options.side, 8 * options.side, 3), np.uint8)
    watch, began = Watch(), []

    def announce(line):
        said.append(line)
        watch.doing = "the step" if len(said) > 1 else "foretelling"
        began.append((time.time(), time.process_time()))

    invert.learn(pipeline, images, "<mine>", steps=1, progress=False, announce=announce)
    watch.stopped = True
    took = time.time() - began[-1][0], time.process_time() - began[-1][1]
    return {"foretold": said[-1], "seconds": took[0], "processor_seconds": took[1], "gb": watch.most}


def table(report):
    """The report as Markdown."""
    plain, low, word = (report["parts"].get(part) for part in PARTS)
    lines = [
        f"{8 * report['latents']} x {8 * report['latents']} pixels, {report['steps']} steps with guidance, "
        f"{report['machine']['threads']} threads of {report['machine']['cpu']}:",
        "",
        "| | weights kept | `--low-memory` |",
        "|---|---|---|",
    ]
    rows = {
        "the first forward pass begins after, s by the clock": lambda part: part["seconds_until_first_forward"],
        "the same, s of processor time": lambda part: part["processor_seconds_until_first_forward"],
        "memory while the U-Net works, GB": lambda part: part["gb"]["unet"],
        "memory while the decoder works, GB": lambda part: part["gb"]["decoder"],
        "a guided step, s by the clock": lambda part: part["seconds_unet"] / report["steps"],
        "decoding, s by the clock": lambda part: part["seconds_decoder"],
        "the whole image, s of processor time": lambda part: part["processor_seconds"],
        "load of the machine": lambda part: part["load"],
    }
    for name, figure in rows.items():
        cells = ["" if part is None else f"{figure(part):.2f}" for part in (plain, low)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if word is not None:
        most = max(word["gb"].values())
        lines += [
            "",
            f"A step of textual inversion took {word['seconds']:.0f} s, {word['processor_seconds']:.0f} s of processor "
            f"time, and {most:.1f} GB with the model. Before it began, `pydiff invert` said: {word['foretold']}.",
        ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    default = Path(__file__).parent / "results/stable_diffusion_folder.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    if options.part:
        import pydiff

        pydiff.set_threads(options.threads)
        if options.part == "a word":
            print(json.dumps(inverted(options.folder, options)))
        else:
            print(json.dumps(drawn(options.folder, options, options.began, options.part == "low memory")))
        return 0
    if not options.folder.exists():
        make_folder(options.folder, options.quick)
    same = {
        "script": "stable_diffusion_folder",
        "latents": options.side,
        "steps": options.steps,
        "quick": options.quick,
    }
    report = json.loads(options.json.read_text()) if options.json.exists() else {}
    if {name: report.get(name) for name in same} != same:
        report = {**same, "parts": {}}
    for module in ("pydiff", "benchmarks"):  # as they are after an installation, whatever this environment says
        compileall.compile_dir(str(Path(importlib.import_module(module).__file__).parent), quiet=2)  # pyright: ignore
    for part in options.parts or [part for part in PARTS if part not in report["parts"]]:
        arguments = [*sys.argv[1:], "--part", part, "--began", str(time.time())]
        command = [sys.executable, "-m", "benchmarks.stable_diffusion_folder", *arguments]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        report["parts"][part] = {**json.loads(found.splitlines()[-1]), "load": os.getloadavg()[0]}
        report["machine"] = describe(options.threads)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        print(part, json.dumps(report["parts"][part]), flush=True)
    print(table(report))
    images = {report["parts"][part]["image"] for part in ("plain", "low memory") if part in report["parts"]}
    if len(images) > 1:
        raise RuntimeError("--low-memory drew another image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
