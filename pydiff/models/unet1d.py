"""The U-Net for lines instead of images: sounds, (N, 1, L, C).

The blocks and the parameter names of UNet2D with rectangular filters: 1 x 3 for 3 x 3, and strides only along the line.
With `patch` = 1, `strides` of 2 and filters of size 3 it equals UNet2D on images one pixel high, whose other filter
rows see only zeros, except for the upsampling, LineUpsample; a test checks this, and so the agreement with diffusers.

Sounds also need a receptive field of thousands of samples. The first convolution takes `patch` samples at a time, as a
ViT does (Dosovitskiy et al. 2021), every level is up to 4 times shorter than the one above, and residual blocks
alternate between dilations (van den Oord et al. 2016, "WaveNet"; Kong et al. 2021, "DiffWave").
"""

from pydiff import ops
from pydiff.models.activations import ACTIVATIONS
from pydiff.models.blocks import DownBlock, MidBlock, ResnetBlock, UpBlock
from pydiff.models.registry import register
from pydiff.models.unet import TimestepEmbedding, UNet2D
from pydiff.nn import Attention, Conv2d, Embedding, GroupNorm, Module


class LineConv(Conv2d):
    """A convolution along lines (N, 1, L, cin) -> (N, 1, ceil(L / stride), cout); weight (1, size, cin, cout).

    size: odd. dilation d: the filter's taps are d samples apart. If d divides L, the line is folded, sample i into row
    i // d and column i % d: a column then holds every d-th sample, and an ordinary size x 1 filter computes the same
    sums.
    """

    def __init__(self, cin, cout, size, stride=1, dilation=1):
        if size % 2 != 1:
            raise ValueError(f"a filter along a line has an odd size, so that it has a middle; got {size}")
        reach = dilation * (size // 2)
        super().__init__(cin, cout, (1, size), (1, stride), (0, reach), (1, dilation))

    def forward(self, x, shift=None, add=None, upsample=1):
        _, size, cin, cout = self.weight.shape
        n, _, length, _ = x.shape
        dilation = self.dilation[1]
        if dilation == 1 or length % dilation or upsample != 1:
            return super().forward(x, shift, add, (1, upsample))
        bias = self.bias if shift is None else shift + self.bias
        fold = (n, length // dilation, dilation)
        add = None if add is None else add.reshape(*fold, cout)
        weight = self.weight.reshape(size, 1, cin, cout)
        return ops.conv2d(x.reshape(*fold, cin), weight, bias, 1, (size // 2, 0), 1, add).reshape(n, 1, length, cout)


class LineResnetBlock(ResnetBlock):
    """The residual block along a line; the first of its convolutions has the dilation."""

    def __init__(self, cin, cout, temb_dim, groups, eps, dropout=0.0, act="silu", size=3, dilation=1):
        super().__init__(cin, cout, temb_dim, groups, eps, dropout, act=act)
        self.conv1 = LineConv(cin, cout, size, dilation=dilation)
        self.conv2 = LineConv(cout, cout, size)


class LineDownsample(Module):
    """Makes a line `stride` times shorter, rounded up; the filters overlap by half."""

    def __init__(self, channels, stride):
        self.conv = LineConv(channels, channels, 2 * stride - 1, stride)

    def forward(self, x, _temb):
        return self.conv(x)


class LineUpsample(Module):
    """Makes a line `stride` times longer: a convolution whose channels are the `stride` new samples of every old one
    (Shi et al. 2016, "sub-pixel convolution").

    It can represent UNet2D's repetition and smoothing, at the cost of a convolution of the shorter line.
    """

    def __init__(self, channels, stride):
        self.conv, self.stride = LineConv(channels, stride * channels, 3), stride

    def forward(self, x, _temb):
        n, _, length, channels = x.shape
        return self.conv(x).reshape(n, 1, length * self.stride, channels)


class LineDownBlock(DownBlock):
    """One level of the descent. stride: of the downsampling at its end, or None."""

    def __init__(self, cin, cout, layers, attention, stride, dilations, **resnet):
        self.resnets = [
            LineResnetBlock(cin if i == 0 else cout, cout, **resnet, dilation=dilations[i % len(dilations)])
            for i in range(layers)
        ]
        self.attentions = [_attention(cout, attention, resnet) for _ in range(layers)] if attention else []
        self.downsamplers = [LineDownsample(cout, stride)] if stride else []


class LineMidBlock(MidBlock):
    """The bottom of the U."""

    def __init__(self, channels, attention, **resnet):
        self.resnets = [LineResnetBlock(channels, channels, **resnet) for _ in range(2)]
        self.attentions = [_attention(channels, attention, resnet)] if attention else []


class LineUpBlock(UpBlock):
    """One level of the ascent; each residual block gets the matching skip connection of the descent as further
    channels.
    """

    def __init__(self, cin, cout, skip_channels, attention, stride, dilations, **resnet):
        widths = [(cin if i == 0 else cout) + skip for i, skip in enumerate(skip_channels)]
        self.resnets = [
            LineResnetBlock(width, cout, **resnet, dilation=dilations[i % len(dilations)])
            for i, width in enumerate(widths)
        ]
        self.attentions = [_attention(cout, attention, resnet) for _ in widths] if attention else []
        self.upsamplers = [LineUpsample(cout, stride)] if stride else []


def _attention(channels, head_dim, resnet):
    return Attention(channels, head_dim, resnet["groups"], resnet["eps"])


@register("UNet1D")
class UNet1D(UNet2D):
    """Predicts the process's target from (x_t, t), with x_t (N, 1, L, in_channels) of any length L.

    patch: samples that the first convolution takes at a time, and the last returns. block_out_channels: channels of
    every level, from the top. strides: how many times shorter the next level is, one fewer than levels. kernel_size: of
    the residual blocks' filters, odd. dilations: of the residual blocks of a level, in turn. attention: levels that
    have it; add_attention: whether the bottom has it. The other options are those of UNet2D.
    """

    def __init__(
        self,
        *,
        sample_size=None,
        in_channels=1,
        out_channels=1,
        patch=4,
        block_out_channels=(32, 64, 96, 128),
        strides=(4, 4, 4),
        kernel_size=3,
        dilations=(1,),
        layers_per_block=1,
        attention=(),
        add_attention=True,
        attention_head_dim=8,
        norm_num_groups=8,
        norm_eps=1e-5,
        dropout=0.0,
        act_fn="silu",
        num_class_embeds=None,
        center_input_sample=False,
        time_embedding_type="positional",
        class_embed_type=None,
        flip_sin_to_cos=True,
        freq_shift=0,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        _check(self.config)
        channels, strides, levels = list(block_out_channels), [*strides, None], len(block_out_channels)
        temb_dim = 4 * channels[0]
        common = {"temb_dim": temb_dim, "groups": norm_num_groups, "eps": norm_eps, "dropout": dropout}
        common |= {"act": "silu" if act_fn == "swish" else act_fn, "size": kernel_size}
        heads = [attention_head_dim if i in attention else None for i in range(levels)]

        first = kernel_size if patch == 1 else 2 * patch - 1
        self.conv_in = LineConv(in_channels, channels[0], first, patch)
        self.time_proj = None
        self.time_embedding = TimestepEmbedding(channels[0], temb_dim)
        self.class_embedding = None if num_class_embeds is None else Embedding(num_class_embeds, temb_dim)

        skips, self.down_blocks, cin = [channels[0]], [], channels[0]
        for i, width in enumerate(channels):
            block = LineDownBlock(cin, width, layers_per_block, heads[i], strides[i], dilations, **common)
            self.down_blocks.append(block)
            skips += [width] * (layers_per_block + (strides[i] is not None))
            cin = width
        self.mid_block = LineMidBlock(cin, attention_head_dim if add_attention else None, **common)
        self.up_blocks = []
        for i in reversed(range(levels)):
            taken, stride = [skips.pop() for _ in range(layers_per_block + 1)], strides[i - 1] if i else None
            self.up_blocks.append(LineUpBlock(cin, channels[i], taken, heads[i], stride, dilations, **common))
            cin = channels[i]
        self.conv_norm_out = GroupNorm(norm_num_groups, channels[0], norm_eps, activation="silu")
        self.conv_out = LineConv(channels[0], patch * out_channels, kernel_size)
        self.initialize(seed)

    def checked(self, x):
        """x as a Tensor. Raises ValueError for lines that this network cannot take."""
        x = super().checked(x)
        if x.shape[1] != 1 or not x.shape[2]:
            raise ValueError(f"the 1-D U-Net takes lines (N, 1, L, C) with L of at least 1, got {x.shape}")
        return x

    def body(self, x, step, label=None):
        """As in UNet2D; the last convolution's channels hold `patch` samples each, which are unfolded and cropped to
        length.
        """
        n, _, length, _ = x.shape
        h = super().body(x, step, label)
        if self.config["patch"] == 1:
            return h
        h = h.reshape(n, 1, h.shape[2] * self.config["patch"], self.config["out_channels"])
        return h if h.shape[2] == length else h[:, :, :length]


def _check(config):
    """Raises ValueError for configurations that are not supported."""
    levels = len(config["block_out_channels"])
    if len(config["strides"]) != levels - 1 or any(s < 1 for s in (*config["strides"], config["patch"])):
        raise ValueError(
            f"strides needs {levels - 1} whole numbers of at least 1 (one less than block_out_channels), patch one, "
            f"got {config['strides']} and {config['patch']}"
        )
    if any(not 0 <= level < levels for level in config["attention"]):
        raise ValueError(f"attention names levels 0 to {levels - 1}, got {config['attention']}")
    if not config["dilations"] or any(d < 1 for d in config["dilations"]):
        raise ValueError(f"dilations must be whole numbers of at least 1, got {config['dilations']}")
    for option, values in {
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "act_fn": tuple(ACTIVATIONS),
    }.items():
        if config[option] not in values:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, values))}, got {config[option]!r}")
