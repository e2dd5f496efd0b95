"""What type checkers are told is what there is: written-out words equal the tables, declared methods the real ones."""

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

import pydiff
from pydiff import cli, signatures
from pydiff.backend import DEVICES
from pydiff.data.asked import LAYOUTS, PAGES, SPLITS
from pydiff.diffusion.loss import WEIGHTS
from pydiff.diffusion.path import ALL_SPACINGS
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.diffusion.schedule import BUILDERS
from pydiff.diffusion.timesteps import TIMESTEPS
from pydiff.ops.methods import _METHODS

OPTIONS = get_type_hints(pydiff.Options)
WRITTEN_OUT = {
    "device": (cli.Device, DEVICES),
    "sampler": (cli.Sampler, SAMPLERS),
    "spacing": (cli.Spacing, ALL_SPACINGS),
    "prediction": (OPTIONS["prediction"], PREDICTIONS),
    "schedule": (OPTIONS["schedule"], BUILDERS),
    "loss_weight": (OPTIONS["loss_weight"], WEIGHTS),
    "timestep_sampling": (OPTIONS["timestep_sampling"], (*TIMESTEPS, "loss_aware")),
    "layout": (get_args(OPTIONS["layout"])[0], LAYOUTS),
    "pages": (get_args(OPTIONS["pages"])[0], PAGES),
    "split": (get_args(OPTIONS["split"])[0], SPLITS),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_words_that_are_written_out_equal_the_table(name):
    literal, table = WRITTEN_OUT[name]
    assert get_args(literal) == tuple(table)


def test_a_tensor_has_the_methods_that_are_declared():
    declared = {name for name in vars(signatures.Methods) if name in _METHODS or not name.startswith("__")}
    declared |= set(signatures.Methods.__annotations__)
    assert declared == {*_METHODS, "T"}


PLAIN = ("sum", "mean", "max", "min", "var", "std", "argmax", "argmin", "abs", "exp", "log", "sqrt", "clip", "flatten")


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_can_be_called_as_it_is_declared(name):
    """With every parameter by name, and with all of them by position."""
    x = pydiff.Tensor([[1.0, 4.0], [9.0, 3.0]])
    values = {"axis": 0, "keepdims": True, "ddof": 1, "low": 2.0, "high": 5.0, "start_dim": 0, "end_dim": 1}
    parameters = list(inspect.signature(getattr(signatures.Methods, name)).parameters)[1:]
    made = [getattr(x, name)(**{p: values[p] for p in parameters}), getattr(x, name)(*(values[p] for p in parameters))]
    named, placed = (y.data if isinstance(y, pydiff.Tensor) else y for y in made)
    assert np.array_equal(named, placed)


def test_the_package_says_that_it_has_types():
    assert (Path(pydiff.__file__).parent / "py.typed").is_file()
