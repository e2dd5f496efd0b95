"""PyTorch's own files: right ones are read as PyTorch reads them, and nothing that others name is called."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff.formats import pytorch
from pydiff.formats.files import RegularFile
from pydiff.formats.pytorch import Machine
from pydiff.formats.safetensors import CheckpointError


class Rebuilt:
    """Pickles as a tensor does: a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, key, kind, count, shape, strides, offset=0, view=None):
        self.storage = (key, kind, count, *(() if view is None else (view,)))
        self.rest = (offset, shape, strides, False, {})


class Storage:
    def __init__(self, *found):
        self.found = found


class Writer(pickle._Pickler):  # the one in Python: it can be told how to write a name that does not exist here
    views = ()  # what PyTorch before 1.6 says of a storage besides: (None,) where it is whole

    def persistent_id(self, value):
        if isinstance(value, Storage):
            key, kind, count, *view = value.found
            return ("storage", Name("torch", kind), key, "cpu", count, *(view or self.views))
        return None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Rebuilt):
            self.save(Name("torch._utils", "_rebuild_tensor_v2"))
            self.save((Storage(*value.storage), *value.rest))
            self.write(pickle.REDUCE)
        elif isinstance(value, Called):
            self.save(value.name)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


class Name:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Called:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


def pickled(value, protocol=2, views=()):
    stream = io.BytesIO()
    writer = Writer(stream, protocol)
    writer.views = views
    writer.dump(value)
    return stream.getvalue()


def archive_bytes(program, blocks=(), compression=zipfile.ZIP_STORED, more=()):
    """A file as PyTorch since 1.6 writes it. blocks: {key: bytes}; more: {name: bytes}."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for key, data in dict(blocks).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in dict(more).items():
            file.writestr(name, data)
    return stream.getvalue()


def archive(path, *arguments, **options):
    path.write_bytes(archive_bytes(*arguments, **options))
    return path


def read(path):
    with RegularFile(path) as file:
        return {name: weight.read() for name, weight in pytorch.contents(file, path).items()}


NUMBERS = np.arange(12, dtype="<f4")
GOOD = {"a": Rebuilt("0", "FloatStorage", 12, (3, 4), (4, 1)), "b": Rebuilt("0", "FloatStorage", 12, (4, 3), (1, 4))}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_views_of_storages(tmp_path, protocol):
    path = archive(tmp_path / "a.bin", pickled(GOOD, protocol), {"0": NUMBERS.tobytes()})
    found = read(path)
    assert np.array_equal(found["a"], NUMBERS.reshape(3, 4))
    assert np.array_equal(found["b"], NUMBERS.reshape(3, 4).T)
    assert all(array.flags.writeable for array in found.values())
    nested = archive(tmp_path / "b.bin", pickled({"state_dict": GOOD, "global_step": 3}), {"0": NUMBERS.tobytes()})
    assert read(nested).keys() == found.keys()


def test_what_torch_saves_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch", reason="comparison with torch: not installed")
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(5, 6)).state_dict()
    whole = torch.randn(10, 4)
    state |= {"turned": whole.t(), "part": whole[2:5, 1:], "scalar": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "half": torch.randn(5).half()}
    state |= {"brain": torch.randn(5).bfloat16(), "double": torch.randn(5).double(), "whole": torch.arange(4)}
    state |= {"small": torch.arange(4, dtype=torch.int8), "truth": torch.tensor([True, False])}
    torch.save(state, tmp_path / "a.bin")
    found = read(tmp_path / "a.bin")
    assert found.keys() == state.keys()
    for name, value in state.items():
        value = value.detach()
        expected = (value.float() if value.dtype in (torch.half, torch.bfloat16) else value).numpy()
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
        assert found[name].tobytes() == np.ascontiguousarray(expected).tobytes()
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    old = read(tmp_path / "old.bin")
    assert list(old) == list(found)
    assert all(old[n].dtype == found[n].dtype and old[n].tobytes() == found[n].tobytes() for n in found)


def old_bytes(found, blocks, version=1001, keys=None, magic=pytorch.MAGIC):
    """A file as PyTorch before 1.6 writes it. blocks: {key: (how many numbers, bytes)}."""
    machine = {"protocol_version": version, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [magic, version, machine, found, list(blocks) if keys is None else keys]
    data = [count.to_bytes(8, "little") + numbers for count, numbers in blocks.values()]
    return b"".join([*(pickled(part, views=(None,)) for part in parts), *data])


def old_file(path, *arguments, **options):
    path.write_bytes(old_bytes(*arguments, **options))
    return path


def test_files_from_before_pytorch_1_6(tmp_path):
    blocks = {"94551": (12, NUMBERS.tobytes()), "7": (3, np.arange(3, dtype="<i8").tobytes())}
    state = {
        "a": Rebuilt("94551", "FloatStorage", 12, (3, 4), (4, 1)),
        "part": Rebuilt("94551", "FloatStorage", 12, (2, 2), (2, 1), offset=1, view=("8", 3, 6)),
        "first": Called(Name("torch._utils", "_rebuild_tensor"), Storage("94551", "FloatStorage", 12), 2, (3,), (1,)),
        "n": Rebuilt("7", "LongStorage", 3, (3,), (1,)),
    }
    found = read(old_file(tmp_path / "a.bin", state, blocks))
    assert np.array_equal(found["a"], NUMBERS.reshape(3, 4))
    assert np.array_equal(found["part"], NUMBERS[4:8].reshape(2, 2))
    assert np.array_equal(found["first"], NUMBERS[2:5])
    assert np.array_equal(found["n"], [0, 1, 2])
    torch = pytest.importorskip("torch", reason="comparison with torch: not installed")
    theirs = torch.load(tmp_path / "a.bin", weights_only=False)
    assert all(np.array_equal(theirs[name].numpy(), found[name]) for name in found)


def test_files_from_before_pytorch_1_6_that_lie(tmp_path):
    good, blocks = {"a": Rebuilt("0", "FloatStorage", 12, (3, 4), (4, 1))}, {"0": (12, NUMBERS.tobytes())}
    part = {"a": Rebuilt("0", "FloatStorage", 12, (4,), (1,), view=("1", 10, 4))}
    cases = [
        (good, {"0": (1 << 60, NUMBERS.tobytes())}, {}, "ends behind the end of the file"),
        (good, {"0": (11, NUMBERS.tobytes())}, {}, "more than its 44 bytes hold"),
        (good, blocks, {"version": 1000}, "is of version 1000, expected 1001"),
        (good, blocks, {"keys": ["0", "0"]}, "the list of its blocks makes no sense"),
        (good, blocks, {"keys": ["0", "9"]}, "'9' belongs to no tensor"),
        (good, blocks, {"keys": []}, "the numbers of 'a' are missing"),
        (good, {"0": (12, b"")}, {}, "ends behind the end"),
        ({**good, "b": Rebuilt("1", "FloatStorage", 1, (1,), (1,))}, blocks, {"keys": ["0", "1"]}, "before its last"),
        (part, blocks, {}, "more than its 48 bytes hold"),
        (good, blocks, {"magic": 7}, "is no file that PyTorch writes"),
    ]
    for found, data, options, message in cases:
        with pytest.raises(CheckpointError, match=message):
            read(old_file(tmp_path / "a.bin", found, data, **options))
    whole = old_file(tmp_path / "a.bin", good, blocks).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "a.bin").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(bytes(257) + b"ustar" + bytes(300))
    with pytest.raises(CheckpointError, match=r"PyTorch 0\.1 wrote: convert it with torch\.save"):
        read(tmp_path / "a.bin")


def test_numbers_of_a_big_endian_machine(tmp_path):
    state = {
        "a": Rebuilt("0", "FloatStorage", 12, (4, 3), (1, 4)),
        "brain": Rebuilt("1", "BFloat16Storage", 2, (2,), (1,)),
        "half": Rebuilt("2", "HalfStorage", 2, (2,), (1,)),
        "n": Rebuilt("3", "LongStorage", 2, (2,), (1,)),
    }
    blocks = {
        "0": NUMBERS.astype(">f4").tobytes(),
        "1": b"\x3f\x80\xc0\x00",
        "2": np.array([1.5, -2], ">f2").tobytes(),
        "3": np.array([7, -1], ">i8").tobytes(),
    }
    found = read(archive(tmp_path / "a.bin", pickled(state), blocks, more={"archive/byteorder": b"big"}))
    assert np.array_equal(found["a"], NUMBERS.reshape(3, 4).T)
    assert np.array_equal(found["brain"], [1, -2])
    assert np.array_equal(found["half"], [1.5, -2])
    assert np.array_equal(found["n"], [7, -1])
    assert all(array.dtype.isnative for array in found.values())
    with pytest.raises(CheckpointError, match="its byte order is b'middle'"):
        read(archive(tmp_path / "b.bin", pickled(state), blocks, more={"archive/byteorder": b"middle"}))


DANGEROUS = {
    "os.system": Called(Name("os", "system"), "touch MARK"),
    "posix.system": Called(Name("posix", "system"), "touch MARK"),
    "eval": Called(Name("builtins", "eval"), "open('MARK', 'w')"),
    "exec of Python 2": Called(Name("__builtin__", "exec"), "open('MARK', 'w')"),
    "subprocess": Called(Name("subprocess", "check_output"), ["touch", "MARK"]),
    "getattr": Called(Name("builtins", "getattr"), Name("os", "system"), "x"),
    "torch.load": Called(Name("torch", "load"), "MARK"),
    "a class of ours": Called(Name("pydiff.run", "load"), "MARK"),
    "an inner name": Called(Name("torch._utils", "_rebuild_tensor_v2.__globals__"), 1),
}


@pytest.mark.parametrize("name", DANGEROUS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_that_a_pickle_names_is_called(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    seen = []
    watched = ("exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "import", "os.posix_spawn")
    armed = True

    def hook(event, arguments):
        if armed and event in watched:
            seen.append((event, arguments))

    program = pickled({"a": DANGEROUS[name]}, protocol)
    path = archive(tmp_path / "a.bin", program)
    with RegularFile(path) as file:
        sys.addaudithook(hook)
        try:
            with pytest.raises(
                CheckpointError, match="which no state dict needs and which is not called: do not trust"
            ):
                pytorch.contents(file, path)
        finally:
            armed = False
    assert seen == []
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02ios\nsystem\n.",  # INST
        b"\x80\x02}(U\x01aos\nsystem\nb.",
        b"\x80\x02(cos\nsystem\nU\x02lso.",  # OBJ
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02P1\n.",  # PERSID
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x02",
        b"",
        b".",
        b"\x80\x02(.",
        b"\x80\x02t.",
        b"\x80\x02R.",
        b"\x80\x02}U\x01a.",
        b"\x80\x02h\x05.",
        b"\x80\x02}}Ks.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02L" + b"9" * 5000 + b"L\n.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02)Q.",
        b"\x80\x02K\x01.",
        b"\x80\x02}K\x01K\x02s.",
    ],
)
def test_programs_that_make_no_state_dict(tmp_path, program):
    path = archive(tmp_path / "a.bin", program)
    with pytest.raises(CheckpointError) as found:
        read(path)
    assert "\n" not in str(found.value)


LYING = {
    "more numbers than the storage": Rebuilt("0", "FloatStorage", 12, (5, 4), (4, 1)),
    "an offset behind the end": Rebuilt("0", "FloatStorage", 12, (2,), (1,), offset=11),
    "a storage larger than its bytes": Rebuilt("0", "FloatStorage", 1 << 40, (1 << 40,), (1,)),
    "a number repeated for ever": Rebuilt("0", "FloatStorage", 12, (1 << 40,), (0,)),
    "overlapping rows": Rebuilt("0", "FloatStorage", 12, (1 << 20, 2), (1, 1)),
    "a negative stride": Rebuilt("0", "FloatStorage", 12, (2,), (-1,)),
    "a negative size": Rebuilt("0", "FloatStorage", 12, (-2,), (1,)),
    "a size that is text": Rebuilt("0", "FloatStorage", 12, ("2",), (1,)),
    "fewer strides than sizes": Rebuilt("0", "FloatStorage", 12, (2, 2), (1,)),
    "no numbers and 2^61 rows": Rebuilt("0", "FloatStorage", 12, (0, 1 << 61, 3), (1, 1, 1)),
    "no halves and 2^61 rows": Rebuilt("0", "HalfStorage", 12, (0, 1 << 61), (1, 1)),
    "no bfloat16s and 2^61 rows": Rebuilt("0", "BFloat16Storage", 12, (0, 1 << 61), (1, 1)),
    "a row of 2^61 bfloat16s, none times": Rebuilt("0", "BFloat16Storage", 12, (1, 0, 1 << 61), (0, 1, 1), offset=2),
    "70 axes": Rebuilt("0", "FloatStorage", 12, (1,) * 70, (1,) * 70),
    "a key that leaves the archive": Rebuilt("../../etc/passwd", "FloatStorage", 12, (3, 4), (4, 1)),
    "a key that is missing": Rebuilt("7", "FloatStorage", 12, (3, 4), (4, 1)),
    "an unknown storage": Rebuilt("0", "ComplexFloatStorage", 12, (3, 4), (4, 1)),
}


@pytest.mark.parametrize("name", LYING)
def test_sizes_are_compared_with_the_bytes_before_anything_is_allocated(tmp_path, name):
    path = archive(tmp_path / "a.bin", pickled({"a": LYING[name]}), {"0": NUMBERS.tobytes()})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_archives_that_pytorch_never_writes(tmp_path):
    blocks = {"0": NUMBERS.tobytes()}
    bomb = archive(tmp_path / "bomb.bin", b"\0" * (64 << 20), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed, which PyTorch never does"):
        read(bomb)
    with pytest.raises(CheckpointError, match="has 2 pickles"):
        read(archive(tmp_path / "two.bin", pickled(GOOD), blocks, more={"other/data.pkl": pickled(GOOD)}))
    with pytest.raises(CheckpointError, match="holds 'a', which is no tensor"):
        read(archive(tmp_path / "number.bin", pickled({"a": 1}), blocks))
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read(archive(tmp_path / "list.bin", pickled([1]), blocks))
    (tmp_path / "text.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="is no file that PyTorch writes"):
        read(tmp_path / "text.bin")


def test_no_cut_and_no_flipped_bit_of_the_frame_raises_anything_else(tmp_path):
    path = archive(tmp_path / "a.bin", pickled(GOOD), {"0": NUMBERS.tobytes()})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(path)
    refused = 0
    for bit in range(0, len(whole) * 8, 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            read(path)
        except CheckpointError:
            refused += 1
    assert refused > 500


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([bytes([b]) for b in range(256)]),
            st.sampled_from(
                [b"(", b"}", b")", b"]", b"u", b"s", b"e", b"t", b"R", b"Q", b"b", b"a", b"\x85", b"\x86", b"0"]
            ),
            st.sampled_from([b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"X\1\0\0\0a"]),
            st.sampled_from([b"ccollections\nOrderedDict\n", b"K\1", b"q\0", b"h\0", b"cos\nsystem\n"]),
            st.binary(max_size=4),
            st.integers(0, 1 << 31).map(lambda n: b"J" + struct.pack("<I", n)),
        ),
        max_size=30,
    )
)
def test_any_program_ends_in_values_or_one_error(parts):
    try:
        Machine("file").run(b"\x80\x02" + b"".join(parts) + b".")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("stride", [7, 2**40, 2**61])
def test_the_stride_of_an_axis_of_one_is_of_no_matter(tmp_path, stride):
    """Files may say any number there, also one that is too large for NumPy."""
    block = np.arange(12, dtype="<f8").tobytes()
    state = {"w": Rebuilt("0", "DoubleStorage", 12, (1, 3, 1), (stride, 2, stride), 1)}
    path = archive(tmp_path / "a.pt", pickled(state), {"0": block})
    np.testing.assert_array_equal(read(path)["w"], [[[1.0], [3.0], [5.0]]])
