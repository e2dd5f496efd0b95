"""U-Net configurations: every option alone, any options together, and the same model in diffusers."""

from hypothesis import strategies as st

from pydiff.models.unet import sinusoids

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
ONE_LEVEL = {"block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
THREE_LEVELS = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

# Every option in at least one of its other values, alone: what goes wrong is named by the test's name.
OPTIONS = {
    "plain": {},
    "one level": ONE_LEVEL,
    "three levels": THREE_LEVELS,
    "three equal levels": {**THREE_LEVELS, "block_out_channels": (8, 8, 8)},
    "channels fall": {"block_out_channels": (16, 8)},
    "two layers": {"layers_per_block": 2},
    "no attention but in the middle": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    "no attention": {
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False,
    },
    "one head": {"attention_head_dim": None},
    "heads that leave channels over": {"attention_head_dim": 3},
    "heads of one channel": {"attention_head_dim": 1},
    "one group": {"norm_num_groups": 1},
    "groups of the middle": {"attn_norm_num_groups": 2},
    "eps": {"norm_eps": 1e-2},
    "resnet down and up": {
        "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
        "downsample_type": "resnet", "upsample_type": "resnet",
    },
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift with groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "classes": {"num_class_embeds": 5},
    "class steps": {"class_embed_type": "timestep"},
    "downsample padding": {"downsample_padding": 0},
    "frequency shift": {"freq_shift": 1},
    "sines first": {"flip_sin_to_cos": False},
    "time dimension": {"time_embedding_dim": 20},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.7},
    "centred": {"center_input_sample": True},
    "more channels out": {"in_channels": 1, "out_channels": 5},
    "swish": {"act_fn": "swish"},
    "gelu": {"act_fn": "gelu"},
    "mish, scale and shift": {"act_fn": "mish", "resnet_time_scale_shift": "scale_shift"},
}  # fmt: skip


@st.composite
def configurations(draw):
    """Any of the options together."""
    levels = draw(st.integers(1, 3))
    down = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    scale_shift = draw(st.booleans())
    classes = draw(st.sampled_from([{}, {"num_class_embeds": 3}, {"class_embed_type": "timestep"}]))
    return {
        "block_out_channels": tuple(draw(st.sampled_from([4, 8, 12])) for _ in range(levels)),
        "down_block_types": tuple(draw(st.sampled_from(down)) for _ in range(levels)),
        "up_block_types": tuple(draw(st.sampled_from(up)) for _ in range(levels)),
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": draw(st.sampled_from([1, 2, 4])),
        "attention_head_dim": draw(st.sampled_from([None, 1, 3, 4])),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", None])),
        "mid_block_scale_factor": draw(st.sampled_from([1, 2.5])),
        "add_attention": draw(st.booleans()),
        "attn_norm_num_groups": draw(st.sampled_from([None, 2])),
        "freq_shift": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(1, 3)),
        **classes,
    }


def exact_time(config):
    """diffusers computes its sinusoids in float32; this stands in for them."""
    import torch

    class Sinusoids(torch.nn.Module):
        def forward(self, t):
            encoded = sinusoids(
                t.numpy(), config["block_out_channels"][0], config["flip_sin_to_cos"], config["freq_shift"]
            )
            return torch.from_numpy(encoded)

    return Sinusoids()


def diffusers_twin(diffusers, ours):
    """diffusers' model of the same configuration with the same weights, in float64."""
    import torch

    arguments = {k: v for k, v in ours.config.items() if v is not None or k in ("mid_block_type", "attention_head_dim")}
    theirs = diffusers.UNet2DModel(**arguments).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    theirs.time_proj = exact_time(ours.config)
    return theirs
