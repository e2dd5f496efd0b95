"""The shipped digits and the faces of scikit-image."""

import sys

import numpy as np
import pytest

from pydiff.data import load
from pydiff.data.arrays import read_npz
from pydiff.data.digits import FILE

PER_DIGIT = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # published with the data


def test_digits_are_complete():
    digits = load("digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.classes == list("0123456789")
    assert np.bincount(digits.labels).tolist() == PER_DIGIT
    assert set(np.unique(digits.images)) <= {round(count * 255 / 16) for count in range(17)}
    assert (digits.images.min(), digits.images.max()) == (0, 255)


def test_digits_are_the_same_pixels_for_ever():
    assert load("digits").fingerprint() == "b5522fa630153ea40f7817570109c204360b198c18b85365d55fe0895c43d9f4"


def test_digits_equal_those_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    raw = read_npz(FILE)
    np.testing.assert_array_equal(raw["images"], source.images)
    np.testing.assert_array_equal(raw["labels"], source.target)
    digits = load("digits")
    np.testing.assert_allclose(digits.images[..., 0], source.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(digits.labels, source.target)


def test_the_shipped_file_can_be_made_again(tmp_path):
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    from pydiff.data.make_digits import make

    for name in ("a.npz", "b.npz"):
        make(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    shipped, made = read_npz(FILE), read_npz(tmp_path / "a.npz")
    assert shipped.keys() == made.keys()
    for name in shipped:
        np.testing.assert_array_equal(shipped[name], made[name])


def test_the_licence_travels_with_the_file():
    text = FILE.with_name("digits.LICENSE.txt").read_text(encoding="utf-8")
    for part in ("Alpaydin", "Kaynak", "CC BY 4.0", "https://doi.org/10.24432/C50P49", "Changes"):
        assert part in text
    assert FILE.stat().st_size < 50_000


@pytest.mark.parametrize("size", [16, (12, 10)])
def test_digits_at_another_size(size):
    digits = load("digits", size=size)
    assert digits.shape == (*(size if isinstance(size, tuple) else (size, size)), 1)
    np.testing.assert_array_equal(digits.labels, load("digits").labels)


def test_faces():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    faces = load("faces")
    assert faces.images.shape == (100, 25, 25, 1)
    assert faces.labels is None
    assert load("faces", size=32, channels=3).shape == (32, 32, 3)
    from skimage.data import lfw_subset

    np.testing.assert_allclose(faces.images[..., 0], lfw_subset()[:100] * 255, atol=0.5)


def test_faces_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"pip install 'pydiff\[faces\]'"):
        load("faces")
