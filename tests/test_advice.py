"""Advice works when it is followed. Every message of an error that names an option, a command or a function is
collected from the source; each has a row here that provokes it, finds the advice in it, and does what it says; or a
reason why that cannot be done on this machine, or the test that does it.
"""

import ast
import glob
import operator
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import Tensor, cli, models, nn, ops, random, segment
from pydiff.data import Dataset, load
from pydiff.formats.safetensors import CheckpointError
from tests.peers import import_torch

ROOT = Path(__file__).resolve().parents[1]
CONCRETE = re.compile(
    r"\b[a-z_]+=|(?<!\w)--[a-z]|pip install|\bpydiff [a-z]+|numpy\.\w+|\bnp\.\w+|\.[a-z]\w+\(|pydiff\.\w+"
)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 16), "timesteps": 20, "sample_every": 0, "progress": False}
ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError, CheckpointError)


def said(node) -> str:
    """The text of a message, with {} for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return said(node.left) + said(node.right) if isinstance(node, ast.BinOp) else ""


def collected() -> set[tuple[str, str]]:
    """(file, advice): what stands behind the last semicolon of a message that is raised, if it is concrete."""
    found = set()
    for path in sorted((ROOT / "pydiff").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                _, semicolon, advice = " ".join(map(said, node.exc.args)).rpartition(";")
                if semicolon and CONCRETE.search(advice):
                    found.add((str(path.relative_to(ROOT / "pydiff")), advice.strip()))
    return found


# ---- what is at hand -------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)


def command(line, capsys=None):
    """What `pydiff LINE` says of an error; "" if it ends well."""
    code = cli.main(shlex.split(line))
    told = capsys.readouterr() if capsys else None
    return "" if code == 0 else told.err


def folder_of(folder="p", size=8, names="abc", deep=False):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = RNG.integers(0, 4000 if deep else 256, (size, size), dtype=np.uint16 if deep else np.uint8)
        pixels[0, 0] = 3999 if deep else 255
        Image.fromarray(pixels).save(f"{folder}/{name}.png")
    return folder


def run(out="run", data="digits", **options):
    return pydiff.train(data, out=out, **{**TINY, **options})


class Unregistered(nn.Module):
    def __init__(self, *, channels=1):
        self.config = {"channels": channels}
        self.inner = nn.Conv2d(1, 1, 3, padding=1)
        self.initialize(0)

    def forward(self, x, t):
        del t
        return self.inner(x)


def brains():
    torch = import_torch()
    return torch.zeros(4, 8, 8, dtype=torch.bfloat16)


def masked():
    return np.ma.masked_array(np.zeros((4, 8, 8), np.uint8), np.eye(8, dtype=bool)[None].repeat(4, 0))


def one_hot():
    return np.eye(4, dtype=int)


def told_more(**more):
    return Dataset("x", np.zeros((2, 8, 8, 1), np.uint8), columns={"c": np.ones((2, 3))}, **more)


def zeros_npz():
    np.savez_compressed("zeros.npz", images=np.zeros((70, 1 << 20, 1), np.uint8))


def damaged(name):
    Path(name).write_bytes(b"PK\3\4 no more" if name.endswith("z") else b"\x93NUMPY no more")


TRAIN = "train digits --steps 1 --batch-size 2 --channels 8 16 --timesteps 20 --sample-every 0 --out run"
# (file, advice) -> (what provokes it, what the advice says). Both are done in an empty folder, one after the other.
FOLLOWED = {
    ("cli.py", "give --model autoencoder, or leave it out"): (f"{TRAIN} --kl-weight 1e-6", TRAIN),
    ("cli.py", "give that too, --image"): ("sample run -n 1 --steps 1 --mask p/a.png",
                                           "sample run -n 1 --steps 2 --mask p/a.png --image p/b.png"),
    ("cli.py", "leave out --sampler, or --mask"): (
        "sample run -n 1 --steps 2 --mask p/a.png --image p/b.png --sampler ddim",
        "sample run -n 1 --steps 2 --image p/b.png --sampler ddim"),
    ("cli.py", "leave it out, or give one, --image"): (
        "sample run -n 1 --steps 2 --strength 0.5", "sample run -n 1 --steps 2 --strength 0.5 --image p/a.png"),
    ("cli.py", "leave it out, or --image"): (
        "sample run -n 1 --steps 2 --image p/a.png --spacing linspace", "sample run -n 1 --steps 2 --spacing linspace"),
    ("codec.py", "pydiff.data.load converts other images"): (
        lambda: pydiff.data.from_uint8(np.zeros((2, 8, 8))), lambda: load(np.zeros((2, 8, 8)))),
    ("data/arrays.py", "save it with numpy.savez(path, images=..., labels=...)"): (
        lambda: (np.savez("a.npz", foo=np.zeros(3)), load("a.npz")),
        lambda: (np.savez("a.npz", images=np.zeros((3, 8, 8)), labels=[0, 1, 2]), load("a.npz"))),
    ("data/arrays.py", "give images[None] then, or layout='NHW' if they are grey ones"): (
        lambda: load(np.zeros((8, 8, 3), np.uint8)),
        lambda: (load(np.zeros((8, 8, 3), np.uint8)[None]), load(np.zeros((8, 8, 3), np.uint8), layout="NHW"))),
    ("data/sources.py", "give the folder, or in Python the list glob.glob({})"): (
        lambda: load("p/*.png"), lambda: (load("p"), load(glob.glob("p/*.png")))),
    ("data/held.py", "fill them with .filled(0)"): (lambda: load(masked()), lambda: load(masked().filled(0))),
    ("data/held.py", "convert them with .float()"): (lambda: load(brains()), lambda: load(brains().float())),
    ("data/arrays.py",
     "convert them with images.astype('uint8') if they are 0..255, else divide them by their largest value"): (
        lambda: load(np.full((2, 8, 8), 255)),
        lambda: (load(np.full((2, 8, 8), 255).astype("uint8")), load(np.full((2, 8, 8), 255) / 255))),
    ("data/arrays.py", "save it again with numpy.save"): (
        lambda: (damaged("a.npy"), load("a.npy")), lambda: (np.save("a.npy", np.zeros((2, 8, 8))), load("a.npy"))),
    ("data/arrays.py", "save it again with numpy.savez"): (
        lambda: (damaged("a.npz"), load("a.npz")),
        lambda: (np.savez("a.npz", images=np.zeros((2, 8, 8))), load("a.npz"))),
    ("data/classes.py", "for one-hot rows use .argmax(axis=1)"): (
        lambda: load(np.zeros((4, 8, 8)), labels=one_hot()),
        lambda: load(np.zeros((4, 8, 8)), labels=one_hot().argmax(axis=1))),
    ("data/classes.py", "convert them with .astype(int)"): (
        lambda: load(np.zeros((2, 8, 8)), labels=np.array([0.0, 1.0])),
        lambda: load(np.zeros((2, 8, 8)), labels=np.array([0.0, 1.0]).astype(int))),
    ("data/classes.py", "use split={}"): (
        lambda: (folder_of("s/train"), folder_of("s/val"), load("s", split="test")), lambda: load("s", split="train")),
    ("data/classes.py", "leave out split={}"): (lambda: load("p", split="val"), lambda: load("p")),
    ("data/dataset.py", "pydiff.data.load converts others"): (
        lambda: Dataset("x", np.zeros((2, 8, 8, 1))), lambda: load(np.zeros((2, 8, 8, 1)))),
    ("data/dataset.py", "use pydiff.data.load"): (
        lambda: Dataset("x", np.full((2, 8, 8, 1), 2, np.float32)),
        lambda: load(np.full((2, 8, 8, 1), 2, np.float32) / 2)),
    ("data/dataset.py", "give it in nothing={{}: ...}, for example zeros"): (
        lambda: told_more(), lambda: told_more(nothing={"c": np.zeros(3)})),
    ("data/limits.py", "use for example limit=8"): (lambda: load("p", limit=0), lambda: load("p", limit=8)),
    ("data/limits.py", "raise it with limit={} (--limit {}) if there is room"): (
        lambda: load("p", limit=1e-6), lambda: (load("p", limit=4), command("data p --limit 4"))),
    ("data/limits.py", "if it is what it seems, say limit={} (--limit {})"): (
        lambda: (zeros_npz(), load("zeros.npz")),
        lambda: (load("zeros.npz", limit=4), command("data zeros.npz --limit 4"))),
    ("data/origin.py", "say where they are: data= (--data)"): (
        lambda: (folder_of("q"), run("moved", data="q"), Path("q").rename("r"), pydiff.load("moved").dataset()),
        lambda: (pydiff.load("moved").report(data="r", n=2, steps=2), command("report moved --data r -n 2 --steps 2"))),
    ("data/origin.py", "say where those are: data= (--data)"): (
        lambda: (folder_of("q"), run("moved", data="q"), Path("q").rename("r"), folder_of("q", names="ab"),
                 pydiff.load("moved").dataset()),
        lambda: pydiff.load("moved").report(data="r", n=2, steps=2)),
    ("data/pixels.py", "use for example size=32"): (lambda: load("p", size=0), lambda: load("p", size=32)),
    ("data/sources.py", "save its arrays with numpy.savez"): (
        lambda: (Path("a.pkl").write_bytes(b"x"), load("a.pkl")),
        lambda: (np.savez("a.npz", images=np.zeros((2, 8, 8))), load("a.npz"))),
    ("data/stream.py", "streamed data need bits, for example bits={} (--bits {})"): (
        lambda: (folder_of("d", deep=True), load("d", cache_gb=1)), lambda: load("d", cache_gb=1, bits=12)),
    ("data/stream.py", "streamed data need a size, for example size=64"): (
        lambda: (folder_of("p", 9, "z"), load("p", cache_gb=1)), lambda: load("p", cache_gb=1, size=64)),
    ("edit.py", "leave out resample=0"): (
        lambda: pydiff.load("run").inpaint(np.zeros((1, 8, 8, 1), np.uint8), np.ones((8, 8)), steps=2, resample=0),
        lambda: pydiff.load("run").inpaint(np.zeros((1, 8, 8, 1), np.uint8), np.ones((8, 8)), steps=2)),
    ("models/registry.py", "use pydiff.models.register on the class"): (
        lambda: run("own", model=Unregistered()),
        lambda: (models.register("UnregisteredNoMore")(Unregistered), run("own", model=Unregistered()),
                 pydiff.load("own"))),
    ("ops/elementwise.py", "use .astype(np.float32), or int64, first"): (
        lambda: Tensor(np.ones(2, np.uint8)) * 3, lambda: Tensor(np.ones(2, np.uint8)).astype(np.float32) * 3),
    ("ops/methods.py", "use x.data or x.numpy()"): (
        lambda: np.stack([Tensor(np.ones(2))]),
        lambda: np.stack([Tensor(np.ones(2)).data, Tensor(np.ones(2)).numpy()])),
    ("ops/methods.py", "use an operation of pydiff.ops, or x.data"): (
        lambda: np.sin(Tensor(np.ones(2))), lambda: (ops.tanh(Tensor(np.ones(2))), np.sin(Tensor(np.ones(2)).data))),
    ("ops/methods.py", "leave out= away, and dtype="): (
        lambda: Tensor(np.ones(2)).sum(dtype="float32"), lambda: Tensor(np.ones(2)).sum()),
    ("ops/names.py", "write axis= for dim=, and ddof=1 for PyTorch's var and std"): (
        lambda: Tensor(np.ones((2, 2))).std(dim=0), lambda: Tensor(np.ones((2, 2))).std(axis=0, ddof=1)),
    ("random.py", "use the constants of pydiff.random"): (
        lambda: random.key(0, -1, 0), lambda: random.key(0, random.NOISE, 0)),
    ("random.py", "convert it with .astype(np.int64)"): (
        lambda: random.key(0, random.NOISE, np.array([1.0])),
        lambda: random.key(0, random.NOISE, np.array([1.0]).astype(np.int64))),
    ("segment.py", "open it with pydiff.load."): (lambda: segment.load("run"), lambda: pydiff.load("run")),
    ("data/sources.py", "pydiff sample {} draws with it"): ("data run", "sample run -n 1 --steps 2"),
    ("run.py", "say where the page shall be, directory= (--out)"): (
        "report digits", "report digits --steps 2 -n 2 --out page"),
    ("mistakes.py", "np.asarray(a) makes one"): (
        lambda: Tensor(np.ones((2, 2)).view(np.matrix)),
        lambda: Tensor(np.asarray(np.ones((2, 2)).view(np.matrix)))),
    ("mistakes.py", "np.array(..) makes one"): (
        lambda: ops.cross_entropy(Tensor(np.eye(2)), [0, 1]),
        lambda: ops.cross_entropy(Tensor(np.eye(2)), np.array([0, 1]))),
    ("ops/methods.py", "leave out= away"): (
        lambda: Tensor(np.eye(2)).argmax(out=np.zeros(2)), lambda: Tensor(np.eye(2)).argmax()),
    ("ops/methods.py", "leave out copy=True, or write x.copy()"): (
        lambda: Tensor(np.eye(2)).reshape(4, copy=True),
        lambda: (Tensor(np.eye(2)).reshape(4), Tensor(np.eye(2)).copy())),
    ("ops/methods.py", "x.swapaxes(a, b) exchanges two of them"): (
        lambda: Tensor(np.ones((2, 3, 4))).transpose(1, 2), lambda: Tensor(np.ones((2, 3, 4))).swapaxes(1, 2)),
    ("ops/names.py", "PyTorch's x.size(0) is x.shape[0]"): (
        lambda: Tensor(np.ones((2, 3))).size(0), lambda: Tensor(np.ones((2, 3))).shape[0]),
    ("ops/methods.py", "x.data[{}] = .. changes the values, and ops.where(condition, x, y) makes a new one"): (
        lambda: operator.setitem(Tensor(np.ones(2)), 0, 3.0),
        lambda: (operator.setitem(Tensor(np.ones(2)).data, 0, 3.0), ops.where(np.eye(2), np.ones(2), np.zeros(2)))),
    ("ops/reduction.py", "np.maximum(x, y) is that of two, element by element"): (
        lambda: ops.maximum(Tensor(np.ones(2)), 0.5), lambda: np.maximum(Tensor(np.ones(2)), 0.5)
    ),
    ("ops/shape.py", "write concatenate(a, b, axis=-1)"): (
        lambda: ops.concatenate([Tensor(np.eye(2)), Tensor(np.eye(2))]),
        lambda: ops.concatenate(Tensor(np.eye(2)), Tensor(np.eye(2)), axis=-1)),
    ("tensor.py", "it is a single number, x.item()"): (lambda: len(Tensor(2.0)), lambda: Tensor(2.0).item()),
    ("mistakes.py", ".filled(value) makes one"): (lambda: Tensor(masked()), lambda: Tensor(masked().filled(0))),
    ("tensor.py", "use .data, or .detach() to cut the graph"): (
        lambda: Tensor(Tensor(np.ones(2))), lambda: (Tensor(Tensor(np.ones(2)).data), Tensor(np.ones(2)).detach())),
    ("tensor.py", "use .astype(np.float32)"): (
        lambda: ops.exp(Tensor(np.ones(2, int))), lambda: ops.exp(Tensor(np.ones(2, int)).astype(np.float32))),
    ("training/networks.py", "use classes, or codec='spectrogram'"): (
        lambda: run(None, data=told_tones(), text="learned"),
        lambda: run(None, data=told_tones(), text="learned", codec="spectrogram")),
    ("training/networks.py", "leave them out (text='none') or use classes"): (
        lambda: run(None, data=told_points(), text="learned"),
        lambda: run(None, data=told_points(), text="none", channels=())),
}  # fmt: skip


def told_points():
    return load(RNG.normal(size=(8, 2)), captions=["a", "b"] * 4)


def told_tones():
    import dataclasses

    tones = load("tones").subset(range(8))
    return dataclasses.replace(tones, captions=[("high",), ("low",)] * 4)


# What another test does, or nobody can do here.
ELSEWHERE = {
    ("autoencoding.py", "say where the page shall be, directory= (--out)"): "test_autoencoding.py",
    ("autoencoding.py", "train a diffusion model in its latents: pydiff train DATA --latent {}"):
        "test_autoencoding.py",
    ("backend.py", "pip install 'pydiff[cuda13]', or [cuda12] for a driver of CUDA 12"): "needs a GPU",
    ("backend.py", "pip install ml_dtypes"): "installs a library",
    ("classifying.py", "it steers a run that was trained without classes: pydiff sample RUN --classifier {}"): (
        "test_steering.py"),
    ("classifying.py", "train one: pydiff train DATA --model classifier --out {}"): "test_steering.py",
    ("cli.py", "leave out --latent and --images"): "test_steering.py",
    ("cli.py", "give that too, --classifier"): "test_steering.py",
    ("data/faces.py", "run: pip install 'pydiff[faces]'"): "installs a library",
    ("data/origin.py", "say it: data= (--data)"): "test_reopen.py",
    ("data/parquet.py", "run: pip install 'pydiff[parquet]'"): "installs a library",
    ("data/image.py", "if it is what it seems, say limit=4 (--limit 4)"): "test_asked_for.py",
    ("data/places.py", "run: pip install 'pydiff[parquet]'"): "installs a library",
    ("drawing.py", "give --out FOLDER"): "training/test_distributed.py",
    ("emulator.py", "pip install pybind11"): "installs a library",
    ("formats/diffusers/pipeline.py", "if they are for self-conditioning, say self_conditioning=True."): (
        "formats/diffusers/test_pipeline.py"),
    ("formats/diffusers/pipeline.py", "pydiff.segment.load opens it."): "test_other_kinds.py",
    ("sound/codec.py", "pydiff.data.load makes them of files"): "data/test_sounds.py",
    ("stable_diffusion.py", "give image and mask (--image, --mask)"): "formats/diffusers/test_stable_diffusion.py",
    ("store/folder.py", "train in memory (out=None) and save the model"): "needs a system without fcntl",
    ("text/encoder.py", "use the version of pydiff that trained it"): "needs another version of pydiff",
    ("training/distributed.py", "{}start one process, or pass distributed='off'"): "training/test_distributed.py",
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, with a few images and a run."""
    monkeypatch.chdir(tmp_path)
    folder_of()
    run()
    yield
    models.registry.MODELS.pop("UnregisteredNoMore", None)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("key", FOLLOWED, ids=lambda key: f"{key[0]}: {key[1][:40]}")
def test_advice_that_is_followed_works(key, capsys):
    provoke, follow = FOLLOWED[key]
    expected = re.escape(key[1].rstrip(".")).replace(r"\{\}", ".*")
    if isinstance(provoke, str):
        message = command(provoke, capsys)
    else:
        with pytest.raises(ERRORS) as caught:
            provoke()
        message = str(caught.value)
    assert re.search(expected, message), f"{message!r} does not say {key[1]!r}"
    told = command(follow, capsys) if isinstance(follow, str) else follow()
    for done in told if isinstance(told, tuple) else (told,):
        assert not (isinstance(done, str) and done), f"what was advised does not work: {done}"


def test_no_advice_is_forgotten():
    found = collected()
    assert found - FOLLOWED.keys() - ELSEWHERE.keys() == set(), "advice that nobody has tried"
    assert (FOLLOWED.keys() | ELSEWHERE.keys()) - found == set(), "advice that nobody gives any more"
    for where in ELSEWHERE.values():
        if where.endswith(".py"):
            assert (ROOT / "tests" / where).is_file(), where
