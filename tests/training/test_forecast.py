"""What a training will take is said before it takes it, and what cannot fit is refused with what can."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import pydiff
from pydiff import memory, nn
from pydiff.cli import main
from pydiff.data import Dataset
from pydiff.dry_run import dry_run
from pydiff.training import (
    AutoencoderOptions,
    AutoencoderTask,
    DiffusionTask,
    LoopOptions,
    Options,
    Trainer,
    training_steps,
)
from pydiff.training import forecast as module
from pydiff.training.forecast import Need, at_once, check_room, need_of, pace
from tests.training.test_loop import Slope

SMALL = {"channels": (8, 16), "groups": 4, "steps": 5}


def trainer(side=16, channels=3, **options):
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, channels)).astype(np.uint8)
    options = Options(**{**SMALL, "batch_size": 4, **options})
    return Trainer(DiffusionTask(pydiff.data.load(images), options), options)


def measured(trained):
    """What a whole step takes at its most, as tracemalloc sees it."""
    return module.peak(trained, trained.task.batch(1, np.arange(at_once(trained.options))))


@pytest.mark.parametrize("batch_size", [1, 5, 9])
def test_need_grows_with_the_batch_as_measured(batch_size):
    trained = trainer(batch_size=batch_size)
    need = need_of(trained)
    assert need.of(batch_size) / module.MARGIN == pytest.approx(measured(trained), rel=0.1)


def test_need_of_large_images_follows_from_small_ones():
    trained = trainer(side=112, batch_size=1, attention=())
    need = need_of(trained)
    assert need.pixels == 112 * 112
    assert need.of(1) / module.MARGIN == pytest.approx(measured(trained), rel=0.1)


def test_measuring_changes_nothing():
    def steps(measure):
        trained = trainer(timestep_sampling="loss_aware", dropout=0.1)
        if measure:
            need_of(trained)
        losses = [state.loss for state in training_steps(trained)]
        return losses, trained.optimizer.p.tobytes(), trained.task.history.seen.tobytes()

    assert steps(False) == steps(True)


def advised(error):
    """The keywords that a refusal advises, each on its own."""
    for name, value in re.findall(r"(\w+) = (\d+)", str(error.value)):
        yield {name: int(value)}


@pytest.mark.parametrize(("side", "batch_size"), [(16, 64), (112, 4)])
def test_what_cannot_fit_is_refused_and_the_advice_fits(side, batch_size):
    trained = trainer(side=side, batch_size=batch_size, attention=())
    free = int(need_of(trained).of(batch_size) * 0.4)
    with pytest.raises(ValueError, match=r"a step would take about .* are free; what fits is batch_size = ") as error:
        check_room(trained, free)
    assert "\n" not in str(error.value)
    advice = list(advised(error))
    assert len(advice) == (3 if side > 96 else 2)
    for change in advice:
        change = {{"accumulate": "shards"}.get(name, name): value for name, value in change.items()}
        made = {"batch_size": batch_size, "attention": (), **change}
        other = trainer(side=made.pop("size", side), **made)
        check_room(other, free * 1.05)
    less = free // batch_size // 4
    with pytest.raises(ValueError, match=r"are free; (not even one sample fits|what fits is size = )"):
        check_room(trained, less)


def test_a_training_asks_before_its_first_step(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1_000_000)
    with pytest.raises(ValueError, match="a step would take about"):
        pydiff.train("digits", batch_size=64, progress=False, **SMALL)


def test_what_is_certainly_small_is_not_measured(monkeypatch):
    monkeypatch.setattr(module, "need_of", lambda _: pytest.fail("it was measured"))
    check_room(trainer(), 10**12)


def test_images_that_cannot_be_enlarged_in_memory_are_refused(tmp_path, monkeypatch):
    images = np.zeros((100, 8, 8, 1), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free", lambda: 10_000_000)
        with pytest.raises(ValueError, match=r"100 images of 4096 x 4096 would take 1.68 GB .* 312 at most") as error:
            pydiff.data.load(images, size=4096)
        assert pydiff.data.load(images, size=int(re.search(r"(\d+) at most", str(error.value))[1])).shape[0] == 312
        from PIL import Image

        for i in range(3):
            Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
        with pytest.raises(ValueError, match="3 images of 4096 x 4096 would take 101 MB"):
            pydiff.data.load(tmp_path, size=4096)
    assert memory.free() is None or memory.free() > 0


def test_tasks_of_ones_own_are_not_measured():
    options = LoopOptions(steps=3, batch_size=3)
    assert need_of(Trainer(Slope(), options)) is None


def test_a_dry_run_says_memory_and_time_and_writes_nothing(tmp_path):
    line = [sys.executable, "-m", "pydiff", "train", "digits", "--dry-run", "--steps", "50", "--batch-size", "8"]
    line += ["--channels", "8", "16", "--groups", "4", "--accumulate", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights and optimiser: " in done.stdout
    assert re.search(r"a step \(4 at a time\): about [\d.]+ [kMG]B; [\d.,]+ [GT]B are free", done.stdout)
    assert re.search(r"time: [\d.e-]+ s a step, [\d.]+ seconds for 50 steps", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_an_autoencoder_and_of_a_training_in_its_latents(tmp_path, capsys):
    small = ["--steps", "6", "--batch-size", "4", "--channels", "8", "16", "--groups", "4", "--sample-every", "0"]
    out = str(tmp_path / "ae")
    train = ["train", "digits", "--model", "autoencoder", *small, "--out", out]
    assert main([*train, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"a step \(4 samples\): about [\d.]+ [kMG]B", said)
    assert re.search(r"time: .* for 6 steps", said)
    assert list(tmp_path.iterdir()) == []
    assert main(train) == 0
    capsys.readouterr()
    assert main(["train", "digits", "--latent", out, *small, "--flip", "--dry-run", "--out", str(tmp_path / "x")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"before the first step the data are encoded: [\d.]+ seconds, 920 kB", said)  # 2 x 1797 x 64 x 4
    assert re.search(r"a step \(4 samples\): about [\d.]+ [kMG]B", said)
    assert [path.name for path in tmp_path.iterdir()] == ["ae"]


def test_an_autoencoder_of_large_images_is_foretold_from_their_corners(monkeypatch):
    images = np.zeros((2, 128, 160, 3), np.uint8)
    options = AutoencoderOptions(steps=2, batch_size=2, channels=(8, 16, 16), groups=4)
    task = AutoencoderTask(Dataset("grey", images), options)
    trained, seen = Trainer(task, options), []
    real = module.peak
    monkeypatch.setattr(module, "peak", lambda _, batch: seen.append(batch) or real(trained, batch))
    need = need_of(trained)
    assert [(batch.x0.shape, batch.noise.shape) for batch in seen] == [
        ((1, side, side, 3), (1, side // 4, side // 4, 4)) for side in (32, 64, 96)
    ]
    taken = real(trained, task.batch(1, np.arange(1)))
    assert 0.9 * taken < need.of(1) < 1.7 * taken  # with the margin
    with pytest.raises(ValueError, match="a step would take about"):
        check_room(trained, 30_000_000)


def test_a_dry_run_of_what_cannot_fit_is_the_same_refusal(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1_000_000)
    with pytest.raises(ValueError, match="a step would take about"):
        dry_run("digits", batch_size=64, **SMALL)


@pytest.mark.parametrize(("size", "words"), [(7, "7 bytes"), (1234, "1.23 kB"), (2.5e10, "25 GB"), (3e15, "3,000 TB")])
def test_sizes_in_words(size, words):
    assert memory.told(size) == words


@pytest.mark.parametrize(("asked", "taken"), [(1, 2), (3, 4), (9, 5)])
def test_pace_takes_no_step_in_vain(asked, taken):
    """One more than are timed, and no more than there are."""
    trained = trainer(size=8)
    assert pace(trained, asked) > 0
    assert trained.step == taken
    assert pace(trainer(size=8, steps=1)) is None


def test_the_need_of_one_sample_grows_from_nothing():
    need = need_of(trainer(size=8, batch_size=1))
    assert (need.fixed, need.square, need.pixels) == (0.0, 0.0, 1)
    assert need.linear > 1000


def test_need_is_a_formula():
    need = Need(100.0, 2.0, 0.5, 10)
    assert need.of(3) == module.MARGIN * (100 + 3 * (20 + 50))
    assert need.of(1, 4) == module.MARGIN * (100 + 8 + 8)
    assert isinstance(trainer().model, nn.Module)


def test_the_largest_side_has_an_end():
    """Where anything would fit, and where nothing does."""
    light, heavy = (SimpleNamespace(of=lambda _n, _pixels, takes=takes: takes) for takes in (0, 2))
    assert module._largest_side(light, 1, 1) == 1 << 16
    assert module._largest_side(heavy, 1, 1) == 0
    exact = SimpleNamespace(of=lambda n, pixels: n * pixels)
    assert module._largest_side(exact, 2, 2 * 40**2) == 40
    assert module._largest_side(exact, 2, 2 * 40**2 - 1) == 32
