"""`pydiff train --dry-run`: what a training would take, said before it takes it."""

from pydiff import backend
from pydiff.data import load
from pydiff.training import Options, Trainer, join, reading, settled, task_for
from pydiff.training.forecast import forecast
from pydiff.warm import warm


def dry_run(data, *, device="cpu", **options) -> str:
    """A few lines: memory from small steps, time from a few whole ones. Nothing is written.

    data, device, options: as for `pydiff.train`. ValueError, in one sentence, for a training that cannot fit into
    memory, with what would.
    """
    options = settled(Options.from_keywords(options), None, join("off"))
    with backend.use_device(device):
        dataset = load(data, **reading(options.to_config()))
        task, _ = warm(lambda network: task_for(dataset, options, network), options.init_from)
    return f"{dataset.summary()}\n{forecast(Trainer(task, options, device))}"
