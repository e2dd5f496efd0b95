"""Trainers for tests: of a diffusion model on some data, and runs that are stopped half-way."""

from pydiff.training import DiffusionTask, Trainer, opened, training_steps
from pydiff.training.loop import log_entry


def diffusion_trainer(dataset, options, device="cpu", **more):
    """What `pydiff.train` drives."""
    return Trainer(DiffusionTask(dataset, options, **more), options, device)


def train_until(out, step, dataset, options, device="cpu", task=None, **more):
    """A run in a folder that is stopped after this step, with a checkpoint. task: another than DiffusionTask's."""
    task = DiffusionTask(dataset, options, **more) if task is None else task
    with opened(task, options, out, device) as (trainer, folder):
        for state in training_steps(trainer):
            folder.log.append(log_entry(state, 1.0, device))
            if state.step == step:
                break
        folder.save_checkpoint(trainer.step, trainer.arrays(), options.keep)
