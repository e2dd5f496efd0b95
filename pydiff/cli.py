"""The command line: pydiff demo | train | sample | report | data | words | segment | invert | ink | bench | info.

The flags of `train` and `demo` are the fields of Options; tyro reads names, types, defaults and help texts from there.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from pydiff.console import (
    complaint,
    flags,
    name_of,
    prompts_in,
    refuse_empty,
    say,
    warnings_in_sentences,
    wide_enough,
)
from pydiff.data.dataset import plural
from pydiff.printed import expanded, typed
from pydiff.training import Options, ReadingOptions

# Written out for type checkers and editors; tests/test_types.py compares them with the tables.
Device: TypeAlias = Literal["cpu", "cuda", "simt"]
Sampler: TypeAlias = Literal[
    "ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpm2", "lms", "pndm", "deis", "dpm_solver",
    "dpm_solver_singlestep", "dpm_solver_sde", "unipc", "flow_euler", "flow_heun", "adaptive",
]  # fmt: skip
Spacing: TypeAlias = Literal["leading", "linspace", "trailing", "leading_stride", "karras", "exponential", "continuous"]
DESCRIPTION = "Diffusion models from scratch: train on your images, draw, edit, look at what was learned."


@dataclass
class Demo:
    """Draw digits at once with the model that comes with pydiff, then train one on this machine and explain it all.

    How long that takes here is said beforehand. Ctrl-C leaves what there is; the same command goes on.
    """

    out: Path | None = None
    """Folder for shipped.png, samples.png, film, report.html and model/; left out, demo, or demo-quick."""
    quick: bool = False
    """Within a minute: fewer steps of training and a shorter film, for digits that are not as good."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one."""
    training: Options = field(default_factory=lambda: Options(steps=1500, lr=2e-3, conditional=True, sample_every=250))

    def run(self):
        from pydiff.demo import demo

        announce()
        training, out = self.training, self.out or Path("demo-quick" if self.quick else "demo")
        if self.quick:
            training = replace(training, steps=min(training.steps, 500), sample_every=100)
        page = demo(out, training, self.device, 250 if self.quick else None, say)
        folder = page.parent
        film = next(folder.glob("film.*"))
        shipped, samples, film = map(name_of, (folder / "shipped.png", folder / "samples.png", film))
        say(f"images    {shipped}, {samples}", f"film      {film}", f"page      {name_of(page)}")
        say(f"model     {name_of(folder / 'model')}   (pydiff sample {typed(folder)} -n 64)")


@dataclass
class Train:
    """Train on images, sounds, clips or points. Ctrl-C and the same command again goes on, to the same bits."""

    data: str
    """digits, emoji, faces, fashion, tones, moving-shapes, swiss-roll; a folder or archive; .npz, .npy or .parquet."""
    images: str | None = None
    """Of clips: data of images to learn beside them, or frames for the clips' own; left out, none."""
    out: Path = Path("runs/latest")
    """Folder of the run; the finished model goes to OUT/model."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one. A run may go on on another device."""
    model: Literal["unet", "autoencoder", "classifier"] = "unet"
    """A diffusion model; an autoencoder, for one in its latents; or a classifier, to steer one without classes."""
    latent: Path | None = None
    """Folder of an autoencoder's run, or of one of diffusers: the diffusion model draws its latents."""
    latent_channels: int | None = None
    """Channels of an autoencoder's latents; left out, 4."""
    kl_weight: float | None = None
    """How much an autoencoder's latents are drawn towards a standard normal; left out, 1e-6."""
    dry_run: bool = False
    """Say how much memory and time this would take, and write nothing."""
    accumulate: int | None = None
    """Parts in which a batch is computed, one after the other, for less memory: what --shards does in one process."""
    training: Options = field(default_factory=Options)
    named: Annotated[frozenset[str], tyro.conf.Suppress] = frozenset()  # the options that have a flag; see main

    def run(self):
        from pydiff.training.distributed import is_first

        announce()
        if self.accumulate is not None and self.accumulate < 0:
            raise ValueError(f"accumulate must be a whole number of at least 0, got {self.accumulate}")
        training = self.training if self.accumulate is None else replace(self.training, shards=self.accumulate)
        if self.model == "autoencoder":
            self.run_autoencoder(training)
            return
        for name in ("latent_channels", "kl_weight"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is an option of autoencoders; give --model autoencoder, or leave it out")
        if self.model == "classifier":
            self.run_classifier(training)
            return
        if self.dry_run:
            self.foretell(chosen(training, self.named), latent=self.latent)
            return
        from pydiff.run import train

        run: Any = train(
            self.data, out=self.out, device=self.device, announce=say, images=self.images, latent=self.latent,
            **chosen(training, self.named),
        )  # fmt: skip
        if is_first():
            show(run)
            out = place_of(run, self.out)
            shown = typed(out)
            say(f"model in {name_of(out / 'model')}; next: pydiff sample {shown} -n 64, pydiff report {shown}")

    def foretell(self, options, **more):
        """Prints the forecast of a dry run."""
        from pydiff.dry_run import dry_run

        say(dry_run(self.data, device=self.device, **more, **options))

    def run_classifier(self, options):
        """`run` for a classifier."""
        if self.latent is not None or self.images is not None:
            raise ValueError("a classifier is trained on its data alone; leave out --latent and --images")
        options = replace(options, sample_every=0)
        if self.dry_run:
            self.foretell(options.to_config(), model="classifier")
            return
        run: Any = train_command(self.data, self.out, options, self.device, model="classifier")
        out = place_of(run, self.out)
        say(
            f"classifier of {', '.join(run.classes[:8])}{', ..' * (len(run.classes) > 8)} in "
            f"{name_of(out / 'model')}; "
            f"next: pydiff sample RUN --classifier {typed(out)} --label {shlex.quote(run.classes[0])}"
        )

    def run_autoencoder(self, options):
        """`run` for an autoencoder."""
        from pydiff.run import train
        from pydiff.training import AutoencoderOptions

        if self.latent is not None:
            raise ValueError("latent belongs to a diffusion model; an autoencoder makes latents of images")
        more = {"latent_channels": self.latent_channels, "kl_weight": self.kl_weight}
        chosen: dict[str, Any] = AutoencoderOptions.of_diffusion(options, **more).to_config()
        if self.dry_run:
            self.foretell(chosen, model="autoencoder")
            return
        run = train(self.data, out=self.out, device=self.device, announce=say, model="autoencoder", **chosen)
        show(run)
        out = place_of(run, self.out)
        say(
            f"autoencoder in {name_of(out / 'model')}; next: pydiff report {typed(out)}, "
            f"pydiff train {typed(self.data)} --latent {typed(out)} --out {typed(f'{out}-diffusion')}"
        )


@dataclass
class Sample:
    """Draw new images, or make new sounds, with a trained model."""

    run_folder: Path
    """Folder of a run or of a model, or Stable Diffusion in one file."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many, of each prompt if there are any; left out, 16, or 1 of each prompt and of Stable Diffusion."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to draw, in words; may be repeated. Sums as "[man firefighter] - [man] + [woman]" are calculated."""
    prompts: Path | None = None
    """A file with a prompt a line; - reads them from the standard input."""
    negative_prompt: str | None = None
    """What guidance shall lead away from."""
    out: Path | None = None
    """A .png for one grid, .npz for the array, .wav, or a folder for a file each; left out, samples.png or samples."""
    sampler: Sampler | None = None
    """The way back from noise (docs/samplers.md compares them); left out, the model's own scheduler, or ddim."""
    steps: int | None = None
    """Steps of the way back; left out, 50 or what suits the model's own scheduler."""
    spacing: Spacing | None = None
    """Which noise levels the steps visit; left out, trailing."""
    seed: int = 0
    """Image i depends on the seed and i alone."""
    eta: float = 0.0
    """Fresh noise in every step of ddim or dpm2, 0 to 1."""
    label: Annotated[str | None, tyro.conf.arg(aliases=["--say"])] = None
    """Class for all images, by name or number; left out, the classes take turns."""
    guidance: float | None = None
    """How strongly to follow class or prompt; left out, 1, or 7.5 for Stable Diffusion, 0.1 with a classifier."""
    classifier: Path | None = None
    """Folder of a classifier's run, which steers a model that was trained without classes to its own."""
    steer_by: Literal["noise", "gradient"] | None = None
    """What a classifier's guidance multiplies: the length of the noise, or its gradient; left out, the noise."""
    image: Path | None = None
    """An image to draw anew from."""
    mask: Path | None = None
    """White where that image shall be drawn anew, black where it is kept."""
    strength: float | None = None
    """How far from the image, 0 to 1; left out, 0.5, or 1 with a mask."""
    limit: float | None = None
    """GiB of memory that reading the image may take; left out, 4."""
    embedding: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A file with a word of one's own (textual inversion), for Stable Diffusion; may be given several times."""
    interval: tuple[float, float] | None = None
    """Noise levels sigma / alpha, low and high, between which guidance works; left out, all."""
    rescale: float = 0.0
    """How far guidance brings contrast back to what it was without, 0 to 1; 0.7 is usual."""
    threshold: float | None = None
    """Dynamic thresholding: share of pixels that stay as they are, e.g. 0.995; left out, plain clipping."""
    clip: bool = True
    """Cut every predicted clean image to what an image can be."""
    scheduler: str | None = None
    """Of a model that came without, or in place of its own: a class of diffusers, or a file."""
    prediction: str | None = None
    """What a model that came without a scheduler predicts: eps, x0, v or flow."""
    size: tuple[int, ...] | None = None
    """Side of the images, or height and width, for a model that does not say."""
    variant: str | None = None
    """Which weights to take where there are several: fp16, ema."""
    config: Path | None = None
    """A folder that has the configuration of Stable Diffusion in one file, where its sizes are unknown."""
    low_memory: bool = False
    """Decode latents in bands of rows; of Stable Diffusion, also keep no weights. Takes longer, to the same images."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one."""

    def run(self):
        from pydiff.training.distributed import join

        group = join()
        with group.together(), group.own_processors(self.device or "cpu"):
            self.draw(group)

    def draw(self, group):
        """Draws, sharing the work with the other processes of the group."""
        from pydiff.drawing import Order, draw
        from pydiff.report.files import check_name, default_name
        from pydiff.run import load

        size: Any = self.size
        size = size[0] if size is not None and len(size) == 1 else size
        said = {"scheduler": self.scheduler, "prediction": self.prediction, "size": size, "variant": self.variant}
        run: Any = load(
            self.run_folder, **said, embedding=self.embedding, config=self.config, low_memory=self.low_memory
        )
        if self.classifier is not None:
            run = run.steered(self.classifier, self.steer_by or "noise")
        elif self.steer_by is not None:
            raise ValueError("--steer-by says how a classifier steers; give that too, --classifier")
        out = expanded(self.out or default_name(run.codec))
        check_name(out, run.codec)
        choices = {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance, "eta": self.eta}
        prompts = [*self.prompt, *(prompts_in(self.prompts) if self.prompts is not None else [])] or None
        given = self.image is not None or self.mask is not None
        many = prompts is None and not given and not run.pipeline.edits_by_scheduler
        n = (16 if many else 1) if self.n is None else self.n
        if given:
            if n < 1:
                raise ValueError(f"n must be at least 1, got {n}")
            return self.redraw(run, out, n, prompts)
        more = {"spacing": self.spacing, "interval": self.interval, "rescale": self.rescale}
        more |= {} if self.threshold is None else {"threshold": self.threshold}
        more |= {} if self.clip else {"clip": None}
        for name in ("strength", "limit"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} is for a given image; leave it out, or give one, --image")
        order = Order(n, self.seed, prompts, self.negative_prompt, self.label, {**choices, **more})
        done = draw(run.to(self.device).pipeline, out, order, progress=True, group=group)
        kind = ""
        if self.label is not None and run.classes:
            number = run.conditioning.number_of(self.label)
            kind = f" of class {run.classes[number]!r}"
            kind += f" (number {number} inside)" if run.conditioning.named_by_numbers else ""
        kept = f", {done.kept} of them from before" if done.kept else ""
        if group.first:
            say(f"{plural(done.wanted, run.codec.noun)}{kind} in {name_of(out)}{kept}")

    def redraw(self, run, out, n, prompts):
        """Draws n images for each prompt, starting from the given image."""
        import numpy as np

        from pydiff.data.given import image_from, mask_from
        from pydiff.drawing import check_place
        from pydiff.report.files import save_samples

        unused = {"interval": None, "rescale": 0.0, "threshold": None, "eta": 0.0, "spacing": None, "clip": True}
        for name, value in unused.items():
            if getattr(self, name) != value:
                flag = "no-clip" if name == "clip" else name
                raise ValueError(f"--{flag} is for images without a given one; leave it out, or --image")
        if self.image is None:
            raise ValueError("a mask says where an image is to be drawn anew; give that too, --image")
        if (noun := run.codec.noun) != "image":
            raise ValueError(f"--image is for models that draw images, and this one makes {noun}s; leave it out")
        if self.mask is not None and self.sampler is not None:
            raise ValueError("filling in has its own way back from noise; leave out --sampler, or --mask")
        check_place(out, run.codec)
        *size, channels = run.codec.image_shape
        own = run.pipeline.edits_by_scheduler and self.size is None  # Stable Diffusion takes images of any size
        image = image_from(self.image, None if own else size, channels, self.limit)
        numbers = np.tile(np.arange(n), len(prompts or [""]))
        guidance = run.pipeline.default_guidance if self.guidance is None else self.guidance
        chosen = {
            "prompts": prompts and [prompt for prompt in prompts for _ in range(n)],
            "negative_prompt": self.negative_prompt,
            "labels": None if self.label is None else np.full(len(numbers), self.label),
            "guidance": self.guidance,
            "steps": self.steps,
            "strength": self.strength,
            "sampler": self.sampler,
        }
        chosen = {name: value for name, value in chosen.items() if value is not None}
        chosen |= {"seed": self.seed, "numbers": numbers, "progress": True}
        images, run = np.repeat(image[None], len(numbers), axis=0), run.to(self.device)
        if self.mask is None:
            made = run.image_to_image(images, **chosen)
        else:
            made = run.inpaint(images, mask_from(self.mask, image.shape[:2], self.limit), **chosen)
        said = {"Software": "pydiff", "seed": self.seed, "guidance": guidance, "image": self.image.name}
        said |= {"strength": self.strength, "negative_prompt": self.negative_prompt, "label": self.label}
        said = {name: str(value) for name, value in said.items() if value is not None}
        save_samples(out, made, run.codec, n, prompts, said)
        say(f"{plural(len(made), run.codec.noun)} in {name_of(out)}")


@dataclass
class Report:
    """Write the page that shows what a run learned: loss, noising, denoising step by step, nearest real images."""

    run_folder: Path
    """Folder of a run, finished or not, or of a model."""
    out: Path | None = None
    """Folder for the page, samples.png and the film; left out, the run's own."""
    data: str | None = None
    """Where the training data are, if they are not where they were."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """How many samples to draw."""
    sampler: Literal["ddim", "ddpm"] = "ddpm"
    """The way back from noise."""
    steps: int | None = None
    """Steps of the way back; left out, 250, or all noise levels when there are fewer."""
    seed: int = 0
    """Seed of the samples."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the samples shall be, in words: one prompt for all, or N; left out, captions of the data."""
    grid: str | None = None
    """Prompts as rows and columns, "{red,green} {heart,book}"; left out, what the captions have in common."""
    guidance: float = 1.0
    """How much more than it would by itself the model follows the prompts."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one."""

    def run(self):
        from pydiff.run import load

        run = load(self.run_folder).to(self.device)
        if not getattr(run, "draws", True):
            say(name_of(run.report(self.out, self.data, n=self.n, seed=self.seed)))
            return
        prompts = None if not self.prompt else self.prompt[0] if len(self.prompt) == 1 else list(self.prompt)
        words = {"prompts": prompts, "attributes": self.grid, "guidance": self.guidance}
        how = {"sampler": self.sampler, "steps": self.steps, "seed": self.seed}
        say(name_of(run.report(self.out, self.data, n=self.n, **how, **words)))


@dataclass
class Data:
    """Show what would be trained on: count, size, channels, classes, and what had to be left out."""

    data: str
    """digits, emoji, faces, fashion, tones, moving-shapes, swiss-roll; a folder or archive; .npz, .npy or .parquet."""
    reading: ReadingOptions = field(default_factory=ReadingOptions)

    def run(self):
        from pydiff.data import describe, load
        from pydiff.report.grid import grid
        from pydiff.report.terminal import show as in_terminal

        dataset = load(self.data, **self.reading.reading())
        say(describe(dataset))
        first = dataset.codec.show(dataset.samples(range(min(16, len(dataset)))))
        say(in_terminal(grid(first, columns=8, scale=1)), image=True)


@dataclass
class Words:
    """Calculate with word vectors: the neighbours of berlin - germany + france, in English or with German names."""

    expression: tyro.conf.Positional[str | None] = None
    """A sum of words; left out, how often such sums find the capital of a country."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many neighbours."""

    def run(self):
        from pydiff.text import words

        print(words.describe_capitals() if self.expression is None else words.describe(self.expression, self.n))


@dataclass
class Segment:
    """Train a U-Net to say what every pixel of an image shows; judge it on held-out images, beside a threshold."""

    data: str
    """shapes, or a folder with the subfolders images and masks, files of the same names in both."""
    out: Path = Path("runs/segment")
    """Folder of the run: checkpoints, model, segmentation.html. The same command again goes on where it stopped."""
    steps: int = 600
    """Optimiser steps."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 2e-3
    """Peak learning rate."""
    size: int | None = None
    """Side length to resize to."""
    dice: float = 1.0
    """Weight of the Dice loss beside cross-entropy."""
    mirror: bool = True
    """Mirror half of the images, and their masks, left to right."""
    seed: int = 0
    """Seed of everything random."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one."""

    def run(self):
        from pydiff import segment
        from pydiff.data.masks import load_masked
        from pydiff.training.distributed import is_first

        data = load_masked(self.data, self.size)
        if is_first():
            say(data.summary())
        names = ("steps", "batch_size", "lr", "dice", "mirror", "seed", "device")
        result = segment.train(data, out=expanded(self.out), **{name: getattr(self, name) for name in names})
        own, other = (result.scores[name]["mean iou"] for name in ("network", "threshold"))
        held = f"on {len(result.held_out)} held-out images"
        if result.page is not None:  # this is the first process
            say(f"mean IoU {own:.3f} {held}, a threshold reaches {other:.3f}", name_of(result.page))


@dataclass
class Invert:
    """Learn a word for what words do not name, from a few images, for Stable Diffusion as it is: textual inversion."""

    model: Path
    """Folder or file of Stable Diffusion."""
    images: str
    """A folder of a few images, or whatever else data can be."""
    word: str = "<mine>"
    """The new word, as it is to be written in prompts."""
    out: Path = Path("runs/invert")
    """Folder of the training and of the word's file. The same command again goes on where it stopped."""
    start: str = "thing"
    """A word that is near, where the vectors begin."""
    vectors: int = 1
    """How many vectors the word has."""
    sentence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the images are told by, {} for the word; may be given several times; left out, "a photo of {}" and such."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 1
    """Images per step."""
    lr: float = 5e-3
    """Learning rate."""
    flip: bool = False
    """Mirror half of the images left to right."""
    recompute: bool = True
    """Compute inner values again for the gradient instead of keeping them: less memory, more time."""
    seed: int = 0
    """Seed of everything random."""
    size: tuple[int, ...] | None = None
    """Side of the images, or height and width; left out, the model's."""
    variant: str | None = None
    """Which weights to take where there are several: fp16, ema."""
    prediction: str | None = None
    """What a model in one file predicts, where it does not say: eps or v."""
    config: Path | None = None
    """A folder that has the configuration of a model in one file, where its sizes are unknown."""
    low_memory: bool = False
    """Read weights when they are used and give them up again, which takes longer."""
    dry_run: bool = False
    """Say what it will take, and do not begin."""
    device: Device = "cpu"
    """Where to compute: cuda is a GPU, simt the (slow) emulator of one."""

    def run(self):
        from pydiff import invert
        from pydiff.run import load

        size: Any = self.size
        size = size[0] if size is not None and len(size) == 1 else size
        said = {"variant": self.variant, "prediction": self.prediction, "config": self.config}
        model = load(self.model, size=size, low_memory=self.low_memory, **said)
        names = ("start", "vectors", "steps", "batch_size", "lr", "flip", "recompute", "seed")
        options = {name: getattr(self, name) for name in names}
        options |= {"sentences": self.sentence} if self.sentence else {}
        pipeline = model.pipeline if getattr(model, "draws", True) else None
        how = {"out": self.out, "device": self.device, "announce": say, "dry_run": self.dry_run}
        made = invert.learn(pipeline, self.images, self.word, **how, **options)
        if made is not None:
            prompt = typed(f"a photo of {self.word}")
            said = f"pydiff sample {typed(self.model)} --embedding {typed(made.file)} --prompt {prompt}"
            say(f"{self.word} in {name_of(made.file)}, after {made.steps} steps; draw with", said)


@dataclass
class Ink:
    """Why are they called diffusion models? A drop of ink beside an emoji whose pixels diffuse, on one page."""

    out: Path = Path("ink")
    """Folder for ink.html and the film."""
    emoji: str = "firefighter"
    """What the emoji's caption contains."""
    seed: int = 0
    """Of the random walks."""

    def run(self):
        from pydiff.data import load
        from pydiff.report.ink import write_ink_page

        data = load("emoji", channels=3)
        words = [" ".join(row) for row in data.captions or ()]
        found = [i for i, told in enumerate(words) if self.emoji.lower() in told.lower()]
        if not found:
            raise ValueError(f"no emoji's caption contains {self.emoji!r}; try heart, apple or firefighter")
        page, rows = write_ink_page(expanded(self.out), data.images[found[0]], self.seed)
        worst = max(row[-1] for row in rows)
        say(f"the density by steps is off the exact one by at most {100 * worst:.2f} % of its peak", name_of(page))


@dataclass
class Bench:
    """Time the kernels on this machine: reference, array path, C++, and PyTorch where it is installed."""

    ops: tyro.conf.Positional[tuple[str, ...]] = ()
    """conv2d, group_norm, layer_norm, gelu, attention, noise, denoise, adamw; left out, all."""
    json: Path | None = None
    """File for the figures."""
    quick: bool = False
    """Few and small shapes."""

    def run(self):
        from pydiff.bench import main

        main(list(self.ops), self.json, self.quick)


@dataclass
class Info:
    """Say what was built, what is used, and why not the rest."""

    def run(self):
        from pydiff.info import describe

        say(describe())


COMMANDS = {
    "demo": Demo,
    "train": Train,
    "sample": Sample,
    "report": Report,
    "data": Data,
    "words": Words,
    "segment": Segment,
    "invert": Invert,
    "ink": Ink,
    "bench": Bench,
    "info": Info,
}


def announce():
    """Prints a warning if the slow path is taken, as pip hides the reason."""
    from pydiff import backend

    if backend.cpu is None:
        say(f"pydiff runs in pure NumPy, several times slower: compiled kernels are {backend.cpu_reason}.")


def place_of(run, out):
    """The folder of a run as it was asked for or, if it was moved meanwhile, where it is."""
    return out if run.directory in (None, expanded(out)) else run.directory


def train_command(data, out, options, device, **more):
    """Trains, with progress on the terminal."""
    from pydiff.run import train

    return train(data, out=out, device=device, announce=say, **more, **options.to_config())


def chosen(options, named) -> dict[str, Any]:
    """The options, as keywords, that somebody chose: those with a flag, and those that are not the default."""
    plain = type(options)()
    config = options.to_config()
    return {name: v for name, v in config.items() if name in named or getattr(options, name) != getattr(plain, name)}


def show(run):
    """Prints a few samples, if the output is a terminal."""
    if sys.stdout is None:
        return
    from pydiff.report.grid import grid
    from pydiff.report.terminal import show as in_terminal

    preview = (run.pipeline if getattr(run, "draws", True) else run).preview()
    say(in_terminal(grid(run.codec.show(preview), columns=8, scale=1)), image=True)


def main(arguments=None):
    """Entry point of the `pydiff` command; returns the exit status. Errors that a user can correct are printed as one
    sentence, and another Ctrl-C, while the first is answered, ends the command without one.
    """
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        return 130


def _main(arguments):
    """`main`, but for Ctrl-C while it is answering an earlier one."""
    from pydiff.store.checkpoint import CheckpointError
    from pydiff.text import PromptWarning
    from pydiff.training import Interrupted
    from pydiff.training.distributed import is_first

    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        from pydiff import __version__

        say(f"pydiff {__version__}")
        return 0
    annotated = [Annotated[c, tyro.conf.subcommand(name, prefix_name=False)] for name, c in COMMANDS.items()]
    union: Any = annotated[0]
    for other in annotated[1:]:
        union = union | other
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
    try:
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
        with wide_enough():
            command = tyro.cli(union, args=arguments, prog="pydiff", description=DESCRIPTION, config=config)
        if isinstance(command, Train):
            command.named = flags(sys.argv[1:] if arguments is None else arguments)
        with warnings_in_sentences(PromptWarning):
            command.run()
    except Interrupted as stopped:
        if is_first():
            say(f"\n{stopped}; the same command goes on from there", to="stderr")
        return 130
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
        return 0
    except KeyboardInterrupt as stopped:
        if str(stopped) and is_first():
            say(f"\n{stopped}", to="stderr")
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError, CheckpointError) as error:
        say(f"pydiff: {complaint(error)}", to="stderr")
        return 1
    return 0
