"""Autoencoders that are trained here, and diffusion models in their latents: bits, folders, edits, the command line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff import nn
from pydiff.autoencoding import AutoencoderRun
from pydiff.codec import Pixels, from_uint8, to_uint8
from pydiff.data import Dataset, load
from pydiff.formats.diffusers import autoencoder as autoencoder_folder
from pydiff.formats.safetensors import CheckpointError
from pydiff.latent_space import LatentSpace, open_autoencoder, previewer
from pydiff.models import AutoencoderKL, AutoencoderTiny
from pydiff.report.autoencoder import nearest_of, psnr
from pydiff.tensor import no_grad
from pydiff.training import AutoencoderOptions, AutoencoderTask, Options, opened, training_steps
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import assert_close
from tests.peers import import_diffusers
from tests.trainers import train_until

SMALL = {"steps": 60, "batch_size": 16, "warmup": 5, "lr": 5e-3, "ema": 0.9, "sample_every": 0, "checkpoint_every": 25}
AUTOENCODER = {**SMALL, "channels": (8, 16), "groups": 4, "latent_channels": 3}
LATENT = {"steps": 6, "batch_size": 6, "warmup": 2, "channels": (8,), "groups": 4, "timesteps": 50, "sample_every": 0}
LATENT |= {"prediction": "v"}  # what suits latents where nobody chose


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(np.arange(200))


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("autoencoder") / "small"
    return pydiff.train(digits, model="autoencoder", out=out, progress=False, **AUTOENCODER)


@pytest.fixture(scope="module")
def latent(digits, made, tmp_path_factory):
    out = tmp_path_factory.mktemp("latent") / "run"
    options = {**LATENT, "conditional": True, "flip": True}
    return pydiff.train(digits, latent=made.directory, out=out, progress=False, **options)


# ---- the autoencoder -------------------------------------------------------------------------------------------------


def test_it_is_opened_without_wishes(made):
    with pytest.raises(ValueError, match="holds an autoencoder, which has no size or prediction; leave that out"):
        pydiff.load(made.directory, size=8, prediction="eps", variant=None)
    assert pydiff.load(made.directory, variant=None).step == AUTOENCODER["steps"]


def test_it_learns_and_its_latents_have_unit_scale(made, digits):
    before = AutoencoderTask(digits, AutoencoderOptions(**AUTOENCODER)).model
    untrained = AutoencoderRun(before, digits.shape, {})
    assert made.psnr(digits.images).mean() > untrained.psnr(digits.images).mean() + 3
    x = made.encode(digits.images)
    assert x.shape == (200, 4, 4, 3)
    assert_close(x.mean((0, 1, 2)), np.zeros(3), rtol=0, atol=1e-4)
    assert_close(x.std((0, 1, 2)), np.ones(3), rtol=1e-4)
    config = made.autoencoder.config
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 3  # saved, and measured on these data


def test_the_loss_is_the_error_and_the_divergence_of_the_latents(digits):
    """Of the latents, not of the image: each part against what is computed here, in float64."""
    task = AutoencoderTask(digits, AutoencoderOptions(**{**AUTOENCODER, "kl_weight": 0.01}))
    task.model.astype(np.float64)
    x, noise = task.batch(3, np.arange(5))
    x, noise = x.astype(np.float64), noise.astype(np.float64)
    with no_grad():
        mean, logvar = task.model.encode(x)
        image = task.model.decode(mean.data + np.exp(0.5 * logvar.data) * noise).data
        losses = task.losses((x, noise)).data
    divergence = 0.5 * (mean.data**2 + np.exp(logvar.data) - 1 - logvar.data).sum((1, 2, 3))
    assert_close(losses, np.abs(image - x).mean((1, 2, 3)) + 0.01 * divergence / 64, rtol=1e-12)
    assert divergence.min() > 0.1


def test_the_weight_of_the_divergence_draws_latents_together(digits):
    def spread(weight):
        task = AutoencoderTask(digits, AutoencoderOptions(**{**AUTOENCODER, "steps": 40, "kl_weight": weight}))
        trainer = pydiff.training.train_task(task, task.options, None, progress=False)
        with no_grad():
            return float(trainer.model.encode(from_uint8(digits.images)).kl().data.mean())

    assert spread(0.3) < 0.3 * spread(1e-6)


def test_a_part_of_the_batch_gives_the_bits_of_that_part_of_the_whole(digits):
    task = AutoencoderTask(digits, AutoencoderOptions(**{**AUTOENCODER, "flip": True}))

    def losses(numbers):
        with nn.training(0, 4, numbers):
            return task.losses(task.batch(4, numbers)).data

    whole = losses(np.arange(16))
    for part in ([0], [3, 1, 15], list(range(8, 16))):
        assert_same_bits([losses(np.array(part))], [whole[part]])
    assert np.array_equal(task.batch(4, np.arange(16))[1], task.batch(4, np.arange(16))[1])
    assert not np.array_equal(task.batch(4, np.arange(16))[1], task.batch(5, np.arange(16))[1])


def test_a_stopped_run_goes_on_to_the_same_bits(made, digits, tmp_path):
    task = AutoencoderTask(digits, AutoencoderOptions(**AUTOENCODER))
    with opened(task, task.options, tmp_path / "run") as (trainer, folder):
        for state in training_steps(trainer):
            folder.log.append({"step": state.step, "loss": state.loss})
            if state.step == 23:
                break
        folder.save_checkpoint(trainer.step, trainer.arrays(), 2)
    resumed = pydiff.train(digits, model="autoencoder", out=tmp_path / "run", progress=False, **AUTOENCODER)
    expected, state = made.autoencoder.state_dict(), resumed.autoencoder.state_dict()
    assert_same_bits([state[name] for name in expected], list(expected.values()))
    assert resumed.autoencoder.config == made.autoencoder.config
    with pytest.raises(ValueError, match="holds a run with kl_weight = 1e-06, not 1e-05"):
        pydiff.train(
            digits, model="autoencoder", out=tmp_path / "run", progress=False, **AUTOENCODER, kl_weight=1e-5
        )  # fmt: skip


def test_a_run_is_opened_while_it_trains_and_when_it_was_stopped(digits, tmp_path, caplog):
    options, out, seen = {**AUTOENCODER, "checkpoint_every": 10, "sample_every": 20}, tmp_path / "run", []

    def watch(step, _):
        seen.append((step, pydiff.load(out)))
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pydiff.train(digits, model="autoencoder", out=out, progress=False, watch=watch, **options)
    (_, first), (_, second) = seen
    assert (first.step, second.step) == (20, 40) or (first.step, second.step) == (10, 30)  # samples or checkpoint first
    stopped = pydiff.load(out)
    assert isinstance(stopped, AutoencoderRun)
    assert (stopped.step, stopped.data_name, stopped.options["channels"]) == (second.step, "digits", [8, 16])
    assert f"is unfinished: step {stopped.step} of 60" in stopped.notes[0]
    assert "not scaled yet" in stopped.notes[1]
    assert set(stopped.notes) <= set(caplog.messages)
    assert stopped.psnr(digits.images).mean() > first.psnr(digits.images).mean()
    task = AutoencoderTask(digits, AutoencoderOptions(**options))
    with opened(task, task.options, out) as (trainer, _):
        assert_same_bits([p.data for p in stopped.autoencoder.parameters()],
                         [p.data for p in trainer.ema_model().parameters()])  # fmt: skip
    assert stopped.report(data=digits).exists()
    stopped.save(tmp_path / "saved")
    assert pydiff.load(tmp_path / "saved").step == stopped.step
    with pytest.raises(FileNotFoundError, match="holds no finished autoencoder yet"):
        open_autoencoder(out)
    finished = pydiff.train(digits, model="autoencoder", out=out, progress=False, **{**options, "sample_every": 0})
    assert pydiff.load(out).notes == ()
    assert (pydiff.load(out).step, finished.step) == (60, 60)
    longer = {**options, "sample_every": 0, "steps": 80, "checkpoint_every": 70}
    with pytest.raises(ZeroDivisionError):
        pydiff.train(digits, model="autoencoder", out=out, progress=False, watch=lambda *_: 1 / 0,
                     **{**longer, "sample_every": 75})  # fmt: skip
    assert pydiff.load(out).step == 70  # beyond the finished model


def test_a_stopped_run_that_cannot_be_followed_is_one_sentence(digits, tmp_path):
    options, out = {**AUTOENCODER, "checkpoint_every": 10, "sample_every": 5}, tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        pydiff.train(digits, model="autoencoder", out=out, progress=False, watch=lambda *_: 1 / 0, **options)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet; the first is written after step 10"):
        pydiff.load(out)
    with pytest.raises(ZeroDivisionError):
        pydiff.train(digits, model="autoencoder", out=out, progress=False, watch=lambda *_: 1 / 0,
                     **{**options, "sample_every": 15})  # fmt: skip
    assert pydiff.load(out).step == 10
    config = json.loads((out / "config.json").read_text())
    for change, message in (
        ({"codec": {"kind": "pixels"}}, "cannot be followed|another run"),
        ({"options": {**config["options"], "channels": [8]}}, "cannot be followed|another run"),
    ):
        (out / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message) as error:
            pydiff.load(out)
        assert "\n" not in str(error.value)
    (out / "config.json").write_text("{")
    with pytest.raises((CheckpointError, FileNotFoundError)) as error:
        pydiff.load(out)
    assert "\n" not in str(error.value)


def test_it_is_opened_saved_and_opened_by_diffusers(made, digits, tmp_path):
    images = digits.images[:7]
    opened_again = pydiff.load(made.directory)
    assert isinstance(opened_again, AutoencoderRun)
    assert (opened_again.step, opened_again.name, opened_again.data_name) == (60, "small", "digits")
    assert_same_bits([opened_again.reconstruct(images)], [made.reconstruct(images)])
    made.save(tmp_path / "saved", dtype="float16")
    half = pydiff.load(tmp_path / "saved")
    assert np.abs(half.reconstruct(images).astype(int) - made.reconstruct(images)).max() <= 3
    assert half.codec.pixels.shape == (8, 8, 1)
    made.save(tmp_path / "saved")  # in place of it
    theirs = import_diffusers().AutoencoderKL.from_pretrained(tmp_path / "saved", subfolder="vae")
    import torch

    z = theirs.encode(torch.from_numpy(from_uint8(images).transpose(0, 3, 1, 2))).latent_dist.mode()
    ours = made.autoencoder.unscaled(made.encode(images))
    assert_close(ours, z.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_bits([pydiff.load(tmp_path / "theirs").reconstruct(images)], [made.reconstruct(images)])


def test_it_draws_nothing_by_itself(made):
    with pytest.raises(ValueError, match="is an autoencoder, which draws nothing by itself; train a diffusion model"):
        made.sample(4)
    with pytest.raises(ValueError, match="draws nothing by itself"):
        made.inpaint(None, None)


def test_a_damaged_folder_is_one_sentence(made, tmp_path):
    copy = shutil.copytree(made.directory / "model", tmp_path / "model")
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        pydiff.load(copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match="Could not read"):
        pydiff.load(copy)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/other.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds 'other\.txt', expected a model alone"):
        made.save(tmp_path / "full")


def test_little_memory_is_for_models_of_latents(latent):
    small = pydiff.load(latent.directory, low_memory=True)
    assert small.codec.autoencoder.in_bands
    assert not latent.codec.autoencoder.in_bands
    assert_same_bits([small.sample(3, steps=2)], [latent.sample(3, steps=2)])
    with pytest.raises(CheckpointError, match=r"low_memory is nothing that .* models of latents; leave it out"):
        pydiff.load("digits", low_memory=True)


def test_half_trained_folders_say_so(digits, tmp_path):
    task = AutoencoderTask(digits, AutoencoderOptions(**AUTOENCODER))
    with opened(task, task.options, tmp_path / "run") as (trainer, folder):
        folder.log.append({"step": 1, "loss": 1.0})
        folder.save_checkpoint(trainer.step, trainer.arrays(), 2)
    assert "unfinished: step 0 of 60" in pydiff.load(tmp_path / "run").notes[0]
    with pytest.raises(FileNotFoundError, match="holds no finished autoencoder yet"):
        open_autoencoder(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 16, 16, 16, 16)}, "sides can be divided by 16, and these are 8 x 8 pixels"),
        ({"channels": ()}, "channels must be a whole number a level"),
        ({"kl_weight": -1}, "kl_weight must be a number from 0"),
        ({"latent_channels": 0}, "latent_channels must be a whole number of at least 1"),
        ({"groups": 5}, "do not divide into 5 groups"),
    ],
)
def test_options_that_cannot_work_are_one_sentence(digits, options, message):
    with pytest.raises(ValueError, match=message):
        pydiff.train(digits, model="autoencoder", progress=False, **{**AUTOENCODER, **options})


def test_options_of_diffusion_models_are_refused(digits):
    with pytest.raises(TypeError, match="there is no option 'prediction'"):
        pydiff.train(digits, model="autoencoder", progress=False, prediction="v")
    with pytest.raises(ValueError, match="prediction is an option of diffusion models"):
        AutoencoderOptions.of_diffusion(Options(prediction="v"))
    made = AutoencoderOptions.of_diffusion(Options(steps=5, channels=(4,), flip=True), kl_weight=1e-5)
    assert made == AutoencoderOptions(steps=5, channels=(4,), flip=True, kl_weight=1e-5)
    with pytest.raises(ValueError, match="model is 'vae', expected a network, 'classifier'"):
        pydiff.train(digits, model="vae")
    with pytest.raises(ValueError, match="which has no latent and no codec"):
        pydiff.train(digits, model="autoencoder", codec=Pixels((8, 8, 1)))


def test_images_that_never_differ_cannot_be_scaled():
    task = AutoencoderTask(Dataset("black", np.zeros((4, 8, 8, 1), np.uint8)), AutoencoderOptions(**AUTOENCODER))
    for p in task.model.encoder.parameters():
        p.data[...] = 0
    with pytest.raises(ValueError, match="the latents of black do not differ in every channel"):
        task.finished(task.model)


def test_psnr():
    a, b = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 1), np.uint8)
    b[1] = 255
    b[1, 0, 0] = 0
    assert psnr(a, b).tolist() == [np.inf, pytest.approx(10 * np.log10(16 / 15))]


# ---- the codec -------------------------------------------------------------------------------------------------------


def small_autoencoder(levels=2, channels=3, seed=0):
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(4,) * levels, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, seed=seed,
    )  # fmt: skip


@given(
    levels=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5), channels=st.sampled_from([1, 3]),
    n=st.integers(0, 3),
)  # fmt: skip
def test_shapes_and_kinds_of_every_size(levels, h, w, channels, n):
    factor = 2 ** (levels - 1)
    codec = LatentSpace(small_autoencoder(levels, channels), (h * factor, w * factor))
    images = np.random.default_rng(0).integers(0, 256, (n, h * factor, w * factor, channels), dtype=np.uint8)
    x = codec.encode(images)
    assert (x.shape, x.dtype) == ((n, h, w, 4), np.float32)
    assert codec.shape == (h, w, 4)
    back = codec.decode(x)
    assert (back.shape, back.dtype) == (images.shape, np.uint8)
    assert codec.show_noise(x).shape == images.shape
    assert_same_bits([codec.encode(from_uint8(images))], [x])
    mask = np.zeros((n, h * factor, w * factor, 1), np.float32)
    mask[:, -1, 0] = 1
    small = codec.encode_mask(mask)
    assert small.shape == (n, h, w, 1)
    assert small.sum() == n  # the one latent under that pixel
    assert n == 0 or small[0, -1, 0] == 1


def test_a_sample_alone_and_on_any_threads_has_the_same_bits(made, digits):
    images = digits.images[:6]
    check_any_batch(lambda here: [made.encode(images[here]), made.reconstruct(images[here])], 6)
    check_any_thread_count(lambda: [made.encode(images), made.reconstruct(images)])


def test_floats_go_to_the_autoencoder_in_its_own_precision(made, digits):
    model = pydiff.models.build("AutoencoderKL", made.autoencoder.config).astype(np.float64)
    model.load_state_dict(made.autoencoder.state_dict())
    codec = LatentSpace(model, (8, 8))
    x = codec.encode(digits.images[:2])
    assert x.dtype == np.float32
    assert_close(x, made.encode(digits.images[:2]), rtol=1e-4)


@pytest.mark.parametrize(("size", "near"), [((10, 16), "8 x 16"), ((16, 9), "16 x 8"), ((1, 1), "4 x 4")])
def test_sizes_that_cannot_be_divided_are_one_sentence(size, near):
    with pytest.raises(ValueError, match=f"does not go with latents of 4 pixels a side; take {near}"):
        LatentSpace(small_autoencoder(3), size)


def test_channels_that_do_not_fit_are_one_sentence(made):
    with pytest.raises(ValueError, match=r"images of 1 channels, and those of random have 3; use one that was trained"):
        pydiff.train(Dataset("random", np.zeros((4, 8, 8, 3), np.uint8)), latent=made, progress=False, **LATENT)
    with pytest.raises(ValueError, match=r"images are uint8 \(2, 8, 6, 1\), expected uint8 \(N, 8, 8, 1\)"):
        made.codec.encode(np.zeros((2, 8, 6, 1), np.uint8))


def test_the_codec_is_known_by_the_autoencoder(made):
    again = LatentSpace(open_autoencoder(made.directory), (8, 8))
    assert again.to_config() == made.codec.to_config()
    other = open_autoencoder(made.directory)
    other.decoder.conv_out.bias.data[0] += 1e-3
    assert LatentSpace(other, (8, 8)).to_config() != made.codec.to_config()
    with pytest.raises(ValueError, match="there is no vae/ beside the network"):
        LatentSpace.from_config(made.codec.to_config())


# ---- diffusion in latents --------------------------------------------------------------------------------------------


def test_the_data_are_encoded_once_and_kept(latent, digits, monkeypatch):
    folder = latent.directory / "latents"
    assert json.loads((folder / "manifest.json").read_text())["info"]["data"] == digits.fingerprint()
    codec, calls = latent.codec, []
    monkeypatch.setattr(codec, "encode_floats", lambda *_: calls.append(1))
    read = codec.reader(digits, flip=True)
    table = read(np.arange(200), np.arange(200) % 2 == 1)
    monkeypatch.undo()
    assert calls == []  # all of it came from the folder
    assert_same_bits([table[:3:2]], [codec.encode(digits.images[:3:2])])
    assert_same_bits([table[1:4:2]], [codec.encode(digits.images[1:4:2, :, ::-1])])


def test_a_damaged_cache_is_made_again(latent, digits, caplog):
    file = latent.directory / "latents/latents.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"x")
    expected = latent.codec.encode(digits.images[:5])
    assert_same_bits([latent.codec.reader(digits, flip=True)(np.arange(5))], [expected])
    assert "the data are encoded again" in caplog.text
    assert file.read_bytes() == before


def test_a_stopped_run_whose_autoencoder_was_moved_goes_on_to_the_same_bits(latent, made, digits, tmp_path):
    copy = shutil.copytree(made.directory, tmp_path / "moved")
    options = Options(**LATENT, conditional=True, flip=True)
    codec = LatentSpace(open_autoencoder(copy), (8, 8))
    train_until(tmp_path / "run", 3, digits, options, codec=codec)
    codec.keep_in(tmp_path / "run")
    shutil.rmtree(copy)
    keywords = {**LATENT, "conditional": True, "flip": True}
    resumed = pydiff.train(digits, latent=copy, out=tmp_path / "run", progress=False, **keywords)
    expected, state = latent.model.state_dict(), resumed.model.state_dict()
    assert_same_bits([state[name] for name in expected], list(expected.values()))
    shutil.rmtree(tmp_path / "run/autoencoder")  # what was learned does not need it either
    assert_same_bits([pydiff.load(tmp_path / "run").sample(3, steps=4)], [latent.sample(3, steps=4)])
    with pytest.raises(FileNotFoundError, match="moved is not a folder; give the folder of an autoencoder's run"):
        pydiff.train(digits, latent=copy, out=tmp_path / "run", progress=False, **keywords)


def test_another_autoencoder_and_pixels_are_refused(latent, digits, tmp_path):
    other = AutoencoderRun(small_autoencoder(channels=1), (8, 8, 1), {})
    other.save(tmp_path / "other")
    copy = shutil.copytree(latent.directory, tmp_path / "run")
    keywords = {**LATENT, "conditional": True, "flip": True, "progress": False}
    for more in ({"latent": tmp_path / "other"}, {}):
        with pytest.raises(
            ValueError, match=r"holds a run with codec = .*, not .*; use that, or choose another folder"
        ):
            pydiff.train(digits, out=copy, **keywords, **more)


def test_it_is_drawn_with_classes_guidance_and_other_samplers_and_opened(latent):
    drawn = latent.sample(4, seed=1, steps=5, labels=[3, 3, 5, 7], guidance=2.0)
    assert (drawn.shape, drawn.dtype) == ((4, 8, 8, 1), np.uint8)
    again = pydiff.load(latent.directory)
    assert isinstance(again.codec, LatentSpace)
    assert_same_bits([again.sample(4, seed=1, steps=5, labels=[3, 3, 5, 7], guidance=2.0)], [drawn])
    *_, last = latent.sample_states(np.array([2]), 1, steps=5, labels=[5], guidance=2.0)
    assert_same_bits([latent.codec.decode(last.x)], [drawn[2:3]])
    for sampler in ("ddpm", "dpmpp_2m", "heun", "euler_ancestral"):
        if sampler in pydiff.diffusion.samplers.SAMPLERS:
            assert latent.sample(2, steps=3, sampler=sampler).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "v", "zero_snr": True, "schedule": "linear"},
        {"prediction": "edm", "schedule": "edm", "loss_weight": "edm"},
        {"prediction": "flow", "schedule": "flow"},
        {"variance": "learned"},
        {"self_conditioning": True},
        {"prediction": "x0", "offset_noise": 0.1, "timestep_sampling": "loss_aware"},
    ],
)
def test_every_objective_goes_with_latents(made, digits, options):
    run = pydiff.train(digits, latent=made, progress=False, **{**LATENT, "steps": 3, **options})
    assert run.shape == (4, 4, 3)
    assert run.sample(2, steps=3).shape == (2, 8, 8, 1)
    assert all(np.isfinite(entry["loss"]) for entry in run.log())


def test_captions_go_with_latents():
    emoji = load("emoji", size=16).subset(np.arange(40))
    made = pydiff.train(emoji, model="autoencoder", progress=False, **{**AUTOENCODER, "steps": 2})
    options = {**LATENT, "steps": 2, "head_dim": 4}
    run = pydiff.train(emoji, latent=made, progress=False, text="glove", **options)
    drawn = run.sample(1, prompts=["red heart", "[red heart] - [red] + [blue]"], guidance=3.0, steps=3)
    assert drawn.shape == (2, 16, 16, 3)


def test_edits_keep_what_they_should(latent, digits):
    images = digits.images[:3]
    mask = np.zeros((8, 8), bool)
    mask[1:4, :3] = True  # odd edges, in the middle of a latent's pixels
    drawn = latent.inpaint(images, mask, steps=4, resample=2)
    assert_same_bits([drawn[:, ~mask]], [images[:, ~mask]])
    assert (drawn[:, mask] != images[:, mask]).any()
    soft = latent.inpaint(images, 0.5 * mask, steps=4, resample=1)
    assert_same_bits([soft[:, ~mask]], [images[:, ~mask]])
    for edited in (latent.image_to_image(images, 0.5, steps=4), latent.variations(images, 0.2, steps=4)):
        assert edited.shape == images.shape
    assert latent.interpolate(0, 1, [0.0, 0.5], steps=3).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="expected uint8"):
        latent.image_to_image(images.astype(np.float32), 0.5)


def test_the_folder_is_one_of_diffusers_parts(latent):
    """U-Net, autoencoder and scheduler open there, and together they draw what we draw."""
    diffusers, folder = import_diffusers(), latent.directory / "model"
    import torch

    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler", timestep_spacing="trailing")
    assert scheduler.config.clip_sample is False
    *_, first = latent.sample_states(1, steps=5, labels=[4])
    start = pydiff.diffusion.samplers.initial_noise(latent.shape, 0, np.arange(1))
    x = torch.from_numpy(start.transpose(0, 3, 1, 2).copy())
    scheduler.set_timesteps(5)
    row = torch.from_numpy(latent.conditioning.rows(np.arange(1), labels=[4])["class_labels"])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=row).sample, t, x).prev_sample
        mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1) for name in ("mean", "std"))
        image = vae.decode((x * std / vae.config.scaling_factor + mean).float()).sample
    assert_close(first.x, x.numpy().transpose(0, 2, 3, 1), rtol=2e-4)
    theirs = to_uint8(image.numpy().transpose(0, 2, 3, 1).clip(-1, 1))
    assert np.abs(theirs.astype(int) - latent.sample(1, steps=5, labels=[4])).max() <= 1


def test_a_model_without_its_autoencoder_or_of_pixels_is_one_sentence(latent, digits, tmp_path):
    copy = shutil.copytree(latent.directory / "model", tmp_path / "model")
    shutil.rmtree(copy / "vae")
    with pytest.raises(CheckpointError) as error:
        pydiff.load(copy)
    assert "\n" not in str(error.value)
    pixels = pydiff.train(digits, out=tmp_path / "pixels", progress=False, **LATENT)
    with pytest.raises(CheckpointError, match="is a model of pixels, expected one with vae/"):
        open_autoencoder(pixels.directory)
    assert open_autoencoder(latent.directory).config == latent.codec.autoencoder.config  # a model's own will do


# ---- previews and the command line -----------------------------------------------------------------------------------


def test_previews_of_latents_on_their_way(latent, made, tmp_path):
    tiny = AutoencoderTiny(
        in_channels=1, out_channels=1, latent_channels=3, encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    AutoencoderRun(tiny, (8, 8, 1), {}).save(tmp_path / "tiny")
    preview, own = previewer(tmp_path / "tiny"), previewer(made)
    for state in latent.sample_states(2, steps=3):
        assert preview(state.x0).shape == own(state.x0).shape == (2, 8, 8, 1)
    assert_same_bits([own(state.x)], [latent.codec.decode(state.x)])
    with pytest.raises(ValueError, match=r"previews need latents \(N, h, w, 3\), got \(2, 4, 4, 4\)"):
        preview(np.zeros((2, 4, 4, 4), np.float32))


def test_the_page_shows_what_is_lost_and_what_is_near(made, digits, tmp_path):
    page = made.report(tmp_path, n=6, seed=1).read_text("utf-8")
    for words in (
        "There and back",
        "Similar vectors, similar images",
        "By latents",
        "By pixels",
        "Between the latents",
    ):
        assert words in page
    assert f"{made.psnr(digits.images[:1])[0]:.1f} dB" in page  # of the first image shown
    assert "have a nearest neighbour of their own" in page  # digits have classes
    assert page.count("<img") == page.count('src="data:image/png;base64,')
    assert (tmp_path / "samples.png").stat().st_size > 100
    plain = AutoencoderRun(made.autoencoder, digits.shape, {}, dataset=Dataset("two", digits.images[:2]))
    assert "∞" not in plain.report(tmp_path / "two").read_text("utf-8")
    with pytest.raises(ValueError, match="has no directory of its own"):
        plain.report()


@given(n=st.integers(3, 12), d=st.integers(1, 5), seed=st.integers(0, 99))
def test_neighbours_are_those_that_a_search_finds(n, d, seed):
    vectors = np.random.default_rng(seed).integers(0, 4, (n, d)).astype(np.float32)
    found = nearest_of(vectors, np.arange(n), 2)
    for i in range(n):
        others = sorted((float(np.square(vectors[j] - vectors[i]).sum()), j) for j in range(n) if j != i)
        assert found[i].tolist() == [j for _, j in others[:2]]


def pydiff_command(*arguments):
    command = [sys.executable, "-m", "pydiff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_line_of_a_new_user(tmp_path):
    small = ["--steps", 3, "--batch-size", 8, "--groups", 4, "--sample-every", 0]
    done = pydiff_command(
        "train", "digits", "--model", "autoencoder", "--channels", 4, 8, "--latent-channels", 2, *small, "--out",
        tmp_path / "ae",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--latent" in done.stdout
    done = pydiff_command(
        "train", "digits", "--latent", tmp_path / "ae", "--channels", 8, *small, "--out", tmp_path / "latent"
    )
    assert done.returncode == 0, done.stderr
    done = pydiff_command("sample", tmp_path / "latent", "-n", 2, "--steps", 2, "--out", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    done = pydiff_command("report", tmp_path / "ae", "-n", 4)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ae/report.html").is_file()
    refused = [
        (("sample", tmp_path / "ae"), "is an autoencoder, which draws nothing by itself"),
        (("train", "digits", "--latent", tmp_path / "none", "--out", tmp_path / "x"), "is not a folder"),
        (
            ("train", "digits", "--model", "autoencoder", "--prediction", "v", "--out", tmp_path / "y"),
            "prediction is an",
        ),
        (("train", "digits", "--kl-weight", 1e-5, "--out", tmp_path / "z"), "kl_weight is an option of autoencoders"),
        (("train", "digits", "--size", 9, "--latent", tmp_path / "ae", "--out", tmp_path / "s"), "take 8 x 8"),
    ]
    for arguments, message in refused:
        done = pydiff_command(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_what_holds_an_autoencoder(latent, made, tmp_path):
    assert pydiff.autoencoding.holds_autoencoder(made.directory)
    assert not pydiff.autoencoding.holds_autoencoder(latent.directory)
    assert not autoencoder_folder.holds_autoencoder(tmp_path)
