"""The safetensors writer and reader: right files come back bit for bit, any other is one CheckpointError."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.safetensors import CheckpointError
from tests.stress import checkpoint_faults as faults
from tests.stress import checkpoint_fuzz


def view(data):
    return np.frombuffer(bytearray(data), np.uint8)


def build(header, data=b""):
    """A file with any header, right or wrong."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


arrays_of_any_kind = hnp.arrays(
    st.sampled_from([np.dtype(t) for t in (*tensorfile.EXACT.values(), ">f4", ">i8")]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    elements={"allow_nan": True},
).flatmap(lambda a: st.sampled_from([a, a.T, a[..., ::-1] if a.ndim else a, np.stack([a, a], -1)[..., 0]]))
names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
groups = st.dictionaries(names, arrays_of_any_kind, max_size=4)


@given(arrays=groups)
def test_encoded_arrays_come_back_bit_for_bit(arrays):
    data = tensorfile.encode(arrays)
    loaded = tensorfile.decode(view(data), "file")
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"))  # the bits of a big-endian array change, its values do not
        assert (loaded[name].dtype, loaded[name].shape) == (little.dtype, array.shape)
        assert loaded[name].tobytes() == little.tobytes()
        assert loaded[name].flags.writeable
        assert loaded[name].flags.aligned
    assert faults.same(loaded, safetensors.numpy.load(data))
    assert tensorfile.encode(dict(reversed(arrays.items()))) == data


@given(arrays=groups)
def test_a_file_in_pieces_has_the_same_bytes(arrays):
    assert b"".join(map(bytes, tensorfile.pieces(arrays))) == tensorfile.encode(arrays)
    made = {n: tensorfile.Made(a.shape, lambda a=a: a, a.dtype) for n, a in arrays.items()}
    assert b"".join(map(bytes, tensorfile.pieces(made, metadata={"format": "pt"}))) == tensorfile.encode(
        arrays, {"format": "pt"}
    )


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_rounding_to_half_is_that_of_others(kind):
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.append(
        values[np.isnan(values) | (np.abs(values) < 65000)], np.float32([0.0, -0.0, 1.00390625, 65504.0])
    )
    data = b"".join(map(bytes, tensorfile.pieces({"a": values}, kind)))
    found = tensorfile.decode(view(data), "file")["a"]
    if kind == "F16":
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16).astype(np.float32)
    else:
        torch = pytest.importorskip("torch", reason="comparison with torch: not installed")
        expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    with pytest.raises(ValueError, match="beyond float16's 65504; save it as bfloat16"):
        b"".join(map(bytes, tensorfile.pieces({"a": np.float32([1e6])}, "F16")))


def test_integers_of_others_are_read():
    for kind, dtype in (("U16", "<u2"), ("U64", "<u8")):
        header = {"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * np.dtype(dtype).itemsize]}}
        data = view(build(header, np.array([1, 65535], dtype).tobytes()))
        assert tensorfile.decode(data, "file")["a"].tolist() == [1, 65535]


@pytest.mark.parametrize("dtype", [">f4", "<f2", "c8", "u2", "O", "M8[s]"])
def test_a_dtype_that_would_come_back_changed_is_refused(dtype):
    if dtype == ">f4":  # this one is only reordered
        assert tensorfile.decode(view(tensorfile.encode({"a": np.array([1.5], dtype)})), "file")["a"][0] == 1.5
    else:
        with pytest.raises(TypeError, match="cast it first"):
            tensorfile.encode({"a": np.zeros(2, dtype)})


@pytest.mark.parametrize(
    "arrays", [{"__metadata__": np.zeros(1)}, {"\ud800": np.zeros(1)}, {1: np.zeros(1)}, {"a": 1.0}]
)
def test_names_and_values_that_are_no_arrays_are_refused(arrays):
    with pytest.raises(TypeError, match=r"rename it|convert it"):
        tensorfile.encode(arrays)


def test_half_precision_of_others_is_read_as_float32():
    values = np.array([0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8, np.inf, np.nan], np.float16)
    data = view(safetensors.numpy.save({"a": values}))
    assert tensorfile.decode(data, "file")["a"].tobytes() == values.astype(np.float32).tobytes()
    bits = np.array([0x0000, 0x8000, 0x3F80, 0x7F80, 0x7FC1, 0x0001], np.uint16)
    header = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    (array,) = tensorfile.decode(view(build(header, bits.tobytes())), "file").values()
    assert (array.dtype, array.shape) == (np.float32, (2, 3))
    assert array.ravel().view(np.uint32).tolist() == [int(b) << 16 for b in bits]


def test_arrays_behind_a_header_of_odd_length_are_aligned():
    header = json.dumps({"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}).encode()
    for spaces in range(8):
        data = build(header + b" " * spaces, np.array([1.5, -2.0]).tobytes())
        array = tensorfile.decode(view(data), "file")["a"]
        assert array.tolist() == [1.5, -2.0]
        assert array.flags.aligned


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_FILES = {
    "empty": b"",
    "seven bytes": bytes(7),
    "length beyond the file": build({"a": F32}, bytes(8))[:-40],
    "length of 2^64 - 1": b"\xff" * 8 + bytes(100),
    "a header too long": build(b"{" + b" " * tensorfile.MAX_HEADER + b"}"),
    "no JSON": build(b"hello"),
    "no UTF-8": build(b'{"\xff": 1}'),
    "half a surrogate pair": build(b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
    "a list": build([]),
    "nested too deep": build(b"[" * 100000),
    "nested too deep in an object": build(b'{"a":' * 100000),
    "a number of 5000 digits": build(b'{"a": ' + b"9" * 5000 + b"}"),
    "NaN": build(b'{"a": NaN}'),
    "the same name twice": build(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "metadata that is a list": build({"__metadata__": []}),
    "metadata that is not text": build({"__metadata__": {"a": 1}}),
    "an entry that is a number": build({"a": 1}),
    "an entry with a key more": build({"a": {**F32, "more": 1}}, bytes(8)),
    "an unknown dtype": build({"a": {**F32, "dtype": "F8_E4M3"}}, bytes(8)),
    "a dtype that is a list": build({"a": {**F32, "dtype": []}}, bytes(8)),
    "a shape that is a number": build({"a": {**F32, "shape": 2}}, bytes(8)),
    "a negative size": build({"a": {**F32, "shape": [-1, -2]}}, bytes(8)),
    "a size that is a float": build({"a": {**F32, "shape": [2.0]}}, bytes(8)),
    "a size that is true": build({"a": {**F32, "shape": [2, True]}}, bytes(8)),
    "65 dimensions": build({"a": {**F32, "shape": [2] + [1] * 64}}, bytes(8)),
    "three offsets": build({"a": {**F32, "data_offsets": [0, 8, 8]}}, bytes(8)),
    "a negative offset": build({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
    "offsets the wrong way": build({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    "a shape larger than its bytes": build({"a": {**F32, "shape": [3]}}, bytes(8)),
    "a shape of 2^62": build({"a": {**F32, "shape": [1 << 62]}}, bytes(8)),
    "sizes whose product overflows to 2": build({"a": {**F32, "shape": [1 << 62, 1 << 62, 2]}}, bytes(8)),
    "an empty array of 0 x 2^62 x 2^62": build({"a": {**F32, "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}),
    "data cut off": build({"a": F32}, bytes(7)),
    "data left over": build({"a": F32}, bytes(9)),
    "a gap": build({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, bytes(24)),
    "an overlap": build({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    "a boolean of 2": build({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x02"),
}
# Where two checks would refuse a file, the one that is meant to: what comes before is what keeps time and memory small.
REASONS = {
    "length beyond the file": "expected at most 29",
    "NaN": "NaN is not JSON",
    "65 dimensions": "not sizes",
    "a negative size": "not sizes",
    "a negative offset": "not sizes",
    "a shape larger than its bytes": "spans 8 bytes, its shape needs 12",
    "a shape of 2^62": "its shape needs 18446744073709551616",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_malformed_file_is_one_sentence(name):
    with pytest.raises(CheckpointError, match=REASONS.get(name)) as error:
        tensorfile.decode(view(BAD_FILES[name]), "some/file")
    assert str(error.value).startswith("some/file")
    assert str(error.value).endswith(".")
    assert len(str(error.value)) < 300
    assert str(error.value).isascii()


def test_fuzzed_files_raise_nothing_else():
    result = checkpoint_fuzz.run(count=2000, seed=1)
    assert result["other_exceptions"] == []
    assert result["disagreements_with_safetensors"] == 0
    assert result["refused"] > 1000
    assert result["accepted"] > 100


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"\xf0\x9f\x98\x80a",'])
def test_the_worst_headers_take_little_memory(filler):
    room = tensorfile.MAX_HEADER - 10
    data = view(build(b'{"a":[' + filler * (room // len(filler)) + b"0]}"))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            tensorfile.decode(data, "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * data.size + (64 << 20)


def test_what_could_not_be_read_again_is_refused_when_encoding():
    with pytest.raises(ValueError, match="use groups"):
        tensorfile.encode({"n" * 1000 + str(i): np.zeros(0) for i in range(2100)})
    with pytest.raises(ValueError, match="at most one"):
        tensorfile.encode({}, {"format": "pt", "more": "x"})
