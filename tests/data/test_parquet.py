"""Parquet files as Hugging Face's data sets are stored. Needs pyarrow."""

import json

import numpy as np
import odd_images as made
import pytest

from pydiff.data import load

pa = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [made.encode(np.full((4, 5, 3), (10 * i, 0, 200), np.uint8)) for i in range(4)]


def write(path, columns, names=None):
    table = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_images_labels_and_captions(tmp_path):
    images = [{"bytes": data, "path": "x.png"} for data in IMAGES]
    columns = {"image": images, "label": [1, 0, 1, 2], "text": ["ein Baum", None, " ", "vier"], "size": [1, 2, 3, 4]}
    dataset = load(write(tmp_path / "a.parquet", columns, ["cat", "dog", "owl"]))
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert dataset.classes == ["cat", "dog", "owl"]
    assert dataset.labels.tolist() == [1, 0, 1, 2]
    assert dataset.captions == (("ein Baum",), (), (), ("vier",))
    assert "2 captions for 2 images; without one: row 1, row 2" in dataset.notes


def test_a_folder_of_files_plain_bytes_and_lists_of_captions(tmp_path):
    write(tmp_path / "data/1.parquet", {"img": IMAGES[2:], "captions_de": [["zwei", "2"], []], "label": ["b", "a"]})
    write(tmp_path / "data/0.parquet", {"img": IMAGES[:2], "captions_de": [["null"], None], "label": ["a", "b"]})
    dataset = load(tmp_path)
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert dataset.captions == (("null",), (), ("zwei", "2"), ())
    assert dataset.languages[2] == ("de", "de")
    assert dataset.classes == ["a", "b"]
    assert dataset.labels.tolist() == [0, 1, 1, 0]


def test_broken_and_missing_images_are_listed(tmp_path):
    """A path without bytes is not followed."""
    (tmp_path / "real.png").write_bytes(IMAGES[0])
    images = [
        {"bytes": None, "path": str(tmp_path / "real.png")},
        None,
        *({"bytes": d, "path": None} for d in IMAGES),
    ]
    images[2]["bytes"] = b"broken"
    dataset = load(write(tmp_path / "a.parquet", {"image": images, "text": list("abcdef")}))
    assert dataset.captions == (("d",), ("e",), ("f",))
    assert dataset.skipped == [
        ("row 0", "no image in the file"),
        ("row 1", "no image in the file"),
        ("row 2", "not an image in any known format"),
    ]


def test_labels_that_are_none(tmp_path):
    dataset = load(write(tmp_path / "a.parquet", {"image": IMAGES, "label": [1, None, 0, 1]}))
    assert dataset.labels is None
    dataset = load(write(tmp_path / "b.parquet", {"image": IMAGES, "label": [3, 5, 3, 3]}))
    assert dataset.classes == ["3", "5"]


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="has the columns text, expected images in one of image"):
        load(write(tmp_path / "a.parquet", {"text": ["a"]}))
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(ValueError, match=r"b.parquet cannot be read \(.*\); download it again"):
        load(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("label", "note"),
    [
        ([1, None, 0, 1], "no classes: 1 row of column label with none"),
        ([0.0, 1.0, 0.0, 1.0], "no classes: column label holds double"),
        ([[0], [1], [0], [1]], "no classes: column label holds list"),
    ],
)
def test_labels_that_are_none_are_said(tmp_path, label, note):
    dataset = load(write(tmp_path / "a.parquet", {"image": IMAGES, "label": label}))
    assert dataset.classes is None
    assert any(note in told for told in dataset.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "data/test.parquet"),
        ("train/0.parquet", "val/0.parquet", "test/0.parquet"),
        ("train.parquet", "dev.parquet", "test_1.parquet"),
    ],
)
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_parts_are_never_mixed_in_silence(tmp_path, names, cache_gb):
    for i, name in enumerate(names):
        write(tmp_path / name, {"image": IMAGES[: i + 1], "label": list(range(i + 1))})
    for split, count in ((None, 1), ("train", 1), ("val", 2), ("test", 3), ("all", 6)):
        dataset = load(tmp_path, split=split, cache_gb=cache_gb)
        assert len(dataset) == count
        told = "taken together" if split == "all" else "taken; left out: "
        assert any(told in note for note in dataset.notes)
    with pytest.raises(ValueError, match=r"split='val' is for|has nothing called train, val or test"):
        load(tmp_path / names[0], split="val", cache_gb=cache_gb)


def test_files_without_rows(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())})
    for cache_gb in (0, 1):
        with pytest.raises(ValueError, match="has no rows; give a file with images"):
            load(path, cache_gb=cache_gb)
