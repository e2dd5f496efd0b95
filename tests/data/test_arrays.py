"""Arrays, .npy and .npz: layouts, value ranges, labels, and files that are damaged or hostile."""

import contextlib
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.data import load, to_uint8
from pydiff.data.arrays import read_npy, read_npz

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "expected", "layout"),
    [
        ((5, 6, 7), (5, 6, 7, 1), "(N, H, W)"),
        ((5, 6, 7, 1), (5, 6, 7, 1), "(N, H, W, C)"),
        ((5, 6, 7, 4), (5, 6, 7, 4), "(N, H, W, C)"),
        ((5, 1, 6, 7), (5, 6, 7, 1), "(N, C, H, W)"),
        ((5, 3, 6, 7), (5, 6, 7, 3), "(N, C, H, W)"),
        ((5, 3, 6, 3), (5, 3, 6, 3), "(N, H, W, C)"),
        ((5, 16, 17, 9), (5, 16, 17, 9), "(N, H, W, C)"),
        ((5, 9, 16, 17), (5, 9, 16, 17), "(N, H, W, C)"),  # nothing says otherwise
        ((5, 9, 16, 16), (5, 16, 16, 9), "(N, C, H, W)"),  # squares
        ((12, 8, 8, 64), (12, 8, 8, 64), "(N, H, W, C)"),
        ((5, 8, 8, 8), (5, 8, 8, 8), "(N, H, W, C)"),
        ((1, 1, 1), (1, 1, 1, 1), "(N, H, W)"),
    ],
)
def test_layouts(shape, expected, layout):
    source = RNG.integers(0, 256, shape, dtype=np.uint8)
    dataset = load(source)
    assert dataset.images.shape == expected
    few = len(shape) == 3 or (shape[1] in (1, 3, 4)) != (shape[3] in (1, 3, 4))
    other = "NHWC" if layout == "(N, C, H, W)" else "NCHW"
    doubt = "" if few else f" (layout={other!r} for the other way)"
    assert dataset.notes == [f"array {shape} read as {layout}{doubt}"]
    if layout == "(N, C, H, W)":
        np.testing.assert_array_equal(dataset.images, source.transpose(0, 2, 3, 1))
    else:
        np.testing.assert_array_equal(dataset.images.ravel(), source.ravel())


@pytest.mark.parametrize("shape", [(), (5,), (0, 6, 7), (5, 0, 7, 3), (5, 6, 7, 0), (5, 0, 2, 2, 3)])
def test_impossible_shapes(shape):
    with pytest.raises(ValueError, match="images have shape"):
        load(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lowest", [0, -1])
def test_8_bit_images_stored_as_floats_come_back_exactly(dtype, lowest):
    floats = PIXELS.astype(dtype) / 255 if lowest == 0 else PIXELS.astype(dtype) / 127.5 - 1
    dataset = load(floats)
    assert dataset.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.images, PIXELS)
    assert f"range [{lowest}, 1], all on 8-bit grey levels" in dataset.summary()


def test_float32_cast_to_float64_is_still_8_bit():
    assert load((PIXELS / np.float32(255)).astype(np.float64)).images.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("lowest", [0, -1])
def test_finer_floats_are_kept(dtype, lowest):
    floats = RNG.uniform(lowest, 1, (5, 6, 7, 3)).astype(dtype)
    dataset = load(floats)
    assert dataset.images.dtype == np.float32
    expected = floats.astype(np.float64) * (2 if lowest == 0 else 1) - (1 if lowest == 0 else 0)
    np.testing.assert_allclose(dataset.images, expected, rtol=0, atol=1e-7)
    assert f"range [{lowest}, 1]" in dataset.summary()
    assert "8-bit" not in dataset.summary()


def test_rounding_beyond_the_ends_is_clipped():
    floats = RNG.uniform(0, 1, (2, 3, 3, 1))
    floats.flat[:2] = -1e-7, 1 + 1e-7
    images = load(floats).images
    assert images.min() == -1
    assert images.max() == 1


def test_booleans_are_black_and_white():
    mask = RNG.random((3, 4, 4)) < 0.5
    np.testing.assert_array_equal(load(mask).images[..., 0], np.where(mask, 255, 0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.astype(np.float32), "divide them by 255"),
        (np.linspace(-3, 3, 48).reshape(3, 4, 4), r"run from -3 to 3, expected \[0, 1\] or \[-1, 1\]"),
        (np.full((2, 3, 3), np.nan), "remove NaN"),
        (np.full((2, 3, 3), np.inf), "run from inf"),
        (PIXELS.astype(np.int64), "images are int64"),
        (PIXELS.astype(np.int32), "images are int32"),
        (PIXELS.astype(np.complex64), "images are complex64"),
        (np.array([[["a"]]]), "images are <U1"),
        (np.array([[[None]]]), "images are object"),
    ],
)
def test_impossible_values_say_what_to_do(images, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "ranks", "classes"),
    [
        ([0, 1, 2, 1, 0], [0, 1, 2, 1, 0], ["0", "1", "2"]),
        ([7, 3, 7, 3, 7], [1, 0, 1, 0, 1], ["3", "7"]),
        ([-1, 5, 10, 5, 5], [0, 1, 2, 1, 1], ["-1", "5", "10"]),
        ([[1], [0], [1], [0], [1]], [1, 0, 1, 0, 1], ["0", "1"]),
        (["dog", "cat", "dog", "ant", "cat"], [2, 1, 2, 0, 1], ["ant", "cat", "dog"]),
        ([b"b", b"a", b"b", b"b", b"b"], [1, 0, 1, 1, 1], ["a", "b"]),
        ([True, False, True, True, True], [1, 0, 1, 1, 1], ["False", "True"]),
    ],
)
def test_labels(labels, ranks, classes):
    dataset = load(PIXELS, labels=np.array(labels))
    assert dataset.labels.tolist() == ranks
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == classes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"expected \(5,\)"),
        (np.eye(5), r"argmax\(axis=1\)"),
        ([0.0, 1, 2, 3, 4], "labels are float64"),
        (np.array([None] * 5), "label number 0 is None"),
    ],
)
def test_impossible_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        load(PIXELS, labels=labels)


def test_the_source_array_is_neither_changed_nor_locked():
    source = PIXELS.copy()
    dataset = load(source)
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 0
    source[0] = 0  # the caller's own array stays writeable
    np.testing.assert_array_equal(source[1:], PIXELS[1:])


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x", "y"), ("X", "Y"), ("x_train", "y_train"), ("train_images", "train_labels")]
)
@pytest.mark.parametrize("compressed", [True, False])
def test_npz(tmp_path, keys, compressed):
    path = tmp_path / "set.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, **{keys[0]: PIXELS, keys[1]: np.arange(5) % 2, "meta": np.zeros(3)})
    dataset = load(path)
    np.testing.assert_array_equal(dataset.images, PIXELS)
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.name == "set.npz"


def test_npz_without_names_or_labels(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    assert load(tmp_path / "a.npz").labels is None
    np.savez(tmp_path / "b.npz", PIXELS, np.arange(5))
    assert load(str(tmp_path / "b.npz")).labels.tolist() == [0, 1, 2, 3, 4]


def test_an_mnist_file(tmp_path):
    train, test = RNG.integers(0, 256, (2, 50, 28, 28), dtype=np.uint8)
    labels = np.arange(50) % 10
    np.savez(tmp_path / "mnist.npz", x_test=test, x_train=train, y_train=labels, y_test=labels)
    dataset = load(tmp_path / "mnist.npz")
    np.testing.assert_array_equal(dataset.images[..., 0], train)
    assert dataset.classes == [str(digit) for digit in range(10)]


def test_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "a.npz", pixels=PIXELS, more=PIXELS, target=np.arange(5))
    with pytest.raises(ValueError, match=r"holds the arrays pixels, more, target, expected images under one of images"):
        load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(ValueError, match=r"holds the arrays \(none\)"):
        load(tmp_path / "empty.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<f8", "?"])
def test_npy(tmp_path, order, dtype):
    array = np.asarray(RNG.random((5, 6, 7)) < 0.5, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)
    np.testing.assert_array_equal(load(tmp_path / "a.npy").images, load(array).images)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle ran')",)


def test_pickles_are_never_opened(tmp_path):
    objects = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=objects)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "a.npz", "raw.npy", "raw.npz"):
        with pytest.raises(ValueError, match="cannot be read"):
            load(tmp_path / name)


def npy_bytes(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_header(text: str, data: bytes = b"") -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09",
        bytes(200),
        npy_bytes(PIXELS) + b"more",
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8)}", bytes(64)),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -64, 1)}", bytes(64)),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': 64}", bytes(64)),
        with_header("{'descr': '|u1', 'fortran_order': 2, 'shape': (64,)}", bytes(64)),
        with_header("{'descr': 'no such type', 'fortran_order': False, 'shape': (64,)}", bytes(64)),
        with_header("{'descr': '|u1', 'shape': (64,)}", bytes(64)),
        with_header("__import__('os').abort()", bytes(64)),
        with_header("[" * 100, bytes(64)),
    ],
)
def test_damaged_npy_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.npy cannot be read \(.*\); save it again with numpy.save$") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(ValueError, match=r"a.npz cannot be read \(.*\); save it again with numpy.savez$"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [True, False])
def test_every_cut_and_flipped_byte_of_an_npz_is_noticed_or_harmless(tmp_path, compressed):
    path = tmp_path / "a.npz"
    small = PIXELS[:2, :4, :4]
    (np.savez_compressed if compressed else np.savez)(path, images=small)
    content = path.read_bytes()
    for stop in range(len(content)):
        path.write_bytes(content[:stop])
        with pytest.raises(ValueError, match="cannot be read"):
            read_npz(path)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        with contextlib.suppress(ValueError):  # the one error type that is allowed
            for array in read_npz(path).values():  # read all the same: a date, a flag or a name carries no pixels
                np.testing.assert_array_equal(array, small)


@given(st.binary(max_size=300))
def test_random_bytes_never_do_worse_than_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("noise") / "a.npz"
    for body in (content, b"PK\x03\x04" + content, b"\x93NUMPY\x01\x00" + content):
        path.write_bytes(body)
        for read in (read_npy, read_npz):
            with pytest.raises(ValueError, match="cannot be read"):
                read(path)


def test_what_is_sampled_can_be_loaded_again():
    floats = RNG.uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(load(to_uint8(floats)).images, to_uint8(floats))
