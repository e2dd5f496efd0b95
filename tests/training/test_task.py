"""The batch itself: which images, with which labels, at which t, under which noise; and half of it as that half."""

import math

import numpy as np
import pytest

from pydiff import nn, random
from pydiff.data import Dataset, load
from pydiff.diffusion.timesteps import TIMESTEPS
from pydiff.text import Glove
from pydiff.training import DiffusionTask, Options
from tests.bits import assert_same_bits
from tests.networks import ContextUNet, Folded
from tests.strategies import simd  # noqa: F401
from tests.training.numbered_images import CLASSES, NOTHING, SHAPE, Recorder, context_of, dataset, read

N = 16  # samples in a batch
STEPS = range(1, 301)
NUMBERS = np.arange(N)
WORDS = 2.0**32


def task(context=False, n=23, model=None, **options):
    """A task on images that can be read off, with a network that records what it is asked."""
    options = {"batch_size": N, "timesteps": 50, "seed": 11, **options}
    return DiffusionTask(dataset(n, context), Options(**options), Recorder() if model is None else model)


def first_words(purpose, step, seed=11):
    """The random word that decides about every sample of a step."""
    return random.words(random.key(seed, purpose, NUMBERS, step), 1)[:, 0]


def assert_share(count, of, share):
    """A count that a share of `of` independent draws gives: within five standard deviations, once in a million off."""
    assert abs(count - of * share) <= 5 * math.sqrt(of * share * (1 - share)), f"{count} of {of}, expected {share:.0%}"


# ---- half a batch is that half of the whole ------------------------------------------------------------------------

EVERYTHING = {
    "conditional": True, "label_drop": 0.4, "flip": True, "dropout": 0.3, "offset_noise": 0.2,
    "self_conditioning": True, "variance": "learned", "loss_weight": "min_snr", "batch_size": 11, "timesteps": 60,
    "channels": (8, 16), "groups": 4, "head_dim": 4, "seed": 5,
}  # fmt: skip
OTHERS = {
    "recompute": {"recompute": True},
    "v, zero SNR": {"prediction": "v", "zero_snr": True, "schedule": "linear", "variance": "fixed"},
    "edm": {
        "prediction": "edm", "schedule": "edm", "loss_weight": "edm", "variance": "fixed", "self_conditioning": False,
    },
    "flow": {"prediction": "flow", "schedule": "flow", "variance": "fixed", "loss_weight": "simple"},
}  # fmt: skip
PLAIN = {"variance": "fixed", "self_conditioning": False}
CASES = {
    "context, latents": PLAIN,
    **{name: {"timestep_sampling": name} for name in (*TIMESTEPS, "loss_aware")},
    **OTHERS,
}
PARTS = {
    "the first": [0],
    "the rest": list(range(1, 11)),
    "even": list(range(0, 11, 2)),
    "odd": list(range(1, 11, 2)),
    "any order": [7, 2, 10, 3],
    "the last": [10],
}


def unet_task(name):
    """A small U-Net on random images, with every option that draws."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 8, 8, 2), dtype=np.uint8)
    labels, classes = np.arange(9) % 3, ["a", "b", "c"]
    if name == "context, latents":
        more = {"columns": {"encoder_hidden_states": rng.standard_normal((9, 3, 5)).astype(np.float32)}}
        more |= {"nothing": {"encoder_hidden_states": np.zeros((3, 5), np.float32)}}
        data, options = Dataset("described", images[..., :1], labels, classes, **more), Options(**EVERYTHING | PLAIN)
        return DiffusionTask(data, options, latent_unet(), Folded((8, 8, 1)))
    options = Options(**EVERYTHING | CASES[name])
    made = DiffusionTask(Dataset("random", images, labels, classes), options)
    if made.history is not None:  # a history that makes the draw uneven, and full
        made.history.losses[...] = rng.uniform(0.1, 3.0, made.history.losses.shape) ** 3
        made.history.seen[...] = made.history.history
    return made


def latent_unet():
    """A network for latents of 4 channels that is told a class and a context."""
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    small = {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4, "sample_size": 4, "dropout": 0.3}
    return ContextUNet(context_channels=5, in_channels=4, out_channels=4, num_class_embeds=4, **blocks, **small)


def losses_of(task, step, numbers):
    """What the loop makes of the samples with these numbers: the batch's arrays and the losses, one a sample."""
    numbers, options = np.asarray(numbers), task.options
    batch = task.batch(step, numbers)
    with nn.training(options.seed, step, numbers):
        losses = task.losses(batch).data
    unweighted = [] if batch.losses is None else [batch.losses]
    return [losses, batch.x0, batch.t, batch.key.sample, *batch.condition.values(), *unweighted]


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_the_batch_gives_the_bits_of_that_part_of_the_whole(name, simd):  # noqa: F811, ARG001
    whole_task, part_task = unet_task(name), unet_task(name)  # two, so that nothing is carried over
    for step in (1, 4):
        whole = losses_of(whole_task, step, range(11))
        assert whole[0].shape == (11,)
        assert np.isfinite(whole[0]).all()
        assert len(set(whole[0].tolist())) == 11
        for part in PARTS.values():
            assert_same_bits(losses_of(part_task, step, part), [a[part] for a in whole])


def test_the_parts_would_notice_other_numbers(simd):  # noqa: F811, ARG001
    """The test above compares what it should: with the numbers 0, 1, 2 the second half draws something else."""
    made = unet_task("stratified")
    second, renumbered = losses_of(made, 1, range(6, 11)), losses_of(made, 1, range(5))
    assert (second[0] != renumbered[0]).all()


# ---- which images --------------------------------------------------------------------------------------------------


def test_the_data_come_in_whole_epochs_each_in_an_order_of_its_own():
    made, n = task(), len(dataset())
    stream = np.concatenate([read(made.batch(step, NUMBERS).x0).number for step in STEPS])
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs) > 200
    assert stream[:n].tolist() == random.permutation(11, random.DATA, 0, n).tolist()  # step 1 is the beginning


def test_about_half_of_the_images_are_mirrored_others_in_every_step():
    made, count, patterns = task(flip=True), 0, set()
    for step in STEPS:
        mirrored = read(made.batch(step, NUMBERS).x0).mirrored
        assert (mirrored == (first_words(random.AUGMENT, step) < 0.5 * WORDS)).all()
        count += mirrored.sum()
        patterns.add(mirrored.tobytes())
    assert_share(count, N * len(STEPS), 0.5)
    assert len(patterns) == len(STEPS)  # 2^16 patterns, of which this seed meets none twice
    assert not any(read(task().batch(step, NUMBERS).x0).mirrored.any() for step in STEPS)


# ---- what is said about them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [NUMBERS, np.array([3]), np.array([15, 4, 9])])
def test_every_image_comes_with_its_own_label_and_context(part):
    made = task(context=True, conditional=True, label_drop=0.0, flip=True)
    for step in STEPS:
        batch = made.batch(step, part)
        seen = read(batch.x0)
        assert batch.condition["class_labels"].tolist() == seen.label.tolist()
        assert (batch.condition["context"] == context_of(seen.number)).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_condition_is_withheld_from_a_share_of_the_samples_and_from_these(share):
    made, count, patterns = task(context=True, conditional=True, label_drop=share), 0, set()
    for step in STEPS:
        batch = made.batch(step, NUMBERS)
        seen, labels = read(batch.x0), batch.condition["class_labels"]
        withheld = first_words(random.CONDITION, step) < share * WORDS
        assert (labels == np.where(withheld, CLASSES, seen.label)).all()
        rows = np.where(withheld[:, None, None], NOTHING, context_of(seen.number))  # all of it, or nothing
        assert (batch.condition["context"] == rows).all()
        count += (labels == CLASSES).sum()
        patterns.add(withheld.tobytes())
    assert_share(count, N * len(STEPS), share)
    assert len(patterns) > 100  # of 300 steps: others each time, as far as there are enough others


def test_every_image_comes_with_one_of_its_own_captions():
    names = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
    captions = [[f"a {name}", f"{name} {name} {name}"] for name in names]
    data, model, used = load(dataset(10).images, captions={"en": captions}), Recorder(), set()
    options = Options(batch_size=N, seed=11, timesteps=50, text="glove", label_drop=0.2)
    made, encoder = DiffusionTask(data, options, model), Glove()
    own = [[encoder.encode([c])["encoder_hidden_states"][0] for c in pair] for pair in captions]
    for step in range(1, 41):
        batch = made.batch(step, NUMBERS)
        withheld = first_words(random.CONDITION, step) < 0.2 * WORDS
        told = batch.condition["encoder_hidden_states"]
        for row, number, left_out in zip(told, read(batch.x0).number, withheld, strict=True):
            found = [k for k in (0, 1) if (row == own[number][k]).all()]
            assert found == [] if left_out else len(found) == 1
            assert row.any() != left_out
            used.update((number, k) for k in found)
    assert len(used) == 20  # and not always the first of them


def test_an_unconditional_task_says_nothing_of_the_images():
    batch = task(context=True).batch(1, NUMBERS)
    assert dict(batch.condition) == {}
    assert batch.condition.rows == N


# ---- at which t, under which noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "stratified", "loss_aware"])
def test_every_t_is_drawn_as_often_as_the_others(name):
    """loss_aware too, before it has seen losses. 300 batches of 16 draw each of 40 t about 120 times."""
    made = task(timesteps=40, timestep_sampling=name)
    drawn = np.array([made.batch(step, NUMBERS).t for step in STEPS])
    counts = np.bincount(drawn.ravel())
    assert len(counts) == 40
    for count in counts:
        assert_share(count, drawn.size, 1 / 40)
    assert len({tuple(t) for t in drawn.tolist()}) == len(STEPS)  # other t in every step


@pytest.mark.parametrize(("name", "mean", "spread"), [("lognormal", -1.2, 1.2), ("logit_normal", 0.0, 1.0)])
def test_noise_levels_are_normal_in_their_logarithm(name, mean, spread):
    made = task(timestep_sampling=name, timesteps=200)
    level = np.log(made.process.schedule.sigma / made.process.schedule.alpha)
    for step in STEPS:
        z = random.normal(random.key(11, random.TIMESTEP, NUMBERS, step), (), np.float64)
        nearest = np.abs(level[:, None] - (mean + spread * z)).argmin(axis=0)
        assert np.abs(made.batch(step, NUMBERS).t - nearest).max() <= 1


def test_uniform_t_are_those_of_the_key():
    """So that a change of the draw, on purpose or not, is noticed: all recorded runs would change."""
    for step in (1, 2, 300):
        words = first_words(random.TIMESTEP, step).astype(np.float64)
        assert task().batch(step, NUMBERS).t.tolist() == np.floor(words * 50 / WORDS).tolist()


def noise_seen(made, step):
    """eps, (N, *SHAPE), solved from what the network was shown."""
    batch = made.batch(step, NUMBERS)
    made.losses(batch)
    x, t, _ = made.model.asked.pop()
    assert t.tolist() == batch.t.tolist()
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in made.process.schedule.at(t))
    return (x - alpha * batch.x0) / sigma


def test_every_sample_of_every_step_has_noise_of_its_own():
    made = task()
    drawn = np.array([noise_seen(made, step) for step in range(1, 41)])
    for step in (1, 40):
        expected = random.normal(random.key(11, random.NOISE, NUMBERS, step), SHAPE)
        np.testing.assert_allclose(drawn[step - 1], expected, atol=1e-4)
    rows = drawn.reshape(40 * N, -1)
    alike = (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ (rows / np.linalg.norm(rows, axis=1)[:, None]).T
    np.fill_diagonal(alike, 0)
    assert alike.max() < 0.999  # no two of them are the same
    assert rows.mean() == pytest.approx(0.0, abs=5 / math.sqrt(rows.size))
    assert rows.std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * rows.size))


def test_offset_noise_is_another_number_for_every_sample_and_step():
    plain, offset = task(), task(offset_noise=0.5)
    more = np.array([noise_seen(offset, step) - noise_seen(plain, step) for step in range(1, 41)]).reshape(640, -1)
    assert np.ptp(more, axis=1).max() < 1e-3  # shared by the pixels
    assert len(np.unique(np.round(more[:, 0], 5))) > 630
    assert more[:, 0].std() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * 640))


def test_the_network_is_told_t_and_the_condition_of_the_same_samples():
    made = task(context=True, conditional=True, label_drop=0.3, flip=True)
    for step in range(1, 20):
        batch = made.batch(step, NUMBERS)
        made.losses(batch)
        _, t, condition = made.model.asked.pop()
        assert t.tolist() == batch.t.tolist()
        assert condition.keys() == {"class_labels", "context"}
        assert all((condition[name] == batch.condition[name]).all() for name in condition)


class Wide(Recorder):
    """Answers to x beside x0-hat with a multiple of x alone."""

    def forward(self, x, t, **condition):
        return super().forward(x, t, **condition)[..., :1]


def test_half_of_the_samples_are_shown_the_networks_own_guess_and_these():
    made, count = task(self_conditioning=True, conditional=True, model=Wide()), 0
    for step in STEPS:
        batch = made.batch(step, NUMBERS)
        made.losses(batch)
        (first, _, told), (second, _, told_again) = made.model.asked
        made.model.asked.clear()
        assert not first[..., 1:].any()
        assert (first[..., :1] == second[..., :1]).all()
        assert (told["class_labels"] == told_again["class_labels"]).all()
        shown = second[..., 1:].any(axis=(1, 2, 3))
        assert (shown == (first_words(random.SELF_CONDITION, step) < 0.5 * WORDS)).all()
        guess = made.process.to_x0(first[..., :1], 0.5 * first[..., :1], batch.t)
        np.testing.assert_allclose(second[shown][..., 1:], guess[shown], rtol=1e-5)
        count += shown.sum()
    assert_share(count, N * len(STEPS), 0.5)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_sample_is_the_squared_error_of_its_noise():
    made = task()
    batch = made.batch(3, NUMBERS)
    losses = made.losses(batch).data
    x, _, _ = made.model.asked.pop()
    eps = random.normal(random.key(11, random.NOISE, NUMBERS, 3), SHAPE, np.float64)
    np.testing.assert_allclose(losses, ((0.5 * x - eps) ** 2).mean(axis=(1, 2, 3)), rtol=1e-4)


def test_losses_count_as_often_as_their_t_is_drawn_too_rarely():
    """loss_aware: weighted by 1 / (T p_t) for the step, and noted as they are for the draws to come."""
    made, plain = task(timesteps=8, timestep_sampling="loss_aware"), task(timesteps=8)
    made.history.losses[...] = np.linspace(0.1, 2.0, 8)[:, None]
    made.history.seen[...] = 10
    batch = made.batch(1, NUMBERS)
    weighted = made.losses(batch).data
    unweighted = plain.losses(batch).data
    np.testing.assert_allclose(weighted, unweighted * made.history.weights(batch.t), rtol=1e-5)
    assert np.ptp(made.history.weights(batch.t)) > 0.5
    made.learned(made.seen(batch))
    assert made.history.seen.sum() == 80 + N
    noted = {t: made.history.losses[t, (made.history.seen[t] - 1) % 10] for t in batch.t}
    last = dict(zip(batch.t.tolist(), unweighted.tolist(), strict=True))
    assert noted == pytest.approx(last, rel=1e-6)


# ---- what a resumed run must find ------------------------------------------------------------------------------------


def test_the_identity_names_data_codec_and_network():
    made = DiffusionTask(dataset(), Options(channels=(8,), groups=4))
    identity = made.identity()
    assert identity["data"] == "readable"
    assert identity["fingerprint"] == dataset().fingerprint() != dataset(22).fingerprint()
    assert identity["codec"] == {"kind": "pixels", "shape": list(SHAPE)}
    assert identity["model"] == "UNet2DModel"


def test_classes_are_needed_where_the_options_ask_for_them():
    plain = Dataset("plain", np.zeros((4, *SHAPE), np.uint8))
    with pytest.raises(ValueError, match="conditional training needs classes, but plain has none"):
        DiffusionTask(plain, Options(conditional=True))
