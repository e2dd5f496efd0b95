"""An autoencoder from its config.json and weights, of any version of diffusers, checked before anything is built.

vae/config.json, vae/diffusion_pytorch_model.safetensors

As with U-Nets, sizes in the configuration are compared with the shapes in the file first.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydiff.formats import safetensors
from pydiff.formats import weights as weight_files
from pydiff.formats.diffusers.folder import CONFIG, INDEX, read_json
from pydiff.formats.diffusers.parameters import (
    Checked,
    attention_renamed,
    fill,
    misfits,
    reshaped,
    ways_to_write,
    with_defaults,
)
from pydiff.formats.files import RegularFile, disk, folder_path
from pydiff.formats.safetensors import CheckpointError, Weight
from pydiff.formats.schema import ANYTHING, NULL, TEXT, TRUTH, checked, either, listed, number, one_of, whole
from pydiff.models import MODELS, Autoencoder, AutoencoderKL, AutoencoderTiny, build, name_of
from pydiff.nn import room_for
from pydiff.store import checkpoint, sealed

FOLDER = "vae"  # of it, in a pipeline
WEIGHTS = f"{FOLDER}/diffusion_pytorch_model.safetensors"
KIND = "pydiff autoencoder"  # of its seal

_SIZE, _FACTOR = whole(1, 65536), number(1e-6, 1e6)
_NUMBER, _BLOCKS = number(-1e6, 1e6), listed(TEXT, 1, 16)
_ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")
RULES = {
    "AutoencoderKL": {
        "in_channels": _SIZE,
        "out_channels": _SIZE,
        "down_block_types": _BLOCKS,
        "up_block_types": _BLOCKS,
        "block_out_channels": listed(_SIZE, 1, 16),
        "layers_per_block": whole(1, 256),
        "act_fn": _ACTIVATION,
        "latent_channels": _SIZE,
        "norm_num_groups": _SIZE,
        "sample_size": either(NULL, _SIZE, listed(_SIZE, 2, 2)),
        "scaling_factor": _FACTOR,
        "shift_factor": either(NULL, _NUMBER),
        "latents_mean": either(NULL, listed(_NUMBER, 1, 65536)),
        "latents_std": either(NULL, listed(_FACTOR, 1, 65536)),
        "force_upcast": TRUTH,
        "use_quant_conv": TRUTH,
        "use_post_quant_conv": TRUTH,
        "mid_block_add_attention": TRUTH,
    },
    "AutoencoderTiny": {
        "in_channels": _SIZE,
        "out_channels": _SIZE,
        "encoder_block_out_channels": listed(_SIZE, 1, 16),
        "decoder_block_out_channels": listed(_SIZE, 1, 16),
        "act_fn": _ACTIVATION,
        "upsample_fn": one_of("nearest"),
        "latent_channels": _SIZE,
        "upsampling_scaling_factor": whole(2, 2),
        "num_encoder_blocks": listed(whole(0, 256), 1, 16),
        "num_decoder_blocks": listed(whole(0, 256), 1, 16),
        "latent_magnitude": _NUMBER,
        "latent_shift": _NUMBER,
        "force_upcast": TRUTH,
        "scaling_factor": _FACTOR,
        "shift_factor": _NUMBER,
        "block_out_channels": ANYTHING,  # diffusers repeats the decoder's there
    },
}
REPEATED = {"AutoencoderTiny": ("block_out_channels",)}


def read_config(config: Mapping, source: Path, known_class: str | None = None) -> Checked:
    """The options in a config.json. known_class: what the model_index.json says, for a config.json that does not.

    Raises CheckpointError for another class and for impossible values.
    """
    found = config.get("_class_name", known_class)
    if not isinstance(found, str) or found not in RULES:
        raise CheckpointError(f"{source} is for the class {found!a:.60}, expected {' or '.join(RULES)}: use another.")
    config, unknown = checked(config, RULES[found], source)
    config = {name: value for name, value in config.items() if name not in REPEATED.get(found, ())}
    notes = []
    if unknown:
        notes.append(
            f"{source} has options that {found} does not know, and they are ignored: {', '.join(unknown):.200}"
        )
    return Checked(found, config, notes)


def read_model(
    checked_config: Checked, weights: Mapping[str, Weight], source: Path, deferred: bool = False
) -> Autoencoder:
    """The autoencoder with these weights; deferred: see parameters.fill. Besides the autoencoder, only one array of the
    file is in memory at a time.

    Raises CheckpointError if configuration and weights do not match.
    """
    weights = compared(checked_config, weights, source)
    with misfits(source):
        model = build(checked_config.class_name, checked_config.config, room_for(weights))
        fill(model, reshaped(weights, model), deferred)
    return model


def compared(checked_config: Checked, weights: Mapping[str, Weight], source: object) -> dict[str, Weight]:
    """The weights, under the names of today, of an autoencoder whose sizes they were found to have; see
    unet.compared.
    """
    class_name, config, _ = checked_config
    weights = {attention_renamed(name): weight for name, weight in weights.items()}
    with misfits(source):
        _compare(_EXPECTED[class_name](with_defaults(MODELS[class_name], config)), weights, source)
    return weights


def save(directory: Path, model: Autoencoder, extra: dict, dtype: str | None = None) -> None:
    """Writes a folder with vae/, replacing an existing one. extra: JSON, see `history`. dtype: of the weights in the
    file, a name in checkpoint.DTYPES; None keeps the current one. Raises CheckpointError if the disk write fails.
    """
    if dtype not in (None, *checkpoint.DTYPES):
        raise ValueError(f"got dtype {dtype!r}, expected one of {', '.join(checkpoint.DTYPES)}")
    target = folder_path(directory).resolve()
    config, arrays = beside(model)
    if os.path.lexists(target) and (others := set(_names(target)) - {FOLDER, checkpoint.SEAL}):
        raise CheckpointError(f"{target} holds {min(others)!a}, expected a model alone: choose another folder.")

    def files():
        yield f"{FOLDER}/{CONFIG}", (json.dumps(config, indent=1, allow_nan=False) + "\n").encode()
        yield WEIGHTS, safetensors.pieces(arrays, checkpoint.DTYPES.get(dtype), {"format": "pt"})  # pyright: ignore[reportArgumentType]

    partial = target.with_name(f".{target.name}.pydiff-partial")
    sealed.write(target, partial, files(), checkpoint.SEAL, KIND, {"extra": extra})


def beside(model: Autoencoder) -> tuple[dict, dict]:
    """An autoencoder in the form in which checkpoint.save_model writes it next to a network."""
    return {"_class_name": name_of(model), **model.config}, ways_to_write(model)


def of_beside(found: tuple[dict, Mapping[str, Weight]], source: Path) -> Autoencoder:
    """The autoencoder that checkpoint.open_model found next to a network."""
    config, weights = found
    return read_model(read_config(config, source), weights, source)


def open_folder(
    folder: Path, variant: str | None = None, known_class: str | None = None, deferred: bool = False
) -> tuple[Autoencoder, list]:
    """(autoencoder, notes) of a folder that contains a vae/ or is one, written by any version of diffusers. variant:
    "fp16".

    What pydiff saved is verified byte for byte. Raises CheckpointError if it is damaged or incomplete.
    """
    folder = sealed.resolve(Path(folder).resolve())
    names = _names(folder)
    if checkpoint.SEAL in names:
        if "unet" in names:
            with checkpoint.open_model(folder, MODELS) as found:
                if FOLDER not in found.beside:
                    raise CheckpointError(f"{folder} is a model of pixels, expected one with {FOLDER}/: use another.")
                return of_beside(found.beside[FOLDER], folder / FOLDER), []
        return _open_ours(folder), []
    if CONFIG not in names and FOLDER in names:
        folder, names = folder / FOLDER, _names(folder / FOLDER)
    if CONFIG not in names:
        raise CheckpointError(
            f"{folder} holds {sorted(names)!a:.200}, expected {CONFIG} and weights: complete the folder."
        )
    checked_config = read_config(read_json(folder / CONFIG), folder / CONFIG, known_class)
    with weight_files.open_folder(folder, names, variant, lasting=deferred) as found:
        return read_model(checked_config, found.weights, folder / CONFIG, deferred), checked_config.notes


def _open_ours(folder: Path) -> Autoencoder:
    """What `save` wrote, with every byte verified."""
    _, entries = sealed.inspect(folder, checkpoint.SEAL, KIND)
    if set(entries) != {f"{FOLDER}/{CONFIG}", WEIGHTS}:
        raise safetensors.damaged(folder, f"its seal has {sorted(entries)!a:.100}")
    text = sealed.read_checked(folder / FOLDER / CONFIG, entries[f"{FOLDER}/{CONFIG}"])
    config = safetensors.parse_json(text.tobytes(), folder / FOLDER / CONFIG)
    with RegularFile(folder / WEIGHTS) as file:
        sealed.check(file, entries[WEIGHTS])
        return of_beside((config, safetensors.contents(file, folder / WEIGHTS)), folder / FOLDER / CONFIG)


def history(folder: Path) -> dict:
    """What `save` was given as `extra`; {} for a folder written by other software."""
    folder = sealed.resolve(Path(folder).resolve())
    if checkpoint.SEAL not in _names(folder):
        return {}
    extra = sealed.inspect(folder, checkpoint.SEAL, KIND)[0].get("extra")
    if not isinstance(extra, dict):
        raise safetensors.damaged(folder / checkpoint.SEAL, "it says nothing about the training")
    return extra


def holds_autoencoder(folder: Path) -> bool:
    """Whether a folder contains only an autoencoder: a vae/ without a network next to it, or the vae/ itself."""
    folder = sealed.resolve(Path(folder).resolve())
    try:
        if (folder / FOLDER).is_dir() and not (folder / "unet").exists():
            index = folder / INDEX  # which may say that there should be one
            return (folder / FOLDER / CONFIG).is_file() and not (index.is_file() and "unet" in read_json(index))
        return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("_class_name") in tuple(RULES)
    except CheckpointError:
        return False


def _names(folder: Path) -> list[str]:
    with disk(f"list {folder}"):
        return os.listdir(folder)


def _expected_kl(config) -> dict[str, tuple]:
    """Shapes in an AutoencoderKL with these options: enough of them to bound all the others."""
    channels, layers, latent = config["block_out_channels"], int(config["layers_per_block"]), config["latent_channels"]
    expected = {
        "encoder.conv_in.weight": (channels[0], config["in_channels"], 3, 3),
        "encoder.conv_out.weight": (2 * latent, channels[-1], 3, 3),
        "decoder.conv_in.weight": (channels[-1], latent, 3, 3),
        "decoder.conv_out.weight": (config["out_channels"], channels[0], 3, 3),
    }
    for level, width in enumerate(channels):
        up = len(channels) - 1 - level
        for layer in range(layers):
            expected[f"encoder.down_blocks.{level}.resnets.{layer}.conv2.weight"] = (width, width, 3, 3)
        for layer in range(layers + 1):
            expected[f"decoder.up_blocks.{up}.resnets.{layer}.conv2.weight"] = (width, width, 3, 3)
    return expected


def _expected_tiny(config) -> dict[str, tuple]:
    """Shapes in an AutoencoderTiny with these options: enough of them to bound all the others."""
    encoder, decoder = config["encoder_block_out_channels"][0], config["decoder_block_out_channels"][0]
    expected = {"encoder.layers.0.weight": (encoder, config["in_channels"], 3, 3)}
    place = 1
    for count in config["num_encoder_blocks"]:
        for _ in range(count):
            expected[f"encoder.layers.{place}.conv.0.weight"] = (encoder, encoder, 3, 3)
            place += 1
        place += 1  # the convolution before the next stage, or the last one
    expected[f"encoder.layers.{place - 1}.weight"] = (config["latent_channels"], encoder, 3, 3)
    expected["decoder.layers.0.weight"] = (decoder, config["latent_channels"], 3, 3)
    place = 2
    for count in config["num_decoder_blocks"]:
        for _ in range(count):
            expected[f"decoder.layers.{place}.conv.0.weight"] = (decoder, decoder, 3, 3)
            place += 1
        place += 2  # enlarged, and a convolution
    expected[f"decoder.layers.{place - 2}.weight"] = (config["out_channels"], decoder, 3, 3)
    return expected


_EXPECTED = {AutoencoderKL.__name__: _expected_kl, AutoencoderTiny.__name__: _expected_tiny}


def _compare(expected, weights, source):
    """Checks sizes in the configuration against shapes in the file, so that nothing larger than the file is built."""
    beginning = f"{source} describes another autoencoder than the weights beside it"
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{beginning}: {name} is missing.")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{beginning}: {name} has shape {tuple(weights[name].shape)}, not {shape}.")
