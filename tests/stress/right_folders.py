"""Right model folders of every kind that pydiff opens, with the smallest networks: what folder_fuzz spoils.

    made = make(Path("/dev/shm/x"))                 {name: a folder}

"ours, .." are as pydiff writes them, sealed; "theirs, .." as diffusers and transformers do.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from pydiff.classifying import ClassifierRun
from pydiff.codec import Pixels
from pydiff.codecs.frames import Frames
from pydiff.codecs.points import Points
from pydiff.condition import LABELS, Conditioning
from pydiff.diffusion import Process, schedule
from pydiff.formats import safetensors as tensorfile
from pydiff.formats.diffusers import autoencoder, stable_diffusion_write
from pydiff.formats.diffusers import pipeline as pipeline_folder
from pydiff.formats.diffusers.scheduler.stored import StoredScheduler
from pydiff.latents import Latents
from pydiff.models import (
    AutoencoderKL,
    AutoencoderTiny,
    BertModel,
    CLIPTextModel,
    ClipUNet,
    NoisyClassifier,
    PointsMLP,
    TextTransformer,
    UNet1D,
    UNet2D,
    UNet2DCondition,
    name_of,
)
from pydiff.pipeline import Pipeline
from pydiff.segment import Segmenter
from pydiff.sound.codec import Spectrogram, Waveform
from pydiff.stable_diffusion import StableDiffusion
from pydiff.text.bpe import BYTES, END, LAST, START, Special, Tokenizer
from pydiff.text.clip import Clip
from pydiff.text.learned import Learned
from pydiff.text.subwords import Subwords
from pydiff.text.wordpiece import SPECIALS
from pydiff.training import Options

STEM = "diffusion_pytorch_model"
TWO_LEVELS = {
    "block_out_channels": (2, 4), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1, "norm_num_groups": 2,
    "attention_head_dim": 2, "sample_size": 4,
}  # fmt: skip
ONE_LEVEL = {
    **TWO_LEVELS, "block_out_channels": (2,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}  # fmt: skip
NETWORKS = {
    "plain": TWO_LEVELS,
    "classes": {**ONE_LEVEL, "num_class_embeds": 3},
    "learned time": {**ONE_LEVEL, "time_embedding_type": "learned", "num_train_timesteps": 200},
    "vectors, scale and shift": {
        **ONE_LEVEL, "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift",
    },
}  # fmt: skip
KL = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (2, 2), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 1,
    "sample_size": 8,
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (2, 2), "decoder_block_out_channels": (2, 2), "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1), "latent_channels": 2,
}  # fmt: skip
CONTEXT = {
    "in_channels": 2, "out_channels": 2, "block_out_channels": (2, 4), "layers_per_block": 1, "sample_size": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 1, "attention_head_dim": 1,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 4,
}  # fmt: skip
CLIP = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (2, 2), "norm_num_groups": 1, "attention_head_dim": 2,
    "sample_size": 4, "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
}  # fmt: skip
LINE = {
    "block_out_channels": (2, 2), "strides": (2,), "patch": 2, "norm_num_groups": 1, "attention": (1,),
    "attention_head_dim": 2, "dilations": (1, 2),
}  # fmt: skip
PROCESS = Process(schedule("cosine", 200), "v")
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 50, "prediction_type": "epsilon"}


def make(root: Path) -> dict[str, Path]:
    """{name: a folder} of every kind."""
    made = {}
    told = {"classes": Conditioning(["a", "b"])}
    told["vectors, scale and shift"] = Conditioning(nothing={LABELS: np.zeros(8, np.float32)})
    for name, options in NETWORKS.items():
        ours, theirs = root / f"ours, {name}", root / f"theirs, {name}"
        pipeline = Pipeline(UNet2D(**options, seed=1), PROCESS, Pixels((4, 4, 3)), told.get(name))
        pipeline_folder.save(ours, pipeline, {"options": {"lr": 1e-3}, "data": "digits", "step": 3})
        shutil.copytree(ours, theirs)
        (theirs / "pydiff.json").unlink()
        index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
        index["scheduler"] = ["diffusers", "DDPMScheduler"]
        _json(theirs / "model_index.json", {**index, "id2label": {"0": "a", "1": "b", "2": "c"}})
        made |= {ours.name: ours, theirs.name: theirs}
    for name, pipeline in _pipelines().items():
        made[f"ours, {name}"] = root / f"ours, {name}"
        pipeline_folder.save(made[f"ours, {name}"], pipeline, {"options": {}, "data": "digits", "step": 3})
    made["ours, segmenter"] = root / "ours, segmenter"
    Segmenter(UNet2D(**ONE_LEVEL, out_channels=2), ["cat", "dog"]).save(made["ours, segmenter"])
    made["ours, classifier"] = root / "ours, classifier"
    _classifier().save(made["ours, classifier"])
    made["ours, autoencoder"] = root / "ours, autoencoder"
    history = {"options": {}, "origin": {"name": "digits"}, "step": 3, "shape": [8, 8, 3]}
    autoencoder.save(made["ours, autoencoder"], AutoencoderKL(**KL), history)
    made["theirs, tiny autoencoder"] = root / "theirs, tiny autoencoder"
    _part(made["theirs, tiny autoencoder"], AutoencoderTiny(**TINY))
    made["theirs, latents"] = _latents(root / "theirs, latents", made["ours, latents"])
    made["theirs, shards"] = _shards(root / "theirs, shards", made["theirs, plain"])
    made["theirs, stable diffusion"] = _stable_diffusion(root / "theirs, stable diffusion")
    made["theirs, one tokenizer file"] = _one_tokenizer(root, made["theirs, stable diffusion"])
    made["theirs, bert"] = _bert(root / "theirs, bert")
    return made


def _pipelines() -> dict[str, Pipeline]:
    """What pydiff trains beside images."""
    latents = Latents(AutoencoderKL(**KL, seed=2), (8, 8))
    captions = Learned(Subwords([[99, 98]], ["a"]), TextTransformer(pieces=515, tokens=4, width=4, layers=1, heads=1))
    spectrum = Spectrogram(4000, 64, bands=8, size=32, hop=8)
    drawn = {"in_channels": 1, "out_channels": 1}
    return {
        "points": Pipeline(PointsMLP(width=4, layers=1), PROCESS, Points(2, [0.0, 1.0], 2.0, 3.0)),
        "sound": Pipeline(UNet1D(**LINE), PROCESS, Waveform(4000, 16)),
        "spectrum": Pipeline(UNet2D(**{**ONE_LEVEL, **drawn}), PROCESS, spectrum),
        "clips": Pipeline(ClipUNet(**CLIP), PROCESS, Frames((2, 4, 4, 1))),
        "latents": Pipeline(UNet2D(**ONE_LEVEL, in_channels=2, out_channels=2), PROCESS, latents),
        "captions": Pipeline(
            UNet2DCondition(**{**CONTEXT, "in_channels": 3, "out_channels": 3}), PROCESS, Pixels((4, 4, 3)),
            Conditioning(encoder=captions),
        ),
    }  # fmt: skip


def _classifier() -> ClassifierRun:
    model = NoisyClassifier(classes=2, block_out_channels=(2,), norm_num_groups=1)
    options = Options().to_config()
    return ClassifierRun(model, Pixels((4, 4, 1)), PROCESS, ["cat", "dog"], options, step=3)


def _latents(folder: Path, ours: Path) -> Path:
    """As LDMPipeline writes it."""
    shutil.copytree(ours, folder)
    (folder / "pydiff.json").unlink()
    (folder / "vae").rename(folder / "vqvae")
    index = {
        "_class_name": "LDMPipeline", "vqvae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }  # fmt: skip
    _json(folder / "model_index.json", index)
    _json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    return folder


def _shards(folder: Path, whole: Path) -> Path:
    """The same with its weights in two files and their index."""
    shutil.copytree(whole, folder)
    file = folder / f"unet/{STEM}.safetensors"
    arrays = tensorfile.decode(np.frombuffer(bytearray(file.read_bytes()), np.uint8), file)
    file.unlink()
    table = {}
    for i, part in enumerate((sorted(arrays)[::2], sorted(arrays)[1::2]), 1):
        shard = f"{STEM}-0000{i}-of-00002.safetensors"
        table |= dict.fromkeys(part, shard)
        (folder / "unet" / shard).write_bytes(tensorfile.encode({n: arrays[n] for n in part}))
    _json(folder / f"unet/{STEM}.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": table})
    return folder


def _stable_diffusion(folder: Path) -> Path:
    """In miniature, with vocab.json and merges.txt; every file small."""
    letters = [*map(BYTES.get, b"acdt ")]
    merges = [("c", "a"), ("ca", f"t{LAST}")]
    tokens = [*letters, *(f"{c}{LAST}" for c in letters), *map("".join, merges), START, END]
    table = {token: number for number, token in enumerate(tokens)}
    specials = [Special(token, (table[token],)) for token in (START, END)]
    tokenizer = Tokenizer(table, merges, specials, table[START], table[END], table[END], table[END])
    text = CLIPTextModel(
        vocab_size=len(table), hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8, eos_token_id=table[END],
    )  # fmt: skip
    scheduler = StoredScheduler(dict(SCHEDULER))
    pipeline = StableDiffusion(
        UNet2DCondition(**CONTEXT), scheduler.process, Latents(AutoencoderKL(**KL), (8, 8)),
        Conditioning(encoder=Clip(text, tokenizer, 8)), scheduler=scheduler,
    )  # fmt: skip
    stable_diffusion_write.save(folder, pipeline)
    return folder


def _one_tokenizer(root: Path, whole: Path) -> Path:
    """Stable Diffusion's with tokenizer.json in place of vocab.json and merges.txt, as transformers writes now."""
    folder = root / "theirs, one tokenizer file"
    shutil.copytree(whole, folder)
    inside = folder / "tokenizer"
    merges = [line.split() for line in (inside / "merges.txt").read_text().split("\n")[1:] if line]
    model = {"type": "BPE", "vocab": json.loads((inside / "vocab.json").read_text()), "merges": merges}
    added = [{"id": model["vocab"][token], "content": token, "normalized": False} for token in (START, END)]
    _json(inside / "tokenizer.json", {"added_tokens": added, "model": model})
    for name in ("vocab.json", "merges.txt"):
        (inside / name).unlink()
    return folder


def _bert(folder: Path) -> Path:
    """As transformers writes it."""
    table = {token: number for number, token in enumerate([*SPECIALS, "a", "cat", "##s"])}
    options = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = BertModel(**options, vocab_size=len(table), max_position_embeddings=8)
    _part(folder, model, "model", model_type="bert")
    tokenizer = {"model": {"type": "WordPiece", "vocab": table}, "normalizer": {"type": "BertNormalizer"}}
    _json(folder / "tokenizer.json", tokenizer)
    return folder


def _part(folder: Path, model, stem=STEM, **more):
    """A network in a folder of its own."""
    folder.mkdir(parents=True)
    _json(folder / "config.json", {"_class_name": name_of(model), **model.config, **more})
    (folder / f"{stem}.safetensors").write_bytes(tensorfile.encode(model.state_dict(), {"format": "pt"}))


def _json(path: Path, value):
    path.write_text(json.dumps(value))
