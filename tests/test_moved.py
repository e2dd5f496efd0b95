"""Old import paths: the same objects, with a warning that names the new path; and one sentence for what is gone."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pydiff
from pydiff import backend, moved

ROOT = Path(__file__).parents[1]

# The public names of pydiff 0.1.0 in modules that moved, as that version had them.
OLD = {
    "pydiff.train": "GIVE_UP_AFTER VLB StepState Trainer training_steps learning_rate first_bad_module train",
    "pydiff.options": "WITHOUT_EFFECT Options build_process build_unet default_channels",
    "pydiff.interrupt": "Interrupted stop_request",
    "pydiff.plan": "Step Plan Played",
    "pydiff.predict": "sampler_options check_sampler",
    "pydiff.rundir": "RunDirectory",
    "pydiff.checkpoint": "MANIFEST STATE CONFIG WEIGHTS SEAL MODEL_CLASS CheckpointError CheckpointWarning Survey save "
    "load survey latest prune Model save_model holds_model load_model",
    "pydiff.sealed": "VERSION CHUNK write read read_file resolve remove discard make_folders disk",
    "pydiff.tensorfile": "MAX_HEADER MAX_DIMS EXACT HALF CheckpointError damaged encode decode parse_json is_utf8",
    "pydiff.diffusion.objective": "GAMMA WEIGHTS loss_weight hybrid_loss example_losses variational_bits normal_kl "
    "discretized_nll TIMESTEPS draw_timesteps LossAware offset_noise self_conditioned conditioned SelfConditioned",
    "pydiff.diffusion.diffusers_config": "SCHEDULERS DiffusersScheduler from_diffusers",
}
PAIRS = [(module, name) for module, names in OLD.items() for name in names.split()]
GONE = [("pydiff.train", "batch"), ("pydiff.train", "loss_of"), ("pydiff.predict", "predictor")]


def test_every_module_that_moved_is_tested():
    assert OLD.keys() == moved.MODULES.keys()


@pytest.mark.parametrize(("module", "name"), PAIRS)
def test_an_old_name_is_the_same_object_and_its_new_place_is_said(module, name):
    with pytest.warns(
        DeprecationWarning, match=rf"^{re.escape(module)}\.{name} is now pydiff\.[\w.]+\.{name}$"
    ) as said:
        found = getattr(importlib.import_module(module), name)
    assert len(said) == 1
    assert said[0].filename == __file__  # the line that has to be changed
    place = str(said[0].message).rpartition(" is now ")[2].rpartition(".")[0]
    assert place in moved.MODULES[module]
    assert found is getattr(importlib.import_module(place), name)


@pytest.mark.parametrize(("module", "name"), [*GONE, ("pydiff.options", "nothing_like_this")])
def test_a_name_that_is_gone_says_where_the_rest_went(module, name):
    places = re.escape(" and ".join(moved.MODULES[module]))
    with pytest.raises(AttributeError, match=f"^{module} has moved to {places}, and there is no '{name}' there$"):
        getattr(importlib.import_module(module), name)
    assert not hasattr(importlib.import_module(module), name)


def test_an_old_module_is_an_attribute_of_its_package():
    for module in moved.MODULES:
        if module != "pydiff.train":
            package, _, name = module.rpartition(".")
            assert getattr(sys.modules[package], name) is importlib.import_module(module)
    with pytest.raises(AttributeError, match="module 'pydiff' has no attribute 'nothing_like_this'"):
        pydiff.nothing_like_this  # noqa: B018


@pytest.mark.parametrize("module", moved.MODULES)
def test_the_function_stays_the_function_whatever_is_imported(module):
    """In a process of its own, where it is the first import. A warning shows, and nothing else is changed by it."""
    name = OLD[module].split()[0]
    script = f"""
import {module}
from {module} import {name}
import pydiff
assert callable(pydiff.train) and pydiff.train.__module__ == "pydiff.run", pydiff.train
from pydiff import train
assert train is pydiff.train
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"DeprecationWarning: {module}.{name} is now" in done.stderr


def test_importing_pydiff_warns_of_nothing():
    subprocess.run([sys.executable, "-W", "error", "-c", "import pydiff"], check=True)


MOVED_OUT = ["array_module", "to_host", "column", "add", "join", "split", "empty", "contiguous"]


@pytest.mark.parametrize("name", MOVED_OUT)
def test_names_that_left_a_module_that_stayed(name):
    with pytest.warns(DeprecationWarning, match=f"^pydiff.backend.{name} is now pydiff.arrays.{name}$") as said:
        found = getattr(backend, name)
    assert found is getattr(pydiff.arrays, name)
    assert said[0].filename == __file__


def test_a_name_that_a_module_never_had():
    with pytest.raises(AttributeError, match=r"module 'pydiff\.backend' has no attribute 'nothing_like_this'"):
        backend.nothing_like_this  # noqa: B018
    assert not hasattr(backend, "_rows")


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are not here, only the installed package")
def test_the_page_has_a_line_for_every_module_and_every_lost_name():
    page = (ROOT / "docs/migration.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for module, places in moved.MODULES.items():
        (row,) = [row for row in rows if row.startswith(f"| `{module}`")]
        listed = " ".join(row.split("|")[2:])
        assert all(f"`{place}`" in listed or f"`{place.rpartition('.')[2]}.py`" in listed for place in places), row
    for _, name in GONE:
        assert any(row.startswith(f"| `{name}(") for row in rows), name
    for name in MOVED_OUT:
        assert f"`{name}`" in page
    for path in set(re.findall(r"`(pydiff\.[\w.]+)`", " ".join(row.split("|")[2] for row in rows))):
        module, _, name = path.rpartition(".")  # what the page promises exists
        try:
            importlib.import_module(path)
        except ImportError:
            assert hasattr(importlib.import_module(module), name), path


def test_importing_pydiff_waits_with_what_nobody_asked_for():
    """A process that only wants Tensors does not read files, train or draw: that would take several times as long."""
    code = "import sys, pydiff; print(*(m for m in sys.modules if m.startswith('pydiff.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pydiff.tensor" in loaded
    late = ("data", "diffusion", "formats", "models", "report", "run", "store", "text", "training")
    assert {f"pydiff.{name}" for name in late} & {*loaded} == set()
