"""What somebody holds in Python: pairs, lists, generators, data sets of others, and arrays that are not plain."""

import itertools

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff.data import Dataset, load
from pydiff.data.classes import class_labels
from pydiff.data.held import as_array
from tests.peers import import_torch

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
Y = np.array([2, 0, 1, 2, 0, 1])


# ---- (x, y) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x", [GREY, COLOUR, COLOUR.transpose(0, 3, 1, 2), GREY / 255], ids=["grey", "RGB", "NCHW", "floats"]
)
@pytest.mark.parametrize("y", [Y, Y.tolist(), tuple(Y), Y[:, None], np.array(list("cabcab")), Y.astype(object)])
@pytest.mark.parametrize("kind", [tuple, list])
def test_arrays_with_their_labels(x, y, kind):
    dataset = load(kind((x, y)))
    assert dataset.shape[:2] == (8, 9)
    assert (len(dataset), dataset.labels.tolist(), len(dataset.classes)) == (6, Y.tolist(), 3)


def test_two_images_are_no_pair():
    for two in ((GREY[0], GREY[1]), (COLOUR[0], COLOUR[1]), [COLOUR[0], COLOUR[1]], (COLOUR[0], GREY[0])):
        dataset = load(two)
        assert (len(dataset), dataset.classes) == (2, None)
    images = tuple(map(Image.fromarray, COLOUR[:2]))
    assert load((images[0], images[1])).classes is None
    pairs = load([(images[0], "b"), (images[1], "a")])
    assert (pairs.classes, pairs.labels.tolist()) == (["a", "b"], [1, 0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((COLOUR, Y[:5]), r"labels have shape \(5,\), expected \(6,\); give one for each image"),
        ((GREY, Y[:5]), r"labels have shape \(5,\), expected \(6,\); give one for each image"),
        ((COLOUR, np.eye(6)), r"labels have shape \(6, 6\), .* for one-hot rows use \.argmax\(axis=1\)"),
        (((COLOUR, Y), (COLOUR[:2], Y[:2])), "pairs .x, y., as of training and test data; give one of them"),
        ((list(COLOUR), Y[:5]), r"labels have shape \(5,\)"),
        (([Image.fromarray(i) for i in COLOUR], Y[:5]), "there are 5 labels for 6 images"),
        ([COLOUR, COLOUR], r"an array of shape \(6, 8, 9, 3\), expected .*; numpy\.concatenate\(list\) is one array"),
        ((COLOUR, Y, Y), r"number 0 of a list of images is an array of shape \(6, 8, 9, 3\)"),
        ([None], "number 0 of a list of images is None"),
        ([GREY[0], Y], r"number 1 of a list of images is an array of shape \(6,\)"),
        ((GREY, Y * 1.0), r"labels are float64, .*\.astype\(int\)"),
        ((GREY, Y / 2), r"labels are float64, and 0\.5 is no whole number"),
        ((GREY, np.array([0, 1, None, 2, 3, 4], object)), "label number 2 is None"),
        ((GREY, ["a", "b", "c", "a", "b", 1][:0]), r"labels have shape \(0,\)"),
        ({"images": GREY, "labels": "abcdef"}, "labels have shape"),
    ],
)
def test_what_is_wrong_with_a_pair(source, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(source)


def test_one_hot_rows_as_the_message_says():
    assert load((COLOUR, np.eye(6)[Y].argmax(axis=1))).labels.tolist() == Y.tolist()


# ---- lists and what is like one --------------------------------------------------------------------------------------


class Numbered:
    """A data set as torch.utils.data has it: a length, and items by number."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.item(i)


def row(i):
    return {"image": Image.fromarray(COLOUR[i]), "label": int(Y[i]), "text": f"number {i}"}


@pytest.mark.parametrize(
    "source",
    [
        lambda: ((Image.fromarray(image), int(y)) for image, y in zip(COLOUR, Y, strict=True)),
        lambda: zip(COLOUR, Y, strict=True),
        lambda: iter([(image, y) for image, y in zip(COLOUR, Y, strict=True)]),
        lambda: Numbered(lambda i: (Image.fromarray(COLOUR[i]), Y[i])),
        lambda: Numbered(lambda i: (COLOUR[i], np.int8(Y[i]))),
        lambda: Numbered(row),
        lambda: [row(i) for i in range(6)],
        lambda: map(row, range(6)),
    ],
)
def test_whatever_can_be_gone_through_is_a_list(source):
    dataset = load(source())
    np.testing.assert_array_equal(dataset.images, COLOUR)
    assert dataset.labels.tolist() == Y.tolist()


def test_rows_bring_their_captions():
    assert load(map(row, range(6))).captions == tuple((f"number {i}",) for i in range(6))
    with pytest.raises(ValueError, match="some rows have 'label', and others do not"):
        load([row(0), {"image": GREY[0]}])
    with pytest.raises(ValueError, match="beside rows that bring their own"):
        load([row(0)], labels=[1])


def test_captions_of_images_of_several_sizes():
    images = [Image.fromarray(COLOUR[0]), Image.fromarray(COLOUR[1]).resize((20, 30))]
    dataset = load(images, captions=["one", ["two", "more"]], size=8)
    assert dataset.captions == (("one",), ("two", "more"))
    with pytest.raises(ValueError, match="there are 3 captions for 2 images"):
        load(images, captions=["a", "b", "c"])


def test_a_generator_without_an_end_comes_to_one():
    with pytest.raises(ValueError, match=r"the first [\d,]+ images would take .* above the limit of 0.001 GiB"):
        load(itertools.repeat(COLOUR[0]), limit=0.001)


def test_arrays_of_objects_are_lists():
    ragged = np.empty(2, object)
    ragged[:] = [COLOUR[0], COLOUR[1][:, :8]]
    assert load(ragged, size=8).shape == (8, 8, 3)


def test_training_on_a_generator():
    run = pydiff.train(
        ((image, y) for image, y in zip(COLOUR, Y, strict=True)), size=8, steps=1, batch_size=2, channels=(8, 8),
        groups=4, sample_every=0, progress=False, conditional=True,
    )  # fmt: skip
    assert run.classes == ["0", "1", "2"]


# ---- arrays that are not plain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        lambda m: m,
        lambda m: {"images": m},
        lambda m: (m[..., None], Y),
        lambda m: list(m),
        lambda m: [m[0], m[1][:, :8]],
        lambda m: (image for image in m),
    ],
)
def test_masks_are_never_dropped(source):
    masked = np.ma.masked_array(GREY, GREY > 100)
    with pytest.raises(ValueError, match=r"masked values, which are none; fill them with \.filled\(0\)"):
        load(source(masked))
    assert len(load(source(masked.filled(0)))) >= 2
    assert len(load(source(np.ma.masked_array(GREY)))) >= 2


def test_masked_labels_are_none():
    with pytest.raises(ValueError, match="labels are a masked array"):
        load(GREY, labels=np.ma.masked_array(Y, Y > 1))
    with pytest.raises(ValueError, match="are a masked array"):
        Dataset("x", np.ma.masked_array(COLOUR, COLOUR > 5))


@pytest.mark.parametrize("dtype", ["u2", "f2", "f4", "f8"])
def test_bytes_in_another_order(dtype, tmp_path):
    native = GREY.astype(dtype) if dtype == "u2" else (GREY / 255).astype(dtype)
    swapped = native.astype(native.dtype.newbyteorder("S"))
    np.testing.assert_array_equal(load(swapped).images, load(native).images)
    np.savez(tmp_path / "a.npz", images=swapped, labels=Y.astype(">i4"))
    found = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.images, load(native).images)
    assert found.labels.tolist() == Y.tolist()


@pytest.mark.parametrize("images", [GREY.astype(complex), GREY.astype("S3"), np.zeros((2, 4, 4), "M8[s]")])
def test_what_is_no_number_gets_no_advice_on_numbers(images):
    with pytest.raises(ValueError, match="give an array of such numbers"):
        load(images)


def test_bits_that_change_nothing_are_said(tmp_path):
    assert any("bits=12 changes nothing" in note for note in load(GREY, bits=12).notes)
    assert any("bits=12 changes nothing" in note for note in load(GREY / 255, bits=12).notes)
    Image.fromarray(GREY[0]).save(tmp_path / "a.png")
    assert any("bits=12 changes nothing" in note for note in load(tmp_path, bits=12).notes)


def test_tensors_of_pytorch():
    torch = import_torch()
    x = torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy())
    for source in (x, [*x], (x, torch.from_numpy(Y)), (x.float() / 255).requires_grad_(), {"images": x}):
        np.testing.assert_array_equal(load(source).images, COLOUR)
    with pytest.raises(TypeError, match=r"bfloat16, which NumPy does not know; convert them with \.float\(\)"):
        load(x.bfloat16())
    several = torch.utils.data.TensorDataset(x, torch.from_numpy(Y))
    assert load(several).labels.tolist() == Y.tolist()


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_names_of_classes_in_an_npz(tmp_path):
    for key in ("classes", "class_names", "label_names"):
        np.savez(tmp_path / "a.npz", images=GREY, labels=Y, **{key: np.array(["cat", "ant", "bee"])})
        dataset = load(tmp_path / "a.npz")
        assert [dataset.classes[i] for i in dataset.labels] == ["bee", "cat", "ant", "bee", "cat", "ant"]
        assert f"the classes are called what '{key}' says" in dataset.notes
    for names in (np.array(["a", "b"]), np.array([1, 2, 3]), np.array(["a", "a", "b"])):
        dataset = load({"images": GREY, "labels": Y, "classes": names})
        assert dataset.classes == ["0", "1", "2"]
        assert any("not used: 'classes'" in note for note in dataset.notes)


def test_labels_of_objects():
    assert class_labels(np.array(["b", "a"], object), 2)[1] == ["a", "b"]
    assert class_labels(np.array([np.int64(7), 3], object), 2)[1] == ["3", "7"]
    with pytest.raises(ValueError, match="the labels are int, str; give all integers or all strings"):
        class_labels(np.array(["a", 3], object), 2)
    for labels in ({1, 2}, "ab"):
        with pytest.raises(ValueError, match="expected a list or an array with one for each image"):
            class_labels(labels, 2)


def test_rows_of_different_lengths():
    with pytest.raises(ValueError, match="rows of different lengths"):
        as_array([[1, 2], [3]])


# ---- paths that are none ---------------------------------------------------------------------------------------------


def test_a_name_that_is_empty_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(GREY[0]).save("a.png")
    with pytest.raises(ValueError, match="the name of the data is empty"):
        load("")


def test_an_address_is_shown_as_it_was_written():
    with pytest.raises(ValueError, match=r"'https://example\.org/a\.zip' is an address; fetch what is there"):
        load("https://example.org/a.zip")
