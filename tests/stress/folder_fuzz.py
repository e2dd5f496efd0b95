"""Fuzz model folders: whatever stands in their JSON files, they open or one of two errors is raised.

    python -m tests.stress.folder_fuzz --count 1000000 --json benchmarks/results/folder-fuzz.json

The files of right folders, of diffusers, of transformers and of pydiff, are changed in meaning (values, names,
structure), in text and in bytes; seals that pydiff wrote are made to fit again, so that what they vouch for is reached.

Most of the changed files go to the function that judges them, which is what opening the folder begins with: it reads
no weights and builds no network. One in 60, and all of which nothing can be judged alone, are opened as a user would;
one in `--draw` of what opens is drawn from. Allowed are FileNotFoundError and CheckpointError of one printable
sentence, quickly, without memory, and without a warning of NumPy's; in drawing, a ValueError of one sentence, too.
"""

import contextlib
import copy
import hashlib
import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pydiff
from pydiff.formats import weights
from pydiff.formats.diffusers import autoencoder, folder, pipeline, stable_diffusion, text_encoder, unet, unet_condition
from pydiff.formats.diffusers.extra import RULES as EXTRA
from pydiff.formats.diffusers.scheduler import SCHEDULERS
from pydiff.formats.diffusers.scheduler.config import OPTIONS
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import MODELS
from pydiff.store import checkpoint, sealed
from pydiff.text.folder import read as read_text_encoder
from tests.stress import fuzz, right_folders
from tests.stress.right_folders import NETWORKS, STEM

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
         "cosine", "pixels", "waveform", "spectrogram", "frames", "points", "latents", "learned", "clip", "bert",
         "glove",
         "AutoencoderKL", "AutoencoderTiny", "PointsMLP", "UNet1D", "ClipUNet", "CLIPTextModel", "CLIPTokenizer",
         "StableDiffusionPipeline", "LDMPipeline", "CrossAttnDownBlock2D", "DownEncoderBlock2D", "BPE", "WordPiece",
         "quick_gelu", "<|endoftext|>", *SCHEDULERS]  # fmt: skip
TEXT = [b'"a":1,', b"NaN", b"-Infinity", b"[" * 3000, b"9" * 5000, b"\xff", b"\\ud800", b"\xef\xbb\xbf", b"{", b"}",
        b",", b"\0", b'"_class_name":"x",', b"1e999", b"-0", b"true", b"null", b"//"]  # fmt: skip


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
        longest = 300 if rng.random() < 0.03 else 17
        return [value(rng, depth + 1) for _ in range(rng.choice([1, 2, 2, 3, 4, longest]))]
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
    data = json.dumps(config, indent=1 if rng.random() < 0.1 else None).encode()
    return garbled(data, rng) if rng.random() < 0.15 else data


# ---- one file --------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What is done with a changed folder.

    judge: reads the changed file as opening the folder begins to; None for what only opening judges. open: as a user
    does. draw: with what was opened; None for what does not draw. whole: one in so many is opened.
    """

    judge: Callable | None
    open: Callable
    draw: Callable | None = None
    whole: int = 60


class Target:
    """One file of a folder, put back when its turn is over.

    where: the folder that is judged and opened. file: in it. kind: see Kind. names: of options that may be added. base:
    what is changed in place of the file's own contents. resealed: whether the folder's seal is made to fit.
    """

    def __init__(self, name, where: Path, file, kind: Kind, names=(), base=None, resealed=False):
        self.name, self.where, self.path, self.kind = name, where, where / file, kind
        self.names, self.resealed, self.good = sorted(names), resealed, self.path.read_bytes()
        self.config = json.loads(self.good) if base is None and self.path.suffix == ".json" else base
        self.seal = where / checkpoint.SEAL
        if resealed:
            self.good_seal = self.seal.read_bytes()
            content = json.loads(self.good_seal)
            self.sort, self.info, self.entries = content["kind"], content["info"], content["files"]

    def spoil(self, rng: random.Random):
        """Writes other contents."""
        if self.resealed and self.path == self.seal:
            info = {**self.info, "extra": changed(self.info["extra"], rng, self.names)}
            _write(self.seal, sealed._seal(self.sort, info, self.entries))
            return
        if self.config is None:
            data = garbled(self.good, rng) if rng.random() < 0.5 else of_lines(self.good, rng)
        else:
            data = written(changed(self.config, rng, self.names), rng)
        _write(self.path, data)
        if self.resealed:
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            entries = {**self.entries, str(self.path.relative_to(self.where)): entry}
            _write(self.seal, sealed._seal(self.sort, self.info, entries))

    def restore(self):
        """Puts the right contents back."""
        _write(self.path, self.good)
        if self.resealed:
            _write(self.seal, self.good_seal)


def _write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """A text with lines taken out, doubled, or made of other words."""
    lines = data.split(b"\n")
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(lines))
        words = [*WORDS, *lines[at].decode("utf-8", "replace").split()]
        line = " ".join(rng.choice(words) for _ in range(rng.choice([1, 2, 2, 3])))
        lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [line.encode("utf-8", "surrogatepass")]])
        lines = lines or [b""]
    return b"\n".join(lines)


# ---- every kind of file that is read ---------------------------------------------------------------------------------


def small(shape) -> bool:
    """Whether drawing something of this shape takes no time."""
    return all(type(n) is int for n in shape) and np.prod(shape, dtype=float) <= 64 * 64 * 4


def drawn(run) -> bool:
    """Draws from what was opened, if that is small. Returns whether it was."""
    return small(run.shape) and run.sample(1, steps=2).dtype in (np.uint8, np.float32)


def encoded(run) -> bool:
    """Encodes an image of the size that an autoencoder is for, if that is small."""
    shape = run.codec.pixels.shape
    return small(shape) and run.encode(np.zeros((1, *shape), np.uint8)).dtype == np.float32


def judge_ours(where: Path):
    """The seal, and the JSON files that it vouches for."""
    with checkpoint.open_model(where, MODELS) as found:
        pipeline.described_ours(found, where)


def judge_scheduler(where: Path):
    """Of a pipeline."""
    path = where / "scheduler/scheduler_config.json"
    pipeline.scheduler_for((folder.read_json(path), path), None, pipeline.NOTHING, where)


def judge_family(where: Path):
    """The model_index.json of Stable Diffusion."""
    if stable_diffusion.is_one(where):
        stable_diffusion.check_family(folder.read_json(where / folder.INDEX), where)
    else:
        pipeline.described(where)


def judge_tokenizer(where: Path):
    """Also tokenizes with it."""
    tokenizer, _ = text_encoder.open_tokenizer(where / "tokenizer")
    row = tokenizer.row("a cat, ça 猫 <|endoftext|>", 8)
    if len(row) != 8 or not all(type(number) is int for number in row):
        raise TypeError(f"tokens that are no numbers: {row}")


def judge_network(part: str, module, stems=(STEM,)) -> Callable:
    """A judge of a config.json: of every option, and of the sizes, which are compared with the weights."""
    weights_of: dict[Path, dict] = {}

    def judge(where):
        path = where / part / "config.json"
        if where not in weights_of:
            with weights.open_folder(path.parent, os.listdir(path.parent), None, stems) as found:
                weights_of[where] = found.weights
        module.compared(module.read_config(folder.read_json(path), path), weights_of[where], path)

    return judge


def judge_shards(where: Path):
    """The index, and the headers of the files that it names."""
    with weights.open_folder(where / "unet", os.listdir(where / "unet")):
        pass


OURS, THEIRS = Kind(judge_ours, pydiff.load, drawn), Kind(pipeline.described, pydiff.load, drawn)
OURS_WHOLE = Kind(judge_ours, pydiff.load, drawn, whole=8)  # codecs and text encoders are judged with the networks
WHOLE = Kind(None, pydiff.load, drawn)


def usual_options(name) -> dict:
    """A scheduler's configuration, every option at its usual value."""
    _, defaults = SCHEDULERS[name]
    options = {"num_train_timesteps": 50, **defaults}
    return {"_class_name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}


def targets(made: dict[str, Path]) -> list[Target]:
    """Every kind of file, in every kind of folder."""
    options = {name: sorted(module.RULES) for name, module in (("unet", unet), ("context", unet_condition))}
    unet_kind = THEIRS._replace(judge=judge_network("unet", unet))
    found = []
    for name in NETWORKS:
        ours, theirs = made[f"ours, {name}"], made[f"theirs, {name}"]
        found += [
            Target(f"unet/config.json, {name}", theirs, "unet/config.json", unet_kind, options["unet"]),
            Target(f"unet/config.json, {name}", ours, "unet/config.json", OURS, options["unet"], resealed=True),
            Target(f"pydiff.json, {name}", ours, "pydiff.json", OURS, EXTRA, resealed=True),
        ]
    every_option = set().union(*OPTIONS.values())
    scheduler = THEIRS._replace(judge=judge_scheduler)
    for name in SCHEDULERS:
        where = made["theirs, plain"]
        found.append(
            Target(
                f"scheduler_config.json, {name}", where, "scheduler/scheduler_config.json", scheduler, every_option,
                usual_options(name),
            )
        )  # fmt: skip
    parts = ["unet", "scheduler", "vae", "vqvae", "text_encoder", "_class_name", "id2label", "safety_checker"]
    for name in ("classes", "latents"):
        found.append(Target(f"model_index.json, {name}", made[f"theirs, {name}"], "model_index.json", THEIRS, parts))
    shards = THEIRS._replace(judge=judge_shards)
    index = f"unet/{STEM}.safetensors.index.json"
    found.append(Target("index of shards", made["theirs, shards"], index, shards, ["weight_map"]))
    broken = THEIRS._replace(judge=checkpoint.extra_of)
    found.append(Target("pydiff.json, its seal broken", made["ours, plain"], "pydiff.json", broken))
    return found + _other_kinds(made, options) + _latent_kinds(made) + _text_kinds(made, options, parts)


def _other_kinds(made, options) -> list[Target]:
    """Points, sounds, clips, segmenters and classifiers."""
    found = []
    for name in ("points", "sound", "spectrum", "clips"):
        where = made[f"ours, {name}"]
        found.append(Target(f"pydiff.json, {name}", where, "pydiff.json", OURS_WHOLE, EXTRA, resealed=True))
        names = MODELS[json.loads((where / "unet/config.json").read_bytes())["_class_name"]].__init__.__kwdefaults__
        found.append(Target(f"unet/config.json, {name}", where, "unet/config.json", WHOLE, names, resealed=True))
    segmenter = Kind(None, pydiff.segment.load, lambda made: made.predict(np.zeros((1, 4, 4, 3), np.uint8)) is not None)
    classifier = Kind(
        None, pydiff.load, lambda run: run.log_probabilities(np.zeros((1, 4, 4, 1), np.uint8)) is not None
    )
    for name, kind, names in (
        ("segmenter", segmenter, options["unet"]),
        ("classifier", classifier, ("line", "classes")),
    ):
        where = made[f"ours, {name}"]
        found.append(Target(f"pydiff.json, {name}", where, "pydiff.json", kind, resealed=True))
        found.append(Target(f"unet/config.json, {name}", where, "unet/config.json", kind, names, resealed=True))
    return found


def _latent_kinds(made) -> list[Target]:
    """Autoencoders, alone and beside a U-Net."""
    rules, where = autoencoder.RULES, made["ours, autoencoder"]
    alone = Kind(None, pydiff.load, encoded)
    beside, tiny = judge_network("vqvae", autoencoder), judge_network("", autoencoder)
    return [
        Target("pydiff.json, autoencoder", where, "pydiff.json", alone, resealed=True),
        Target("vae/config.json, autoencoder", where, "vae/config.json", alone, rules["AutoencoderKL"], resealed=True),
        Target(
            "vae/config.json, tiny", made["theirs, tiny autoencoder"], "config.json", alone._replace(judge=tiny),
            rules["AutoencoderTiny"],
        ),
        Target(
            "vae/config.json, latents", made["theirs, latents"], "vqvae/config.json", THEIRS._replace(judge=beside),
            rules["AutoencoderKL"],
        ),
        Target("pydiff.json, latents", made["ours, latents"], "pydiff.json", OURS_WHOLE, EXTRA, resealed=True),
        Target(
            "vae/config.json, ours", made["ours, latents"], "vae/config.json", WHOLE, rules["AutoencoderKL"],
            resealed=True,
        ),
    ]  # fmt: skip


def _text_kinds(made, options, parts) -> list[Target]:
    """Stable Diffusion, text encoders and tokenizers."""
    where, one, ours = made["theirs, stable diffusion"], made["theirs, one tokenizer file"], made["ours, captions"]
    judges = {
        "unet": (judge_network("unet", unet_condition), options["context"]),
        "vae": (judge_network("vae", autoencoder), autoencoder.RULES["AutoencoderKL"]),
        "text_encoder": (judge_network("text_encoder", text_encoder, text_encoder.STEMS), text_encoder.RULES),
    }
    found = [
        Target(f"{part}/config.json, text", where, f"{part}/config.json", THEIRS._replace(judge=judge), names)
        for part, (judge, names) in judges.items()
    ]
    said = ["added_tokens_decoder", "bos_token", "pad_token", "model_max_length", "tokenizer_class"]
    tokenizer = THEIRS._replace(judge=judge_tokenizer)
    found += [
        Target(f"tokenizer/{file}", place, f"tokenizer/{file}", tokenizer, names)
        for place, file, names in (
            (where, "vocab.json", ()),
            (where, "merges.txt", ()),
            (where, "tokenizer_config.json", said),
            (where, "special_tokens_map.json", said),
            (one, "tokenizer.json", ["added_tokens", "model"]),
        )
    ]
    names = MODELS["BertModel"].__init__.__kwdefaults__
    bert = Kind(None, read_text_encoder, lambda encoder: bool(encoder.encode(["a cat, ça"])))
    return [
        *found,
        Target("model_index.json, text", where, "model_index.json", THEIRS._replace(judge=judge_family), parts),
        Target("bert/config.json", made["theirs, bert"], "config.json", bert, names),
        Target("bert/tokenizer.json", made["theirs, bert"], "tokenizer.json", bert, ["model", "normalizer"]),
        Target("pydiff.json, captions", ours, "pydiff.json", OURS_WHOLE, EXTRA, resealed=True),
        Target("unet/config.json, captions", ours, "unet/config.json", WHOLE, options["context"], resealed=True),
        Target("text_encoder/config.json, captions", ours, "text_encoder/config.json", WHOLE, resealed=True),
    ]  # fmt: skip


# ---- one folder ------------------------------------------------------------------------------------------------------


def said_of(error: Exception, what: str) -> tuple[str, str]:
    """(what, the sentence), if it is one."""
    sentence = str(error)
    return ("bad sentence" if not sentence.isprintable() or not 0 < len(sentence) <= 1200 else what), sentence


def tried(target: Target, whole: bool, draw: bool) -> tuple[str, str]:
    """(what happened, the sentence or the exception)."""
    kind, drawing = target.kind, ""
    try:
        if not whole:
            kind.judge(target.where)  # pyright: ignore[reportOptionalCall]
            return "judged, passed", ""
        made = kind.open(target.where)
        if not draw or kind.draw is None:
            return "opened", ""
        drawing = "drawing: "
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return ("opened, drawn" if kind.draw(made) else "opened"), ""
    except (CheckpointError, FileNotFoundError) as error:
        return said_of(error, "refused" if whole else "judged, refused")
    except (ValueError, TypeError, ImportError, MemoryError) as error:
        if drawing:
            return said_of(error, "opened, not drawn")
        return "other exception", f"{type(error).__name__}: {error}"
    except Exception as error:  # what this script looks for
        return "other exception", f"{drawing}{type(error).__name__}: {error}"


def run(count: int, seed: int, minutes: float = float("inf"), draw: int = 5) -> dict:
    """Changes so many files, or as many as it can in so many minutes, and says what happened. draw: from one in so many
    that open.
    """
    rng, results, kinds, bad, slowest = random.Random(seed), {}, Counter(), [], (0.0, "")
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as directory, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        every = targets(right_folders.make(Path(directory)))
        with contextlib.suppress(ImportError):
            import scipy.stats  # noqa: F401 - by use_beta_sigmas, and seconds that are not the reader's
        shares = [1 if target.kind.judge is None else 6 for target in every]  # what cannot be judged alone is slow
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in fuzz.Until(count, minutes):
            target = rng.choices(every, shares)[0]
            target.spoil(rng)
            whole = target.kind.judge is None or rng.randrange(target.kind.whole) == 0
            start = time.perf_counter()
            what, sentence = tried(target, whole, draw=rng.randrange(draw) == 0)
            took = time.perf_counter() - start
            if took > slowest[0]:
                slowest = took, f"{target.name}: {contents(target)[:300]}"
            if what in ("bad sentence", "other exception") and len(bad) < fuzz.KEPT:
                bad.append({"file": target.name, "what": what, "said": sentence[:500], "contents": contents(target)})
            target.restore()
            kinds[what] += 1
            results.setdefault(target.name.split(",")[0], Counter())[what] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "count": sum(kinds.values()), "seeds": [seed], **kinds, "by_file": results, "bad": bad,
        "slowest_seconds": round(slowest[0], 3), "slowest": slowest[1], "peak_memory_growth_kb": grown,
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip


def main() -> None:
    parser = fuzz.options(__doc__, 1_000_000)
    parser.add_argument("--draw", type=int, default=5, help="draw from one in so many that open")
    options = parser.parse_args()
    fuzz.check(options)
    logging.getLogger("pydiff").addHandler(logging.NullHandler())
    result = run(options.count, options.seed, options.minutes, options.draw)
    fuzz.finish(options, result)
    sys.exit(bool(result["bad"]))


def contents(target: Target) -> str:
    """The beginning of the changed file."""
    return target.path.read_bytes()[:1500].decode("utf-8", "replace")


if __name__ == "__main__":
    main()
