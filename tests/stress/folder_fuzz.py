"""Fuzz model folders: whatever stands in their JSON files, pydiff.load opens them or raises one of two errors.

    python -m tests.stress.folder_fuzz --count 40000 --json benchmarks/results/folder-fuzz.json

The files of right folders, of diffusers and of pydiff, are changed in meaning (values, names, structure), in text and
in bytes; a seal that pydiff wrote is made to fit again in half of its cases, so that what it vouches for is reached.
Allowed are FileNotFoundError and CheckpointError of one printable sentence, quickly, and without memory. What
still opens is drawn from, now and then: a ValueError of one sentence is allowed there, too.
"""

import copy
import hashlib
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import pydiff
from pydiff.diffusion import Process, schedule
from pydiff.formats import safetensors as tensorfile
from pydiff.formats.diffusers.scheduler import SCHEDULERS
from pydiff.formats.diffusers.scheduler.config import OPTIONS
from pydiff.formats.diffusers.unet import RULES
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import UNet2D
from pydiff.store import checkpoint, sealed
from tests.models.configurations import SMALL
from tests.stress import fuzz

NUMBERS = [0, 1, -1, 2, 3, 4, 5, 7, 8, 10, 16, 100, 999, 1000, 1001, 20000, 10**6, 10**9, 2**31, 2**63, 10**18, 10**30,
           10**300, 0.0, 0.5, -0.5, 1.0, 1.5, 1e-30, 1e-8, 1e8, 1e300, float("inf"), float("-inf"),
           float("nan")]  # fmt: skip
WORDS = ["", "x", "\x1b[2J\n", "../../x", "\ud800", "0", "é" * 500, "linear", "scaled_linear", "squaredcos_cap_v2",
         "exp", "laplace", "sigmoid", "epsilon", "sample", "v_prediction", "flow_prediction", "leading", "trailing",
         "linspace", "fixed_small", "fixed_large", "learned", "learned_range", "fixed_small_log", "dpmsolver++",
         "sde-dpmsolver++", "deis", "midpoint", "heun", "logrho", "bh1", "zero", "sigma_min", "karras",
         "exponential", "linear", "log_linear", "continuous", "fourier", "timestep", "identity", "scale_shift",
         "default", "resnet", "conv", "silu", "gelu", "UNet2DModel", "UNet2DConditionModel", "VQModel",
         "UNetUnconditionalModel", "DDPMPipeline", "PNDMPipeline", "KarrasVePipeline", "UNetMidBlock2D",
         "DownBlock2D", "AttnDownBlock2D", "AttnUpBlock2D", "SkipDownBlock2D", "eps", "x0", "v", "flow", "edm",
         "cosine", "pixels", *SCHEDULERS]  # fmt: skip
TEXT = [b'"a":1,', b"NaN", b"-Infinity", b"[" * 3000, b"9" * 5000, b"\xff", b"\\ud800", b"\xef\xbb\xbf", b"{", b"}",
        b",", b"\0", b'"_class_name":"x",', b"1e999", b"-0", b"true", b"null", b"//"]  # fmt: skip
STEM = "diffusion_pytorch_model"


def value(rng: random.Random, depth=0):
    """Anything that JSON can hold."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(WORDS)
    if kind < 0.85 or depth > 2:
        return rng.choice([None, True, False, [], {}])
    if kind < 0.93:
        return [value(rng, depth + 1) for _ in range(rng.choice([1, 2, 2, 3, 4, 17, 300]))]
    return {rng.choice(WORDS): value(rng, depth + 1) for _ in range(rng.choice([1, 2, 5]))}


def places(tree, path=()):
    """Every place in nested dicts and lists."""
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def changed(config: dict, rng: random.Random, names=()) -> object:
    """One to three changes of meaning."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if names and rng.random() < 0.3 and isinstance(config, dict):
            config[rng.choice(names)] = value(rng)
            continue
        spots = list(places(config))
        path = spots[rng.randrange(len(spots))]
        if not path:
            config = value(rng) if rng.random() < 0.1 else config
            continue
        holder = config
        for key in path[:-1]:
            holder = holder[key]
        action = rng.random()
        if action < 0.15:
            del holder[path[-1]]
        elif action < 0.25 and isinstance(holder, dict):
            holder[rng.choice([*WORDS, "_x"])] = holder.pop(path[-1])
        elif action < 0.35 and isinstance(holder, list):
            holder += [holder[path[-1]]] * rng.choice([1, 2, 2000])
        else:
            holder[path[-1]] = value(rng)
    return config


def garbled(data: bytes, rng: random.Random) -> bytes:
    """A change of text or bytes."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.choice(TEXT) + data[at + rng.randrange(6) :]
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def written(config, rng: random.Random) -> bytes:
    """As JSON, with what Python's writer puts out for what JSON does not know."""
    data = json.dumps(config, indent=rng.choice([None, 1])).encode()
    return garbled(data, rng) if rng.random() < 0.15 else data


# ---- right folders ---------------------------------------------------------------------------------------------------

NETWORKS = {
    "plain": {},
    "classes": {"num_class_embeds": 3},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 200},
    "vectors, scale and shift": {"class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift"},
}


def make(root: Path) -> dict[str, Path]:
    """{name: a folder}: pydiff's, and what diffusers would have made of the same."""
    made = {}
    for name, options in NETWORKS.items():
        ours = root / f"ours, {name}"
        network = UNet2D(**SMALL, sample_size=8, seed=1, **options)
        pydiff.Run(network, Process(schedule("cosine", 200), "v"), {"lr": 1e-3}).save(ours)
        theirs = root / f"theirs, {name}"
        shutil.copytree(ours, theirs)
        (theirs / "pydiff.json").unlink()
        index = json.loads((theirs / "model_index.json").read_text())
        index["id2label"] = {"0": "a", "1": "b", "2": "c"}
        (theirs / "model_index.json").write_text(json.dumps(index))
        made |= {ours.name: ours, theirs.name: theirs}
    shards = root / "shards"
    shutil.copytree(made["theirs, plain"], shards)
    file = shards / f"unet/{STEM}.safetensors"
    arrays = tensorfile.decode(np.frombuffer(bytearray(file.read_bytes()), np.uint8), file)
    file.unlink()
    table = {}
    for i, part in enumerate((sorted(arrays)[::2], sorted(arrays)[1::2]), 1):
        table |= dict.fromkeys(part, f"{STEM}-0000{i}-of-00002.safetensors")
        (shards / f"unet/{STEM}-0000{i}-of-00002.safetensors").write_bytes(
            tensorfile.encode({n: arrays[n] for n in part})
        )
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (shards / f"unet/{STEM}.safetensors.index.json").write_text(json.dumps(index))
    return made | {"shards": shards}


def usual_options(name) -> dict:
    """A scheduler's configuration, every option at its usual value."""
    _, defaults = SCHEDULERS[name]
    options = {"num_train_timesteps": 50, **defaults}
    return {"_class_name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}


class Target:
    """One file of a folder, put back when its turn is over."""

    def __init__(self, name, folder, file, names=(), base=None, resealed=False):
        self.name, self.folder, self.path, self.names = name, folder, folder / file, names
        self.good, self.seal = self.path.read_bytes(), resealed
        self.seal_path = folder / "pydiff.json"
        self.good_seal = self.seal_path.read_bytes() if self.seal_path.exists() else b""
        self.config = json.loads(self.good) if base is None else base

    def spoil(self, rng):
        if self.seal:
            self._reseal(rng)
        else:
            self.path.write_bytes(written(changed(self.config, rng, self.names), rng))

    def _reseal(self, rng):
        """Other contents, and a seal that vouches for them."""
        info, entries = sealed.inspect(self.folder, checkpoint.SEAL, "pydiff model")
        if self.path == self.seal_path:
            info = {**info, "extra": changed(info["extra"], rng, self.names)}
        else:
            data = written(changed(self.config, rng, self.names), rng)
            self.path.write_bytes(data)
            name = str(self.path.relative_to(self.folder))
            entries = {
                **entries,
                name: {**entries[name], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
            }
        self.seal_path.write_bytes(sealed._seal("pydiff model", info, entries))

    def restore(self):
        self.path.write_bytes(self.good)
        if self.good_seal:
            self.seal_path.write_bytes(self.good_seal)


def targets(made: dict[str, Path]) -> list[Target]:
    """Every kind of file that is read."""
    found, scheduler = [], "scheduler/scheduler_config.json"
    for name in NETWORKS:
        theirs, ours = made[f"theirs, {name}"], made[f"ours, {name}"]
        found.append(Target(f"config.json, {name}", theirs, "unet/config.json", sorted(RULES)))
        found.append(Target(f"config.json, {name}, resealed", ours, "unet/config.json", sorted(RULES), resealed=True))
    every_option = sorted(set().union(*OPTIONS.values()))
    for name in SCHEDULERS:
        base = usual_options(name)
        found.append(Target(f"scheduler, {name}", made["theirs, plain"], scheduler, every_option, base))
    theirs, ours = made["theirs, classes"], made["ours, classes"]
    names = ["unet", "scheduler", "vae", "_class_name", "id2label", "safety_checker"]
    found.append(Target("model_index.json", theirs, "model_index.json", names))
    found.append(Target("index of shards", made["shards"], f"unet/{STEM}.safetensors.index.json", ["weight_map"]))
    found.append(Target("pydiff.json", ours, "pydiff.json"))
    for name in NETWORKS:
        extra = ["schema", "variance", "codec", "schedule", "prediction", "scheduler", "classes", "self_conditioning"]
        found.append(
            Target(f"pydiff.json, {name}, resealed", made[f"ours, {name}"], "pydiff.json", extra, resealed=True)
        )
    return found


# ---- one folder ------------------------------------------------------------------------------------------------------


def tried(folder: Path, draw: bool) -> tuple[str, str]:
    """(what happened, the sentence or the exception)."""
    try:
        run = pydiff.load(folder)
    except (CheckpointError, FileNotFoundError) as error:
        sentence = str(error)
        bad = not sentence.isprintable() or len(sentence) > 1200
        return ("bad sentence" if bad else "refused"), sentence
    except Exception as error:  # what this script looks for
        return "other exception", f"{type(error).__name__}: {error}"
    if not draw or not all(type(n) is int for n in run.shape) or np.prod(run.shape) > 64 * 64 * 4:
        return "opened", ""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            images = run.sample(1, steps=2)
    except (ValueError, ImportError, TypeError) as error:
        sentence = str(error)
        return ("bad sentence" if not sentence.isprintable() else "opened, not drawn"), sentence
    except Exception as error:
        return "other exception", f"drawing: {type(error).__name__}: {error}"
    return ("opened, drawn" if images.dtype == np.uint8 else "other exception"), ""


def main() -> None:
    parser = fuzz.options(__doc__, 40_000)
    parser.add_argument("--draw", type=int, default=5, help="draw from one in so many that open")
    options = parser.parse_args()
    fuzz.check(options)
    logging.getLogger("pydiff").addHandler(logging.NullHandler())
    rng, results, kinds, bad, slowest = random.Random(options.seed), {}, Counter(), [], (0.0, "")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        every = targets(make(Path(directory)))
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in fuzz.Until(options.count, options.minutes):
            target = every[rng.randrange(len(every))]
            target.spoil(rng)
            start = time.perf_counter()
            what, sentence = tried(target.folder, draw=rng.randrange(options.draw) == 0)
            slowest = max(
                slowest, (time.perf_counter() - start, target.path.read_bytes()[:300].decode("utf-8", "replace"))
            )
            if what in ("bad sentence", "other exception") and len(bad) < fuzz.KEPT:
                contents = target.path.read_bytes()[:1500].decode("utf-8", "replace")
                bad.append({"file": target.name, "what": what, "said": sentence[:500], "contents": contents})
            target.restore()
            kinds[what] += 1
            results.setdefault(target.name.split(",")[0], Counter())[what] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = {
        "count": sum(kinds.values()), "seeds": [options.seed], **kinds, "by_file": results, "bad": bad,
        "slowest_seconds": round(slowest[0], 3), "slowest": slowest[1], "peak_memory_growth_kb": grown,
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    fuzz.finish(options, result)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
