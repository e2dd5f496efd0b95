"""CLIP's text tower and its tokenizer as transformers writes them: the folders text_encoder/ and tokenizer/.

text_encoder/   config.json; model.safetensors or pytorch_model.bin, variants and shards of them
tokenizer/      vocab.json and merges.txt, or tokenizer.json; tokenizer_config.json, special_tokens_map.json
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydiff.formats import weights as weight_files
from pydiff.formats.diffusers.folder import CONFIG, read_json
from pydiff.formats.diffusers.parameters import Checked, fill, misfits, with_defaults
from pydiff.formats.files import disk, read_file
from pydiff.formats.safetensors import CheckpointError, Weight, damaged, parse_json
from pydiff.formats.schema import ANYTHING, NULL, TEXT, checked, either, number, whole
from pydiff.models import MODELS, build
from pydiff.models.clip import renamed
from pydiff.nn import Module, room_for
from pydiff.text.bpe import END, START, Special, Tokenizer

STEMS = ("model", "pytorch_model")  # transformers' names of weights
CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
MAX_VOCABULARY = 16 << 20  # bytes; CLIP's tokenizer.json has 3.6 million
MAX_TOKENS = 1 << 16  # of a prompt; transformers says 10^30 where it knows no limit

_SIZE, _TOKEN = whole(1, 1 << 20), either(NULL, whole(0, 1 << 31))
_IGNORED = ("bos_token_id", "pad_token_id", "initializer_range", "initializer_factor")
RULES = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "projection_dim": either(NULL, _SIZE),
    "num_hidden_layers": whole(1, 1024),
    "num_attention_heads": _SIZE,
    "max_position_embeddings": whole(2, MAX_TOKENS),
    "hidden_act": TEXT,
    "layer_norm_eps": number(0, 1),
    "attention_dropout": number(0, 1),
    "eos_token_id": whole(0, 1 << 31),
    **dict.fromkeys(_IGNORED, ANYTHING),
}


def read_config(config: Mapping, source: object, known_class: str | None = None) -> Checked:
    """The options in a config.json of transformers. known_class: what model_index.json says.

    Raises CheckpointError for another class and for impossible values.
    """
    named = config.get("architectures")
    found = named[0] if isinstance(named, list) and named else known_class or CLASSES[0]
    if found not in CLASSES or config.get("model_type", "clip_text_model") != "clip_text_model":
        kind = config.get("model_type", found) if found in CLASSES else found
        raise CheckpointError(f"{source} is of the text encoder {kind!a:.60}, expected {CLASSES[0]}: use another.")
    known, _ = checked(config, RULES, source)  # transformers writes many options that every model has
    known = {name: value for name, value in known.items() if name not in _IGNORED and value is not None}
    return Checked(str(found), known, [])


def read_model(
    checked_config: Checked, weights: Mapping[str, Weight], source: object, deferred: bool = False
) -> Module:
    """The tower with these weights; deferred: see parameters.fill.

    Raises CheckpointError if configuration and weights do not match.
    """
    class_name, config, _ = checked_config
    bare = compared(checked_config, weights, source)
    with misfits(source):
        model = build(class_name, config, room_for(weights))
        if class_name == CLASSES[0]:
            fill(model, bare, deferred)
        else:
            projection = {"text_projection.weight": weights["text_projection.weight"]}
            fill(model, {f"text_model.{name}": weight for name, weight in bare.items()} | projection, deferred)
    return model


def compared(checked_config: Checked, weights: Mapping[str, Weight], source: object) -> dict[str, Weight]:
    """The tower's weights, under their bare names, found to have the sizes in the configuration; see unet.compared."""
    bare = renamed(dict(weights))
    with misfits(source):
        _compare(with_defaults(MODELS[CLASSES[0]], checked_config.config), bare, source)
    return bare


def _compare(config, weights, source):
    """Checks sizes in the configuration against shapes in the file, so that nothing larger than the file is built."""
    width = config["hidden_size"]
    expected = {
        "embeddings.token_embedding.weight": (config["vocab_size"], width),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
        "final_layer_norm.weight": (width,),
    }
    for layer in range(int(config["num_hidden_layers"])):
        expected[f"encoder.layers.{layer}.mlp.fc1.weight"] = (config["intermediate_size"], width)
    beginning = f"{source} describes another text encoder than the weights beside it"
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{beginning}: {name} is missing.")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{beginning}: {name} has shape {tuple(weights[name].shape)}, not {shape}.")


def open_folder(
    folder: Path, variant: str | None = None, known_class: str | None = None, deferred: bool = False
) -> tuple[Module, list[str]]:
    """(tower, notes) of a folder with config.json and weights. Raises CheckpointError if it is damaged or
    incomplete.
    """
    names = _names(folder)
    if CONFIG not in names:
        raise CheckpointError(
            f"{folder} holds {sorted(names)!a:.200}, expected {CONFIG} and weights: complete the folder."
        )
    checked_config = read_config(read_json(folder / CONFIG), folder / CONFIG, known_class)
    with weight_files.open_folder(folder, names, variant, STEMS, deferred) as found:
        return read_model(checked_config, found.weights, folder / CONFIG, deferred), checked_config.notes


def open_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """(tokenizer, maximum tokens per prompt) of a folder. Raises CheckpointError if it is damaged or of
    another kind.
    """
    names = _names(folder)
    said = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    kind = said.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise CheckpointError(f"{folder} is of the tokenizer {kind!a:.60}, expected CLIPTokenizer: use another.")
    if "special_tokens_map.json" in names:
        said = read_json(folder / "special_tokens_map.json") | said
    if {"vocab.json", "merges.txt"} <= set(names):
        vocabulary = _json(folder / "vocab.json")
        lines = read_file(folder / "merges.txt", limit=MAX_VOCABULARY).tobytes()
        merges, added = _lines(lines, folder / "merges.txt"), []
    elif "tokenizer.json" in names:
        vocabulary, merges, added = _tokenizer_json(folder / "tokenizer.json")
    else:
        raise CheckpointError(
            f"{folder} holds {sorted(names)!a:.200}, expected vocab.json and merges.txt: complete the folder."
        )
    tokenizer = _tokenizer(vocabulary, merges, said, added, folder)
    most = said.get("model_max_length", 77)
    return tokenizer, most if type(most) is int and 2 < most <= MAX_TOKENS else MAX_TOKENS


def _tokenizer(vocabulary, merges, said, added, source) -> Tokenizer:
    """The tokenizer with a vocabulary {token: number} and the special tokens that the other files describe."""
    whole_numbers = all(type(n) is int and 0 <= n < 1 << 31 for n in vocabulary.values())
    if not vocabulary or not whole_numbers:
        raise damaged(source, "its vocabulary is not one of tokens and their numbers")
    for first, second in merges:
        if first not in vocabulary or second not in vocabulary or first + second not in vocabulary:
            raise damaged(source, f"it joins {first!a:.20} and {second!a:.20}, which its vocabulary does not have")
    vocabulary = dict(vocabulary)
    for entry in [*added, *_decoder_entries(said)]:
        vocabulary.setdefault(entry["content"], entry["id"])
    defaults = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    entries = {name: said.get(name) or default for name, default in defaults.items()}
    specials, numbers = {}, {}
    for name, entry in entries.items():
        text: Any = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(text, str) or text not in vocabulary:
            raise damaged(source, f"its {name} {text!a:.40} is not in its vocabulary")
        numbers[name] = vocabulary[text]
        normalized = isinstance(entry, dict) and entry.get("normalized") is True
        specials.setdefault(text, Special(text, (vocabulary[text],), normalized))
    for entry in [*_decoder_entries(said), *added]:
        text = entry["content"]
        specials[text] = Special(text, (entry["id"],), entry.get("normalized") is True)
    return Tokenizer(
        vocabulary, merges, specials.values(), numbers["bos_token"], numbers["eos_token"], numbers["pad_token"],
        numbers["unk_token"],
    )  # fmt: skip


def _decoder_entries(said) -> list[dict]:
    """Tokens that tokenizer_config.json adds: {"49406": {"content": .., "normalized": ..}}."""
    table = said.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return []
    found = [{**e, "id": int(n)} for n, e in table.items() if isinstance(e, dict) and n.isdecimal() and len(n) < 10]
    return [entry for entry in found if isinstance(entry.get("content"), str) and entry["content"]]


def _tokenizer_json(path: Path):
    """(vocabulary, merges, added tokens) of the file that the library `tokenizers` writes."""
    found = _json(path)
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{path} is of another tokenizer than CLIP's byte pairs: use another.")
    pairs: Any = model.get("merges") or []
    added: Any = found.get("added_tokens") or []
    if not isinstance(pairs, list) or not isinstance(added, list):
        raise damaged(path, "its merges and added_tokens are not lists")
    pairs = [tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in pairs if isinstance(p, str | list)]
    if any(len(pair) != 2 or not all(isinstance(part, str) for part in pair) for pair in pairs):
        raise damaged(path, "its merges are not pairs of tokens")
    added = [e for e in added if isinstance(e, dict) and type(e.get("id")) is int]
    return model["vocab"], pairs, [e for e in added if isinstance(e.get("content"), str) and e["content"]]


def _lines(data: bytes, source) -> list[tuple[str, str]]:
    """The pairs in a merges.txt, which may start with a version line."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise damaged(source, "it is not text in UTF-8") from error
    lines = lines[1:] if lines[0].startswith("#version") or '"#version' in lines[0] else lines
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise damaged(source, "its lines are not pairs of tokens")
    return pairs  # pyright: ignore[reportReturnType]


def _json(path: Path) -> dict:
    return parse_json(read_file(path, limit=MAX_VOCABULARY).tobytes(), path)


def _names(folder: Path) -> list[str]:
    with disk(f"list {folder}"):
        return os.listdir(folder)
