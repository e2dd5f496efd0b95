"""Folders that diffusers writes, drawn by us, and ours by diffusers: the same process, the same images."""

import json
import logging
import shutil
import warnings

import numpy as np
import pytest

import pydiff
from pydiff.formats.diffusers.scheduler.stored import StoredScheduler
from pydiff.formats.safetensors import CheckpointError
from tests.formats.diffusers import drawing, theirs
from tests.peers import import_diffusers


@pytest.fixture(scope="module")
def diffusers():
    module = import_diffusers()
    module.utils.logging.set_verbosity_error()
    return module


# ---- theirs, drawn by us ---------------------------------------------------------------------------------------------

V = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400}
PIPELINES = {
    "DDPM": ("DDPMPipeline", {"_class_name": "DDPMScheduler"}, 10),
    "DDPM, v, cosine, 400": ("DDPMPipeline", {"_class_name": "DDPMScheduler", **V}, 10),
    "DDPM, x0, large variance, no clipping": (
        "DDPMPipeline",
        {"_class_name": "DDPMScheduler", "prediction_type": "sample", "clip_sample": False,
         "variance_type": "fixed_large"},
        8,
    ),
    "DDPM, betas of its own": (
        "DDPMPipeline",
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 100,
         "trained_betas": np.linspace(1e-3, 0.05, 100).tolist()},
        10,
    ),
    "DDPM, thresholding": ("DDPMPipeline", {"_class_name": "DDPMScheduler", "thresholding": True, **V}, 8),
    "DDIM": ("DDIMPipeline", {"_class_name": "DDIMScheduler", **V}, 10),
    "DDIM, zero SNR": (
        "DDIMPipeline",
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
         "timestep_spacing": "trailing"},
        10,
    ),
    "PNDM": ("PNDMPipeline", {"_class_name": "PNDMScheduler", "beta_end": 0.004}, 12),
    "PNDM without warm-up": (
        "PNDMPipeline",
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "beta_end": 0.004},
        12,
    ),
    "DPM-Solver": ("DDPMPipeline", {"_class_name": "DPMSolverMultistepScheduler", **V}, 8),
    "KarrasVe": (
        "KarrasVePipeline",
        {"_class_name": "KarrasVeScheduler", "sigma_max": 1.5, "sigma_min": 0.2, "s_churn": 3.0, "s_min": 0.1},
        6,
    ),
    "consistency, one step": ("ConsistencyModelPipeline", {"_class_name": "CMStochasticIterativeScheduler"}, 1),
    "consistency, three steps": ("ConsistencyModelPipeline", {"_class_name": "CMStochasticIterativeScheduler"}, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_images_are_those_of_diffusers(diffusers, tmp_path, name, caplog):
    """In float64 to what their float32 tables leave, in float32 to what the way magnifies of the network's rounding."""
    kind, config, steps = PIPELINES[name]
    pipe = theirs.pipeline(diffusers, tmp_path / "pipe", config, kind)
    run = pydiff.load(tmp_path / "pipe")
    assert run.notes == ()
    assert caplog.text == ""
    found = drawing.compared(pipe, run, steps)
    assert found["ours_from_theirs"] <= found["limit"], found
    assert found["in_float64"] <= drawing.LIMIT_64, found
    assert found["inside"] > 0.02, found


def test_a_pipeline_draws_by_its_scheduler_unless_a_sampler_is_named(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "PNDMScheduler"}, "PNDMPipeline")
    run = pydiff.load(tmp_path)
    own, named = run.sample(2, steps=6), run.sample(2, steps=6, sampler="ddim")
    assert (own != named).any()
    assert run.sample(1).shape == (1, 8, 8, 3)  # 50 steps
    for wrong, message in (({"order": 2}, "order"), ({"spacing": "karras"}, "spacing"), ({"eta": 1.0}, "eta")):
        with pytest.raises(TypeError, match=f"no option '{message}'; name a sampler"):
            run.sample(1, steps=6, **wrong)


def test_a_network_that_only_its_scheduler_can_ask_is_not_asked_by_others(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "KarrasVeScheduler"}, "KarrasVePipeline")
    run = pydiff.load(tmp_path)
    images = run.sample(2, steps=3)
    for draw in (
        lambda: run.sample(1, sampler="ddim", steps=3),
        lambda: run.image_to_image(images, steps=3),
        lambda: run.interpolate(0, 1, [0.5], steps=3),
    ):
        with pytest.raises(ValueError, match="drawn by its own KarrasVeScheduler alone"):
            draw()


def test_flows_of_others_are_told_their_own_time_by_every_sampler(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    run = pydiff.load(tmp_path)
    told, process = [], run.process
    x = np.zeros((1, *run.shape), np.float32)

    def model(x, t):
        told.append(float(t[0]))
        return x

    list(pydiff.diffusion.samplers.euler(model, x, process, pydiff.diffusion.path(process.schedule, 4)))
    assert np.allclose(told, [1000, 750, 500, 250])
    assert np.allclose(run.pipeline.scheduler(4).timesteps[:1], 1000)


def test_eta_goes_to_the_schedulers_that_know_it(diffusers, tmp_path):
    pipe = theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDIMScheduler", **V}, "DDIMPipeline")
    run = pydiff.load(tmp_path)
    assert (drawing.our_images(run, 6, {"eta": 0.7}) != drawing.our_images(run, 6, {})).any()
    assert drawing.right(drawing.compared(pipe, run, 6, {"eta": 0.7}))


def test_what_lies_beside_a_bare_model_is_read(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler", **V})
    run = pydiff.load(tmp_path / "unet")
    assert (run.process.prediction, run.process.schedule.T, run.notes) == ("v", 400, ())


def test_a_pipeline_that_makes_its_scheduler_of_another_is_followed(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDIMScheduler", **V}, "DDIMPipeline")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("DDIMScheduler", "DDPMScheduler"))
    run = pydiff.load(tmp_path)
    assert run.pipeline.scheduler.name == "DDIMScheduler"
    assert "is a DDIMPipeline, which draws by DDIMScheduler in place of 'DDPMScheduler'" in run.notes[0]


# ---- names and parts -------------------------------------------------------------------------------------------------


def same_weights(run, model):
    expected = {name: value.float().numpy() for name, value in model.state_dict().items()}
    state = run.model.state_dict()
    return state.keys() == expected.keys() and all(np.array_equal(state[n], expected[n]) for n in state)


@pytest.mark.parametrize("saving", ["plain", "variant", "bin", "shards", "bin shards", "variant shards", "half"])
def test_weights_under_every_name(diffusers, tmp_path, saving):
    model = theirs.unet(diffusers)
    options = {
        "plain": {},
        "variant": {"variant": "fp16"},
        "bin": {"safe_serialization": False},
        "shards": {"max_shard_size": "20KB"},
        "bin shards": {"max_shard_size": "20KB", "safe_serialization": False},
        "variant shards": {"max_shard_size": "20KB", "variant": "fp16"},
        "half": {},
    }[saving]
    if saving in ("half", "variant"):
        model.half()
    model.save_pretrained(tmp_path, **options)
    assert same_weights(pydiff.load(tmp_path, prediction="eps"), model)


def test_which_of_several_files_was_taken_is_said(diffusers, tmp_path, caplog):
    whole, half = theirs.unet(diffusers, 1), theirs.unet(diffusers, 2).half()
    half.save_pretrained(tmp_path, variant="fp16")
    shutil.copy(tmp_path / "diffusion_pytorch_model.fp16.safetensors", tmp_path / "keep")
    whole.save_pretrained(tmp_path)
    shutil.move(tmp_path / "keep", tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    with caplog.at_level(logging.WARNING, "pydiff"):
        run = pydiff.load(tmp_path)
    assert same_weights(run, whole)
    assert "diffusion_pytorch_model.safetensors was taken, not diffusion_pytorch_model.fp16.safetensors" in caplog.text
    assert same_weights(pydiff.load(tmp_path, variant="fp16"), half)
    with pytest.raises(CheckpointError, match=r"expected diffusion_pytorch_model\.ema\.safetensors"):
        pydiff.load(tmp_path, variant="ema")


def test_a_flat_folder_of_2022(diffusers, tmp_path):
    """google/ddpm-celebahq-256's layout: all in one folder, pickled weights, attention under its old names."""
    import torch

    model = theirs.unet(diffusers, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None)
    pipe = theirs.pipeline(diffusers, tmp_path / "new", {"_class_name": "DDPMScheduler"}, model=model)
    old = tmp_path / "old"
    old.mkdir()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state_dict().items():
        for new, was in names.items():
            name = name.replace(f".{new}.", f".{was}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    torch.save(state, old / "diffusion_pytorch_model.bin")
    config = json.loads((tmp_path / "new" / "unet" / "config.json").read_text())
    config["_diffusers_version"] = "0.0.4"
    config["down_block_types"] = [f"UNetRes{name}" for name in config["down_block_types"]]
    (old / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001}
    scheduler |= {
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_small",
    }
    (old / "scheduler_config.json").write_text(
        json.dumps({**scheduler, "timestep_values": None, "tensor_format": "pt"})
    )
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (old / "model_index.json").write_text(json.dumps(index))
    run = pydiff.load(old)
    assert same_weights(run, model)
    assert "tensor_format, timestep_values" in run.notes[0]
    assert drawing.right(drawing.compared(pipe, run, 8))


@pytest.mark.parametrize("old", ["UNetUnconditionalModel", None])
def test_classes_and_options_of_the_first_versions(diffusers, tmp_path, old):
    from pydiff.formats.diffusers.unet import OLD_OPTIONS

    model = theirs.unet(diffusers)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("_class_name")
    if old:
        new = {new: was for was, new in OLD_OPTIONS.items()}
        config = {"_class_name": old, **{new.get(name, name): value for name, value in config.items()}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "sample_dilation": 3}))
    run = pydiff.load(tmp_path, prediction="eps", scheduler="DDIMScheduler")
    assert same_weights(run, model)
    assert any("sample_dilation" in note for note in run.notes)
    assert any("does not say of which class" in note for note in run.notes) == (old is None)


def test_what_predict_epsilon_meant(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler"})
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps({**config, "predict_epsilon": False}))
    assert pydiff.load(tmp_path).process.prediction == "x0"


# ---- networks --------------------------------------------------------------------------------------------------------

NETWORKS = {
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "relu": {"act_fn": "relu"},
    "gelu, scale and shift": {"act_fn": "gelu", "resnet_time_scale_shift": "scale_shift"},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier time": {"time_embedding_type": "fourier"},
    "class vectors": {"class_embed_type": "identity"},
    "class numbers": {"class_embed_type": "timestep"},
    "class numbers, fourier": {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    "two sizes": {"sample_size": (8, 16)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_option(diffusers, tmp_path, name):
    import torch

    theirs.pipeline(
        diffusers, tmp_path, {"_class_name": "DDPMScheduler"}, model=theirs.unet(diffusers, **NETWORKS[name])
    )
    run = pydiff.load(tmp_path)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    x = np.random.default_rng(0).standard_normal((2, *run.shape)).astype(np.float32)
    given = {"class vectors": np.linspace(-1, 1, 64).reshape(2, 32).astype(np.float32)}
    given |= dict.fromkeys(("class numbers", "class numbers, fourier"), np.array([3.0, 40.0], np.float32))
    said = given.get(name)
    with torch.no_grad(), pydiff.no_grad():
        told = None if said is None else torch.from_numpy(said)
        expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2)), 700, told).sample.numpy().transpose(0, 2, 3, 1)
        ours = run.model(x, 700, said).data
    assert np.abs(ours - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1.0)
    condition = {} if said is None else {"condition": {"class_labels": said}}
    if "fourier" not in name:  # which is NaN at t = 0, there as here
        assert run.sample(2, steps=2, **condition).shape == (2, *run.shape)
    if said is not None:
        assert any("condition={'class_labels': ..}" in note for note in run.notes)


def test_class_conditional_models_are_drawn_by_number_and_by_name(diffusers, tmp_path):
    model = theirs.unet(diffusers, num_class_embeds=3)
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler", **V}, model=model)
    run = pydiff.load(tmp_path)
    assert run.classes == ["0", "1", "2"]
    by_number = run.sample(2, steps=3, labels=np.array([2, 1]))
    index = json.loads((tmp_path / "model_index.json").read_text())
    names = {"0": "cat", "1": "dog", "2": "tench, Tinca tinca"}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    run = pydiff.load(tmp_path)
    assert (run.sample(2, steps=3, labels=["tench, Tinca tinca", "dog"]) == by_number).all()
    assert (run.sample(2, steps=3, labels=["2", "dog"]) == by_number).all()
    with pytest.raises(ValueError, match="there is no class 'fish'; choose one of cat, dog"):
        run.sample(1, labels=["fish"])
    with pytest.raises(ValueError, match="never shown samples without class_labels"):
        run.sample(1, steps=2, guidance=2.0)
    named = pydiff.load(tmp_path, classes=["a", "b", "c"])
    assert named.classes == ["a", "b", "c"]
    named.save(tmp_path / "ours")
    again = pydiff.load(tmp_path / "ours")
    assert again.classes == ["a", "b", "c"]
    assert (again.sample(2, steps=3, labels=["c", "b"]) == by_number).all()
    with pytest.raises(CheckpointError, match="has 3 classes, and there are names for 2"):
        pydiff.load(tmp_path, classes=["a", "b"])
    renamed = pydiff.load(tmp_path / "ours", classes=["x", "y", "z"])
    assert (renamed.sample(2, steps=3, labels=["z", "y"]) == by_number).all()
    with pytest.raises(CheckpointError, match="has 3 classes, and there are names for 1"):
        pydiff.load(tmp_path / "ours", classes=["a"])


def test_a_learned_variance_is_used_by_ddpm(diffusers, tmp_path):
    model = theirs.unet(diffusers, out_channels=6)
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned_range", **V}
    pipe = theirs.pipeline(diffusers, tmp_path, config, model=model)
    run = pydiff.load(tmp_path)
    assert run.variance == "learned"
    assert drawing.right(drawing.compared(pipe, run, 6))


# ---- refused ---------------------------------------------------------------------------------------------------------


def edited(folder, name, **changes):
    file = folder / name
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


REFUSED = [
    (
        {"unet/config.json": {"down_block_types": ["DownBlock2D", "KDownBlock2D"]}},
        "KDownBlock2D, a block that pydiff does not",
    ),
    (
        {"unet/config.json": {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}},
        "SkipUpBlock2D, a block that pydiff does not",
    ),
    ({"unet/config.json": {"down_block_types": ["Odd", "DownBlock2D"]}}, "down_block_types needs 2 of DownBlock2D"),
    ({"unet/config.json": {"_class_name": "VQModel"}}, "is for the class 'VQModel', expected UNet2DModel"),
    ({"unet/config.json": {"sample_size": None}}, "does not say how large its images are: give size="),
    (
        {"unet/config.json": {"layers_per_block": 20000}},
        "layers_per_block = 20000, expected a whole number from 1 to 256",
    ),
    ({"unet/config.json": {"layers_per_block": 200}}, "another network than the weights beside it"),
    ({"unet/config.json": {"block_out_channels": [65536, 65536]}}, "another network than the weights beside it"),
    ({"unet/config.json": {"num_class_embeds": 9_000_000}}, "class_embedding.weight is missing"),
    ({"unet/config.json": {"time_embedding_dim": 60000}}, "another network than the weights beside it"),
    ({"unet/config.json": {"in_channels": "3"}}, "in_channels = '3', expected a whole number"),
    ({"unet/config.json": {"norm_eps": [1]}}, "norm_eps = "),
    (
        {"model_index.json": {"vqvae": ["diffusers", "VQModel"]}},
        "lacks vqvae/: complete the folder",
    ),
    ({"model_index.json": {"unet": [None, None]}}, "names no unet"),
    ({"unet/config.json": {"_class_name": "UNet2DConditionModel"}}, "draws nothing without a text encoder"),
    (
        {"scheduler/scheduler_config.json": {"_class_name": "ScoreSdeVeScheduler"}},
        "'ScoreSdeVeScheduler', which pydiff",
    ),
    ({"scheduler/scheduler_config.json": {"prediction_type": "score"}}, "there is no prediction_type 'score'"),
    ({"scheduler/scheduler_config.json": {"num_train_timesteps": 10**9}}, "num_train_timesteps = 1000000000, expected"),
    ({"scheduler/scheduler_config.json": {"trained_betas": [0.1, 0.2]}}, "has 2 trained_betas for 1000 timesteps"),
    ({"scheduler/scheduler_config.json": {"beta_start": "x"}}, "beta_start = 'x', expected a number"),
    ({"scheduler/scheduler_config.json": {"beta_schedule": "odd"}}, "there is no beta_schedule 'odd'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_be_honoured_is_refused_in_one_sentence(diffusers, tmp_path, changes, message):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler"})
    for name, options in changes.items():
        edited(tmp_path, name, **options)
    with pytest.raises(CheckpointError, match=message) as found:
        pydiff.load(tmp_path)
    assert "\n" not in str(found.value)


def test_a_size_can_be_given(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler"})
    edited(tmp_path, "unet/config.json", sample_size=None)
    assert pydiff.load(tmp_path, size=16).shape == (16, 16, 3)
    assert pydiff.load(tmp_path, size=(8, 4)).sample(1, steps=2).shape == (1, 8, 4, 3)
    with pytest.raises(CheckpointError, match="expected a side length"):
        pydiff.load(tmp_path, size=(1, 2, 3))


def test_six_channels_in_and_three_out(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler"}, model=theirs.unet(diffusers, in_channels=6))
    with pytest.raises(CheckpointError, match="takes 6 channels and gives 3: the other 3 are of an image"):
        pydiff.load(tmp_path)
    assert pydiff.load(tmp_path, self_conditioning=True).shape == (8, 8, 3)


def test_a_scheduler_that_is_missing_is_said_and_can_be_given(diffusers, tmp_path, caplog):
    theirs.pipeline(diffusers, tmp_path / "a", {"_class_name": "DDPMScheduler", **V})
    shutil.copytree(tmp_path / "a" / "unet", tmp_path / "bare")
    with caplog.at_level(logging.WARNING, "pydiff"):
        run = pydiff.load(tmp_path / "bare")
    assert "has no scheduler" in caplog.text
    assert (run.process.prediction, run.pipeline.scheduler) == ("eps", None)
    given = pydiff.load(tmp_path / "bare", scheduler=tmp_path / "a")
    assert (given.process.prediction, given.process.schedule.T, given.notes) == ("v", 400, ())
    file = tmp_path / "a" / "scheduler" / "scheduler_config.json"
    assert pydiff.load(tmp_path / "bare", scheduler=str(file)).process.prediction == "v"
    assert pydiff.load(tmp_path / "bare", scheduler=json.loads(file.read_text())).process.prediction == "v"
    changed = pydiff.load(tmp_path / "a", scheduler="EulerDiscreteScheduler", prediction="x0")
    assert (changed.pipeline.scheduler.name, changed.process.prediction) == ("EulerDiscreteScheduler", "x0")
    assert changed.process.schedule.T == 400
    for wrong in ({"scheduler": "Odd"}, {"prediction": "odd"}):
        with pytest.raises(ValueError, match="there is no"):
            pydiff.load(tmp_path / "bare", **wrong)


def test_options_of_schedulers_are_those_of_diffusers(diffusers):
    """An option of another class must not count: a DDPM's clip_sample says nothing to EulerDiscreteScheduler."""
    import inspect

    from pydiff.formats.diffusers.scheduler import SCHEDULERS
    from pydiff.formats.diffusers.scheduler.config import OPTIONS, RULES

    assert OPTIONS.keys() == SCHEDULERS.keys()
    for name, options in OPTIONS.items():
        theirs_ = inspect.signature(theirs.scheduler_class(diffusers, name).__init__).parameters
        assert options == theirs_.keys() - {"self", "kwargs"}, name
        assert options <= RULES.keys()


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_another_scheduler_takes_over_what_it_knows(diffusers, tmp_path, name):
    theirs.pipeline(diffusers, tmp_path, {"_class_name": "DDPMScheduler", **V, "clip_sample": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about NumPy
        other = getattr(diffusers, name).from_pretrained(tmp_path, subfolder="scheduler")
        other.set_timesteps(6)
    run = pydiff.load(tmp_path, scheduler=name)
    config = run.pipeline.scheduler.config
    assert all(other.config[option] == value for option, value in config.items() if option[0] != "_")
    made = run.pipeline.scheduler(6)
    assert np.allclose(made.timesteps, other.timesteps.double().numpy(), rtol=1e-6)
    assert run.sample(1, steps=6).shape == (1, 8, 8, 3)


# ---- ours, drawn by diffusers ----------------------------------------------------------------------------------------

TINY = {"steps": 2, "batch_size": 4, "channels": (8, 8), "groups": 4, "progress": False}
SCHEDULES = [
    {"schedule": "linear"},
    {"schedule": "cosine", "timesteps": 300},
    {"schedule": "scaled_linear", "prediction": "v"},
    {"schedule": "sigmoid", "prediction": "x0", "timesteps": 50},
    {"schedule": "cosine", "prediction": "v", "zero_snr": True},
    {"variance": "learned"},
]


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_diffusers_draws_ours_by_the_right_process(diffusers, tmp_path, options):
    run = pydiff.train("digits", **TINY, **options)
    assert run.save(tmp_path / "ours") == []
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    alpha_bar = run.process.schedule.alpha_bar
    assert np.abs(pipe.scheduler.alphas_cumprod.numpy() - alpha_bar).max() <= 1e-5
    (tmp_path / "ours" / "pydiff.json").unlink()
    found = drawing.compared(pipe, pydiff.load(tmp_path / "ours"), 10)
    assert found["ours_from_theirs"] <= found["limit"], found
    assert found["in_float64"] <= drawing.LIMIT_64, found


def test_what_diffusers_cannot_draw_is_said(diffusers, tmp_path):
    run = pydiff.train("digits", **TINY, self_conditioning=True)
    assert "no self-conditioning" in run.save(tmp_path / "a")[0]
    assert not (tmp_path / "a" / "model_index.json").exists()
    assert diffusers.UNet2DModel.from_pretrained(tmp_path / "a", subfolder="unet").config.in_channels == 2
    run = pydiff.train("digits", **TINY, schedule="edm", prediction="edm")
    assert "EDMEulerScheduler" in run.save(tmp_path / "b")[0]
    scheduler = diffusers.EDMEulerScheduler.from_pretrained(tmp_path / "b", subfolder="scheduler")
    assert scheduler.config.sigma_max == run.process.schedule.sigma[-1]
    run = pydiff.train("digits", **TINY, schedule="flow", prediction="flow")
    assert "t + 1" in run.save(tmp_path / "c")[0]
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path / "c").scheduler).__name__.startswith("FlowMatchEuler")
    run = pydiff.train("digits", **TINY, schedule="exponential")
    assert "no scheduler for the schedule 'exponential'" in run.save(tmp_path / "d")[0]
    run = pydiff.train("digits", **TINY, conditional=True)
    assert "asks for no classes" in run.save(tmp_path / "e")[0]
    for name in "abcde":
        assert pydiff.load(tmp_path / name).sample(1, steps=2).shape == (1, 8, 8, 1)


def test_a_pipeline_of_theirs_that_we_save_stays_what_it_was(diffusers, tmp_path):
    theirs.pipeline(diffusers, tmp_path / "theirs", {"_class_name": "PNDMScheduler", **V}, "PNDMPipeline")
    run = pydiff.load(tmp_path / "theirs")
    assert run.save(tmp_path / "ours") == []
    again = pydiff.load(tmp_path / "ours")
    assert again.pipeline.scheduler.config == run.pipeline.scheduler.config
    assert (again.sample(2, steps=6) == run.sample(2, steps=6)).all()
    pipe = diffusers.PNDMPipeline.from_pretrained(tmp_path / "ours")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert isinstance(again.pipeline.scheduler, StoredScheduler)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 1e-2), ("float64", 0.0)])
def test_other_precisions_on_request(diffusers, tmp_path, dtype, error):
    import torch

    run = pydiff.train("digits", **TINY)
    run.save(tmp_path / "whole")
    run.save(tmp_path / "other", dtype=dtype)
    size = [(tmp_path / n / "unet/diffusion_pytorch_model.safetensors").stat().st_size for n in ("whole", "other")]
    assert size[1] < 0.6 * size[0] or dtype == "float64"
    state, back = run.model.state_dict(), pydiff.load(tmp_path / "other").model.state_dict()
    assert max(np.abs(state[n] - back[n]).max() for n in state) <= error
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "other/unet", torch_dtype=getattr(torch, dtype))
    assert all(np.array_equal(v.double().numpy(), back[n].astype(np.float64)) for n, v in model.state_dict().items())
    with pytest.raises(ValueError, match="expected one of float32, float16"):
        run.save(tmp_path / "odd", dtype="int8")
