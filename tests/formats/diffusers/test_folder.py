"""Model folders without diffusers at hand: mutated, hostile, large; what is said, what is refused, what it costs."""

import copy
import hashlib
import json
import os
import random
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff import nn
from pydiff.diffusion import Process, schedule
from pydiff.formats import safetensors as tensorfile
from pydiff.formats import weights
from pydiff.formats.diffusers import unet
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import UNet2D, registry
from pydiff.store import checkpoint, sealed
from tests.models.configurations import SMALL
from tests.stress import right_folders
from tests.test_cli import pydiff_command

OLD = Path(__file__).parents[2] / "recorded" / "old-runs"


@pytest.fixture
def theirs(tmp_path):
    """A pipeline folder as diffusers would leave it: ours without the seal."""
    folder = tmp_path / "model"
    pydiff.Run(UNet2D(**SMALL, sample_size=8, seed=1), Process(schedule("cosine", 200), "v"), {}).save(folder)
    (folder / "pydiff.json").unlink()
    return folder


def edit(path, change):
    config = json.loads(path.read_text())
    changed = change(config)
    path.write_text(json.dumps(config if changed is None else changed))


def one_sentence(folder):
    """What is wrong with a folder, or None where it opens."""
    try:
        pydiff.load(folder)
    except CheckpointError as error:
        found = str(error)
    else:
        return None
    assert not {"\n", "\x1b"} & set(found)
    return found


# ---- ours ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_first_version_still_opens():
    run = pydiff.load(OLD / "finished")
    assert run.notes == ()
    assert (run.process.schedule.T, len(run.classes)) == (40, 10)
    assert run.sample(2, steps=3, labels=["7", "3"]).shape == (2, 8, 8, 1)


def test_a_folder_of_a_later_version_is_refused(tmp_path):
    config = json.loads(json.dumps(SMALL))
    checkpoint.save_model(tmp_path / "m", config, {}, {"schema": 99})
    with pytest.raises(CheckpointError, match="is of schema 99, and this pydiff knows up to 3: use a newer one"):
        pydiff.load(tmp_path / "m")


def test_nothing_in_the_seal_can_ask_for_much(tmp_path):
    model = UNet2D(**SMALL, sample_size=8)
    run = pydiff.Run(model, Process(schedule("linear", 100)), {})
    run.save(tmp_path / "m")
    info, _ = sealed.inspect(tmp_path / "m", "pydiff.json", "pydiff model")
    good, rng, refused = info["extra"], random.Random(3), 0
    wrong = [None, -1, 0, 1e400, 10**12, "x", [], {}, [1], {"name": "linear", "T": 10**9}, True, "\x1b[31m", 0.5]
    for _ in range(300):
        extra = copy.deepcopy(good)
        place = extra if rng.random() < 0.5 else extra.get(rng.choice(["schedule", "codec"]), extra)
        name = rng.choice(sorted(place))
        value = rng.choice(wrong)
        if rng.random() < 0.2:
            del place[name]
        else:
            place[name] = 10**300 if value == 1e400 else value
        checkpoint.save_model(tmp_path / "n", model.config, model.state_dict(), extra)
        refused += one_sentence(tmp_path / "n") is not None
    assert refused > 100


def resealed(folder, file, /, **changes):
    """Other options in a sealed config.json, or in the seal itself, and a seal that vouches for them."""
    info, entries = sealed.inspect(folder, "pydiff.json", "pydiff model")
    if file == "pydiff.json":
        info["extra"] |= changes
        (folder / file).write_bytes(sealed._seal("pydiff model", info, entries))
        return
    edit(folder / file, lambda config: {**config, **changes})
    data = (folder / file).read_bytes()
    entries[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "pydiff.json").write_bytes(sealed._seal("pydiff model", info, entries))


@pytest.mark.parametrize("name", ["our seal", "our network", "their scheduler", "their network"])
def test_json_is_judged_before_weights_are_read(tmp_path, theirs, name, monkeypatch):
    """Weights are as large as the model: what is wrong in the small files is said at once."""
    ours = tmp_path / "ours"
    extra = {"schedule": {"name": "nobody", "T": 100}} if name == "our seal" else {}
    model = UNet2D(**SMALL)
    checkpoint.save_model(ours, model.config, model.state_dict(), extra, index=None)
    if name == "our network":
        resealed(ours, "unet/config.json", norm_eps=-1.0)
    if name == "their scheduler":
        edit(theirs / "scheduler/scheduler_config.json", lambda config: {**config, "beta_schedule": "nobody"})
    if name == "their network":
        edit(theirs / "unet/config.json", lambda config: {**config, "norm_eps": -1.0})

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(sealed, "check", read)
    monkeypatch.setattr(weights, "open_folder", read)
    with pytest.raises(CheckpointError, match=r"nobody|norm_eps = -1\.0"):
        pydiff.load(ours if name.startswith("our") else theirs)


def test_every_file_of_weights_is_compared_with_the_seal_when_some_are_used(tmp_path):
    made = right_folders.make(tmp_path)
    for file in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        folder = shutil.copytree(made["ours, latents"], tmp_path / file.partition("/")[0])
        data = bytearray((folder / file).read_bytes())
        data[-1] ^= 1
        (folder / file).write_bytes(data)
        for part in ("weights", "beside"):
            with (
                checkpoint.open_model(folder, ["UNet2DModel"]) as found,
                pytest.raises(CheckpointError, match=f"{file} is damaged: its SHA-256 is"),
            ):
                getattr(found, part)


SPECTRUM = {
    "kind": "spectrogram", "rate": 4000, "length": 64, "channels": 1, "bands": 8, "hop": 8, "iterations": 60,
    "window": 32,
}  # fmt: skip
OF_OUR_SEALS = {
    "a rate that no clock has": ("spectrum", {"codec": {**SPECTRUM, "rate": 10**30}}, "rate = 1000000000000"),
    "no rate": ("sound", {"codec": {"kind": "waveform", "length": 16, "channels": 1}}, "KeyError"),
    "axes without end": (
        "classifier", {"codec": {"kind": "pixels", "shape": [4] * 900}}, "codec, has shape = .*, expected a list of 1"
    ),
    "a codec of nobody": ("classifier", {"codec": {"kind": [1]}}, "codec, has kind = .*, expected a short text"),
    "a mean of nothing": ("points", {"codec": {"kind": "points", "mean": [], "scale": 1.0}}, "has mean = "),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_OUR_SEALS)
def test_options_of_our_own_codecs_have_their_rules(tmp_path, name):
    kind, changes, words = OF_OUR_SEALS[name]
    folder = right_folders.make(tmp_path)[f"ours, {kind}"]
    if kind == "classifier":
        changes = {"classifier": {**checkpoint.extra_of(folder)["classifier"], **changes}}
    resealed(folder, "pydiff.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        pydiff.load(folder)
    assert len(one_sentence(folder)) < 700


@pytest.mark.parametrize(
    "changes", [{"heads": 0}, {"heads": False}, {"tokens": -0.5}, {"layers": 10**12}, {"width": "4"}]
)
def test_a_reader_of_captions_that_cannot_be_is_one_sentence(tmp_path, changes):
    folder = right_folders.make(tmp_path)["ours, captions"]
    resealed(folder, "text_encoder/config.json", **changes)
    words = r"must be a whole number of at least 1|larger network than its weights|missing|must have shape"
    with pytest.raises(CheckpointError, match=words):
        pydiff.load(folder)


def test_an_autoencoder_of_no_shape_is_one_sentence(tmp_path):
    folder = right_folders.make(tmp_path)["ours, autoencoder"]
    info, entries = sealed.inspect(folder, "pydiff.json", "pydiff autoencoder")
    info["extra"]["shape"] = [8] * 900
    (folder / "pydiff.json").write_bytes(sealed._seal("pydiff autoencoder", info, entries))
    assert "has shape = " in one_sentence(folder)


OF_OUR_NETWORKS = {
    "a number that is a word": ("sound", {"norm_eps": "x"}, "norm_eps = 'x', expected a number"),
    "layers without end": ("points", {"layers": 10**9}, "layers = 1000000000, expected a whole number"),
    "more layers than weights": ("clips", {"layers_per_block": 200}, "larger network than its weights are of"),
    "an option of nobody": ("clips", {"\x1b[2J": 1}, r"does not know \(\['\\x1b\[2J'\]\): use the pydiff that"),
    "strides without end": ("sound", {"strides": [2] * 15}, r"strides needs 1 whole numbers"),
    "sizes of another": ("captions", {"cross_attention_dim": 65536}, "describes another network than the weights"),
    "blocks without end": (
        "captions", {"down_block_types": ["DownBlock2D"] * 16}, "down_block_types needs 2 of CrossAttnDownBlock2D"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_OUR_NETWORKS)
def test_options_of_our_own_networks_have_their_rules(tmp_path, name):
    kind, changes, words = OF_OUR_NETWORKS[name]
    folder = right_folders.make(tmp_path)[f"ours, {kind}"]
    resealed(folder, "unet/config.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        pydiff.load(folder)
    assert len(one_sentence(folder)) < 700


def test_a_class_of_somebody_else_builds_no_more_than_its_weights(tmp_path, monkeypatch):
    class Tower(nn.Module):
        def __init__(self, *, layers):
            self.config = {"layers": layers}
            self.rows = [nn.Linear(4, 4) for _ in range(layers)]

    monkeypatch.setitem(registry.MODELS, "Tower", Tower)
    three = Tower(layers=3)
    checked = unet.read_config({"_class_name": "Tower", "layers": 10**12}, tmp_path)
    arrays = {name: tensorfile.Weight(a.shape, a.copy) for name, a in three.state_dict().items()}
    with pytest.raises(CheckpointError, match="it describes a larger network than its weights are of"):
        unet.read_model(checked, arrays, tmp_path)
    again = unet.read_model(checked._replace(config={"layers": 3}), arrays, tmp_path)
    assert again.config == {"layers": 3}


def test_a_class_that_is_no_name_is_one_sentence(tmp_path):
    folder = right_folders.make(tmp_path)["theirs, tiny autoencoder"]
    edit(folder / "config.json", lambda config: {**config, "_class_name": {"a": 1}})
    assert "is for the class {'a': 1}" in one_sentence(folder)


def test_a_folder_of_ours_in_the_place_of_a_network(theirs):
    outer = theirs.parent / "outer"
    outer.mkdir()
    theirs.rename(outer / "unet")
    (outer / "scheduler").mkdir()
    scheduler = json.loads((outer / "unet/scheduler/scheduler_config.json").read_text())
    (outer / "scheduler/scheduler_config.json").write_text(json.dumps({**scheduler, "num_train_timesteps": 300}))
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (outer / "model_index.json").write_text(json.dumps(index))
    assert pydiff.load(outer).process.schedule.T == 300


# ---- mutated ---------------------------------------------------------------------------------------------------------

VALUES = [None, True, False, 0, -1, 1, 2, 3, 5, 1.5, -0.5, 20000, 10**9, 10**18, 10**30, 1e308, "", "x", "\x1b[2J\n",
          "../../x", [], [0], [1, 2], [8, 16, 32], ["DownBlock2D"], ["AttnDownBlock2D"] * 17, {}, {"a": 1}, [[1]],
          "float16", "learned", "fourier", "timestep", "scale_shift", "resnet"]  # fmt: skip


def mutations(config, count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(config)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            name = rng.choice([*sorted(changed), "added"])
            action = rng.random()
            if action < 0.15:
                changed.pop(name, None)
            elif action < 0.25 and isinstance(changed.get(name), list) and changed[name]:
                changed[name][rng.randrange(len(changed[name]))] = rng.choice(VALUES)
            else:
                changed[name] = rng.choice(VALUES)
        yield changed


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_a_mutated_folder_opens_or_is_one_error(theirs, name):
    """Quickly, and without allocating by what is written there."""
    file, opened, refused = theirs / name, 0, 0
    for changed in mutations(json.loads(file.read_text()), 250, seed=len(name)):
        file.write_text(json.dumps(changed))
        began = time.perf_counter()
        found = one_sentence(theirs)
        opened, refused = opened + (found is None), refused + (found is not None)
        assert time.perf_counter() - began < 5
    assert opened > 20
    assert refused > 50


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "NaN", '{"a": NaN}', "[" * 100_000, '{"a":' * 50_000, '{"a": 1, "a": 2}', "\0", "9" * 5000],
)
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_json_that_is_none(theirs, name, text):
    (theirs / name).write_text(text)
    with pytest.raises(CheckpointError) as found:
        pydiff.load(theirs)
    assert len(str(found.value)) < 1000


def test_numbers_that_python_writes_and_json_does_not_know(theirs):
    edit(theirs / "scheduler/scheduler_config.json", lambda c: {
        **c, "_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -float("inf"),
        "timestep_spacing": "linspace",
    })  # fmt: skip
    run = pydiff.load(theirs)
    assert run.sample(1, steps=3).shape == (1, 8, 8, 3)
    run.save(theirs.parent / "again")
    assert pydiff.load(theirs.parent / "again").pipeline.scheduler.name == "DPMSolverMultistepScheduler"


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_which_file_comes_first():
    stem = "diffusion_pytorch_model"
    best = [
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.bin",
        f"{stem}.bin.index.json",
        "diffusion_model.pt",
        f"{stem}.fp16.safetensors",
        f"{stem}.ema.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16.bin",
    ]
    others = ["config.json", f"{stem}-00001-of-00002.safetensors", f"{stem}.fp16-00001-of-00002.safetensors", "x.bin"]
    others += [f"{stem}.safetensors.bak", f".{stem}.bin", f"{stem}.a.b.bin", "pytorch_lora_weights.safetensors"]
    names = best + others
    random.Random(1).shuffle(names)
    assert weights.candidates(names) == best
    assert weights.candidates(names, "fp16") == [name for name in best if "fp16" in name]
    assert weights.candidates(others) == []


def sharded(folder, table=None, metadata=None):
    """Splits the weights of a folder in two."""
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    arrays = tensorfile.decode(np.frombuffer(bytearray(file.read_bytes()), np.uint8), file)
    file.unlink()
    names, parts = sorted(arrays), {}
    for i, some in enumerate((names[::2], names[1::2]), 1):
        part = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        (folder / "unet" / part).write_bytes(tensorfile.encode({n: arrays[n] for n in some}))
        parts |= dict.fromkeys(some, part)
    index = {"metadata": metadata or {}, "weight_map": parts if table is None else table(parts)}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_put_together(theirs):
    expected = pydiff.load(theirs).model.state_dict()
    sharded(theirs)
    found = pydiff.load(theirs).model.state_dict()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda t: {**t, "conv_in.bias": "../../secret.safetensors"}, r"the file '\.\./\.\./secret.*one beside it"),
        (lambda t: {**t, "conv_in.bias": "/etc/passwd"}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": "..\\x.safetensors"}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": ".."}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": "a\0.safetensors"}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": "a\n.safetensors"}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": "config.json"}, "expected one beside it"),
        (lambda t: {**t, "conv_in.bias": "gone.safetensors"}, "lacks 'gone.safetensors', which .* names"),
        (lambda t: {**t, "conv_in.bias": "9" * 5000 + ".bin"}, "lacks '9{79}, which .{1,80} names"),
        (lambda t: {**t, "odd": next(iter(t.values()))}, "it says that 'odd' is in"),
        (lambda t: {**t, "conv_in.bias": 3}, "no weight_map"),
        (lambda _: {}, "no weight_map"),
        (lambda _: [], "no weight_map"),
        (lambda t: {n: f for n, f in t.items() if n != "conv_in.bias"}, "missing .*conv_in.bias"),
        (lambda _: {str(i): f"{i}.safetensors" for i in range(1001)}, "names 1001 files"),
    ],
)  # fmt: skip
def test_an_index_that_lies_is_refused(theirs, table, message):
    (theirs.parent / "secret.safetensors").write_bytes(tensorfile.encode({"conv_in.bias": np.zeros(8, np.float32)}))
    sharded(theirs, table)
    with pytest.raises(CheckpointError, match=message):
        pydiff.load(theirs)


def test_shards_without_an_index_are_named(theirs):
    sharded(theirs)
    (theirs / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="it has shards, and their index is missing"):
        pydiff.load(theirs)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        b"\xff" * 8 + bytes(100),
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_weights_that_are_none(theirs, data):
    (theirs / "unet/diffusion_pytorch_model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        pydiff.load(theirs)


def test_pipes_and_folders_in_the_place_of_files(theirs):
    for name in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        file, kept = theirs / name, theirs.parent / "kept"
        file.rename(kept)
        os.mkfifo(file)
        with pytest.raises(CheckpointError, match="is not a regular file"):
            pydiff.load(theirs)
        file.unlink()
        file.mkdir()
        with pytest.raises(CheckpointError, match="is not a regular file"):
            pydiff.load(theirs)
        file.rmdir()
        kept.rename(file)
    pydiff.load(theirs)


def test_links_as_a_cache_of_downloads_has_them(theirs):
    blobs = theirs.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(f for f in theirs.rglob("*") if f.is_file())):
        file.rename(blobs / str(i))
        file.symlink_to(blobs / str(i))
    assert pydiff.load(theirs).process.prediction == "v"


# ---- what it costs ---------------------------------------------------------------------------------------------------


def traced(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_saving_and_loading(tmp_path):
    """Saving: one array more than the model. Loading: the file and one array."""
    wide = {**SMALL, "block_out_channels": (64, 192), "layers_per_block": 2, "norm_num_groups": 8}
    run = pydiff.Run(UNet2D(**wide, sample_size=8), Process(schedule("linear", 100)), {})
    largest = 4 * max(p.size for p in run.model.parameters())
    whole = 4 * run.parameters
    assert whole > 5 * largest
    assert traced(lambda: run.save(tmp_path / "m")) <= 2.2 * largest + (4 << 20)
    assert traced(lambda: pydiff.load(tmp_path / "m")) <= 1.1 * whole + largest + (4 << 20)
    (tmp_path / "m" / "pydiff.json").unlink()
    assert traced(lambda: pydiff.load(tmp_path / "m")) <= 1.1 * whole + largest + (4 << 20)


def test_nothing_but_reading_happens_while_bad_folders_are_opened(theirs):
    """An audit hook sees no file opened for writing, no process, no connection."""
    seen, armed = [], True
    watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "os.remove", "os.rename")

    def hook(event, arguments):
        if not armed:
            return
        if event in watched or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            seen.append((event, arguments))

    configs = list(mutations(json.loads((theirs / "unet/config.json").read_text()), 20, seed=9))
    for changed in configs:
        (theirs / "unet/config.json").write_text(json.dumps(changed))
        armed = True
        sys.addaudithook(hook) if changed is configs[0] else None
        try:
            pydiff.load(theirs)
        except CheckpointError:
            pass
        finally:
            armed = False
    assert seen == []


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_opens_them(theirs, tmp_path):
    done = pydiff_command("sample", theirs, "-n", 2, "--steps", 3, "--out", tmp_path / "a.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], pydiff.load(theirs).sample(2, steps=3))
    shutil.copytree(theirs / "unet", tmp_path / "bare")
    edit(tmp_path / "bare" / "config.json", lambda c: {**c, "sample_size": None})
    done = pydiff_command("sample", tmp_path / "bare", "-n", 1, "--out", tmp_path / "b.npz")
    assert done.returncode == 1
    assert "give size=, or --size, in pixels" in done.stderr
    flags = ["--size", 8, "--steps", 3, "-n", 2]
    done = pydiff_command("sample", tmp_path / "bare", *flags, "--out", tmp_path / "b.npz")
    assert done.returncode == 0
    assert "has no scheduler, so it is drawn as most networks of its kind were trained" in done.stderr
    said = ["--scheduler", theirs / "scheduler/scheduler_config.json"]
    done = pydiff_command("sample", tmp_path / "bare", *flags, *said, "--out", tmp_path / "c.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "c.npz") as c:
        assert np.array_equal(a["images"], c["images"])
    done = pydiff_command("sample", theirs, "--prediction", "odd", "--out", tmp_path / "d.npz")
    assert done.returncode == 1
    assert "there is no prediction 'odd'; choose one of eps" in done.stderr
