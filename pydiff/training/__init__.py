"""Training: options (config), what is learned (task), and the training loop."""

from pydiff.training.autoencoder import AutoencoderOptions, AutoencoderTask
from pydiff.training.classify import ClassifyTask
from pydiff.training.clip_task import JointTask, task_for
from pydiff.training.config import LoopOptions, Options
from pydiff.training.distributed import join, settled
from pydiff.training.interrupt import Interrupted
from pydiff.training.loop import StepState, Trainer, fit, opened, train_task, training_steps
from pydiff.training.reading import ReadingOptions, reading
from pydiff.training.task import DiffusionTask, Task

__all__ = [
    "AutoencoderOptions",
    "AutoencoderTask",
    "ClassifyTask",
    "DiffusionTask",
    "Interrupted",
    "JointTask",
    "LoopOptions",
    "Options",
    "ReadingOptions",
    "StepState",
    "Task",
    "Trainer",
    "fit",
    "join",
    "opened",
    "reading",
    "settled",
    "task_for",
    "train_task",
    "training_steps",
]
