"""`pydiff train --dry-run`: estimates what a training would take, without training."""

from pydiff import backend, memory
from pydiff.data import load
from pydiff.latent_space import EncodedFew, opened_in
from pydiff.training import AutoencoderOptions, AutoencoderTask, Options, Trainer, join, reading, settled, task_for
from pydiff.training.classify import ClassifyTask
from pydiff.training.forecast import duration, forecast
from pydiff.training.suited import suited
from pydiff.warm import warm

FEW = 16  # images that are encoded for a training in latents


def dry_run(data, *, device="cpu", model=None, latent=None, **options) -> str:
    """A report of a few lines: memory from small steps, time from a few full ones. Nothing is written.

    data, device, model, latent, options: as for `pydiff.train`. Raises ValueError, with options that would fit, for a
    training that does not fit into memory.
    """
    kind = AutoencoderOptions if model == "autoencoder" else Options
    given, options = options.keys(), settled(kind.from_keywords(options), None, join("off"))
    with backend.use_device(device):
        dataset = load(data, **reading(options.to_config()))
        lines = [dataset.summary()]
        if model != "autoencoder":
            options = suited(options, given, dataset, model, announce=lines.append, latent=latent is not None)
        if model == "autoencoder":
            task = AutoencoderTask(dataset, options)
        elif model == "classifier":
            task = ClassifyTask(dataset, options)
        else:
            codec = None if latent is None else opened_in(latent, dataset)
            task, _ = warm(lambda network: task_for(dataset, options, network, codec), options.init_from, None, model)
            if latent is not None:
                task.read = few = EncodedFew(task.read, FEW)
                lines.append(
                    f"before the first step the data are encoded: {duration(few.seconds)}, {memory.told(few.bytes)}"
                )
    return "\n".join([*lines, forecast(Trainer(task, options, device))])
