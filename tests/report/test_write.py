"""From a run to its files."""

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff.codec import Pixels
from pydiff.data import Dataset
from pydiff.diffusion import Process
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.schedule import cosine, edm
from pydiff.nn import Module, Parameter
from pydiff.pipeline import Pipeline
from pydiff.report import html_summary, write_report
from pydiff.report.grid import grid, save_png
from pydiff.report.page import TARGETS
from pydiff.report.write import SLIDER_VALUES, budget, neighbours, reduced, shrinking, training_time
from pydiff.run import Run
from pydiff.tensor import Tensor
from tests.report.example import random_images
from tests.report.test_page import HOSTILE, Reader

SHAPE = (6, 6, 1)


class Guess(Module):
    """A network that always guesses the same noise."""

    parameter_count = 1234

    def __init__(self):
        self.weight = Parameter(np.zeros(self.parameter_count, np.float32))

    def forward(self, x, _t):
        return Tensor(np.tanh(x))


class Example:
    """What write_report and html_summary are given."""

    def __init__(self, images=None, labels=None):
        images = random_images(30, seed=0, shape=SHAPE) if images is None else images
        self.dataset = Dataset(HOSTILE, images, labels, None if labels is None else ["zero", HOSTILE])
        self.pipeline = Pipeline(Guess(), Process(cosine(100)), Pixels(self.dataset.shape))
        rows = [(s, 1 / s, 100.0 + s, 1000.0 + 2 * s) for s in range(1, 21)]
        self.log = [dict(zip(("step", "loss", "images_per_second", "time"), row, strict=True)) for row in rows]

    def write(self, directory, **options):
        history = {"name": "example", "log": self.log, "step": 20, "options": {"lr": 2e-4}}
        return write_report(self.pipeline, self.dataset, directory, **history, **options)


def test_the_report_is_three_files_about_the_same_samples(tmp_path):
    run = Example(labels=np.arange(30) % 2)
    page = run.write(tmp_path / "new" / "place", n=4, steps=20)
    assert page == tmp_path / "new" / "place" / "report.html"
    assert len(list(page.parent.iterdir())) == 3
    *_, last = run.pipeline.sample_states(4, 0, "ddpm", 20)
    samples = np.rint((last.x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    with Image.open(page.parent / "samples.png") as file:
        np.testing.assert_array_equal(np.asarray(file)[..., None], grid(samples))
    with Image.open(next(page.parent.glob("film.*"))) as film:
        assert film.n_frames == 21  # the noise and 20 steps
    texts = " ".join(Reader(page.read_text("utf-8")).texts)
    for said in ("30, 6 × 6, grey", "1,234", "38 s", "110 images a second", "ddpm, 20 steps, seed 0", HOSTILE):
        assert said in texts


def test_the_same_arguments_give_the_same_bytes_and_others_do_not(tmp_path):
    def text(**arguments):
        return Example().write(tmp_path, **{"n": 2, "steps": 10, **arguments}).read_bytes()

    assert text() == text()
    assert len({text(), text(seed=1), text(sampler="ddim"), text(steps=11), text(n=3)}) == 5


def test_default_steps_are_all_there_are_up_to_250(tmp_path):
    assert "ddpm, 100 steps" in Example().write(tmp_path, n=1).read_text("utf-8")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_can_be_reported(prediction, tmp_path):
    example = Example()
    process = Process(edm(100) if prediction.startswith("edm") else cosine(100), prediction)
    example.pipeline = Pipeline(Guess(), process, Pixels(SHAPE))
    assert TARGETS[prediction] in example.write(tmp_path, n=2, steps=4).read_text("utf-8")


def test_float_images_and_a_single_one(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
    assert Example(images).write(tmp_path, n=2, steps=5).is_file()


@pytest.mark.parametrize("n", [0, -1])
def test_a_page_of_no_samples_is_refused(n, tmp_path):
    run = pydiff.train("digits", steps=1, batch_size=2, channels=(8,), groups=4, sample_every=0, progress=False)
    with pytest.raises(ValueError, match="n must be at least 1, got"):
        run.report(tmp_path / "page", n=n)
    assert not (tmp_path / "page").exists()


def test_a_run_without_a_directory_needs_one():
    with pytest.raises(ValueError, match="no directory of its own"):
        Run.of_pipeline(Example().pipeline, {}).report()


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (128, 96, 3), (512, 512, 4)])
def test_what_is_recorded_stays_within_the_budget(shape):
    kept = budget(16, shape)
    factor = kept["factor"]
    values = (shape[0] // factor) * (shape[1] // factor) * min(shape[2], 4) * kept["samples"] * kept["keep"]
    assert values <= SLIDER_VALUES
    assert 4 <= kept["samples"] <= 16
    assert 20 <= kept["keep"] <= 100
    assert max(shape[:2]) // factor <= 64


def test_small_images_are_recorded_in_full():
    assert budget(16, (8, 8, 1)) == {"samples": 16, "keep": 100, "factor": 1}
    assert shrinking((1, 16000, 1)) == 1  # a row of numbers cannot be halved in height


def test_large_images_are_reduced_to_the_means_of_blocks():
    images = random_images(2, seed=0, shape=(130, 200, 3))
    np.testing.assert_array_equal(reduced(images, 200), images)
    got = reduced(images, 64)  # by 4
    assert got.shape == (2, 32, 50, 3)
    np.testing.assert_array_equal(got[1, 3, 5], np.rint(images[1, 12:16, 20:24].mean(axis=(0, 1))))


def test_neighbours_are_numbered_in_the_data_set_even_when_only_some_are_searched(monkeypatch):
    images = random_images(40, seed=0, shape=SHAPE)
    dataset, codec = Dataset("x", images), Pixels(SHAPE)
    everything = neighbours(images[[7, 39]], dataset, codec)
    assert everything.index.tolist() == [7, 39]
    assert everything.distance.tolist() == [0, 0]
    assert (everything.usual > 0).all()  # a training image is not its own neighbour
    assert everything.note == "All 40 training images were searched."
    monkeypatch.setattr("pydiff.report.write.SEARCH_VALUES", 10 * images[0].size)
    some = neighbours(images[[39]], dataset, codec)
    assert some.index.tolist() == [39]
    np.testing.assert_array_equal(some.images[0], images[39])
    assert some.note == "10 of the 40 training images were searched."


def test_pauses_are_no_training_time():
    assert training_time([0, 1, 2, 3, 1000, 1001]) == 4
    assert training_time([5]) == 0
    assert training_time([0, 1, 2, 3, -3600, -3599, -3598]) == 5  # the clock was set back
    assert training_time([5, 4]) == 0


def test_notebook_summary_shows_stored_samples_or_draws_some(tmp_path):
    example = Example()

    def summary(directory=None):
        return Reader(html_summary(HOSTILE, example.pipeline, example.log, directory))

    reader = summary()
    assert HOSTILE in reader.texts
    assert [tag for tag, _ in reader.elements] == ["div", "b", "br", "br", "svg", "path", "br", "img"]
    drawn = reader.all("img")[0]["src"]
    assert summary(tmp_path).all("img")[0]["src"] == drawn
    save_png(tmp_path / "samples.png", random_images(1, seed=9)[0])
    assert summary(tmp_path).all("img")[0]["src"] not in (drawn, None)
