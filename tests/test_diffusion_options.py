"""Every diffusion choice that a user has, in training and in sampling: it works, and it changes the result."""

import json
import shutil

import numpy as np
import pytest

import pydiff
from pydiff import backend
from pydiff.data import Dataset
from pydiff.data.pixels import to_uint8
from pydiff.diffusion.loss import WEIGHTS
from pydiff.diffusion.path import SIGMA_SPACINGS, SPACINGS
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.diffusion.schedule import BUILDERS
from pydiff.diffusion.timesteps import TIMESTEPS
from pydiff.store import checkpoint
from pydiff.training import training_steps
from tests.trainers import diffusion_trainer

TINY = {"steps": 3, "batch_size": 16, "channels": (8,), "groups": 4, "timesteps": 50, "warmup": 0}


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(data):
    return pydiff.train(data, progress=False, **TINY)


def weights(run):
    return np.concatenate([np.ravel(v) for v in run.model.state_dict().values()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("prediction", p) for p in PREDICTIONS if p != "eps"],
        *[("schedule", s) for s in BUILDERS if s not in ("cosine", "flow")],
        *[("loss_weight", w) for w in WEIGHTS if w != "simple"],
        *[("timestep_sampling", t) for t in TIMESTEPS if t != "uniform"],
        ("offset_noise", 0.5),
        ("timestep_shift", 3.0),
        ("variance", "learned"),
        ("self_conditioning", True),
    ],
)
def test_every_choice_changes_what_is_learned(data, plain, name, value):
    run = pydiff.train(data, progress=False, **TINY, **{name: value})
    assert np.isfinite(weights(run)).all()
    assert weights(run).shape != weights(plain).shape or (weights(run) != weights(plain)).any()
    assert run.sample(2, steps=3).shape == (2, 6, 6, 1)


def test_zero_snr_and_flows_start_from_noise_alone(data):
    v = pydiff.train(data, progress=False, **TINY, prediction="v")
    rescaled = pydiff.train(data, progress=False, **TINY, prediction="v", zero_snr=True)
    assert (weights(v) != weights(rescaled)).any()
    flow = pydiff.train(data, progress=False, **TINY, prediction="flow", schedule="flow")
    for run in (rescaled, flow):
        assert run.process.schedule.alpha[-1] == 0
        for sampler in ("ddim", "heun", "dpm_solver", "unipc", "lms", "deis", "flow_heun"):
            assert run.sample(2, steps=4, sampler=sampler).shape == (2, 6, 6, 1)
    for prediction in ("eps", "edm"):
        with pytest.raises(ValueError, match="ends in noise alone"):
            pydiff.Options(schedule="flow", prediction=prediction).check()


def test_every_sampler_draws_images_of_its_own(plain):
    drawn = {name: plain.sample(2, steps=6, sampler=name) for name in SAMPLERS}
    for name, images in drawn.items():
        assert images.shape == (2, 6, 6, 1), name
    twins = {("ddim", "euler"), ("ddim", "flow_euler"), ("euler", "flow_euler"), ("ddpm", "euler_ancestral")}
    for a in drawn:
        for b in drawn:
            if a < b and (a, b) not in twins:
                assert (drawn[a] != drawn[b]).any(), (a, b)


def test_spacing_and_eta_change_the_images(plain):
    spacings = [*SPACINGS, *SIGMA_SPACINGS]
    drawn = [plain.sample(4, steps=8, spacing=spacing) for spacing in spacings]
    for i in range(len(spacings)):
        for j in range(i):
            assert (drawn[i] != drawn[j]).any(), (spacings[i], spacings[j])
    for sampler in ("ddim", "dpm2"):
        assert (plain.sample(2, steps=5, sampler=sampler) != plain.sample(2, steps=5, sampler=sampler, eta=1.0)).any()
    with pytest.raises(ValueError, match=r"eta 0\.5 is for ddim and dpm2, and the sampler is 'heun'"):
        plain.sample(2, steps=5, sampler="heun", eta=0.5)


def test_exploding_schedules_start_from_as_much_noise(data):
    run = pydiff.train(data, progress=False, **TINY, schedule="edm", prediction="edm")
    first = next(iter(run.sample_states(3, steps=5)))
    x = first.x0 + 80.0 * first.eps
    assert np.std(x) == pytest.approx(80.0, rel=0.2)


# ---- learned variance, self-conditioning, timesteps by their loss ----------------------------------------------------

EVERYTHING = {"variance": "learned", "self_conditioning": True, "timestep_sampling": "loss_aware"}
FEW = {**TINY, "steps": 8, "timesteps": 4, "conditional": True, "dropout": 0.1, "checkpoint_every": 1, "keep": 99}
needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)


@pytest.fixture(scope="module")
def classes(data):
    """Twelve images of three classes."""
    return Dataset("random", data, np.arange(12) % 3, ["a", "b", "c"])


@pytest.fixture(scope="module")
def everything(classes, tmp_path_factory):
    out = tmp_path_factory.mktemp("everything") / "run"
    return pydiff.train(classes, out=out, progress=False, **FEW, **EVERYTHING, sample_every=0)


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_resume_at_every_step_with_all_of_them(classes, everything, tmp_path, stop_after):
    shutil.copytree(everything.directory, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    for step in range(stop_after + 1, 9):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    resumed = pydiff.train(classes, out=tmp_path / "run", progress=False, **FEW, **EVERYTHING, sample_every=0)
    assert (weights(resumed) == weights(everything)).all()
    assert [e["loss"] for e in resumed.log()] == [e["loss"] for e in everything.log()]


def test_the_history_of_losses_is_part_of_a_checkpoint(classes, everything):
    arrays, _ = checkpoint.load(checkpoint.latest(everything.directory / "checkpoints"))
    assert arrays["timesteps"]["seen"].sum() == 8 * 16
    trainer = diffusion_trainer(classes, pydiff.Options(**FEW, **EVERYTHING))
    del arrays["timesteps"]
    with pytest.raises(ValueError, match="the checkpoint has no timesteps losses"):
        trainer.restore(arrays, 8)


def test_timesteps_by_their_loss_go_their_own_way_once_every_t_has_a_history(classes):
    losses = [
        [e["loss"] for e in pydiff.train(classes, progress=False, **FEW, timestep_sampling=name).log()]
        for name in ("uniform", "loss_aware")
    ]
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)  # both uniform until then
    assert losses[0][-1] != pytest.approx(losses[1][-1], rel=1e-5)


def test_a_skipped_step_leaves_no_trace_in_the_history(classes):
    trainer = diffusion_trainer(classes, pydiff.Options(**FEW, timestep_sampling="loss_aware"))
    trainer.model.conv_out.bias.data[...] = np.nan
    assert next(training_steps(trainer)).bad
    assert trainer.task.history.seen.sum() == 0


def test_channels_of_the_network_and_of_the_images(everything, tmp_path):
    assert everything.shape == (6, 6, 1)
    assert (everything.model.config["in_channels"], everything.model.config["out_channels"]) == (2, 2)
    everything.save(tmp_path / "model")
    extra = json.loads((tmp_path / "model" / "pydiff.json").read_text())
    assert "learned" in json.dumps(extra)
    loaded = pydiff.load(tmp_path / "model")
    assert (loaded.variance, loaded.self_conditioning, loaded.shape) == ("learned", True, (6, 6, 1))
    assert (loaded.sample(2, steps=3, sampler="ddpm") == everything.sample(2, steps=3, sampler="ddpm")).all()


def test_diffusers_opens_a_model_with_a_learned_variance(data, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    run = pydiff.train(data, progress=False, **TINY, variance="learned")
    run.save(tmp_path / "model")
    assert diffusers.UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet").config.out_channels == 2
    (tmp_path / "model" / "pydiff.json").unlink()
    assert pydiff.load(tmp_path / "model").variance == "learned"  # told from the channels


def test_only_ddpm_uses_the_learned_variance(data):
    run = pydiff.train(data, progress=False, **TINY, variance="learned")
    learned = run.sample(2, steps=5, sampler="ddpm")
    assert (learned != run.sample(2, steps=5, sampler="ddpm", variance="small")).any()
    ddim = run.sample(2, steps=5)
    run.model.conv_out.bias.data[1] += 0.5  # of the channel that holds the variance
    assert (run.sample(2, steps=5) == ddim).all()
    assert (learned != run.sample(2, steps=5, sampler="ddpm")).any()


@needs_kernels
@pytest.mark.parametrize(
    "options", [{}, {"sampler": "ddpm"}, {"guidance": 2.0, "interval": (0.1, 5.0), "rescale": 0.7}]
)
def test_self_conditioned_images_have_the_same_bits_alone_and_in_any_batch(everything, options):
    together = everything.sample(5, seed=3, steps=3, **options)
    assert (together == everything.sample(5, seed=3, steps=3, batch_size=2, **options)).all()
    assert (together == everything.sample(5, seed=3, steps=3, **options)).all()  # nothing is carried over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_conditioning": True, "prediction": "edm"}, "self_conditioning does not go with prediction 'edm'"),
        ({"variance": "learned", "prediction": "edm"}, "variance does not go with prediction 'edm'"),
        ({"variance": "lerned"}, "variance must be one of fixed, learned"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        pydiff.Options(**options).check()


def test_adaptive_steps_keep_every_image_with_its_label():
    run = pydiff.train("digits", progress=False, **{**TINY, "timesteps": 50}, conditional=True)
    run.model.conv_out.weight.data *= 20  # so that images differ in the steps they need
    labels = np.array([3, 1, 4, 1, 5])
    together = run.sample(5, sampler="adaptive", labels=labels, guidance=2.0)
    *_, alone = run.sample_states(np.array([3]), 0, "adaptive", labels=labels[3:4], guidance=2.0)
    assert (to_uint8(alone.x.clip(-1, 1))[0] == together[3]).all()
    runs = [list(run.sample_states([i], 0, "adaptive", labels=[c], guidance=2.0)) for i, c in enumerate(labels)]
    rounds = {states[-1].step for states in runs}
    assert len(rounds) > 1


# ---- options of sampling ---------------------------------------------------------------------------------------------


def test_guidance_options_and_options_of_the_sampler_count(classes):
    run = pydiff.train(classes, progress=False, **{**FEW, "timesteps": 50})
    run.model.conv_out.weight.data *= 30
    plain = run.sample(3, steps=5, guidance=3.0)
    for more in ({"interval": (0.5, 2.0)}, {"rescale": 0.7}, {"threshold": 0.5}, {"clip": None}):
        assert (plain != run.sample(3, steps=5, guidance=3.0, **more)).any(), more
    assert (run.sample(3, steps=5) == run.sample(3, steps=5, guidance=3.0, interval=(900.0, 901.0))).all()
    wide = run.sample(3, steps=5, guidance=3.0, interval=(0.0, np.inf)).astype(int)
    assert np.abs(wide - plain).max() <= 1  # two ways to round
    orders = [run.sample(3, steps=6, sampler="dpm_solver", order=order) for order in (1, 3)]
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ordre": 3}, TypeError, "sampler 'ddim' has no option 'ordre'; it takes eta, clip, raw_eps, threshold"),
        ({"variance": "learned_range", "sampler": "ddpm"}, ValueError, "this model has no learned variance"),
        ({"kind": "sde", "sampler": "adaptive"}, TypeError, "sampler 'adaptive' has no option 'kind'"),
        ({"stpes": 3}, TypeError, "has no option 'stpes'; did you mean 'steps'"),
        ({"label": 1}, TypeError, "has no option 'label'; did you mean 'labels'"),
        ({"guidance_scale": 3}, TypeError, "has no option 'guidance_scale'; it is called 'guidance' here"),
        ({"eta": "a"}, ValueError, "eta is 'a', expected 0"),
        ({"eta": "a", "sampler": "dpm2"}, ValueError, "eta is 'a', expected 0"),
        ({"steps": "a"}, ValueError, "got 'a' steps, expected a whole number"),
        ({"steps": 2.5}, ValueError, "got 2.5 steps, expected a whole number"),
        ({"threshold": "a"}, ValueError, "threshold is the share of pixels .* got 'a'"),
        ({"clip": 3}, TypeError, r"clip is 3, expected \(low, high\) or None"),
        ({"churn": "a", "sampler": "euler"}, TypeError, "churn is 'a', expected a number"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"condition": 3}, TypeError, "condition is 3, expected a dict of arrays"),
        ({"device": 0}, ValueError, "device must be one of cpu, cuda, simt, got 0"),
        ({"interval": (0, 1)}, ValueError, "guidance is 1; give another guidance"),
        ({"rescale": 0.5, "sampler": "adaptive"}, ValueError, "use another sampler"),
    ],
)
def test_options_that_a_sampler_does_not_have(plain, options, error, message):
    with pytest.raises(error, match=message):
        plain.sample(2, **{"steps": 3, **options})


def test_a_wrong_interval_of_guidance(classes):
    run = pydiff.train(classes, progress=False, **{**FEW, "timesteps": 50})
    for more in ({"interval": 3}, {"interval": "ab"}, {"interval": (2, 1)}, {"rescale": "a"}):
        with pytest.raises(ValueError, match=r"expected 0 \.\. 1 and \(low, high\)"):
            run.sample(1, steps=2, guidance=2, **more)


def test_a_number_of_samples_that_is_none(plain):
    for n in ("a", 2.5, True, None):
        with pytest.raises(TypeError, match="how many samples to draw, a whole number"):
            plain.sample_states(n)
    for n in (0, -1, []):
        with pytest.raises(ValueError, match="at least 1"):
            plain.sample_states(n)


def test_every_name_that_sampling_takes_may_be_meant():
    from pydiff.diffusion.denoiser import BESIDE
    from pydiff.mistakes import keywords
    from pydiff.pipeline import Pipeline

    taken = keywords(pydiff.Run.sample, Pipeline.sample, Pipeline.sample_states, apart=("asked",))
    assert set(BESIDE) == set(taken)
