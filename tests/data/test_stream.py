"""Data that are decoded when they are needed: the pixels of data in memory, within bounds, broken files replaced."""

import io
import json
import logging
import re
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pydiff
from pydiff.data import load
from pydiff.data.asked import NOTHING_ASKED
from pydiff.data.places import places_of
from pydiff.data.stream import LOOKED_AT, StreamedImages, load_streamed
from pydiff.training import DiffusionTask, Options, Trainer, training_steps
from tests.bits import assert_same_bits

N, SIZE = 30, (8, 8)
NAMES = [f"{'ab'[i % 2]}/{i:03d}.png" for i in range(N)]


def png(number, size=SIZE):
    """An image (8, 8, 3) of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Images in two classes."""
    for i, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
    return tmp_path / "photos"


def in_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=["folder", "zip", "tar", "tars", "parquet"])
def source(request, folder, tmp_path):
    """The same images in every kind of place, in the order of their paths."""
    members = [(name, (folder / name).read_bytes()) for name in sorted(NAMES)]
    if request.param == "folder":
        return folder
    if request.param == "zip":
        return in_zip(tmp_path / "photos.zip", members)
    if request.param == "tar":
        return in_tar(tmp_path / "photos.tar", members)
    if request.param == "tars":
        (tmp_path / "parts").mkdir()
        in_tar(tmp_path / "parts" / "0.tar", members[:11])
        in_tar(tmp_path / "parts" / "1.tar", members[11:])
        return tmp_path / "parts"
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = {"image": [{"bytes": data, "path": None} for _, data in members], "label": [n[0] for n, _ in members]}
    pq.write_table(arrow.table(rows), tmp_path / "photos.parquet", row_group_size=7)
    return tmp_path / "photos.parquet"


def test_the_pixels_are_those_in_memory(source, folder):
    inside, streamed = load(folder), load(source, cache_gb=1e-6)  # room for 5 images
    assert streamed.shape == inside.shape == (8, 8, 3)
    assert len(streamed) == N
    rng = np.random.default_rng(0)
    for _ in range(8):
        indices = rng.integers(0, N, 9)
        chosen = streamed.usable(indices)
        assert chosen.tolist() == indices.tolist()
        streamed.ahead(rng.integers(0, N, 9))
        np.testing.assert_array_equal(streamed.samples(chosen), inside.samples(indices))
        assert len(streamed.images.kept) <= 5
        assert streamed.labels[indices].tolist() == inside.labels[indices].tolist()
    assert streamed.stream.waited > 0
    assert inside.stream is None
    assert inside.usable(indices).tolist() == indices.tolist()


def in_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def image(kind, number):
    """(suffix, contents) of an image of this kind, 9 x 8 or 8 x 9, and of its own."""
    rng = np.random.default_rng(number)
    side = (9, 8) if number % 2 else (8, 9)
    modes = {"rgb": ((*side, 3), np.uint8), "rgba": ((*side, 4), np.uint8), "deep": (side, np.uint16)}
    shape, dtype = modes.get(kind, (side, np.uint8))
    pixels = [rng.integers(0, 256 if dtype is np.uint8 else 4000, shape, dtype) for _ in range(3)]
    first, *others = map(Image.fromarray, pixels)
    file = io.BytesIO()
    if kind == "pages":
        first.save(file, "tiff", save_all=True, append_images=others[: number % 3])
        return ".tif", file.getvalue()
    first.save(file, "png")
    return ".png", file.getvalue()


@st.composite
def trees(draw):
    """(members of a tree of images, by path, with what is said of them; options)."""
    split = draw(st.sampled_from([None, "train", "val", "all"]))
    kinds = draw(st.sampled_from([("rgb", "grey"), ("rgba", "rgb"), ("deep", "grey"), ("pages", "grey"), ("grey",)]))
    said = draw(st.sampled_from(["", ".txt", ".de.txt", ".json", ".cls", "metadata.jsonl", "some"]))
    files, rows = {}, []
    for number in range(draw(st.integers(2, 9))):
        folder = "" if split is None else ("train/", "train/", "val/")[number % 3 if number > 2 else number]
        folder += draw(st.sampled_from(["", "cat/", "dog/deep/", ".hidden/", "thumbs/"])) if number > 2 else "cat/"
        suffix, data = image(kinds[number % len(kinds)], number)
        stem = f"{folder}{draw(st.sampled_from(['b', 'a', 'x y', 'é']))}{number}"
        files[stem + suffix] = data
        text = f"image {number}"
        if said in (".txt", ".de.txt") or (said == "some" and number % 2):
            files[stem + (said if said != "some" else ".txt")] = f"{text}\nand {number}".encode()
        elif said == ".json":
            facts = {"caption": text, "label": number % 2, "prompt_de": [f"Bild {number}"], "width": 8}
            files[stem + said] = json.dumps(facts).encode()
        elif said == ".cls":
            files[stem + said] = f"{number % 3}\n".encode()
        rows.append({"file_name": stem + suffix, "text": [text, "an image"]})
    if said == "metadata.jsonl":
        files[said] = "\n".join(map(json.dumps, rows)).encode()
    options = {
        "size": draw(st.sampled_from([8, (6, 10)])),
        "channels": draw(st.sampled_from([None, 1, 3, 4])),
        "split": split,
        "pages": draw(st.sampled_from([None, "first", "all"])),
        "bits": draw(st.sampled_from([12, 16])) if "deep" in kinds else None,
    }
    return files, options


def told(dataset):
    """Everything but the pixels."""
    labels = None if dataset.labels is None else dataset.labels.tolist()
    return len(dataset), dataset.shape, labels, dataset.classes, dataset.captions, dataset.languages, dataset.skipped


@settings(max_examples=25, deadline=None)
@given(tree=trees(), kind=st.sampled_from(["folder", "zip", "tar", "tars", "zips"]), shuffled=st.randoms())
def test_streamed_data_are_the_data_in_memory(tmp_path_factory, tree, kind, shuffled):
    """Whatever lies where, and whatever is asked for: pixels, classes, captions, and what is skipped."""
    (files, options), root = tree, tmp_path_factory.mktemp("tree")
    members = list(files.items())
    shuffled.shuffle(members)  # an archive may have them in any order
    if kind == "folder":
        for name, data in members:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    elif kind in ("zip", "tar"):
        root = (in_zip if kind == "zip" else in_tar)(root / f"a.{kind}", members)
    else:  # what belongs together is in one of two archives
        for half in "01":
            some = [m for m in members if str(sum(m[0].partition(".")[0].encode()) % 2) == half]
            (in_zip if kind == "zips" else in_tar)(root / f"{half}.{kind[:3]}", some)
    try:
        expected = load(root, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error)[:40])):
            load(root, cache_gb=1, **options)
        return
    streamed = load(root, cache_gb=1e-6, **options)
    assert told(streamed) == told(expected)
    np.testing.assert_array_equal(streamed.images[:], expected.images)


@pytest.mark.parametrize("pages", [None, "first"])
def test_rows_of_parquet_are_the_rows_in_memory(tmp_path, pages):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for half in (0, 1):
        rows = {"image": [{"bytes": png(i), "path": None} for i in range(half, 12, 2)]}
        rows |= {"label": [i % 3 for i in range(6)], "text_de": [f"Bild {i}" for i in range(6)], "odd": [1.0] * 6}
        pq.write_table(arrow.table(rows), tmp_path / f"{half}.parquet", row_group_size=4)
    expected, streamed = (load(tmp_path, 6, 1, pages=pages, cache_gb=gb) for gb in (0, 1))
    assert told(streamed) == told(expected)
    assert streamed.notes[1:] == [note for note in expected.notes if "made 1" not in note and "resized" not in note]
    np.testing.assert_array_equal(streamed.images[:], expected.images)


def test_what_is_kept_has_a_bound(folder):
    images = load(folder, cache_gb=4 * 8 * 8 * 3 / 1e9).images
    for start in range(0, N, 5):
        images.ahead(np.arange(start, start + 5))
        images.usable(np.arange(start, start + 5))
        assert len(images.kept) <= 4
        assert len(images.recent) <= 5
        assert len(images.ahead_of) <= 5


def test_training_gives_the_bits_of_training_in_memory(folder):
    def trained(dataset):
        options = Options(channels=(8,), groups=4, steps=4, batch_size=6, timesteps=20, conditional=True, flip=True)
        trainer = Trainer(DiffusionTask(dataset, options), options)
        return trainer, list(training_steps(trainer))

    (a, inside), (b, streamed) = trained(load(folder)), trained(load(folder, cache_gb=1e-6))
    assert [s[:5] for s in inside] == [s[:5] for s in streamed]
    assert_same_bits(a.arrays()["optimizer"].values(), b.arrays()["optimizer"].values())
    assert all(s.traffic["waited_for_data"] >= 0 for s in streamed)
    assert inside[0].traffic == {}


def test_a_file_that_fails_later_is_replaced_by_the_next(folder, caplog):
    dataset = load(folder, cache_gb=1)
    names = sorted(NAMES)
    for i in (4, 5, N - 1):
        (folder / names[i]).write_bytes(b"no image")
    (folder / names[9]).unlink()
    with caplog.at_level(logging.WARNING, "pydiff"):
        chosen = dataset.usable(np.array([3, 4, 5, 6, N - 1, 9, 4]))
    assert chosen.tolist() == [3, 6, 6, 6, 0, 10, 6]
    assert dataset.images.failed.keys() == {names[i] for i in (4, 5, 9, N - 1)}
    assert len(caplog.records) == 4  # each once
    assert "not an image" in caplog.text
    np.testing.assert_array_equal(dataset.samples(chosen)[1], dataset.samples(np.array([6]))[0])


def test_what_another_process_could_not_read_is_not_read_here(folder):
    """Whichever process meets a file that fails, all replace it from the next step on; the log names it."""
    dataset, names = load(folder, cache_gb=1), sorted(NAMES)
    assert dataset.usable(np.array([3])).tolist() == [3]
    assert dataset.stream.give_up({names[3]: "gone", names[2]: "empty"}) == {names[2]: "empty", names[3]: "gone"}
    assert dataset.usable(np.array([1, 2, 3])).tolist() == [1, 4, 4]
    options = Options(channels=(8,), groups=4, steps=10, batch_size=8, timesteps=20)
    (folder / names[7]).write_bytes(b"no image")
    steps = list(training_steps(Trainer(DiffusionTask(dataset, options), options)))
    replaced = [step.traffic["replaced"] for step in steps if "replaced" in step.traffic]
    assert replaced == [{names[7]: "not an image in any known format"}]


def test_where_nothing_can_be_read_that_is_said(folder):
    dataset = load(folder, cache_gb=1)
    for name in NAMES:
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 30 images can be read \(first: .*: empty file\)"):
        dataset.usable(np.array([0]))
    with pytest.raises(ValueError, match=r"30 of 30 images looked at in .* cannot be used"):
        load(folder, cache_gb=1, size=8)


def test_the_fingerprint_is_of_names_lengths_and_some_contents(folder):
    def fingerprint():
        return load(folder, size=8, cache_gb=1).fingerprint()

    before = fingerprint()
    assert before == load(folder, size=8, cache_gb=2).fingerprint()
    file = folder / sorted(NAMES)[7]
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fingerprint() != before
    file.write_bytes(data)
    assert fingerprint() == before
    file.rename(file.with_name("other.png"))
    assert fingerprint() != before
    assert LOOKED_AT >= N  # so that all of them were looked at here


def test_parts_of_streamed_data_are_streamed(folder):
    dataset = load(folder, cache_gb=1)
    rest, held = dataset.split(0.2)
    assert rest.streamed
    assert held.streamed
    assert len(rest) + len(held) == N
    indices = np.array([2, 0, 3])
    part = dataset.subset(indices)
    np.testing.assert_array_equal(part.samples(np.arange(3)), dataset.samples(indices))
    assert part.labels.tolist() == dataset.labels[indices].tolist()
    assert part.fingerprint() != dataset.fingerprint()


def test_the_layout_of_webdataset(tmp_path):
    """000.png belongs to 000.txt and 000.cls, or to 000.json."""
    members = []
    for i in range(6):
        members.append((f"{i:03d}.png", png(i)))
        if i % 2:
            members += [(f"{i:03d}.txt", f"number {i}".encode()), (f"{i:03d}.cls", str(i // 2).encode())]
        else:
            members.append((f"{i:03d}.json", json.dumps({"caption": f"number  {i}", "label": i // 2}).encode()))
    dataset = load(in_tar(tmp_path / "web.tar", members), cache_gb=1)
    assert [row[0] for row in dataset.captions] == [f"number {i}" for i in range(6)]
    assert [dataset.classes[label] for label in dataset.labels] == ["0", "0", "1", "1", "2", "2"]


def test_a_tar_that_ends_too_early_gives_what_is_in_front(tmp_path):
    path = in_tar(tmp_path / "cut.tar", [(f"{i}.png", png(i)) for i in range(5)])
    with tarfile.open(path) as archive:
        last = archive.getmember("3.png")
    path.write_bytes(path.read_bytes()[: last.offset_data + 10])
    dataset = load(path, cache_gb=1)
    assert len(dataset) == 3
    assert dataset.skipped == [("3.png", "the archive ends before it does")]


def test_a_broken_member_in_the_middle_is_replaced(tmp_path):
    path = in_tar(tmp_path / "broken.tar", [(f"{i}.png", png(i)) for i in range(5)])
    with tarfile.open(path) as archive:
        member = archive.getmember("2.png")
    data = bytearray(path.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    path.write_bytes(data)
    assert load(path, cache_gb=1).usable(np.arange(5)).tolist() == [0, 1, 3, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: (path / "a.gz").write_bytes(b"x"), "holds no images"),
        (lambda path: (path / "a.tar").write_bytes(b"no tar"), r"a\.tar cannot be read"),
        (lambda path: (path / "a.zip").write_bytes(b"no zip"), r"a\.zip cannot be read"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_one_sentence(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, cache_gb=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "NHWC"}, "layout='NHWC' is for arrays"),
        ({"frames": 4}, "frames and frame_rate are for clips"),
        ({"rate": 8000}, "cache_gb is for images"),
        ({"split": "val"}, "nothing called train, val or test"),
        ({"labels": [0] * N}, "cache_gb is for a folder"),
    ],
)
def test_what_streams_cannot_honour_is_refused_in_one_sentence(folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, cache_gb=1, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_for_a_stream_is_refused_in_one_sentence(tmp_path):
    places = {name: tmp_path / name for name in ("deep", "sounds", "films", "digits", "packed", "rows")}
    for place in places.values():
        place.mkdir()
    (places["deep"] / "a.png").write_bytes(image("deep", 0)[1])
    (places["sounds"] / "a.wav").write_bytes(b"x")
    (places["films"] / "a.mp4").write_bytes(b"x")
    for kind, axes in (("images", b"\3"), ("labels", b"\1")):
        (places["digits"] / f"train-{kind}-idx{axes[0]}-ubyte").write_bytes(b"\0\0\x08" + axes + bytes(4 * axes[0]))
    with tarfile.open(places["packed"] / "a.tar.gz", "w:gz"):
        pass
    (places["rows"] / "a.parquet").write_bytes(b"x")
    for name, message, options in (
        ("deep", "holds grey levels up to 3882; streamed data need bits, for example bits=12", {}),
        ("sounds", "holds sounds, and cache_gb is for images", {}),
        ("films", "holds films, and cache_gb is for images", {}),
        ("digits", "holds MNIST's IDX files, which are read as a whole; leave cache_gb out", {}),
        ("packed", "is packed as a whole and cannot be read piece by piece; unpack it", {}),
        ("rows", "nothing called train, val or test", {"split": "val"}),
        ("rows", "pages is for files of images", {"pages": "all"}),
    ):
        with pytest.raises(ValueError, match=message):
            load(places[name], cache_gb=1, **options)
    assert load(places["deep"], cache_gb=1, bits=16).shape == (8, 9, 1)


def test_deep_grey_that_comes_late_is_not_guessed_at(folder):
    """Of 30 files all were looked at; the one that changes afterwards is left out, as its white is unknown."""
    dataset = load(folder, cache_gb=1)
    (folder / sorted(NAMES)[3]).write_bytes(image("deep", 0)[1])
    assert dataset.usable(np.array([3])).tolist() == [4]
    assert "nobody has said how many" in dataset.stream.failed[sorted(NAMES)[3]]


def test_streams_are_of_folders_and_files(tmp_path):
    with pytest.raises(ValueError, match="cache_gb is for a folder"):
        load("digits", cache_gb=1)
    with pytest.raises(FileNotFoundError, match="there is no"):
        load(tmp_path / "nothing", cache_gb=1)
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="cannot be read piece by piece"):
        load(tmp_path / "a.npy", cache_gb=1)
    (tmp_path / "mixed").mkdir()
    for i, side in enumerate((8, 9)):
        (tmp_path / "mixed" / f"{i}.png").write_bytes(png(i, (side, side)))
    with pytest.raises(ValueError, match="of several sizes; streamed data need a size"):
        load(tmp_path / "mixed", cache_gb=1)
    assert load(tmp_path / "mixed", size=8, cache_gb=1).shape == (8, 8, 3)


def test_the_array_it_stands_for(folder):
    images = load_streamed(folder, 1).images
    assert isinstance(images, StreamedImages)
    assert (images.ndim, images.dtype, images.size) == (4, np.uint8, N * 8 * 8 * 3)
    assert images[3].shape == (8, 8, 3)
    assert images[2:5].shape == (3, 8, 8, 3)
    assert images[np.array([], int)].shape == (0, 8, 8, 3)
    assert len(list(places_of(folder, NOTHING_ASKED).names)) == N


def test_a_run_on_streamed_data_ends_and_goes_on(folder, tmp_path):
    """As a user calls it: with a folder for the run, which keeps a few samples, and with a report's data again."""
    options = {"steps": 3, "batch_size": 4, "channels": (8,), "groups": 4, "timesteps": 20, "sample_every": 0}
    run = pydiff.train(folder, out=tmp_path / "run", progress=False, cache_gb=1e-6, **options)
    again = pydiff.train(folder, out=tmp_path / "run", progress=False, cache_gb=1, **options | {"steps": 4})
    assert (run.step, again.step) == (3, 4)
    assert again.dataset().streamed
    assert not pydiff.load(tmp_path / "run").origin.samples.streamed
