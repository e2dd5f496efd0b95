"""Stable Diffusion in miniature, made by diffusers and transformers with random weights, and what they draw with it."""

import contextlib
import functools
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from pydiff.diffusion.samplers import initial_noise
from pydiff.text import bpe

UNET = {
    "block_out_channels": (32, 64), "layers_per_block": 2, "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 64, "attention_head_dim": 8,
}  # fmt: skip
VAE = {
    "block_out_channels": (32, 32, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 1, "sample_size": 64,
}  # fmt: skip
TEXT = {
    "vocab_size": 49408, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 1,
    "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
FEW = 600  # merges of the shipped list that the miniature's vocabulary has


@functools.cache
def vocabulary():
    """(vocabulary, merges): the beginning of CLIP's."""
    merges = list(bpe.clip().ranks)[:FEW]
    alone = list(bpe.BYTES.values())
    tokens = [*alone, *(c + bpe.LAST for c in alone), *("".join(pair) for pair in merges), bpe.START, bpe.END]
    return {token: i for i, token in enumerate(tokens)}, merges


def pipeline(unet=None, vae=None, text=None, scheduler=None, pad=bpe.END, full_vocabulary=False, seed=0):
    """diffusers' StableDiffusionPipeline of such parts; options replace those above."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    table, merges = vocabulary()
    if full_vocabulary:
        table, merges = bpe.clip().vocabulary, list(bpe.clip().ranks)
    size = {"vocab_size": len(table), "bos_token_id": len(table) - 2, "eos_token_id": len(table) - 1}
    tokenizer = transformers.CLIPTokenizer(
        vocab=table, merges=[tuple(p) for p in merges], pad_token=pad, model_max_length=77
    )
    scheduler = {**SCHEDULER, **(scheduler or {})}
    made = {
        "unet": diffusers.UNet2DConditionModel(**{**UNET, **(unet or {})}),
        "vae": diffusers.AutoencoderKL(**{**VAE, **(vae or {})}),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**TEXT, **size, **(text or {})})),
        "scheduler": getattr(diffusers, scheduler["_class_name"]).from_config(
            {k: v for k, v in scheduler.items() if not k.startswith("_")}
        ),
        "tokenizer": tokenizer,
    }
    rng = np.random.default_rng(seed)
    for name in ("unet", "vae", "text_encoder"):
        for p in made[name].parameters():  # normalisations start at 1 and 0, where mistakes can hide
            p.data += torch.from_numpy(0.03 * rng.standard_normal(tuple(p.shape))).to(p.dtype)
    made["text_encoder"].eval()
    kind = diffusers.StableDiffusionPipeline
    return kind(**made, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def as_published(folder: Path):
    """The folder as transformers before version 5 and hubs have it: old names of the text encoder's parameters,
    vocab.json and merges.txt.
    """
    from safetensors.numpy import load_file, save_file

    path = folder / "text_encoder/model.safetensors"
    arrays = {f"text_model.{name.removeprefix('text_model.')}": array for name, array in load_file(path).items()}
    arrays["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(arrays, path, {"format": "pt"})
    table, merges = vocabulary()
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(table))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    special = {"content": bpe.END, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    said = {"bos_token": {**special, "content": bpe.START}, "eos_token": special, "unk_token": special}
    (folder / "tokenizer/special_tokens_map.json").write_text(json.dumps({**said, "pad_token": bpe.END}))
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **said}))
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps({**config, "eos_token_id": 2, "dropout": 0.0}))


@functools.cache
def _home():
    return Path(tempfile.mkdtemp(prefix="tiny-stable-diffusion-"))


@functools.cache
def _made(key):
    options = json.loads(key)
    path = _home() / f"model-{abs(hash(key)) % 10**8}"
    with quietly():
        made = pipeline(**options)
        made.save_pretrained(path)
    return path, made


def folder(**options):
    """(the folder that diffusers wrote, its pipeline), the same for the same options."""
    return _made(json.dumps(options, sort_keys=True))


def forget():
    """Removes all of them."""
    _made.cache_clear()
    shutil.rmtree(_home(), ignore_errors=True)
    _home.cache_clear()


def start(shape, numbers, seed=0):
    """The noise that ours begins with, as diffusers takes it."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(initial_noise(shape, seed, numbers).transpose(0, 3, 1, 2)))


def images_of(pipe, prompt, shape=(8, 8, 4), n=1, seed=0, **options):
    """What diffusers draws from our noise: floats (N, H, W, 3) in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    latents = start(shape, np.arange(n), seed)
    with quietly():
        return pipe(prompt, latents=latents, num_images_per_prompt=n, output_type="np", **options).images


@contextlib.contextmanager
def quietly():
    """diffusers warns of what it will change, and NumPy of what it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def step_noise(shape, k):
    """The noise of the k-th step, (N, C, h, w) as torch has it; the same for all schedulers."""
    import torch

    from pydiff import random

    n, c, *size = shape
    drawn = random.normal(random.key(77, random.SAMPLE, np.arange(n), k), (*size, c), np.float32)
    return torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 3, 1, 2)))


def noise_of_step(shape=(1, 4, 8, 8)):
    """The same as samplers of ours take it: k, counted from 0 -> (N, h, w, C)."""
    return lambda k: step_noise(shape, k + 1).numpy().transpose(0, 2, 3, 1)
