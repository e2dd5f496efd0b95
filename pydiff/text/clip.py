"""Prompts as the hidden states of CLIP's text tower, the condition of Stable Diffusion.

    a prompt -> 77 token numbers (bpe.py) -> the tower (models/clip.py) -> encoder_hidden_states (77, C)

There is no padding mask: a network that was trained with the states of the padding needs them. A network that is
trained from scratch, `pydiff train .. --text FOLDER`, gets only the first 32. A learned word (textual inversion: Gal et
al. 2022, "An image is worth one word") is one or several additional vectors in the token embedding, see `learn`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pydiff.models import build
from pydiff.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from pydiff.nn import room_for
from pydiff.tensor import no_grad
from pydiff.text import bpe
from pydiff.text.bpe import Special, Tokenizer
from pydiff.text.encoder import HIDDEN_STATES, TextEncoder, register

CACHED = 256 << 20  # bytes of states that are cached, caption by caption
TOKENS = 32  # of a prompt in training, including start and end


@register
class Clip(TextEncoder):
    """network: the text tower. tokenizer: made for its token embedding. tokens: the length of a row of token numbers,
    including start and end. skip: how many of the last layers are skipped, before the final normalisation.
    """

    kind = "clip"
    languages = ("en",)
    by_name = False

    def __init__(self, network: Any, tokenizer: Tokenizer, tokens: int = 77, skip=0):
        self.network, self.tokenizer, self.skip = network, tokenizer, skip
        self.tokens = min(tokens, network.config["max_position_embeddings"])
        self.width = network.config["hidden_size"]
        self._states, self.learned = {}, {}  # learned word -> how many vectors it has

    @property
    def own_tokens(self) -> int:
        """Rows at the end of the token embedding that belong to learned words."""
        return sum(self.learned.values())

    def encode(self, captions: Sequence[str]):
        """encoder_hidden_states (N, tokens, width) float32, of equal length for every caption."""
        return {HIDDEN_STATES: np.stack([self._encoded(caption) for caption in captions])}

    def _encoded(self, caption):
        if caption not in self._states:
            most = max(1, CACHED // (4 * self.tokens * self.width))
            while len(self._states) >= most:
                del self._states[next(iter(self._states))]
            ids = np.array([self.tokenizer.row(caption, self.tokens)])
            with no_grad():
                self._states[caption] = self.network(ids, skip=self.skip).last_hidden_state.numpy()[0]
        return self._states[caption]

    def remarks(self, prompt: str):
        """Sentences on the part of a prompt that is beyond the limit of tokens and is not used."""
        numbers, most = self.tokenizer.numbers(prompt), self.tokens - 2
        if len(numbers) <= most:
            return []
        lost = self.tokenizer.text(numbers[most:])
        return [f"a prompt has at most {most} tokens; {len(numbers) - most} more are not used: {lost!r:.80}"]

    def understands(self, caption: str):
        """Whether the caption is not blank: any text can be tokenized."""
        return bool(caption.strip())

    def unknown(self, captions: Sequence[str]):  # noqa: ARG002
        """An empty list: unknown words are spelled."""
        return []

    def rows(self, prompt: str):
        """<start>, the prompt's tokens that fit, <end>."""
        numbers = self.tokenizer.numbers(prompt)[: self.tokens - 2]
        return ["<start>", *(self.tokenizer.text([number]) for number in numbers), "<end>"]

    def to_config(self):
        """A dict for JSON, including the tokenizer unless it is OpenAI's; the network is saved beside it."""
        limits = {"tokens": self.tokens, "skip": self.skip}
        return {**self.identity(), **limits, "tokenizer": tokenizer_config(self.tokenizer)}

    @classmethod
    def from_config(cls, config, network=None):
        """The encoder that `to_config` described. network: (its configuration, its state dict)."""
        if network is None:
            raise ValueError("the network that reads the captions is not beside the model")
        options, weights = network
        name = options.get("_class_name", CLIPTextModel.__name__)
        if name not in (CLIPTextModel.__name__, CLIPTextModelWithProjection.__name__):
            raise ValueError(f"the network that reads the captions is a {name!r:.60}, expected CLIP's")
        made = build(name, {key: value for key, value in options.items() if not key.startswith("_")}, room_for(weights))
        tokenizer = tokenizer_from(config["tokenizer"])
        return cls(made.load_state_dict(weights), tokenizer, config["tokens"], config["skip"]).checked(config)

    def fingerprint(self):
        """SHA-256 of weights and vocabulary, with tokens and skip."""
        digest = hashlib.sha256("\n".join(self.tokenizer.vocabulary).encode())
        for parameter in self.network.parameters():
            digest.update(np.ascontiguousarray(parameter.numpy(), "<f4"))
        return f"{digest.hexdigest()[:32]}-{self.tokens}-{self.skip}"

    @property
    def table(self):
        """The token embedding: the parameter (tokens, width) that holds a vector for every token."""
        tower = getattr(self.network, "text_model", self.network)
        return tower.embeddings.token_embedding.weight

    def learn(self, word: str, vectors):
        """Makes `word`, wherever it occurs in a prompt and in any case, stand for these vectors (k, width) or (width,).

        Raises ValueError for vectors of another width or that are not finite, and for an empty word.
        """
        vectors = np.atleast_2d(np.asarray(vectors))
        if vectors.ndim != 2 or vectors.shape[1] != self.width or not len(vectors) or vectors.dtype.kind != "f":
            raise ValueError(
                f"the word {word!r:.60} has vectors of shape {vectors.shape}, and this model's have {self.width} "
                "numbers: it was made for another model"
            )
        if not word.strip():
            raise ValueError("a word of one's own needs a name, such as '<mine>'")
        if not np.isfinite(vectors).all():
            raise ValueError(f"the word {word!r:.60} has numbers that are not finite")
        table, first = self.table, len(self.table)
        table.data = np.concatenate([table.data, vectors.astype(table.data.dtype)])
        table.grad = table.grad_buffer = None
        self.network.config["vocab_size"] = first + len(vectors)
        self.tokenizer = self.tokenizer.with_special(word, range(first, first + len(vectors)))
        self.learned[f"{word} " * (word in self.learned) + word] = len(vectors)
        self._states.clear()

    def relearn(self, word: str, vectors):
        """Replaces the vectors (k, width) of a learned word."""
        numbers = next(list(s.numbers) for s in reversed(self.tokenizer.specials) if s.text == word)
        self.table.data[numbers] = vectors
        self._states.clear()


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    """A dict for JSON; `tokenizer_from` turns it into an equal tokenizer. OpenAI's, which is shipped, is only named."""
    told = {
        "vocabulary": tokenizer.vocabulary,
        "merges": [" ".join(pair) for pair in tokenizer.ranks],
        "specials": [[text, list(numbers), normalized] for text, numbers, normalized in tokenizer.specials],
        "ends": [tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.unknown],
    }
    for pad in (bpe.END, "!"):
        shipped = bpe.clip(pad)
        if told["vocabulary"] == shipped.vocabulary and tokenizer.ranks == shipped.ranks and (
            tokenizer.specials == shipped.specials and tokenizer.pad == shipped.pad
        ):  # fmt: skip
            return {"openai": pad}
    return told


def tokenizer_from(config: dict) -> Tokenizer:
    """The tokenizer that `tokenizer_config` described."""
    if "openai" in config:
        return bpe.clip(config["openai"])
    specials = [Special(text, tuple(numbers), normalized) for text, numbers, normalized in config["specials"]]
    merges = [tuple(pair.split(" ")) for pair in config["merges"]]
    return Tokenizer(config["vocabulary"], merges, specials, *config["ends"])
