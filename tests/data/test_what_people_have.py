"""What people have: deep grey, pages, phones' files, thumbnails, divided folders, lists; and what they ask for.

Whatever is decided, converted or left out is in the notes.
"""

import shutil

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff.data import load
from pydiff.data.unreadable import readable
from tests.data.made_files import image, image_folder, noted, spoken
from tests.test_cli import pydiff_command

RNG = np.random.default_rng(0)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4, "sample_every": 0, "progress": False}


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
