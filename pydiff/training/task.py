"""What is learned: the loop asks a Task for batches and losses, and knows nothing else of it.

A batch is a pure function of (seed, step, numbers), where numbers are the samples' places in the global batch: half of
the numbers give, bit for bit, that half of the whole batch and its losses.
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

VLB = 0.001  # share of the variational bound, where the variance is learned (Nichol and Dhariwal 2021, section 3.1)


class Task:
    """Base of what the loop can train.

    model: the nn.Module whose parameters are learned. unit: what a sample is called on the progress bar.
    """

    model: Any  # nn.Module
    options: Any
    dataset: Any  # of tasks that `shown` serves, this and `read`
    read: Any
    unit = "samples"
    xp = np

    def to(self, xp):
        """Moves the model to the device of this array library, numpy or cupy, where batches are put from then on."""
        self.xp = xp
        self.model.to(xp)
        return self

    def batch(self, step: int, numbers) -> Any:
        """The samples with these numbers (N,) of the batch of this step, 1 or more: whatever `losses` wants."""
        raise NotImplementedError

    def losses(self, batch) -> Tensor:
        """What is minimised is the mean of these, (N,), one a sample. Dropout is switched on by the loop."""
        raise NotImplementedError

    def seen(self, batch) -> dict[str, np.ndarray]:  # noqa: ARG002
        """What `learned` is to know of a batch whose losses were computed: {name: (N, ...)}, small, on the CPU.

        Asked for when all else of the step is under way: it may wait for a GPU.
        """
        return {}

    def learned(self, seen: dict[str, np.ndarray]):
        """Called after a step that changed the weights, with what was `seen` in the whole batch of that step.

        The batch may have been computed in parts, by several processes: what changes here must follow from `seen`.
        """

    def shown(self, step, numbers):
        """(indices, x): the samples of `dataset` whose turn it is, as `read` of the codec gives them, mirrored or not.
        Those of the next step are asked for, too.
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
        """What decodes samples when they are needed (data.stream.StreamedImages); None if all are in memory."""
        return getattr(getattr(self, "dataset", None), "stream", None)

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays, besides the optimiser's, that change in training: {group: {name: array}}, to be written into."""
        return {}

    def identity(self) -> dict:
        """JSON of what a resumed run must find unchanged, apart from the options."""
        return {}

    def twin(self) -> Module:
        """A second model like `model`, to hold the average of its weights."""
        return twin(self.model)


@dataclasses.dataclass
class Batch:
    """x0 (N, ...) on the device; t (N,), the noise's key and the condition, N rows each. losses: (N,), unweighted."""

    x0: np.ndarray
    t: np.ndarray
    key: random.Key
    condition: Condition
    losses: Any = None

    def corner(self, side: int):
        """The same of the first side x side pixels of every image."""
        return dataclasses.replace(self, x0=np.ascontiguousarray(self.x0[:, :side, :side]))


class DiffusionTask(Task):
    """A network learns to take noise out of samples.

    dataset: data.Dataset. options: Options. model: a network other than the U-Net that the options describe; it must be
    registered (models.register) for a saved run to be opened again. codec: the data set's own if None.
    ValueError, in one sentence, for data that do not have what the options ask for.
    """

    unit = "images"

    def __init__(self, dataset, options, model: Module | None = None, codec: Codec | None = None):
        self.dataset, self.options = dataset, options.check()
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
        """x0 from the data in its order, mirrored or not, at drawn t; the condition withheld from a share of it."""
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
        """A second network, with a second text encoder if that is trained along."""
        return self.model.twin() if self.reads else super().twin()

    def parts(self, model: Any) -> tuple[Module, Conditioning]:
        """(network, conditioning) to draw with, of a model such as `twin` gives."""
        if not self.reads:
            return model, self.conditioning
        told, encoder = self.conditioning, self.encoder.with_network(model.text_encoder)
        return model.unet, Conditioning(told.classes, told.given, encoder, told.withheld)

    def losses(self, batch):
        """The error of the prediction, weighted, and what else the options add to it."""
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
        """t and the losses at it, unweighted, where the draw of t goes by them."""
        return {} if self.history is None else {"t": batch.t, "losses": to_host(batch.losses)}

    def learned(self, seen):
        """Takes note of the losses where the draw of t goes by them."""
        if self.history is not None:
            self.history.update(**seen)

    def state(self):
        """The losses seen, where the draw of t goes by them."""
        if self.history is None:
            return {}
        return {"timesteps": {name: getattr(self.history, name) for name in ("losses", "seen")}}

    def identity(self):
        """The data by name and fingerprint, the codec, the network, and the text encoder if there is one."""
        return {
            **({} if self.encoder is None else {"text_encoder": self.encoder.identity()}),
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint(),
            "samples": [len(self.dataset), *self.dataset.shape],
            "codec": self.codec.to_config(),
            "model": name_of(self.network),
        }
