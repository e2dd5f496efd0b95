"""What test_distributed.py has mpiexec start: trains tiny models, and prints what came out as a line of JSON."""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

import pydiff
import pydiff.segment
from pydiff.data import Sounds, load
from pydiff.data.masks import Masked
from pydiff.training import DiffusionTask, Options, Trainer, join, opened, settled, training_steps
from tests.training.numbered_images import dataset

SMALL = {"channels": (8, 8), "groups": 4, "steps": 5, "batch_size": 10, "warmup": 1, "timesteps": 4, "sample_every": 0}
RANDOM = {"conditional": True, "dropout": 0.2, "flip": True, "timestep_sampling": "loss_aware", "shards": 5}


class Faulty(DiffusionTask):
    """Sample 7 of step 2 has a loss that is no number; in step 4 sample 3 has a gradient that is none."""

    def batch(self, step, numbers):
        batch = super().batch(step, numbers)
        batch.fault = self.xp.asarray(np.where((step == 2) & (numbers == 7), np.nan, 1.0).astype(np.float32))
        batch.steep = self.xp.asarray(np.where((step == 4) & (numbers == 3), np.inf, 0.0).astype(np.float32))
        return batch

    def losses(self, batch):
        losses = super().losses(batch)
        return losses * batch.fault + steep(losses, batch.steep)


def steep(x, slope):
    """0 with this derivative, wherever x is."""

    class Steep(pydiff.Function):
        def forward(self, x):
            return 0 * x

        def backward(self, g):
            return 0 * g + slope

    return Steep.apply(x)


def digest(trainer, states):
    """Everything that must be the same, as JSON."""
    arrays = trainer.arrays()
    sums = {f"{g} {n}": hashlib.sha256(a.tobytes()).hexdigest() for g, part in arrays.items() for n, a in part.items()}
    return {"states": [[s.step, s.loss, s.grad_norm, s.bad] for s in states], "sums": sums}


def trained(task, options, group):
    """The digest of a training in memory."""
    options = settled(options, None, group)
    trainer = Trainer(task(dataset(), options), options, group=group)
    return digest(trainer, training_steps(trainer))


def bits(group):
    """Trainings with everything that is random, and with steps that go wrong."""
    result = {"random": trained(DiffusionTask, Options(**SMALL, **RANDOM), group)}
    result["faulty"] = trained(Faulty, Options(**SMALL, shards=6), group)
    result["chain"] = trained(DiffusionTask, Options(**SMALL | {"batch_size": 7}), group)
    return result


def told_of(shape, n=12):
    """n images of this shape, (H, W, C), that say nothing."""
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def tasks(latent):
    """{name: a training of three steps, as a user calls it}. latent: folder of an autoencoder for 8 x 8 x 3."""
    images, words = told_of((8, 8, 3)), [f"{'red' if i % 2 else 'green'} circle {i % 3}" for i in range(12)]
    labels, rng = np.arange(12) % 3, np.random.default_rng(0)
    captioned, labelled = load(images, captions=words), load(images, labels=labels)
    clips = load(rng.integers(0, 256, (10, 3, 8, 8, 3), np.uint8), labels=np.arange(10) % 3)
    waves = Sounds("waves", rng.uniform(-1, 1, (12, 1, 256, 1)).astype(np.float32), rate=800)
    masked = Masked("masked", images, (images[..., 0] > 128).astype(int), ["dark", "bright"])
    points = load(rng.standard_normal((20, 3)), labels=np.arange(20) % 2)
    given = {"progress": False, "steps": 3, "batch_size": 6, "warmup": 1, "shards": 4, "groups": 4}
    small = given | {"channels": (8, 8), "timesteps": 10, "sample_every": 0, "dropout": 0.1}
    few = {name: given[name] for name in ("progress", "steps", "batch_size", "warmup", "shards")}
    some = {"conditional": True, "timestep_sampling": "loss_aware", "label_drop": 0.4}
    return {
        "learned words": lambda: pydiff.train(captioned, text="learned", **small, label_drop=0.4),
        "glove": lambda: pydiff.train(captioned, text="glove", **small, timestep_sampling="loss_aware"),
        "autoencoder": lambda: pydiff.train(images, model="autoencoder", **given, channels=(8, 8)),
        "latent": lambda: pydiff.train(labelled, latent=latent, **small, **some),
        "classifier": lambda: pydiff.train(labelled, model="classifier", **small, flip=True),
        "sound": lambda: pydiff.train(waves, codec="waveform", **small, self_conditioning=True),
        "points": lambda: pydiff.train(points, **few, channels=(16,), timesteps=10, sample_every=0, **some),
        "clips": lambda: pydiff.train(clips, images=labelled, **small, conditional=True),
        "segmentation": lambda: pydiff.segment.train(masked, **few, channels=(8, 8)),
        "learned variance": lambda: pydiff.train(labelled, **small, **some, variance="learned", recompute=True),
    }


def of_task(train):
    """What must be the same: losses and norms of all steps, and a digest of the weights and of what they draw."""
    made, digest = train(), hashlib.sha256()
    model = made.segmenter.model if hasattr(made, "segmenter") else made.model
    log = made.log if isinstance(made.log, list) else made.log()
    for name, array in sorted(model.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    if hasattr(made, "sample_states"):
        digest.update(np.ascontiguousarray(made.sample(2, steps=2)).tobytes())
    return [[entry["step"], entry["loss"], entry["grad_norm"]] for entry in log], digest.hexdigest()


OPTIONS, VERSION, KERNELS, DATA = "options", "version", "kernels", "data"


def refusal(group, how):
    """Why no training begins where process 1 differs in this from the others; all processes say the same."""
    other = group.rank == 1
    options = Options(**SMALL | {"seed": 7 if other and how == OPTIONS else 0})
    version, arithmetic = pydiff.__version__, pydiff.backend.arithmetic
    if other and how == VERSION:
        pydiff.__version__ = "0.0.1"
    if other and how == KERNELS:
        pydiff.backend.arithmetic = lambda: arithmetic() | {"generation": 1}
    try:
        with opened(DiffusionTask(dataset(22 if other and how == DATA else 23), options), options, group=group):
            return "they began"
    except ValueError as error:
        return str(error)
    finally:
        pydiff.__version__, pydiff.backend.arithmetic = version, arithmetic


def before_every_batch(hook):
    """hook(step) is called whenever a diffusion task, of whatever kind, is asked for a batch."""
    batch = DiffusionTask.batch

    def hooked(self, step, numbers):
        hook(step)
        return batch(self, step, numbers)

    DiffusionTask.batch = hooked


def signal_once(step, name):
    """A hook that sends this process a signal at that step; a second Ctrl-C would be another matter."""
    sent = []

    def hook(now):
        if now == step and not sent:
            sent.append(now)
            os.kill(os.getpid(), getattr(signal, name))

    return hook


def main(what, *arguments):
    if what == "bits":
        group = join()
        with group.together():
            result = bits(group)
        if group.first:
            print(json.dumps(result), flush=True)
    elif what == "tasks":
        found = {name: of_task(train) for name, train in tasks(arguments[0]).items()}
        if join().first:
            print(json.dumps(found), flush=True)
    elif what == "folder":  # a run, stopped by a signal that one process gets; `pydiff.train` as a user calls it
        out, at, step, name = arguments
        if join().rank == int(at):
            before_every_batch(signal_once(int(step), name))
        pydiff.train(dataset(), out=out, progress=False, **SMALL | {"steps": 12, "checkpoint_every": 3})
    elif what == "error":  # in one process, in the middle of a step; or in the folder, which is the first one's
        (out,) = arguments
        rank = join().rank

        def fail(step):
            if rank == 1 and step == 2:
                raise ValueError("this process has had enough")

        before_every_batch(fail)
        main_of_pydiff(lambda: pydiff.train(dataset(), out=out, progress=False, **SMALL))
    elif what == "full":  # no file of the first process may grow for some steps; under one process, as a plain run
        out, until = arguments
        first, whole = join().first, resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(step):
            if first and int(until) and step in (3, int(until)):
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, whole[1]) if step == 3 else whole)  # the log has room

        before_every_batch(fill)
        main_of_pydiff(
            lambda: pydiff.train(dataset(), out=out, progress=False, **SMALL | {"steps": 9, "checkpoint_every": 2})
        )
    elif what == "strangers":  # what each process does, and with what, is not the same everywhere
        group = join()
        said = [refusal(group, how) for how in (OPTIONS, VERSION, KERNELS, DATA)]
        if group.first:
            print(json.dumps(said), flush=True)
    elif what == "other":  # data that are not the same everywhere
        main_of_pydiff(lambda: pydiff.train(dataset(23 + join().rank), progress=False, **SMALL))
    elif what == "hang":
        rank = join().rank

        def hang(step):
            if rank == 1 and step == 2:
                time.sleep(600)

        before_every_batch(hang)
        pydiff.training.distributed.ROLL_CALL = 1.0
        pydiff.train(dataset(), progress=False, **SMALL)


def main_of_pydiff(call):
    """Errors as the command line says them."""
    import pydiff.cli

    class Command:
        def run(self):
            call()

    pydiff.cli.tyro.cli = lambda *_, **__: Command()
    sys.exit(pydiff.cli.main([]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(*sys.argv[1:])
