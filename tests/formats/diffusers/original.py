"""A pipeline of diffusers in the names of the CompVis and Stability code, as single files have them."""

import re

import numpy as np

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def arrays_of(module):
    return {name: np.ascontiguousarray(p.detach().numpy()) for name, p in module.state_dict().items()}


def unet(module):
    layers, levels = module.config.layers_per_block, len(module.config.block_out_channels)
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    ends |= {f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)}
    ends |= {"time_embedding.cond_proj": "time_embed.cond_proj"}
    found = {}
    for name, array in arrays_of(module).items():
        start = next((old for old in ends if name.startswith(old + ".")), None)
        if start:
            found[ends[start] + name[len(start) :]] = array
            continue
        block, level, kind, number, rest = re.fullmatch(
            r"(down|mid|up)_blocks?\.?(\d*)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
        ).groups()
        number = int(number)
        if kind == "resnets":
            head = next(old for old in RESNET if rest.startswith(old + "."))
            rest = RESNET[head] + rest[len(head) :]
        if block == "mid":
            place = f"middle_block.{2 * number if kind == 'resnets' else 1}"
        elif block == "down":
            i = 1 + int(level) * (layers + 1) + (number if kind != "downsamplers" else layers)
            place = f"input_blocks.{i}.{'1' if kind == 'attentions' else '0'}"
            rest = rest.replace("conv.", "op.", 1) if kind == "downsamplers" else rest
        else:
            i = int(level) * (layers + 1) + (number if kind != "upsamplers" else layers)
            attends = module.config.up_block_types[int(level)].startswith("Cross")
            last = {"resnets": 0, "attentions": 1, "upsamplers": 2 if attends else 1}[kind]
            place = f"output_blocks.{i}.{last}"
        found[f"{place}.{rest}"] = array
    assert levels
    return found


def vae(module):
    levels, found = len(module.config.block_out_channels), {}
    for name, array in arrays_of(module).items():
        if "attentions" in name:
            side, rest = re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.*)", name).groups()
            head = next(old for old in ATTENTION if rest.startswith(old + "."))
            array = array[..., None, None] if array.ndim == 2 else array
            new = f"{side}.mid.attn_1.{ATTENTION[head]}{rest[len(head) :]}"
        elif match := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.*)", name):
            new = f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
        elif match := re.fullmatch(r"(\w+)\.(up|down)_blocks\.(\d)\.(resnets|\w+samplers)\.(\d)\.(.*)", name):
            level = int(match[3]) if match[2] == "down" else levels - 1 - int(match[3])
            kind = f"block.{match[5]}" if match[4] == "resnets" else f"{match[2]}sample"
            new = f"{match[1]}.{match[2]}.{level}.{kind}.{match[6]}"
        else:
            new = name.replace("conv_norm_out", "norm_out")
        found[new.replace("conv_shortcut", "nin_shortcut")] = array
    return found


def clip(module):
    found = {f"transformer.text_model.{n.removeprefix('text_model.')}": a for n, a in arrays_of(module).items()}
    places = np.arange(module.config.max_position_embeddings)[None]
    return found | {"transformer.text_model.embeddings.position_ids": places}


def openclip(module):
    """With one layer more than diffusers has: the last, whose states nobody uses."""
    found, layers = {}, module.config.num_hidden_layers
    arrays = {name.removeprefix("text_model."): array for name, array in arrays_of(module).items()}
    for layer in range(layers + 1):
        part = f"encoder.layers.{min(layer, layers - 1)}."
        noise = 7.0 if layer == layers else 0.0
        start = f"model.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            three = [arrays[f"{part}self_attn.{k}_proj.{kind}"] for k in "qkv"]
            found[f"{start}attn.in_proj_{kind}"] = np.concatenate(three) + np.float32(noise)
            for new, old in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                found[f"{start}{new}.{kind}"] = arrays[f"{part}{old}.{kind}"] + np.float32(noise)
    width = module.config.hidden_size
    found["model.token_embedding.weight"] = arrays["embeddings.token_embedding.weight"]
    found["model.positional_embedding"] = arrays["embeddings.position_embedding.weight"]
    found |= {f"model.ln_final.{kind}": arrays[f"final_layer_norm.{kind}"] for kind in ("weight", "bias")}
    found |= {"model.text_projection": np.ones((width, width), np.float32), "model.logit_scale": np.float32(1)}
    return found


def whole(pipe, version=1, averaged=None):
    """{name: array} of a single file. averaged: a U-Net whose weights stand there as the averaged ones."""
    found = {f"model.diffusion_model.{name}": a for name, a in unet(pipe.unet).items()}
    found |= {f"first_stage_model.{name}": a for name, a in vae(pipe.vae).items()}
    text = clip(pipe.text_encoder) if version == 1 else openclip(pipe.text_encoder)
    found |= {f"cond_stage_model.{name}": a for name, a in text.items()}
    if averaged is not None:
        found |= {f"model_ema.diffusion_model{n.replace('.', '')}": a for n, a in unet(averaged).items()}
        found |= {"model_ema.decay": np.float32(0.99), "model_ema.num_updates": np.int32(3)}
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    found |= {"betas": betas.astype(np.float32), "alphas_cumprod": np.cumprod(1 - betas).astype(np.float32)}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}
