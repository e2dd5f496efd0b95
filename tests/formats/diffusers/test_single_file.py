"""Stable Diffusion in one file: the same images as the folder it was made from; what is missing or foreign is said."""

import importlib
import logging
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

import pydiff
from pydiff.formats.safetensors import CheckpointError
from tests.compare import assert_close
from tests.formats.diffusers import original, tiny
from tests.peers import import_diffusers, import_transformers

PROMPT = "a photo of a cat"
FIRST = {"full_vocabulary": True, "unet": {"attention_head_dim": 8}}
SECOND = {
    "full_vocabulary": True, "pad": "!", "text": {"hidden_act": "gelu"},
    "unet": {"block_out_channels": [64, 128], "attention_head_dim": [1, 2], "use_linear_projection": True},
    "scheduler": {"prediction_type": "v_prediction"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def peers():
    import_diffusers()
    import_transformers()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    tiny.forget()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return written(tmp_path_factory.mktemp("first") / "first.safetensors", FIRST)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return written(tmp_path_factory.mktemp("second") / "second.safetensors", SECOND, 2)


def written(path, model, version=1, **more):
    from safetensors.numpy import save_file

    save_file(original.whole(tiny.folder(**model)[1], version, **more), path)
    return path


def drawn(path, **wishes):
    run = pydiff.load(path, size=64, **wishes)
    return run.sample(1, prompts=[PROMPT], steps=3, guidance=4.0)


def test_version_1_draws_as_its_folder(first):
    np.testing.assert_array_equal(drawn(first), drawn(tiny.folder(**FIRST)[0]))


def test_version_2_does_when_it_is_said_what_it_predicts(second):
    with pytest.raises(CheckpointError, match=r"does not say which: give prediction='eps' .* or prediction='v'"):
        pydiff.load(second)
    expected = drawn(tiny.folder(**SECOND)[0])
    np.testing.assert_array_equal(drawn(second, prediction="v"), expected)
    assert np.abs(drawn(second, prediction="eps").astype(int) - expected).max() > 8
    assert pydiff.load(second, prediction="v").codec.size == (768, 768)


def test_diffusers_reads_the_names_as_we_do(first, second):
    """The converter of the tests is no invention: diffusers' own gives the same weights back."""
    from safetensors.torch import load_file

    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    for path, model in ((first, FIRST), (second, SECOND)):
        _, pipe = tiny.folder(**model)
        state = load_file(path)
        config = dict(pipe.unet.config)
        back = utils.convert_ldm_unet_checkpoint(dict(state), config)
        expected = pipe.unet.state_dict()
        assert back.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_close(back[name].numpy(), tensor.numpy(), rtol=0, what=name)
        back = utils.convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config))
        expected = pipe.vae.state_dict()
        assert back.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_close(back[name].numpy().reshape(tensor.shape), tensor.numpy(), rtol=0, what=name)


def test_what_shapes_do_not_show_is_asked_for(tmp_path):
    model = {"full_vocabulary": True, "text": {"num_attention_heads": 4}, "unet": {"attention_head_dim": 4}}
    model |= {"vae": {"norm_num_groups": 16, "block_out_channels": [16, 16, 16, 16]}}
    path = written(tmp_path / "odd.safetensors", model)
    with pytest.raises(CheckpointError, match=r"its autoencoder has the channels .* give the folder .* with config="):
        pydiff.load(path)
    folder, _ = tiny.folder(**model)
    np.testing.assert_array_equal(drawn(path, config=folder), drawn(folder))
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        pydiff.load(path, config=tmp_path)


def test_averaged_weights_are_there_for_the_asking(tmp_path, first):
    _, other = tiny.folder(**FIRST, seed=5)
    path = written(tmp_path / "averaged.safetensors", FIRST, averaged=other.unet)
    plain, averaged = drawn(path), drawn(path, variant="ema")
    np.testing.assert_array_equal(plain, drawn(first))
    assert np.abs(plain.astype(int) - averaged).max() > 8
    with pytest.raises(CheckpointError, match="has no averaged weights"):
        pydiff.load(first, variant="ema")


def test_the_noise_that_a_file_was_trained_with_is_used(tmp_path):
    from safetensors.numpy import save_file

    arrays = original.whole(tiny.folder(**FIRST)[1])
    save_file(arrays | {"betas": np.linspace(1e-4, 0.02, 1000).astype(np.float32)}, tmp_path / "other.safetensors")
    run = pydiff.load(tmp_path / "other.safetensors")
    assert any("other noise" in note for note in run.notes)
    assert_close(run.process.schedule.alpha[-1] ** 2, np.prod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, first):
    import torch
    from safetensors.torch import load_file

    path = tmp_path_factory.mktemp("ckpt") / "first.ckpt"
    torch.save({"state_dict": load_file(first), "global_step": 470000, "epoch": 1, "callbacks": {}}, path)
    return path


def test_a_ckpt_is_read_without_executing_it(checkpoint, first):
    np.testing.assert_array_equal(drawn(checkpoint), drawn(first))


def test_a_ckpt_may_carry_what_training_programs_leave(tmp_path, first, monkeypatch):
    """A class is only named there, and neither imported nor called."""
    import torch
    from safetensors.torch import load_file

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    left = {"callbacks": {module.ModelCheckpoint: {"best": np.float64(0.5), "path": "x"}}, "loops": None}
    torch.save({"state_dict": load_file(first), **left}, tmp_path / "left.ckpt")
    monkeypatch.undo()
    np.testing.assert_array_equal(drawn(tmp_path / "left.ckpt"), drawn(first))


def test_a_ckpt_that_would_run_code_is_refused(tmp_path, checkpoint):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    path, evil = tmp_path / "evil.ckpt", pickle.dumps({"state_dict": {"a": Evil()}}, protocol=2)
    _rewritten(checkpoint, path, lambda _: evil)
    with pytest.raises(CheckpointError, match=r"system.* not called: do not trust this file"):
        pydiff.load(path)
    assert not (tmp_path / "executed").exists()


def _rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info.filename)
            new.writestr(info.filename, change(data) if info.filename.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": (4,)}, "is Stable Diffusion XL: pydiff opens"),
        ({"control_model.input_hint_block.0.weight": (4,)}, "is a ControlNet: pydiff opens"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 4), "lora_unet_x.alpha": ()}, "is a LoRA"),
        ({"unet.a.lora_A.weight": (4, 4)}, "is a LoRA"),
        ({"double_blocks.0.img_attn.norm.weight": (4,)}, "is Flux"),
        ({"model.diffusion_model.joint_blocks.0.x": (4,)}, "is Stable Diffusion 3"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4,)}, "is a network without the rest"),
        ({"encoder.down.0.block.0.conv1.weight": (4,)}, "is an autoencoder without the rest"),
        ({"fc.weight": (4, 4)}, "no names of a Stable Diffusion model"),
        ({"model.diffusion_model.out.2.weight": (4,)}, "has no autoencoder and no text encoder"),
    ],
)
def test_other_families_are_named(tmp_path, names, words):
    from safetensors.numpy import save_file

    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        pydiff.load(tmp_path / "x.safetensors")


def _changed(arrays, change):
    made = dict(arrays)
    change(made)
    return made


def _remove(part):
    return lambda made: [made.pop(name) for name in list(made) if name.startswith(part)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_remove("first_stage_model."), "has no autoencoder"),
        (_remove("cond_stage_model."), "has no text encoder"),
        (_remove("model.diffusion_model.middle_block.0.in_layers.2"), "do not fit this model: missing"),
        (_remove("model.diffusion_model.input_blocks.1"), "lacks parts|makes no sense|no levels|not of residual"),
        (_remove("model.diffusion_model.out.2"), "lacks parts"),
        (_remove("first_stage_model.decoder.mid.block_1.conv1"), "missing"),
        (_remove("cond_stage_model.transformer.text_model.final_layer_norm"), "final_layer_norm.weight is missing"),
        (lambda made: made.update({"model.diffusion_model.out.2.bias": np.zeros(7, np.float32)}), "must have shape"),
        (lambda made: made.update({"model.diffusion_model.extra.weight": np.zeros(7, np.float32)}), "unknown"),
        (lambda made: made.update({"betas": np.full(5, 2.0)}), "betas that are none"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_sentence(tmp_path, change, words):
    from safetensors.numpy import save_file

    arrays = original.whole(tiny.folder(**FIRST)[1])
    save_file(_changed(arrays, change), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        pydiff.load(tmp_path / "x.safetensors")


def test_a_file_that_is_none_is_one_sentence(tmp_path, first):
    (tmp_path / "x.txt").write_text("no model")
    (tmp_path / "x.safetensors").write_bytes(first.read_bytes()[:100_000])
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x02}q\x00.")
    expected = (("x.txt", "no file of a model"), ("x.safetensors", "damaged"), ("x.ckpt", "no file that PyTorch"))
    for name, words in expected:
        with pytest.raises(CheckpointError, match=words):
            pydiff.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        pydiff.load(tmp_path / "nowhere.safetensors")
