"""An encoder learned together with the U-Net from the data's captions, in any language.

Its tokenizer (subwords.py) is learned first, from the captions alone. In training, a batch carries the numbers of the
subwords, and the small transformer (models/text_transformer.py) that reads them gets its gradient through the U-Net's
cross-attention. Afterwards it is an encoder like any other: a prompt becomes the transformer's states, which can be
added and subtracted. It knows only what was in the captions; a word that none of them had is read letter by letter, and
means little.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pydiff.arrays import to_host
from pydiff.models.text_transformer import TextTransformer
from pydiff.nn import blank, room_for
from pydiff.tensor import no_grad
from pydiff.text.encoder import HIDDEN_STATES, TextEncoder, listed, register
from pydiff.text.subwords import PAD, START, Subwords, split

TOKEN_IDS = "token_ids"  # the name under which a batch carries the numbers of the subwords
LEAST, MOST = 16, 64  # limits on the subwords of a caption that are read
WIDTH = 64


def numbered(subwords: Subwords, captions: Sequence[str], tokens: int) -> np.ndarray:
    """(N, tokens) int64: START, the numbers of the subwords as far as there is room, and PAD up to the end."""
    ids = np.full((len(captions), tokens), PAD)
    ids[:, 0] = START
    for row, caption in zip(ids, captions, strict=True):
        pieces = subwords.encode(caption)[: tokens - 1]
        row[1 : 1 + len(pieces)] = pieces
    return ids


class Told(TextEncoder):
    """The encoder of the batches in training: returns the numbers of the subwords, for the network to read."""

    kind = "learned"

    def __init__(self, subwords, tokens):
        self.subwords, self.tokens = subwords, tokens

    def encode(self, captions: Sequence[str]):
        """{"token_ids": (N, tokens)}."""
        return {TOKEN_IDS: numbered(self.subwords, captions, self.tokens)}


@register
class Learned(TextEncoder):
    """Captions as the states of a small transformer: encoder_hidden_states (N, tokens, width) float32.

    subwords, network: of a training; without them, `prepared` makes an encoder for a training.
    """

    kind = "learned"
    width = WIDTH

    def __init__(
        self, subwords: Subwords | None = None, network: TextTransformer | None = None, trained_along: bool = True
    ):
        self.subwords: Any = subwords
        self.network: Any = network
        self.trained_along = trained_along
        if network is not None:
            self.tokens, self.width = network.config["tokens"], network.config["width"]

    def prepared(self, captions: Sequence[str], seed: int) -> "Learned":
        """An encoder with a tokenizer learned from these captions and an untrained network.

        It reads as many subwords as the longest of the captions has, from 16 to 64.
        """
        if self.network is not None:
            return self
        subwords = Subwords.learned(captions)
        longest = max((len(subwords.encode(caption)) for caption in captions), default=0) + 1
        tokens = min(max(-(-longest // 8) * 8, LEAST), MOST)
        network = TextTransformer(pieces=len(subwords), tokens=tokens, width=WIDTH, seed=seed)
        return Learned(subwords, network)

    def told(self) -> TextEncoder:
        """The encoder of the batches while the network is trained with the U-Net."""
        return Told(self.subwords, self.tokens)

    def with_network(self, network) -> "Learned":
        """The same tokenizer with another network of the same configuration."""
        return Learned(self.subwords, network)

    def frozen(self) -> "Learned":
        """This encoder with fixed weights, for the training of another U-Net."""
        return Learned(self.subwords, self.network, trained_along=False)

    def encode(self, captions: Sequence[str]):
        """The states with the network's current weights, computed on its device."""
        ids = numbered(self.subwords, captions, self.tokens)
        with no_grad():
            return {HIDDEN_STATES: to_host(self.network(ids).data)}

    def remarks(self, prompt: str):
        """Sentences on words that no caption had, and on what is beyond the limit."""
        found, unknown = [], self.unknown([prompt])
        if unknown:
            verb = "was" if len(unknown) == 1 else "were"
            found.append(
                f"{listed(unknown)} {verb} in none of the captions that this model has learned from, and {verb} read "
                "letter by letter"
            )
        pieces = self.subwords.encode(prompt)
        if (beyond := len(pieces) - (self.tokens - 1)) > 0:
            found.append(
                f"this model reads {self.tokens - 1} pieces of words, no caption was longer; {beyond} more at the end "
                "of the prompt are not used"
                if self.tokens < MOST
                else f"a prompt has at most {self.tokens - 1} pieces of words; {beyond} more at the end are not used"
            )
        return found

    def understands(self, caption: str):
        """Whether there is a word in the caption; numbers alone, such as the corners of boxes, are not a caption."""
        return any(any(map(str.isalpha, word)) for word in split(caption))

    def unknown(self, captions: Sequence[str]):
        """The words of these captions that were in none of the captions of its training."""
        known = set() if self.subwords is None else set(self.subwords.words)
        if self.subwords is None:
            return []  # it will learn them
        words = Counter(
            word for caption in captions for word in split(caption) if word not in known and any(map(str.isalpha, word))
        )
        return [word for word, _ in words.most_common()]

    def rows(self, prompt: str):
        """[start], and the subwords of the prompt."""
        pieces = self.subwords.encode(prompt)[: self.tokens - 1]
        return ["[start]", *(self.subwords.spelled(piece).strip() for piece in pieces)]

    def fingerprint(self):
        """Of the tokenizer and the network's configuration; and of its weights, unless they are in training."""
        parts = [self.subwords.fingerprint(), *map(str, self.network.config.values())]
        if not self.trained_along:
            digest = hashlib.sha256()
            for parameter in self.network.parameters():
                digest.update(np.ascontiguousarray(parameter.numpy(), "<f4"))
            parts.append(digest.hexdigest()[:32])
        return "-".join(parts)

    def to_config(self):
        """A dict for JSON, including the tokenizer; the network is saved beside it."""
        kind = {} if self.trained_along else {"trained_along": False}
        return {**self.identity(), **kind, "tokenizer": self.subwords.to_config()}

    @classmethod
    def from_config(cls, config, network=None):
        """The encoder that `to_config` described. network: (its configuration, its state dict)."""
        if network is None:
            raise ValueError("the network that reads the captions is not beside the model")
        options, weights = network
        with blank(room_for(weights)):
            made = TextTransformer(**{k: v for k, v in options.items() if not k.startswith("_")})
        made.load_state_dict(weights)
        encoder = cls(Subwords(**config["tokenizer"]), made, config.get("trained_along", True))
        if len(encoder.subwords) != made.config["pieces"] or config.get("fingerprint") != encoder.fingerprint():
            raise ValueError("the tokenizer and the network that reads the captions do not belong together")
        return encoder
