"""A run is a thing one can come back to: unfinished, lengthened, going on right now, without its data."""

import json
import shutil
import threading
import time

import numpy as np
import pytest

import pydiff
from pydiff.data import Dataset
from pydiff.data.origin import Origin, from_files, to_files
from pydiff.reopen import finish, open_folder
from pydiff.store import checkpoint, kept, newest
from pydiff.store.folder import RunDirectory
from pydiff.store.newest import read_newest
from tests.report.test_page import Reader
from tests.trainers import train_until

TINY = {"steps": 4, "batch_size": 4, "channels": (8,), "groups": 4, "warmup": 1, "timesteps": 20, "sample_every": 0}
TINY |= {"checkpoint_every": 2, "keep": 9}


def random_images(n, seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1)).astype(np.uint8)


def train(out, data="digits", **options):
    return pydiff.train(data, out=out, progress=False, **{**TINY, **options})


def stop_after(out, step, data="digits", **options):
    """A run that was stopped after this step, as Ctrl-C does; begun by the command."""
    from pydiff.training import loop

    with pytest.MonkeyPatch.context() as patch:
        steps = loop.training_steps

        def until(trainer):
            for state in steps(trainer):
                yield state
                if state.step == step:
                    trainer.options.__dict__["checkpoint_every"] = 1
                    raise KeyboardInterrupt

        patch.setattr(loop, "training_steps", until)
        with pytest.raises(KeyboardInterrupt):
            train(out, data, **options)


def weights(run):
    return {name: array.tobytes() for name, array in run.model.state_dict().items()}


def same(a, b):
    return weights(a) == weights(b)


def pages(text):
    return " ".join(Reader(text).texts)


# ---- unfinished ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"conditional": True}, {"prediction": "v", "self_conditioning": True}])
def test_an_unfinished_run_is_what_its_finished_twin_was_at_that_step(tmp_path, options):
    """checkpoint_every=2: stopped after step 3, it is the run of 4 steps at step 2."""
    stop_after(tmp_path / "stopped", 3, **options)
    run = pydiff.load(tmp_path / "stopped")
    with RunDirectory(tmp_path / "stopped").locked():  # while it is being trained, too
        assert same(pydiff.load(tmp_path / "stopped"), run)
    arrays, _ = checkpoint.load(tmp_path / "stopped" / "checkpoints" / "step-00000002")
    ema = np.concatenate([p.data.ravel() for p in run.model.parameters()])
    assert np.array_equal(ema, arrays["optimizer"]["ema"])
    assert (run.step, run.options["steps"], run.data_name) == (2, 4, "digits")
    assert any("is unfinished: step 2 of 4" in note for note in run.notes)
    assert run.sample(2, steps=3).shape == (2, 8, 8, 1)
    finished = train(tmp_path / "stopped", **options)
    assert same(pydiff.load(tmp_path / "stopped"), finished)
    assert pydiff.load(tmp_path / "stopped").notes == ()


def test_an_unfinished_run_is_edited_reported_and_saved(tmp_path):
    stop_after(tmp_path / "run", 2)
    run = pydiff.load(tmp_path / "run")
    assert run.variations(run.dataset().images[:2], strength=0.2, steps=3).shape == (2, 8, 8, 1)
    page = run.report(n=2, steps=3)
    assert "1,797, 8 × 8, grey" in pages(page.read_text("utf-8"))
    run.save(tmp_path / "early")
    assert same(pydiff.load(tmp_path / "early"), run)


def test_a_run_without_a_checkpoint_says_when_it_will_have_one(tmp_path):
    stop_after(tmp_path / "run", 1)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet; the first is written after step 2, or at"):
        pydiff.load(tmp_path / "run")
    train(tmp_path / "run")  # the advice: wait
    assert pydiff.load(tmp_path / "run").step == 4


def test_the_log_is_not_the_run(tmp_path):
    stop_after(tmp_path / "run", 3)
    (tmp_path / "run" / "log.jsonl").unlink()
    assert pydiff.load(tmp_path / "run").step == 2
    assert train(tmp_path / "run").step == 4


def test_a_newer_checkpoint_than_the_model_is_taken_and_a_damaged_one_passed_over(tmp_path):
    first = train(tmp_path / "run")
    stop_after(tmp_path / "run", 7, steps=10)
    run = pydiff.load(tmp_path / "run")
    assert run.step == 6
    assert any("unfinished: step 6 of 10" in note for note in run.notes)
    state = tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json"
    state.write_bytes(state.read_bytes()[:-3])
    again = pydiff.load(tmp_path / "run")
    assert again.step == 4
    assert same(again, first)
    assert any("passed over the checkpoint step-00000006" in note for note in again.notes)


def test_a_checkpoint_of_another_run_is_not_opened(tmp_path):
    for name, seed in (("run", 0), ("other", 1)):
        stop_after(tmp_path / name, 3, seed=seed)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(pydiff.CheckpointError, match="is a checkpoint of another run than the one in"):
        pydiff.load(tmp_path / "run")


@pytest.mark.parametrize("text", ["{", '{"options": {"steps": "x"}}', '{"options": {"steps": null}}'])
def test_a_damaged_configuration_leaves_the_finished_model(tmp_path, text):
    run = train(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    loaded = pydiff.load(tmp_path / "run")
    assert same(loaded, run)
    assert any("config.json cannot be read" in note for note in loaded.notes)
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(pydiff.CheckpointError, match=r"config\.json cannot be read"):
        pydiff.load(tmp_path / "run")


def test_a_checkpoint_that_fails_once_is_asked_again(tmp_path, monkeypatch):
    """It may just have been replaced by another of its name; only what fails twice is passed over."""
    for step in (1, 2):
        arrays = {"optimizer": {"ema": np.full(3, step, np.float32)}}
        checkpoint.save(tmp_path, step, arrays, {"step": step})
    whole, failures = newest._read, []

    def failing(times):
        def read(path, group, name):
            if path.name.endswith("2") and len(failures) < times:
                failures.append(path)
                raise pydiff.CheckpointError(f"{path} was being replaced")
            return whole(path, group, name)

        return read

    monkeypatch.setattr(newest, "_read", failing(1))
    found = read_newest(tmp_path, "optimizer", "ema")
    assert (found.state["step"], found.passed_over) == (2, [])
    failures.clear()
    monkeypatch.setattr(newest, "_read", failing(2))
    found = read_newest(tmp_path, "optimizer", "ema")
    assert found.state["step"] == 1
    assert [path.name for path, _ in found.passed_over] == [failures[0].name]


@pytest.mark.parametrize("damage", ["cut", "swap", "remove"])
def test_a_damaged_description_is_noticed_and_written_anew(tmp_path, damage):
    stop_after(tmp_path / "run", 3)
    config = tmp_path / "run" / "pipeline" / "unet" / "config.json"
    if damage == "remove":
        shutil.rmtree(tmp_path / "run" / "pipeline")
    else:
        text = config.read_text()
        config.write_text(text[:-9] if damage == "cut" else text.replace('"silu"', '"gelu"'))
    with pytest.raises(pydiff.CheckpointError, match=r"damaged|did not write down what model it is"):
        pydiff.load(tmp_path / "run")
    if damage == "remove":
        stop_after(tmp_path / "run", 3)  # the advice: let the same command go on
        assert pydiff.load(tmp_path / "run").step == 2


def test_checkpoints_are_read_while_a_training_replaces_them(tmp_path):
    """A reader and a writer that keeps a single checkpoint: what is read is whole and of its step, always."""
    directory, stop = tmp_path / "checkpoints", threading.Event()

    def write():
        step = 0
        while not stop.is_set():
            step += 1
            ema = np.full(20_000, step, np.float32)
            checkpoint.save(directory, step, {"optimizer": {"ema": ema, "p": ema}}, {"step": step})
            checkpoint.prune(directory, 1)

    checkpoint.save(directory, 0, {"optimizer": {"ema": np.zeros(20_000, np.float32)}}, {"step": 0})
    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen, until = [], time.monotonic() + 60
        while len(seen) < 150 or (len({found.state["step"] for found in seen}) < 3 and time.monotonic() < until):
            seen.append(read_newest(directory, "optimizer", "ema"))
    finally:
        stop.set()
        writer.join()
    steps = [found.state["step"] for found in seen]
    assert all((found.array == found.state["step"]).all() for found in seen)
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert not any(found.passed_over for found in seen)


# ---- lengthened ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_lengthened_and_says_what_that_does_to_the_rate(tmp_path):
    train(tmp_path / "run")
    longer = train(tmp_path / "run", steps=8)
    assert [entry["step"] for entry in longer.log()] == list(range(1, 9))
    assert longer.notes[0].endswith("goes on from step 4 with steps = 8 (before: 4); its config.json keeps that")
    assert "follows the cosine down to step 8 from here on, 0.000" in longer.notes[1]
    assert "where the run had ended" in longer.notes[1]
    rates = [entry["lr"] for entry in longer.log()]
    assert rates[3] == 0.0
    whole = train(tmp_path / "whole", steps=8)
    assert rates[4:] == [entry["lr"] for entry in whole.log()][4:]
    assert pydiff.load(tmp_path / "run").step == 8


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_a_lengthened_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, stop):
    changed = {"steps": 8, "lr": 5e-4, "batch_size": 3, "shards": 2}
    train(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    expected = train(tmp_path / "a", **changed)
    stop_after(tmp_path / "b", stop, **changed)
    got = train(tmp_path / "b", **changed)
    assert [e["loss"] for e in got.log()] == [e["loss"] for e in expected.log()]
    assert same(got, expected)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["changes"][0]["after"] == 4


def test_the_advice_of_a_refusal_works(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with prediction = eps, not v; .* init_from = this one"):
        train(tmp_path / "run", prediction="v")
    begun = train(tmp_path / "another", prediction="v", init_from=str(tmp_path / "run"))
    assert "those were trained to predict eps, and this run learns to predict v" in begun.notes
    fewer = train(tmp_path / "fewer", timesteps=40, init_from=str(tmp_path / "run"))
    had = train(tmp_path / "run").options["timesteps"]
    assert f"those were trained with timesteps = {had}, and this run has 40" in fewer.notes
    other = train(tmp_path / "other", schedule="linear", init_from=str(tmp_path / "run"))
    assert "those were trained with another noise schedule, 'cosine', and this run has 'linear'" in other.notes
    assert not any("those were" in note for note in train(tmp_path / "same", init_from=str(tmp_path / "run")).notes)
    with pytest.raises(ValueError, match="init_from is empty, expected the path of a folder"):
        train(tmp_path / "empty", init_from="")
    with pytest.raises(ValueError, match="use steps = 4 or more"):
        train(tmp_path / "run", steps=3)
    assert train(tmp_path / "run", steps=4).step == 4
    with pytest.raises(ValueError, match=r"lr = 0.5 would change nothing; use more steps, too"):
        train(tmp_path / "run", lr=0.5)
    assert train(tmp_path / "run", lr=0.5, steps=5).step == 5


def test_accumulating_gradients_is_another_name_for_shards(tmp_path):
    train(tmp_path / "run")
    longer = train(tmp_path / "run", steps=6, accumulate=2)
    assert any("the batch is computed in another number of parts from here on" in note for note in longer.notes)
    assert longer.options["shards"] == 2
    assert same(train(tmp_path / "whole", accumulate=2), train(None, shards=2))


# ---- begun with the weights of another -------------------------------------------------------------------------------


def test_a_run_begins_with_the_average_of_another(tmp_path):
    source = train(tmp_path / "source")
    still = train(tmp_path / "still", steps=1, lr=0.0, weight_decay=0.0, init_from=str(tmp_path / "source"))
    assert same(still, source)
    begun = json.loads((tmp_path / "still" / "config.json").read_text())["begun_with"]
    assert (begun["step"], begun["folder"]) == (4, str(tmp_path / "source"))
    source.save(tmp_path / "model")
    (tmp_path / "model" / "pydiff.json").unlink()  # a folder of diffusers
    assert same(train(None, steps=1, lr=0.0, weight_decay=0.0, init_from=str(tmp_path / "model")), source)


def test_the_network_is_that_of_the_source_where_the_options_leave_it_open(tmp_path):
    source = train(tmp_path / "source", channels=(8, 16), layers=2)
    options = {"channels": (), "init_from": str(tmp_path / "source"), "steps": 3}
    stop_after(tmp_path / "run", 2, **options)
    shutil.rmtree(tmp_path / "source")  # a run that goes on needs it no more
    run = train(tmp_path / "run", **options)
    assert run.model.config["block_out_channels"] == source.model.config["block_out_channels"] == [8, 16]
    assert run.model.config["layers_per_block"] == 2


def test_weights_that_do_not_fit_are_one_sentence(tmp_path):
    train(tmp_path / "source")
    with pytest.raises(
        ValueError, match=r"do not fit this network: conv_in.weight is \(8, 1, 3, 3\) there and \(12, 1"
    ):
        train(None, init_from=str(tmp_path / "source"), channels=(12,))
    with pytest.raises(ValueError, match=r"class_embedding.weight is missing there and \(11, 32\) here"):
        train(None, init_from=str(tmp_path / "source"), conditional=True)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; init_from is that of a run or of a saved"):
        train(None, init_from="nowhere")


def test_other_weights_under_the_same_name_are_noticed_before_the_first_checkpoint(tmp_path):
    train(tmp_path / "source")
    stop_after(tmp_path / "run", 1, init_from=str(tmp_path / "source"))
    train(tmp_path / "source", steps=6)
    with pytest.raises(ValueError, match=r"began with other weights than .*source has now; choose another folder"):
        train(tmp_path / "run", init_from=str(tmp_path / "source"))


# ---- what a run knows of its data ------------------------------------------------------------------------------------


@pytest.fixture
def moved(tmp_path):
    """A run on a file of images that was moved away: (run's folder, the file's first place, its second)."""
    first, second = tmp_path / "data.npy", tmp_path / "elsewhere.npy"
    np.save(first, random_images(50))
    train(tmp_path / "run", str(first))
    first.rename(second)
    return tmp_path / "run", first, second


def test_data_that_were_moved_are_asked_for_and_found(moved):
    folder, _, second = moved
    run = pydiff.load(folder)
    with pytest.raises(ValueError, match=r"the 50 training samples 8 x 8 x 1 of 'data.npy' cannot be had from .*data="):
        run.dataset()
    assert len(run.dataset(str(second))) == 50
    assert len(run.dataset()) == 50


def test_a_page_without_the_data_shows_what_was_kept(moved):
    run = pydiff.load(moved[0])
    page = run.report(n=2, steps=3).read_text("utf-8")
    text = pages(page)
    assert "50, 8 × 8, grey" in text
    assert "The 50 training samples 8 x 8 x 1 of 'data.npy' cannot be had from" in text
    assert "The training images are not all here, so nothing is said of which of them are nearest" in text
    assert "were searched" not in text
    assert len(run.origin.samples) == 36
    assert 'alt="training image 36"' in page


def test_a_page_with_the_data_where_they_are_now(moved):
    folder, _, second = moved
    text = pages(pydiff.load(folder).report(data=str(second), n=2, steps=3).read_text("utf-8"))
    assert "All 50 training images were searched." in text


def test_other_data_at_the_same_place_are_never_taken(moved):
    folder, first, _ = moved
    np.save(first, random_images(50, seed=1))
    with pytest.raises(ValueError, match=r"has other data now \(50 samples 8 x 8 x 1\) than the 50 training samples"):
        pydiff.load(folder).dataset()
    text = pages(pydiff.load(folder).report(n=2, steps=3).read_text("utf-8"))
    assert "has other data now" in text
    with pytest.raises(ValueError, match="has other data now"):
        pydiff.load(folder).report(data=str(first), n=2, steps=3)


def test_another_folder_of_that_name_is_noticed_and_not_used(tmp_path, monkeypatch, caplog):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "data.npy", random_images(9, seed=ord(place)))
    monkeypatch.chdir(tmp_path / "a")
    train(tmp_path / "run", "data.npy")
    pydiff.load(tmp_path / "run").report(n=2, steps=3)
    assert "is another one" not in caplog.text
    monkeypatch.chdir(tmp_path / "b")
    run = pydiff.load(tmp_path / "run")
    page = run.report(n=2, steps=3)
    assert f"data.npy in this folder is another one than {tmp_path / 'a' / 'data.npy'}, and is not used" in caplog.text
    assert "All 9 training images were searched." in pages(page.read_text("utf-8"))
    assert np.array_equal(run.dataset().images, random_images(9, seed=ord("a")))


def test_a_subset_is_not_taken_for_the_whole(tmp_path):
    digits = pydiff.data.load("digits")
    train(tmp_path / "run", digits.subset(range(100)))
    text = pages(pydiff.load(tmp_path / "run").report(n=2, steps=3).read_text("utf-8"))
    assert "100, 8 × 8, grey" in text
    assert "1,797 training images" not in text
    train(tmp_path / "all", digits)
    assert "All 1,797" in pages(pydiff.load(tmp_path / "all").report(n=2, steps=3).read_text("utf-8"))


def test_nothing_in_the_current_folder_is_taken_for_training_data(tmp_path, monkeypatch):
    run = train(None, random_images(5))
    run.save(tmp_path / "model")
    (tmp_path / "model" / "pydiff.json").unlink()
    (tmp_path / "array").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = pydiff.load("model")
    with pytest.raises(ValueError, match="it is not known where the training data are; say it: data="):
        loaded.dataset()
    text = pages(loaded.report(tmp_path / "page", n=2, steps=3).read_text("utf-8"))
    assert "It is not known where the training data are" in text


def test_a_saved_model_knows_its_data_but_not_where_they_lie(moved, tmp_path):
    folder, _, second = moved
    pydiff.load(folder).save(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "pydiff.json").read_text()
    model = pydiff.load(tmp_path / "model")
    assert len(model.dataset(str(second))) == 50
    with pytest.raises(ValueError, match="has other data now"):
        pydiff.load(tmp_path / "model").dataset(random_images(50, seed=1))


def test_data_that_were_moved_before_the_run_went_on_are_known_at_their_new_place(tmp_path):
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(first, random_images(50))
    stop_after(tmp_path / "run", 3, str(first))
    first.rename(second)
    train(tmp_path / "run", str(second))
    assert len(pydiff.load(tmp_path / "run").dataset()) == 50


def test_a_name_that_is_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = b"fotos_\xe4.npy".decode("utf-8", "surrogateescape")
    np.save(name, random_images(6))
    train("run", name)
    assert len(pydiff.load("run").dataset()) == 6


def test_folders_whose_names_are_no_text(tmp_path, monkeypatch, caplog):
    """They train, begin another run with their weights, show a page and themselves."""
    monkeypatch.chdir(tmp_path)
    name = b"run_\xe4".decode("utf-8", "surrogateescape")
    run = train(name, random_images(6))
    assert repr(pydiff.load(name)).startswith(r"Run('run_\\xe4'")
    assert r"run_\xe4" in run.report(n=2, steps=2).read_text()
    run._repr_html_().encode()
    warm = train("warm", random_images(6), init_from=name)
    assert caplog.messages[-1].startswith(r"begins with the weights of run_\xe4, step ")
    assert warm.options["init_from"] == pydiff.load("warm").options["init_from"] == name
    assert pydiff.load("warm/model").options["init_from"] == r"run_\xe4"


def test_captions_and_classes_are_kept_with_the_samples(tmp_path):
    digits = pydiff.data.load(
        random_images(60), labels=["b", "a", "c"] * 20, captions=[["x" * 900, "second"], [], ["third"]] * 20
    )
    train(tmp_path / "run", digits, conditional=True, text="none")
    kept = open_folder(tmp_path / "run").origin.samples
    assert len(kept) == 36
    assert kept.classes == ["a", "b", "c"]
    assert kept.captions[0] == ("x" * 500, "second")
    chosen = np.unique(np.linspace(0, 59, 36).round().astype(int))
    assert np.array_equal(kept.images, digits.images[chosen])
    assert [kept.classes[i] for i in kept.labels] == [digits.classes[i] for i in digits.labels[chosen]]


def test_large_samples_are_kept_in_small_numbers():
    origin = Origin.of(Dataset("large", np.zeros((12, 1024, 1024, 1), np.uint8)), "nowhere")
    assert (origin.count, len(origin.samples), origin.path) == (12, 4, None)
    assert len(Origin.of(Dataset("huge", np.zeros((3, 2048, 2048, 3), np.uint8)), "nowhere").samples) == 1


def test_a_run_of_before_without_kept_samples_still_notices_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", random_images(9))
    train("run", "data.npy")
    shutil.rmtree("run/data")
    with pytest.raises(ValueError, match="it is not known where"):  # a name beside us is no proof
        pydiff.load("run").dataset()
    assert len(pydiff.load("run").dataset("data.npy")) == 9
    np.save("data.npy", random_images(9, seed=1))
    with pytest.raises(ValueError, match="has other data now"):
        pydiff.load("run").dataset("data.npy")


def test_a_run_that_was_begun_by_the_loop_alone_says_what_is_missing(tmp_path):
    train_until(tmp_path / "run", 2, pydiff.data.load("digits"), pydiff.Options(**TINY))
    with pytest.raises(pydiff.CheckpointError, match="let the same command go on with it, and ask again"):
        pydiff.load(tmp_path / "run")
    train(tmp_path / "run")
    assert pydiff.load(tmp_path / "run").step == 4


@pytest.mark.parametrize("name", ["moving-shapes", "swiss-roll"])
def test_samples_of_every_kind_are_kept(name):
    samples = Origin.of(pydiff.data.load(name), name).samples
    again = from_files(*to_files(samples))
    assert type(again) is type(samples)
    assert np.array_equal(again.images, samples.images)
    assert again.facts(1234) == samples.facts(1234)
    assert "1,234" in next(iter(samples.facts(1234).values()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words.update(kind="picture"), None),  # as 0.1 called an image
        (lambda words: words.update(kind="smell"), "data is not used: its samples are of the kind 'smell', which"),
        (lambda words: words.pop("captions"), "data is not used: 'captions' is missing"),
    ],
)
def test_samples_kept_by_another_pydiff_are_read_or_left_out_with_a_sentence(tmp_path, caplog, change, said):
    train(tmp_path / "run")
    arrays, about = kept.read(tmp_path / "run/data")
    change(about["words"])
    shutil.rmtree(tmp_path / "run/data")
    kept.write(tmp_path / "run/data", arrays, about)
    run = pydiff.load(tmp_path / "run")
    if said is None:
        assert not caplog.records
        assert len(run.origin.samples) > 0
    else:
        assert said in caplog.text
        assert run.origin.samples is None
        assert run.step == 4


def test_a_model_that_cannot_be_written_says_where_the_training_goes_on(tmp_path):
    def save(_):
        raise pydiff.CheckpointError("the disk is full.")

    folder = RunDirectory(tmp_path / "fresh")
    with pytest.raises(pydiff.CheckpointError, match=r"^the disk is full\.$"):
        finish(folder, save)  # there is nothing to go on from
    train(tmp_path / "run")
    with pytest.raises(pydiff.CheckpointError, match=r"^the disk is full; the same command goes on from step 4 once"):
        finish(RunDirectory(tmp_path / "run"), save)
