"""The loop: rates and averages to the number, bad steps, a termination request, what a checkpoint holds.

Most of it is shown on a Task of one number, so that every step can be worked out by hand.
"""

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

import pydiff
from pydiff import nn, ops
from pydiff.optim import ema_decay
from pydiff.store import checkpoint
from pydiff.store.log import Log
from pydiff.tensor import Tensor
from pydiff.training import LoopOptions, StepState, Task, Trainer, loop, train_task, training_steps
from pydiff.training.loop import GIVE_UP_AFTER, learning_rate
from pydiff.training.loop import log_entry as entry
from tests.trainers import diffusion_trainer


class Number(nn.Module):
    """One number, w."""

    def __init__(self, w=0.0):
        self.w = nn.Parameter(np.array([w], np.float32))

    def forward(self, x):
        return x * self.w


class Slope(Task):
    """The loss of every sample is w: the gradient is 1 in each step. Steps in `bad` give NaN instead."""

    def __init__(self, bad=(), w=0.0):
        self.model, self.bad, self.steps = Number(w), set(bad), []

    def batch(self, step, numbers):
        """NaN in a bad step, 1 in others."""
        self.steps.append(step)
        return np.full(len(numbers), np.nan if step in self.bad else 1.0, np.float32)

    def losses(self, batch):
        """w times what `batch` says."""
        return self.model(Tensor(batch))

    def twin(self):
        """Another number."""
        return Number()


def options(**more):
    return LoopOptions(**{"steps": 10, "batch_size": 3, "weight_decay": 0.0, "clip": 10.0, **more})


# ---- rates and averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "cosine", "constant"),
    [
        (1, 0.1, 0.1),
        (2, 0.2, 0.2),
        (9, 0.9, 0.9),
        (10, 1.0, 1.0),  # the warm-up ends at its peak
        (11, 0.5 * (1 + math.cos(math.pi / 40)), 1.0),  # 40 steps from there to the last
        (30, 0.5, 1.0),
        (49, 0.5 * (1 + math.cos(math.pi * 39 / 40)), 1.0),
        (50, 0.0, 1.0),
    ],
)
def test_the_learning_rate_of_a_step(step, cosine, constant):
    for name, expected in (("cosine", cosine), ("constant", constant)):
        got = learning_rate(step, options(steps=50, warmup=10, lr=2.0, lr_schedule=name))
        assert got == pytest.approx(2.0 * expected, rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_a_warm_up_of_no_steps_of_one_and_of_more_than_there_are(name):
    def rates(steps, warmup):
        chosen = options(steps=steps, warmup=warmup, lr=1.0, lr_schedule=name)
        return [learning_rate(step, chosen) for step in range(1, steps + 1)]

    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    constant = [1.0] * 5
    expected = cosine if name == "cosine" else constant
    assert rates(4, 0) == pytest.approx(expected[1:])
    assert rates(5, 1) == pytest.approx(expected)
    if name == "constant":
        assert rates(3, 9) == pytest.approx([1 / 9, 2 / 9, 3 / 9])
    else:  # the last step still has somewhere to come down to
        assert rates(3, 9) == pytest.approx([1 / 2, 1.0, 0.0])


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_weights_move_by_the_rate_of_the_step_and_their_average_follows(name):
    """With a gradient of 1 in every step Adam's quotient is 1, and w falls by the learning rate."""
    chosen = options(steps=12, warmup=4, lr=0.5, lr_schedule=name, ema=0.4)
    trainer, w, average = Trainer(Slope(), chosen), 0.0, 0.0
    for state in training_steps(trainer):
        step = state.step
        w -= learning_rate(step, chosen)
        decay = min(0.4, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, 5/14, 6/15, then the largest
        average = decay * average + (1 - decay) * w
        assert state.lr == learning_rate(step, chosen)
        assert trainer.model.w.data[0] == pytest.approx(w, rel=1e-5)
        assert trainer.ema_model().w.data[0] == pytest.approx(average, rel=1e-5)
    assert step == 12


def test_the_average_begins_short_and_ends_at_its_longest():
    assert [ema_decay(step, 0.9995) for step in (1, 2, 10, 90)] == [2 / 11, 3 / 12, 11 / 20, 91 / 100]
    assert ema_decay(10**6, 0.9995) == 0.9995


def test_the_gradient_is_the_means_and_is_clipped_to_the_norm():
    """Steps of Adam do not show the gradient's length; its two moments do."""
    for clip, length in ((10.0, 1.0), (0.25, 0.25)):
        trainer = Trainer(Slope(), options(clip=clip, batch_size=7))
        state = next(training_steps(trainer))
        assert state.grad_norm == pytest.approx(1.0)  # as it was before
        assert trainer.optimizer.m[0] == pytest.approx(0.1 * length, rel=1e-5)
        assert trainer.optimizer.v[0] == pytest.approx(0.001 * length**2, rel=1e-5)


# ---- batches and dropout ---------------------------------------------------------------------------------------------


def test_every_step_asks_for_the_whole_batch_of_its_own_number():
    asked = []

    class Asking(Slope):
        def batch(self, step, numbers):
            asked.append((step, np.asarray(numbers).tolist()))
            return super().batch(step, numbers)

    list(training_steps(Trainer(Asking(), options(steps=4))))
    assert asked == [(step, [0, 1, 2]) for step in (1, 2, 3, 4)]


class Dropped(Task):
    """Takes note of what dropout leaves of ones."""

    def __init__(self):
        self.model, self.dropout, self.kept = Number(), nn.Dropout(0.3), []

    def batch(self, _step, numbers):
        """Ones."""
        return np.ones((len(numbers), 50), np.float32)

    def losses(self, batch):
        """Twice the sum of what two calls leave."""
        first, second = (self.dropout(Tensor(batch)) for _ in range(2))
        self.kept.append((first.data != 0, second.data != 0))
        return (self.model(first) + self.model(second)).sum(axis=1)


def test_dropout_differs_between_steps_samples_and_calls_and_drops_its_share():
    task = Dropped()
    list(training_steps(Trainer(task, options(steps=40, batch_size=8, seed=2))))
    kept = np.array(task.kept)  # (step, call, sample, element)
    assert len({row.tobytes() for row in kept.reshape(-1, 50)}) == 40 * 2 * 8
    assert abs(kept.mean() - 0.7) <= 5 * math.sqrt(0.21 / kept.size)
    again = Dropped()
    for step in (7, 40):  # a function of (seed, step, number): what a resumed run needs
        with nn.training(2, step, np.array([5, 2])):
            again.losses(np.ones((2, 50), np.float32))
        assert (np.array(again.kept.pop()) == kept[step - 1][:, [5, 2]]).all()
    assert (again.dropout(Tensor(np.ones((2, 50)))).data == 1).all()  # and none outside of training


# ---- steps that are not finite ---------------------------------------------------------------------------------------


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


def test_a_good_step_begins_the_count_of_bad_ones_anew():
    good = {GIVE_UP_AFTER, 2 * GIVE_UP_AFTER}
    task = Slope(bad=set(range(1, 3 * GIVE_UP_AFTER)) - good)  # 49 bad, 1 good, 49 bad, 1 good, 49 bad
    states = list(training_steps(Trainer(task, options(steps=3 * GIVE_UP_AFTER - 1))))
    assert [state.step for state in states if not state.bad] == sorted(good)
    assert task.steps == list(range(1, 3 * GIVE_UP_AFTER))


@pytest.mark.parametrize("before", [0, 3])
def test_fifty_bad_steps_in_a_row_are_too_many(before):
    task, seen = Slope(bad=range(before + 1, 200)), []
    with pytest.raises(RuntimeError, match="50 steps in a row were not finite"):
        seen.extend(state.step for state in training_steps(Trainer(task, options(steps=200))))
    assert task.steps[-1] == before + 50
    assert GIVE_UP_AFTER == 50


# ---- a checkpoint holds everything -----------------------------------------------------------------------------------

EVERYTHING = {
    "steps": 9, "batch_size": 6, "channels": (8,), "groups": 4, "timesteps": 4, "warmup": 2, "conditional": True,
    "dropout": 0.2, "flip": True, "timestep_sampling": "loss_aware", "variance": "learned", "self_conditioning": True,
}  # fmt: skip
GROUPS = [("optimizer", "p"), ("optimizer", "m"), ("optimizer", "v"), ("optimizer", "ema"), ("timesteps", "losses"),
          ("timesteps", "seen")]  # fmt: skip


def fresh():
    return diffusion_trainer(pydiff.data.load("digits"), pydiff.Options(**EVERYTHING))


@pytest.fixture(scope="module")
def half_way():
    """A trainer after 5 steps, what a checkpoint held then, and the 4 steps after."""
    trainer = fresh()
    steps = training_steps(trainer)
    for _ in range(5):
        next(steps)
    saved = trainer.arrays()
    saved = {g: {name: a.copy() for name, a in part.items()} for g, part in saved.items()}
    return saved, list(steps), trainer


def test_a_checkpoint_has_these_arrays_and_each_has_changed(half_way):
    saved, _, _ = half_way
    assert [(g, name) for g, part in saved.items() for name in part] == GROUPS
    before = fresh().arrays()
    for group, name in GROUPS:
        assert (saved[group][name] != before[group][name]).any(), name


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_restoring_restores_this_array_too(half_way, group, name):
    saved, _, _ = half_way
    trainer = fresh()
    trainer.restore(saved, 5)
    assert trainer.step == 5
    assert np.array_equal(trainer.live()[group][name], saved[group][name])
    source = saved[group].copy()
    del source[name]
    with pytest.raises(ValueError, match=f"the checkpoint has no {group} {name}, which these options need"):
        fresh().restore(saved | {group: source}, 5)
    source[name] = saved[group][name][:1]
    with pytest.raises(ValueError, match=f"the checkpoint's {name} is "):
        fresh().restore(saved | {group: source}, 5)


class FromTheFirst:
    """A group of two processes, seen from the second: what the first one has is what a trainer had when it was made."""

    size, rank, first = 2, 1, False

    def __init__(self, trainer):
        self.held, self.step = [a.copy() for part in trainer.arrays().values() for a in part.values()], trainer.step

    def spread(self, arrays):
        for array, held in zip(arrays, self.held, strict=True):
            array[...] = held

    def agree(self, _step):
        return self.step


def test_a_process_continues_from_where_the_first_one_is():
    first, second = Trainer(Slope(), options(steps=3)), Trainer(Slope(), options(steps=3))
    list(training_steps(first))
    assert first.arrays()["optimizer"]["m"] != second.arrays()["optimizer"]["m"]
    second.group = FromTheFirst(first)
    second.share()
    assert second.step == 3
    for group, part in first.arrays().items():
        for name, array in part.items():
            assert np.array_equal(array, second.arrays()[group][name]), name


def test_a_restored_trainer_takes_the_same_steps(half_way):
    saved, rest, finished = half_way
    trainer = fresh()
    next(training_steps(trainer))  # restoring also undoes what a trainer has done before
    trainer.restore(saved, 5)
    assert list(training_steps(trainer)) == rest
    for group, name in GROUPS:
        assert np.array_equal(trainer.live()[group][name], finished.live()[group][name]), name


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_the_steps_after_depend_on_this_array(half_way, group, name):
    """None of the arrays is there for show: with another the run goes on differently."""
    saved, rest, finished = half_way
    trainer, other = fresh(), saved[group][name] + np.ones(1, saved[group][name].dtype)
    trainer.restore(saved | {group: saved[group] | {name: other}}, 5)
    steps = list(training_steps(trainer))
    assert steps != rest or not np.array_equal(trainer.optimizer.ema, finished.optimizer.ema)


# ---- a termination request -------------------------------------------------------------------------------------------


def command(out):
    flags = "--steps 500 --checkpoint-every 9999 --sample-every 0 --batch-size 4 --channels 8 --groups 4"
    return [sys.executable, "-m", "pydiff", "train", "digits", *flags.split(), "--out", str(out)]


def test_a_termination_request_leaves_a_checkpoint_and_the_same_command_ends_with_the_same_bits(training, tmp_path):
    """What `kill`, a batch system and a container that is stopped send. No other checkpoint is due before the end."""
    process = training(command(tmp_path / "stopped"), tmp_path / "stopped", subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130, message
    arrays, state = checkpoint.load(checkpoint.latest(tmp_path / "stopped" / "checkpoints"))
    assert 3 <= state["step"] < 500
    assert f"stopped after step {state['step']}; the same command goes on from there" in message
    assert np.isfinite(arrays["optimizer"]["p"]).all()
    ends = []
    for out in (tmp_path / "stopped", tmp_path / "expected"):
        subprocess.run(command(out), check=True, capture_output=True)
        run = pydiff.load(out)
        losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        ends.append((losses, [a.tobytes() for a in run.model.state_dict().values()]))
    assert len(ends[0][0]) == 500
    assert ends[0] == ends[1]


def test_the_loss_that_is_shown_is_an_average_of_the_last_fifty_steps_or_so(monkeypatch):
    shown = []

    class Bar(loop.Progress):
        def step(self, text=""):
            shown.append(text)

    monkeypatch.setattr(loop, "Progress", Bar)
    trainer = Trainer(Slope(), options(steps=6, batch_size=7))
    losses, expected = [], []
    monkeypatch.setattr(loop, "log_entry", lambda state, *rest: losses.append(state.loss) or entry(state, *rest))
    loop.fit(trainer, Log(None), None, lambda: None, False)
    for i, loss in enumerate(losses):
        expected.append(loss if i == 0 else 0.98 * expected[-1] + 0.02 * loss)
    assert [text.split(",")[0] for text in shown] == [f"loss {smooth:.4f}" for smooth in expected]


class Lines(Task):
    """y = 2 x, by two layers, the first of which gets no gradient while the second is 0."""

    def __init__(self, model):
        self.model = model

    def batch(self, step, numbers):  # noqa: ARG002
        return np.linspace(-1, 1, len(numbers), dtype=np.float32)[:, None]

    def losses(self, x):
        return ((self.model(x) - 2 * x) ** 2).reshape(-1)


class Two(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 1, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_network_whose_weights_were_never_drawn_is_told(tmp_path):
    options = LoopOptions(steps=2, batch_size=4)
    for out in (None, tmp_path / "run"):
        trainer = train_task(Lines(Two()), options, out, progress=False)
        assert len(trainer.notes) == 1
        assert trainer.notes[0].startswith("every weight of the network is 0, ")
        assert trainer.notes[0].endswith("draw them, model.initialize(seed)")
        assert not trainer.model.second.weight.data.any()  # which is why
    drawn = train_task(Lines(Two().initialize(0)), options, progress=False)
    assert not drawn.notes
    assert drawn.model.second.weight.data.any()
