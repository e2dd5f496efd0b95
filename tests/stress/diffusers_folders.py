"""Things that diffusers writes, opened by pydiff: how many work, are refused in one sentence, are wrong.

    python -m tests.stress.diffusers_folders --json benchmarks/results/diffusers-folders.json

diffusers writes every thing in CASES: pipelines of every kind that is one U-Net, bare networks, flat folders, weights
under every name, networks of every option, every scheduler class that it has. pydiff opens it, and what it draws from a
recorded start and recorded noise is compared with what diffusers draws: its own pipeline where it has one, else the
loop that its documentation gives for a U-Net and a scheduler. tests/formats/diffusers/drawing.py says how closely.

How close is close enough follows from the arithmetic. Both also draw in float64, from the same float32 tables: there
nothing is left but the 16th digit, and what diffusers rounds to float32 on the way although it is asked for float64. In
float32, every evaluation of the network is off by some rounding, which the way to the image may magnify: by 1 / alpha =
157 at the noisy end of the usual schedule. `magnified` is what becomes of errors of that size, put into our float64 run
at random. The limit is 1e-5, or FACTOR times `magnified` where that is more.
"""

import argparse
import atexit
import contextlib
import functools
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import pydiff
from pydiff.formats.diffusers.scheduler import SCHEDULERS
from pydiff.formats.safetensors import CheckpointError
from tests.formats.diffusers import drawing, theirs


class Case(NamedTuple):
    """write: makes the folder, gives what draws: a pipeline, or (network, scheduler or None). wishes: of pydiff.load.

    refused: what a CheckpointError must say, for what is not built; everything else must work.
    """

    name: str
    group: str
    write: Callable
    steps: int = 8
    wishes: Mapping = MappingProxyType({})
    options: Mapping = MappingProxyType({})
    refused: str = ""
    said: str = ""


# ---- one case --------------------------------------------------------------------------------------------------------


def tried(case: Case, diffusers) -> dict:
    """What happened: {"name", "group", "result": "works", "refused" or "wrong", ..}."""
    row = {"name": case.name, "group": case.group, "result": "wrong"}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "thing"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = case.write(diffusers, folder)
        try:
            run = pydiff.load(folder, **case.wishes)
        except CheckpointError as error:
            sentence = str(error).replace(directory, "")
            good = case.refused and case.refused in sentence and "\n" not in sentence
            return row | {"result": "refused" if good else "wrong", "why": sentence}
        except Exception as error:  # what this script looks for
            return row | {"why": f"{type(error).__name__}: {error}"[:300]}
        if case.refused:
            return row | {"why": "it opens, and a refusal was expected"}
        if case.said and not any(case.said in note for note in run.notes):
            return row | {"why": f"nothing is said of {case.said!r}: {run.notes}"[:300]}
        row["said"] = [note.replace(directory, "") for note in run.notes]
        try:
            found = drawing.compared(made, run, case.steps, case.options)
        except Exception as error:
            return row | {"why": f"{type(error).__name__}: {error}"[:300]}
        return row | found | {"result": "works" if drawing.right(found) else "wrong"}


# ---- the things ------------------------------------------------------------------------------------------------------

V = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400}


def scheduler_of(diffusers, config):
    return theirs.scheduler_class(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k[0] != "_"})


@functools.cache
def trained():
    """Where a small network lies that knows digits, for schedulers whose rounding a network of noise would magnify."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    options = {"channels": (8, 16), "groups": 4, "steps": 600, "batch_size": 32, "lr": 2e-3, "sample_every": 0}
    pydiff.train("digits", progress=False, schedule="linear", **options).save(directory / "digits")
    return directory / "digits" / "unet"


def network_for(diffusers, config, options, seed=0):
    """One that was trained, where the scheduler is one of those that eps, linear, T = 1000 says enough of."""
    usual = config.get("prediction_type", "epsilon") == "epsilon" and config["_class_name"] not in UNUSUAL
    if options is None and usual:
        return diffusers.UNet2DModel.from_pretrained(trained()).eval()
    return theirs.unet(diffusers, seed, **(options or {}))


def pipeline(config, kind="DDPMPipeline", network=None, **saving):
    """A whole folder, drawn by its own pipeline."""

    def write(diffusers, folder):
        return theirs.pipeline(diffusers, folder, config, kind, network_for(diffusers, config, network), **saving)

    return write


def looped(config, network=None, kind="DDPMPipeline"):
    """A whole folder whose scheduler no pipeline of one U-Net follows in diffusers."""

    def write(diffusers, folder):
        pipe = theirs.pipeline(diffusers, folder, config, kind, network_for(diffusers, config, network))
        return pipe.unet, pipe.scheduler

    return write


def bare(network=None, scheduler=None, dtype="float32", **saving):
    """A network alone; scheduler: the one that the user names, or what pydiff says it assumes."""

    def write(diffusers, folder):
        import torch

        config = scheduler or drawing.ASSUMED
        model = network_for(diffusers, config, network)
        model.to(getattr(torch, dtype)).save_pretrained(folder, **saving)
        return model.float(), scheduler_of(diffusers, config)

    return write


def edited(write, **files):
    """As `write`, with options of its JSON files changed, which None takes out. files: by stem, with / as __."""

    def changed(diffusers, folder):
        made = write(diffusers, folder)
        for name, options in files.items():
            file = folder / f"{name.replace('__', '/')}.json"
            config = {**json.loads(file.read_text()), **options}
            file.write_text(json.dumps({k: v for k, v in config.items() if v is not GONE}))
        return made

    return changed


GONE = object()
UNUSUAL = (
    "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "KarrasVeScheduler", "CMStochasticIterativeScheduler",
    "IPNDMScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
)  # fmt: skip


def flat_of_2022(diffusers, folder):
    """google/ddpm-celebahq-256's layout: all in one folder, old names inside attention, pickled weights."""
    import torch

    options = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None}
    pipe = theirs.pipeline(diffusers, folder, DDPM, model=theirs.unet(diffusers, **options))
    state = {}
    for name, value in pipe.unet.state_dict().items():
        for new, was in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{was}.")
        state[name] = value
    config = json.loads((folder / "unet/config.json").read_text())
    config["down_block_types"] = [f"UNetRes{name}" for name in config["down_block_types"]]
    config["_diffusers_version"] = "0.0.4"
    shutil.rmtree(folder / "unet")
    shutil.move(folder / "scheduler/scheduler_config.json", folder / "scheduler_config.json")
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    return pipe


def ema_of_training(diffusers, folder):
    """What diffusers' training example leaves in a checkpoint: unet, unet_ema, and its own state beside them."""
    import torch
    from diffusers.training_utils import EMAModel

    model = network_for(diffusers, drawing.ASSUMED, None)
    model.save_pretrained(folder / "unet")
    EMAModel(model.parameters(), model_cls=diffusers.UNet2DModel, model_config=model.config).save_pretrained(
        folder / "unet_ema"
    )
    torch.save({"state": {}}, folder / "optimizer.bin")
    return model, scheduler_of(diffusers, drawing.ASSUMED)


def average_alone(diffusers, folder):
    """The folder of the averaged weights alone."""
    made = ema_of_training(diffusers, folder.parent / "checkpoint")
    shutil.move(folder.parent / "checkpoint" / "unet_ema", folder)
    return made


def unet_of_a_pipeline(diffusers, folder):
    """The network's folder, with the scheduler beside it."""
    pipe = theirs.pipeline(diffusers, folder.parent / "whole", {"_class_name": "DDIMScheduler", **V}, "DDIMPipeline")
    folder.symlink_to(folder.parent / "whole" / "unet")
    return pipe


def renamed_classes(old):
    """A bare network of the first versions, whose class and options were called otherwise."""
    from pydiff.formats.diffusers.unet import OLD_OPTIONS

    def write(diffusers, folder):
        made = bare()(diffusers, folder)
        config = json.loads((folder / "config.json").read_text())
        new = {new: was for was, new in OLD_OPTIONS.items()}
        config = {new.get(name, name): value for name, value in config.items()} | {"_class_name": old}
        (folder / "config.json").write_text(json.dumps(config))
        return made

    return write


def scheduler_alone(name):
    """A pipeline whose scheduler is another class with its usual options."""

    def write(diffusers, folder):
        made = theirs.pipeline(diffusers, folder, DDPM, model=network_for(diffusers, DDPM, None))
        config = {"_class_name": name, "_diffusers_version": diffusers.__version__}
        with contextlib.suppress(ImportError, TypeError):  # one that needs a library or an argument of its own
            config |= dict(theirs.scheduler_class(diffusers, name)().config)
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", name]
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
        return made.unet, None

    return write


def other_schedulers():
    """The classes of diffusers that pydiff has no replica of."""
    import diffusers

    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and name not in SCHEDULERS]
    return [Case(name, "refused", scheduler_alone(name), refused=f"is {name!r}, which pydiff") for name in names]


def another_class(class_name, **options):
    """A model of another class."""

    def write(diffusers, folder):
        getattr(diffusers, class_name)(**options).save_pretrained(folder)

    return write


def latent_pipeline(diffusers, folder):
    from diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond import LDMPipeline

    vae = diffusers.VQModel(block_out_channels=(32,), num_vq_embeddings=8)
    LDMPipeline(vae, theirs.unet(diffusers), diffusers.DDIMScheduler()).save_pretrained(folder)


def score_pipeline(network):
    def write(diffusers, folder):
        from diffusers.pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve import ScoreSdeVePipeline
        from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

        ScoreSdeVePipeline(theirs.unet(diffusers, **network), ScoreSdeVeScheduler()).save_pretrained(folder)

    return write


DDPM = {"_class_name": "DDPMScheduler"}
DDIM = {"_class_name": "DDIMScheduler"}
BETAS = np.linspace(1e-3, 0.05, 100).tolist()
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FIR = {
    "block_out_channels": (32, 64),
    "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
}


def p(name, config, kind="DDPMPipeline", steps=8, group="pipelines", network=None, saving=None, **more):
    return Case(name, group, pipeline(config, kind, network, **(saving or {})), steps, **more)


def s(name, steps=8, options=None, **config):
    """A scheduler's class, with options of it."""
    label = name + "".join(f", {key} {value}" for key, value in {**config, **(options or {})}.items())
    return Case(label, "schedulers", looped({"_class_name": name, **config}), steps, options=options or {})


def n(name, **network):
    """A network with options, in a pipeline."""
    told = {"identity": np.linspace(-1, 1, 64).reshape(2, 32), "timestep": np.array([3.0, 40.0])}
    told = told.get(network.get("class_embed_type"), np.array([2, 1]) if network.get("num_class_embeds") else None)
    labels = {} if told is None else {"labels": told}
    write = looped({**DDPM, **V}, network) if labels else pipeline({**DDPM, **V}, network=network)
    return Case(name, "networks", write, options=labels)


CASES = [
    # pipelines
    p("DDPM", DDPM),
    p("DDPM, v, cosine, T = 400", {**DDPM, **V}),
    p("DDPM, x0, large variance, no clipping", {**DDPM, "prediction_type": "sample", "clip_sample": False,
                                               "variance_type": "fixed_large"}),
    p("DDPM, betas of its own", {**DDPM, "num_train_timesteps": 100, "trained_betas": BETAS}),
    p("DDPM, thresholding", {**DDPM, **V, "thresholding": True}),
    p("DDPM, sigmoid betas, clipped at 0.7", {**DDPM, "beta_schedule": "sigmoid", "clip_sample_range": 0.7}),
    p("DDPM, learned variance", {**DDPM, **V, "variance_type": "learned_range"}, network={"out_channels": 6}),
    p("DDIM", DDIM, "DDIMPipeline"),
    p("DDIM, v, cosine, T = 400", {**DDIM, **V}, "DDIMPipeline"),
    p("DDIM, zero SNR", {**DDIM, **ZERO}, "DDIMPipeline"),
    p("PNDM", {"_class_name": "PNDMScheduler"}, "PNDMPipeline", 12),
    p("PNDM without warm-up", {"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "PNDMPipeline", 12),
    p("PNDM, v, cosine, T = 400", {"_class_name": "PNDMScheduler", **V}, "PNDMPipeline", 12),
    p("DDPMPipeline of DPM-Solver", {"_class_name": "DPMSolverMultistepScheduler", **V}),
    p("KarrasVe", {"_class_name": "KarrasVeScheduler", "sigma_max": 1.5, "sigma_min": 0.2, "s_churn": 3.0,
                   "s_min": 0.1}, "KarrasVePipeline", 6),
    p("consistency, one step", {"_class_name": "CMStochasticIterativeScheduler"}, "ConsistencyModelPipeline", 1),
    p("consistency, three steps", {"_class_name": "CMStochasticIterativeScheduler"}, "ConsistencyModelPipeline", 3),
    Case("consistency, classes", "pipelines", looped({"_class_name": "CMStochasticIterativeScheduler"},
         {"num_class_embeds": 3}, "ConsistencyModelPipeline"), 2, options={"labels": np.array([2, 0])}),
    # names of files and folders
    p("variant fp16", {**DDPM, **V}, group="files", saving={"variant": "fp16"}, said=""),
    p("pickled weights", {**DDPM, **V}, group="files", saving={"safe_serialization": False}),
    p("pickled weights, variant fp16", {**DDPM, **V}, group="files",
      saving={"variant": "fp16", "safe_serialization": False}),
    p("shards", {**DDPM, **V}, group="files", saving={"max_shard_size": "20KB"}),
    p("shards, pickled", {**DDPM, **V}, group="files", saving={"max_shard_size": "20KB", "safe_serialization": False}),
    p("shards, variant", {**DDPM, **V}, group="files", saving={"max_shard_size": "20KB", "variant": "fp16"}),
    Case("flat folder of 2022", "files", flat_of_2022),
    Case("checkpoint of the training example", "files", ema_of_training, said="has no scheduler"),
    Case("its averaged weights alone", "files", average_alone, said="has no scheduler"),
    Case("network inside a pipeline", "files", unet_of_a_pipeline),
    Case("network alone", "files", bare(), said="has no scheduler"),
    *[Case(f"network alone, {dtype}", "files", bare(dtype=dtype), said="has no scheduler")
      for dtype in ("float16", "bfloat16", "float64")],
    Case("network alone, variant ema", "files", bare(variant="ema"), wishes={"variant": "ema"}),
    Case("network alone, a scheduler given", "files", bare(scheduler=DDIM | V), wishes={"scheduler": DDIM | V}),
    Case("network alone, pickled", "files", bare(safe_serialization=False), said="has no scheduler"),
    Case("UNetUnconditionalModel", "files", renamed_classes("UNetUnconditionalModel"), said="has no scheduler"),
    Case("no class in config.json", "files", edited(bare(), config={"_class_name": GONE}), said="not say of which"),
    Case("unknown options", "files", edited(pipeline(DDPM), unet__config={"odd_option": 3}), said="odd_option"),
    Case("predict_epsilon: false", "files", edited(pipeline({**DDPM, "prediction_type": "sample"}),
         scheduler__scheduler_config={"prediction_type": GONE, "predict_epsilon": False})),
    Case("no version", "files", edited(pipeline({**DDPM, **V}), model_index={"_diffusers_version": GONE})),
    Case("sample_size: null", "files", edited(pipeline({**DDPM, **V}), unet__config={"sample_size": None}),
         wishes={"size": 8}),
    Case("sample_size: null, no size given", "files", edited(pipeline(DDPM), unet__config={"sample_size": None}),
         refused="give size="),
    # networks
    n("gelu", act_fn="gelu"),
    n("mish", act_fn="mish"),
    n("relu", act_fn="relu"),
    n("scale and shift", resnet_time_scale_shift="scale_shift"),
    n("learned time", time_embedding_type="learned", num_train_timesteps=1000),
    n("three classes", num_class_embeds=3),
    n("class vectors", class_embed_type="identity"),
    n("class numbers", class_embed_type="timestep"),
    Case("fourier time", "networks", looped({**DDPM, **V}, {"time_embedding_type": "fourier"}),
         options={"timesteps": [390, 300, 200, 100, 20]}),
    n("blocks that sample by resnets", down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
      up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
      attn_norm_num_groups=4),
    n("two sizes", sample_size=(8, 16)),
    n("one channel", in_channels=1, out_channels=1),
    n("four channels", in_channels=4, out_channels=4),
    n("no attention in the middle", add_attention=False),
    n("no middle", mid_block_type=None),
    n("resnets that sample", downsample_type="resnet", upsample_type="resnet"),
    n("three levels, two layers", block_out_channels=(8, 8, 16), layers_per_block=2,
      down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")),
    n("heads of four channels", attention_head_dim=4),
    n("groups in attention", attn_norm_num_groups=2),
    n("cosines first, shift 1", flip_sin_to_cos=False, freq_shift=1),
    n("downsampling without padding", downsample_padding=0),
    n("centred input", center_input_sample=True),
    n("time as wide as 24", time_embedding_dim=24),
    n("middle scaled", mid_block_scale_factor=1.4142, norm_eps=1e-6),
    n("dropout", dropout=0.1),
    Case("six channels to three", "networks", pipeline(DDPM, network={"in_channels": 6}),
         refused="the other 3 are of an image"),
    # schedulers
    *[s(name) for name in (
        "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
        "TCDScheduler", "LCMScheduler", "IPNDMScheduler",
    )],
    s("CMStochasticIterativeScheduler", 3),
    s("DDIMScheduler", options={"eta": 0.7}),
    s("DDPMScheduler", options={"timesteps": [999, 700, 333, 20, 0]}),
    s("EulerDiscreteScheduler", options={"sigmas": [14.6, 5.0, 1.0, 0.2, 0.0]}, timestep_spacing="trailing"),
    s("EulerDiscreteScheduler", interpolation_type="log_linear"),
    s("EulerDiscreteScheduler", use_karras_sigmas=True),
    s("LMSDiscreteScheduler", options={"order": 2}),
    s("EulerAncestralDiscreteScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True,
      timestep_spacing="trailing"),
    s("FlowMatchEulerDiscreteScheduler", options={"sigmas": [1.0, 0.6, 0.3, 0.05]}, shift=3.0),
    s("FlowMatchEulerDiscreteScheduler", shift=3.0),
    s("DPMSolverMultistepScheduler", 16, solver_order=3, algorithm_type="sde-dpmsolver++"),
    s("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    s("UniPCMultistepScheduler", solver_order=3, prediction_type="sample"),
    s("TCDScheduler", 4, {"eta": 1.0}),
    s("LCMScheduler", 4, {"timesteps": [999, 759, 499, 259]}),
    # what is not built
    Case("SkipDownBlock2D, FIR", "refused", score_pipeline(FIR),
         refused="a block that pydiff does not have"),
    Case("K blocks", "refused", bare({"down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
         "up_block_types": ("KUpBlock2D", "KUpBlock2D")}), refused="a block that pydiff does not have"),
    Case("VQModel", "refused", another_class("VQModel", block_out_channels=(32,)),
         refused="is for the class 'VQModel'"),
    Case("LDMPipeline", "refused", latent_pipeline, refused="needs 'vqvae (VQModel)'"),
    Case("ScoreSdeVePipeline", "refused", score_pipeline({}), refused="'ScoreSdeVeScheduler', which pydiff"),
    Case("UNet1DModel", "refused", another_class("UNet1DModel", block_out_channels=(8, 8, 16)),
         refused="is for the class 'UNet1DModel'"),
    Case("AutoencoderKL", "refused", another_class("AutoencoderKL", block_out_channels=(32,)),
         refused="is for the class 'AutoencoderKL'"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names to try")
    options = parser.parse_args()
    import diffusers
    import torch

    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    logging.getLogger("pydiff").addHandler(logging.NullHandler())
    rows, began = [], time.perf_counter()
    for case in [*CASES, *other_schedulers()]:
        if not any(part in f"{case.group} {case.name}" for part in options.only):
            continue
        rows.append(tried(case, diffusers))
        row = rows[-1]
        figures = [f"{row[k]:.1e}" for k in ("ours_from_theirs", "limit", "in_float64") if k in row]
        print(f"{row['result']:8} {case.group:10} {case.name:60} {' '.join(figures)} {row.get('why', '')}", flush=True)
    counts = {kind: sum(row["result"] == kind for row in rows) for kind in ("works", "refused", "wrong")}
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    result = {"counts": counts, "versions": versions, "seconds": round(time.perf_counter() - began), "rows": rows}
    print(json.dumps(counts))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()
