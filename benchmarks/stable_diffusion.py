"""Stable Diffusion 1.5 at its full size with random weights: U-Net forward, guided step and decoding, ours against
diffusers on torch, and against OpenVINO.

    python -m benchmarks.stable_diffusion                 writes benchmarks/results/stable_diffusion.json
    python -m benchmarks.stable_diffusion --parts vae --peers openvino     measures that pair again, keeps the others
    python -m benchmarks.stable_diffusion --quick         a small model, to try the script

Ours and a peer are two processes that hold the same weights and inputs, and take turns. First the answers are compared
with torch's in float64 at a smaller size, where ours may be FACTOR times as far off as the peer's float32 is. The file
is written after every pair. On a machine that others use, too, the processor seconds say more than the clock; both are
written, and the load. OpenVINO has the network as torch traces it, with fixed shapes, in float32.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
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
PARTS, PEERS = ("unet", "vae"), ("torch", "openvino")


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
        if part == "vae":
            self.network.work_in_bands()  # as StableDiffusion has it
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


class OpenVino:
    """The same by OpenVINO, from the file that `convert` has written."""

    def __init__(self, part, quick, side, threads, folder):
        self.part, self.quick, self.side, self.threads = part, quick, side, threads
        self.file, self.compiled = Path(folder, f"{part}.xml"), (None, None)  # (side, network)

    def answer(self, side):
        latents, context = inputs(self.quick, side)
        given = [np.ascontiguousarray(latents.transpose(0, 3, 1, 2))]
        given += [np.array([500], np.int64), context] if self.part == "unet" else []
        return self.network(side, given)(given)[0].transpose(0, 2, 3, 1)

    def network(self, side, given):
        """Compiled for these shapes, kept until others are asked for."""
        import openvino

        if self.compiled[0] != side:
            self.compiled = None, None
            core = openvino.Core()
            model = core.read_model(self.file)
            model.reshape({i: list(a.shape) for i, a in enumerate(given)})
            wishes = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
            wishes |= {"INFERENCE_NUM_THREADS": self.threads}
            self.compiled = side, core.compile_model(model, "CPU", wishes)
        return self.compiled[1]

    def step(self):
        self.answer(self.side)


class Converter:
    """Writes OpenVINO's file of a network."""

    def __init__(self, *common):
        self.torch = Torch(*common)

    def write(self, folder):
        """part.xml and its weights, in float32."""
        import openvino
        import torch

        torch.manual_seed(0)
        network, part, side = self.torch.network, self.torch.part, self.torch.side
        latents, context = (torch.from_numpy(a) for a in inputs(self.torch.quick, side))
        latents = latents.permute(0, 3, 1, 2).contiguous()

        class Asked(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, latents, *told):
                return (self.network(latents, *told) if told else self.network.decode(latents)).sample

        example = (latents, torch.tensor([500]), context) if part == "unet" else (latents,)
        with torch.inference_mode():
            model = openvino.convert_model(Asked(), example_input=example)
        openvino.save_model(model, Path(folder, f"{part}.xml"), compress_to_fp16=False)


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


def truth(part, options):
    """What torch gives in float64."""
    common = part, options.quick, options.side, options.threads
    with workers({"exact": partial(make, Torch, *common, True)}, options.threads) as running:
        return running["exact"].ask("answer", min(JUDGED, options.side))


def measure(part, peer, exact, options, folder):
    """The figures of ours and of one peer, and their ratios. RuntimeError where ours is wrong."""
    common = part, options.quick, options.side, options.threads
    factories = {"pydiff": partial(make, Ours, *common)}
    if peer == "torch":
        factories[peer] = partial(make, Torch, *common)
    else:
        with workers({"converter": partial(Converter, *common)}, options.threads) as running:
            running["converter"].ask("write", folder)
        factories[peer] = partial(make, OpenVino, *common, folder)
    load = [os.getloadavg()[0]]
    with workers(factories, options.threads) as running:
        answers = {name: worker.ask("answer", min(JUDGED, options.side)) for name, worker in running.items()}
        errors = {name: distance(answer, exact) for name, answer in answers.items()}
        if not errors["pydiff"] <= FACTOR * errors[peer] + FLOOR:
            raise RuntimeError(f"{part}: pydiff is {errors['pydiff']:.2g} from float64, {peer} {errors[peer]:.2g}")
        ways = [("pydiff", "step"), (peer, "step"), *([("pydiff", "guided")] if part == "unet" else [])]
        turns = {way: [] for way in ways}
        for turn in range(options.rounds + 1):
            for name, way in ways:
                took = running[name].ask("turn", way)
                turns[name, way] += [took] if turn else []  # the first one makes plans and warms up
                print(f"{part} {name} {way}: {took[0]:.1f} s, {took[1]:.1f} processor seconds", flush=True)
        peaks = {name: worker.ask("peak_memory") for name, worker in running.items()}
    ours, theirs = turns["pydiff", "step"], turns[peer, "step"]
    figures = {
        name: {**summary(turns[name, "step"]), "peak_mb": peaks[name], "error": errors[name]} for name in factories
    }
    if part == "unet":
        figures["pydiff"]["guided"] = guided_step(ours, turns["pydiff", "guided"])
    figures |= {"ratio": in_turns(theirs, ours, 0), "ratio_of_processor_seconds": in_turns(theirs, ours, 1)}
    return {**figures, "load": [*load, os.getloadavg()[0]], "machine": describe(options.threads)}


def summary(turns):
    """Of [(seconds, processor seconds), ..]."""
    seconds, spent = zip(*turns, strict=True)
    return {"seconds": median(seconds), "fastest": min(seconds), "processor_seconds": median(spent)}


def in_turns(above, below, which):
    """The median of the ratios of two contenders' times, turn by turn; which: 0 for seconds, 1 for the processor's."""
    return median(a[which] / b[which] for a, b in zip(above, below, strict=True))


def guided_step(forwards, guided):
    """The figures of a guided step, and how many forward passes its time is, turn by turn."""
    ratios = [in_turns(guided, forwards, which) for which in (0, 1)]
    return {**summary(guided), "forwards": ratios[0], "forwards_by_processor_seconds": ratios[1]}


def settled(options, report):
    """The report to go on with: that in the file if it is of the same model and size, else a new one."""
    what = "a small model" if options.quick else "Stable Diffusion 1.5"
    same = {"what": f"{what}, random weights", "latents": options.side, "threads": options.threads}
    if {name: report.get(name) for name in same} != same or any(part not in PARTS for part in report.get("parts", ())):
        report = {"script": "stable_diffusion", **same, "parts": {}}
    return report


def summed_up(report):
    """Adds the ratios of all pairs under the names part_peer."""
    for ratio in ("ratio", "ratio_of_processor_seconds"):
        pairs = {f"{part}_{peer}": f[ratio] for part, found in report["parts"].items() for peer, f in found.items()}
        report[ratio] = pairs
    return report


def table(report):
    """The report as Markdown."""
    lines = [
        f"{8 * report['latents']} x {8 * report['latents']} pixels, {report['threads']} threads:",
        "",
        "| | peer | ours, s by the clock / of processor time | peer | peer's time over ours, by the clock | by the "
        "processor | peak memory, ours / peer | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"unet": "U-Net forward", "vae": "decoding"}
    for part, found in report["parts"].items():
        for peer, figures in found.items():
            ours, theirs = figures["pydiff"], figures[peer]
            lines.append(
                f"| {names[part]} | {peer} {figures['machine']['versions'].get(peer, '')} | "
                f"{ours['seconds']:.1f} / {ours['processor_seconds']:.1f} | "
                f"{theirs['seconds']:.1f} / {theirs['processor_seconds']:.1f} | {figures['ratio']:.2f} | "
                f"{figures['ratio_of_processor_seconds']:.2f} | {ours['peak_mb'] / 1e3:.2f} / "
                f"{theirs['peak_mb'] / 1e3:.2f} GB | {max(figures['load']):.1f} |"
            )
    guided = [f["pydiff"]["guided"] for f in report["parts"].get("unet", {}).values()]
    if guided:
        forwards = [f"{g['forwards_by_processor_seconds']:.2f}" for g in guided]
        lines += ["", f"A guided step of ours takes the processor time of {' and '.join(forwards)} forward passes."]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/stable_diffusion.json")
    options = parser.parse_args(arguments)
    lacking = [peer for peer in options.peers if importlib.util.find_spec(peer) is None]
    for peer in lacking:
        print(f"{peer} is not installed and is left out")
    report = settled(options, json.loads(options.json.read_text()) if options.json.exists() else {})
    for part in options.parts:
        exact = truth(part, options)
        for peer in (peer for peer in options.peers if peer not in lacking):
            with tempfile.TemporaryDirectory() as folder:
                report["parts"].setdefault(part, {})[peer] = measure(part, peer, exact, options, folder)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(summed_up(report), indent=1) + "\n")
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
