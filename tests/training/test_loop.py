"""The loop: rates and averages to the number, bad steps, a termination request, what a checkpoint holds."""

import numpy as np
import pytest

import pydiff
from pydiff import ops
from pydiff.training import StepState, training_steps
from tests.trainers import diffusion_trainer


def test_a_step_that_is_not_finite_changes_nothing_and_is_named():
    trainer = diffusion_trainer(
        pydiff.data.load("digits"), pydiff.Options(steps=5, channels=(8,), groups=4, batch_size=2)
    )
    next(training_steps(trainer))
    before = {k: v.copy() for k, v in trainer.arrays()["optimizer"].items()}
    weight = dict(trainer.model.named_parameters())["mid_block.resnets.1.conv1.weight"]
    kept = weight.data[0, 0, 0, 0]
    weight.data[0, 0, 0, 0] = np.inf
    state = next(training_steps(trainer))
    weight.data[0, 0, 0, 0] = kept
    assert isinstance(state, StepState)
    assert "mid_block.resnets.1.conv1" in state.bad
    assert trainer.step == 2
    for name, array in trainer.arrays()["optimizer"].items():
        assert np.array_equal(array, before[name]), name


def test_gradients_that_are_not_finite_are_skipped_and_named(monkeypatch):
    trainer = diffusion_trainer(
        pydiff.data.load("digits"), pydiff.Options(steps=5, channels=(8,), groups=4, batch_size=2)
    )
    real, bias = trainer.task.losses, trainer.model.conv_out.bias
    before = trainer.optimizer.p.copy()

    def losses(batch):  # finite themselves, but the square root has no slope at 0
        return real(batch) + ops.sqrt(bias * 0).sum()

    monkeypatch.setattr(trainer.task, "losses", losses)
    assert next(training_steps(trainer)).bad == "the gradient of conv_out.bias is not finite"
    assert np.array_equal(trainer.optimizer.p, before)


def test_endless_bad_steps_end_in_an_error():
    trainer = diffusion_trainer(
        pydiff.data.load("digits"), pydiff.Options(steps=100, channels=(8,), groups=4, batch_size=1)
    )
    trainer.model.conv_out.weight.data[...] = np.nan
    with pytest.raises(RuntimeError, match="50 steps in a row were not finite"):
        list(training_steps(trainer))
