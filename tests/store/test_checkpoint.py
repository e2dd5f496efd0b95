"""Checkpoints and model folders: what was saved comes back bit for bit, or the load says why not."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.formats import safetensors as tensorfile
from pydiff.store import checkpoint, sealed
from pydiff.store.checkpoint import CheckpointError
from tests.formats.test_safetensors import groups, names
from tests.stress import checkpoint_faults as faults
from tests.stress.checkpoint_faults import CONFIG, is_model, save, save_model


def test_what_could_not_come_back_equal_is_refused(tmp_path):
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
    with pytest.raises(ValueError, match="store less in it"):
        checkpoint.save_model(tmp_path / "model", {}, {}, {"a": "x" * tensorfile.MAX_HEADER})
    assert os.listdir(tmp_path) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | names | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(names, values, max_size=3),
    max_leaves=6,
)
group_names = st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True)  # a file system may ignore case


@given(arrays=st.dictionaries(group_names, groups, max_size=3), state=st.dictionaries(names, json_values, max_size=4))
def test_checkpoints_come_back_bit_for_bit(tmp_path_factory, arrays, state):
    directory = tmp_path_factory.mktemp("run")
    path = checkpoint.save(directory / "new", 7, arrays, state)
    loaded, loaded_state = checkpoint.load(path)
    expected = {k: {n: a.astype(a.dtype.newbyteorder("<")) for n, a in group.items()} for k, group in arrays.items()}
    assert faults.same(loaded, expected)
    assert json.dumps(loaded_state) == json.dumps(state)  # to which 1, 1.0 and True are different
    assert {*os.listdir(path)} == {"manifest.json", "state.json", *(f"{name}.safetensors" for name in arrays)}
    assert os.listdir(directory / "new") == ["step-00000007"]


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_no_damage_is_silent(tmp_path, kind):
    rng = np.random.default_rng(0)
    if kind == "checkpoint":
        folder, load, seal = save(tmp_path, 3), checkpoint.load, checkpoint.MANIFEST
    else:
        save_model(tmp_path / "model")
        folder, load, seal = tmp_path / "model", checkpoint.load_model, checkpoint.SEAL
    tried = 0
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        whole = path.read_bytes()
        bits = range(len(whole) * 8) if path.name == seal else rng.integers(len(whole) * 8, size=1500)
        for _ in faults.damage(path, bits):
            with pytest.raises(CheckpointError):
                load(folder)
            tried += 1
        assert path.read_bytes() == whole
    assert tried > 7000
    load(folder)


def test_a_load_needs_no_more_memory_than_the_files(tmp_path):
    arrays = {"model": {str(i): np.ones((256, 1024), np.float32) for i in range(16)}}
    path = checkpoint.save(tmp_path, 1, arrays, {})
    tracemalloc.start()
    try:
        checkpoint.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.1 * (path / "model.safetensors").stat().st_size


def test_removing_adding_or_renaming_a_file_is_noticed(tmp_path):
    folder = save(tmp_path, 3)
    names = sorted(os.listdir(folder))
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    messages = {
        "remove": r"is missing|manifest\.json: No such file",
        "longer": r"it has \d+ bytes, expected \d+;|its own checksum",
    }
    messages |= {"folder": "not a regular file", "pipe": "not a regular file"}
    for name in names:
        for change in ("remove", "rename", "longer", "exchange", "folder", "pipe"):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            match change:
                case "remove":
                    (copy / name).unlink()
                case "rename":
                    (copy / name).rename(copy / f"x{name}")
                case "longer":
                    with (copy / name).open("ab") as file:
                        file.write(b" ")
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
            with pytest.raises(CheckpointError, match=messages.get(change)):
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
    text = manifest.read_text()
    for old, new, message in [
        ('version": 1', 'version": 2', "version 2, expected 1"),
        ("checkpoint", "model", "for the kind"),
    ]:
        manifest.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(other)
        manifest.write_text(text)
    sealed.write(tmp_path / "x", tmp_path / "p", [("a.safetensors", b"")], checkpoint.MANIFEST, "pydiff checkpoint", {})
    with pytest.raises(CheckpointError, match=r"'state.json' is missing"):
        checkpoint.load(tmp_path / "x")
    files = [("a.pickle", b""), ("state.json", b"{}")]
    sealed.write(tmp_path / "x", tmp_path / "p", files, checkpoint.MANIFEST, "pydiff checkpoint", {})
    with pytest.raises(CheckpointError, match=r"expected \.safetensors"):
        checkpoint.load(tmp_path / "x")


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
    told = [str(warning.message).split(":")[0] for warning in told]
    assert told == [f"Passed over the checkpoint {path.name}" for path in paths[:1:-1]]
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
    new = shutil.copytree(path, tmp_path / f".{path.name}.pydiff-new")  # as between steps 2a and 2b of sealed.py
    assert checkpoint.latest(tmp_path) == new


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
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*expected pydiff\.json, unet/"):
        checkpoint.load_model(tmp_path)
    save_model(tmp_path / "model")
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        copy = shutil.copytree(tmp_path / "model", tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load_model(copy)
    checkpoint.save_model(tmp_path / "model", CONFIG, {}, {}, "VQModel")
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
    opened = diffusers.UNet2DModel.from_pretrained(
        tmp_path / "ours/unet", use_safetensors=True, low_cpu_mem_usage=False
    )
    assert faults.same(arrays, {name: value.numpy() for name, value in opened.state_dict().items()})
    assert {name: opened.config[name] for name in options} == options
