"""CLIP's text tower: a transformer that reads a prompt from left to right (Radford et al. 2021, "Learning transferable
visual models from natural language supervision", section 2.4). Stable Diffusion is conditioned on its states.

Structure, option names and parameter names are those of transformers' CLIPTextModel and CLIPTextModelWithProjection, so
checkpoints are interchangeable. CLIP's second tower, which reads images, is not part of this file.
"""

from typing import NamedTuple

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.mistakes import at_least_one
from pydiff.models.registry import register
from pydiff.nn import LayerNorm, Linear, Module, TokenEmbedding
from pydiff.tensor import Tensor

ACTIVATIONS = {
    "quick_gelu": ops.quick_gelu,  # OpenAI's own models
    "gelu": ops.gelu,  # OpenCLIP's models
    "gelu_new": lambda x: ops.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate="tanh"),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
}
WRONG_END = 2  # the last token according to configurations from before mid-2023, wrongly


class TextStates(NamedTuple):
    """The tower's output for N prompts of T tokens.

    last_hidden_state: (N, T, C), of the last layer, or of an earlier one if requested, normalised. pooler_output: (N,
    C), the state at the end of each prompt. hidden_states: layers + 1 of (N, T, C), not normalised; the first is the
    embedding. text_embeds: (N, projection_dim) with a projection, else None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...]
    text_embeds: Tensor | None = None


class TextEmbeddings(Module):
    """The sum of token embeddings and position embeddings."""

    def __init__(self, vocabulary, places, channels):
        self.token_embedding = TokenEmbedding(vocabulary, channels)
        self.position_embedding = TokenEmbedding(places, channels)

    def forward(self, ids, places):
        return self.token_embedding(ids) + self.position_embedding(places)


class SelfAttention(Module):
    """Causal self-attention: every token attends to itself and to those before it. Without normalisation and residual
    connection, but `add` is added.
    """

    def __init__(self, channels, heads):
        self.k_proj, self.v_proj, self.q_proj = (Linear(channels, channels) for _ in range(3))
        self.out_proj = Linear(channels, channels)
        self.heads = heads

    def forward(self, x, add, key_mask=None):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(ops.attention(q, k, v, self.heads, causal=True, key_mask=key_mask), add=add)


class Mlp(Module):
    """Two linear layers around an activation, for every token separately; `add` is added."""

    def __init__(self, channels, inner, activation):
        self.fc1, self.fc2 = Linear(channels, inner), Linear(inner, channels)
        self.activation = activation

    def forward(self, x, add):
        return self.fc2(self.activation(self.fc1(x)), add=add)


class EncoderLayer(Module):
    """x = x + self_attn(layer_norm1(x));   x = x + mlp(layer_norm2(x))"""

    def __init__(self, channels, heads, inner, activation, eps):
        self.self_attn = SelfAttention(channels, heads)
        self.layer_norm1 = LayerNorm(channels, eps)
        self.mlp = Mlp(channels, inner, activation)
        self.layer_norm2 = LayerNorm(channels, eps)

    def forward(self, x, key_mask=None):
        x = self.self_attn(self.layer_norm1(x), add=x, key_mask=key_mask)
        return self.mlp(self.layer_norm2(x), add=x)


class Encoder(Module):
    """The layers in sequence. Returns all states, starting with the input."""

    def __init__(self, layers):
        self.layers = layers

    def forward(self, x, key_mask=None):
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], key_mask))
        return tuple(states)


@register("CLIPTextModel", part=True)
class CLIPTextModel(Module):
    """Reads token numbers (N, T), T up to max_position_embeddings: TextStates.

    Options are those of transformers' CLIPTextConfig, with its defaults (`config` holds them). hidden_act: a name in
    ACTIVATIONS. eos_token_id: the token that ends a prompt; the state at its first place is the pooled one. With 2,
    which old configurations say for any vocabulary, the pooled state is at the largest token number, as it was then.
    attention_dropout is ignored; initializer_*, pad_ and bos_token_id have no effect. seed: of the initial weights.
    Raises ValueError for unsupported options.
    """

    def __init__(
        self, *, vocab_size=49408, hidden_size=512, intermediate_size=2048, projection_dim=512, num_hidden_layers=12,
        num_attention_heads=8, max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        attention_dropout=0.0, initializer_range=0.02, initializer_factor=1.0, pad_token_id=1, bos_token_id=49406,
        eos_token_id=49407, seed=0,
    ):  # fmt: skip
        self.config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        _check(self.config)
        self.embeddings = TextEmbeddings(vocab_size, max_position_embeddings, hidden_size)
        layer = hidden_size, num_attention_heads, intermediate_size, ACTIVATIONS[hidden_act], layer_norm_eps
        self.encoder = Encoder([EncoderLayer(*layer) for _ in range(num_hidden_layers)])
        self.final_layer_norm = LayerNorm(hidden_size, layer_norm_eps)
        self.initialize(seed)

    def forward(self, ids, attention_mask=None, skip=0):
        """ids: integers (N, T). attention_mask: (N, T), 0 for tokens to be ignored; Stable Diffusion uses none, not
        even for padding. skip: how many of the last layers to skip.
        """
        ids = np.asarray(to_host(ids))
        places, layers = self.config["max_position_embeddings"], self.config["num_hidden_layers"]
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 1 <= ids.shape[1] <= places:
            raise ValueError(f"token numbers must be integers (N, 1 .. {places}), got {ids.dtype} {ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() < self.config["vocab_size"]):
            known = self.config["vocab_size"]
            raise ValueError(f"token numbers must lie in 0..{known - 1}, got {ids.min()}..{ids.max()}")
        if not 0 <= skip < layers:
            raise ValueError(f"{skip} layers cannot be skipped of {layers}; choose from 0 to {layers - 1}")
        x = self.embeddings(ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
        states = self.encoder(x, self._mask(attention_mask, ids, x))
        last = self.final_layer_norm(states[len(states) - 1 - skip])
        return TextStates(last, last[np.arange(len(ids)), self.ends(ids)], states)

    def _mask(self, attention_mask, ids, like):
        if attention_mask is None:
            return None
        mask = np.asarray(to_host(attention_mask)) != 0
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask must be {ids.shape}, got {mask.shape}")
        return Tensor(array_module(like.data).asarray(mask))

    def ends(self, ids):
        """The position of each prompt's end: (N,); 0 if it has none."""
        end = self.config["eos_token_id"]
        return ids.argmax(1) if end == WRONG_END else (ids == end).argmax(1)

    def load_state_dict(self, state):
        """Also accepts the names that transformers gave the parameters before version 5, see `renamed`."""
        return super().load_state_dict(renamed(state))


@register("CLIPTextModelWithProjection", part=True)
class CLIPTextModelWithProjection(Module):
    """CLIPTextModel, and the pooled state in the space that texts and images share: text_embeds (N, projection_dim)."""

    def __init__(self, **options):
        self.text_model = CLIPTextModel(**options)
        self.config = self.text_model.config
        self.text_projection = Linear(self.config["hidden_size"], self.config["projection_dim"], bias=False)
        self.initialize(options.get("seed", 0))

    def forward(self, ids, attention_mask=None, skip=0):
        states = self.text_model(ids, attention_mask, skip)
        return states._replace(text_embeds=self.text_projection(states.pooler_output))

    def load_state_dict(self, state):
        """Like CLIPTextModel's; ignores the position numbers that old files store."""
        return super().load_state_dict({name: a for name, a in state.items() if not name.endswith(".position_ids")})


def renamed(weights: dict) -> dict:
    """The parameters of a CLIPTextModel by their names since transformers 5.

    Earlier files, which are almost all of them, start every name with text_model. and also store the positions 0, 1, 2,
    .. An additional projection is omitted.
    """
    names = {name: name.removeprefix("text_model.") for name in weights}
    unused = ("embeddings.position_ids", "text_projection.weight")
    return {new: weights[old] for old, new in names.items() if new not in unused}


def _check(config):
    """One sentence for every configuration that these classes cannot build."""
    for option in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                   "max_position_embeddings"):  # fmt: skip
        at_least_one(option, config[option])
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(
            f"{config['hidden_size']} channels do not divide into {config['num_attention_heads']} heads; choose "
            "another num_attention_heads"
        )
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {config['hidden_act']!r:.60}")
    if not isinstance(config["eos_token_id"], int):
        raise ValueError(f"eos_token_id must be one token's number, got {config['eos_token_id']!r:.60}")
