"""Dataset, load and describe."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.data import Dataset, describe, from_uint8, load
from pydiff.data.describe import statistics

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
NAMES = ["ant", "bee", "cat"]


def dataset(**changes):
    return Dataset(**{"name": "test", "images": PIXELS, "labels": LABELS, "classes": NAMES} | changes)


def test_length_shape_and_read_only():
    data = dataset()
    assert len(data) == 6
    assert data.shape == (4, 5, 3)
    for array in (data.images, data.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        data.name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": PIXELS[0]}, r"images have shape \(4, 5, 3\)"),
        ({"images": PIXELS[:0]}, r"images have shape \(0, 4, 5, 3\)"),
        ({"images": PIXELS.astype(np.float64) / 255}, "images are float64"),
        ({"images": PIXELS.astype(np.float32)}, r"expected \[-1, 1\]"),
        ({"images": np.full((6, 1, 1, 1), np.nan, np.float32)}, "run from nan"),
        ({"labels": LABELS[:3]}, r"expected integers of shape \(6,\)"),
        ({"labels": LABELS / 2}, "labels are float64"),
        ({"labels": LABELS + 1}, r"labels run from 1 to 3, expected 0 .. 2"),
        ({"labels": LABELS - 1}, "labels run from -1"),
        ({"labels": None}, "belong together"),
        ({"classes": None}, "belong together"),
    ],
)
def test_impossible_data_sets(changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(**changes)


def test_normalized():
    picked = dataset().normalized([3, 0, 3])
    assert picked.dtype == np.float32
    np.testing.assert_array_equal(picked, from_uint8(PIXELS[[3, 0, 3]]))
    floats = from_uint8(PIXELS)
    np.testing.assert_array_equal(dataset(images=floats).normalized(np.array([5], np.uint8)), floats[5:])
    assert dataset().normalized([]).shape == (0, 4, 5, 3)


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        ([6], IndexError),
        ([-1], IndexError),
        ([0.0], TypeError),
        (3, TypeError),
        ([[0]], TypeError),
        ([True], TypeError),
    ],
)
def test_impossible_indices(indices, error):
    for method in (dataset().normalized, dataset().subset):
        with pytest.raises(error, match="expected"):
            method(indices)


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 2**64 - 1))
def test_split_parts_are_disjoint_complete_in_order_and_repeatable(n, fraction, seed):
    numbered = Dataset("n", np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n), [str(i) for i in range(n)])
    rest, held = numbered.split(fraction, seed)
    assert len(held) == min(max(round(n * fraction), 1), n - 1)
    assert sorted([*rest.labels, *held.labels]) == list(range(n))
    for part in (rest, held):
        np.testing.assert_array_equal(part.images.ravel(), part.labels)
        assert (np.diff(part.labels) > 0).all()
    again = numbered.split(fraction, seed)
    assert [part.fingerprint() for part in again] == [rest.fingerprint(), held.fingerprint()]


def test_split_depends_on_the_seed_and_names_the_part():
    digits = load("digits")
    parts = [digits.split(0.1, seed)[1] for seed in range(3)]
    assert len({part.fingerprint() for part in parts}) == 3
    assert parts[0].name == "digits (held out)"
    assert parts[0].classes == digits.classes
    assert (np.bincount(parts[0].labels, minlength=10) > 0).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), "0.1", None])
def test_impossible_fractions(fraction):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        dataset().split(fraction)


def test_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="cannot hold images out of test, which has only 1"):
        dataset(images=PIXELS[:1], labels=LABELS[:1]).split(0.5)


def test_fingerprint_notices_every_change():
    changed = PIXELS.copy()
    changed[5, 3, 4, 2] ^= 1
    relabelled = LABELS.copy()
    relabelled[5] = 0
    variants = [
        dataset(),
        dataset(images=changed),
        dataset(images=PIXELS[::-1]),
        dataset(images=PIXELS.reshape(6, 5, 4, 3)),
        dataset(images=from_uint8(PIXELS)),
        dataset(labels=relabelled),
        dataset(labels=None, classes=None),
        dataset(images=PIXELS[:5], labels=LABELS[:5]),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert dataset().fingerprint() == dataset(name="other", skipped=[("a", "b")]).fingerprint()
    fortran = np.asfortranarray(PIXELS)
    assert dataset(images=fortran, labels=LABELS.astype(np.uint8)).fingerprint() == dataset().fingerprint()


def test_load_of_a_dataset():
    data = dataset()
    assert load(data) is data
    assert load(data, size=(4, 5), channels=3) is data
    changed = load(data, size=8, channels=1)
    assert changed.shape == (8, 8, 1)
    np.testing.assert_array_equal(changed.labels, data.labels)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no/such/folder", FileNotFoundError, "there is no 'no/such/folder'; expected 'digits', 'emoji', "),
        ("", ValueError, "the name of the data is empty"),
        (None, TypeError, "cannot load data from NoneType; expected"),
        (42, TypeError, "cannot load data from int"),
        ([PIXELS], TypeError, r"number 0 of a list of images is an array of shape \(6, 4, 5, 3\), expected arrays"),
        ([], ValueError, "the list of images is empty"),
        (b"digits", TypeError, "cannot load data from bytes"),
    ],
)
def test_impossible_sources(source, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_array(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a.zip cannot be read \(File is not a zip file\); fetch it again"):
        load(tmp_path / "a.zip")
    (tmp_path / "a.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cannot load data from '.*a.bin'; expected 'digits'"):
        load(tmp_path / "a.bin")


def test_a_folder_with_the_name_of_a_data_set(tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "digits").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(load("digits")) == 1797
    assert len(load("./digits")) == 1


@pytest.mark.parametrize("source", ["digits", dataset()])
def test_labels_belong_to_arrays(source):
    with pytest.raises(ValueError, match=r"labels= belongs to arrays"):
        load(source, labels=[0])


def test_anything_that_turns_into_an_array():
    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return PIXELS.astype(dtype or PIXELS.dtype, copy=bool(copy))

    np.testing.assert_array_equal(load(Wrapped()).images, PIXELS)


def test_summary_and_describe_say_everything():
    skipped = [(f"{i}.png", "empty file") for i in range(25)]
    data = dataset(skipped=skipped, notes=["a note"])
    assert data.summary().splitlines() == [
        "test: 6 images, 4 x 5, 3 channels (RGB), uint8, 3 classes",
        "a note",
        "25 files skipped (first: 0.png: empty file)",
    ]
    text = describe(data)
    assert text.startswith(data.summary())
    for part in (
        "ant (2), bee (2), cat (2)",
        "mean",
        "std",
        "19.png: empty file",
        "and 5 more",
        "a batch of 6",
        "4 x 5",
    ):
        assert part in text
    assert "20.png" not in text


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_summary_counts_channels(channels):
    words = {1: "1 channel (grey)", 3: "3 channels (RGB)", 4: "4 channels (RGBA)"}.get(channels, f"{channels} channels")
    assert f"1 image, 8 x 8, {words}, uint8" in load(np.zeros((1, 8, 8, channels), np.uint8)).summary()


def test_statistics_are_exact():
    images = RNG.integers(0, 256, (700, 3, 4, 2), dtype=np.uint8)  # several blocks, the last one short
    x = images / 127.5 - 1
    low, high, mean, std = statistics(load(images))
    assert (low, high) == (-1, 1)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1, 2)), rtol=0, atol=1e-7)  # float32 pixels
    np.testing.assert_allclose(std, x.std(axis=(0, 1, 2)), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "hints"),
    [
        ((600, 32, 32, 1), ["a batch of 64 sees every image once in 10 steps"]),
        (
            (100, 25, 25, 1),
            ["25 x 25 cannot be halved twice", "size=24 or size=32", "100 images may be learned by heart"],
        ),
        ((3, 3, 3, 1), ["try size=8\n"]),
        ((2, 256, 256, 1), ["is slow without a GPU", "a batch of 2 sees every image once in 1 step"]),
    ],
)
def test_hints(shape, hints):
    text = describe(load(np.zeros(shape, np.uint8)))
    for hint in hints:
        assert hint in text
    assert text.count("hint: ") == 1 + (shape[1] % 4 > 0) + (shape[1] > 128) + (shape[0] < 500)


def test_importing_data_loads_no_decoder():
    code = "import sys, pydiff.data; print({'PIL', 'tqdm', 'skimage', 'sklearn', 'tyro'} & set(sys.modules) or 'none')"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "none"
    )


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"a.parquet needs pyarrow.*pip install 'pydiff\[parquet\]'"):
        load(tmp_path / "a.parquet")
