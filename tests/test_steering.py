"""Classifiers of noisy samples: trained here, kept in folders, and steering models that know no classes."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pydiff
from pydiff.cli import main
from pydiff.data import load
from pydiff.diffusion import Process, guidance, schedule
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import NoisyClassifier
from pydiff.models.classifier import parts_of
from pydiff.steering import log_probability_of
from pydiff.tensor import Tensor
from pydiff.training import ClassifyTask, Options, train_task
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import check_gradient
from tests.trainers import train_until

QUICK = {"batch_size": 16, "warmup": 5, "lr": 5e-3, "channels": (8, 16), "sample_every": 0, "progress": False}
JUDGE = {**QUICK, "steps": 250, "ema": 0.95, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    return pydiff.train("digits", out=out, steps=20, prediction="v", **QUICK)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return pydiff.train("digits", model="classifier", out=tmp_path_factory.mktemp("judge") / "run", **JUDGE)


# ---- the network -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    n=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 11), line=st.booleans(),
    attends=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_gradient_of_a_classifier_is_its_slope(n, height, width, line, attends, seed):
    rng = np.random.default_rng(seed)
    shape = (n, 1, 5 * width, 2) if line else (n, height, width, 2)
    model = NoisyClassifier(
        classes=3, in_channels=2, line=line, block_out_channels=(8, 8), norm_num_groups=4,
        attention=(1,) if attends else (), seed=seed,
    ).astype(np.float64)  # fmt: skip
    x, t = rng.standard_normal(shape), rng.uniform(0, 999, n)
    assert model(x, t).shape == (n, 3)
    check_gradient(lambda a: model(a, t), lambda a: model(a, t).data, [x], rng)


@given(st.integers(1, 50))
def test_the_parts_of_an_axis_hold_all_of_it(size):
    parts = parts_of(size)
    assert len(parts) == 3
    assert {i for a, b in parts for i in range(a, b)} == set(range(size))
    lengths = [b - a for a, b in parts]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"classes": 1}, None, "a classifier needs 2 classes"),
        ({"classes": 2, "attention": (3,)}, None, "attention on levels that it has"),
        ({"classes": 2}, np.zeros((1, 4, 4, 3), np.float32), r"takes images \(N, H, W, 1\), got \(1, 4, 4, 3\)"),
        ({"classes": 2, "line": True}, np.zeros((1, 2, 4, 1), np.float32), r"takes lines \(N, 1, L, 1\)"),
    ],
)
def test_what_no_classifier_can_be_or_take(options, x, message):
    with pytest.raises(ValueError, match=message):
        NoisyClassifier(**options)(x, [0])


# ---- learning --------------------------------------------------------------------------------------------------------


def test_it_learns_and_noise_makes_it_less_sure(judge):
    data = load("digits")
    assert judge.accuracy(data) > 0.8
    assert judge.accuracy(data, t=999) < 0.3
    found = judge.log_probabilities(data.images[:5])
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(1), 1, rtol=1e-5)


def test_half_a_batch_has_half_of_its_losses():
    options = Options(**{k: v for k, v in JUDGE.items() if k != "progress"}, flip=True)
    task = ClassifyTask(load("digits"), options)
    whole = task.losses(task.batch(3, np.arange(16))).data
    assert_same_bits([task.losses(task.batch(3, np.arange(5, 9))).data], [whole[5:9]])


def test_a_stopped_run_goes_on_to_the_same_bits(judge, tmp_path):
    options = Options(**{k: v for k, v in JUDGE.items() if k != "progress"})
    data = load("digits")
    train_until(tmp_path / "run", 203, data, options, task=ClassifyTask(data, options))
    with pytest.raises(FileNotFoundError, match="is unfinished; the command that began it"):
        pydiff.load(tmp_path / "run")
    resumed = pydiff.train("digits", model="classifier", out=tmp_path / "run", **JUDGE)
    assert_same_bits(resumed.model.state_dict().values(), judge.model.state_dict().values())


def test_sounds_have_classifiers_of_both_codecs():
    quick = {"rate": 4000, "seconds": 0.1, **QUICK, "steps": 1, "channels": (8,)}
    for codec, line in (("waveform", True), ("spectrogram", False)):
        made = pydiff.train("tones", model="classifier", codec=codec, **quick)
        assert made.model.config["line"] == line
        assert made.codec.kind == codec
        assert made.predict(load("tones", rate=4000, seconds=0.1).images[:3]).shape == (3,)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("digits", {"prediction": "v"}, "prediction is an option of diffusion models; a classifier is trained without"),
        ("digits", {"timestep_sampling": "loss_aware"}, "is for diffusion models"),
        ("emoji", {}, "a classifier needs classes, at least 2, and emoji has none"),
        ("tones", {"flip": True}, "flip mirrors images, and tones holds sounds"),
        (np.zeros((4, 2), np.float32), {}, "needs classes"),
    ],
)
def test_what_no_classifier_learns(data, options, message):
    with pytest.raises(ValueError, match=message):
        pydiff.train(data, model="classifier", progress=False, **options)


def test_clips_and_latents_are_refused(judge):
    clips = load(np.zeros((4, 2, 8, 8, 3), np.uint8), labels=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="classifiers are for images and sounds"):
        pydiff.train(clips, model="classifier", progress=False)
    with pytest.raises(ValueError, match="'classifier' without a latent"):
        pydiff.train("digits", model="classifier", latent=judge.directory)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_it_back(judge, tmp_path):
    judge.save(tmp_path / "copy")
    images = load("digits").images[:20]
    for place in (judge.directory, judge.directory / "model", tmp_path / "copy"):
        again = pydiff.load(place)
        assert_same_bits([again.log_probabilities(images, t=200)], [judge.log_probabilities(images, t=200)])
        assert again.classes == judge.classes
        assert again.step == 250
    assert pydiff.load(judge.directory).log()[-1]["step"] == 250
    judge.save(tmp_path / "half", "float16")
    assert (pydiff.load(tmp_path / "half").predict(images) == judge.predict(images)).mean() > 0.9


def test_a_damaged_folder_is_one_sentence(judge, tmp_path):
    copy = shutil.copytree(judge.directory / "model", tmp_path / "model")
    weights = next(copy.rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        pydiff.load(copy)


def test_it_draws_nothing_and_says_so(judge):
    for call in (judge.sample, judge.report, lambda: judge.pipeline):
        with pytest.raises(ValueError, match="is a classifier, which draws nothing by itself"):
            call()
    with pytest.raises(ValueError, match="has other classes than run knows"):
        judge.accuracy(load(np.zeros((2, 8, 8, 1), np.uint8), labels=["a", "b"]))


# ---- steering --------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_comes_out(plain, judge):
    wanted = np.arange(30) % 10
    steered = plain.steered(judge)
    asked = {"labels": wanted, "steps": 12}
    right = [(judge.predict(steered.sample(30, guidance=g, **asked)) == wanted).mean() for g in (0.0, 0.5)]
    assert right[0] < 0.4  # as chance has it
    assert right[1] > 0.8
    assert_same_bits([steered.sample(30, guidance=0.0, **asked)], [plain.sample(30, steps=12)])
    by_gradient = plain.steered(judge.directory, by="gradient").sample(30, guidance=5.0, **asked)
    assert (judge.predict(by_gradient) == wanted).mean() > 0.6
    with pytest.raises(ValueError, match=r"there is no class 'ten'"):
        steered.sample(1, labels=["ten"])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver", "heun"])
def test_a_sample_depends_on_itself_alone(plain, judge, sampler):
    steered = plain.steered(judge)

    def drawn(part):
        numbers = np.arange(3)[part]
        asked = steered.conditioning.rows(numbers, np.array([4, 7, 1])[part])
        return [steered.pipeline.sample(numbers, 5, sampler, 4, asked)]

    check_any_batch(drawn, 3)


def test_any_number_of_threads_gives_the_same_bits(plain, judge):
    steered = plain.steered(judge)
    check_any_thread_count(lambda: [steered.sample(2, labels=[3, 8], steps=3)])


def test_edits_are_steered_and_without_a_class_they_are_not(plain, judge):
    steered, images = plain.steered(judge), load("digits").images[:2]
    mask = np.zeros((8, 8))
    mask[:, 4:] = 1
    options = {"steps": 3, "seed": 1}
    free = steered.inpaint(images, mask, **options)
    assert_same_bits([free], [plain.inpaint(images, mask, **options)])
    asked = steered.inpaint(images, mask, labels=["5", "6"], **options)
    assert np.array_equal(asked[:, :, :4], images[:, :, :4])
    assert not np.array_equal(asked, free)


def test_other_kinds_of_models_are_steered(judge):
    options = {**QUICK, "steps": 2, "timesteps": 1000}
    for more in ({"variance": "learned"}, {"self_conditioning": True}, {"conditional": True}, {"prediction": "flow"}):
        steered = pydiff.train("digits", **options, **more).steered(judge)
        sampler = "ddpm" if "variance" in more else None
        made = [steered.sample(2, labels=[k, k], guidance=2.0, steps=5, sampler=sampler) for k in (3, 8)]
        assert not np.array_equal(*made), more


def test_the_interval_and_further_channels_of_the_answer_are_respected():
    process = Process(schedule("cosine"), "eps")
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 1))
    answer = np.concatenate([0.1 * x, 7 + 0 * x], axis=-1)
    guided = guidance.classifier_guided(
        lambda *_: answer, lambda x, _t: (x * 2.0).sum(axis=(1, 2, 3)), process, 1.5, interval=(0.1, 5.0)
    )
    t = np.full(2, 500)
    f = guided(x, t)
    assert np.array_equal(f[..., 1:], answer[..., 1:])
    np.testing.assert_allclose(f[..., :1], 0.1 * x - 1.5 * 2.0 * process.schedule.at(t)[1][0], rtol=1e-12)
    for outside in (1, 990):
        assert guided(x, np.full(2, outside)) is answer


def test_nothing_asked_pushes_nowhere():
    network = NoisyClassifier(classes=3, block_out_channels=(8,), seed=1).astype(np.float64)
    x = Tensor(np.random.default_rng(0).standard_normal((3, 5, 5, 1)), requires_grad=True)
    found = log_probability_of(network, [0, 3, 2], 3)(x, np.full(3, 10))
    found.sum().backward()
    assert found.data[1] == 0
    assert not x.grad[1].any()
    assert x.grad[0].any()
    assert x.grad[2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "the model's noise levels are those of linear, 1000 of them, the classifier's of cos"),
        ({"timesteps": 50}, "50 of them"),
        ({"size": 12}, r"samples have shape \[12, 12, 1\], the classifier's \[8, 8, 1\]"),
        ({"prediction": "edm", "schedule": "edm"}, "with another prediction than edm"),
        ({"conditional": True, "label_drop": 0.1}, None),
    ],
)
def test_two_that_do_not_go_together(judge, options, message):
    run = pydiff.train("digits", **{**QUICK, "steps": 1}, **options)
    if message is None:
        assert run.steered(judge).classes == judge.classes
        return
    with pytest.raises(ValueError, match=message):
        run.steered(judge)


def test_what_cannot_steer_or_be_asked(plain, judge, tmp_path):
    with pytest.raises(ValueError, match="is a ClassifierRun or its folder, got Run"):
        plain.steered(plain)
    with pytest.raises(FileNotFoundError, match="holds no classifier; train one"):
        plain.steered(plain.directory)
    with pytest.raises(ValueError, match="measured by noise or gradient, got 'x'"):
        plain.steered(judge, by="x")
    steered = plain.steered(judge)
    with pytest.raises(ValueError, match="rescale is for models"):
        steered.sample(1, steps=2, guidance=2.0, rescale=0.5)
    with pytest.raises(ValueError, match="a steered model is two networks"):
        steered.save(tmp_path / "model")
    with pytest.raises(ValueError, match="classifiers steer models that pydiff trained"):
        steered.steered(judge)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_trains_one_and_lets_it_steer(plain, tmp_path, capsys):
    out = tmp_path / "judge"
    train = ["train", "digits", "--model", "classifier", "--out", str(out), "--steps", "3", "--channels", "8"]
    assert main([*train, "--batch-size", "8"]) == 0
    assert f"--classifier {out} --label 0" in capsys.readouterr().out
    sample = ["sample", str(plain.directory), "--steps", "2", "-n", "3", "--out", str(tmp_path / "made")]
    steered = [*sample, "--classifier", str(out)]
    assert main([*steered, "--say", "7"]) == 0
    assert "3 images of class '7'" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "made").glob("*.png")) == [f"00000{i}-7.png" for i in range(3)]
    assert main([*steered, "--say", "7"]) == 0
    assert "3 of them from before" in capsys.readouterr().out
    assert main([*steered, "--say", "7", "--steer-by", "gradient"]) == 1
    assert "is another sample" in capsys.readouterr().err
    assert main([*sample, "--steer-by", "noise"]) == 1
    assert "give that too, --classifier" in capsys.readouterr().err
    assert main(["sample", str(out)]) == 1
    assert "is a classifier, which draws nothing" in capsys.readouterr().err
    assert main([*train, "--prediction", "v"]) == 1
    assert main([*train, "--latent", str(out)]) == 1
    assert main([*train, "--dry-run"]) == 0
    assert "weights and optimiser: " in capsys.readouterr().out


def test_any_task_trains_it():
    options = Options(**{k: v for k, v in QUICK.items() if k != "progress"}, steps=2)
    trainer = train_task(ClassifyTask(load("digits"), options), options, progress=False)
    assert trainer.step == 2
    assert json.dumps(trainer.task.identity())
