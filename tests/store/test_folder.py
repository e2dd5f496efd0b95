"""The run's folder: which one is gone on with, which is refused, and what is said when the kernels have changed."""

import json
import warnings

import numpy as np
import pytest

from pydiff import backend
from pydiff.store import checkpoint
from pydiff.store.folder import SCHEMA, KernelWarning, RunDirectory
from pydiff.training import LoopOptions

IDENTITY = {"data": "digits", "fingerprint": "abc", "codec": {"kind": "pixels", "shape": [8, 8, 1]}, "model": "UNet"}
ARRAYS = {"optimizer": {"p": np.arange(3, dtype=np.float32)}}


def opened(path, identity=IDENTITY, **options):
    """What `open` of a folder gives, with its lock held, and the folder."""
    folder = RunDirectory(path)
    with folder.locked():
        return folder.open(identity, LoopOptions(**options)), folder


def begun(path, logged=5, saved=3, **state):
    """A run's folder with a log of some steps and a checkpoint before its end."""
    _, folder = opened(path)
    for step in range(1, logged + 1):
        folder.log.append({"step": step})
    folder.save_checkpoint(saved, ARRAYS, 2)
    if state:
        checkpoint.save(folder.checkpoints, saved, ARRAYS, {"step": saved, **state})


def config(path):
    return json.loads((path / "config.json").read_text())


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


# ---- new, and going on -----------------------------------------------------------------------------------------------


def test_a_new_run_begins_with_nothing_and_says_what_it_is(tmp_path):
    found, folder = opened(tmp_path / "deep" / "run", steps=7)
    assert found is None
    assert folder.log.entries == []
    said = {"schema": SCHEMA, **IDENTITY, "options": LoopOptions(steps=7).to_config(), "changes": []}
    assert config(folder.path) == said
    assert opened(folder.path, steps=7)[0] is None  # stopped before the first checkpoint: once more from the start


def test_a_run_goes_on_from_its_checkpoint_and_forgets_what_was_logged_after(tmp_path):
    begun(tmp_path)
    (arrays, state), folder = opened(tmp_path, checkpoint_every=1, keep=9)  # options without effect may differ
    assert np.array_equal(arrays["optimizer"]["p"], ARRAYS["optimizer"]["p"])
    assert (state["step"], state["arithmetic"]) == (3, backend.arithmetic())
    assert [entry["step"] for entry in folder.log.entries] == [1, 2, 3]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 3


def test_steps_that_no_checkpoint_holds_are_forgotten(tmp_path):
    _, folder = opened(tmp_path)
    folder.log.append({"step": 1})
    found, again = opened(tmp_path)
    assert found is None
    assert again.log.entries == []
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_checkpoints_are_kept_as_many_as_asked(tmp_path):
    _, folder = opened(tmp_path)
    for step in (1, 2, 3, 4):
        folder.save_checkpoint(step, ARRAYS, 2)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_preview_is_there_twice(tmp_path):
    _, folder = opened(tmp_path)
    for step in (5, 10):
        folder.save_preview(step, b"png %d" % step)
    assert (tmp_path / "samples.png").read_bytes() == b"png 10"
    assert {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()} == {
        "step-00000005.png": b"png 5",
        "step-00000010.png": b"png 10",
    }


# ---- another generation of kernels -----------------------------------------------------------------------------------


def test_a_resume_across_generations_of_kernels_is_said(tmp_path):
    begun(tmp_path, arithmetic=backend.arithmetic() | {"generation": 0})
    message = rf"\(generation 0 then, {backend.KERNEL_GENERATION} now\): its last bits may not be those"
    with pytest.warns(KernelWarning, match=message) as caught:
        found, _ = opened(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that called pydiff
    assert found[1]["step"] == 3  # said, not refused


def test_folders_from_before_generations_were_recorded_are_of_the_first(tmp_path):
    begun(tmp_path)
    checkpoint.save(tmp_path / "checkpoints", 3, ARRAYS, {"step": 3})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened(tmp_path)
    assert [w.category for w in caught] == ([] if backend.KERNEL_GENERATION == 1 else [KernelWarning])


# ---- folders that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.txt", "log.jsonl", "model"])
def test_a_folder_with_something_else_in_it(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(FileExistsError, match=f"is not empty and holds no run \\(it has {name}\\); choose") as error:
        opened(tmp_path)
    one_sentence(error)
    assert not (tmp_path / "config.json").exists()


def test_what_a_crash_left_of_the_first_file_does_not_make_a_folder_foreign(tmp_path):
    """write_atomic may be killed between its temporary file and the rename."""
    (tmp_path / ".config.json.4711.tmp").write_text('{"sche')
    assert opened(tmp_path)[0] is None
    assert config(tmp_path)["schema"] == SCHEMA


def test_a_schema_that_is_too_new(tmp_path):
    begun(tmp_path)
    text = json.dumps(config(tmp_path) | {"schema": SCHEMA + 1})
    (tmp_path / "config.json").write_text(text)
    message = f"is of schema {SCHEMA + 1}, and this pydiff knows up to {SCHEMA}.*choose another folder"
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path)
    one_sentence(error)
    assert (tmp_path / "config.json").read_text() == text
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 5  # nothing was cut


def test_a_folder_of_the_first_schema_goes_on(tmp_path):
    """It had no number, and neither codec nor model; its checkpoints do not say of which run they are."""
    begun(tmp_path, arithmetic=backend.arithmetic())
    old = config(tmp_path)
    for name in ("schema", "codec", "model"):
        del old[name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert opened(tmp_path)[0][1]["step"] == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": 2}', '{"options": {"stepz": 1}}', '{"options": 3}']
)
def test_a_configuration_that_cannot_be_read(tmp_path, text):
    begun(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read \(.*\); choose another folder") as error:
        opened(tmp_path)
    one_sentence(error)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"fingerprint": "def"}, {}, r"holds a run on other data \(digits\)"),
        ({"model": "Other"}, {}, "holds a run with model = UNet, not Other"),
        ({"codec": {"kind": "latents"}}, {}, "holds a run with codec = .*pixels.*, not .*latents"),
        ({}, {"seed": 4}, "holds a run with seed = 0, not 4"),
        ({"samples": [4, 8, 8, 1]}, {"seed": 4}, "holds a run with seed = 0, not 4"),
        ({}, {"steps": 2}, "has taken 3 steps, and steps = 2 are fewer; use steps = 3 or more"),
        ({}, {"steps": 3, "lr": 0.5}, "is complete after 3 steps, where steps = 3, lr = 0.5 would change nothing"),
    ],
)
def test_another_run(tmp_path, changed, options, message):
    begun(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, IDENTITY | changed, **options)
    assert "choose another folder" in one_sentence(error)


def test_what_may_change_from_step_to_step_is_kept_with_the_step_it_changed_after(tmp_path):
    begun(tmp_path)
    found, folder = opened(tmp_path, steps=3000, lr=0.5)
    assert found[1]["step"] == 3
    assert folder.changed == {"steps": [2000, 3000], "lr": [0.001, 0.5]}
    assert config(tmp_path)["changes"] == [{"after": 3, "steps": [2000, 3000], "lr": [0.001, 0.5]}]
    assert config(tmp_path)["options"]["steps"] == 3000
    found, folder = opened(tmp_path, steps=3000, lr=0.5)  # the same command again
    assert folder.changed == {}
    assert len(config(tmp_path)["changes"]) == 1
    folder.save_checkpoint(7, ARRAYS, 2)
    opened(tmp_path, steps=3000, lr=0.5, batch_size=8)
    assert [change["after"] for change in config(tmp_path)["changes"]] == [3, 7]


def test_a_change_before_the_next_checkpoint_counts_once(tmp_path):
    begun(tmp_path)
    for lr in (0.5, 0.25):
        opened(tmp_path, lr=lr)
    assert config(tmp_path)["changes"] == [{"after": 3, "lr": [0.001, 0.25]}]
    opened(tmp_path)  # as it was
    assert config(tmp_path)["changes"] == []


def test_what_was_changed_after_a_checkpoint_that_is_lost_counts_from_the_one_before(tmp_path):
    begun(tmp_path)
    _, folder = opened(tmp_path)
    folder.save_checkpoint(5, ARRAYS, 2)
    opened(tmp_path, lr=0.5)
    assert config(tmp_path)["changes"][0]["after"] == 5
    (tmp_path / "checkpoints" / "step-00000005" / "state.json").write_text("damaged")
    with pytest.warns(checkpoint.CheckpointWarning):
        assert opened(tmp_path, lr=0.5)[0][1]["step"] == 3
    assert config(tmp_path)["changes"] == [{"after": 3, "lr": [0.001, 0.5]}]


def test_the_lock_is_held_by_one_and_given_back_after_an_error(tmp_path):
    def train():
        with RunDirectory(tmp_path).locked():
            with pytest.raises(RuntimeError, match="another process is training in"), RunDirectory(tmp_path).locked():
                pass
            raise KeyError("an error in training")

    for _ in range(2):
        with pytest.raises(KeyError, match="an error in training"):
            train()
