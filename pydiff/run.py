"""The front door: `train` learns from data, `load` opens what was learned, `Run` draws samples, edits and reports.

A Run holds a Pipeline (which draws the samples), the history of a training and the folder it was saved in. Everything
it does is delegated to modules below, none of which knows about Run.
"""

import logging

import numpy as np

from pydiff import backend, edit
from pydiff.autoencoding import holds_autoencoder, load_autoencoder, train_named
from pydiff.classifying import holds_classifier, load_classifier, opened_classifier, train_classifier
from pydiff.condition import Conditioning
from pydiff.data import load as load_data
from pydiff.data.origin import Origin
from pydiff.formats import opened as opened_model
from pydiff.formats.diffusers import pipeline as pipeline_folder
from pydiff.latent_space import opened_in
from pydiff.mistakes import keywords, refuse_unknown
from pydiff.pipeline import Pipeline, how_many, numbered, pixels_of
from pydiff.preview import preview_png
from pydiff.printed import all_printable, printable
from pydiff.reopen import all_or_some, describe, finish, open_folder
from pydiff.steering import SteeredPipeline
from pydiff.store.log import Log
from pydiff.trained import place as shipped
from pydiff.training import Interrupted, Options, fit, join, opened, reading, settled, task_for
from pydiff.training.changes import heard
from pydiff.training.forecast import check_room
from pydiff.training.precision import low_precision
from pydiff.training.suited import suited
from pydiff.warm import warm


class Run:
    """A trained (or half-trained) diffusion model with everything needed to use it and to look at it.

    model: the network with averaged weights. process: its diffusion process. options: dict of the training options.
    classes: names of the classes of a conditional model, else None. step: number of training steps behind its weights.
    directory: the run's Path, or None. data_name: what it was trained on; origin: what else is known about that data.
    device: where the model is and where it samples, "cpu", "cuda" or "simt"; `to` moves it. variance,
    self_conditioning: see Options. log: a Log, or dicts. pipeline: the Pipeline that draws the samples. notes:
    sentences on what `load` assumed or ignored.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        model,
        process,
        options,
        *,
        classes=None,
        data_name="",
        step=0,
        directory=None,
        dataset=None,
        log=(),
        origin=None,
        variance="fixed",
        self_conditioning=False,
        device="cpu",
        pipeline=None,
    ):
        if pipeline is None:
            kind = {"variance": variance, "self_conditioning": self_conditioning, "device": device}
            codec = pixels_of(model, self_conditioning)
            pipeline = Pipeline(model, process, codec, Conditioning(classes), **kind)
        self.pipeline, self.options, self.directory = pipeline, options, directory
        self.origin = Origin(data_name) if origin is None else origin
        self._step, self._dataset, self._log = step, dataset, log if isinstance(log, Log) else Log(entries=log)

    @classmethod
    def of_pipeline(cls, pipeline, options, **history):
        """A Run around a Pipeline of any kind. history: keywords data_name, step, directory, dataset, log, origin."""
        return cls(pipeline.model, pipeline.process, options, pipeline=pipeline, **history)

    model = property(lambda self: self.pipeline.model)
    process = property(lambda self: self.pipeline.process)
    codec = property(lambda self: self.pipeline.codec)
    conditioning = property(lambda self: self.pipeline.conditioning)
    classes = property(lambda self: self.pipeline.conditioning.classes)
    variance = property(lambda self: self.pipeline.variance)
    self_conditioning = property(lambda self: self.pipeline.self_conditioning)
    device = property(lambda self: self.pipeline.device)
    data_name = property(lambda self: self.origin.name)
    step = property(lambda self: self._step() if callable(self._step) else self._step)
    parameters = property(lambda self: self.pipeline.parameters, doc="Number of trained parameters.")

    @property
    def name(self):
        """The folder's name if the run has one, else the name of the data set."""
        return printable(self.directory.name) if self.directory is not None else self.data_name

    @property
    def shape(self):
        """Shape of one diffused sample, without the axis of samples: (H, W, C) for an image."""
        return self.codec.shape

    def to(self, device):
        """Moves the model to `device`, where it then stays and samples. Returns the run. See `Pipeline.to`."""
        self.pipeline.to(device)
        return self

    def dataset(self, data=None):
        """The training data, loaded again if not in memory, from where they were or from `data`. Raises ValueError if
        they are missing there, or have changed.
        """
        if self._dataset is None or data is not None:
            self._dataset = self.origin.load(self._read, data)
        return self._dataset

    def _read(self, source):
        return load_data(source, **reading(self.options))

    def log(self):
        """One dict per training step: step, loss, lr, grad_norm, images_per_second, time, device."""
        return self._log.entries

    def sample(
        self,
        n=None,
        seed=0,
        sampler=None,
        steps=None,
        labels=None,
        guidance=None,
        eta=0.0,
        *,
        prompts=None,
        negative_prompt=None,
        condition=None,
        device=None,
        **more,
    ):
        """Draws n new images, 16 if None: (n, H, W, C) uint8. Image i depends only on (seed, i), not on n or
        batch_size.

        sampler: a name in pydiff.diffusion.samplers.SAMPLERS (docs/samplers.md helps to choose); None takes the
            scheduler that the model came with, else ddim.
        steps: how many of the T noise levels to visit; by default 50, or all T if there are fewer. spacing: which ones
            ("trailing", "leading", "linspace", "karras", "exponential", "continuous").
        eta: fraction of fresh noise in ddim and dpm2, 0 to 1.
        labels: class numbers or names (n,), for a conditional model; by default the classes take turns.
        prompts: with a text encoder: n images of each (1 if n is None), one prompt after the other; image k of each
            starts from noise k. "[a] - [b] + [c]" is computed. negative_prompt: what guidance leads away from.
        condition: other arrays that the model was trained with, by name, or what `embed` returns.
        guidance: how strongly to follow labels, prompts and condition (Ho & Salimans 2022); 1 is no guidance, None the
            model's default. interval: (low, high), the noise levels sigma / alpha at which it acts. rescale: 0 to 1,
            how much of the excess contrast is removed.
        batch_size: how many images to draw at a time. progress: True shows a bar.
        device: "cpu", "cuda" or "simt" moves the model there, where it then stays; None leaves it where it is.

        All other keywords are options of the sampler, such as order, churn, clip or threshold; see its docstring.
        """
        self.to(self.device if device is None else device)
        numbers, prompts = _of_each(n, prompts)
        asked = self.conditioning.rows(numbers, labels, condition, prompts, negative_prompt)
        return self.pipeline.sample(numbers, seed, sampler, steps, asked, guidance, eta, **more)

    def embed(self, prompt):
        """A prompt as a Condition, for `condition=`. So is any combination, such as embed(a) - embed(b) + embed(c)."""
        return self.conditioning.embed(prompt)

    def sample_states(
        self,
        n=16,
        seed=0,
        sampler=None,
        steps=None,
        labels=None,
        guidance=None,
        eta=0.0,
        *,
        prompts=None,
        negative_prompt=None,
        condition=None,
        device=None,
        **more,
    ):
        """The reverse process as a generator of SamplerState, one per step, with arrays on the model's device. n:
        number of images, or their numbers. prompts: one for each of them, or one for all. The other arguments are those
        of `sample`, apart from batch_size and progress.
        """
        self.to(self.device if device is None else device)
        numbers = numbered(n)
        asked = self.conditioning.rows(numbers, labels, condition, prompts, negative_prompt)
        return self.pipeline.sample_states(numbers, seed, sampler, steps, asked, guidance, eta, **more)

    def inpaint(self, images, mask, **options):
        """Redraws the images where mask is 1 and keeps them where it is 0: (N, H, W, C) uint8. See `edit.inpaint`.

        All edits take labels, condition and negative_prompt as `sample` does, and prompts, one for each image or one
        for all; without any of these, the model draws unconditionally.
        """
        return edit.inpaint(self.pipeline, images, mask, **edit.given(edit.inpaint, self.conditioning, images, options))

    def image_to_image(self, images, strength=0.5, **options):
        """Adds noise to the images and denoises them again: (N, H, W, C) uint8. See `edit.image_to_image`."""
        return edit.image_to_image(
            self.pipeline, images, strength, **edit.given(edit.image_to_image, self.conditioning, images, options)
        )

    def variations(self, images, strength=0.3, **options):
        """Images like these: (N, H, W, C) uint8. See `edit.variations`."""
        return edit.variations(
            self.pipeline, images, strength, **edit.given(edit.variations, self.conditioning, images, options)
        )

    def interpolate(self, seed_a, seed_b, shares, *, label=None, condition=None, **options):
        """Images between those of two seeds: (K, H, W, C) uint8. See `edit.interpolate`. label: class of all."""
        n, words = np.size(shares), ("prompts", "negative_prompt")
        given = {"condition": condition} | {name: options.pop(name) for name in words if name in options}
        given |= {} if label is None else {"labels": np.full(n, label)}
        given = edit.given(edit.interpolate, self.conditioning, None, {**given, **options}, n)
        return edit.interpolate(self.pipeline, seed_a, seed_b, shares, **given)

    def steered(self, classifier, by="noise"):
        """This model as a Run that is steered by the classes of a ClassifierRun (classifier guidance); see steering.py.

        classifier: one, or its folder. by: "noise" or "gradient", what scales the push; `guidance` is its strength.
        """
        steered = SteeredPipeline(self.pipeline, opened_classifier(classifier), by)
        return Run.of_pipeline(steered, self.options, step=self.step, origin=self.origin)

    def save(self, directory, dtype=None):
        """Writes the model as a folder that pydiff.load and diffusers' DDPMPipeline.from_pretrained open.

        dtype: of the weights in the file, "float16" or "bfloat16" for half the size; None keeps their dtype. Returns a
        list of sentences on what diffusers cannot do with the folder, or what is missing from it; usually empty. A
        Stable Diffusion model is written as a folder for diffusers' StableDiffusionPipeline. See docs/folders.md.
        """
        origin = self.origin.to_config(place=False)  # the folder may be given to others
        history = {"options": all_printable(self.options), "data": self.data_name, "step": self.step, "origin": origin}
        return opened_model.save(directory, self.pipeline, history, dtype)

    def report(self, directory=None, data=None, **options):
        """Writes report.html, samples.png and the film to the run's folder or `directory`; returns the page's path.

        data: where the training data are, if they have moved. Without them, the page shows only the few samples that
        were kept with the run, and no nearest neighbours.
        """
        from pydiff.report.write import OF_THE_RUN, write_report

        refuse_unknown(options, keywords(write_report, apart=OF_THE_RUN))
        directory = self.directory if directory is None else directory
        if directory is None:
            raise ValueError("this run has no directory of its own; say where the page shall be, directory= (--out)")
        dataset, whole, note = self._dataset, True, ""
        if dataset is None or data is not None:
            dataset, whole, note = all_or_some(self.origin, self._read, data)
            for sentence in filter(None, (note, self.origin.namesake() if data is None else "")):
                logging.getLogger("pydiff").warning("%s", sentence)
        known = {"name": self.name, "log": self.log(), "step": self.step, "options": self.options}
        known |= {"whole": whole, "note": note, "count": self.origin.count}
        return write_report(self.pipeline, dataset, directory, **known, **options)

    def _repr_html_(self):
        from pydiff.report import html_summary

        return html_summary(self.name, self.pipeline, self.log(), self.directory)

    def __repr__(self):
        return f"Run({self.name!r}, {self.step} steps on {self.data_name!r}, {self.parameters:,} parameters)"


def _of_each(n, prompts):
    """(numbers, prompts) for n samples of each prompt, one prompt after the other, or for n samples without prompts."""
    if prompts is None:
        return np.arange(16 if n is None else how_many(n)), None
    prompts, n = [prompts] if isinstance(prompts, str) else list(prompts), 1 if n is None else how_many(n)
    return np.tile(np.arange(n), len(prompts)), [prompt for prompt in prompts for _ in range(n)]


def load(directory, **wishes):
    """Opens the folder of a run, or a model folder written by Run.save or by diffusers. Returns a Run, or an
    AutoencoderRun or ClassifierRun if that is what the folder holds.

    directory: the folder, or a single file of Stable Diffusion. "digits" is the model that comes with pydiff, unless
    the current directory has a folder of that name. A run that is unfinished, or still in progress, is opened from its
    newest checkpoint.

    wishes: what the folder does not say, or says wrongly:
        scheduler: a configuration, a path to one, or a class's name, "DDIMScheduler".
        prediction: "eps", "x0" or "v". size: a side or (height, width). classes: names.
        variant: of the weights, such as "fp16". self_conditioning: True or False.

    `Run.sample` uses the folder's scheduler unless it is given a sampler. What was assumed or ignored is in `notes` and
    goes to the logger "pydiff", which prints it if logging is not configured.

    Raises FileNotFoundError or CheckpointError for a missing or damaged folder. docs/folders.md lists what opens.
    """
    refuse_unknown(wishes, pipeline_folder.Wishes._fields)
    directory = shipped(directory)
    if not directory.is_dir() and not directory.is_file():
        raise FileNotFoundError(f"{directory} is not a folder; give the folder of a run or of a saved model")
    for holds, load_it, what in (
        (holds_autoencoder, load_autoencoder, "an autoencoder"),
        (holds_classifier, load_classifier, "a classifier"),
    ):
        if holds(directory):
            if told := [name for name, wish in wishes.items() if wish not in (None, (), False)]:
                raise ValueError(f"{directory} holds {what}, which has no {' or '.join(told)}; leave that out")
            return load_it(directory)
    pipeline, options, step, origin, log, notes = open_folder(directory, pipeline_folder.Wishes(**wishes))
    beside = {} if log is None else {"directory": directory, "log": log}
    run = Run.of_pipeline(pipeline, options, step=step, origin=origin, **beside)
    run.notes = tuple(notes)
    return run


@backend.trimmed()
def train(
    data, *, out=None, progress=True, device="cpu", model=None, codec=None, images=None, latent=None,
    announce=None, watch=None, distributed="auto", **options,
):  # fmt: skip
    """Trains a diffusion model on images, sounds, clips or points, and returns the finished `Run`.

    data: a name ("digits", "emoji", "faces", "fashion", "tones", "moving-shapes", "swiss-roll"), a folder of images,
        sounds or films, an archive, a .npz, .npy or .parquet file, an array (N, H, W, C) of images, (N, F, H, W, C) of
        clips or (N, D) of points, or a Dataset; docs/data.md. images: data to be learned beside clips.
    out: the folder for checkpoints, log, samples and the finished model in out/model. The same call on the same folder
        continues where the last one stopped, bitwise equal to an uninterrupted run. None keeps everything in memory.
    device: "cpu", "cuda" (a GPU, through CuPy) or "simt" (the emulator). A run may continue on another device than it
        began on; its results then differ by rounding.
    model: a network of your own, see `DiffusionTask`; "autoencoder", which returns an AutoencoderRun and takes the
        options of AutoencoderOptions; or "classifier" of noisy samples, which returns a ClassifierRun, see
        `Run.steered`. codec: a codec of your own, or a name, see Options.
    latent: an AutoencoderRun, or the folder of one, in whose latent space to diffuse.
    progress: whether to show a bar. announce: called with a few lines about the data before the first step. watch:
        called with the step number and a few images (N, H, W, C) uint8 whenever samples are drawn during training;
        needs `out`.
    distributed: "auto" shares the work with the other processes that mpiexec started, "mpi" insists on that, "off"
        works alone; docs/distributed.md.

    All other keywords are fields of pydiff.Options.

    Raises ValueError or TypeError for data or options that cannot work, RuntimeError for a device that cannot be used,
    and Interrupted (a KeyboardInterrupt) after Ctrl-C, with a checkpoint written.
    """
    if model == "classifier" and latent is None:
        return train_classifier(data, out=out, progress=progress, device=device, announce=announce,
                                distributed=distributed, codec=codec or "auto", **options)  # fmt: skip
    if isinstance(model, str):
        return train_named(model, data, latent, codec, out=out, progress=progress, device=device, announce=announce,
                           watch=watch, distributed=distributed, **options)  # fmt: skip
    group = join(distributed)
    with group.together(), group.own_processors(device):
        announce, tell = heard(announce, group.first, watch)
        named = {"codec": codec} if isinstance(codec, str) else {}
        given, options = options, settled(Options.from_keywords(options | named), out, group)
        low_precision(options, device)  # is refused before data are read
        with backend.use_device(device):  # a missing GPU is reported before a large data set is read
            dataset = load_data(data, **reading(options.to_config()))
            announce(f"{dataset.summary()}; training on {device}{group.described()}")
            options = suited(options, given, dataset, model, out, group, announce, latent is not None)
            codec = opened_in(latent, dataset, out) if latent is not None else None if named else codec
            task, begin = warm(
                lambda network: task_for(dataset, options, network, codec, images), options.init_from, out, model
            )
            for note in task.notes:
                announce(note)
        with opened(task, options, out, device, group, begin) as (trainer, folder):
            average = trainer.ema_model()
            run = _run_of(trainer, average, folder, Origin.of(dataset, data))
            if folder is not None:
                describe(folder, run.pipeline, run.origin, average.parameters())
                run.codec.keep_in(folder.path)
            tell(trainer.notes)
            check_room(trainer)
            try:
                told = fit(trainer, run._log, folder, lambda: preview_png(run, watch), progress and group.first)
            except Interrupted as interrupted:
                interrupted.run = run
                raise
            finally:
                run.directory = None if folder is None else folder.path  # it may have been moved
            tell(told)
            run.notes = (*trainer.notes, *told)
            if folder is not None:
                finish(folder, run.save)
    return run


def _run_of(trainer, average, folder, origin):
    """A live view of a training in progress, as a Run. average: the trainer's ema_model."""
    task, options = trainer.task, trainer.options
    kind = {"variance": options.variance, "self_conditioning": options.self_conditioning, "device": trainer.device}
    network, conditioning = task.parts(average)
    return Run.of_pipeline(
        Pipeline(network, task.process, task.codec, conditioning, **kind),
        options.to_config(),
        origin=origin,
        step=lambda: trainer.step,
        directory=None if folder is None else folder.path,
        dataset=task.dataset,
        log=() if folder is None else folder.log,
    )
