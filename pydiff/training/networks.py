"""Which network learns from samples of which codec, where the caller brings none."""

from pydiff.models import UNet1D
from pydiff.training.config import build_unet


def build_network(options, codec, embeddings=None, context=None):
    """The network of a run on what this codec makes of the data.

    embeddings: rows of the table of classes, or None. context: channels of a text encoder's states, or None.
    ValueError for a combination that there is no network for.
    """
    build = NETWORKS.get(codec.kind, build_unet)
    return build(options, codec.shape, embeddings, context)


def build_line_unet(options, shape, embeddings, context):
    """The U-Net of sounds (1, L, C): four samples at a time, every level a quarter of the one above.

    Attention on levels of at most 128 places, where options.attention does not say.
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


NETWORKS = {"waveform": build_line_unet}
