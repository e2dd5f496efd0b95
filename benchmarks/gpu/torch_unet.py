"""diffusers' UNet2DModel in plain torch, as far as DDPM's U-Net needs it, under the same parameter names: the peer of
whole training steps where diffusers is not installed. tests/test_gpu_benchmark.py compares the two."""

import math

import torch
from torch import nn
from torch.nn import functional


class Embedding(nn.Module):
    """Two linear layers behind the sinusoids of the step number (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, cin, dim, flip, shift):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(cin, dim), nn.Linear(dim, dim)
        half = cin // 2
        steps = torch.arange(half, dtype=torch.float32) / (half - shift)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * steps), persistent=False)
        self.flip = flip

    def forward(self, t):
        angles = t[:, None].float() * self.frequencies
        parts = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return self.linear_2(functional.silu(self.linear_1(torch.cat(parts, 1).to(self.linear_1.weight.dtype))))


class Resnet(nn.Module):
    """norm, SiLU, convolution, + time; norm, SiLU, convolution; + input."""

    def __init__(self, cin, cout, temb, groups, eps):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, cin, eps), nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb, cout)
        self.norm2, self.conv2 = nn.GroupNorm(groups, cout, eps), nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x, temb):
        h = self.conv1(functional.silu(self.norm1(x))) + self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    def __init__(self, channels, head_dim, groups, eps):
        super().__init__()
        self.heads = channels // (head_dim or channels)
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        n, c, h, w = x.shape
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (n, h w, c)
        q, k, v = (f(rows).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[0](out).transpose(1, 2).reshape(n, c, h, w) + x


class Resample(nn.Module):
    """Half the resolution by a convolution of stride 2, or twice by repeated pixels and a convolution."""

    def __init__(self, channels, down, padding=1):
        super().__init__()
        self.down, self.padding = down, padding
        self.conv = nn.Conv2d(channels, channels, 3, 2 if down else 1, padding if down else 1)

    def forward(self, x):
        if not self.down:
            return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(x if self.padding else functional.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks, attention behind each if wanted, and perhaps a change of resolution."""

    def __init__(self, widths, cout, temb, head, groups, eps, resample=None, name=None):
        """head: None without attention, else a tuple with the width of a head."""
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(cin, cout, temb, groups, eps) for cin in widths)
        if head is not None:
            self.attentions = nn.ModuleList(Attention(cout, head[0], groups, eps) for _ in widths)
        self.attends, self.name = head is not None, name
        if resample is not None:
            setattr(self, name, nn.ModuleList([resample]))

    def resampled(self, x):
        """x in the next resolution, or None if it stays."""
        return getattr(self, self.name)[0](x) if self.name else None


class UNet2DModel(nn.Module):
    """Of the options those that unet_shapes.CONFIG has."""

    def __init__(
        self, *, sample_size, in_channels, out_channels, block_out_channels, layers_per_block, down_block_types,
        up_block_types, downsample_padding, flip_sin_to_cos, freq_shift, norm_eps, attention_head_dim,
        norm_num_groups=32,
    ):  # fmt: skip
        super().__init__()
        del sample_size  # any
        channels, levels, temb = block_out_channels, len(block_out_channels), 4 * block_out_channels[0]
        common = {"temb": temb, "groups": norm_num_groups, "eps": norm_eps}
        heads = lambda name: (attention_head_dim,) if name.startswith("Attn") else None  # noqa: E731
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = Embedding(channels[0], temb, flip_sin_to_cos, freq_shift)
        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for i, name in enumerate(down_block_types):
            last, cout = i == levels - 1, channels[i]
            widths = [channels[max(i - 1, 0)]] + [cout] * (layers_per_block - 1)
            down = None if last else Resample(cout, True, downsample_padding)
            self.down_blocks.append(
                Level(widths, cout, head=heads(name), resample=down, name=None if last else "downsamplers", **common)
            )
            skips += [cout] * (layers_per_block + (not last))
        self.mid_block = Level([channels[-1]] * 2, channels[-1], head=None, **common)
        self.mid_block.attentions = nn.ModuleList(
            [Attention(channels[-1], attention_head_dim, norm_num_groups, norm_eps)]
        )
        self.up_blocks = nn.ModuleList()
        cin = channels[-1]
        for i, name in enumerate(up_block_types):
            last, cout = i == levels - 1, channels[levels - 1 - i]
            widths = [(cin if j == 0 else cout) + skips.pop() for j in range(layers_per_block + 1)]
            up = None if last else Resample(cout, False)
            self.up_blocks.append(
                Level(widths, cout, head=heads(name), resample=up, name=None if last else "upsamplers", **common)
            )
            cin = cout
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(self, x, t):
        """x (n, c, h, w), t (n,) -> the prediction, of x's shape."""
        temb = functional.silu(self.time_embedding(t))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            for i, resnet in enumerate(level.resnets):
                x = resnet(x, temb)
                x = level.attentions[i](x) if level.attends else x
                skips.append(x)
            if level.name:
                x = level.resampled(x)
                skips.append(x)
        x = self.mid_block.resnets[0](x, temb)
        x = self.mid_block.resnets[1](self.mid_block.attentions[0](x), temb)
        for level in self.up_blocks:
            for i, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], 1), temb)
                x = level.attentions[i](x) if level.attends else x
            x = level.resampled(x) if level.name else x
        return self.conv_out(functional.silu(self.conv_norm_out(x)))
