"""Editing for users: images in, images out, the same alone and in a batch, and one sentence for what cannot be."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import backend
from pydiff.edit import _own_scheduler

TINY = {"steps": 3, "batch_size": 8, "channels": (8,), "groups": 4, "progress": False}
needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)
HALF = np.arange(8)[None, :] * np.ones((8, 1)) >= 4
EDITS = {
    "inpaint": lambda run, images, **more: run.inpaint(images, HALF, resample=2, steps=4, **more),
    "image_to_image": lambda run, images, **more: run.image_to_image(images, 0.6, steps=5, **more),
    "image_to_image, ddpm": lambda run, images, **more: run.image_to_image(images, steps=5, sampler="ddpm", **more),
    "variations": lambda run, images, **more: run.variations(images, 0.5, steps=4, **more),
}


@pytest.fixture(scope="module")
def run():
    return pydiff.train("digits", **TINY)


@pytest.fixture(scope="module")
def conditional():
    return pydiff.train("digits", conditional=True, self_conditioning=True, variance="learned", **TINY)


@pytest.fixture(scope="module")
def images(run):
    return run.dataset().images[:5]


@needs_kernels
@pytest.mark.parametrize("model", ["run", "conditional"])
@pytest.mark.parametrize("name", EDITS)
def test_a_image_is_edited_to_the_same_bits_alone_and_in_a_batch(name, model, images, request):
    edit, run = EDITS[name], request.getfixturevalue(model)
    together = edit(run, images, seed=2)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    assert (together == edit(run, images, seed=2, batch_size=2)).all()
    assert (together[3:4] == edit(run, images[3:4], seed=2, numbers=[3])).all()
    assert (together != edit(run, images, seed=4)).any()


def test_inpainting_keeps_what_the_mask_says(run, images):
    for mask in (HALF, np.stack([HALF] * 5), np.stack([HALF] * 5)[..., None].astype(float)):
        drawn = run.inpaint(images, mask, resample=1, steps=3)
        assert (drawn[:, :, :4] == images[:, :, :4]).all()
        assert (drawn[:, :, 4:] != images[:, :, 4:]).any()
    assert (run.inpaint(images, np.zeros((8, 8)), steps=3) == images).all()


def test_strength_says_how_much_is_kept(run, images):
    for edit in (run.image_to_image, run.variations):
        weak, strong = (edit(images, strength, steps=20).astype(int) for strength in (0.05, 1.0))
        assert np.abs(weak - images).mean() < np.abs(strong - images).mean()


def test_labels_and_guidance_count(conditional, images):
    labels = np.arange(5)
    edits = [{}, {"labels": labels}, {"labels": labels, "guidance": 9.0}, {"labels": labels[::-1]}]
    conditional.model.class_embedding.weight.data *= 30
    assert len({conditional.image_to_image(images, 1.0, steps=4, **e).tobytes() for e in edits}) == 4
    with pytest.raises(ValueError, match="guidance needs labels"):
        conditional.variations(images, guidance=2.0)


@pytest.mark.parametrize("model", ["run", "conditional"])
def test_interpolation_begins_and_ends_at_the_images_of_the_seeds(model, request):
    run = request.getfixturevalue(model)
    row = run.interpolate(3, 8, [0.0, 0.5, 1.0], steps=4)
    assert row.shape == (3, 8, 8, 1)
    assert np.abs(row[0].astype(int) - run.sample(1, 3, steps=4)[0]).max() <= 1  # a rounding of the noise
    assert np.abs(row[2].astype(int) - run.sample(1, 8, steps=4)[0]).max() <= 1
    assert (row[1] != row[0]).any()
    assert (row[1] != row[2]).any()


def test_a_schedule_of_another_scale(images):
    run = pydiff.train("digits", **TINY, schedule="edm", prediction="edm")
    for name, edit in EDITS.items():
        if name != "variations":
            assert edit(run, images).shape == images.shape
    with pytest.raises(ValueError, match="cannot be asked about clean images"):
        run.variations(images)
    assert run.interpolate(0, 1, [0.5], steps=3).shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, x: run.image_to_image(x[:, :7]), r"expected uint8 \(N, 8, 8, 1\)"),
        (lambda run, x: run.variations(x / 255.0), "images are float64"),
        (lambda run, x: run.variations(x[0]), r"images are uint8 \(8, 8, 1\)"),
        (lambda run, x: run.inpaint(x, np.zeros((7, 8))), r"mask is float64 \(7, 8\), expected"),
        (lambda run, x: run.inpaint(x, 1), "mask is 1, expected"),
        (lambda run, x: run.inpaint(x, np.full((8, 8), 255)), r"mask goes from 255\.0 to 255\.0"),
        (lambda run, x: run.inpaint(x, np.full((8, 8), np.nan)), "mask goes from nan"),
        (lambda run, x: run.image_to_image(x, 0.0), "strength is 0"),
        (lambda run, x: run.image_to_image(x, 1.5), "strength is 1.5"),
        (lambda run, x: run.variations(x, -0.1), "strength is -0.1"),
        (lambda run, x: run.image_to_image(x, sampler="best"), "sampler must be one of"),
        (lambda run, x: run.variations(x, numbers=[1]), "5 images need as many numbers"),
        (lambda run, x: run.variations(x, labels=[1] * 5), "trained without classes"),
        (lambda run, _: run.interpolate(0, 1, [2.0]), "shares must be a list of numbers from 0 to 1"),
    ],
)
def test_bad_arguments_are_one_sentence(run, images, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(run, images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda run, _: run.image_to_image(None), TypeError, "got None, expected samples"),
        (lambda run, _: run.variations("a.png"), TypeError, "got str 'a.png', expected samples"),
        (lambda run, _: run.inpaint(None, HALF), TypeError, "got None, expected samples"),
        (lambda run, x: run.inpaint(x, None), ValueError, "mask is None, expected"),
        (lambda run, x: run.inpaint(x, "mask.png"), ValueError, "mask is 'mask.png', expected"),
        (lambda run, x: run.variations(Image.fromarray(x[0, ..., 0])), TypeError, "one image; give a list of images"),
        (lambda run, x: run.variations([x[0], x[1, :4]]), ValueError, "of different sizes"),
        (lambda run, x: run.image_to_image(x, "0.5"), ValueError, "strength is '0.5', expected above 0"),
        (
            lambda run, x: run.image_to_image(x, strenght=0.5),
            TypeError,
            "'strenght'; did you mean 'strength'",
        ),
        (lambda run, x: run.image_to_image(x, num_inference_steps=5), TypeError, "it is called 'steps' here"),
        (lambda run, x: run.image_to_image(x, label=[1]), TypeError, "no option 'label'; did you mean 'labels'"),
        (
            lambda run, x: run.image_to_image(x, device="cpu"),
            TypeError,
            "'device'; there are images, strength",
        ),
        (lambda run, x: run.image_to_image(x, steps="5"), ValueError, "got '5' steps, expected a whole number"),
        (lambda run, x: run.image_to_image(x, options=3), TypeError, "options are those of the sampler, a dict"),
        (lambda run, x: run.image_to_image(x, batch_size="2"), ValueError, "batch_size must be a whole number"),
        (lambda run, x: run.variations(x, "0.5"), ValueError, "strength is '0.5', expected 0"),
        (lambda run, x: run.variations(x, stepz=2), TypeError, "no option 'stepz'; did you mean 'steps'"),
        (lambda run, x: run.inpaint(x, HALF, resample="5"), ValueError, "resample is '5', expected 1"),
        (lambda run, x: run.inpaint(x, HALF, resample=1.5), ValueError, "resample is 1.5, expected 1"),
        (lambda run, x: run.inpaint(x, HALF, mask_image=HALF), TypeError, "it is called 'mask' here"),
        (lambda run, _: run.interpolate(0, 1, "a"), ValueError, "shares must be a list of numbers"),
        (lambda run, _: run.interpolate(0, 1, [0.5], stps=2), TypeError, "no option 'stps'; did you mean 'steps'"),
        (lambda run, _: run.report("page", nn=2), TypeError, "no option 'nn'"),
        (lambda run, _: run.report("page", n="a"), TypeError, "n is how many samples to draw, .* got 'a'"),
    ],
)
def test_mistakes_are_said_in_words_of_ours(run, images, call, error, message):
    with pytest.raises(error, match=message):
        call(run, images)


def test_what_is_advised_for_images_that_do_not_fit_makes_them_fit(run, images):
    """Floats, whole numbers of other types, images without an axis, channels first: as Pillow, matplotlib and PyTorch
    give them.
    """
    rgb = pydiff.train(np.repeat(images, 3, -1), **TINY)
    advised = {
        "astype": (run, images.astype(np.int64), lambda images: images.astype(np.uint8)),
        "rint": (run, images / 255.0, lambda images: np.rint(images * 255).astype(np.uint8)),
        "to_uint8": (run, images / 127.5 - 1, pydiff.data.to_uint8),
        r"images\[None\]": (run, images[0], lambda images: images[None]),
        r"images\[\.\.\., None\]": (run, images[..., 0], lambda images: images[..., None]),
        r"transpose\(0, 2, 3, 1\)": (rgb, np.repeat(images, 3, -1).transpose(0, 3, 1, 2),
                                    lambda images: images.transpose(0, 2, 3, 1)),
        "black and white": (run, images > 99, lambda images: images * np.uint8(255)),
    }  # fmt: skip
    for words, (model, given, mend) in advised.items():
        with pytest.raises(ValueError, match=f"expected uint8 .*; .*{words}"):
            model.image_to_image(given, steps=2)
        assert model.image_to_image(mend(given), steps=2).dtype == np.uint8
    for given, words in ((images[:, :4], "; resize them first"), (np.repeat(images, 3, -1), "they have 3 channels"),
                         (images * 1e3, "; bring them from 0 .. "), (images[:0], "; give at least one")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            run.image_to_image(given.astype(float), steps=2)


def test_a_list_of_images_is_edited_as_an_array_of_them(run, images):
    whole = run.image_to_image(images, steps=2)
    rgb = pydiff.train(np.repeat(images, 3, -1), **TINY)
    assert (run.image_to_image([*images], steps=2) == whole).all()
    pillow = [Image.fromarray(image) for image in np.repeat(images, 3, -1)]
    assert (rgb.image_to_image(pillow, steps=2) == rgb.image_to_image(np.repeat(images, 3, -1), steps=2)).all()


def test_models_of_few_noise_levels_are_edited_by_default(images):
    few = pydiff.train("digits", timesteps=20, **TINY)
    assert few.variations(images[:1]).shape == few.interpolate(0, 1, [0.5]).shape == (1, 8, 8, 1)


def test_the_last_steps_of_a_models_own_scheduler():
    own = SimpleNamespace(scheduler=lambda steps, begin: (steps, begin))
    for strength, begin in ((1.0, 0), (1, 0), (0.5, 10), (0.05, 19), (0.07, 19)):
        assert _own_scheduler(own, 20, strength) == ((20, begin), begin)
    for strength, message in ((0, "strength is 0, expected above 0"), (1.01, "strength is 1.01"), (-1, "is -1"),
                              (0.049, "strength 0.049 of 20 steps is less than one step")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            _own_scheduler(own, 20, strength)
    with pytest.raises(ValueError, match="came without a scheduler that could fill in"):
        _own_scheduler(SimpleNamespace(scheduler=None), 20, 0.5)
