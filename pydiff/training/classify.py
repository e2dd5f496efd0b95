"""Training a classifier of noisy samples, at every noise level, which can steer a network that was trained without
classes (Dhariwal & Nichol 2021, section 4.1).
"""

import numpy as np

from pydiff import ops, random
from pydiff.condition import LABELS, Conditioning
from pydiff.diffusion.timesteps import draw_timesteps
from pydiff.models import NoisyClassifier, name_of
from pydiff.tensor import Tensor
from pydiff.training.config import Options, build_process, default_channels, levels_with_attention
from pydiff.training.task import Batch, Task

# Options of diffusion models that do not apply to a classifier.
UNUSED = (
    "init_from", "prediction", "loss_weight", "variance", "self_conditioning", "offset_noise", "conditional", "text",
    "label_drop", "frames", "frame_rate", "image_share", "recompute", "precision",
)  # fmt: skip


class ClassifyTask(Task):
    """Training a NoisyClassifier on the classes of a data set of images or sounds, noised by the options' schedule.

    dataset: data.Dataset with classes. options: Options. Raises ValueError for data without classes or of another kind,
    and for options that apply only to diffusion models.
    """

    def __init__(self, dataset, options):
        self.dataset, self.options, self.unit = dataset, checked(options), f"{dataset.noun}s"
        self.conditioning = Conditioning(dataset.classes)
        count = len(dataset.classes or ())
        if count < 2:
            raise ValueError(f"a classifier needs classes, at least 2, and {dataset.name} has {count or 'none'}")
        if options.flip and not dataset.mirrors:
            raise ValueError(f"flip mirrors images, and {dataset.name} holds {dataset.noun}s; leave it out")
        self.codec = dataset.coded(options.codec)
        if len(self.codec.shape) != 3:
            raise ValueError(f"classifiers are for images and sounds, and {dataset.name} holds {dataset.noun}s")
        self.read, self.process = self.codec.reader(dataset, options.flip), build_process(options)
        self.model = build_classifier(options, self.codec, count)

    def batch(self, step, numbers):
        """x0 in the data's order at drawn t, as for a diffusion model; the condition holds the classes to be
        predicted.
        """
        options, seed, numbers = self.options, self.options.seed, np.asarray(numbers)
        chosen, x0 = self.shown(step, numbers)
        kind, schedule = options.timestep_sampling, self.process.schedule
        t = draw_timesteps(kind, schedule, seed, step, numbers, options.batch_size, options.timestep_shift)
        wanted = self.dataset.condition(chosen, self.conditioning)
        return Batch(self.xp.asarray(x0), t, random.key(seed, random.NOISE, numbers, step), wanted)

    def losses(self, batch):
        """-log p(class | x_t), one per sample, (N,)."""
        x_t, _ = self.process.q_sample(batch.x0, batch.t, batch.key, keep=False)
        return -ops.log_softmax(self.model(Tensor(x_t), batch.t))[np.arange(len(x_t)), batch.condition[LABELS]]  # pyright: ignore[reportArgumentType]

    def identity(self):
        """The data, the codec and the network's class."""
        return {
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint(),
            "samples": [len(self.dataset), *self.dataset.shape],
            "codec": self.codec.to_config(),
            "model": name_of(self.model),
        }


def checked(options) -> Options:
    """Returns the options; raises ValueError for options that do not apply to a classifier, and for other samplings of
    t.
    """
    plain = Options()
    for name in UNUSED:
        if getattr(options, name) != getattr(plain, name):
            raise ValueError(f"{name} is an option of diffusion models; a classifier is trained without it")
    if options.timestep_sampling == "loss_aware":
        raise ValueError("timestep_sampling='loss_aware' is for diffusion models; choose another for a classifier")
    return options.check()


def build_classifier(options, codec, classes) -> NoisyClassifier:
    """The classifier of samples of this codec, with the widths and the attention of the corresponding U-Net."""
    height, width, c = codec.shape
    line = height == 1
    shortest = max(2, round(width / 64)) if line else min(height, width)
    channels = options.channels or default_channels(shortest)[:3]
    return NoisyClassifier(
        classes=classes,
        in_channels=c,
        line=line,
        block_out_channels=list(channels),
        layers_per_block=options.layers,
        attention=list(levels_with_attention(options, channels, shortest)),
        attention_head_dim=options.head_dim,
        norm_num_groups=options.groups,
        dropout=options.dropout,
        seed=options.seed,
    )
