"""Run: sampling that does not depend on the batch, classes and guidance, saving, loading, showing."""

import json

import numpy as np
import pytest

import pydiff
from pydiff import backend
from pydiff.diffusion import SamplerState

TINY = {"steps": 3, "batch_size": 4, "channels": (8, 8), "groups": 4, "progress": False}
needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)


@pytest.fixture(scope="module")
def run():
    return pydiff.train("digits", **TINY)


@pytest.fixture(scope="module")
def conditional():
    return pydiff.train("digits", conditional=True, **TINY)


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"sampler": "ddpm"}, {"eta": 0.7}])
def test_a_image_has_the_same_bits_alone_and_in_any_batch(run, options):
    together = run.sample(7, seed=3, steps=5, **options)
    assert np.array_equal(together, run.sample(7, seed=3, steps=5, batch_size=2, **options))
    assert np.array_equal(together[:3], run.sample(3, seed=3, steps=5, **options))
    *_, last = run.sample_states(np.array([5]), 3, steps=5, **options)
    *_, all_last = run.sample_states(7, 3, steps=5, **options)
    assert np.array_equal(last.x[0], all_last.x[5])


@needs_kernels
def test_a_image_has_the_same_bits_on_any_number_of_threads(run):
    before, images = pydiff.threads(), []
    try:
        for threads in (1, 2, 3, 8):
            pydiff.set_threads(threads)
            images.append(run.sample(3, seed=1, steps=4).tobytes())
    finally:
        pydiff.set_threads(before)
    assert len(set(images)) == 1


def test_seeds_samplers_and_steps_give_other_images(run):
    options = [{}, {"seed": 1}, {"sampler": "ddpm"}, {"steps": 6}, {"eta": 0.5}]
    assert len({run.sample(2, **{"steps": 5, **o}).tobytes() for o in options}) == len(options)


def test_states_of_the_reverse_process(run):
    states = list(run.sample_states(2, steps=6))
    assert all(isinstance(s, SamplerState) for s in states)
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6]
    assert states[0].t == 999
    assert all(s.x.shape == s.x0.shape == s.eps.shape == (2, 8, 8, 1) for s in states)
    assert all(np.abs(s.x0).max() <= 1 for s in states)


def test_classes_take_turns_or_are_chosen(conditional):
    turns = conditional.sample(12, steps=3)
    assert np.array_equal(turns, conditional.sample(12, steps=3, labels=np.arange(12) % 10))
    assert not np.array_equal(turns, conditional.sample(12, steps=3, labels=np.zeros(12, int)))
    *_, alone = conditional.sample_states(np.array([4]), steps=3)  # image 4 is of class 4, also by itself
    *_, chosen = conditional.sample_states(np.array([4]), steps=3, labels=np.array([4]))
    assert np.array_equal(alone.x, chosen.x)


def test_guidance_follows_its_formula(conditional):
    """One step by hand: f_uncond + w (f - f_uncond) takes the place of f."""
    labels, w = np.array([3, 7]), 2.5
    state = next(conditional.sample_states(2, steps=1, labels=labels, guidance=w))
    x = pydiff.diffusion.initial_noise((8, 8, 1), 0, np.arange(2))
    with pydiff.no_grad():
        f, f_uncond = (conditional.model(x, 999, c).data for c in (labels, np.array([10, 10])))
    f = f_uncond + w * (f - f_uncond)
    u, v = conditional.process.x0_coefficients(
        conditional.process.schedule.alpha[999], conditional.process.schedule.sigma[999]
    )
    assert np.allclose(state.x0, (u * x + v * f).clip(-1, 1), atol=1e-3)
    plain = conditional.sample(2, steps=4, labels=labels)
    assert not np.array_equal(plain, conditional.sample(2, steps=4, labels=labels, guidance=w))


@pytest.mark.parametrize("name", ["run", "conditional"])
def test_save_and_load_give_the_same_images(name, request, tmp_path):
    original = request.getfixturevalue(name)
    original.save(tmp_path / "model")
    loaded = pydiff.load(tmp_path / "model")
    assert np.array_equal(original.sample(2, steps=3), loaded.sample(2, steps=3))
    assert (loaded.classes, loaded.step, loaded.data_name) == (original.classes, original.step, "digits")
    assert loaded.process.prediction == original.process.prediction
    assert np.array_equal(loaded.process.schedule.alpha, original.process.schedule.alpha)
    assert len(loaded.dataset()) == 1797


def test_a_model_folder_without_our_file_is_read_as_a_diffusers_model(run, tmp_path):
    run.save(tmp_path / "model")
    (tmp_path / "model" / "pydiff.json").unlink()
    loaded = pydiff.load(tmp_path / "model")
    assert loaded.process.prediction == run.process.prediction
    assert np.allclose(loaded.process.schedule.alpha, run.process.schedule.alpha, rtol=0, atol=1e-6)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(loaded.model.state_dict().values(), run.model.state_dict().values(), strict=True)
    )


def test_config_of_the_model_is_the_one_of_diffusers(run, tmp_path):
    run.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"
    assert config["block_out_channels"] == [8, 8]
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]


def test_a_run_shows_itself(run):
    page = run._repr_html_()
    assert "data:image/png;base64," in page
    assert "parameters" in page
    assert "3 steps on 'digits'" in repr(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "^n must be at least 1, got 0"),
        ({"n": 0, "batch_size": 0}, "^n must be at least 1, got 0"),
        ({"n": 1, "batch_size": 0}, "^batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": -3}, "^batch_size must be a whole number of at least 1, got -3"),
        ({"sampler": "euler?"}, "sampler must be one of"),
        ({"steps": 1001}, "expected 1 .. 1000"),
        ({"labels": [1]}, "trained without classes"),
        ({"guidance": 3.0}, "guidance needs a model with classes"),
        ({"eta": 2.0}, "eta is 2.0"),
    ],
)
def test_bad_arguments(run, options, message):
    with pytest.raises(ValueError, match=message):
        run.sample(**{"steps": 2, **options})


def test_labels_of_any_kind_are_the_same_classes(conditional):
    expected = conditional.sample(2, steps=2, labels=[3, 7])
    for labels in (
        (3, 7),
        np.array([3, 7], np.uint8),
        np.array([3, 7], object),
        np.array(["3", "7"], object),
        ["3", 7],
    ):
        assert np.array_equal(conditional.sample(2, steps=2, labels=labels), expected)


@pytest.mark.parametrize("labels", [[1, 2, 3], [10, 0], [-1, 0], [0.5, 1.0], 10, [1, None], np.array([1.0, None])])
def test_bad_labels(conditional, labels):
    with pytest.raises(ValueError, match="labels must be 2 whole numbers from 0 to 9"):
        conditional.sample(2, steps=2, labels=labels)
