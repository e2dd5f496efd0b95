"""A training that starts from existing weights: the average of a run, or those in a model's folder."""

import hashlib

import numpy as np

from pydiff.formats.files import folder_path
from pydiff.models import build, name_of
from pydiff.printed import expanded, printable
from pydiff.reopen import open_folder
from pydiff.store import checkpoint
from pydiff.training import DiffusionTask

UNET = "UNet2DModel"


def warm(task_of, folder, out=None, model=None):
    """(task, begin): a task whose network fits the weights in `folder`, and a function that loads them, see `opened`.

    task_of: makes the task for a network, or for None, if the options describe the network. folder: None for randomly
    initialised weights; begin is then None. out: the run's folder. model: the network, if the caller gave it.
    """
    if model is not None and not hasattr(model, "named_parameters"):
        raise TypeError(f"model is {model!r:.60}, expected a network, a Module; see DiffusionTask")
    task = task_of(model)
    if folder is None:
        return task, None
    source = Source(folder)
    if model is None and (network := source.network_for(task, out)) is not None:
        task = task_of(network)
    return task, source.begin


class Source:
    """The weights in a folder; opened only when needed, which is not so when a run resumes.

    folder: as the user wrote it.
    """

    def __init__(self, folder):
        self.folder, self._opened = str(folder), None
        self.shown = printable(self.folder)

    @property
    def opened(self):
        """The contents of the folder. Raises FileNotFoundError or CheckpointError if there is no model."""
        if self._opened is None:
            path = folder_path(self.folder, "init_from")
            if not path.is_dir():
                raise FileNotFoundError(f"{path} is not a folder; init_from is that of a run or of a saved model")
            self._opened = open_folder(path)
        return self._opened

    def network_for(self, task: DiffusionTask, out=None):
        """A network like the one in the folder, for the data and the objective of `task`; None if the options describe
        it. out: the run's folder, which describes it if it already exists.
        """
        if task.options.channels or name_of(task.network) != UNET:
            return None
        described = None if out is None else expanded(out) / "pipeline"
        if described is not None and checkpoint.holds_model(described):
            with checkpoint.open_model(described, (UNET,), lambda _: {checkpoint.WEIGHTS: {}}) as found:
                config = found.config
        else:
            model = self.opened.pipeline.model
            if name_of(model) != UNET:
                return None
            wanted, names = task.network.config, ("sample_size", "dropout", "num_class_embeds")
            config = {**model.config, **{name: wanted[name] for name in names}}
        return build(UNET, config).recompute_blocks(task.options.recompute)

    def begin(self, trainer, folder=None):
        """Loads these weights into the trainer and records which they were. Raises ValueError if they do not fit, or if
        they have changed since the run began.
        """
        weights = self._weights(trainer.task)
        self._compare(weights, trainer.model)
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(weights[name].tobytes())
        at = {"folder": str(expanded(self.folder).absolute()), "step": self.opened.step}
        begun = {**at, "sha256": digest.hexdigest()}
        if folder is not None and folder.noted("begun_with", begun)["sha256"] != begun["sha256"]:
            raise ValueError(f"{folder.path} began with other weights than {self.shown} has now; choose another folder")
        trainer.begin(weights)
        trainer.notes.append(f"begins with the weights of {self.shown}, step {self.opened.step:,}")
        theirs, ours = self.opened.pipeline.process.prediction, trainer.task.process.prediction
        if theirs != ours:
            trainer.notes.append(f"those were trained to predict {theirs}, and this run learns to predict {ours}")
        theirs, ours = self.opened.pipeline.process.schedule, trainer.task.process.schedule
        if theirs.T != ours.T:
            trainer.notes.append(f"those were trained with timesteps = {theirs.T}, and this run has {ours.T}")
        elif not np.allclose([theirs.alpha, theirs.sigma], [ours.alpha, ours.sigma], rtol=1e-3, atol=1e-4):
            told = f"{printable(theirs.name)!r}, and this run has {ours.name!r}"
            trainer.notes.append(f"those were trained with another noise schedule, {told}")

    def _weights(self, task):
        """A state_dict for the model that the task trains."""
        pipeline = self.opened.pipeline
        if not task.reads:
            return pipeline.model.state_dict()
        encoder = pipeline.conditioning.encoder  # it is trained too, so it must be the same one
        if encoder is None or encoder.identity() != task.encoder.identity():
            raise ValueError(
                f"the weights of {self.shown} do not fit these captions: its text encoder is another one; give text = "
                "'none' or 'glove', or leave out init_from"
            )
        parts = {"unet": pipeline.model, "text_encoder": encoder.network}
        return {f"{part}.{name}": array for part, m in parts.items() for name, array in m.state_dict().items()}

    def _compare(self, weights, model):
        ours = {name: tuple(p.shape[i] for i in p.file_axes) for name, p in model.named_parameters()}
        theirs = {name: array.shape for name, array in weights.items()}
        for name in (*ours, *theirs):
            there, here = theirs.get(name, "missing"), ours.get(name, "missing")
            if there != here:
                raise ValueError(
                    f"the weights of {self.shown} do not fit this network: {name} is {there} there and {here} here; "
                    "train with the options that those were trained with, or leave out init_from"
                )
