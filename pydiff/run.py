"""The front door: `train` learns from data, `load` opens what was learned, `Run` draws from it, edits with it, shows
it.

A Run holds a Pipeline (what draws), the history of a training, and the folder it lies in; everything it can do is done
by a module below that knows no Run.
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
from pydiff.pipeline import Pipeline, pixels_of
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
    classes: names of the classes of a conditional model, else None. step: training steps that its weights have seen.
    directory: the run's Path, or None. data_name: what it was trained on; origin: what else is known of that. device:
    where the model is and where it draws, "cpu", "cuda" or "simt"; `to` moves it. variance, self_conditioning: see
    Options. log: a Log, or dicts. pipeline: what draws.
    notes: sentences on what `load` assumed or passed over.
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
        """A Run around a Pipeline of any kind. history: data_name, step, directory, dataset, log, origin."""
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
        """The folder's name, or the data set's."""
        return printable(self.directory.name) if self.directory is not None else self.data_name

    @property
    def shape(self):
        """Of what is diffused, (H, W, C) of an image."""
        return self.codec.shape

    def to(self, device):
        """Moves the model to a device, where everything is drawn from then on. Returns the run. See `Pipeline.to`."""
        self.pipeline.to(device)
        return self

    def dataset(self, data=None):
        """The training data, loaded again if need be, from where they lay or from `data`. ValueError, in one sentence,
        where they are not there, or where other data are.
        """
        if self._dataset is None or data is not None:
            self._dataset = self.origin.load(self._read, data)
        return self._dataset

    def _read(self, source):
        return load_data(source, **reading(self.options))

    def log(self):
        """One dict a step: step, loss, lr, grad_norm, images_per_second, time, device."""
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
        """Draws n new images, 16 if None: (n, H, W, C) uint8. Image i depends on (seed, i) alone, not on n or
        batch_size.

        sampler: a name in pydiff.diffusion.samplers.SAMPLERS (docs/samplers.md helps to choose); None takes the
            scheduler that the model came with, or ddim.
        steps: how many of the T noise levels to visit, 50 if there are so many; spacing: which ones ("trailing",
            "leading", "linspace", "karras", "exponential", "continuous").
        eta: share of fresh noise in ddim and dpm2, 0 to 1.
        labels: class numbers or names (n,), for a conditional model; without them, the classes take turns.
        prompts: for a model with a text encoder: n images of each (1 if None), one prompt after the other; image k of
            each begins with noise k. "[a] - [b] + [c]" is calculated. negative_prompt: what guidance leads away from.
        condition: other arrays that the model was trained with, by name, or what `embed` returns.
        guidance: how strongly to follow labels, prompts and condition (Ho & Salimans 2022); 1 is plain, None what
            suits the model. interval: (low, high), the noise levels sigma / alpha where it acts. rescale: 0 to 1, how
            far contrast is brought back.
        batch_size: how many to draw at a time. progress: True shows a bar.
        device: "cpu", "cuda" or "simt" moves the model there, to stay; None leaves it where it is.

        Every other keyword is an option of the sampler, such as order, churn, clip or threshold; see its docstring.
        """
        self.to(device or self.device)
        numbers, prompts = _of_each(n, prompts)
        asked = self.conditioning.rows(numbers, labels, condition, prompts, negative_prompt)
        return self.pipeline.sample(numbers, seed, sampler, steps, asked, guidance, eta, **more)

    def embed(self, prompt):
        """A prompt as a Condition, for `condition=`; embed(a) - embed(b) + embed(c) is one, too."""
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
        """The reverse process as a generator of SamplerState, one a step, arrays where the model is. n: number of
        images, or their numbers. prompts: one for each of them, or one for all. The other arguments are those of
        `sample`, apart from batch_size and progress.
        """
        self.to(device or self.device)
        numbers = np.arange(n) if np.ndim(n) == 0 else np.asarray(n)
        asked = self.conditioning.rows(numbers, labels, condition, prompts, negative_prompt)
        return self.pipeline.sample_states(numbers, seed, sampler, steps, asked, guidance, eta, **more)

    def inpaint(self, images, mask, **options):
        """Draws anew where mask is 1, keeps the images where it is 0: (N, H, W, C) uint8. See `edit.inpaint`.

        This and the other edits: labels, condition as for `sample`, prompts one for each image or one for all,
        negative_prompt; left out, nothing is asked for.
        """
        return edit.inpaint(self.pipeline, images, mask, **_asked(self.conditioning, len(images), options))

    def image_to_image(self, images, strength=0.5, **options):
        """Draws images anew from some way to noise: (N, H, W, C) uint8. See `edit.image_to_image`."""
        return edit.image_to_image(self.pipeline, images, strength, **_asked(self.conditioning, len(images), options))

    def variations(self, images, strength=0.3, **options):
        """Images like these: (N, H, W, C) uint8. See `edit.variations`."""
        return edit.variations(self.pipeline, images, strength, **_asked(self.conditioning, len(images), options))

    def interpolate(self, seed_a, seed_b, shares, *, label=None, condition=None, **options):
        """Images between those of two seeds: (K, H, W, C) uint8. See `edit.interpolate`. label: class of all."""
        n, words = np.size(shares), ("prompts", "negative_prompt")
        given = {"condition": condition} | {name: options.pop(name) for name in words if name in options}
        given |= {} if label is None else {"labels": np.full(n, label)}
        return edit.interpolate(self.pipeline, seed_a, seed_b, shares, **_asked(self.conditioning, n, given), **options)

    def steered(self, classifier, by="noise"):
        """This model as a Run with the classes of a ClassifierRun, which steers what it draws; see steering.py.

        classifier: one, or its folder. by: "noise" or "gradient", how the push is measured; guidance is its strength.
        """
        steered = SteeredPipeline(self.pipeline, opened_classifier(classifier), by)
        return Run.of_pipeline(steered, self.options, step=self.step, origin=self.origin)

    def save(self, directory, dtype=None):
        """Writes the model as a folder that pydiff.load and diffusers' DDPMPipeline.from_pretrained open.

        dtype: of the weights in the file, "float16" or "bfloat16" for half the size; None keeps them as they are.
        Returns a list of sentences on what diffusers cannot do with it, or what is not in it; mostly empty.
        A model of Stable Diffusion becomes a folder of diffusers' StableDiffusionPipeline. docs/folders.md.
        """
        origin = self.origin.to_config(place=False)  # the folder may be given to others
        history = {"options": all_printable(self.options), "data": self.data_name, "step": self.step, "origin": origin}
        return opened_model.save(directory, self.pipeline, history, dtype)

    def report(self, directory=None, data=None, **options):
        """Writes report.html, samples.png and the film beside the run, or into `directory`; returns the page's path.

        data: where the training data are, if they are not where they were. Without them, the page shows those few that
        were kept with the run, and no nearest neighbours.
        """
        from pydiff.report import write_report

        directory = self.directory if directory is None else directory
        if directory is None:
            raise ValueError("this run has no directory yet; give write_report one, or save the run first")
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
    """(numbers, prompts) of n samples of each prompt, one prompt after the other, or of n samples without any."""
    if prompts is None:
        return np.arange(16 if n is None else n), None
    prompts, n = [prompts] if isinstance(prompts, str) else list(prompts), 1 if n is None else n
    return np.tile(np.arange(n), len(prompts)), [prompt for prompt in prompts for _ in range(n)]


def _asked(conditioning, n, options):
    """Options of an edit of n samples, with what the user asks for as a Condition."""
    names = ("labels", "condition", "prompts", "negative_prompt")
    words = {name: options.pop(name) for name in names if name in options}
    if any(word is not None for word in words.values()):
        numbers = options.get("numbers")
        options["asked"] = conditioning.rows(np.arange(n) if numbers is None else np.asarray(numbers), **words)
    return options


def load(directory, **wishes):
    """Opens the folder of a run, or a model folder written by Run.save or by diffusers, and returns a Run; an
    AutoencoderRun or a ClassifierRun where it holds one of these.

    directory: the folder, or a single file of Stable Diffusion. "digits" is the model that comes with pydiff, unless a
    folder of that name is here. A run that is unfinished, or going on right now, is opened from its newest checkpoint.

    wishes: what the folder does not say, or should have said:
        scheduler: a configuration, a path to one, or a class's name, "DDIMScheduler".
        prediction: "eps", "x0" or "v". size: a side or (height, width). classes: names.
        variant: of the weights, such as "fp16". self_conditioning: True or False.

    Without a sampler by name, the scheduler in the folder draws. What was assumed or passed over is in `notes` and goes
    to the logger "pydiff", which prints it where nobody listens.

    FileNotFoundError or CheckpointError, in one sentence, if it is none or damaged. docs/folders.md lists what opens.
    """
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
        goes on where the last one stopped, to the bits of an uninterrupted one. None keeps everything in memory.
    device: "cpu", "cuda" (a GPU, through CuPy) or "simt" (the emulator). A run may go on on another device than it
        began on, to other bits.
    model: a network of your own, see `DiffusionTask`; "autoencoder", which returns an AutoencoderRun and takes the
        options of AutoencoderOptions; or "classifier" of noisy samples, which returns a ClassifierRun, see
        `Run.steered`. codec: one of your own, or a name, see Options.
    latent: an AutoencoderRun or the folder of one, in whose latents to diffuse.
    progress: whether to show a bar. announce: called with a few lines about the data before the first step. watch:
        called with the number of the step and a few images (N, H, W, C) uint8 whenever samples are drawn on the way;
        needs `out`.
    distributed: "auto" shares the work with the other processes that mpiexec started, "mpi" insists on that, "off"
        works alone; docs/distributed.md.

    Every other keyword is a field of pydiff.Options.

    Raises ValueError or TypeError, in one sentence, for data or options that cannot work; RuntimeError for a device
    that cannot be used; Interrupted (a KeyboardInterrupt) after Ctrl-C, with a checkpoint written.
    """
    if model == "classifier" and latent is None:
        return train_classifier(data, out=out, progress=progress, device=device, announce=announce,
                                distributed=distributed, codec=codec or "auto", **options)  # fmt: skip
    if isinstance(model, str):
        return train_named(model, data, latent, codec, out=out, progress=progress, device=device, announce=announce,
                           watch=watch, distributed=distributed, **options)  # fmt: skip
    group = join(distributed)
    with group.together(), group.own_processors(device):
        announce, tell = heard(announce, group.first)
        named = {"codec": codec} if isinstance(codec, str) else {}
        given, options = options, settled(Options.from_keywords(options | named), out, group)
        low_precision(options, device)  # is refused before data are read
        with backend.use_device(device):  # a missing GPU is reported before a large data set is read
            dataset = load_data(data, **reading(options.to_config()))
            announce(f"{dataset.summary()}; training on {device}{group.described()}")
            options = suited(options, given, dataset, model or latent, out, group, announce)
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
            tell(told)
            run.notes = (*trainer.notes, *told)
            if folder is not None:
                finish(folder, run.save)
    return run


def _run_of(trainer, average, folder, origin):
    """The live view of a training in progress. average: its ema_model."""
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
