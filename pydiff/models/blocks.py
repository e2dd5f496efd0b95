"""The building blocks of the U-Net: residual block, down- and upsampling, and one level of the descent and the ascent.

Arrays are (N, H, W, C). `temb` is the activated embedding of the step number (and class), (N, D): the context that the
lecture calls temporal. Attribute names follow diffusers' blocks, as they are the names in checkpoint files.
"""

from typing import Any

from pydiff import ops
from pydiff.models.activations import ACTIVATIONS
from pydiff.nn import Attention, Conv2d, Dropout, GroupNorm, Linear, Module


class ResnetBlock(Module):
    """Two 3x3 convolutions around the step embedding, plus a shortcut (He et al. 2016; Ho et al. 2020, appendix B).

        h = conv1(silu(norm1(x)));   h = conv2(dropout(silu(norm2(h + temb))));   y = (shortcut(x) + h) / output_scale

    scale_shift: the embedding gives a scale and a shift applied after norm2 instead (Dhariwal & Nichol 2021, sect. 3).
    resample: None, "up" or "down" changes the resolution by 2 between norm1 and conv1, also in the shortcut. temb_dim:
    None for a block without an embedding, as in autoencoders. act: a name in ACTIVATIONS, in place of silu.
    """

    def __init__(
        self,
        cin,
        cout,
        temb_dim,
        groups,
        eps,
        dropout=0.0,
        scale_shift=False,
        act="silu",
        output_scale=1.0,
        resample=None,
    ):
        fused = "silu" if act == "silu" else None  # the one that is fused into the normalisation
        self.norm1 = GroupNorm(groups, cin, eps, activation=fused)
        self.conv1 = Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = Linear(temb_dim, 2 * cout if scale_shift else cout) if temb_dim else None
        self.norm2 = GroupNorm(groups, cout, eps, activation=None if scale_shift else fused)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = Conv2d(cin, cout, 1) if cin != cout else None
        self.scale_shift, self.output_scale, self.resample = scale_shift, output_scale, resample
        self.act, self.fused = ACTIVATIONS[act], fused

    def forward(self, x, temb=None):
        h = self.norm1(x) if self.fused else self.act(self.norm1(x))
        if self.resample == "down":
            x, h = ops.average_pool(x), ops.average_pool(h)
        elif self.resample == "up":
            x = ops.upsample_nearest(x)
        upsample = 2 if self.resample == "up" else 1
        t: Any = self.time_emb_proj(temb) if self.time_emb_proj else None  # (N, C or 2C)
        if self.scale_shift:
            t = t.reshape(len(t), 1, 1, t.shape[1])
            h = self.norm2(self.conv1(h, upsample=upsample))
            c = h.shape[-1]
            h = self.act(h * (1 + t[..., :c]) + t[..., c:])
        else:
            h = self.norm2(self.conv1(h, shift=t, upsample=upsample))
            h = h if self.fused else self.act(h)
        x = self.conv_shortcut(x) if self.conv_shortcut else x
        y = self.conv2(self.dropout(h), add=x)
        return y if self.output_scale == 1 else y * (1 / self.output_scale)


class Downsample(Module):
    """Halves the resolution with a 3x3 convolution of stride 2; odd sizes are rounded up.

    padding 0 means, as in diffusers, one row below and one column to the right, none above and to the left. Odd sizes
    are then rounded down.
    """

    def __init__(self, channels, padding=1):
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding or ((0, 1), (0, 1)))

    def forward(self, x, _temb=None):
        return self.conv(x)


class Upsample(Module):
    """Doubles the resolution by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels):
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, _temb=None):
        return self.conv(x, upsample=2)


class DownBlock(Module):
    """One level of the descent: residual blocks (each followed by attention, if requested), then half the resolution.

    downsample: None, "conv" or "resnet". Returns x and the list of skip connections for the ascent.
    """

    def __init__(self, cin, cout, layers, attention, downsample, downsample_padding, **resnet):
        self.resnets = [ResnetBlock(cin if i == 0 else cout, cout, **resnet) for i in range(layers)]
        self.attentions = [_attention(cout, attention, resnet) for _ in range(layers)] if attention else []
        if downsample == "resnet":
            self.downsamplers = [ResnetBlock(cout, cout, **resnet, resample="down")]
        else:
            self.downsamplers = [Downsample(cout, downsample_padding)] if downsample else []

    def forward(self, x, temb):
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            x = self.attentions[i](x) if self.attentions else x
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, temb)
            skips.append(x)
        return x, skips


class MidBlock(Module):
    """The bottom of the U: residual block, attention, residual block. attention None omits the attention."""

    def __init__(self, channels, attention, attention_groups, output_scale, **resnet):
        self.resnets = [ResnetBlock(channels, channels, **resnet, output_scale=output_scale) for _ in range(2)]
        self.attentions = []
        if attention:
            self.attentions = [Attention(channels, attention, attention_groups, resnet["eps"], output_scale)]

    def forward(self, x, temb=None):
        x = self.resnets[0](x, temb)
        x = self.attentions[0](x) if self.attentions else x
        return self.resnets[1](x, temb)


class UpBlock(Module):
    """One level of the ascent: each residual block gets the matching skip connection of the descent as further
    channels.

    skip_channels: channels of the skip connections, in the order in which they are used. upsample: None, "conv" or
    "resnet".
    """

    def __init__(self, cin, cout, skip_channels, attention, upsample, **resnet):
        widths = [(cin if i == 0 else cout) + skip for i, skip in enumerate(skip_channels)]
        self.resnets = [ResnetBlock(width, cout, **resnet) for width in widths]
        self.attentions = [_attention(cout, attention, resnet) for _ in widths] if attention else []
        if upsample == "resnet":
            self.upsamplers = [ResnetBlock(cout, cout, **resnet, resample="up")]
        else:
            self.upsamplers = [Upsample(cout)] if upsample else []

    def forward(self, x, skips, temb):
        for i, resnet in enumerate(self.resnets):
            skip = skips.pop()
            if x.shape != skip.shape[:3] + x.shape[3:]:  # an odd size was rounded up on the way down
                x = x[:, : skip.shape[1], : skip.shape[2]]
            if x.shape[:3] != skip.shape[:3]:
                raise ValueError(
                    f"this model rounds odd sizes down, so it cannot get back from {x.shape[1:3]} to {skip.shape[1:3]} "
                    "pixels; use images whose sides can be halved at every level"
                )
            x = resnet(ops.concatenate(x, skip), temb)
            x = self.attentions[i](x) if self.attentions else x
        for upsampler in self.upsamplers:
            x = upsampler(x, temb)
        return x


def _attention(channels, head_dim, resnet):
    return Attention(channels, head_dim, resnet["groups"], resnet["eps"])
