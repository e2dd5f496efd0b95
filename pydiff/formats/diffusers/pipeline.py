"""A Pipeline as a folder: what `Run.save` writes, and what diffusers writes, provided it is a single U-Net.

Both are pipeline folders of diffusers. Ours also has pydiff.json, the seal, which stores the rest: process, codec,
conditioning, and the history of the training; with it, no option is needed. Without it, the scheduler next to the
network says what it was trained for. If that is missing, `notes` say so and the caller can supply it; nothing is
assumed silently. docs/folders.md lists what opens and what is refused.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pydiff import codec
from pydiff.codec import Pixels
from pydiff.condition import LABELS, Conditioning
from pydiff.diffusion import Process
from pydiff.diffusion.schedule import from_config as schedule_from_config
from pydiff.formats import weights
from pydiff.formats.diffusers import autoencoder, folder
from pydiff.formats.diffusers.extra import check_extra, check_together
from pydiff.formats.diffusers.parameters import placed, places, ways_to_write
from pydiff.formats.diffusers.scheduler.config import read_config
from pydiff.formats.diffusers.scheduler.stored import StoredScheduler, with_class, with_prediction
from pydiff.formats.diffusers.scheduler.write import DDPM_PIPELINE, Written, scheduler_of
from pydiff.formats.diffusers.unet import CLASS, Checked, read_model
from pydiff.formats.diffusers.unet import read_config as read_unet_config
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import UNFIT
from pydiff.latents import Latents
from pydiff.models import MODELS, name_of
from pydiff.pipeline import Pipeline, pixels_of
from pydiff.store import checkpoint

SCHEMA = 3  # of pydiff.json; 2 had the network beside it, and so had 1, pydiff 0.1's, which has no number
HISTORY = ("options", "data", "step", "origin")
PIPELINES = {
    "DDIMScheduler": "DDIMPipeline",
    "PNDMScheduler": "PNDMPipeline",
    "KarrasVeScheduler": "KarrasVePipeline",
    "CMStochasticIterativeScheduler": "ConsistencyModelPipeline",
}
CONTEXT_CLASS = "UNet2DConditionModel"
ASSUMED = {"name": "linear", "T": 1000}  # what most networks without a scheduler were trained with


class Loaded(NamedTuple):
    """pipeline; history: {"options", "data", "step", ..}, as far as known; notes: sentences the user should read."""

    pipeline: Pipeline
    history: dict
    notes: list[str]


class Wishes(NamedTuple):
    """Options of the caller that supplement or override a folder; None where not given.

    scheduler: a configuration, a file or folder of one, or the name of a class, which takes over the numbers of the
    stored one. prediction: eps, x0, v or flow, or as diffusers calls them. size: of images, a side or (H, W). variant:
    of weights, "fp16", "ema". classes: names. self_conditioning: that half of the input channels are for the last
    x0-hat. Only for Stable Diffusion: config: a folder with the configuration for a single file. embedding: files of
    learned words (textual inversion). skip_layers: how many of the text encoder's last layers to skip. For latent
    models: low_memory: the autoencoder works in bands of rows, and its weights are read on each use and then released,
    as Stable Diffusion always does.
    """

    scheduler: Mapping | str | Path | None = None
    prediction: str | None = None
    size: int | Sequence[int] | None = None
    variant: str | None = None
    classes: Sequence[str] | None = None
    self_conditioning: bool = False
    config: str | Path | None = None
    embedding: Sequence[str | Path] = ()
    skip_layers: int = 0
    low_memory: bool = False


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(directory, pipeline: Pipeline, history, dtype: str | None = None, trained=None) -> list[str]:
    """Writes the folder, replacing an existing model. Returns sentences on what diffusers cannot do with it.

    history: JSON, returned by `load`. dtype: of the weights in the file, float32, float16, bfloat16 or float64; None
    keeps the network's. trained: the parameters whose weights are in a training's checkpoints, in their order; they are
    omitted here, and `load` is given them. Raises CheckpointError if the disk write fails or the folder holds something
    else; ValueError for a network whose class has no registered name, and for a pipeline that has another format.
    """
    if pipeline.kept_elsewhere:
        raise ValueError(pipeline.kept_elsewhere)
    model, written, class_name = pipeline.model, _scheduler_to_write(pipeline), name_of(pipeline.model)
    extra = {
        "schema": SCHEMA,
        **history,
        "variance": pipeline.variance,
        "self_conditioning": pipeline.self_conditioning,
        "codec": pipeline.codec.to_config(),
        **pipeline.conditioning.to_config(),
    }
    if pipeline.scheduler is None:
        extra |= {"schedule": pipeline.process.schedule.to_config(), "prediction": pipeline.process.prediction}
    else:
        extra["scheduler"] = written.config
    index = None
    if written.pipeline is not None:
        index = {
            "_class_name": written.pipeline,
            "scheduler": ["diffusers", written.config["_class_name"]],  # pyright: ignore[reportOptionalSubscript]
            "unet": ["diffusers", class_name],
        }
    arrays: Any = ways_to_write(model)
    parts: dict[str, Any] = {"index": index, "scheduler": written.config}
    parts["beside"] = {name: autoencoder.beside(part) for name, part in pipeline.codec.beside.items()}
    reader = None if pipeline.conditioning.encoder is None else pipeline.conditioning.encoder.network
    if reader is not None:
        config = {"_class_name": type(reader).__name__, **reader.config}
        parts["beside"]["text_encoder"] = config, ways_to_write(reader)
    if trained is not None:
        arrays, extra["parameters"] = None, {checkpoint.WEIGHTS: places(model, trained)}
        if reader is not None and any(p is reader.parameters()[0] for p in trained):
            parts["beside"]["text_encoder"] = config, None  # pyright: ignore[reportPossiblyUnbound, reportArgumentType]
            extra["parameters"][checkpoint.BESIDE_WEIGHTS["text_encoder"]] = places(reader, trained)
    checkpoint.save_model(directory, model.config, arrays, extra, class_name, dtype=dtype, **parts)
    notes = [written.note] if written.note else []
    if index is not None and not pipeline.conditioning.empty:
        notes.append(f"diffusers' {written.pipeline} asks for no classes; call its unet with class_labels yourself")
    return notes


def _scheduler_to_write(pipeline) -> Written:
    if name_of(pipeline.model) != CLASS:
        return Written(
            None, None, f"diffusers has no class {name_of(pipeline.model)}, so that it cannot open this model"
        )
    if pipeline.self_conditioning:
        return Written(None, None, "diffusers has no self-conditioning, so that it opens the network alone")
    if pipeline.scheduler is not None:
        config = {name: value for name, value in pipeline.scheduler.config.items() if _is_finite(value)}
        return Written(config, PIPELINES.get(pipeline.scheduler.name, DDPM_PIPELINE), "")
    written = scheduler_of(pipeline.process, pipeline.variance, pipeline.codec.limits)
    if not isinstance(pipeline.codec, Pixels):
        kind = pipeline.codec.kind
        return Written(
            written.config, None, f"diffusers has no pipeline for the codec {kind!r}, so that it opens parts"
        )
    return written


def _is_finite(value) -> bool:
    return not isinstance(value, float) or bool(np.isfinite(value))


# ---- reading ---------------------------------------------------------------------------------------------------------


NOTHING = Wishes()


def load(directory, wishes: Wishes = NOTHING, weights: np.ndarray | None = None) -> Loaded:
    """The model in such a folder; its notes are also logged.

    weights: (P,), all parameters in the optimiser's order, for a folder that was saved without them. Raises
    CheckpointError for a folder that is damaged, unknown or incomplete.
    """
    directory = Path(directory)
    if weights is None:
        loaded = (_load_ours if checkpoint.is_ours(directory) else _load_theirs)(directory, wishes)
    else:
        loaded = _load_ours(directory, wishes, lambda extra: placed(extra, weights, directory))
    if wishes.low_memory:
        if not isinstance(loaded.pipeline.codec, Latents):
            raise CheckpointError(
                f"low_memory is nothing that {directory} could be told: that is for models of latents; leave it out."
            )
        loaded.pipeline.codec.autoencoder.work_in_bands()
    for note in loaded.notes:
        logging.getLogger("pydiff").warning("%s", note)
    return loaded


class Described(NamedTuple):
    """What the JSON files of a folder of diffusers say, checked: all that can be judged before weights are read. shape:
    (H, W, C) of what the network draws. channels: what its further ones are for, keyword arguments of Pipeline.
    scheduler: None without one. notes: on the network; on the scheduler.
    """

    parts: folder.Parts
    checked: Checked
    shape: tuple[int, int, int]
    channels: dict
    scheduler: StoredScheduler | None
    notes: tuple[list[str], list[str]]


def described(directory: Path, wishes: Wishes = NOTHING) -> Described:
    """What is in the JSON files of a folder that diffusers wrote, a pipeline of one U-Net.

    Raises CheckpointError for what pydiff does not have, or cannot be.
    """
    _refuse_unused(directory, wishes, "config", "embedding", "skip_layers")
    parts = folder.read_parts(directory)
    checked = read_unet_config(*parts.config, known_class=parts.unet_class)
    if checked.class_name == CONTEXT_CLASS:
        raise CheckpointError(
            f"{parts.config[1]} is a {CONTEXT_CLASS} alone, which draws nothing without a text encoder, its tokenizer, "
            "an autoencoder and a scheduler: give the folder of the whole model, which has model_index.json."
        )
    shape, channels = _shape(checked, wishes, parts.config[1])
    scheduler, said = scheduler_for(parts.scheduler, parts.scheduler_class, wishes, directory)
    return Described(parts, checked, shape, channels, scheduler, ([*checked.notes, *parts.notes], said))


def _load_theirs(directory, wishes) -> Loaded:
    parts, checked, shape, channels, scheduler, (notes, about) = described(directory, wishes)
    with weights.open_folder(parts.unet, parts.names, wishes.variant) as found:
        if found.others:
            rest = ", ".join(found.others)
            notes.append(f"{parts.unet} has several files of weights: {found.taken} was taken, not {rest:.200}")
        coded, said = _codec(parts.autoencoder, shape, wishes, parts.config[1])
        model = read_model(checked, found.weights, parts.config[1])
    model.config["sample_size"] = _size(coded.shape)
    conditioning, asked = _conditioning(model, parts.class_names, wishes, parts.config[1])
    process = Process(schedule_from_config(ASSUMED), "eps") if scheduler is None else scheduler.process
    pipeline = Pipeline(model, process, coded, conditioning, scheduler=scheduler, **channels)
    return Loaded(pipeline, {}, [*notes, *said, *about, *asked])


def _refuse_unused(directory, wishes, *names):
    """Raises CheckpointError for an option that does not apply to this folder: nothing is ignored silently."""
    for name in names:
        if getattr(wishes, name) != getattr(NOTHING, name):
            raise CheckpointError(f"{name} is nothing that {directory} could be told: {UNUSED[name]}; leave it out.")


UNUSED = {
    "size": "it says how large its images are",
    "variant": "it has its weights once",
    "self_conditioning": "it says whether it is told its last guess",
    "config": "that is for Stable Diffusion in one file",
    "embedding": "that is for Stable Diffusion",
    "skip_layers": "that is for Stable Diffusion",
}


def _codec(found, shape, wishes, source) -> tuple[Pixels | Latents, list[str]]:
    """(codec, notes) for a U-Net that generates this shape: pixels, or latents of the autoencoder next to it."""
    if found is None:
        return Pixels(shape), []
    folder, kind = found
    if kind not in autoencoder.RULES:
        raise CheckpointError(
            f"{folder} is the autoencoder {kind!a:.60}, expected {' or '.join(autoencoder.RULES)}: use another."
        )
    model, notes = autoencoder.open_folder(folder, None, kind)
    if model.config["latent_channels"] != shape[2]:
        raise CheckpointError(
            f"{source} takes {shape[2]} channels, and the latents of {folder} have {model.config['latent_channels']}: "
            "they are of different models."
        )
    try:
        size = shape[:2] if wishes.size is not None else [n * model.factor for n in shape[:2]]
        return Latents(model, size), notes
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}.") from error


class DescribedOurs(NamedTuple):
    """What the JSON files of a folder of ours say, checked: all that can be judged before weights are read. scheduler:
    None without one. notes: sentences.
    """

    checked: Checked
    process: Process
    scheduler: StoredScheduler | None
    notes: list[str]


def described_ours(found: checkpoint.OpenModel, directory: Path, wishes: Wishes = NOTHING) -> DescribedOurs:
    """What is in the JSON files of a folder that pydiff wrote. found: the folder, opened; its weights are not read.

    Raises CheckpointError for what no pydiff wrote, or a later one.
    """
    _refuse_unused(directory, wishes, *UNUSED)
    extra = found.extra
    if extra.get("schema", 1) not in range(1, SCHEMA + 1):
        schema = extra["schema"]
        raise CheckpointError(
            f"{directory} is of schema {schema!a:.40}, and this pydiff knows up to {SCHEMA}: use a newer one."
        )
    if "segmentation" in extra:
        raise CheckpointError(f"{directory} holds a segmenter, which draws nothing; pydiff.segment.load opens it.")
    check_extra(extra, directory / checkpoint.SEAL)
    checked = read_unet_config({**found.config, "_class_name": found.class_name}, directory)
    with _followed(directory):
        scheduler, said = None, []
        if wishes.scheduler or wishes.prediction or "scheduler" in extra:
            stored = extra.get("scheduler")
            if stored is None:
                stored = scheduler_of(_process(extra), extra.get("variance", "fixed")).config
            stored = None if stored is None else (stored, directory)
            scheduler, said = _asked_scheduler(stored, wishes, directory)
        process = _process(extra) if scheduler is None else scheduler.process
        if "schedule" in extra and process.prediction != (learned := _process(extra).prediction):
            raise CheckpointError(
                f"{directory} learned to predict {learned}, and was to be read as if that were {process.prediction}; "
                "leave that out."
            )
    return DescribedOurs(checked, process, scheduler, [*checked.notes, *said])


@contextlib.contextmanager
def _followed(directory: Path) -> Iterator[None]:
    """Inside, what the parts of a model object to is raised as a CheckpointError about the seal."""
    try:
        yield
    except UNFIT as error:
        raise CheckpointError(f"{directory / checkpoint.SEAL} cannot be followed ({error!a:.200}).") from error


def _load_ours(directory, wishes, weights=None) -> Loaded:
    with checkpoint.open_model(directory, MODELS, weights) as found:
        checked, process, scheduler, notes = described_ours(found, directory, wishes)
        extra = found.extra
        model = read_model(checked, found.weights, directory)
        reader = found.network("text_encoder")
        parts = {}
        if "vae" in found.beside:
            parts["vae"] = autoencoder.of_beside(found.beside["vae"], directory / "vae")
    with _followed(directory):
        beside = extra.get("self_conditioning", False)
        conditioning = Conditioning.from_config(extra, reader)
        if wishes.classes is not None:
            _check_names(wishes.classes, conditioning.classes, directory)
            conditioning.classes = [str(name) for name in wishes.classes]
        pipeline = Pipeline(
            model,
            process,
            codec.from_config(extra["codec"], parts) if "codec" in extra else pixels_of(model, beside),
            conditioning,
            variance=extra.get("variance", "fixed"),
            self_conditioning=beside,
            scheduler=scheduler,
        )
        check_together(model, pipeline.codec, conditioning, beside, directory / checkpoint.SEAL)
    history = {name: extra[name] for name in HISTORY if name in extra}
    return Loaded(pipeline, history, notes)


def _process(extra) -> Process:
    with np.errstate(all="ignore"):  # a schedule of what is no number is refused, which NumPy need not announce
        return Process(schedule_from_config(extra["schedule"]), extra.get("prediction", "eps"))


def _shape(checked: Checked, wishes: Wishes, source) -> tuple[tuple[int, int, int], dict]:
    """(H, W, C) of images, and what the network's further channels are for: keyword arguments of Pipeline."""
    config = checked.config
    cin, cout = config.get("in_channels", 3), config.get("out_channels", 3)
    channels = cin // 2 if wishes.self_conditioning else cin
    if wishes.self_conditioning and cin % 2:
        raise CheckpointError(f"{source} takes {cin} channels, of which half cannot be for self-conditioning.")
    if cout not in (channels, 2 * channels):
        if cout < cin:
            raise CheckpointError(
                f"{source} takes {cin} channels and gives {cout}: the other {cin - cout} are of an image that must be "
                "given beside the noise, which pydiff cannot; if they are for self-conditioning, say "
                "self_conditioning=True."
            )
        raise CheckpointError(
            f"{source} takes {cin} channels and gives {cout}, expected as many, or twice as many for a learned "
            "variance: use another."
        )
    size = config.get("sample_size") if wishes.size is None else wishes.size
    if size is None:
        raise CheckpointError(f"{source} does not say how large its images are: give size=, or --size, in pixels.")
    sides: Any = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(n, int | np.integer) and 1 <= n <= 65536 for n in sides):
        raise CheckpointError(f"got size {size!a:.60}, expected a side length or (height, width) in pixels.")
    kind = {"variance": "fixed" if cout == channels else "learned", "self_conditioning": wishes.self_conditioning}
    return (int(sides[0]), int(sides[1]), channels), kind


def _size(shape):
    return shape[0] if shape[0] == shape[1] else list(shape[:2])


def scheduler_for(stored, known_class, wishes, directory) -> tuple[StoredScheduler | None, list[str]]:
    """The stored or requested scheduler; None without either. stored: (configuration, path), or None."""
    config, source, notes = None, "the scheduler", []
    if stored is not None:
        source = stored[1]
        if not isinstance(wishes.scheduler, Mapping) and not _is_path(wishes.scheduler):
            config, notes = read_config(stored[0], source, known_class)
    if wishes.scheduler is not None:
        if isinstance(wishes.scheduler, Mapping) or _is_path(wishes.scheduler):
            given, source = _given(wishes.scheduler)
            config, notes = read_config(given, source)
        else:
            config, source = with_class(config or {}, str(wishes.scheduler)), f"scheduler={str(wishes.scheduler)!r}"
    if config is None and wishes.prediction is None:
        return None, [
            f"{directory} has no scheduler, so it is drawn as most networks of its kind were trained: T = 1000, betas "
            "linear from 0.0001 to 0.02, prediction eps; if that is not so, give scheduler= and prediction= "
            "(--scheduler, --prediction)"
        ]
    if config is None:
        config = {"_class_name": "DDPMScheduler"}
        notes = [
            f"{directory} has no scheduler, so it is drawn with T = 1000 and betas linear from 0.0001 to 0.02; if that "
            "is not so, give scheduler= (--scheduler)"
        ]
    if wishes.prediction is not None:
        config = with_prediction(config, wishes.prediction)
    return StoredScheduler(config, source), notes


def _asked_scheduler(stored, wishes, directory):
    """The scheduler for `scheduler_for`. Errors in the caller's options are reported as such, not as errors of the
    folder.
    """
    try:
        return scheduler_for(stored, None, wishes, directory)
    except ValueError as error:
        if wishes.scheduler is None and wishes.prediction is None:
            raise
        raise CheckpointError(str(error)) from error


def _is_path(value) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and ("/" in value or value.endswith(".json")))


def _given(scheduler) -> tuple[dict, object]:
    """A configuration from the caller: itself, or the file or folder that contains it."""
    if isinstance(scheduler, Mapping):
        return dict(scheduler), "scheduler="
    path = Path(scheduler)
    for inside in (folder.SCHEDULER, f"scheduler/{folder.SCHEDULER}"):
        path = path / inside if (path / inside).is_file() else path
    return folder.read_json(path), path


def _conditioning(model, class_names, wishes, source) -> tuple[Conditioning, list[str]]:
    """The network's further inputs: classes by number and name, or numbers or vectors, passed unchanged."""
    config = model.config
    kind, count = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind == "identity":
        width = model.time_embedding.linear_2.weight.shape[1]
        note = (
            f"{source} takes vectors ({width},) in place of classes, 0 if none are given: condition={{{LABELS!r}: ..}}"
        )
        return Conditioning(nothing={LABELS: np.zeros(width, np.float32)}), [note]
    if kind == "timestep":
        note = f"{source} takes numbers in place of classes, 0 if none are given: condition={{{LABELS!r}: ..}}"
        return Conditioning(nothing={LABELS: np.zeros((), np.float32)}), [note]
    if count is None:
        if wishes.classes is not None:
            raise CheckpointError(f"{source} is of a network without classes, and names of classes were given.")
        return Conditioning(), []
    numbers = [str(i) for i in range(count)]
    names = class_names if wishes.classes is None else [str(name) for name in wishes.classes]
    if names is not None:
        _check_names(names, numbers, source)
    return Conditioning(names or numbers, withheld=False), []


def _check_names(names, classes, source):
    if len(names) != len(classes or ()):
        count = len(classes or ())
        raise CheckpointError(f"{source} has {count} classes, and there are names for {len(names)}: give {count}.")
