"""Learning a word: the vectors of one new word are trained through a frozen model (Gal et al. 2022, "An image is worth
one word: personalizing text-to-image generation using textual inversion", section 3).

The loss is the one that the model was trained with, on a few images of the thing, each described by a short sentence
that contains the word; the gradient goes through the U-Net and the text encoder and changes only the word's vectors.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module, to_host
from pydiff.condition import Condition
from pydiff.data.order import batch_indices, mirrored
from pydiff.diffusion.loss import example_losses
from pydiff.diffusion.timesteps import draw_timesteps
from pydiff.nn import Module, Parameter
from pydiff.text.clip import Clip
from pydiff.training.config import LoopOptions, _at_least
from pydiff.training.task import Batch, Task

SENTENCES = (
    "a photo of {}", "one photo of {}", "a close photo of {}", "a good photo of {}", "a bright photo of {}",
    "a dark photo of {}", "a photo of one {}", "a picture of {}", "a drawing of {}", "a view of {}", "the {}",
)  # fmt: skip
IDS = "ids"  # the only array of a batch's condition: token numbers (N, T)


@dataclass(frozen=True, kw_only=True)
class InversionOptions(LoopOptions):
    """Options for learning a word."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 1
    """Images per step."""
    lr: float = 5e-3
    """Learning rate of AdamW."""
    warmup: int = 0
    """Steps over which the learning rate rises to its peak."""
    lr_schedule: Literal["cosine", "constant"] = "constant"
    """How the learning rate goes on: down to zero at the last step, or not at all."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    vectors: int = 1
    """How many vectors the word has: tokens that it takes of a prompt."""
    start: str = "thing"
    """A word that is near: where the vectors begin."""
    sentences: tuple[str, ...] = SENTENCES
    """What the images are told by, {} for the word; one of them is drawn for each."""
    flip: bool = False
    """Mirror half of the images left to right."""
    recompute: bool = True
    """Compute every block's inner values again for the gradient instead of keeping them: less memory, more time."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.sentences, list):
            object.__setattr__(self, "sentences", tuple(self.sentences))

    def check(self):
        """Returns these options, or raises ValueError for values that cannot work."""
        super().check()
        _at_least(self, "vectors", 1)
        if not self.sentences or any(sentence.count("{}") != 1 for sentence in self.sentences):
            raise ValueError("every sentence needs one {}, where the word comes")
        return self


class Word(Module):
    """The vectors of a word, (k, C), as the last rows of an otherwise frozen token embedding.

    table: the TokenEmbedding, whose last k rows are the word's.
    """

    def __init__(self, table, k: int):
        self._table = table
        self.vectors = Parameter(np.array(to_host(table.weight.data[-k:])))

    def children(self):
        """Only the vectors: the table belongs to the text encoder."""
        yield "vectors", self.vectors

    def forward(self, ids):
        """Vectors (N, T, C) of token numbers (N, T)."""
        ids, table = np.asarray(to_host(ids)), self._table.weight
        first = len(table) - len(self.vectors)
        known = ops.embedding(table, np.minimum(ids, first - 1))
        new = ops.embedding(self.vectors, np.maximum(ids - first, 0))
        is_new = array_module(known.data).asarray((ids >= first)[..., None].astype(known.dtype))
        return known * (1 - is_new) + new * is_new


class InversionTask(Task):
    """Learns the vectors of `word`, which `encoder` already contains (`Clip.learn`), as the last rows of its token
    embedding.

    dataset: data.Dataset of the images. network, process, codec, encoder: of a Stable Diffusion model. Inside
    `as_it_is`, their parameters, except the word's vectors, require no gradient.
    """

    unit = "images"

    def __init__(self, dataset, network, process, codec, encoder: Clip, word: str, options: InversionOptions):
        self.dataset, self.options, self.word = dataset, options.check(), word
        self.network, self.process, self.codec, self.encoder = network, process, codec, encoder
        self.tower = getattr(encoder.network, "text_model", encoder.network)
        self.model = Word(self.tower.embeddings.token_embedding, options.vectors)
        rows = [encoder.tokenizer.row(sentence.format(word), encoder.tokens) for sentence in options.sentences]
        self.rows = np.array(rows, np.int64)
        lost = [sentence for sentence, row in zip(options.sentences, self.rows, strict=True) if self._of_word(row) == 0]
        if lost:
            raise ValueError(f"the sentence {lost[0]!r:.80} is so long that the word is cut off; shorten it")
        self.latents = None

    def _of_word(self, row):
        return int((row >= len(self.tower.embeddings.token_embedding.weight) - self.options.vectors).sum())

    @contextlib.contextmanager
    def as_it_is(self):
        """Inside, the model requires no gradients, keeps little for backward, and reads the word's vectors being
        learned.
        """
        modules = [m for part in (self.network, self.tower) for _, m in part.named_modules()]
        parameters = [p for part in (self.network, self.tower) for p in part.parameters()]
        wanted, recomputed = [p.requires_grad for p in parameters], [m.recompute for m in modules]
        embeddings = self.tower.embeddings
        table = embeddings.token_embedding
        for p in parameters:
            p.requires_grad = False
        if self.options.recompute and hasattr(self.network, "recompute_blocks"):
            self.network.recompute_blocks()
        embeddings.token_embedding = self.model
        try:
            yield self
        finally:
            embeddings.token_embedding = table
            for p, before in zip(parameters, wanted, strict=True):
                p.requires_grad = before
            for module, before in zip(modules, recomputed, strict=True):
                module.recompute = before

    def batch(self, step, numbers):
        """Latents of images, mirrored or not, and a sentence for each, at drawn t; a pure function of (seed, step,
        numbers).
        """
        options, seed, numbers = self.options, self.options.seed, np.asarray(numbers)
        chosen = batch_indices(len(self.dataset), options.batch_size, step - 1, seed)[numbers]
        chosen = self.dataset.usable(chosen)
        shift = len(self.dataset) * mirrored(step, seed, numbers) if options.flip else 0
        x0 = self._encoded()[chosen + shift]
        t = draw_timesteps("uniform", self.process.schedule, seed, step, numbers, options.batch_size)
        shares = random.uniform(random.key(seed, random.CAPTION, numbers, step), dtype=np.float64)
        told = Condition({IDS: self.rows[(shares * len(self.rows)).astype(np.int64)]}, rows=len(numbers))
        return Batch(self.xp.asarray(x0), t, random.key(seed, random.NOISE, numbers, step), told)

    def _encoded(self):
        """Latents of all images, followed by those of the mirrored images if `flip`."""
        if self.latents is None:
            images = self.dataset.samples(self.dataset.usable(np.arange(len(self.dataset))))
            ways = [images, images[:, :, ::-1]] if self.options.flip else [images]
            self.latents = np.concatenate([self.codec.encode(way) for way in ways])
        return self.latents

    def losses(self, batch):
        """The error of the U-Net's prediction, given the states of the sentences, (N,)."""
        states = self.tower(batch.condition[IDS], skip=self.encoder.skip).last_hidden_state
        told = {"encoder_hidden_states": states}
        return example_losses(self.process, self.network, batch.x0, batch.t, batch.key, **told)

    def identity(self):
        """The images, the word, and a quick fingerprint of the model."""
        made = hashlib.sha256(json.dumps([self.network.config, self.tower.config, self.word], sort_keys=True).encode())
        for p in (*self.network.parameters()[:1], self.tower.final_layer_norm.weight):
            made.update(np.ascontiguousarray(p.numpy(), "<f4"))
        return {
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint(),
            "samples": [len(self.dataset), *self.dataset.shape],
            "codec": self.codec.to_config(),
            "model": f"the word {self.word} for the model {made.hexdigest()[:16]}",
        }
