"""Checkpoints: what was saved comes back bit for bit, or the load says why not; nothing that goes wrong costs the one before."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import checkpoint, sealed, tensorfile
from pydiff.checkpoint import CheckpointError

STRESS = Path(__file__).parent / "stress"
sys.path.insert(0, str(STRESS))
import checkpoint_faults as faults  # noqa: E402
import checkpoint_fuzz  # noqa: E402

CONFIG = {"sample_size": 8, "block_out_channels": [8, 16], "note": "µ"}


def save(directory, step, revision=0):
    return checkpoint.save(directory, step, *faults.contents(step, revision))


def save_model(directory, step=1):
    checkpoint.save_model(directory, CONFIG, faults.contents(step)[0]["model"], {"step": step})


def is_model(loaded, step=1):
    config, arrays, extra = loaded
    return config == CONFIG and faults.same(arrays, faults.contents(step)[0]["model"]) and extra == {"step": step}


def view(data):
    return np.frombuffer(bytearray(data), np.uint8)


def build(header, data=b""):
    """A file with any header, right or wrong."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


# ---------------------------------------------------------------------------------------------------------- round trips

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


def test_what_could_not_be_read_again_is_refused_when_saving(tmp_path):
    with pytest.raises(ValueError, match="use groups"):
        tensorfile.encode({"n" * 1000 + str(i): np.zeros(0) for i in range(2100)})
    with pytest.raises(ValueError, match="at most one"):
        tensorfile.encode({}, {"format": "pt", "more": "x"})
    for state in [{"a": (1, 2)}, {1: 2}, {"a": float("nan")}, {"a": np.int64(1)}, {"a": "\ud800"}, {1: 0, "1": 0}, [1]]:
        with pytest.raises(TypeError, match=r"JSON|expected a dict"):
            checkpoint.save(tmp_path / "c", 1, {}, state)
    for step in (-1, 1.0, True, "1", 1 << 63):
        with pytest.raises(ValueError, match="step"):
            checkpoint.save(tmp_path / "c", step, {}, {})
    for name in ("", "a/b", "..", "é", 1):
        with pytest.raises(ValueError, match="group"):
            checkpoint.save(tmp_path / "c", 1, {name: {}}, {})
    assert not (tmp_path / "c").exists()


@given(
    arrays=st.dictionaries(st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True), groups, max_size=3),
    state=st.dictionaries(names, st.recursive(st.none() | st.booleans() | st.integers() | names
                                             | st.floats(allow_nan=False, allow_infinity=False), st.lists), max_size=4),
)  # fmt: skip
def test_checkpoints_come_back_bit_for_bit(tmp_path_factory, arrays, state):
    directory = tmp_path_factory.mktemp("run")
    # A file system may ignore case.
    arrays = {name.lower(): group for name, group in arrays.items()}
    path = checkpoint.save(directory / "new", 7, arrays, state)
    loaded, loaded_state = checkpoint.load(path)
    expected = {k: {n: a.astype(a.dtype.newbyteorder("<")) for n, a in group.items()} for k, group in arrays.items()}
    assert faults.same(loaded, expected)
    assert json.dumps(loaded_state, sort_keys=True) == json.dumps(
        state, sort_keys=True
    )  # 1, 1.0 and True are different
    assert sorted(os.listdir(path)) == sorted(
        [*(f"{name}.safetensors" for name in arrays), "manifest.json", "state.json"]
    )
    assert os.listdir(directory / "new") == ["step-00000007"]


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


# ------------------------------------------------------------------------------------------------- files not to be trusted

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


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_malformed_file_is_one_sentence(name):
    with pytest.raises(CheckpointError) as error:
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


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'{"":0},', b"0.5,", b'"\xf0\x9f\x98\x80a",', b'"\\u0101",'])
def test_the_worst_headers_take_little_memory(filler):
    room = tensorfile.MAX_HEADER - 10
    data = view(build(b'{"a":[' + filler * (room // len(filler)) + b"0]}"))
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        tensorfile.decode(data, "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * data.size + (64 << 20)


# ---------------------------------------------------------------------------------------------------------------- damage


def damaged_copies(data, bits):
    """Every truncation of `data`, one byte more, and the given flipped bits."""
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_no_damage_is_silent(tmp_path, kind):
    rng = np.random.default_rng(0)
    if kind == "checkpoint":
        folder, load, seal = save(tmp_path, 3), checkpoint.load, checkpoint.MANIFEST
    else:
        save_model(tmp_path / "model")
        folder, load, seal = tmp_path / "model", checkpoint.load_model, checkpoint.SEAL
    files = {path: path.read_bytes() for path in folder.iterdir()}
    tried = 0
    for path, data in files.items():
        bits = range(len(data) * 8) if path.name == seal else rng.integers(len(data) * 8, size=1500)
        for copy in damaged_copies(data, bits):
            path.write_bytes(copy)
            with pytest.raises(CheckpointError):
                load(folder)
            tried += 1
        path.write_bytes(data)
    assert tried > 3000
    load(folder)


def test_removing_adding_or_renaming_a_file_is_noticed(tmp_path):
    folder = save(tmp_path, 3)
    names = sorted(os.listdir(folder))
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    for name in names:
        for change in ("remove", "rename", "exchange", "folder", "pipe"):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            match change:
                case "remove":
                    (copy / name).unlink()
                case "rename":
                    (copy / name).rename(copy / f"x{name}")
                case "exchange":
                    (copy / name).rename(copy / "aside")
                    (copy / names[names.index(name) - 1]).rename(copy / name)
                    (copy / "aside").rename(copy / names[names.index(name) - 1])
                case "folder":
                    (copy / name).unlink()
                    (copy / name).mkdir()
                case "pipe":
                    (copy / name).unlink()
                    os.mkfifo(copy / name)
            with pytest.raises(CheckpointError):
                checkpoint.load(copy)
            shutil.rmtree(copy)
    for name in ("ema.safetensors", "notes.txt", ".hidden", "sub"):
        (folder / name).mkdir()
        with pytest.raises(CheckpointError, match=rf"'{name}' is not in its seal"):
            checkpoint.load(folder)
        (folder / name).rmdir()
    assert faults.is_checkpoint(checkpoint.load(folder), 3)


def test_the_seal_of_another_kind_version_or_step_is_refused(tmp_path):
    folder = save(tmp_path, 3)
    with pytest.raises(CheckpointError, match="holds the checkpoint of step 3: give the folder its name back"):
        checkpoint.load(folder.rename(tmp_path / "step-00000004"))
    other = (tmp_path / "step-00000004").rename(tmp_path / "best")  # any other name is a copy somebody keeps
    assert faults.is_checkpoint(checkpoint.load(other), 3)
    manifest = other / checkpoint.MANIFEST
    for old, new, message in [
        ('"version": 1', '"version": 2', "version 2, expected 1"),
        ("checkpoint", "model", "kind"),
    ]:
        text = manifest.read_text()
        manifest.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(other)
        manifest.write_text(text)
    sealed.write(tmp_path / "x", tmp_path / "p", [("a.safetensors", b"")], checkpoint.MANIFEST, "pydiff checkpoint", {})
    with pytest.raises(CheckpointError, match=r"'state.json' is missing"):
        checkpoint.load(tmp_path / "x")
    files = [("a.pickle", b""), ("state.json", b"{}")]
    sealed.write(tmp_path / "x", tmp_path / "p", files, checkpoint.MANIFEST, "pydiff checkpoint", {})
    with pytest.raises(CheckpointError, match=r"a\.pickle"):
        checkpoint.load(tmp_path / "x")


# --------------------------------------------------------------------------------------------------- the newest valid one


def test_latest_is_the_newest_valid_one_and_says_what_it_passed_over(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    assert checkpoint.latest(tmp_path) is None
    paths = [save(tmp_path, step) for step in (9, 10, 100_000_000, 200_000_000)]  # longer names sort as numbers
    for other in ("step-1", "step-000000011x", "best", ".partial"):
        (tmp_path / other).mkdir()
    assert checkpoint.latest(tmp_path) == paths[3]
    (paths[3] / "state.json").write_bytes(b"{}")
    (paths[2] / checkpoint.MANIFEST).unlink()
    with pytest.warns(checkpoint.CheckpointWarning) as told:
        assert checkpoint.latest(tmp_path) == paths[1]
    assert [str(w.message).split(":")[0] for w in told] == [
        f"Passed over the checkpoint {p.name}" for p in paths[:1:-1]
    ]
    newest, passed_over = checkpoint.survey(tmp_path)
    assert newest == paths[1]
    assert [path for path, _ in passed_over] == paths[:1:-1]
    for path in paths:
        shutil.rmtree(path)
        path.mkdir()
    with pytest.raises(CheckpointError, match="4 checkpoints, none of them valid"):
        checkpoint.latest(tmp_path)
    with pytest.raises(CheckpointError, match="list"):
        checkpoint.latest(__file__)


def test_prune_never_removes_the_newest_valid_one(tmp_path):
    paths = [save(tmp_path, step) for step in range(6)]
    assert checkpoint.prune(tmp_path, keep=5) == paths[:1]
    for path in paths[2:]:
        (path / "state.json").unlink()
    assert checkpoint.prune(tmp_path, keep=2) == [paths[3], paths[2]]
    assert sorted(os.listdir(tmp_path)) == [path.name for path in (paths[1], paths[4], paths[5])]
    assert faults.is_checkpoint(checkpoint.load(checkpoint.survey(tmp_path).newest), 1)
    (paths[1] / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of them valid"):
        checkpoint.prune(tmp_path, keep=1)  # with nothing valid left, nothing is removed
    assert paths[1].exists()
    assert checkpoint.prune(tmp_path / "nothing") == []
    for keep in (0, -1, True, 1.0):
        with pytest.raises(ValueError, match="keep"):
            checkpoint.prune(tmp_path, keep=keep)


def test_a_step_is_replaced_valid_or_not(tmp_path):
    path = save(tmp_path, 5)
    assert save(tmp_path, 5, revision=1) == path
    assert faults.is_checkpoint(checkpoint.load(path), 5, revision=1)
    (path / "state.json").unlink()
    save(tmp_path, 5, revision=2)
    assert faults.is_checkpoint(checkpoint.load(path), 5, revision=2)
    assert os.listdir(tmp_path) == [path.name]


# --------------------------------------------------------------------------------------------------- crashes and bad disks


def interrupted_replacement(directory):
    """As a crash between steps 2b and 2c of sealed.py leaves it: the new folder under its pending name, the old as rubbish."""
    new = save(directory, 1, revision=1)
    new.rename(directory / f".{new.name}.pydiff-new")
    save(directory, 2).rename(directory / ".partial")


# scenario -> (what is there before, the call that is interrupted); `newest` has the accepted (step, revision) in order
SCENARIOS = {
    "first": (lambda _: None, lambda d: save(d, 1), [(1, 0)]),
    "next": (lambda d: save(d, 1), lambda d: save(d, 2), [(1, 0), (2, 0)]),
    "replace": (lambda d: save(d, 1), lambda d: save(d, 1, 1), [(1, 0), (1, 1)]),
    "replace after a crash": (interrupted_replacement, lambda d: save(d, 1, 2), [(1, 1), (1, 2)]),
    "next after a crash": (interrupted_replacement, lambda d: save(d, 2), [(1, 1), (2, 0)]),
    "prune": (lambda d: [save(d, s) for s in (1, 2)], lambda d: checkpoint.prune(d, keep=1), [(2, 0)]),
}


def newest(directory):
    """(step, revision) of the newest checkpoint, which has to be bitwise right; None if there is none. Damage fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = checkpoint.latest(directory)
    if path is None:
        return None
    loaded = checkpoint.load(path)
    step, revision = loaded[1]["step"], loaded[1]["revision"]
    assert faults.is_checkpoint(loaded, step, revision)
    return step, revision


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_a_crash_leaves_a_valid_checkpoint_loads(tmp_path, monkeypatch, name):
    before, act, accepted = SCENARIOS[name]
    (tmp_path / "disk").mkdir()
    before(tmp_path / "disk" / "checkpoints")
    recorder = faults.Recorder(tmp_path / "disk")
    with recorder.recording():
        act(tmp_path / "disk" / "checkpoints")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    states = 0
    for done, state in recorder.crash_states():
        base = tmp_path / "after"
        faults.materialise(state, base)
        found = newest(base / "checkpoints")
        if done == len(recorder.operations):
            assert found == accepted[-1]  # once save has returned, the new one is what survives
        else:
            assert found in (accepted if name != "first" else [None, *accepted])
        save(base / "checkpoints", 3)
        assert newest(base / "checkpoints") == (3, 0)
        assert not (base / "checkpoints" / ".partial").exists()
        shutil.rmtree(base)
        states += 1
    assert states > len(recorder.operations) // 2


@pytest.mark.parametrize("before", [False, True])
def test_whatever_a_crash_leaves_a_model_loads(tmp_path, monkeypatch, before):
    (tmp_path / "disk").mkdir()
    if before:
        save_model(tmp_path / "disk" / "model", 1)
    recorder = faults.Recorder(tmp_path / "disk")
    with recorder.recording():
        save_model(tmp_path / "disk" / "model", 2)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for done, state in recorder.crash_states():
        base = tmp_path / "after"
        faults.materialise(state, base)
        try:
            loaded = checkpoint.load_model(base / "model")
        except CheckpointError:
            assert not before
            assert done < len(recorder.operations)
        else:
            assert is_model(loaded, 2) or (is_model(loaded, 1) and done < len(recorder.operations))
        save_model(base / "model", 3)
        assert is_model(checkpoint.load_model(base / "model"), 3)
        assert os.listdir(base) == ["model"]
        shutil.rmtree(base)


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "EIO"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failing_disk_costs_nothing_that_was_there(tmp_path, name, number, for_good):
    before, act, accepted = SCENARIOS[name]
    at, raised, calls = 0, True, []
    while raised:  # fail the first call, then the second, ..., until there was none left to fail
        directory = tmp_path / str(at) / "checkpoints"
        before(directory)
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        with faults.failing(at, number, for_good) as calls:
            try:
                act(directory)
                raised = False
            except CheckpointError as error:
                assert str(tmp_path / str(at)) in str(error)
                assert os.strerror(number) in str(error)
                if calls[at] == "write":
                    assert any(word.isdigit() and int(word) > 50 for word in str(error).split("bytes")[0].split())
        assert raised == (at < len(calls))
        if descriptors is not None:
            assert len(os.listdir("/proc/self/fd")) == descriptors
        found = newest(directory)
        assert found in (accepted if name != "first" else [None, *accepted])
        if directory.exists():
            left = [entry for entry in os.listdir(directory) if not entry.startswith(("step-", ".step-"))]
            assert left in ([], [".partial"])
        save(directory, 3)
        assert newest(directory) == (3, 0)
        assert not (directory / ".partial").exists()
        at += 1
    assert at > 5


def test_a_read_only_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*(Not a directory|File exists)"):
        save(tmp_path / "file", 1)
    with faults.failing(0, errno.EROFS), pytest.raises(CheckpointError, match="Read-only file system"):
        save(tmp_path / "run", 1)
    if os.geteuid() != 0:  # permissions do not stop root
        tmp_path.chmod(0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path / "run", 1)
        tmp_path.chmod(0o700)


def test_killed_while_saving(tmp_path):
    command = [
        sys.executable,
        str(STRESS / "checkpoint_kill.py"),
        "--rounds",
        "15",
        "--out",
        str(tmp_path / "result.json"),
    ]
    subprocess.run([*command, "--directory", str(tmp_path / "run")], check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kills"] == 15
    assert result["kills_inside_a_write"] >= 5
    assert result["lost"] == 0
    assert result["saves_returned"] > 0


# ----------------------------------------------------------------------------------------------------------- model folders


def test_model_folders_are_the_same_bytes_each_time(tmp_path):
    arrays = faults.contents(1)[0]["model"]
    checkpoint.save_model(tmp_path / "a", CONFIG, arrays, {})
    checkpoint.save_model(tmp_path / "b", CONFIG, dict(reversed(arrays.items())), {})
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.SEAL):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    save_model(tmp_path / "model", 1)
    save_model(tmp_path / "model", 2)
    (tmp_path / "model" / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"'README.md', expected a model alone: choose another folder"):
        save_model(tmp_path / "model", 3)
    assert is_model(checkpoint.load_model(tmp_path / "model"), 2)  # and it does not stand in the way of loading
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="list"):
        save_model(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    save_model(tmp_path / "link", 2)
    assert is_model(checkpoint.load_model(tmp_path / "empty"), 2)
    assert (tmp_path / "link").is_symlink()


def test_a_model_folder_that_is_none_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load_model(tmp_path / "nothing")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*expected config\.json and"):
        checkpoint.load_model(tmp_path)
    save_model(tmp_path / "model")
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        copy = shutil.copytree(tmp_path / "model", tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load_model(copy)
    (tmp_path / "model" / checkpoint.SEAL).unlink()
    (tmp_path / "model" / checkpoint.CONFIG).write_text('{"_class_name": "VQModel"}')
    with pytest.raises(CheckpointError, match="class 'VQModel', expected UNet2DModel"):
        checkpoint.load_model(tmp_path / "model")


def test_diffusers_opens_our_folder_and_we_open_theirs(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    options = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    options |= {"block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
    options |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    theirs = diffusers.UNet2DModel(**options)
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    checkpoint.save_model(tmp_path / "ours", options, arrays, {"classes": ["a"]})
    opened = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", use_safetensors=True, low_cpu_mem_usage=False)
    assert faults.same(arrays, {name: value.numpy() for name, value in opened.state_dict().items()})
    assert {name: opened.config[name] for name in options} == options

    theirs.save_pretrained(tmp_path / "theirs")
    config, loaded, extra = checkpoint.load_model(tmp_path / "theirs")
    assert faults.same(loaded, arrays)
    assert {name: config[name] for name in options} == options
    assert extra is None
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    _, loaded, _ = checkpoint.load_model(tmp_path / "half")
    expected = {name: value.float().numpy() for name, value in theirs.state_dict().items()}
    assert faults.same(loaded, expected)
