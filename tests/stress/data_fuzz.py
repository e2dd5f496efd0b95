"""Fuzz every reader of data with files that are almost right: a Dataset comes out, or one sentence.

    python -m tests.stress.data_fuzz --count 100000 --json benchmarks/results/data-fuzz.json

Right files of every kind are changed in meaning (sizes, counts, types, offsets in their headers), in structure and in
bytes, and read with options drawn at random. Images go through Pillow's decoders, parquet through pyarrow's; `.npy`,
`.npz`, IDX, CIFAR, zip, tar, captions, and arrays, lists and pairs in memory through ours. Allowed are a Dataset that
is what Dataset promises, and ValueError, TypeError or FileNotFoundError of one printable sentence; memory and time are
watched.

Most files are read without threads, which would take longer to start than a small file to read, and lie in memory
(/dev/shm). Right files are made once and changed many times, for an encoder takes longer than a reader; one in 32 is
made anew.
"""

import io
import json
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from pydiff.data import Dataset, load
from pydiff.data import folder as folders
from tests.stress import fuzz

NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 1000, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
OPTIONS = [{}, {}, {}, {"size": 8}, {"size": (4, 12)}, {"channels": 1}, {"channels": 3}, {"channels": 4},
           {"limit": 0.05}, {"pages": "all"}, {"split": "all"}, {"split": "test"},
           {"bits": 12}, {"layout": "NCHW"}]  # fmt: skip


MADE: dict[str, list] = {}  # right files of each kind, as they were made
MOST, ANEW = 64, 32  # kept of each kind; one in so many is made instead of taken


def kept(rng, kind, make):
    """A right file of this kind: make(), or what it made before."""
    made = MADE.setdefault(kind, [])
    if len(made) < MOST or rng.randrange(ANEW) == 0:
        made.append(make())
        if len(made) > MOST:
            del made[rng.randrange(MOST)]
        return made[-1]
    return rng.choice(made)


# ---- right files -----------------------------------------------------------------------------------------------------


def encoded(rng, kind=None):
    """(suffix, bytes) of an image of any kind."""
    kind = kind or rng.choice(["png", "png", "jpg", "gif", "bmp", "webp", "tif", "ppm", "deep.png", "deep.tif", "p.png",
                               "many.gif", "many.tif", "1.png", "la.png", "cmyk.jpg", "exif.jpg",
                               "rle.bmp"])  # fmt: skip
    return kept(rng, kind, lambda: made_image(rng, kind))


def made_image(rng, kind):
    pixels = np.frombuffer(rng.randbytes(10 * 12 * 3), np.uint8).reshape(10, 12, 3)
    image, stream, more = Image.fromarray(pixels), io.BytesIO(), {}
    form = {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}.get(kind.split(".")[-1], kind.split(".")[-1].upper())
    if kind.startswith("deep"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * rng.choice([1, 16, 257]))
    elif kind.startswith(("p.", "rle")):
        image = image.quantize(8)
    elif kind.startswith("1."):
        image = image.convert("1")
    elif kind.startswith("la"):
        image = image.convert("LA")
    elif kind.startswith("cmyk"):
        image = image.convert("CMYK")
    elif kind.startswith("many"):
        more = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    elif kind.startswith("exif"):
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        more = {"exif": exif.tobytes()}
    if form == "TIFF" and rng.random() < 0.5:
        more["compression"] = rng.choice(["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
    image.save(stream, form, **more)
    return kind.split(".")[-1], stream.getvalue()


def npy(rng, shape=None):
    dtype = rng.choice(["u1", "u1", "f4", "f8", "<u2", ">i4", "?", "U3", "i8"])
    shape = shape or tuple(rng.choice([1, 2, 3, 4, 5]) for _ in range(rng.choice([1, 3, 3, 4, 4])))
    stream = io.BytesIO()
    np.save(stream, np.zeros(shape, dtype) if dtype[0] != "f" else np.full(shape, 0.25, dtype))
    return stream.getvalue()


def npz(rng):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name in rng.sample(["images", "labels", "x", "captions", "odd", "y", "arr_0"], rng.randrange(1, 4)):
            shape = {"labels": (3,), "y": (3,), "captions": (3,), "odd": (2,)}.get(name, (3, 4, 4, 3))
            data = npy(rng, shape)
            archive.writestr(f"{name}.npy", changed(data, rng) if rng.random() < 0.2 else data)
    return stream.getvalue()


def idx(rng):
    shape = rng.choice([(3, 4, 4), (3,), (2, 3, 4, 3)])
    data = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + rng.randbytes(int(np.prod(shape)))
    if rng.random() < 0.4:
        import gzip

        data = gzip.compress(data)
    return data


def batch(rng):
    found = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "batch_label": "x"}
    if rng.random() < 0.3:
        found = {b"data": found["data"], b"fine_labels": [1, 99], b"filenames": [b"a", b"b"]}
    if rng.random() < 0.2:
        return bytes([1]) + bytes(3072) + bytes([7]) + bytes(3072)
    return pickle.dumps(found, rng.choice([2, 2, 3, 4]))


def archive(rng, kind):
    members = {}
    for i in range(rng.randrange(1, 4)):
        suffix, data = encoded(rng, rng.choice(["png", "jpg"]))
        data = changed(data, rng) if rng.random() < 0.2 else data
        members[f"{rng.choice(['', 'cat/', 'dog/', 'train/a/', 'val/b/', '../', '/'])}{i}.{suffix}"] = data
    if rng.random() < 0.3:
        rows = captions(rng)
        members["metadata.jsonl"] = garbled_text(rows, rng) if rng.random() < 0.2 else rows
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as made:
            for name, data in members.items():
                made.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode=rng.choice(["w", "w:gz"]), format=rng.choice([0, 1, 2])) as made:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def table(rng, spoilt):
    """A parquet file, whose columns are drawn, too."""
    import pyarrow as arrow
    import pyarrow.parquet as pq

    rows = rng.randrange(4)
    images = [spoilt(encoded(rng, "png")[1]) for _ in range(rows)]
    images = rng.choice([images, [{"bytes": data, "path": None} for data in images], [None] * rows, ["x"] * rows])
    columns = {rng.choice(["image", "image", "img", "odd"]): images}
    columns["label"] = rng.choice([list(range(rows)), ["a"] * rows, [None] * rows, [0.5] * rows, [[1]] * rows])
    columns["text"] = rng.choice([["a"] * rows, [["a", "b"]] * rows, [None] * rows, [3] * rows])
    chosen = rng.sample(sorted(columns), rng.choice([1, 2, 3, 3, 3, 3]))
    stream = io.BytesIO()
    pq.write_table(arrow.table({name: columns[name] for name in chosen}), stream)
    return stream.getvalue()


def parquet(folder, rng, spoilt):
    """A file or a folder of them."""
    for name in rng.sample(["train-0.parquet", "test-0.parquet", "a.parquet"], rng.choice([1, 1, 2])):
        data = table(rng, spoilt)
        (folder / name).write_bytes(changed(data, rng) if rng.random() < 0.4 else data)
    return folder if rng.random() < 0.5 else folder / name


def captions(rng):
    rows = [{"file_name": rng.choice(["0.png", "../0.png", "1.jpg", ""]), rng.choice(["text", "caption_de", "x"]):
             rng.choice(["a cat", ["a", "b"], {"en": "x"}, None, 3])} for _ in range(3)]  # fmt: skip
    return "\n".join(map(json.dumps, rows)).encode()


# ---- mutations -------------------------------------------------------------------------------------------------------


def changed(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes, of numbers in the places of numbers, of length."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not out:
            return bytes(out)
        at = rng.randrange(min(len(out), rng.choice([32, 128, len(out)])))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            number = rng.choice(NUMBERS)
            packed = struct.pack(rng.choice(["<I", ">I"]), number) if rng.random() < 0.6 else struct.pack("<Q", number)
            out[at : at + len(packed)] = packed
        elif kind == 3:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            out[at:at] = out[rng.randrange(len(out)) :][: rng.randrange(1, 40)]
        elif kind == 5:
            del out[at:]
        else:
            out[at : at + 2] = struct.pack(rng.choice(["<H", ">H"]), rng.choice(NUMBERS) & 0xFFFF)
    return bytes(out)


def garbled_text(data: bytes, rng) -> bytes:
    parts = [b"{", b"}", b"[" * 2000, b'"', b"\\ud800", b"\xff\xfe", b"\0", b"9" * 5000, b",", b"\n", b"null"]
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(parts) + data[at + rng.randrange(5) :]


# ---- one case --------------------------------------------------------------------------------------------------------


def write(kind: str, folder: Path, rng: random.Random) -> Path:
    """Makes a file or folder of this kind, changed in most cases, and gives its path."""

    def spoilt(data, change=changed):
        return change(data, rng) if rng.random() < 0.85 else data

    if kind == "images":
        for i in range(rng.randrange(1, 3)):
            suffix, data = encoded(rng)
            (folder / f"{i}.{suffix}").write_bytes(spoilt(data))
        return folder
    if kind == "parquet":
        return parquet(folder, rng, spoilt)
    if kind == "captions":
        (folder / "0.png").write_bytes(encoded(rng, "png")[1])
        (folder / rng.choice(["metadata.jsonl", "metadata.csv", "0.txt"])).write_bytes(
            spoilt(captions(rng), garbled_text)
        )
        return folder
    if kind == "idx folder":
        for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
            shape = (3, 4, 4) if "images" in name else (3,)
            data = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(int(np.prod(shape)))
            (folder / name).write_bytes(spoilt(data))
        return folder
    makers = {"npy": npy, "npz": npz, "idx": idx, "cifar": batch, "zip": lambda r: archive(r, "zip"),
              "tar": lambda r: archive(r, "tar")}  # fmt: skip
    names = {"npy": "a.npy", "npz": "a.npz", "idx": "a-ubyte", "cifar": "data_batch_1", "zip": "a.zip", "tar": "a.tar"}
    path = folder / names[kind]
    path.write_bytes(spoilt(makers[kind](rng)))
    return path


def array(rng: random.Random):
    """Something in memory that may be images, and options for it."""
    shape = tuple(rng.choice([0, 1, 2, 3, 4, 7]) for _ in range(rng.randrange(6)))
    dtype = rng.choice(["u1", "f4", "f8", "f2", "u2", "i4", "?", "U2", "O", "c8", "M8[s]", "V3"])
    if rng.random() < 0.6:
        shape, dtype = rng.choice([(3, 4, 4), (3, 4, 5, 3), (2, 3, 6, 6)]), rng.choice(["u1", "u1", "u2", "f4"])
    made = np.zeros(shape, dtype)
    if dtype[0] == "f" and made.size:
        made.flat[0] = rng.choice([0.5, -1, 1, 255, 16, np.nan, np.inf, -3, 65504])
    if rng.random() < 0.1:
        made = np.ma.masked_array(made, rng.random() < 0.5)
    elif rng.random() < 0.1:
        made = made.astype(made.dtype.newbyteorder("S"))
    n, rows = shape[0] if shape else 1, list(made) if shape else [made]
    numbers = np.arange(n)
    right = [
        numbers,
        numbers % 2,
        numbers[:, None],
        (numbers % 3).astype(object),
        numbers.astype(str),
        numbers.tolist(),
    ]
    wrong = [np.ma.masked_array(numbers, True), np.eye(n), np.arange(n + 1), numbers / 2, None, [None] * n]
    labels = rng.choice(rng.choice([right, wrong]))
    names = rng.choice([np.array(list("abcdefg")), np.array([1, 2]), np.array(["a", "a"])])
    odd = [None, 3, "no.png", b"x", Image.new("L", (3, 3))]
    source = [
        made,
        rows,
        (made, labels),
        [made, labels],
        (rows, labels),
        ((made, labels), (made, labels)),
        {rng.choice(["images", "x", "odd"]): made},
        {"images": made, "labels": labels, "classes": names},
        [(m, 1) for m in rows],
        (m for m in rows),
        zip(rows, labels if isinstance(labels, list) else [0] * n, strict=False),
        [{"image": m, "label": rng.choice([1, 2, "a", None]), "text": rng.choice(["x", "y", 3, None])} for m in rows],
        [rng.choice([m, m, rng.choice(odd)]) for m in rows],
        np.array([*rows, None], object)[:-1],
    ][rng.randrange(14)]
    more = {"labels": rng.choice([[1], ["a", "b"], [0.5], [[1]], np.arange(3)])} if rng.random() < 0.3 else {}
    return source, more


def tried(source, options) -> tuple[str, str]:
    """(what happened, the sentence or the exception)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = load(source, **options)
    except (ValueError, TypeError, FileNotFoundError) as error:
        sentence = str(error)
        return ("refused" if sentence.isprintable() and 0 < len(sentence) < 1000 else "bad sentence"), sentence
    except Exception as error:  # what this script looks for
        return "other exception", f"{type(error).__name__}: {error}"
    right = isinstance(dataset, Dataset) and all(note.isprintable() for note in [*dataset.notes, dataset.name])
    right = right and all(path.isprintable() and reason.isprintable() for path, reason in dataset.skipped)
    right = right and (dataset.classes is None or all(isinstance(name, str) for name in dataset.classes))
    return ("accepted" if right else "other exception"), "" if right else f"{dataset.notes} {dataset.skipped}"


KINDS = {"images": 3, "npy": 2, "npz": 2, "idx": 1, "idx folder": 1, "cifar": 2, "zip": 2, "tar": 2, "captions": 1,
         "array": 2, "parquet": 1}  # fmt: skip


POOLED = 50  # one case of so many is read by threads, as a folder is


def one_by_one(function, sources, *_told) -> list:
    """What pydiff.data.folder.each does, without threads."""
    return [function(source) for source in sources.values()]


def main() -> None:
    parser = fuzz.options(__doc__, 100_000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="of files")
    options = parser.parse_args()
    fuzz.check(options)
    rng, results, bad, slowest = random.Random(options.seed), {}, [], (0.0, "", 0)
    kinds = [kind for kind in options.kinds for _ in range(KINDS[kind])]
    by_threads = folders.each
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        for i in fuzz.Until(options.count, options.minutes):
            kind, folder = rng.choice(kinds), Path(directory) / "case"
            folder.mkdir(exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            more = dict(rng.choice(OPTIONS))
            if kind == "array":
                source, extra = array(rng)
                more |= extra
            else:
                source = write(kind, folder, rng)
            folders.each = by_threads if i % POOLED == 0 else one_by_one
            start = time.perf_counter()
            what, sentence = tried(source, more)
            slowest = max(slowest, (time.perf_counter() - start, kind, i))
            results.setdefault(kind, Counter())[what] += 1
            if what not in ("accepted", "refused") and len(bad) < fuzz.KEPT:
                files = (
                    {f.name: f.read_bytes().hex()[:2000] for f in folder.iterdir()}
                    if kind != "array"
                    else repr(source)[:500]
                )
                bad.append(
                    {
                        "kind": kind,
                        "number": i,
                        "what": what,
                        "said": sentence[:400],
                        "options": repr(more),
                        "files": files,
                    }
                )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    totals = sum(results.values(), Counter())
    result = {
        "count": sum(totals.values()), "seeds": [options.seed], **totals, "by_kind": results, "bad": bad,
        "slowest_seconds": round(slowest[0], 2), "slowest_kind": slowest[1], "peak_memory_growth_kb": grown,
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    fuzz.finish(options, result)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
