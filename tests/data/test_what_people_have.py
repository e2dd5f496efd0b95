"""What people have: archives, MNIST, CIFAR, lists, deep grey, pages, phones' files, thumbnails, divided folders.

Whatever is decided, converted or left out is in the notes; nothing unfolds beyond the limit.
"""

import errno
import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff.data import cifar, load
from pydiff.data.unreadable import readable
from tests.test_cli import pydiff_command

RNG = np.random.default_rng(0)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4, "sample_every": 0, "progress": False}


def image(seed=0, size=(16, 16), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def image_folder(folder, n=3, suffix="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image(i, **options).save(folder / f"{i}.{suffix}")
    return folder


def noted(dataset, *parts):
    """Whether one note holds all of these."""
    return any(all(part in note for part in parts) for note in dataset.notes)


def spoken(dataset):
    return " | ".join(dataset.notes)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def test_a_layout_that_is_said_counts():
    array = RNG.integers(0, 256, (5, 6, 7, 9), dtype=np.uint8)
    assert load(array, layout="NHWC").shape == (6, 7, 9)
    turned = load(array, layout="NCHW")
    np.testing.assert_array_equal(turned.images, array.transpose(0, 2, 3, 1))
    assert noted(turned, "read as (N, C, H, W), as asked for")
    assert load(array[..., :3], layout="nchw").shape == (7, 3, 6)
    for wrong, message in (("NHW", "which is not layout='NHW'"), ("HWCN", "layout is 'HWCN', expected NHWC, NCHW")):
        with pytest.raises(ValueError, match=message):
            load(array, layout=wrong)


@pytest.mark.parametrize(("highest", "bits"), [(1023, 10), (900, 10), (4095, 12), (16383, 14), (65535, 16), (200, 8)])
def test_deep_grey_is_read_over_the_bits_that_it_uses(tmp_path, highest, bits):
    """One range for all, so that a dark image stays dark."""
    levels = RNG.integers(0, highest // 2, (2, 8, 8)).astype(np.uint16)
    levels[0, 0, 0], levels[0, 0, 1] = highest, 0
    for i, level in enumerate(levels):
        Image.fromarray(level).save(tmp_path / f"{i}.png")
    white = 2**bits - 1
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.images[..., 0], np.rint(levels * (255 / white)).astype(np.uint8))
    assert noted(dataset, f"read as {bits} bits")
    fixed = load(tmp_path, bits=16)
    np.testing.assert_array_equal(fixed.images[..., 0], np.rint(levels / 257).astype(np.uint8))
    array = load(levels)
    expected = levels.astype(np.uint8) if bits == 8 else (levels * (2 / white) - 1).astype(np.float32)
    np.testing.assert_array_equal(array.images[..., 0], expected)
    assert noted(array, f"uint16 with levels up to {highest} read as {bits} bits")
    if bits > 8:
        with pytest.raises(ValueError, match=f"levels up to {highest}, more than bits=8 hold; leave bits out"):
            load(levels, bits=8)


def test_what_a_tiff_says_of_its_largest_value_counts(tmp_path):
    dark = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    dark.save(tmp_path / "a.tif", tiffinfo={281: 4095})
    assert load(tmp_path).images[0, 0, 0, 0] == round(1000 * 255 / 4095)


@pytest.mark.parametrize("scale", [16.0, 255.0, 4095.0, 80.5])
def test_advice_on_the_range_of_floats_can_be_followed(scale):
    values = RNG.uniform(0, scale, (3, 4, 4))
    values[0, 0, 0] = scale
    with pytest.raises(ValueError, match="divide them by") as caught:
        load(values)
    number = float(str(caught.value).split("divide them by ")[1].split(",")[0].split(" ")[0].rstrip(";"))
    assert load(values / number).images.max() <= 255
    if scale == 16:
        with pytest.raises(ValueError, match="divide them by 16, their largest"):
            load(np.round(values))


def test_arrays_of_an_npz_are_never_passed_over_in_silence(tmp_path):
    pixels = RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, strange=np.arange(4), x_test=pixels)
    dataset = load(tmp_path / "a.npz")
    assert noted(
        dataset, "not used: 'strange' (4,) int64, 'x_test' (4, 8, 8) uint8; labels are looked for under labels"
    )
    np.savez(tmp_path / "b.npz", pictures=pixels, targets=np.arange(4))
    dataset = load(tmp_path / "b.npz")
    assert dataset.labels.tolist() == [0, 1, 2, 3]
    assert noted(dataset, "images are taken from 'pictures'")
    assert noted(dataset, "labels are taken from 'targets'")
    np.savez(tmp_path / "c.npz", X=pixels, x=pixels)
    with pytest.raises(ValueError, match=r"(x and X|X and x), which differ in case alone"):
        load(tmp_path / "c.npz")


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_classes_are_in_the_order_that_people_count_in(tmp_path):
    for i in (1, 2, 10, 9):
        image_folder(tmp_path / f"class {i}", 1)
    assert load(tmp_path).classes == ["class 1", "class 2", "class 9", "class 10"]
    names = ["b10", "b9", "a", "b010", "B9"]
    dataset = load(np.zeros((5, 4, 4), np.uint8), labels=names)
    assert dataset.classes == ["B9", "a", "b9", "b010", "b10"]
    assert [dataset.classes[label] for label in dataset.labels] == names


def test_a_class_may_be_called_as_another_and_a_number(tmp_path):
    names = ["cat10", "cat", "cat2", "2", "", "cat2b", "cat02"]
    dataset = load(np.zeros((7, 4, 4), np.uint8), labels=names)
    assert dataset.classes == ["", "2", "cat", "cat02", "cat2", "cat2b", "cat10"]
    for name in ("dog", "dog2", "dog10"):
        image_folder(tmp_path / name, 1)
    assert load(tmp_path).classes == ["dog", "dog2", "dog10"]


@pytest.mark.parametrize(("label", "odd"), [(0.5, "0.5"), (float("nan"), "nan")])
def test_labels_that_are_no_whole_numbers_are_named(label, odd):
    with pytest.raises(ValueError, match=f"{odd} is no whole number"):
        load(np.zeros((2, 4, 4), np.uint8), labels=np.array([1.0, label]))


def test_labels_that_count_from_one_are_names(tmp_path):
    data = load(np.zeros((9, 8, 8), np.uint8), labels=[1, 2, 3] * 3)
    assert noted(data, "the classes are called 1, 2, 3, and numbered 0 .. 2 inside: labels are their names")
    run = pydiff.train(data, conditional=True, **TINY)
    by_name = run.sample(3, steps=2, labels=["1", "2", "3"])
    assert (run.sample(3, steps=2, labels=[1, 2, 3]) == by_name).all()
    assert (run.sample(3, steps=2) == by_name).all()  # the classes take turns
    with pytest.raises(ValueError, match="there is no class '0'; choose one of 1, 2, 3"):
        run.sample(1, labels=[0])
    run.save(tmp_path / "m")
    done = pydiff_command("sample", tmp_path / "m", "-n", 2, "--label", 1, "--steps", 2, "--out", tmp_path / "a.npz")
    assert "of class '1' (number 0 inside)" in done.stdout
    digits = load("digits")
    assert digits.notes == []


def test_names_of_files_and_classes_that_are_no_text_are_written_out(tmp_path):
    bad = tmp_path / "a\x1b[31mb"
    image_folder(bad / "x\x1b]0;title\x07", 2)
    image_folder(bad / "y\n\r\u202e", 2)
    (bad / "x\x1b]0;title\x07" / "broken\x1b.png").write_bytes(b"no")
    done = pydiff_command("data", bad)
    assert done.returncode == 0
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(done.stdout + done.stderr)
    assert "x\\x1b]0;title\\x07" in done.stdout
    assert not {"\x1b", "\n"} & set(load(bad).name)
    for name in ("a\x1b.npz", "b\x1b.npy", "c\x1b.zip", "d\x1b.tar", "e\x1b-ubyte", "f\x1b.odd", "data_batch_\x1b"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(ValueError, match=r"x1b") as caught:
            load(tmp_path / name)
        assert str(caught.value).isprintable()


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_named_with_what_to_install(tmp_path):
    image_folder(tmp_path, 8)
    for i in range(5):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name in ("a.CR2", "b.psd", "c.mp4", "d.xmp", "e.xmp", "f", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    dataset = load(tmp_path)
    assert len(dataset) == 8
    if ".heic" not in readable()[0]:
        assert noted(dataset, "left out: 5 .heic; pip install pillow-heif makes them readable")
        (tmp_path / "phone").mkdir()
        shutil.copy(tmp_path / "IMG_0.HEIC", tmp_path / "phone")
        with pytest.raises(ValueError, match=r"holds no images; .* 1 \.heic; pip install pillow-heif"):
            load(tmp_path / "phone")
    assert noted(dataset, "1 .cr2; develop them")
    assert noted(dataset, "1 .mp4; take images out of them")
    assert noted(dataset, "3 other files left out (without a suffix 1, .xmp 2)")
    assert "Thumbs" not in spoken(dataset)
    assert "cut.jpg" in [path for path, _ in dataset.skipped]


def test_heic_is_read_where_the_library_is(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="HEIC: pillow-heif is not installed")
    readable.cache_clear()
    heif.register_heif_opener()
    image(3).save(tmp_path / "a.heic")
    image(4).save(tmp_path / "b.HEIC")
    dataset = load(tmp_path)
    assert (len(dataset), dataset.shape) == (2, (16, 16, 3))


def test_thumbnails_are_left_out(tmp_path):
    image_folder(tmp_path, 3)
    image_folder(tmp_path / "thumbnails", 3, size=(4, 4))
    image_folder(tmp_path / "sub" / "@eaDir", 2)
    image(0, (4, 4)).save(tmp_path / "1_thumb.jpg")
    image(0).save(tmp_path / "green_thumb.jpg")  # of no other image
    dataset = load(tmp_path)
    assert (len(dataset), dataset.shape, dataset.classes) == (4, (16, 16, 3), None)
    assert noted(dataset, "6 thumbnails left out")
    assert len(load(tmp_path / "thumbnails")) == 3


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Test", "validation"), ("train_images", "test2017")])
def test_train_and_val_are_no_classes(tmp_path, names):
    for i, name in enumerate(names):
        for kind in ("cat", "dog"):
            image_folder(tmp_path / "set" / name / kind, 3 if i == 0 else 1)
    dataset = load(tmp_path)
    assert (len(dataset), dataset.classes) == (6, ["cat", "dog"])
    assert noted(dataset, f"set/{names[0]}/ (6 images) taken; left out: set/", "split='all' takes all")
    assert len(load(tmp_path, split="all")) == 6 + 2 * (len(names) - 1)
    assert len(load(tmp_path, split="val" if names[1] == "val" else "test")) == 2
    with pytest.raises(ValueError, match="has nothing called train, val or test; leave out split='val'"):
        load(tmp_path / "set" / names[0], split="val")


def test_parts_are_no_classes_at_any_depth(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat", "test/bird"):
        image_folder(tmp_path / "a" / name, 2)
    assert load(tmp_path / "a", split="all").classes == ["bird", "cat", "dog"]
    for name in ("cat/train", "cat/test", "dog/train", "dog/test"):
        image_folder(tmp_path / "b" / name, 2)
    for split, count in ((None, 4), ("test", 4), ("all", 8)):
        for cache_gb in (0, 1):
            dataset = load(tmp_path / "b", split=split, cache_gb=cache_gb)
            assert (len(dataset), dataset.classes) == (count, ["cat", "dog"])


def test_folders_that_give_no_class_are_said(tmp_path):
    image_folder(tmp_path / "a" / "cat", 2)
    (tmp_path / "a" / "dog").mkdir()
    assert noted(load(tmp_path / "a"), "nothing in 1 folder (dog)")
    (tmp_path / "a" / "dog" / "x.png").write_bytes(b"x")
    assert noted(load(tmp_path / "a"), "no classes: of 2 folders, images of one alone can be used")


def test_links_to_folders_that_were_read_are_named(tmp_path):
    image_folder(tmp_path / "a", 2)
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "round").symlink_to(".")
    dataset = load(tmp_path)
    assert len(dataset) == 2
    assert "2 links to folders read already left out (b to a, round to the folder itself)" in dataset.notes


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Digits", "digits"), ("swiss_roll", "swiss-roll"), ("moving shapes", "moving-shapes"), ("tone", "tones"),
        ("spoken_digit", "spoken-digits"),
    ],
)  # fmt: skip
def test_names_of_sets_that_are_misspelled(name, meant):
    with pytest.raises(FileNotFoundError, match=f"there is no '{name}'; did you mean '{meant}'"):
        load(name)


def test_every_named_set_is_named():
    from pydiff.data import NAMED, NAMED_SOUNDS

    with pytest.raises(FileNotFoundError) as caught:
        load("nowhere-at-all")
    assert all(f"'{name}'" in str(caught.value) for name in (*NAMED, *NAMED_SOUNDS))


def test_the_folder_of_a_run_is_no_data(tmp_path):
    pydiff.train("digits", out=tmp_path / "run", **TINY)
    for folder, what in ((tmp_path / "run", "run"), (tmp_path / "run/model", "model")):
        for attempt in (load, lambda folder: load(folder, cache_gb=0.1)):
            with pytest.raises(
                ValueError, match=f"{folder} is the folder of a {what}, .*; pydiff sample {folder} draws"
            ):
                attempt(folder)


def test_iterables_are_told_what_to_give():
    class Loader:
        dataset = [np.zeros((4, 4), np.uint8)] * 3

        def __iter__(self):
            yield self.dataset

    class Endless:
        def __iter__(self):
            yield from Loader.dataset

    with pytest.raises(TypeError, match=r"a Loader gives batches in an order of its own; give its \.dataset"):
        load(Loader())
    with pytest.raises(TypeError, match=r"an Endless says neither .*; give list\(\.\.\) of it"):
        load(Endless())
    assert len(load(Loader().dataset)) == len(load(list(Endless()))) == 3
    assert load({"images": np.zeros((3, 4, 4), np.uint8), "labels": None}).classes is None


@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.json"])
def test_lists_in_files_are_told_where_they_belong(tmp_path, name):
    (image_folder(tmp_path) / name).write_text("file_name,text\n0.png,red\n")
    with pytest.raises(ValueError, match=r"name it metadata\.csv or metadata\.jsonl, .* give the folder"):
        load(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "metadata.csv")
    assert load(tmp_path).captions[0] == ("red",)


def test_classes_that_are_called_train_stay_classes(tmp_path):
    for name in ("train", "plane"):
        image_folder(tmp_path / name, 2)
    assert load(tmp_path).classes == ["plane", "train"]


def test_pages_and_frames_are_said_or_all_taken(tmp_path):
    frames = [image(i) for i in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].convert("P").save(tmp_path / "b.gif", save_all=True, append_images=[f.convert("P") for f in frames[1:]])
    image(9).save(tmp_path / "c.png")
    first = load(tmp_path)
    assert len(first) == 3
    assert noted(first, "2 files with 6 frames, of which the first is taken (pages='all' takes all)")
    every = load(tmp_path, pages="all")
    assert len(every) == 7
    np.testing.assert_array_equal(every.images[:3], np.stack([np.asarray(f) for f in frames]))
    assert noted(every, "2 files with 6 frames, all taken")


def test_sizes_may_be_oblong_and_channels_chosen(tmp_path):
    image_folder(tmp_path, 4)
    for i in range(2):
        image(i).convert("RGBA").save(tmp_path / f"t{i}.png")
    Image.fromarray(np.full((16, 16, 4), [9, 0, 0, 128], np.uint8)).save(tmp_path / "clear.png")
    assert noted(load(tmp_path), "so all have 4 channels; channels=3 in pydiff.data.load, image_channels=3 in train")
    assert load(tmp_path, channels=3).shape == (16, 16, 3)
    run = pydiff.train(str(tmp_path), size=(8, 16), image_channels=3, **TINY)
    assert run.sample(1, steps=1).shape == (1, 8, 16, 3)
    flags = ["--image-channels", 3, "--size", 8, 16, "--steps", 1, "--batch-size", 2, "--channels", 8, 8, "--groups", 4]
    done = pydiff_command("train", tmp_path, *flags, "--sample-every", 0, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert pydiff.load(tmp_path / "run").shape == (8, 16, 3)
    resized = load(np.zeros((2, 10, 20), np.uint8), size=(5, 5), channels=3)
    assert noted(resized, "resized and cropped from 10 x 20 to 5 x 5")
    assert noted(resized, "1 channel made 3, as asked for")


# ---- archives --------------------------------------------------------------------------------------------------------


def packed(folder, path):
    kind = {"zip": "zip", "tar": "tar", "tgz": "gztar", "tar.gz": "gztar", "tar.xz": "xztar", "tar.bz2": "bztar"}
    made = shutil.make_archive(str(path.parent / "made"), kind[path.name.split(".", 1)[1]], folder)
    shutil.move(made, path)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_is_read_as_the_folder_that_it_is(tmp_path, kind):
    for name in ("cat", "dog"):
        image_folder(tmp_path / "p" / name)
    (tmp_path / "p" / "cat" / "0.txt").write_text("a cat")
    (tmp_path / "p" / "cat" / "bad.png").write_bytes(b"x")
    expected, found = load(tmp_path / "p"), load(packed(tmp_path / "p", tmp_path / f"a.{kind}"))
    np.testing.assert_array_equal(found.images, expected.images)
    assert (found.classes, found.captions, found.skipped) == (expected.classes, expected.captions, expected.skipped)
    assert found.name == f"a.{kind}"
    assert pydiff_command("data", tmp_path / f"a.{kind}").returncode == 0


def test_archives_go_by_their_first_bytes(tmp_path):
    source = image_folder(tmp_path / "p" / "a").parent
    image_folder(source / "b")
    for kind in ("zip", "tar", "gztar"):
        made = shutil.make_archive(str(tmp_path / kind), kind, source)
        for name in ("x.zip", "x.tar", "x.tgz"):
            shutil.copy(made, tmp_path / name)
            assert load(tmp_path / name).classes == ["a", "b"]
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="File is not a zip file"):
        load(tmp_path / "x.zip")


def test_a_tar_that_was_cut_between_two_members_is_noticed(tmp_path):
    """What is there is whole; only the mark of the end is missing."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(image_folder(tmp_path / "p"), "p")
    data, ends = (tmp_path / "a.tar").read_bytes(), []
    with tarfile.open(tmp_path / "a.tar") as archive:
        ends = [-(-(member.offset_data + member.size) // 512) * 512 for member in archive if member.isreg()]
    whole = load(tmp_path / "a.tar")
    assert (len(whole), whole.skipped) == (3, [])
    for name, pack in (("cut.tar", bytes), ("cut.tar.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(data[: ends[1]]))
        part = load(tmp_path / name)
        assert (len(part), part.skipped) == (
            2, [(name, "it ends without the mark of an end, so members may be missing")]
        )  # fmt: skip


def test_archives_that_are_hostile(tmp_path):
    encoded = io.BytesIO()
    image().save(encoded, "png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../out.png", encoded.getvalue())
        archive.writestr("/abs/in.png", encoded.getvalue())
        archive.writestr("in.png", encoded.getvalue())
    dataset = load(tmp_path / "a.zip")
    assert len(dataset) == 2
    assert dataset.skipped == [("../../out.png", "its name leads out of the archive")]
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("device.png", tarfile.CHRTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("v.png", "x.png", "y.png", "z.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded.getvalue())
            archive.addfile(info, io.BytesIO(encoded.getvalue()))
    dataset = load(tmp_path / "b.tar")
    assert len(dataset) == 4
    assert [path for path, _ in dataset.skipped] == ["device.png", "link.png", "pipe.png"]
    whole = (tmp_path / "b.tar").read_bytes()
    for kind, data in (("tar", whole), ("zip", (tmp_path / "a.zip").read_bytes()), ("tar.gz", gzip.compress(whole))):
        for length in range(0, len(data), max(len(data) // 40, 1)):
            (tmp_path / f"cut.{kind}").write_bytes(data[:length])
            try:
                load(tmp_path / f"cut.{kind}")  # a tar may end anywhere
            except ValueError as error:
                assert str(error).isprintable()  # noqa: PT017


MIB = 100


def bomb_npz(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (300, 1 << 20, 1)}
        )
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as stream:
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_tar(path, pax=False):
    with gzip.open(path, "wb", compresslevel=9) as stream:
        info = tarfile.TarInfo("a.png")
        info.size = MIB << 20
        info.type = tarfile.XHDTYPE if pax else tarfile.REGTYPE
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_idx(path):
    path.mkdir()
    with gzip.open(path / "train-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(struct.pack(">BBBB3I", 0, 0, 8, 3, MIB, 1024, 1024))
        for _ in range(MIB):
            stream.write(bytes(1 << 20))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 300) + bytes(300))
    )


def bomb_png(path):
    path.mkdir()
    Image.new("RGBA", (8192, 8192), (1, 2, 3, 4)).save(path / "a.png")


BOMBS = {
    "npz": (bomb_npz, "a.npz"),
    "zip": (bomb_zip, "a.zip"),
    "tar": (bomb_tar, "a.tar.gz"),
    "tar, in a header": (lambda path: bomb_tar(path, pax=True), "a.tgz"),
    "idx": (bomb_idx, "mnist"),
    "png": (bomb_png, "folder"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_unfold(tmp_path, name):
    make, file = BOMBS[name]
    make(tmp_path / file)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would unfold from .* times as many|say limit=4") as caught:
            load(tmp_path / file)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "--limit" in str(caught.value)
    assert most < (160 << 20 if "header" in name else 40 << 20), f"{most >> 20} MiB"


def test_a_limit_is_stated_and_can_be_raised(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((100, 1 << 20, 1), np.uint8))
    with pytest.raises(ValueError, match=r"if it is what it seems, say limit=4 \(--limit 4\)"):
        load(tmp_path / "zeros.npz")
    assert load(tmp_path / "zeros.npz", limit=4).shape == (1 << 20, 1, 1)
    large = RNG.integers(0, 256, (2, 512, 512), dtype=np.uint8)
    np.save(tmp_path / "large.npy", large)
    with pytest.raises(ValueError, match=r"above the limit of 0\.0001 GiB; raise it with limit=4 \(--limit 4\)"):
        load(tmp_path / "large.npy", limit=0.0001)
    assert len(load(tmp_path / "large.npy", limit=4)) == 2
    for wrong in (0, -1, "4", True, float("nan"), [1]):
        with pytest.raises(ValueError, match=r"limit is .*expected GiB of memory"):
            load(large, limit=wrong)
    for source, options in ((large, {}), ("digits", {"size": 4096}), (image_folder(tmp_path / "p"), {"size": 8192})):
        with pytest.raises(ValueError, match="above the limit"):
            load(source, limit=1e-5, **options)


# ---- MNIST, CIFAR ----------------------------------------------------------------------------------------------------


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_in_folders_archives_and_alone(tmp_path):
    digits = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    (tmp_path / "m").mkdir()
    for part, n in (("train", 4), ("t10k", 2)):
        (tmp_path / "m" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(digits[:n])))
        (tmp_path / "m" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(n, dtype=np.uint8))))
    dataset = load(tmp_path / "m")
    np.testing.assert_array_equal(dataset.images[..., 0], digits[:4])
    assert noted(dataset, "IDX files for train taken, those for test left out")
    assert (len(load(tmp_path / "m", split="test")), len(load(tmp_path / "m", split="all"))) == (2, 6)
    assert len(load(packed(tmp_path / "m", tmp_path / "m.zip"))) == 4
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(digits))
    alone = load(tmp_path / "train-images.idx3-ubyte")
    assert (len(alone), alone.labels) == (6, None)
    assert noted(alone, "no labels; give its folder for both")


def test_mnist_without_its_other_half_is_said(tmp_path):
    digits = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(idx(digits))
    with pytest.raises(ValueError, match=f"{tmp_path} has {file.name} without its labels; .* or give that file itself"):
        load(tmp_path)
    assert len(load(file)) == 4
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.arange(4, dtype=np.uint8))[:-1])
    with pytest.raises(ValueError, match=f"{labels} cannot be read .its header promises 4 bytes"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} has {labels.name} without its images"):
        load(tmp_path)


class Python2(pickle._Pickler):
    """Writes as Python 2 did: strings are byte strings, and so are the bytes of arrays."""

    def save(self, value, save_persistent_id=True):
        if isinstance(value, str | bytes):
            data = value.encode("latin-1") if isinstance(value, str) else value
            short = len(data) < 256
            self.write(b"U" + bytes([len(data)]) + data if short else b"T" + struct.pack("<I", len(data)) + data)
        else:
            super().save(value, save_persistent_id)


def cifar_folder(root, writer):
    root.mkdir()
    data, found = RNG.integers(0, 256, (12, 3072), dtype=np.uint8), {}
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        found[name] = {"data": data[2 * i : 2 * i + 2], "labels": [i, 9 - i], "filenames": ["a.png", "b.png"]}
    found["batches.meta"] = {"label_names": list("abcdefghij"), "num_vis": 3072}
    for name, value in found.items():
        stream = io.BytesIO()
        writer(stream, 2).dump(value)
        (root / name).write_bytes(stream.getvalue())
    return data


@pytest.mark.parametrize("writer", [Python2, pickle._Pickler])
def test_cifar_is_read_without_unpickling(tmp_path, writer, monkeypatch):
    data = cifar_folder(tmp_path / "cifar-10-batches-py", writer)
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(pickle, "loads", None)
    dataset = load(tmp_path / "cifar-10-batches-py")
    expected = data[:10].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.images, expected)
    assert dataset.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert dataset.classes == list("abcdefghij")
    assert noted(dataset, "batches for train taken, those for test left out")
    assert len(load(tmp_path / "cifar-10-batches-py", split="all")) == 12
    made = packed(tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz")
    np.testing.assert_array_equal(load(made).images, expected)
    assert len(load(tmp_path / "cifar-10-batches-py" / "data_batch_2")) == 2


def test_binary_cifar_and_the_hundred_classes(tmp_path):
    pixels = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
    labels = np.array([[4], [0], [9]], np.uint8)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(np.hstack([labels, pixels]).tobytes())
    dataset = load(tmp_path)
    assert (len(dataset), dataset.labels.tolist()) == (3, [4, 0, 9])
    hundred = tmp_path / "cifar-100-python"
    hundred.mkdir()
    for name in ("train", "test"):
        batch = {"data": pixels, "fine_labels": [7, 99, 0], "coarse_labels": [1, 2, 3]}
        (hundred / name).write_bytes(pickle.dumps(batch, 2))
    (hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"n{i}" for i in range(100)]}, 2))
    assert load(hundred).titles([1]) == ["n99"]


class Evil:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    "batch",
    [Evil(), {"data": Evil()}, {"data": np.zeros((2, 3072), "f4"), "labels": [1, 2]}, [1],
     {"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, {"data": np.zeros((2, 99), np.uint8), "labels": [1, 2]},
     {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10**9]}, {"data": b"x", "labels": [1]}],
)  # fmt: skip
def test_pickles_that_are_no_batch_of_cifar(tmp_path, batch, capsys):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    for source in (tmp_path, tmp_path / "data_batch_1"):
        with pytest.raises(ValueError, match="data_batch_1"):
            load(source)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="x is damaged"):
        cifar.unpickled(b"\x80\x02cnumpy\ndtype\nU\x02O8K\0K\1\x87R.", "x")


# ---- what somebody holds in Python -----------------------------------------------------------------------------------


def test_lists_pairs_and_dicts(tmp_path):
    arrays = [np.asarray(image(i)) for i in range(4)]
    expected = np.stack(arrays)
    files = [image_folder(tmp_path, 4) / f"{i}.png" for i in range(4)]
    for source in (arrays, tuple(arrays), [Image.fromarray(a) for a in arrays], files, list(map(str, files))):
        np.testing.assert_array_equal(load(source).images, expected)
    y = ["b", "a", "b", "c"]
    for source in (
        list(zip(arrays, y, strict=True)),
        (arrays, y),
        (expected, np.array(y)),
        {"images": expected, "labels": y},
    ):
        dataset = load(source)
        assert dataset.classes == ["a", "b", "c"]
        assert dataset.labels.tolist() == [1, 0, 1, 2]
    mixed = load([arrays[0], image(1, (20, 30)), files[2]], size=8)
    assert (mixed.shape, noted(mixed, "resized and cropped to 8 x 8")) == ((8, 8, 3), True)
    assert load([a[..., 0] for a in arrays]).shape == (16, 16, 1)
    assert load(arrays, labels=[1, 2, 2, 1]).labels.tolist() == [0, 1, 1, 0]
    run = pydiff.train([image(i, (8, 8)) for i in range(4)], **TINY)
    assert run.sample(1, steps=1).shape == (1, 8, 8, 3)
    (tmp_path / "broken.png").write_bytes(b"x")
    kept = load([*files, tmp_path / "broken.png"], labels=[0, 1, 2, 3, 4])
    assert (kept.labels.tolist(), kept.skipped[0][0]) == ([0, 1, 2, 3], "number 4")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "list of images is empty"),
        ([1, 2], {}, "number 0 of a list of images is an int, expected arrays"),
        (["/no/such.png"], {}, "there is no '/no/such.png', number 0 of the list"),
        ([np.zeros((4, 4)), np.zeros((5, 5))], {}, "images of different shapes must be uint8"),
        ([np.zeros((4, 4), np.uint8)] * 2, {"labels": [1]}, r"labels have shape \(1,\), expected \(2,\)"),
        (([np.zeros((4, 4), np.uint8)], [1]), {"labels": [1]}, "which bring|that bring their own"),
        ([(np.zeros((4, 4), np.uint8), {})], {}, "needs a label for each image"),
        (image(), {}, "give a list of images"),
        ({"a": 1}, {}, "holds the arrays a, expected images under"),
        ({}, {}, r"holds the arrays \(none\)"),
        (np.ma.masked_array(np.zeros((2, 4, 4), np.uint8), True), {}, r"fill them with \.filled\(0\)"),
    ],
)
def test_what_cannot_be_images(source, options, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


# ---- options ---------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers():
    options = pydiff.Options(
        steps=np.int64(5), lr=np.float32(0.5), channels=[np.int32(8), np.int64(16)], size=np.int8(8)
    )
    assert options.check() == pydiff.Options(steps=5, lr=0.5, channels=(8, 16), size=8)
    assert type(options.steps) is int
    run = pydiff.train("digits", **{**TINY, "steps": np.int64(1), "size": (np.int64(8), 8), "flip": np.bool_(True)})
    assert run.sample(np.int64(2), steps=np.int32(2), seed=np.int64(3)).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 16}, r"channels must be whole numbers of at least 1, one a level, such as \(32, 64\); got 16"),
        ({"channels": (0, 16)}, "channels must be whole numbers of at least 1"),
        ({"channels": (8.5,)}, "channels must be whole numbers"),
        ({"attention": 1}, "attention must be whole numbers of at least 0"),
        ({"labels": [1]}, r"labels belong to the data: train\(pydiff\.data\.load\(images, labels=labels\)"),
        ({"size": (1, 2, 3)}, r"size is \(1, 2, 3\), expected an integer or \(height, width\)"),
        ({"size": "big"}, "size is 'big'"),
        ({"image_channels": 2}, r"channels is 2, expected 1 \(grey\)"),
        ({"layout": "CHWN"}, "layout is 'CHWN', expected NHWC"),
        ({"limit": -1}, "limit is -1, expected GiB"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        pydiff.train("digits", **{**TINY, **options})
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_the_same(tmp_path):
    done = pydiff_command("train", "digits", "--steps", 1, "--channels", 0, 16, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("one a level, such as (32, 64); got (0, 16)")
    assert not (tmp_path / "run").exists()


def test_labels_are_given_with_the_data_as_the_message_says():
    images = np.zeros((6, 8, 8, 1), np.uint8)
    run = pydiff.train(load(images, labels=np.arange(6) % 2), conditional=True, **TINY)
    assert run.classes == ["0", "1"]


# ---- other libraries' ------------------------------------------------------------------------------------------------


class Features(dict):
    """Of `datasets`: a feature per column, of which ClassLabel has names."""


class Rows:
    """A data set of Hugging Face's `datasets`: rows that are dicts, and features."""

    def __init__(self, rows, **names):
        self.rows = rows
        self.features = Features({column: type("ClassLabel", (), {"names": found}) for column, found in names.items()})
        self.features |= dict.fromkeys(rows[0].keys() - names.keys(), "Image()")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Numbered:
    """A data set of torchvision: (image, label) by number, and the names of the classes."""

    classes = ("cat", "apple")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return PICTURES[index], index % 2


class Part:
    """torch.utils.data.Subset."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[self.indices[index]]


PICTURES = [Image.fromarray(np.full((8, 8, 3), (40 * i, 10, 90), np.uint8)) for i in range(4)]


def encoded(image):
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def test_names_of_classes_come_with_the_data_sets_of_other_libraries():
    rows = [{"img": image, "label": i % 2, "text": f"number {i}"} for i, image in enumerate(PICTURES)]
    for source in (Rows(rows, label=["cat", "apple"]), Numbered(), Part(Numbered(), [0, 1, 2, 3])):
        data = load(source)
        assert data.classes == ["apple", "cat"]
        assert [data.classes[label] for label in data.labels] == ["cat", "apple", "cat", "apple"]
        assert "the classes are called what the data set says" in data.notes
        assert np.array_equal(data.images, np.stack([np.asarray(image) for image in PICTURES]))
    assert load(Rows(rows, label=["cat", "apple"])).captions[3] == ("number 3",)
    assert load(Rows(rows, label=["cat"])).classes == ["0", "1"]  # too few names: said, and not used
    assert any("not used: the data set, 1 names" in note for note in load(Rows(rows, label=["cat"])).notes)
    undecoded = [{"image": {"bytes": encoded(image), "path": None}} for image in PICTURES]
    assert np.array_equal(load(undecoded).images, data.images)
    assert np.array_equal(load([encoded(image) for image in PICTURES]).images, data.images)


def test_rows_without_an_image_are_told_by_their_columns():
    with pytest.raises(
        ValueError, match="row 0 has no image; the columns are a, b, and an image is looked for in image"
    ):
        load(Rows([{"a": 1, "b": 2}]))
    with pytest.raises(ValueError, match="row 1 has no image; the columns are image"):
        load([{"image": PICTURES[0]}, {"image": None}])


def test_a_dict_of_parts_gives_the_one_that_is_asked_for():
    parts = {"train": Rows([{"image": image} for image in PICTURES]), "validation": Rows([{"image": PICTURES[0]}])}
    assert len(load(parts)) == 4
    assert "train taken, validation left out" in load(parts).notes
    assert len(load(parts, split="val")) == 1
    with pytest.raises(ValueError, match="the dict has train, validation, and no test; use split='train'"):
        load(parts, split="test")
    with pytest.raises(ValueError, match="and no all; give one of them"):
        load(parts, split="all")
    x, y = np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1]
    assert load({"train": (x, y), "test": (x[:2], y[:2])}).classes == ["0", "1"]
    assert len(load({"train": x, "test": x[:1]}, split="test")) == 1


def test_tables_are_rows(tmp_path, monkeypatch):
    """pandas' and Polars' tables have columns, dtypes, an array, and a way to be a list of dicts."""

    class Table:
        columns, dtypes = ["path", "label"], ["object", "object"]

        def __array__(self, *_, **__):
            return np.array([["a.png", "x"], ["b.png", "y"]], object)

        def to_dict(self, kind):
            assert kind == "records"
            return [{"path": "a.png", "label": "x"}, {"path": "b.png", "label": "y"}]

    class Column:
        dtype = "object"

        def __array__(self, *_, **__):
            return np.array([*map(np.asarray, PICTURES), None], object)[:-1]

        def __iter__(self):
            return iter([np.asarray(image) for image in PICTURES])

        def tolist(self):
            return list(self)

    monkeypatch.chdir(tmp_path)
    PICTURES[0].save("a.png")
    PICTURES[1].save("b.png")
    assert load(Table()).classes == ["x", "y"]
    assert len(load(Column())) == 4


def test_what_holds_images_without_labels():
    x = np.zeros((4, 8, 8, 3), np.uint8)
    for source in ((x,), (x, None), [(image,) for image in x]):  # the last as a TensorDataset of one array
        assert load(source).shape == (8, 8, 3)
        assert load(source).classes is None


def test_files_that_are_no_paths(tmp_path):
    PICTURES[0].save(tmp_path / "a.png")
    assert len(load(os.fsencode(tmp_path))) == 1
    with open(tmp_path / "a.png", "rb") as file, pytest.raises(TypeError, match="an open file; give its path"):
        load(file)
    with pytest.raises(TypeError, match=r"these [0-9]+ bytes are what is in a file; give its path"):
        load((tmp_path / "a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"give the folder, or in Python the list glob\.glob\("):
        load(tmp_path / "*.png")
    (tmp_path / "a.png").rename(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(ValueError, match=r"1 \.arrow; give what datasets\.load_from_disk\(folder\) returns"):
        load(tmp_path)


def test_misspelt_options_of_load():
    for name, said in (("sise", "did you mean 'size'"), ("image_size", "it is called 'size' here"),
                       ("y", "it is called 'labels' here"), ("batch", "there are source, size, channels")):  # fmt: skip
        with pytest.raises(TypeError, match=f"there is no option '{name}'; {said}"):
            load("digits", **{name: 3})


def test_one_image_and_flattened_images_are_told():
    with pytest.raises(
        ValueError, match=r"looks like one image \(H, W, C\); give images\[None\] then, or layout='NHW'"
    ):
        load(np.zeros((16, 12, 3), np.uint8))
    assert load(np.zeros((16, 12, 3), np.uint8)[None]).shape == (16, 12, 3)
    assert load(np.zeros((16, 12, 3), np.uint8), layout="NHW").shape == (12, 3, 1)
    assert "(x.reshape(-1, 28, 28) if they are images in rows)" in load(np.zeros((9, 784))).notes[0]
    assert "(x.reshape(-1, 32, 32, 3) if they are images in rows)" in load(np.zeros((9, 3072))).notes[0]
    assert load(np.zeros((9, 2))).notes[0] == "array (9, 2) read as points (N, D)"
    with pytest.raises(TypeError, match="captions are 3; give a list with one for each image"):
        load(np.zeros((9, 8, 8)), captions=3)


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is stood in for."""

    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", encoded(PICTURES[0]))
    idx_bytes = struct.pack(">HBBIII", 0, 8, 3, 2, 4, 4) + bytes(32)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)
    monkeypatch.setattr("zipfile.ZipFile", refused)
    for name in ("a.npy", "a.npz", "a.zip", "train-images-idx3-ubyte"):
        with pytest.raises(PermissionError) as caught:
            load(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="folder"):
        load(tmp_path / "folder")


def test_classes_of_some_images_alone_are_not_said_to_be_taken(tmp_path):
    for number in range(3):
        PICTURES[number].save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,red\n1.png,blue\n2.png,\n")
    data = load(tmp_path)
    assert data.classes is None
    assert "2 images with a class in a file, not all" in data.notes
    assert not any("classes are taken" in note for note in data.notes)
