"""Stable Diffusion 1.5 at its full size with random weights: U-Net forward, guided step and decoding, ours against
diffusers.

    python -m benchmarks.stable_diffusion                 writes benchmarks/results/stable_diffusion.json
    python -m benchmarks.stable_diffusion --quick         a small model, to try the script

Every contender is a process of its own; they hold the same weights and inputs, and take turns. First the answers are
compared: with torch in float64 at a smaller size, where ours may be FACTOR times as far from it as torch's float32 is.
On a machine that others use, too, the processor seconds say more than the clock; both are written, and the load.
"""

import argparse
import json
import os
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.contenders import set_threads
from benchmarks.machine import describe
from benchmarks.processes import workers

UNET = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "layers_per_block": 2, "in_channels": 4,
    "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 2,
}  # fmt: skip
SMALL_UNET = {**UNET, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64}
SMALL_VAE = {**VAE, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
JUDGED = 32  # side of the latents that torch in float64 answers for, too
# Winograd's algorithm multiplies less and rounds more (benchmarks/winograd.py has the figures), and a decoder is 30 of
# its convolutions in a row.
FACTOR, FLOOR = 8.0, 1e-6
TOKENS = 77
WAYS = {"unet": ("step", "guided"), "vae": ("step",)}


def inputs(quick, side):
    """(latents (1, side, side, 4), context (1, 77, C)), the same for everyone."""
    rng = np.random.default_rng(7)
    context = rng.standard_normal((1, TOKENS, (SMALL_UNET if quick else UNET)["cross_attention_dim"]))
    return rng.standard_normal((1, side, side, 4)).astype(np.float32), context.astype(np.float32)


def values(name, shape):
    """Weights of a parameter in the layout of files, from its name alone: of a size that keeps activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return (float(name.endswith("weight")) + 0.05 * rng.standard_normal(shape, np.float32)).astype(np.float32)
    drawn = rng.standard_normal(shape, np.float32)
    drawn *= np.float32(0.8 / np.sqrt(np.prod(shape[1:])))
    return drawn


class Ours:
    """part: "unet" or "vae"."""

    def __init__(self, part, quick, side, threads):
        from pydiff.graph import Played
        from pydiff.models import build

        set_threads(threads)
        config = {"unet": SMALL_UNET if quick else UNET, "vae": SMALL_VAE if quick else VAE}[part]
        self.part, self.quick, self.side = part, quick, side
        self.network = build({"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}[part], config)
        for name, p in self.network.named_parameters():
            shape = tuple(p.shape[i] for i in p.file_axes)
            p.data[...] = values(name, shape).transpose(tuple(np.argsort(p.file_axes)))
        self.played = Played(self.network) if part == "unet" else None
        self.inputs = {}  # as a sampler gives the same context to every step

    def answer(self, side):
        from pydiff.tensor import no_grad

        latents, context = self.inputs.setdefault(side, inputs(self.quick, side))
        with no_grad():
            if self.part == "unet":
                return self.played(latents, np.array([500]), encoder_hidden_states=context)
            return self.network.decode(latents).data

    def step(self):
        self.answer(self.side)

    def guided(self):
        """What a guided step asks the network: both answers, one after the other, in one pass."""
        latents, context = self.inputs.setdefault(self.side, inputs(self.quick, self.side))
        both = self.inputs.setdefault("both", np.concatenate([context, context[:, ::-1]]))
        return self.played(latents, np.array([500]), encoder_hidden_states=both)


class Torch:
    """The same by diffusers. exact: in float64."""

    def __init__(self, part, quick, side, threads, exact=False):
        import diffusers
        import torch

        torch.set_num_threads(threads)
        config = {"unet": SMALL_UNET if quick else UNET, "vae": SMALL_VAE if quick else VAE}[part]
        self.part, self.quick, self.side, self.torch = part, quick, side, torch
        kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
        with torch.device("meta"):
            self.network = kind(**config)
        state = {n: torch.from_numpy(values(n, tuple(t.shape))) for n, t in self.network.state_dict().items()}
        self.dtype = torch.float64 if exact else torch.float32
        self.network.load_state_dict({n: t.to(self.dtype) for n, t in state.items()}, assign=True)
        self.network.eval()

    def answer(self, side):
        torch = self.torch
        latents, context = (torch.from_numpy(a).to(self.dtype) for a in inputs(self.quick, side))
        latents = latents.permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            if self.part == "unet":
                made = self.network(latents, torch.tensor([500]), context).sample
            else:
                made = self.network.decode(latents).sample
        return made.permute(0, 2, 3, 1).contiguous().numpy()

    def step(self):
        self.answer(self.side)

    def guided(self):
        """The same as ours: two samples."""
        latents, context = (self.torch.from_numpy(a).to(self.dtype) for a in inputs(self.quick, self.side))
        latents = latents.permute(0, 3, 1, 2).repeat(2, 1, 1, 1).contiguous()
        with self.torch.inference_mode():
            return self.network(latents, self.torch.tensor([500]), self.torch.cat([context, context.flip(1)])).sample


class Timed:
    """A contender with a clock: `turn` gives (seconds, processor seconds) of one of its ways to work."""

    def __init__(self, factory):
        self.inner = factory()
        self.answer = self.inner.answer

    def turn(self, way="step"):
        start, spent = time.perf_counter(), time.process_time()
        getattr(self.inner, way)()
        return time.perf_counter() - start, time.process_time() - spent


def make(kind, *arguments):
    """A Timed contender; at the top of the module, for the other process to find."""
    return Timed(partial(kind, *arguments))


def distance(got, exact):
    """Largest difference relative to the largest number; NaN for NaN."""
    return float(np.max(np.abs(got.astype(np.float64) - exact)) / np.max(np.abs(exact)))


def measure(part, options):
    """The figures of one part. RuntimeError where ours is wrong."""
    common = part, options.quick, options.side, options.threads
    judged = min(JUDGED, options.side)
    with workers({"exact": partial(make, Torch, *common, True)}, options.threads) as running:
        exact = running["exact"].ask("answer", judged)
    factories = {"pydiff": partial(make, Ours, *common), "torch": partial(make, Torch, *common)}
    figures = {}
    with workers(factories, options.threads) as running:
        errors = {name: distance(worker.ask("answer", judged), exact) for name, worker in running.items()}
        if not errors["pydiff"] <= FACTOR * errors["torch"] + FLOOR:
            raise RuntimeError(f"{part}: pydiff is {errors['pydiff']:.2g} from float64, torch {errors['torch']:.2g}")
        turns = {(name, way): [] for name in running for way in WAYS[part]}
        for turn in range(options.rounds + 1):
            for (name, way), found in turns.items():
                took = running[name].ask("turn", way)
                found += [took] if turn else []  # the first one makes plans and warms up
                print(f"{part} {name} {way}: {took[0]:.1f} s, {took[1]:.1f} processor seconds", flush=True)
        for name, worker in running.items():
            figures[name] = summary(turns[name, "step"])
            figures[name] |= {"peak_mb": worker.ask("peak_memory"), "error": errors[name]}
            if part == "unet":
                figures[name]["guided"] = guided_step(turns[name, "step"], turns[name, "guided"])
    return figures


def summary(turns):
    """Of [(seconds, processor seconds), ..]."""
    seconds, spent = zip(*turns, strict=True)
    return {"seconds": median(seconds), "fastest": min(seconds), "processor_seconds": median(spent)}


def guided_step(forwards, guided):
    """The figures of a guided step, and how many forward passes its time is, turn by turn."""
    ratios = [[g[i] / f[i] for f, g in zip(forwards, guided, strict=True)] for i in (0, 1)]
    return {**summary(guided), "forwards": median(ratios[0]), "forwards_by_processor_seconds": median(ratios[1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--parts", nargs="+", default=["unet", "vae"], choices=["unet", "vae"])
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/stable_diffusion.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    parts = {part: measure(part, options) for part in options.parts}
    load.append(os.getloadavg()[0])
    ratio, spent = {}, {}
    for part, figures in parts.items():
        ratio[f"{part}_torch"] = figures["torch"]["seconds"] / figures["pydiff"]["seconds"]
        spent[f"{part}_torch"] = figures["torch"]["processor_seconds"] / figures["pydiff"]["processor_seconds"]
    loaded = max(load) > 1.5 * options.threads
    report = {
        "what": "a small model"
        if options.quick
        else f"Stable Diffusion 1.5, random weights, {8 * options.side} pixels a side",
        "latents": options.side,
        "parts": parts,
        "ratio": ratio,
        "ratio_of_processor_seconds": spent,
        "loaded": loaded,
        "load": load,
        "machine": describe(options.threads),
    }
    for name, value in ratio.items():
        print(f"{name}: torch's time over ours {value:.2f}, of processor seconds {spent[name]:.2f}")
    for name, figures in parts.get("unet", {}).items():
        print(f"a guided step of {name} takes {figures['guided']['forwards_by_processor_seconds']:.2f} forward passes")
    if loaded:
        print("the machine was loaded by others: believe the processor seconds")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
