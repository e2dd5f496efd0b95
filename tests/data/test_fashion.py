"""Fashion-MNIST and MNIST: IDX files, sound, damaged and hostile; Debian's package where it is installed."""

import gzip
import struct

import numpy as np
import pytest

from pydiff.data import fashion, load
from pydiff.data.fashion import FOLDER
from pydiff.data.idx import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 9, 5, *range(9)], np.uint8)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def folder(root, suffix="", images=None, labels=None):
    root.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (root / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(idx(IMAGES) if images is None else images))
    (root / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS) if labels is None else labels))
    return root


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_fashion(tmp_path, suffix):
    dataset = load(folder(tmp_path / "my-fashion", suffix))
    np.testing.assert_array_equal(dataset.images[..., 0], IMAGES)
    assert dataset.classes[9] == "ankle boot"
    assert dataset.captions[:3] == (("a T-shirt",), ("an ankle boot",), ("a sandal",))
    assert dataset.labels.tolist() == LABELS.tolist()
    assert load(tmp_path / "my-fashion", size=16).shape == (16, 16, 1)


def test_a_folder_of_digits_is_not_called_clothes(tmp_path):
    dataset = load(folder(tmp_path / "mnist"))
    assert dataset.classes == [str(i) for i in range(10)]
    assert dataset.captions is None


def test_the_name_needs_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "fashion-mnist")
    monkeypatch.setattr(fashion.load_fashion, "__defaults__", (tmp_path / "fashion-mnist",))
    with pytest.raises(FileNotFoundError, match="install Debian's package dataset-fashion-mnist, or give the folder"):
        load("fashion")
    folder(tmp_path / "fashion-mnist")
    assert len(load("fashion")) == 12


@pytest.mark.parametrize(
    "damage",
    [
        {"images": b""},
        {"images": b"\0\0\x08"},
        {"images": b"\0\0\x08\0"},
        {"images": b"\0\0\x0d\x03" + idx(IMAGES)[4:]},
        {"images": b"P" + idx(IMAGES)[1:]},
        {"images": idx(IMAGES)[:-1]},
        {"images": idx(IMAGES) + b"\0"},
        {"images": struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)},
        {"images": struct.pack(">BBBB3I", 0, 0, 8, 3, 60_000, 28, 28)},
        {"labels": idx(LABELS[:5])},
        {"images": idx(IMAGES.reshape(12, -1))},
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_files_are_one_sentence(tmp_path, damage, suffix):
    with pytest.raises(ValueError, match=r"cannot be read \(.*\); fetch it again|do not fit together") as error:
        load(folder(tmp_path / "fashion", suffix, **damage))
    assert "\n" not in str(error.value)


def test_a_damaged_gz(tmp_path):
    file = tmp_path / "x.gz"
    whole = gzip.compress(idx(IMAGES))
    for data in (whole[:-20], whole[:100], b"\x1f\x8b" + bytes(50), whole[:200] + bytes(50) + whole[250:]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read"):
            read_idx(file)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_set():
    dataset = load("fashion")
    assert dataset.images.shape == (60_000, 28, 28, 1)
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
