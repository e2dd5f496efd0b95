"""A Pipeline as a folder: what `Run.save` writes, and what diffusers writes, as far as it is one U-Net.

config.json and diffusion_pytorch_model.safetensors are diffusers' own; pydiff.json, the seal, says the rest: process,
codec, conditioning, and the history of the training.
"""

from pathlib import Path

from pydiff import codec
from pydiff.condition import Conditioning
from pydiff.diffusion import Process
from pydiff.diffusion.schedule import from_config as schedule_from_config
from pydiff.models import MODELS, build, name_of
from pydiff.pipeline import Pipeline, pixels_of
from pydiff.store import checkpoint

SCHEMA = 2  # of pydiff.json; 1, without the number, was pydiff 0.1's


def save(directory, pipeline: Pipeline, history: dict):
    """Writes the folder, replacing a model that is there. history: JSON, comes back from `load`.

    CheckpointError where the disk refuses or the folder holds something else; ValueError for a network whose class has
    no registered name.
    """
    model, process = pipeline.model, pipeline.process
    extra = {
        "schema": SCHEMA,
        **history,
        "schedule": process.schedule.to_config(),
        "prediction": process.prediction,
        "variance": pipeline.variance,
        "self_conditioning": pipeline.self_conditioning,
        "codec": pipeline.codec.to_config(),
        **pipeline.conditioning.to_config(),
    }
    checkpoint.save_model(directory, model.config, model.state_dict(), extra, name_of(model))


def load(directory) -> tuple[Pipeline, dict]:
    """(pipeline, history) of such a folder; CheckpointError, in one sentence, for one that is damaged or unknown."""
    config, arrays, extra, class_name = checkpoint.load_model(Path(directory), MODELS)
    model = build(class_name, config).load_state_dict(arrays)
    if extra is None:  # written by diffusers: its pipelines' most common process
        learned = config.get("out_channels") == 2 * config.get("in_channels", 0)
        extra = {"schedule": {"name": "linear", "T": 1000}, "variance": "learned" if learned else "fixed"}
    if extra.get("schema", 1) > SCHEMA:
        found = extra["schema"]
        raise checkpoint.CheckpointError(f"{directory} is of schema {found}, and this pydiff knows up to {SCHEMA}.")
    beside = extra.get("self_conditioning", False)
    pipeline = Pipeline(
        model,
        Process(schedule_from_config(extra["schedule"]), extra.get("prediction", "eps")),
        codec.from_config(extra["codec"]) if "codec" in extra else pixels_of(model, beside),
        Conditioning.from_config(extra),
        variance=extra.get("variance", "fixed"),
        self_conditioning=beside,
    )
    return pipeline, {name: extra[name] for name in ("options", "data", "step") if name in extra}
