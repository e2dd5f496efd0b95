"""Options that nobody chose: those of clips are the recipe that was measured, and whoever chooses is heard."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from benchmarks.papers.clips import RECIPE
from pydiff.cli import chosen, main
from pydiff.codecs.frames import Frames
from pydiff.console import flags
from pydiff.data.moving import moving_shapes
from pydiff.training import Options
from pydiff.training.networks import build_network
from pydiff.training.suited import CLIPS, TOGETHER, suited

CLIP_DATA = moving_shapes(4, frames=2, size=8)
SMALL = {"steps": 1, "batch_size": 2, "channels": (4,), "groups": 2, "head_dim": 2, "timesteps": 10, "sample_every": 0}


def refused(note):
    raise AssertionError(note)


def test_images_are_trained_as_before():
    options = Options()
    assert suited(options, (), pydiff.data.load("digits"), announce=refused) is options


@given(st.sets(st.sampled_from(list(Options.__dataclass_fields__))))
def test_clips_get_what_suits_them_where_nobody_chose(names):
    plain, notes = Options(), []
    options = suited(plain, names, CLIP_DATA, announce=notes.append)
    for name in Options.__dataclass_fields__:
        free = name in CLIPS and not {name, TOGETHER.get(name, name)} & names
        assert getattr(options, name) == (CLIPS[name] if free else getattr(plain, name))
    changed = [n for n in CLIPS if getattr(options, n) != getattr(plain, n)]
    assert all(f"{name}=" in " ".join(notes) for name in changed)
    assert len(notes) == bool(changed)


def test_latents_are_learned_by_v_where_nobody_chose():
    digits, notes = pydiff.data.load("digits"), []
    assert suited(Options(), (), digits, announce=notes.append, latent=True).prediction == "v"
    assert notes == ["as suits latents, where nothing else was asked for: prediction='v'"]
    assert suited(Options(), {"prediction"}, digits, announce=refused, latent=True).prediction == "eps"
    assert suited(Options(), (), digits, object(), announce=refused, latent=True).prediction == "eps"


def test_a_run_in_latents_that_goes_on_keeps_its_own(tmp_path):
    """Those that began before v was usual, too."""
    digits = pydiff.data.load("digits").images[:8]
    small = {"batch_size": 2, "channels": (4, 4), "groups": 2, "progress": False, "sample_every": 0, "seed": 1}
    pydiff.train(digits, model="autoencoder", out=tmp_path / "ae", steps=1, latent_channels=2, **small)
    small |= {"timesteps": 10, "head_dim": 2, "latent": tmp_path / "ae", "out": tmp_path / "run"}
    assert pydiff.train(digits, steps=1, prediction="eps", **small).options["prediction"] == "eps"
    assert pydiff.train(digits, steps=2, **small).options["prediction"] == "eps"
    assert pydiff.train(digits, steps=1, **small | {"out": tmp_path / "new"}).options["prediction"] == "v"


def test_a_run_that_goes_on_keeps_its_own(tmp_path):
    before = pydiff.train(CLIP_DATA, out=tmp_path, progress=False, **SMALL, lr=0.5, prediction="v", ema=0.5)
    chosen = {"channels": (4,), "groups": 2, "head_dim": 2, "timesteps": 10, "sample_every": 0}
    after = pydiff.train(CLIP_DATA, out=tmp_path, progress=False, steps=3, **chosen)
    assert after.step == 3
    assert after.options == before.options | {"steps": 3}


def test_what_one_brings_oneself_is_trained_as_it_was():
    for network, options in ((object(), Options()), (None, Options(init_from="runs/x"))):
        assert suited(options, (), CLIP_DATA, network, announce=refused) is options


def test_the_recipe_that_was_measured_is_what_one_gets():
    options = suited(Options(), (), CLIP_DATA)
    measured = Options(**{"steps": 6000, **RECIPE})
    without = {"sample_every": measured.sample_every, "checkpoint_every": measured.checkpoint_every}
    same = {"channels": measured.channels, "attention": measured.attention}
    assert dataclasses.replace(options, **without, **same) == measured
    made = [build_network(o, Frames((8, 16, 16, 3)), None, 50) for o in (options, measured)]
    assert made[0].config == made[1].config


def test_the_command_says_what_was_chosen():
    named = flags(["train", "x", "--batch-size=64", "--no-flip", "--prediction", "eps", "-n", "3"])
    assert named == {"batch_size", "no_flip", "flip", "prediction"}
    assert chosen(Options(steps=5), named) == {"steps": 5, "batch_size": 64, "flip": False, "prediction": "eps"}


@pytest.mark.parametrize(("more", "prediction"), [([], "x0"), (["--prediction", "eps"], "eps")])
def test_a_flag_that_says_what_is_usual_is_heard(tmp_path, capsys, more, prediction):
    np.savez(tmp_path / "clips.npz", images=CLIP_DATA.images)
    small = [
        str(a) for n, v in SMALL.items() for a in (f"--{n.replace('_', '-')}", *(v if isinstance(v, tuple) else [v]))
    ]
    command = ["train", str(tmp_path / "clips.npz"), "--out", str(tmp_path / "run"), *small, *more]
    assert main(command) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "timestep_shift=3.0" in told
    assert ("prediction='x0'" in told) == (prediction == "x0")
    run = pydiff.load(tmp_path / "run")
    assert (run.options["prediction"], run.options["timestep_shift"]) == (prediction, 3.0)
    assert run.options["lr"] == Options().lr  # it goes with the batch, which was chosen
    assert main([*command, "--steps", "2"]) == 0, capsys.readouterr().err


def test_a_network_of_ones_own_learns_what_is_usual():
    model = pydiff.models.widened(pydiff.models.UNet2D(block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2))  # fmt: skip
    run = pydiff.train(CLIP_DATA, model=model, text="none", progress=False, steps=1, batch_size=1)
    assert run.options["prediction"] == "eps"
