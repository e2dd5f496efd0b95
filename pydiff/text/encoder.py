"""The interface of text encoders: captions in, arrays of a Condition out, with a null prompt, a limit and a
fingerprint.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from pydiff.printed import expanded

HIDDEN_STATES = "encoder_hidden_states"  # the name under which diffusers' networks take the vectors of a text


class PromptWarning(UserWarning):
    """Part of a prompt is not used."""


class TextEncoder:
    """Base class of all encoders. A subclass defines encode, remarks and fingerprint.

    kind: its name in options and files. languages: those it understands, None for any. tokens: the limit on a caption's
    tokens; the rest is cut off. width: numbers per token. The encoding of a caption depends only on that caption, not
    on others in the batch.

    network: the Module that computes what `encode` returns, if it is to be saved with the model, else None.
    trained_along: whether it is trained together with the U-Net; then `told` returns the encoder of the batches, and
    `with_network` an encoder with other weights. by_name: whether its kind alone identifies it; otherwise it comes from
    a folder.
    """

    kind = ""
    languages: tuple[str, ...] | None = None
    tokens: int
    width: int
    network = None
    trained_along = False
    by_name = True

    def prepared(self, captions: Sequence[str], seed: int) -> "TextEncoder":  # noqa: ARG002
        """The encoder for a training with these captions: itself, or one made for them."""
        return self

    def frozen(self) -> "TextEncoder":
        """This encoder with fixed weights, not trained any further."""
        return self

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """N captions as arrays with N rows each, by the names under which a network takes them. Never warns."""
        raise NotImplementedError

    def null(self) -> dict[str, np.ndarray]:
        """The row of each array that means "nothing asked for": that of the empty prompt."""
        return {name: array[0] for name, array in self.encode([""]).items()}

    def remarks(self, prompt: str) -> list[str]:
        """Sentences on what is not used of a prompt: unknown words, the part beyond the limit. Empty if all is used.

        Raises ValueError for a prompt of which nothing is understood.
        """
        raise NotImplementedError

    def understands(self, caption: str) -> bool:
        """Whether it understands anything in a caption."""
        raise NotImplementedError

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The unknown words in these captions, each once, the most frequent first."""
        raise NotImplementedError

    def rows(self, prompt: str) -> list[str]:  # noqa: ARG002
        """Names of the first states of a prompt, without the padding; [] if the encoder does not name them."""
        return []

    def fingerprint(self) -> str:
        """A string that changes with everything that changes the result of `encode`."""
        raise NotImplementedError

    def identity(self) -> dict:
        """A dict that must be unchanged when a run is resumed."""
        return {"kind": self.kind, "fingerprint": self.fingerprint()}

    def to_config(self) -> dict:
        """A dict for JSON; `from_config` turns it into an equal encoder."""
        return self.identity()

    @classmethod
    def from_config(cls, config: dict, network=None) -> "TextEncoder":  # noqa: ARG003
        """The encoder that `to_config` described. Raises ValueError if it would encode differently now.

        network: (configuration, state dict) of the network that was saved with it, or None.
        """
        return cls().checked(config)

    def checked(self, config: dict) -> "TextEncoder":
        """Returns itself; raises ValueError if it is not the encoder that `to_config` described."""
        if config.get("fingerprint") != self.fingerprint():
            raise ValueError(
                f"this model was trained with another {self.kind!r} encoder (fingerprint {config.get('fingerprint')}, "
                f"here {self.fingerprint()}); use the version of pydiff that trained it"
            )
        return self


ENCODERS: dict[str, type[TextEncoder]] = {}


Kind = TypeVar("Kind", bound=TextEncoder)


def register(encoder: type[Kind]) -> type[Kind]:
    """Makes an encoder known by its `kind`, so that a saved model with it can be opened. Also a class decorator."""
    ENCODERS[encoder.kind] = encoder
    return encoder


def kinds() -> list[str]:
    """The kinds of encoder that `named` knows."""
    return [kind for kind, encoder in ENCODERS.items() if encoder.by_name]


def named(kind: str) -> TextEncoder:
    """The encoder of this name, or the one in this folder, see folder.py. Raises ValueError if there is neither."""
    if kind in kinds():
        return ENCODERS[kind]()
    if expanded(kind).is_dir():
        from pydiff.text.folder import read

        return read(expanded(kind))
    raise ValueError(f"there is no text encoder {kind!r:.60}, nor such a folder; known are {', '.join(kinds())}")


def from_config(config: dict, network=None) -> TextEncoder:
    """The encoder that `to_config` described. Raises ValueError for an unregistered kind, or if it has changed.

    network: (configuration, state dict) of the network that was saved with it, or None.
    """
    kind = config.get("kind")
    if kind not in ENCODERS:
        raise ValueError(
            f"this model needs the text encoder {kind!r:.60}, which is not registered; known are {', '.join(ENCODERS)}"
        )
    return ENCODERS[kind].from_config(config, network)


LISTED = 8  # words that a remark names


def listed(words: Sequence[str]) -> str:
    """The words as 'a', 'b' and 'c': the first 8, and how many others there are."""
    more = [f"{len(words) - LISTED} others"] if len(words) > LISTED else []
    named = [f"{word!r:.30}" for word in words[:LISTED]] + more
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
