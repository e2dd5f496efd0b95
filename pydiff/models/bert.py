"""BERT, a transformer that reads a text in both directions (Devlin et al. 2019, "BERT: Pre-training of deep
bidirectional transformers for language understanding"), and all-MiniLM-L6-v2, which is one of six layers.

Structure, option names and parameter names are those of transformers' BertModel, so its checkpoints can be loaded. Its
pooler, which predicts whether one sentence follows another, is omitted.
"""

import numpy as np

from pydiff import ops
from pydiff.arrays import to_host
from pydiff.mistakes import at_least_one
from pydiff.models.registry import register
from pydiff.nn import LayerNorm, Linear, Module, TokenEmbedding
from pydiff.tensor import Tensor

ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_new": lambda x: ops.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate="tanh"),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
}


class Embeddings(Module):
    """The sum, normalised, of the vectors of the token, of its position, and of its sentence, of which there is only
    one.
    """

    def __init__(self, config):
        channels = config["hidden_size"]
        self.word_embeddings = TokenEmbedding(config["vocab_size"], channels)
        self.position_embeddings = TokenEmbedding(config["max_position_embeddings"], channels)
        self.token_type_embeddings = TokenEmbedding(config["type_vocab_size"], channels)
        self.LayerNorm = LayerNorm(channels, config["layer_norm_eps"])

    def forward(self, ids):
        places, first = np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.zeros(ids.shape, np.int64)
        words = self.word_embeddings(ids) + self.token_type_embeddings(first) + self.position_embeddings(places)
        return self.LayerNorm(words)


class SelfAttention(Module):
    """Every token attends to all tokens that key_mask allows."""

    def __init__(self, channels, heads):
        self.query, self.key, self.value = (Linear(channels, channels) for _ in range(3))
        self.heads = heads

    def forward(self, x, key_mask=None):
        return ops.attention(self.query(x), self.key(x), self.value(x), self.heads, key_mask=key_mask)


class Output(Module):
    """LayerNorm(dense(h) + x): BERT normalises after the addition."""

    def __init__(self, cin, channels, eps):
        self.dense, self.LayerNorm = Linear(cin, channels), LayerNorm(channels, eps)

    def forward(self, h, x):
        return self.LayerNorm(self.dense(h, add=x))


class AttentionLayer(Module):
    """x = output(self(x), x)"""

    def __init__(self, channels, heads, eps):
        self.self = SelfAttention(channels, heads)  # its name in checkpoints
        self.output = Output(channels, channels, eps)

    def forward(self, x, key_mask=None):
        return self.output(self.self(x, key_mask), x)


class Intermediate(Module):
    """The wide layer between two others: activation(dense(x))."""

    def __init__(self, channels, inner, activation):
        self.dense, self.activation = Linear(channels, inner), activation

    def forward(self, x):
        return self.activation(self.dense(x))


class Layer(Module):
    """x = attention(x);   x = output(intermediate(x), x)"""

    def __init__(self, channels, heads, inner, activation, eps):
        self.attention = AttentionLayer(channels, heads, eps)
        self.intermediate = Intermediate(channels, inner, activation)
        self.output = Output(inner, channels, eps)

    def forward(self, x, key_mask=None):
        x = self.attention(x, key_mask)
        return self.output(self.intermediate(x), x)


class Encoder(Module):
    """The layers, one after the other."""

    def __init__(self, layers):
        self.layer = layers

    def forward(self, x, key_mask=None):
        for layer in self.layer:
            x = layer(x, key_mask)
        return x


@register("BertModel", part=True)
class BertModel(Module):
    """Reads token numbers (N, T), T up to max_position_embeddings: their states (N, T, hidden_size).

    Options are those of transformers' BertConfig, with its defaults (`config` holds them). hidden_act: a name in
    ACTIVATIONS. Dropout, which is for training, is not supported. seed: of the initial weights. Raises ValueError for
    options that are not supported.
    """

    def __init__(
        self, *, vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2,
        layer_norm_eps=1e-12, seed=0,
    ):  # fmt: skip
        self.config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        _check(self.config)
        self.embeddings = Embeddings(self.config)
        layer = hidden_size, num_attention_heads, intermediate_size, ACTIVATIONS[hidden_act], layer_norm_eps
        self.encoder = Encoder([Layer(*layer) for _ in range(num_hidden_layers)])
        self.initialize(seed)

    def forward(self, ids, attention_mask=None):
        """ids: integers (N, T). attention_mask: (N, T), 0 for padding, which is not attended to."""
        ids = np.asarray(to_host(ids))
        places = self.config["max_position_embeddings"]
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 1 <= ids.shape[1] <= places:
            raise ValueError(f"token numbers must be integers (N, 1 .. {places}), got {ids.dtype} {ids.shape}")
        mask = None
        if attention_mask is not None:
            mask = np.asarray(to_host(attention_mask)) != 0
            if mask.shape != ids.shape:
                raise ValueError(f"attention_mask must be {ids.shape}, got {mask.shape}")
            mask = Tensor(mask)
        return self.encoder(self.embeddings(ids), mask)

    def load_state_dict(self, state):
        """Also accepts the position numbers that old files store, and a pooler, which is ignored."""
        used = {n: a for n, a in state.items() if not n.startswith("pooler.") and not n.endswith(".position_ids")}
        return super().load_state_dict(used)


def options_of(config: dict) -> dict:
    """The keywords of BertModel in a config.json of transformers. Raises ValueError for an unsupported kind of BERT."""
    if config.get("model_type", "bert") != "bert":
        raise ValueError(f"this is a {config['model_type']!r:.40}, expected a BERT")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise ValueError("only a BERT that reads in both directions, with absolute places, is built here")
    known = BertModel.__init__.__kwdefaults__.keys() - {"seed"}  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return {name: value for name, value in config.items() if name in known}


def _check(config):
    """Raises ValueError for configurations that are not supported."""
    for option in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                   "max_position_embeddings", "type_vocab_size"):  # fmt: skip
        at_least_one(option, config[option])
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(
            f"{config['hidden_size']} channels do not divide into {config['num_attention_heads']} heads; choose "
            "another num_attention_heads"
        )
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {config['hidden_act']!r:.60}")
