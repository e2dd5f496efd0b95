"""Opens a model in any supported form: our folder, a diffusers pipeline folder, or Stable Diffusion in one file; and
saves one as the folder that suits it.
"""

from pathlib import Path

from pydiff.formats import single_file
from pydiff.formats.diffusers import pipeline, stable_diffusion, stable_diffusion_write
from pydiff.formats.diffusers.pipeline import NOTHING, Loaded, Wishes
from pydiff.formats.files import advice_on
from pydiff.formats.safetensors import CheckpointError
from pydiff.pipeline import Pipeline
from pydiff.stable_diffusion import StableDiffusion
from pydiff.store import checkpoint

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


def load(path: Path, wishes: Wishes = NOTHING) -> Loaded:
    """The model at this path; its notes are also logged. Raises CheckpointError if it cannot be opened."""
    try:
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise CheckpointError(f"{path} is no file of a model, expected {', '.join(SUFFIXES)}, or a folder.")
            return single_file.load(path, wishes)
        if not checkpoint.is_ours(path) and stable_diffusion.is_one(path):
            return stable_diffusion.load(path, wishes)
        stable_diffusion.check_not_alone(path)
        return pipeline.load(path, wishes)
    except OSError as error:
        raise CheckpointError(
            f"Could not read {path}: {error.strerror or error}; {advice_on(error, reads=True)}."
        ) from error


def save(directory, made: Pipeline, history: dict, dtype: str | None = None) -> list[str]:
    """Writes a pipeline's folder, see formats.diffusers.pipeline.save and stable_diffusion_write.save. Returns
    sentences on what it does not contain, or what diffusers cannot do with it.
    """
    if isinstance(made, StableDiffusion):
        return stable_diffusion_write.save(directory, made, dtype)
    return pipeline.save(directory, made, history, dtype)
