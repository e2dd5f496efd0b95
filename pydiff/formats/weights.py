"""The weights of a network in a folder, under any of the names that diffusers gives such files.

diffusion_pytorch_model.safetensors                     one file
diffusion_pytorch_model.fp16.safetensors                of a variant: "fp16", "ema", ..
diffusion_pytorch_model-00001-of-00002.safetensors ..   shards, which ..safetensors.index[.fp16].json lists
diffusion_pytorch_model.bin, diffusion_model.pt         PyTorch's own, see pytorch.py

with weights.open_folder("unet") as found:
    found.weights, found.taken, found.others
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydiff.formats import pytorch, safetensors
from pydiff.formats.files import RegularFile, read_file
from pydiff.formats.safetensors import MAX_HEADER, CheckpointError, Weight, damaged, parse_json

STEM = "diffusion_pytorch_model"
OLD = "diffusion_model.pt"  # diffusers before 0.1
MAX_SHARDS = 1000
_SHARD = re.compile(r".*-\d{5}-of-\d{5}(\.[\w-]+)?\.(safetensors|bin)", re.ASCII)


class Found(NamedTuple):
    """weights: {name: Weight}, readable while the folder is open. taken: the file's name; others: of files not used,
    best first.
    """

    weights: dict[str, Weight]
    taken: str
    others: list[str]


def candidates(names, variant: str | None = None, stems: Sequence[str] = (STEM,)) -> list[str]:
    """The names among these that are weights or an index of shards, best first.

    Files without a variant come before those with one, safetensors before PyTorch's own, single files before shards.
    variant: only files of this variant. stems: what the names of weights start with.
    """
    ranked, stem = [], "|".join(stems)
    index_name = re.compile(rf"(?:{stem})\.(safetensors|bin)\.index(?:\.([\w-]+))?\.json", re.ASCII)
    single_name = re.compile(rf"(?:{stem})(?:\.([\w-]+))?\.(safetensors|bin)", re.ASCII)
    for name in names:
        if index := index_name.fullmatch(name):
            kind, of, sharded = index[1], index[2], True
        elif (single := single_name.fullmatch(name)) and not _SHARD.fullmatch(name):
            kind, of, sharded = single[2], single[1], False
        elif name == OLD:
            kind, of, sharded = "pt", None, False
        else:
            continue
        if variant is None or of == variant:
            ranked.append((of is not None, ("safetensors", "bin", "pt").index(kind), sharded, of != "fp16", name))
    return [name for *_, name in sorted(ranked)]


@contextlib.contextmanager
def open_folder(
    folder: Path, names, variant: str | None = None, stems: Sequence[str] = (STEM,), lasting: bool = False
) -> Iterator[Found]:
    """The best weights among the files with these names in a folder, open inside the `with`; lasting: also afterwards,
    see RegularFile. stems: see `candidates`.

    Raises CheckpointError if there are none, or if they are damaged.
    """
    found = candidates(names, variant, stems)
    if not found:
        kind = f"{stems[0]}.safetensors" if variant is None else f"{stems[0]}.{variant}.safetensors"
        shards = any(map(_SHARD.fullmatch, names))
        lacks = "; it has shards, and their index is missing" if shards else ""
        raise CheckpointError(f"{folder} holds {sorted(names)!a:.200}, expected {kind}{lacks}: complete the folder.")
    with contextlib.ExitStack() as stack:
        opened = _open_index if found[0].endswith(".json") else open_file
        yield Found(opened(folder / found[0], stack, lasting), found[0], found[1:])


def open_file(path: Path, stack: contextlib.ExitStack, lasting: bool = False) -> dict[str, Weight]:
    """The contents of one file, safetensors or PyTorch's. stack: closes it. lasting: see RegularFile."""
    file = stack.enter_context(RegularFile(path, lasting))
    if path.suffix == ".safetensors" or not (path.suffix in (".bin", ".pt") or pytorch.is_archive(file)):
        return safetensors.contents(file, path)
    return pytorch.contents(file, path)


def _open_index(path: Path, stack: contextlib.ExitStack, lasting: bool) -> dict[str, Weight]:
    """The tensors that an index names, from files next to it and nowhere else."""
    table = parse_json(read_file(path, limit=MAX_HEADER).tobytes(), path).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise damaged(path, "it has no weight_map of names to files")
    shards, weights = sorted(set(table.values())), {}
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(shards)} files, expected at most {MAX_SHARDS}: use another.")
    for shard in shards:
        if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", shard, re.ASCII) or shard.startswith("."):
            raise CheckpointError(f"{path} names the file {shard!a:.80}, expected one beside it: do not trust it.")
        if not os.path.exists(path.parent / shard):
            raise CheckpointError(f"{path.parent} lacks {shard!a:.80}, which {path.name} names: complete the folder.")
        opened = open_file(path.parent / shard, stack, lasting)
        for name in (name for name, file in table.items() if file == shard):
            if name not in opened:
                raise damaged(path, f"it says that {name!a:.60} is in {shard}, where it is not")
            weights[name] = opened[name]
    return weights
