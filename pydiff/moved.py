"""Where public names went: old import paths keep working, with a DeprecationWarning that names the new one.

docs/migration.md is the same table in words. Nothing is imported before somebody asks for a name.
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


class _Moved(types.ModuleType):
    """Stands in sys.modules under an old name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        for target in MODULES[self.__name__]:
            module = importlib.import_module(target)
            if hasattr(module, name):
                warnings.warn(f"{self.__name__}.{name} is now {target}.{name}", DeprecationWarning, stacklevel=2)
                return getattr(module, name)
        places = " and ".join(MODULES[self.__name__])
        raise AttributeError(f"{self.__name__} has moved to {places}, and there is no {name!r} there")


def register():
    """Makes the old names importable. They are entered in sys.modules alone: the attribute `pydiff.train` is the
    function.
    """
    for name in MODULES:
        sys.modules.setdefault(name, _Moved(name, f"Has moved to {', '.join(MODULES[name])}."))
