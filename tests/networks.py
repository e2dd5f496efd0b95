"""Networks and codecs of other kinds than pydiff's own, as somebody might write them: for the tests of the rooms."""

import numpy as np

from pydiff import codec, models
from pydiff.arrays import to_host
from pydiff.codec import Codec, from_uint8, to_uint8
from pydiff.models import UNet2D
from pydiff.nn import Attention
from pydiff.tensor import Tensor


@models.register("TestContextUNet")
class ContextUNet(UNet2D):
    """Our U-Net with attention to a context (N, T, context_channels) behind its first convolution."""

    def __init__(self, *, context_channels, seed=0, **config):
        super().__init__(seed=seed, **config)
        self.config["context_channels"] = context_channels
        channels = self.config["block_out_channels"][0]
        self.context = Attention(channels, channels // 2, 2, context_channels=context_channels)
        self.initialize(seed)

    def forward(self, x, t, class_labels=None, encoder_hidden_states=None):
        x = self.checked(x)
        return self.body(x, **self.encoded(x.data, t, class_labels, encoder_hidden_states))

    def encoded(self, like, t, class_labels=None, encoder_hidden_states=None):
        if encoder_hidden_states is None:
            raise ValueError("this model needs encoder_hidden_states")
        encoded = super().encoded(like, t, class_labels)
        return encoded | {"context": Tensor(encoder_hidden_states.astype(like.dtype))}

    def body(self, x, step, label=None, context=None):
        conv_in = self.conv_in
        try:
            self.conv_in = lambda x: self.context(conv_in(x), context)
            return super().body(x, step, label)
        finally:
            self.conv_in = conv_in


def context_unet(context_channels, classes=None, seed=0):
    """A tiny one for grey images of 8 x 8 pixels. classes: rows of its table of classes."""
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    small = {"layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4, "sample_size": 8}
    more = {"in_channels": 1, "out_channels": 1, "num_class_embeds": classes}
    return ContextUNet(context_channels=context_channels, seed=seed, **blocks, **small, **more)


@codec.register
class Folded(Codec):
    """Latents that are a linear map of the pixels: 2 x 2 blocks become channels, rotated, moved and made large.

    (N, H, W, C) uint8 <-> (N, H / 2, W / 2, 4 C), far outside of [-1, 1].
    """

    kind = "test folded"
    SCALE, SHIFT = 6.0, 2.5

    def __init__(self, image_shape):
        self.image_shape = tuple(image_shape)
        channels = 4 * self.image_shape[2]
        rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))
        self.rotation = rotation.astype(np.float32)

    @property
    def shape(self):
        h, w, c = self.image_shape
        return h // 2, w // 2, 4 * c

    def encode(self, samples):
        if np.shape(samples)[1:] != self.image_shape:
            raise ValueError(f"images are {np.shape(samples)}, expected (N, {self.image_shape})")
        return fold(from_uint8(samples)) @ self.rotation * self.SCALE + self.SHIFT

    def decode(self, x):
        return to_uint8(unfold((to_host(x) - np.float32(self.SHIFT)) / np.float32(self.SCALE) @ self.rotation.T))

    def encode_mask(self, mask):
        """Drawn where any of the four pixels is."""
        return fold(np.broadcast_to(mask, (*mask.shape[:3], 1))).max(-1, keepdims=True)

    def show_noise(self, eps):
        return to_uint8(unfold(to_host(eps)) / 3.0)

    def to_config(self):
        return {"kind": self.kind, "image_shape": list(self.image_shape)}

    @classmethod
    def from_config(cls, config):
        return cls(config["image_shape"])


def fold(x):
    """(N, H, W, C) -> (N, H / 2, W / 2, 4 C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def unfold(x):
    """The inverse of fold."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)
