"""A pipeline that was trained without classes, steered by a classifier (Dhariwal & Nichol 2021, algorithm 2; Kim et al.
2022, "Guided-TTS 2": a model of untranscribed speech, steered by a classifier of phonemes).

    steered = SteeredPipeline(run.pipeline, judge)      `Run.steered` does this
    steered.sample(4, asked=steered.conditioning.rows(range(4), ["seven"] * 4), guidance=0.5)

It is a pipeline with the classifier's classes: it does everything that conditional models do, with `guidance` as the
strength of the steering, 0 for none. Neither network was trained with the other, and no weights change.
"""

import math

import numpy as np

from pydiff import backend, ops
from pydiff.arrays import array_module
from pydiff.condition import LABELS, Conditioning
from pydiff.diffusion.denoiser import denoiser
from pydiff.diffusion.guidance import classifier_guided
from pydiff.pipeline import Pipeline
from pydiff.tensor import Tensor

MEASURES = ("noise", "gradient")


class SteeredPipeline(Pipeline):
    """A Pipeline whose samples are pushed to where a classifier is more certain of a class.

    pipeline: of a model that was trained without classes, or is then asked for nothing. classifier: a ClassifierRun
    with the same codec, trained on the same noise levels. by: what scales the push; "noise": its length is `guidance`
    times that of the predicted noise, at every level (Guided-TTS, eq. 10); "gradient": it is `guidance` times the
    gradient (Dhariwal & Nichol, algorithm 2). Raises ValueError if the two do not fit together.
    """

    kept_elsewhere = "a steered model is two networks; keep the folders of the run and of the classifier"

    def __init__(self, pipeline, classifier, by="noise"):
        check_pair(pipeline, classifier, by)
        kind = {"variance": pipeline.variance, "self_conditioning": pipeline.self_conditioning}
        kind |= {"device": pipeline.device, "scheduler": pipeline.scheduler}
        super().__init__(pipeline.model, pipeline.process, pipeline.codec, Conditioning(classifier.classes), **kind)
        self.plain, self.classifier, self.by = pipeline.conditioning, classifier, by
        self.default_guidance = 0.1 if by == "noise" else 1.0
        for p in classifier.model.parameters():
            p.requires_grad = False  # only the gradient of x is needed
        self.to(pipeline.device)

    @property
    def networks(self):
        """Both networks, the model's and the classifier's."""
        return (self.model, self.classifier.model)

    @property
    def described(self):
        """Further metadata for a sample's file."""
        return {"steered by": self.by}

    def to(self, device):
        """Moves both networks to a device. Returns the pipeline."""
        super().to(device)
        with backend.use_device(device) as xp:
            self.classifier.model.to(xp)
        return self

    def denoiser(self, condition, guidance=1.0, interval=None, rescale=0.0, learned=False):
        """(model, 1.0): the plain network, steered to the classes of this condition. See `classifier_guided`."""
        if rescale:
            raise ValueError("rescale is for models that were trained with their condition; leave it out")
        with backend.use_device(self.device) as xp:
            nothing = self.plain.nothing_asked(condition.rows).to(xp)
        kind = {"self_conditioning": self.self_conditioning, "limits": self.codec.limits, "learned": learned}
        model, _ = denoiser(self.model, self.process, self.codec.shape[-1], nothing, **kind)
        wanted = log_probability_of(self.classifier.model, condition[LABELS], len(self.classifier.classes))
        interval = (0.0, math.inf) if interval is None else interval
        return classifier_guided(model, wanted, self.process, guidance, self.by == "noise", interval), 1.0


def log_probability_of(network, wanted, count):
    """A function (Tensor x (N, ..), t (N,)) -> Tensor (N,), log p of the classes `wanted` (N,); 0 where it is `count`,
    which means no class.
    """
    wanted = np.asarray(wanted)
    rows, asked = np.arange(len(wanted)), wanted < count

    def log_probability(x, t):
        found = ops.log_softmax(network(x, t))[rows, np.where(asked, wanted, 0)]
        return found * Tensor(array_module(x.data).asarray(asked.astype(x.dtype)))

    return log_probability


def check_pair(pipeline, classifier, by):
    """Raises ValueError for a model and a classifier that do not fit together."""
    if by not in MEASURES:
        raise ValueError(f"a push is measured by {' or '.join(MEASURES)}, got {by!r}")
    if type(pipeline) is not Pipeline or pipeline.process.preconditioned:
        raise ValueError(
            "classifiers steer models that pydiff trained, with another prediction than edm; use one of those"
        )
    if not pipeline.conditioning.empty and not pipeline.conditioning.nothing_asked(1).has_null:
        raise ValueError("this model was never asked for nothing, so a classifier cannot steer it; use another")
    ours, theirs = pipeline.codec.to_config(), classifier.codec.to_config()
    if ours != theirs:
        name = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"the model's samples have {name} {ours.get(name)}, the classifier's {theirs.get(name)}; train both on "
            "samples of the same kind and size"
        )
    a, b = pipeline.process.schedule, classifier.process.schedule
    if a.T != b.T or not (np.allclose(a.alpha, b.alpha) and np.allclose(a.sigma, b.sigma)):
        raise ValueError(
            f"the model's noise levels are those of {a.name}, {a.T} of them, the classifier's of {b.name}, {b.T}; "
            "train the classifier with the same schedule and timesteps"
        )
