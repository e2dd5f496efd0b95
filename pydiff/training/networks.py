"""Which network is trained on samples of which codec, by default."""

import math

from pydiff.models import ClipUNet, PointsMLP, UNet1D
from pydiff.training.config import build_unet, default_channels, levels_with_attention


def build_network(options, codec, embeddings=None, context=None):
    """The network for training on data encoded by this codec.

    embeddings: rows of the class embedding table, or None. context: channels of a text encoder's states, or None.
    Raises ValueError for a combination that has no network.
    """
    build = NETWORKS.get(codec.kind)
    return (
        build_unet(options, codec.shape, embeddings, context)
        if build is None
        else build(options, codec.shape, embeddings, context)
    )


def build_points(options, shape, embeddings, context):
    """The network for points (D,). options.channels: its width; options.layers: its residual blocks, 4 if 1."""
    if context is not None:
        raise ValueError("points cannot be trained with captions; leave them out (text='none') or use classes")
    if options.self_conditioning and options.variance == "learned":
        raise ValueError("points take self_conditioning or variance='learned', not both; leave one out")
    (dim,), width = shape, options.channels[0] if options.channels else 128
    return PointsMLP(
        in_channels=2 * dim if options.self_conditioning else dim,
        out_channels=2 * dim if options.variance == "learned" else dim,
        width=width,
        layers=options.layers if options.layers > 1 else 4,
        num_class_embeds=embeddings,
        dropout=options.dropout,
        seed=options.seed,
    )


def build_clip_unet(options, shape, embeddings, context):
    """The U-Net of clips (F, H, W, C): that of images of the frames' size, with temporal layers between.

    Where the options do not say, it has a level more, and half as many channels, than one of images, and attends on its
    lowest level alone: for the same time more clips are seen.
    """
    _, height, width, c = shape
    usual = default_channels(min(height, width))
    channels = options.channels or (usual[0] // 2, *usual)
    attends = [len(channels) - 1]
    if options.attention is not None:
        attends = levels_with_attention(options, channels, min(height, width))
    head_dim = [math.gcd(options.head_dim, n) for n in channels]
    made = ClipUNet(
        sample_size=height if height == width else [height, width],
        in_channels=2 * c if options.self_conditioning else c,
        out_channels=2 * c if options.variance == "learned" else c,
        block_out_channels=list(channels),
        layers_per_block=options.layers,
        down_block_types=[f"{'CrossAttn' * (i in attends)}DownBlock3D" for i in range(len(channels))],
        up_block_types=[f"{'CrossAttn' * (i in attends)}UpBlock3D" for i in reversed(range(len(channels)))],
        norm_num_groups=options.groups,
        temporal_dropout=options.dropout,
        frame_positions=True,
        pooled_context=context is not None,
        resnet_time_scale_shift="scale_shift",
        pixel_positions=True,
        activation="gelu",
        cross_attention_dim=context,
        attention_head_dim=head_dim[0] if len(set(head_dim)) == 1 else head_dim,
        num_class_embeds=embeddings,
        seed=options.seed,
    )
    return made.recompute_blocks(options.recompute)


def build_line_unet(options, shape, embeddings, context):
    """The U-Net for sounds (1, L, C): four samples at a time, each level a quarter of the one above.

    By default, levels of at most 128 positions have attention.
    """
    if context is not None:
        raise ValueError("sounds as waveforms cannot be trained with captions; use classes, or codec='spectrogram'")
    _, length, c = shape
    channels = options.channels or (32, 64, 96, 128)[: 2 if length < 512 else 3 if length < 2048 else 4]
    places = [-(-length // (4 * 4**level)) for level in range(len(channels))]
    attention = [i for i, n in enumerate(places) if i and n <= 128] if options.attention is None else options.attention
    made = UNet1D(
        in_channels=2 * c if options.self_conditioning else c,
        out_channels=2 * c if options.variance == "learned" else c,
        block_out_channels=list(channels),
        strides=[4] * (len(channels) - 1),
        dilations=[1, 4],
        layers_per_block=options.layers,
        attention=list(attention),
        attention_head_dim=options.head_dim,
        norm_num_groups=options.groups,
        dropout=options.dropout,
        num_class_embeds=embeddings,
        seed=options.seed,
    )
    return made.recompute_blocks(options.recompute)


NETWORKS = {"points": build_points, "frames": build_clip_unet, "waveform": build_line_unet}
