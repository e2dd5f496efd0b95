"""What every text encoder is: captions in, arrays of a Condition out, a null prompt, a limit, a fingerprint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

HIDDEN_STATES = "encoder_hidden_states"  # the name under which diffusers' networks take the vectors of a text


class PromptWarning(UserWarning):
    """A prompt is used, but not all of it."""


class TextEncoder:
    """Base of all encoders. A subclass defines encode, remarks and fingerprint.

    kind: its name in options and files. languages: those it understands, None for any. tokens: how many it takes of a
    caption, the rest is cut. width: numbers for each. What a caption becomes depends on that caption alone, not on the
    others beside it.

    network: the Module that makes what `encode` gives, if it is to be saved with the model, else None. trained_along:
    whether that is trained with the U-Net; then `told` gives the encoder of the batches, and `with_network` one with
    other weights. by_name: whether its kind alone says which one it is; another comes from a folder.
    """

    kind = ""
    languages: tuple[str, ...] | None = None
    tokens: int
    width: int
    network = None
    trained_along = False
    by_name = True

    def prepared(self, captions: Sequence[str], seed: int) -> "TextEncoder":  # noqa: ARG002
        """The encoder for a training with these captions: itself, or one that is made for them."""
        return self

    def frozen(self) -> "TextEncoder":
        """The encoder as it is, not to be trained any further."""
        return self

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """N captions to arrays with N rows each, by the names under which a network takes them. Never complains."""
        raise NotImplementedError

    def null(self) -> dict[str, np.ndarray]:
        """The row of each array that says "nothing asked for": that of the empty prompt."""
        return {name: array[0] for name, array in self.encode([""]).items()}

    def remarks(self, prompt: str) -> list[str]:
        """Sentences on what of a prompt is not used: unknown words, what is beyond the limit. Empty if all is.

        ValueError, in one sentence, for a prompt of which nothing is understood.
        """
        raise NotImplementedError

    def understands(self, caption: str) -> bool:
        """Whether it makes anything of a caption."""
        raise NotImplementedError

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words of these captions that it does not know, each once, the most frequent first."""
        raise NotImplementedError

    def rows(self, prompt: str) -> list[str]:  # noqa: ARG002
        """What the first states of a prompt stand for, in words; [] if nobody says. The rest is filled up."""
        return []

    def fingerprint(self) -> str:
        """Changes with everything that changes what `encode` gives."""
        raise NotImplementedError

    def identity(self) -> dict:
        """What a run that goes on must find unchanged."""
        return {"kind": self.kind, "fingerprint": self.fingerprint()}

    def to_config(self) -> dict:
        """For JSON; `from_config` of it is an equal encoder."""
        return self.identity()

    @classmethod
    def from_config(cls, config: dict, network=None) -> "TextEncoder":  # noqa: ARG003
        """The encoder that `to_config` described. ValueError where it would encode otherwise today.

        network: (configuration, state dict) of the network that was saved with it, or None.
        """
        return cls().checked(config)

    def checked(self, config: dict) -> "TextEncoder":
        """Itself, if it is the one that `to_config` described. ValueError if not."""
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
    """The encoder of this name, or the one in this folder, see folder.py; ValueError where there is neither."""
    if kind in kinds():
        return ENCODERS[kind]()
    if Path(kind).expanduser().is_dir():
        from pydiff.text.folder import read

        return read(Path(kind).expanduser())
    raise ValueError(f"there is no text encoder {kind!r:.60}, nor such a folder; known are {', '.join(kinds())}")


def from_config(config: dict, network=None) -> TextEncoder:
    """The encoder that `to_config` described; ValueError for a kind nobody has registered, or one that has changed.

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
    """'a', 'b' and 'c'; the first 8 and how many others."""
    more = [f"{len(words) - LISTED} others"] if len(words) > LISTED else []
    named = [f"{word!r:.30}" for word in words[:LISTED]] + more
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
