"""Segmentation: data with masks, the losses, training that resumes, folders, the page and the command."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pydiff import segment
from pydiff.cli import main
from pydiff.data.masks import Masked, load_masked, shapes
from pydiff.formats.safetensors import CheckpointError
from pydiff.tensor import Tensor
from pydiff.training.config import LoopOptions
from pydiff.training.segment import SegmentTask, segmentation_losses
from tests.compare import check_gradient
from tests.trainers import train_until

TINY = {"steps": 4, "batch_size": 4, "warmup": 1, "channels": (8,), "progress": False}


def naive_loss(scores, masks, dice):
    """The formula of one sample, pixel by pixel, in float64."""
    height, width, classes = scores.shape
    entropy, overlap, p_sum, g_sum = 0.0, np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for i in range(height):
        for j in range(width):
            e = np.exp(scores[i, j] - scores[i, j].max())
            p, k = e / e.sum(), masks[i, j]
            entropy -= np.log(p[k])
            p_sum += p
            overlap[k] += p[k]
            g_sum[k] += 1
    share = ((2 * overlap + 1) / (p_sum + g_sum + 1)).mean()
    return entropy / (height * width) + dice * (1 - share)


@settings(max_examples=20)
@given(
    n=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), classes=st.integers(2, 5),
    dice=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_losses_are_the_formula_and_their_gradient_its_slope(n, height, width, classes, dice, seed):
    rng = np.random.default_rng(seed)
    scores, masks = rng.standard_normal((n, height, width, classes)), rng.integers(0, classes, (n, height, width))
    expected = np.array([naive_loss(s, m, dice) for s, m in zip(scores, masks, strict=True)])
    assert np.allclose(segmentation_losses(Tensor(scores), masks, dice).data, expected, rtol=1e-12)
    check_gradient(
        lambda s: segmentation_losses(s, masks, dice),
        lambda s: np.array([naive_loss(a, m, dice) for a, m in zip(s, masks, strict=True)]), [scores], rng,
    )  # fmt: skip


def test_the_shapes_defeat_a_threshold_and_not_their_masks():
    data = shapes(60, seed=2)
    assert data.classes == ["ground", "circle", "square", "triangle"]
    assert set(np.unique(data.masks)) == {0, 1, 2, 3}
    kept, held = data.split(0.5)
    two = Masked("two", kept.images, np.minimum(kept.masks, 1), ["ground", "shape"])
    guess = segment.threshold_baseline(two, held.images)
    assert np.nanmean(segment.iou(guess, np.minimum(held.masks, 1), 2)) < 0.75
    assert np.array_equal(shapes(3, seed=2).images, data.images[:3])
    with pytest.raises(ValueError, match="shapes need"):
        shapes(0)


def test_thresholds_find_what_thresholds_can():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (6, 8, 8))
    for low, high in ((40, 200), (200, 40)):
        images = np.where(masks == 1, high, low).astype(np.uint8)[..., None]
        assert np.array_equal(segment.threshold_baseline(Masked("x", images, masks, ["a", "b"]), images), masks)
    three = rng.integers(0, 3, (6, 8, 8))
    coloured = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200]], np.uint8)[three]
    assert np.array_equal(segment.threshold_baseline(Masked("x", coloured, three, ["a", "b", "c"]), coloured), three)


def test_intersection_over_union():
    a, b = np.array([[0, 1], [1, 1]]), np.array([[0, 0], [1, 1]])
    assert np.allclose(segment.iou(a, b, 3)[:2], [0.5, 2 / 3])
    assert np.isnan(segment.iou(a, b, 3)[2])


def folder_of(root, count=8, size=12):
    """Images with a bright square on dark ground, and palette masks of it."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng, masks = np.random.default_rng(0), []
    for i in range(count):
        mask = np.zeros((size, size), np.uint8)
        y, x = rng.integers(0, size - 4, 2)
        mask[y : y + 4, x : x + 4] = 1
        image = np.where(mask == 1, 220, 30).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask * 7).save(root / "masks" / f"{i}.png")
        masks.append(mask)
    return np.stack(masks)


def test_a_folder_of_images_with_masks(tmp_path):
    masks = folder_of(tmp_path)
    Image.new("L", (12, 12)).save(tmp_path / "images" / "lonely.png")
    Image.new("L", (12, 12)).save(tmp_path / "masks" / "extra.png")
    Image.new("L", (12, 12)).save(tmp_path / "images" / "odd.png")
    Image.new("L", (5, 5)).save(tmp_path / "masks" / "odd.png")
    Image.new("L", (12, 12)).save(tmp_path / "images" / "broken.png")
    (tmp_path / "masks" / "broken.png").write_bytes(b"\x89PNG nothing")
    data = load_masked(tmp_path)
    assert data.classes == ["0", "7"]
    assert np.array_equal(data.masks, masks)
    reasons = dict(data.skipped)
    assert reasons["lonely.png"] == "no mask of that name"
    assert reasons["odd.png"] == "5 x 5 pixels, and its image 12 x 12"
    assert reasons["broken.png"].startswith("damaged")
    assert any("1 mask without an image: extra.png" in note for note in data.notes)
    assert load_masked(tmp_path, size=6).masks.shape == (8, 6, 6)
    assert set(np.unique(load_masked(tmp_path, size=6).masks)) <= {0, 1}  # nothing in between


def test_colours_are_classes_too(tmp_path):
    masks = folder_of(tmp_path)
    for i, mask in enumerate(masks):
        Image.fromarray(np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[mask]).save(tmp_path / "masks" / f"{i}.png")
    data = load_masked(tmp_path)
    assert data.classes == ["0,0,0", "255,0,0"]
    assert np.array_equal(data.masks, masks)


def test_what_is_no_data_for_segmentation_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_masked(tmp_path / "nothing")
    with pytest.raises(ValueError, match="needs the subfolders images and masks"):
        load_masked(tmp_path)
    folder_of(tmp_path / "a")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (12, 12)).astype(np.uint8)).save(tmp_path / "a" / "masks" / f"{i}.png")
    with pytest.raises(ValueError, match="were they smoothed"):
        load_masked(tmp_path / "a")
    with pytest.raises(ValueError, match="expected 2 classes or more"):
        Masked("x", np.zeros((2, 4, 4, 1), np.uint8), np.full((2, 4, 4), 5), ["a", "b"])
    with pytest.raises(ValueError, match="masks are"):
        Masked("x", np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 5), int), ["a", "b"])


def test_a_run_learns_resumes_and_is_opened_again(tmp_path):
    data = shapes(20, seed=1, size=16)
    whole = segment.train(data, out=tmp_path / "whole", **TINY)
    options = LoopOptions.from_keywords({"steps": 4, "batch_size": 4, "warmup": 1, "lr": 2e-3, "ema": 0.995})
    kept, held = data.split(segment.HELD_OUT)
    train_until(tmp_path / "cut", 2, kept, options, task=SegmentTask(kept, options, channels=(8,)))
    again = segment.train(data, out=tmp_path / "cut", **TINY)
    for name, array in whole.segmenter.model.state_dict().items():
        assert np.array_equal(again.segmenter.model.state_dict()[name], array), name
    opened = segment.load(tmp_path / "whole")
    assert opened.classes == data.classes
    assert np.array_equal(opened.predict(held.images), whole.predicted)
    assert opened.scores(held.images[:2]).shape == (2, 16, 16, 4)
    assert whole.page.read_text().count("<section>") == 3
    for wrong in (held.images[..., 0], held.images.astype(np.float32), held.images[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            opened.predict(wrong)


def test_it_learns():
    """Better than any threshold after a few steps, where a threshold cannot tell the classes."""
    result = segment.train(
        shapes(80, seed=3, size=16), steps=150, batch_size=16, channels=(16, 32), lr=4e-3, ema=0.97, progress=False
    )
    assert result.scores["network"]["mean iou"] > result.scores["threshold"]["mean iou"] + 0.1
    assert result.page is None


def test_half_of_the_numbers_give_that_half():
    options = LoopOptions(steps=2, batch_size=6)
    task = SegmentTask(shapes(10, size=8), options, channels=(8,))
    whole, part = task.batch(2, np.arange(6)), task.batch(2, np.array([1, 4]))
    assert all(np.array_equal(a[[1, 4]], b) for a, b in zip(whole, part, strict=True))


def test_the_command(tmp_path, capsys):
    folder_of(tmp_path / "data")
    arguments = ["segment", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2", "--size", "8"]
    assert main([*arguments, "--batch-size", "2"]) == 0
    said = capsys.readouterr().out
    assert "8 images with masks, 8 x 8" in said
    assert "a threshold reaches" in said
    assert main(["segment", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_a_diffusion_model_segments_nothing(tmp_path):
    import pydiff

    pydiff.train("digits", steps=1, channels=(8,), batch_size=2, progress=False).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="segments nothing"):
        segment.load(tmp_path / "model")
