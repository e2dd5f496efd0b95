"""MNIST's IDX files and CIFAR's batches, in folders, archives and alone; no pickle is run."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest

from pydiff.data import cifar, load
from tests.data.made_files import idx, noted, packed

RNG = np.random.default_rng(0)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4, "sample_every": 0, "progress": False}


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
