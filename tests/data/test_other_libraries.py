"""Rows, tables and tensors that other libraries hold, and how people open and name what they have."""

import errno
import io
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from pydiff.data import load

RNG = np.random.default_rng(0)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4, "sample_every": 0, "progress": False}


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
