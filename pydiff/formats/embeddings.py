"""Files of learned words (textual inversion: Gal et al. 2022, "An image is worth one word").

    {"<mine>": (C,) or (k, C)}                            learned_embeds.safetensors, .bin: diffusers
    {"name": "mine", "string_to_param": {"*": (k, C)}}    .pt, as the web interfaces write it
    {"emb_params": (k, C)}                                .safetensors of the same; the file's name is the word

None of them is unpickled, see pytorch.py.
"""

import contextlib
from pathlib import Path

import numpy as np

from pydiff.formats import pytorch, safetensors
from pydiff.formats.files import RegularFile
from pydiff.formats.safetensors import CheckpointError, Made, Weight
from pydiff.printed import expanded

MOST = 1 << 24  # bytes of a file


def read(path: str | Path) -> dict[str, np.ndarray]:
    """{word: its vectors (k, C) float32}. Raises CheckpointError for any other file."""
    path = expanded(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(RegularFile(path))
        if file.size > MOST:
            raise CheckpointError(f"{path} has {file.size} bytes, too many for a word: use another.")
        is_pickle = path.suffix in (".bin", ".pt", ".ckpt") or pytorch.is_archive(file)
        found = pytorch.tree(file, path) if is_pickle else safetensors.contents(file, path)
        words = _words(found, path)
        made = {word: np.atleast_2d(weight.read()) for word, weight in words.items()}
    for word, vectors in made.items():
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
            raise CheckpointError(f"{path} has {word!a:.40} of shape {vectors.shape}, expected vectors: use another.")
    return made


def _words(found, path) -> dict[str, Weight]:
    if isinstance(found, dict) and isinstance(found.get("string_to_param"), dict):
        vectors = list(found["string_to_param"].values())
        name = found.get("name") if isinstance(found.get("name"), str) else path.stem
        found = {name: vectors[0]} if len(vectors) == 1 else {}
    elif isinstance(found, dict) and set(found) == {"emb_params"}:
        found = {path.stem: found["emb_params"]}
    if not isinstance(found, dict) or not found or not all(isinstance(w, Weight) for w in found.values()):
        raise CheckpointError(f"{path} holds no words of one's own, which are names and their vectors: use another.")
    if set(found) & {"clip_l", "clip_g"}:
        raise CheckpointError(f"{path} is a word for Stable Diffusion XL, which pydiff does not open: use another.")
    if not all(
        isinstance(word, str) and word.strip() and len(weight.shape) in (1, 2) for word, weight in found.items()
    ):
        raise CheckpointError(f"{path} holds no words of one's own, which are names and their vectors: use another.")
    return found  # pyright: ignore[reportReturnType]


def pieces(word: str, vectors: np.ndarray):
    """The bytes of a word's file, as diffusers' load_textual_inversion reads it, piece by piece."""
    array = np.asarray(vectors, np.float32)
    return safetensors.pieces({word: Made(array.shape, lambda: array)}, "F32")
