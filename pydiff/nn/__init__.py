"""Layers: Module and Parameter, the layers a U-Net is made of, attention, and transformer blocks.

A Module is a plain object: its parameters and sub-modules are found among its attributes, so that the attribute path is
the parameter's name (`down_blocks.0.resnets.0.conv1.weight`). Names and default values are those of the checkpoints
that Hugging Face's diffusers writes; weights are stored channels-last here and transposed only in files.
"""

from pydiff.mistakes import of_nn
from pydiff.nn.attention import Attention, MultiHeadAttention
from pydiff.nn.layers import (
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    TokenEmbedding,
)
from pydiff.nn.module import Module, Parameter, _state, _with_the_same_dropout, blank, observe, room_for, training
from pydiff.nn.temporal import TemporalConvLayer, TransformerTemporalModel
from pydiff.nn.transformer import BasicTransformerBlock, FeedForward, Transformer2DModel, once_for_each

__all__ = [
    "Attention",
    "BasicTransformerBlock",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "FeedForward",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "TemporalConvLayer",
    "TokenEmbedding",
    "Transformer2DModel",
    "TransformerTemporalModel",
    "_state",
    "_with_the_same_dropout",
    "blank",
    "observe",
    "once_for_each",
    "room_for",
    "training",
]


def __getattr__(name):
    of_nn(name, __all__)
