"""The U-Net with every one of its operations on the CUDA kernels, emulated: one pass, and training."""

import numpy as np
import pytest

import pydiff
from pydiff import backend
from pydiff.models.unet import UNet2D
from pydiff.training import training_steps
from tests.bits import assert_same_bits, check_any_batch
from tests.compare import array_path, assert_close, assert_no_worse
from tests.models.configurations import SMALL, THREE_LEVELS
from tests.models.test_unet_exactness import outputs
from tests.strategies import simt  # noqa: F401
from tests.trainers import diffusion_trainer

TINY = {**SMALL, "block_out_channels": (8, 8)}  # 8 x 8 pixels and 4 x 4 with attention
CONFIGURATIONS = [TINY, {**SMALL, **THREE_LEVELS, "block_out_channels": (16, 32, 32), "norm_num_groups": 8}]


def kernels_ran():
    """Whether the emulator has worked since this was asked last."""
    return backend.emulator.counters()["switches"] > 0


def flat(gradients):
    """The gradients of all parameters together: each one's largest error is a matter of luck."""
    return np.concatenate([a.ravel() for a in gradients.values()])


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=["tiny", "three levels"])
def test_kernels_are_as_exact_as_plain_float32(config):
    kernels_ran()
    with array_path():
        exact, exact_gradients = outputs(UNet2D(**config), np.float64)
        naive, naive_gradients = outputs(UNet2D(**config), np.float32)
    assert not kernels_ran()
    got, got_gradients = outputs(UNet2D(**config), np.float32)
    assert kernels_ran()
    for g, n, e in zip(got, naive, exact, strict=True):
        assert g.dtype == np.float32
        assert_no_worse(g, n, e, factor=4)
    assert_no_worse(flat(got_gradients), flat(naive_gradients), flat(exact_gradients), factor=4)


@pytest.mark.usefixtures("simt")
def test_a_image_has_the_same_bits_alone_in_a_batch_and_in_any_order_of_threads():
    model = UNet2D(**TINY)
    check_any_batch(lambda part: outputs(model, np.float32, part)[0], 4)
    results = []
    for seed in (0, 1, 2):
        backend.emulator.set_seed(seed)
        images, gradients = outputs(model, np.float32)
        results.append([*images, *gradients.values()])
        assert_same_bits(results[-1], results[0])


def train(device):
    """Four steps: [(loss, norm of the gradient) of each], the Trainer afterwards, and its first parameters."""
    options = pydiff.Options(steps=4, channels=(8, 8), groups=4, batch_size=4, warmup=1)
    trainer = diffusion_trainer(pydiff.data.load("digits"), options, device)
    start = trainer.optimizer.p.copy()
    return [(state.loss, state.grad_norm) for state in training_steps(trainer)], trainer, start


@pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")
@pytest.mark.usefixtures("simt")
def test_training_follows_that_on_the_cpu():
    """Forward, loss, backward, norm and optimiser, and what one step hands on to the next: only rounding differs."""
    kernels_ran()
    expected, on_cpu, start = train("cpu")
    assert np.abs(on_cpu.optimizer.p - start).max() > 1e-3
    assert not kernels_ran()
    got, emulated, _ = train("simt")
    assert kernels_ran()
    assert_close(np.array(got), np.array(expected), rtol=2e-6)
    for name in ("m", "v"):
        assert_close(getattr(emulated.optimizer, name), getattr(on_cpu.optimizer, name), rtol=5e-6, what=name)
    for (name, got), (_, p) in zip(emulated.model.named_parameters(), on_cpu.model.named_parameters(), strict=True):
        # A key's bias has gradient 0 in theory. What is computed is rounding, and Adam makes it as large as all others.
        if not name.endswith("to_k.bias"):
            assert_close(got.data, p.data, rtol=0, atol=1e-5, what=name)
