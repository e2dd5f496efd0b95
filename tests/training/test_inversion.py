"""Textual inversion: one word is learned and nothing else changes; the gradient is torch's; its file goes both ways."""

import logging

import numpy as np
import pytest

import pydiff
from pydiff import invert
from pydiff.cli import main
from pydiff.condition import Conditioning
from pydiff.diffusion import Process, schedule
from pydiff.formats import embeddings
from pydiff.latents import Latents
from pydiff.models import AutoencoderKL, CLIPTextModel, UNet2DCondition
from pydiff.stable_diffusion import StableDiffusion
from pydiff.text import bpe
from pydiff.text.clip import Clip
from pydiff.training import Interrupted, Trainer
from pydiff.training.gradient import Gradient
from pydiff.training.inversion import InversionOptions, InversionTask
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.peers import import_diffusers, import_transformers

WORD = "<mine>"
UNET = {
    "block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 16, "sample_size": 8,
}  # fmt: skip
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4,
}  # fmt: skip


def small(unet=None, tokens=77):
    text = CLIPTextModel(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, seed=3)
    model = UNet2DCondition(**{**UNET, **(unet or {})}, in_channels=4, out_channels=4, seed=1)
    for name, p in model.named_parameters():
        if "attn2" in name:  # that words have some weight
            p.data *= 3
    encoder = Clip(text, bpe.clip(), tokens)
    return StableDiffusion(
        model, Process(schedule("linear"), "eps"), Latents(AutoencoderKL(**VAE, seed=2), (16, 16)),
        Conditioning(encoder=encoder),
    )  # fmt: skip


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def states(pipeline):
    parts = pipeline.model, pipeline.codec.autoencoder, pipeline.conditioning.encoder.network
    return [part.state_dict() for part in parts]


def test_only_the_word_changes_and_the_loss_falls(images, tmp_path):
    pipeline = small()
    before = states(pipeline)
    told = []
    options = {"steps": 60, "lr": 0.1, "batch_size": 2, "vectors": 2, "start": "cat", "flip": True}
    made = invert.learn(pipeline, images, WORD, out=tmp_path / "run", progress=False, announce=told.append, **options)
    assert made.steps == 60
    assert made.vectors.shape == (2, 16)
    assert "a step takes about" in told[1]
    assert "for 60 steps" in told[1]
    unet, vae, text = states(pipeline)
    for got, expected in ((unet, before[0]), (vae, before[1])):
        assert_same_bits(list(got.values()), list(expected.values()))
    table = "embeddings.token_embedding.weight"
    assert_same_bits([text[table][:-2]], [before[2][table]])
    np.testing.assert_array_equal(text[table][-2:], made.vectors)
    assert_same_bits([text[n] for n in before[2] if n != table], [a for n, a in before[2].items() if n != table])
    assert all(p.requires_grad and p.grad is None for p in pipeline.model.parameters())
    assert not any(module.recompute for _, module in pipeline.model.named_modules())

    def loss(vectors):
        fresh = small()
        fresh.conditioning.encoder.learn(WORD, vectors)
        given = InversionOptions(batch_size=64, vectors=2)
        parts = fresh.model, fresh.process, fresh.codec, fresh.conditioning.encoder
        task = InversionTask(pydiff.data.load(images), *parts, WORD, given)
        with task.as_it_is():
            return task.losses(task.batch(999, np.arange(64))).data.mean()

    row = before[2][table][pipeline.conditioning.encoder.tokenizer.numbers("cat")].mean(0)
    assert loss(made.vectors) < 0.995 * loss(np.stack([row, row]))


def test_the_file_is_read_and_draws_what_was_learned(images, tmp_path):
    pipeline, other = small(), small()
    made = invert.learn(pipeline, images, WORD, out=tmp_path, progress=False, steps=3)
    assert made.file == tmp_path / "mine.safetensors"
    ((word, vectors),) = embeddings.read(made.file).items()
    assert word == WORD
    np.testing.assert_array_equal(vectors, made.vectors)
    other.conditioning.encoder.learn(word, vectors)
    drawn = []
    for one in (pipeline, other):
        asked = one.conditioning.rows([0], prompts=[f"a photo of {WORD}"])
        drawn.append(one.sample(1, steps=2, asked=asked))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("recompute", [True, False])
def test_no_gradient_but_the_words_is_made(images, recompute):
    pipeline = small()
    encoder = pipeline.conditioning.encoder
    options = InversionOptions(recompute=recompute, batch_size=2)
    invert.begin_at(encoder, WORD, options)
    parts = pipeline.model, pipeline.process, pipeline.codec, encoder
    task = InversionTask(pydiff.data.load(images), *parts, WORD, options)
    trainer = Trainer(task, options)
    with task.as_it_is():
        Gradient(task, options, trainer.optimizer, trainer.group, lambda *_: "").of_step(1, lambda _: None)
    assert trainer.optimizer.p.size == 16
    assert np.abs(trainer.optimizer.g).max() > 0
    for part in (pipeline.model, encoder.network):
        assert all(p.grad is None and p.grad_buffer is None for p in part.parameters())


def test_it_goes_on_where_it_stopped(images, tmp_path, monkeypatch):
    whole = invert.learn(small(), images, WORD, out=tmp_path / "whole", progress=False, steps=6)
    halves = {"out": tmp_path / "halves", "progress": False, "steps": 6}
    step = InversionTask.losses

    def stopped(self, batch):
        made = step(self, batch)
        stopped.count += 1
        if stopped.count == 5:  # after two that foretell, and two steps
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return made

    stopped.count = 0
    monkeypatch.setattr(InversionTask, "losses", stopped)
    with pytest.raises(Interrupted):
        invert.learn(small(), images, WORD, **halves)
    early = embeddings.read(tmp_path / "halves/mine.safetensors")[WORD]
    monkeypatch.setattr(InversionTask, "losses", step)
    made = invert.learn(small(), images, WORD, **halves)
    assert np.abs(early - made.vectors).max() > 0
    np.testing.assert_array_equal(made.vectors, whole.vectors)
    with pytest.raises(ValueError, match="other data"):
        invert.learn(small(), images[:2], WORD, **halves)


def test_the_gradient_is_that_of_torch(images):
    """Through U-Net and text encoder in float64, against torch's autograd in diffusers' and transformers' modules."""
    import_diffusers()
    import_transformers()
    import diffusers
    import torch
    import transformers

    pipeline = small()
    encoder, tower = pipeline.conditioning.encoder, pipeline.conditioning.encoder.network
    options = InversionOptions(vectors=2, batch_size=2, start="cat")
    invert.begin_at(encoder, WORD, options)
    pipeline.model.astype(np.float64)
    tower.astype(np.float64)
    task = InversionTask(
        pydiff.data.load(images), pipeline.model, pipeline.process, pipeline.codec, encoder, WORD, options
    )
    batch = task.batch(1, np.arange(2))
    batch.x0 = batch.x0.astype(np.float64)
    with task.as_it_is():
        loss = task.losses(batch).mean()
        loss.backward()

    unet = diffusers.UNet2DConditionModel(**{k: v for k, v in pipeline.model.config.items() if v is not None}).double()
    unet.load_state_dict({n: torch.from_numpy(a) for n, a in pipeline.model.state_dict().items()})
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**tower.config)).double().eval()
    prefix = "" if "final_layer_norm.weight" in text.state_dict() else "text_model."
    state = {prefix + n: torch.from_numpy(a) for n, a in tower.state_dict().items()}
    text.load_state_dict(state, strict=False)
    x_t, eps = pipeline.process.q_sample(batch.x0, batch.t, batch.key)
    hidden = text(torch.from_numpy(batch.condition["ids"])).last_hidden_state
    x_t, eps = (torch.from_numpy(np.asarray(a)).double().permute(0, 3, 1, 2) for a in (x_t, eps))
    made = unet(x_t, torch.from_numpy(batch.t), hidden).sample
    theirs = ((made - eps) ** 2).mean()
    theirs.backward()
    gradient = text.get_input_embeddings().weight.grad[-2:].numpy()
    assert_close(loss.data, theirs.item(), rtol=1e-6)  # diffusers' sinusoids are float32
    assert_close(task.model.vectors.grad, gradient, rtol=1e-5, atol=1e-7 * np.abs(gradient).max())


@pytest.mark.parametrize(
    ("unet", "word", "options", "words"),
    [
        ({}, "cat", {}, "would hide that word"),
        ({}, " ", {}, "cannot be written"),
        ({}, "<a\nb>", {}, "cannot be written"),
        ({}, WORD, {"vectors": 76}, "too few for a word of 76"),
        ({}, WORD, {"vectors": 0}, "vectors must"),
        ({}, WORD, {"start": " "}, "a word that is near"),
        ({}, WORD, {"sentences": ("a photo",)}, "needs one {}"),
        ({}, WORD, {"sentences": ("very " * 80 + "{}",)}, "the word is cut off"),
        ({"time_cond_proj_dim": 8}, WORD, {}, "told its guidance"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(images, unet, word, options, words):
    with pytest.raises(ValueError, match=words) as error:
        invert.learn(small(unet), images, word, progress=False, **{"steps": 1, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [("tones", "these data are sounds"), (np.zeros((2, 3, 8, 8, 3), np.uint8), "holds clips"),
     (np.zeros((3, 8, 8, 3), np.float32), None)],
)  # fmt: skip
def test_words_are_learned_from_images(data, words):
    if words is None:
        assert invert.learn(small(), data, WORD, progress=False, steps=1).steps == 1
        return
    with pytest.raises(ValueError, match=f"words are learned from images, and .*{words}"):
        invert.learn(small(), data, WORD, progress=False, steps=1)


def test_too_little_memory_is_said_before(images, monkeypatch):
    monkeypatch.setattr("pydiff.memory.free", lambda: 1000)
    monkeypatch.setattr("pydiff.stable_diffusion.StableDiffusion.check_memory", lambda *_: None)
    with pytest.raises(ValueError, match=r"a step would take .* of memory, and 1 kB are free"):
        invert.learn(small(), images, WORD, progress=False)


def test_the_command_line_and_diffusers_read_the_same_word(images, tmp_path, capsys):
    diffusers = import_diffusers()
    import_transformers()
    from PIL import Image

    from tests.formats.diffusers import tiny

    logging.getLogger("transformers").setLevel(logging.ERROR)
    path, pipe = tiny.folder(full_vocabulary=True)
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"photos/{i}.png")
    arguments = ["invert", str(path), str(tmp_path / "photos"), "--word", WORD, "--out", str(tmp_path / "out")]
    try:
        assert main([*arguments, "--dry-run"]) == 0
        assert not (tmp_path / "out").exists()
        assert main([*arguments, "--steps", "2", "--start", "cat"]) == 0
        assert "mine.safetensors" in capsys.readouterr().out
        pipe.load_textual_inversion(tmp_path / "out/mine.safetensors")
        theirs = pipe.text_encoder.get_input_embeddings().weight[-1].detach().numpy()
        np.testing.assert_array_equal(embeddings.read(tmp_path / "out/mine.safetensors")[WORD][0], theirs)
        assert pipe.tokenizer.encode(WORD)[1] == len(pipe.tokenizer) - 1
        assert main(["invert", str(tmp_path / "photos"), str(tmp_path / "photos")]) == 1
        assert main([*arguments, "--word", "cat"]) == 1
        assert "Traceback" not in capsys.readouterr().err
    finally:
        tiny.forget()
    assert diffusers
