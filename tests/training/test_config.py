"""Options: each one counts, and what cannot work is said in one sentence."""

import numpy as np
import pytest

import pydiff
from pydiff.training import Options
from pydiff.training.config import levels_with_attention

TINY = {"steps": 8, "batch_size": 4, "channels": (8, 8), "groups": 4, "warmup": 2, "sample_every": 0, "progress": False}


CHANGES = {
    "size": 12, "batch_size": 5, "seed": 1, "lr": 2e-3, "warmup": 0, "lr_schedule": "constant", "weight_decay": 0.5,
    "clip": 0.01, "ema": 0.1, "prediction": "v", "schedule": "linear", "timesteps": 50, "conditional": True,
    "flip": True,
    "channels": (8, 12), "layers": 2, "attention": (), "head_dim": 4, "groups": 2, "dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_result(name):
    """An option nobody reads would pass unnoticed otherwise."""
    base = pydiff.train("digits", **{**TINY, "steps": 3})
    other = pydiff.train("digits", **{**TINY, "steps": 3, name: CHANGES[name]})
    state, changed = base.model.state_dict(), other.model.state_dict()
    assert state.keys() != changed.keys() or any(
        state[k].shape != changed[k].shape or not np.array_equal(state[k], changed[k]) for k in state
    )


def test_label_drop_changes_the_result():
    runs = [pydiff.train("digits", **TINY, conditional=True, label_drop=d) for d in (0.0, 0.9)]
    assert [e["loss"] for e in runs[0].log()] != [e["loss"] for e in runs[1].log()]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stpes": 3}, TypeError, "no option 'stpes'; did you mean 'steps'"),
        ({"devcie": "cpu"}, TypeError, "no option 'devcie'; did you mean 'device'"),
        ({"num_train_timesteps": 9}, TypeError, "no option 'num_train_timesteps'; it is called 'timesteps' here"),
        ({"epochs": 9}, TypeError, "no option 'epochs'; it is called 'steps' here"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number"),
        ({"lr": -1.0}, ValueError, "lr must be a number from 0"),
        ({"lr": float("nan")}, ValueError, "lr must be a number"),
        ({"lr": True}, ValueError, "lr must be a number .* got True"),
        ({"lr": "fast"}, ValueError, "lr must be a number .* got 'fast'"),
        ({"ema": 1.0}, ValueError, "ema must be a number"),
        ({"dropout": 1.0}, ValueError, "dropout must be a number"),
        ({"prediction": "noise"}, ValueError, "prediction must be one of eps, x0, v, flow, edm, edm_v; got 'noise'"),
        ({"groups": 3}, ValueError, "groups=3 does not divide"),
        ({"head_dim": 64}, ValueError, "attention_head_dim must be"),
        ({"attention": (5,)}, ValueError, "attention names levels"),
        ({"batch_size": True}, ValueError, "batch_size must be a whole number"),
        ({"seed": 2**64}, ValueError, "seed must be below"),
        ({"announce": 3}, TypeError, "announce is a function, which will be called, got 3"),
        ({"watch": "images"}, TypeError, "watch is a function, which will be called, got 'images'"),
        ({"flip": 1}, ValueError, "flip must be True or False"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        pydiff.train("digits", **{**TINY, **options})


def test_attention_is_left_to_small_levels_and_never_to_the_top():
    for size, levels, expected in ((16, 3, [1, 2]), (64, 3, [2]), (32, 2, [1]), (33, 2, []), (8, 1, [])):
        assert levels_with_attention(Options(), (8,) * levels, size) == expected


def test_options_of_numpy_are_those_of_python():
    options = Options(steps=np.int64(5), lr=np.float32(0.5), channels=[np.int64(8)], size=np.array([8, 16]))
    assert [type(v) for v in (options.steps, options.lr, options.channels[0])] == [int, float, int]
    assert (options.channels, options.size) == ((8,), (8, 16))


@pytest.mark.parametrize("attention", [(2,), (0, 2), (-1,)])
def test_attention_is_for_levels_that_are_there(attention):
    with pytest.raises(ValueError, match=r"attention names levels 0 to 1 \(the model has 2\)"):
        levels_with_attention(Options(channels=(8, 8), attention=attention), (8, 8), 8)


@pytest.mark.parametrize("prediction", ["edm", "edm_v"])
def test_what_goes_with_a_preconditioned_prediction(prediction):
    right = Options(prediction=prediction, schedule="edm")
    assert right.check() == right
    for wrong in ({"variance": "learned"}, {"self_conditioning": True}):
        with pytest.raises(ValueError, match="does not go with prediction"):
            Options(prediction=prediction, schedule="edm", **wrong).check()
