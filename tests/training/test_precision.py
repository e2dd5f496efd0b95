"""Training in bfloat16, under the emulator: what is kept in which precision, how far it is from float32, resume."""

import numpy as np
import pytest

import pydiff
from pydiff import nn
from pydiff.backend import FLOAT32
from pydiff.cli import main
from pydiff.data import Dataset, load
from pydiff.data.moving import moving_shapes
from pydiff.store.folder import RunDirectory
from pydiff.tensor import Tensor
from pydiff.training import Options, training_steps
from pydiff.training.precision import Cast
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.strategies import bfloat16, simt  # noqa: F401
from tests.trainers import diffusion_trainer, train_until

TINY = {
    "steps": 4, "batch_size": 3, "channels": (8, 16), "groups": 4, "attention": (1,), "timesteps": 20,
    "sample_every": 0, "warmup": 1, "text": "none",
}  # fmt: skip


def images(n=6):
    rng = np.random.default_rng(0)
    return Dataset("noise", rng.integers(0, 256, (n, 8, 8, 1), np.uint8), labels=np.arange(n) % 3, classes=list("abc"))


def options(**more):
    return Options(**{**TINY, "precision": "bfloat16", **more}).check()


def flat(trainer):
    return [trainer.arrays()["optimizer"][name] for name in ("p", "m", "v", "ema")]


def test_cast_and_its_gradient(bfloat16):  # noqa: F811
    x = Tensor(np.array([1.0, 1 + 2.0**-10], np.float32), requires_grad=True)
    y = Cast.apply(x, dtype=bfloat16)
    assert y.dtype == bfloat16
    assert y.data.astype(np.float32).tolist() == [1.0, 1.0]
    y.backward(np.array([1.0, 3.0]).astype(bfloat16))
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [1.0, 3.0]


def test_what_is_kept_in_which_precision(bfloat16):  # noqa: F811
    trainer = diffusion_trainer(images(), options(conditional=True), "simt")
    optimizer, seen = trainer.optimizer, set()

    def note(_module, output):
        seen.update(o.dtype for o in (output if isinstance(output, tuple) else (output,)) if isinstance(o, Tensor))

    with nn.observe(note):
        states = list(training_steps(trainer))
    assert all(np.isfinite([s.loss, s.grad_norm]).all() and s.bad is None for s in states)
    assert seen == {bfloat16}
    for name in ("p", "g", "m", "v", "ema"):
        assert getattr(optimizer, name).dtype == FLOAT32
        assert np.abs(getattr(optimizer, name)).max() > 0
    for name, parameter in trainer.model.named_parameters():
        master = optimizer.masters[optimizer.names.index(name)]
        if parameter.ndim > 1:
            assert_same_bits([parameter.data], [master.astype(bfloat16)])
        else:
            assert np.shares_memory(parameter.data, master), name
        assert parameter.grad.dtype == FLOAT32
    assert not np.array_equal(optimizer.p, optimizer.p.astype(bfloat16).astype(np.float32))


def test_gradients_are_those_of_float32_but_for_the_rounding(bfloat16):  # noqa: F811, ARG001
    """The norm of the difference, to that of the gradient: roundings of 2^-9, of some dozen layers."""
    grads, losses = [], []
    for precision in ("float32", "bfloat16"):
        trainer = diffusion_trainer(images(), options(precision=precision, conditional=True), "simt")
        losses.append(next(iter(training_steps(trainer))).loss)
        grads.append(trainer.optimizer.g.copy())
    assert_close(losses[1], losses[0], rtol=2.0**-7)
    error = np.linalg.norm(grads[1] - grads[0]) / np.linalg.norm(grads[0])
    assert 0 < error < 2.0**-5, error


def test_masters_take_in_what_their_copies_would_lose(bfloat16):  # noqa: F811
    trainer = diffusion_trainer(images(), options(lr=1e-7, warmup=0, lr_schedule="constant", weight_decay=0.0), "simt")
    before, copied = trainer.optimizer.p.copy(), trainer.optimizer.low.copy()
    list(training_steps(trainer))
    moved = trainer.optimizer.p != before
    assert moved.mean() > 0.5
    assert (copied != trainer.optimizer.low)[moved].mean() < 0.1
    assert copied.dtype == bfloat16


@pytest.mark.parametrize(
    "more",
    [
        {"self_conditioning": True, "dropout": 0.2},
        {"variance": "learned", "offset_noise": 0.1, "prediction": "v"},
        {"recompute": True, "shards": 2, "timestep_sampling": "loss_aware"},
    ],
)
def test_options_beside_it(bfloat16, more):  # noqa: F811, ARG001
    trainer = diffusion_trainer(images(), options(steps=1, **more), "simt")
    (state,) = training_steps(trainer)
    assert state.bad is None
    assert np.isfinite(state.grad_norm)


def test_clips(bfloat16):  # noqa: F811, ARG001
    """Their networks have layers without kernels."""
    clips = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 1), np.uint8)
    trainer = diffusion_trainer(load(clips), options(steps=1, batch_size=2, groups=4), "simt")
    (state,) = training_steps(trainer)
    assert state.bad is None
    assert trainer.optimizer.low is not None


def test_clips_with_captions(bfloat16):  # noqa: F811, ARG001
    """The mean of a caption's states and the places of pixels, on kernels and off."""
    few = {
        "steps": 2,
        "batch_size": 2,
        "groups": 4,
        "channels": (8,),
        "attention": (0,),
        "text": "glove",
        "timestep_shift": 3.0,
    }
    data, losses = moving_shapes(4, frames=2, size=8), {}
    for precision, device in (("float32", "cpu"), ("float32", "simt"), ("bfloat16", "simt")):
        trainer = diffusion_trainer(data, options(**few, precision=precision), device)
        losses[precision, device] = [state.loss for state in training_steps(trainer)]
    np.testing.assert_allclose(losses["float32", "simt"], losses["float32", "cpu"], rtol=1e-5)
    np.testing.assert_allclose(losses["bfloat16", "simt"], losses["float32", "cpu"], rtol=0.03)


def test_resume_keeps_every_bit(bfloat16, tmp_path):  # noqa: F811, ARG001
    train_until(tmp_path / "a", 2, images(), options(), "simt")
    train_until(tmp_path / "a", 4, images(), options(), "simt")
    whole = diffusion_trainer(images(), options(), "simt")
    list(training_steps(whole))
    folder = RunDirectory(tmp_path / "a")
    with folder.locked():
        arrays, state = folder.open(whole.task.identity(), options())
    assert state["step"] == 4
    assert_same_bits([arrays["optimizer"][name] for name in ("p", "m", "v", "ema")], flat(whole))


def test_begin_gives_the_masters_every_bit(bfloat16):  # noqa: F811, ARG001
    trainer, other = (diffusion_trainer(images(), options(seed=seed), "simt") for seed in (0, 1))
    weights = diffusion_trainer(images(), options(precision="float32", seed=1)).model.state_dict()
    trainer.begin(weights)
    assert_same_bits([trainer.optimizer.p, trainer.optimizer.low], [other.optimizer.p, other.optimizer.low])


def test_a_run_is_saved_in_float32_and_draws_on_the_cpu(bfloat16, tmp_path):  # noqa: F811, ARG001
    run = pydiff.train(
        images(), out=tmp_path / "run", device="simt", progress=False, conditional=True, precision="bfloat16", **TINY
    )
    again = pydiff.load(tmp_path / "run")
    assert {p.dtype for p in again.model.parameters()} == {FLOAT32}
    assert again.sample(2, steps=2, labels=[0, 1]).shape == (2, 8, 8, 1)
    assert run.log()[-1]["step"] == 4


@pytest.mark.parametrize("device", ["cpu"])
def test_the_cpu_refuses(device, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^precision bfloat16 needs device cuda or simt: [^.\n]*$"):
        pydiff.train(images(), device=device, precision="bfloat16", **TINY)
    assert main(["train", "digits", "--precision", "bfloat16", "--out", str(tmp_path / "run")]) != 0
    told = capsys.readouterr().err
    assert "precision bfloat16 needs device cuda or simt" in told
    assert "Traceback" not in told
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16"):
        pydiff.train(images(), device=device, precision="float16", **TINY)
