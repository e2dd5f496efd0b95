"""Clips and points through everything that images have: training, resume, joint steps of images, samplers, editing."""

import numpy as np
import pytest

import pydiff
from pydiff import backend
from pydiff.data import load
from pydiff.data.moving import moving_shapes
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.report.write import write_report
from pydiff.training import JointTask
from tests.trainers import train_until

needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)
TINY = {"steps": 6, "batch_size": 4, "warmup": 2, "lr": 3e-3, "timesteps": 50, "sample_every": 0}
TINY |= {"channels": (8,), "groups": 2, "head_dim": 4}
PROMPTS = ["a fast red circle moving left", "a slow blue square moving up"]


@pytest.fixture(scope="module")
def clips():
    return moving_shapes(20, frames=3, size=8)


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    return pydiff.train(clips, images="frames", out=tmp_path_factory.mktemp("clips") / "run", progress=False, **TINY)


def test_a_stopped_run_of_clips_and_images_goes_on_to_the_same_bits(run, clips, tmp_path):
    options = pydiff.Options.from_keywords(run.options)
    train_until(tmp_path / "run", 3, clips, options, task=JointTask(clips, options, "frames"))
    resumed = pydiff.train(clips, images="frames", out=tmp_path / "run", progress=False, **TINY)
    for name, array in run.model.state_dict().items():
        assert np.array_equal(resumed.model.state_dict()[name], array), name
    with pytest.raises(ValueError, match="other data"):  # without the images it is another run
        pydiff.train(clips, out=tmp_path / "run", progress=False, **TINY)


@needs_kernels
def test_half_of_the_numbers_give_that_half_of_the_batch(clips):
    task = JointTask(clips, pydiff.Options(**TINY, image_share=0.5), "frames")
    kinds = set()
    for step in (1, 2):
        whole, part = task.batch(step, np.arange(4)), task.batch(step, np.array([1, 3]))
        kinds.add(whole.x0.ndim)
        each = 1 if whole.x0.ndim == 5 else 3
        rows = (np.array([1, 3])[:, None] * each + np.arange(each)).ravel()
        assert np.array_equal(whole.x0[rows], part.x0)
        assert np.array_equal(task.losses(whole).data[[1, 3]], task.losses(part).data)
        assert task.losses(whole).shape == (4,)
    assert kinds == {4, 5}


def test_the_share_of_images_is_kept(clips):
    for share in (0.0, 0.25, 0.6):
        task = JointTask(clips, pydiff.Options(**TINY, image_share=share), "frames")
        shown = [task.shows_images(step) for step in range(1, 101)]
        assert sum(shown) == round(100 * share)


def test_images_from_elsewhere(clips):
    images = load(np.zeros((5, 12, 12, 1), np.uint8))
    run = pydiff.train(clips, images=images, progress=False, **TINY)
    assert run.sample(1, prompts=PROMPTS, steps=2).shape == (2, 3, 8, 8, 3)
    task = JointTask(clips, pydiff.Options(**TINY), load(images, size=8, channels=3))
    assert task.batch(2, np.arange(4)).x0.shape == (12, 8, 8, 3)
    with pytest.raises(ValueError, match="the frames"):
        JointTask(clips, pydiff.Options(**TINY), images)
    with pytest.raises(ValueError, match="beside clips"):
        pydiff.train("digits", images="frames", progress=False, **TINY)


@needs_kernels
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_clips(run, sampler):
    options = {"sampler": sampler, "steps": 3, "guidance": 2.0, "prompts": PROMPTS}
    together = run.sample(1, **options)
    assert together.shape == (2, 3, 8, 8, 3)
    assert together.dtype == np.uint8
    *_, last = run.sample_states(1, **{**options, "prompts": PROMPTS[1:]})
    assert np.array_equal(run.codec.decode(last.x), together[1:])


def test_a_run_of_clips_is_opened_and_edited(run, clips):
    opened = pydiff.load(run.directory)
    drawn = run.sample(1, prompts=PROMPTS, steps=3)
    assert np.array_equal(opened.sample(1, prompts=PROMPTS, steps=3), drawn)
    given, mask = clips.images[:2], [0, 1, 1]  # continuation: the first frame is known
    made = opened.inpaint(given, mask, steps=3, resample=2, prompts=PROMPTS)
    assert np.array_equal(made[:, 0], given[:, 0])
    assert not np.array_equal(made[:, 1:], given[:, 1:])
    square = np.zeros((8, 8))
    square[:4] = 1  # the upper half of every frame
    made = opened.inpaint(given, square, steps=3, resample=1)
    assert np.array_equal(made[:, :, 4:], given[:, :, 4:])
    assert opened.image_to_image(given, 0.5, steps=4).shape == given.shape
    assert opened.variations(given, 0.3, steps=4).shape == given.shape
    assert opened.interpolate(1, 2, [0.0, 0.5, 1.0], steps=3).shape == (3, 3, 8, 8, 3)
    for wrong in (np.ones((2, 8, 8)), np.ones(4), np.full(3, 2.0), np.ones((2, 2))):
        with pytest.raises(ValueError, match="mask"):
            opened.inpaint(given, wrong, steps=3)


def test_the_page_of_clips(run, clips, tmp_path):
    page = write_report(
        run.pipeline, clips, tmp_path, name="clips", log=run.log(), step=6, options=run.options, n=2, steps=4
    )
    assert "20, 3 frames at 8 a second" in page.read_text()


@pytest.mark.parametrize("more", [{}, {"conditional": True}, {"self_conditioning": True}, {"variance": "learned"}])
def test_points_through_everything(tmp_path, more):
    rng = np.random.default_rng(0)
    data = load(rng.standard_normal((40, 3)) * 4 + 1, labels=np.arange(40) % 2)
    options = {"steps": 6, "batch_size": 8, "warmup": 2, "timesteps": 50, "sample_every": 0, "channels": (16,), **more}
    run = pydiff.train(data, out=tmp_path / "run", progress=False, **options)
    train_until(tmp_path / "again", 3, data, pydiff.Options(**options))
    again = pydiff.train(data, out=tmp_path / "again", progress=False, **options)
    for name, array in run.model.state_dict().items():
        assert np.array_equal(again.model.state_dict()[name], array), name
    drawn = run.sample(5, steps=4)
    assert drawn.shape == (5, 3)
    assert drawn.dtype == np.float32
    assert np.array_equal(pydiff.load(tmp_path / "run").sample(5, steps=4), drawn)
    if more.get("conditional"):
        assert run.sample(4, steps=4, labels=[0, 1, 1, 0], guidance=3.0).shape == (4, 3)
    page = run.report(n=4, steps=4)
    assert "40 of 3 numbers" in page.read_text()


def test_points_of_one_number_and_odd_counts():
    for shape in [(7, 1), (1, 2), (5, 11)]:
        data = np.random.default_rng(1).standard_normal(shape)
        run = pydiff.train(data, progress=False, steps=2, batch_size=3, channels=(8,), timesteps=20)
        assert run.sample(3, steps=3).shape == (3, shape[1])
        assert run.sample(2, steps=3, sampler="ddpm").shape == (2, shape[1])
    with pytest.raises(ValueError, match="captions"):
        pydiff.train("swiss-roll", text="glove", steps=1, progress=False)
