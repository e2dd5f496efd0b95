"""Where public names have moved: old import paths keep working, with a DeprecationWarning that names the new one.

docs/migration.md is the same table in words. Nothing is imported before a name is used.
"""

import importlib
import sys
import types
import warnings

MODULES: dict[str, tuple[str, ...]] = {  # old name -> the modules that have its contents now
    "pydiff.train": ("pydiff.training", "pydiff.training.loop", "pydiff.training.task", "pydiff.run"),
    "pydiff.options": ("pydiff.training.config",),
    "pydiff.interrupt": ("pydiff.training.interrupt",),
    "pydiff.plan": ("pydiff.graph",),
    "pydiff.predict": ("pydiff.diffusion.denoiser",),
    "pydiff.rundir": ("pydiff.store.folder",),
    "pydiff.checkpoint": ("pydiff.store.checkpoint",),
    "pydiff.sealed": ("pydiff.store.sealed",),
    "pydiff.tensorfile": ("pydiff.formats.safetensors",),
    "pydiff.diffusion.objective": (
        "pydiff.diffusion.loss",
        "pydiff.diffusion.timesteps",
        "pydiff.diffusion.self_conditioning",
    ),
    "pydiff.diffusion.diffusers_config": ("pydiff.formats.diffusers.scheduler",),
}
NAMES: dict[str, str] = {"pydiff.backend": "pydiff.arrays"}  # modules that exist but have lost some names


class _Moved(types.ModuleType):
    """A stand-in in sys.modules under an old name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if found := _found(self.__name__, name, MODULES[self.__name__]):
            return found[0]
        places = " and ".join(MODULES[self.__name__])
        raise AttributeError(f"{self.__name__} has moved to {places}, and there is no {name!r} there")


def _found(old, name, places):
    """[the object] from the first of these modules that has the name, with a warning; [] if none has."""
    for target in places:
        module = importlib.import_module(target)
        if hasattr(module, name):
            warnings.warn(f"{old}.{name} is now {target}.{name}", DeprecationWarning, stacklevel=3)
            return [getattr(module, name)]
    return []


def _elsewhere(old):
    """A __getattr__ for a module, which looks up moved names before calling the module's own, if it has one."""
    own = vars(sys.modules[old]).get("__getattr__")

    def get(name):
        if not name.startswith("_") and (found := _found(old, name, [NAMES[old]])):
            return found[0]
        if own:
            return own(name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return get


def register(later=()):
    """Makes the old names importable, also as attributes of their packages; except that `pydiff.train` is the function.

    later: names that `pydiff` resolves when first used. Packages that are not loaded yet look here themselves.
    """
    for name in MODULES:
        module = sys.modules.setdefault(name, _Moved(name, f"Has moved to {', '.join(MODULES[name])}."))
        package, _, attribute = name.rpartition(".")
        loaded = sys.modules.get(package)
        if loaded is not None and attribute not in {*vars(loaded), *later}:
            setattr(loaded, attribute, module)
    for name in NAMES:
        sys.modules[name].__getattr__ = _elsewhere(name)
