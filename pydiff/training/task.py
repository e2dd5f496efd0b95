"""What is learned: the loop asks a Task for batches and losses, and knows nothing else about it.

A batch is a pure function of (seed, step, numbers), where numbers are the positions of its samples in the global batch:
computing half of the numbers gives, bit for bit, that half of the whole batch and of its losses.
"""

import dataclasses
from typing import Any

import numpy as np

from pydiff import random
from pydiff.arrays import to_host
from pydiff.codec import Codec
from pydiff.condition import Condition, Conditioning
from pydiff.data.order import batch_indices, mirrored, pick_captions
from pydiff.diffusion.loss import example_losses, loss_weight
from pydiff.diffusion.self_conditioning import conditioned
from pydiff.diffusion.timesteps import LossAware, draw_timesteps
from pydiff.models import ReadingUNet, name_of, twin
from pydiff.nn import Module
from pydiff.tensor import Tensor
from pydiff.training.captions import captions_for
from pydiff.training.config import build_process
from pydiff.training.networks import build_network
from pydiff.training.precision import in_bfloat16

VLB = 0.001  # weight of the variational bound if the variance is learned (Nichol and Dhariwal 2021, section 3.1)


class Task:
    """Base class of everything the loop can train.

    model: the nn.Module whose parameters are learned. unit: what samples are called on the progress bar.
    """

    model: Any  # nn.Module
    options: Any
    dataset: Any  # tasks that use `shown` have this and `read`
    read: Any
    unit = "samples"
    xp = np

    def to(self, xp):
        """Moves the model to the device of this array library, numpy or cupy; `batch` then puts its arrays there.
        Returns the task.
        """
        self.xp = xp
        self.model.to(xp)
        return self

    def batch(self, step: int, numbers) -> Any:
        """The samples of this step's batch at the positions `numbers` (N,), in whatever form `losses` takes. Steps
        count from 1.
        """
        raise NotImplementedError

    def losses(self, batch) -> Tensor:
        """The losses (N,), one per sample; their mean is minimised. The loop switches dropout on."""
        raise NotImplementedError

    def seen(self, batch) -> dict[str, np.ndarray]:  # noqa: ARG002
        """What `learned` needs to know of a batch whose losses were computed: {name: (N, ...)}, small, on the CPU.

        Called when everything else of the step has been launched, so it may wait for a GPU.
        """
        return {}

    def learned(self, seen: dict[str, np.ndarray]):
        """Called after a step that changed the weights, with what `seen` returned for that step's whole batch.

        The batch may have been computed in parts, by several processes: state changed here must depend on `seen` alone.
        """

    def shown(self, step, numbers):
        """(indices, x) of the samples of `dataset` used in this step; x is what the codec's reader `read` gives,
        mirrored or not.

        Also announces the indices of the next step to the data set, so that it can load them ahead.
        """
        options, seed = self.options, self.options.seed
        chosen, later = (
            batch_indices(len(self.dataset), options.batch_size, s, seed)[numbers] for s in (step - 1, step)
        )
        chosen = self.dataset.usable(chosen)
        self.dataset.ahead(later)
        return chosen, self.read(chosen, mirrored(step, seed, numbers) if options.flip else None)

    @property
    def stream(self):
        """The data.stream.StreamedImages that decodes samples on demand; None if all are in memory."""
        return getattr(getattr(self, "dataset", None), "stream", None)

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays, besides the optimiser's, that change in training: {group: {name: array}}. `Trainer.restore` writes
        into them.
        """
        return {}

    def identity(self) -> dict:
        """A JSON-serialisable dict of what must be unchanged, apart from the options, when a run is resumed."""
        return {}

    def twin(self) -> Module:
        """A second model like `model`, to hold the average of its weights."""
        return twin(self.model)


@dataclasses.dataclass
class Batch:
    """x0: (N, ...) on the device. t: (N,). key: of the noise. condition: N rows. losses: (N,), unweighted, once
    computed.
    """

    x0: np.ndarray
    t: np.ndarray
    key: random.Key
    condition: Condition
    losses: Any = None

    def corner(self, side: int):
        """This batch with only the first side x side pixels of every image."""
        return dataclasses.replace(self, x0=np.ascontiguousarray(self.x0[:, :side, :side]))


class DiffusionTask(Task):
    """Training a network to remove noise from samples.

    dataset: data.Dataset. options: Options. model: the network to train, instead of the U-Net that the options
    describe; it must be registered (models.register) for a saved run to be opened again. codec: by default the data
    set's own. Raises ValueError for data that lack what the options ask for.
    """

    def __init__(self, dataset, options, model: Module | None = None, codec: Codec | None = None):
        self.dataset, self.options, self.unit = dataset, options.check(), f"{dataset.noun}s"
        known = dataset.conditioning if options.conditional else Conditioning()
        if options.conditional and known.empty:
            raise ValueError(f"conditional training needs classes, but {dataset.name} has none; leave out conditional")
        if options.flip and not dataset.mirrors:
            raise ValueError(f"flip mirrors images, and {dataset.name} holds {dataset.noun}s; leave it out")
        encoder, self.captions, self.notes = captions_for(dataset, options.text, options.seed, model is not None)
        self.encoder: Any = encoder
        self.reads = encoder is not None and encoder.trained_along
        self.conditioning = Conditioning(known.classes, known.nothing, self.encoder.told() if self.reads else encoder)
        self.codec = dataset.coded(options.codec) if codec is None else codec
        self.read = self.codec.reader(dataset, options.flip)
        self.process = build_process(options)
        if model is None:
            width = None if encoder is None else encoder.width
            model = build_network(options, self.codec, self.conditioning.embeddings, width)
        self.network: Any = model
        self.model: Any = ReadingUNet(model, self.encoder.network) if self.reads else model
        self.history = LossAware(options.timesteps) if options.timestep_sampling == "loss_aware" else None

    def batch(self, step, numbers):
        """x0 from the data in their order, mirrored or not, and the t drawn for them; label_drop of the conditions are
        withheld.
        """
        options, seed, numbers = self.options, self.options.seed, np.asarray(numbers)
        chosen, x0 = self.shown(step, numbers)
        if self.history is not None:
            t, _ = self.history.draw(seed, step, numbers)
        else:
            kind, schedule = options.timestep_sampling, self.process.schedule
            t = draw_timesteps(kind, schedule, seed, step, numbers, options.batch_size, options.timestep_shift)
        condition = Condition(rows=len(numbers))
        if not self.conditioning.empty:
            withheld = random.uniform(random.key(seed, random.CONDITION, numbers, step)) < options.label_drop
            told = None if self.captions is None else pick_captions(self.captions, chosen, step, seed, numbers)
            condition = self.dataset.condition(chosen, self.conditioning, told).drop(withheld).to(self.xp)
        return Batch(self.xp.asarray(x0), t, random.key(seed, random.NOISE, numbers, step), condition)

    def twin(self):
        """A second network, with a second text encoder if that is trained too."""
        return self.model.twin() if self.reads else super().twin()

    def parts(self, model: Any) -> tuple[Module, Conditioning]:
        """(network, conditioning) to sample with, from a model such as `twin` returns."""
        if not self.reads:
            return model, self.conditioning
        told, encoder = self.conditioning, self.encoder.with_network(model.text_encoder)
        return model.unet, Conditioning(told.classes, told.given, encoder, told.withheld)

    def losses(self, batch):
        """The weighted error of the prediction, plus any further terms that the options add."""
        options, process, model = self.options, self.process, self.model
        if options.precision == "bfloat16":
            model = in_bfloat16(model)
        weights = None if options.loss_weight == "simple" else loss_weight(options.loss_weight, process, batch.t)
        if options.self_conditioning:
            model = conditioned(model, process, batch.key)
        more = {
            "weights": weights,
            "offset": options.offset_noise,
            "vlb": VLB if options.variance == "learned" else None,
        }
        losses = example_losses(process, model, batch.x0, batch.t, batch.key, **more, **batch.condition)
        if self.history is None:
            return losses
        batch.losses = losses.data
        return losses * self.xp.asarray(self.history.weights(batch.t), batch.x0.dtype)

    def seen(self, batch):
        """t and the unweighted losses at it if timesteps are drawn by loss ("loss_aware"), else nothing."""
        return {} if self.history is None else {"t": batch.t, "losses": to_host(batch.losses)}

    def learned(self, seen):
        """Records the losses if timesteps are drawn by loss ("loss_aware")."""
        if self.history is not None:
            self.history.update(**seen)

    def state(self):
        """The recorded losses if timesteps are drawn by loss ("loss_aware"), else nothing."""
        if self.history is None:
            return {}
        return {"timesteps": {name: getattr(self.history, name) for name in ("losses", "seen")}}

    def identity(self):
        """Name and fingerprint of the data, the codec, the network's class, and the text encoder if there is one."""
        return {
            **({} if self.encoder is None else {"text_encoder": self.encoder.identity()}),
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint(),
            "samples": [len(self.dataset), *self.dataset.shape],
            "codec": self.codec.to_config(),
            "model": name_of(self.network),
        }
