"""Recomputation changes when values exist, and no bit of any of them."""

import gc
import weakref

import numpy as np
import pytest

from pydiff import nn, ops
from pydiff.data import load
from pydiff.models import UNet2D
from pydiff.tensor import Tensor, no_grad
from pydiff.training import training_steps
from pydiff.training.config import Options
from tests.trainers import diffusion_trainer

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "in_channels": 1,
    "out_channels": 1,
}


def gradients(recompute, dtype, **options):
    """Output, gradient of the input and of every parameter, of one pass with dropout."""
    model = UNet2D(**SMALL, **options).astype(dtype).recompute_blocks(recompute)
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((3, 8, 8, 1)).astype(dtype), requires_grad=True)
    with nn.training(seed=1, step=2, sample=np.arange(3)):
        y = model(x, np.array([1, 20, 300]))
        y.backward(rng.standard_normal(y.shape).astype(dtype))
    return [y.data, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"resnet_time_scale_shift": "scale_shift"}])
def test_every_bit_is_the_same(dtype, options):
    for kept, again in zip(gradients(False, dtype, **options), gradients(True, dtype, **options), strict=True):
        assert np.isfinite(kept).all()
        assert np.abs(kept).max() > 0
        assert np.array_equal(kept, again)


def test_training_takes_the_same_steps():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)

    def parameters(recompute):
        options = Options(
            steps=3, batch_size=4, channels=(8, 8), groups=4, attention=(1,), dropout=0.2, recompute=recompute
        )
        trainer = diffusion_trainer(load(images), options)
        assert all(state.bad is None for state in training_steps(trainer))
        return trainer.optimizer.p

    assert np.array_equal(parameters(False), parameters(True))


class Square(nn.Module):
    """Notes every array it makes."""

    def __init__(self):
        self.made = []

    def forward(self, x):
        inner = ops.exp(x)
        self.made.append(weakref.ref(inner.data))
        return inner * inner

    def alive(self):
        gc.collect()
        return [ref() is not None for ref in self.made]


def test_values_are_gone_until_backward_makes_them_again():
    x = Tensor(np.ones(3), requires_grad=True)
    square = Square()
    y = square(x)
    assert square.alive() == [True]  # kept for the gradient
    square = Square()
    square.recompute = True
    y = square(x)
    assert square.alive() == [False]
    y.backward(np.ones(3))
    assert square.alive() == [False, False]
    assert np.allclose(x.grad, 2 * np.exp(2.0))


def test_nothing_is_done_twice_without_gradient():
    square = Square()
    square.recompute = True
    with no_grad():
        square(Tensor(np.ones(3), requires_grad=True))
    square(Tensor(np.ones(3)))
    assert len(square.made) == 2


def test_backward_inside_no_grad_and_a_second_time():
    square = Square()
    square.recompute = True
    x = Tensor(np.zeros(2), requires_grad=True)
    y = square(x)
    with no_grad():
        y.backward(np.ones(2))
    assert np.array_equal(x.grad, [2.0, 2.0])
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward(np.ones(2))
