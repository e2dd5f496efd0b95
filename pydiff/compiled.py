"""The compiled modules: which of them this installation has, why not the others, and which one this processor gets.

An installation from source has the baseline module, which runs on any processor, and the best one for the machine that
it was made on; a wheel has all. So the best one here may be missing: after a move to another machine, say.
"""

import importlib
import os
import sys
import warnings
from importlib.util import find_spec

LEVELS = {"avx512": "pydiff._cpu_avx512", "avx2": "pydiff._cpu_avx2", "baseline": "pydiff._cpu"}  # best first
SETTINGS = ("PYDIFF_NATIVE", "PYDIFF_SIMD", "PYDIFF_WINOGRAD", "PYDIFF_THREADS", "PYDIFF_MPI_TIMEOUT")
MOST_THREADS = 1024  # as in csrc/threads.h


def record():
    """What CMakeLists.txt recorded about the build, as a dict; empty if nothing was installed."""
    import json
    from pathlib import Path

    import pydiff

    for folder in pydiff.__path__:  # two in an editable installation: the sources and the build
        if (path := Path(folder, "_build.json")).is_file():
            return json.loads(path.read_text())
    return {}


def built():
    """The instruction sets for which there are modules, best first."""
    return [level for level in LEVELS if _there(level)]


def levels():
    """Those of them that this processor can run. Raises ImportError if there are no modules."""
    return [level for level in importlib.import_module(LEVELS["baseline"]).supported_levels() if _there(level)]


def _there(level):
    module = LEVELS[level]
    return sys.modules[module] is not None if module in sys.modules else find_spec(module) is not None


def wrong_setting(message):
    """The error for a wrong value of an environment variable, which is read while pydiff is imported: a ValueError, or
    for the command `pydiff`, which has not begun then, an exit with one sentence.
    """
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    command = name in ("pydiff", "pydiff.exe") or (name == "-m" and "pydiff" in sys.orig_argv)
    return SystemExit(f"pydiff: {message}") if command else ValueError(message)


def check_threads(environment):
    """Tells of a wrong PYDIFF_THREADS now, rather than in the first kernel: csrc/threads.h reads it."""
    value = environment.get("PYDIFF_THREADS")
    if value and not (value.isascii() and value.isdigit() and 1 <= int(value) <= MOST_THREADS):
        raise wrong_setting(f"PYDIFF_THREADS must be a whole number from 1 to {MOST_THREADS}, got {value!r}")


def warn_of_misspelt(names):
    """A RuntimeWarning for each of these names of environment variables that nothing reads, and that is nearly one of
    the SETTINGS.
    """
    for name in names:
        if name.startswith("PYDIFF_") and name not in SETTINGS:
            import difflib

            if near := difflib.get_close_matches(name, SETTINGS, 1, 0.8):
                message = f"nothing reads the environment variable {name}; did you mean {near[0]}?"
                warnings.warn(message, RuntimeWarning, stacklevel=3)


def load_cpu(mode, wanted):
    """The best CPU module this machine can run, or None, and one sentence that says why it is this one.

    mode: auto, require or off. wanted: an instruction set, or "" for the best.
    """
    if mode == "off":
        return None, "switched off by PYDIFF_NATIVE=off"
    try:
        supported = importlib.import_module(LEVELS["baseline"]).supported_levels()
        if wanted and wanted not in supported:
            raise ImportError(f"PYDIFF_SIMD={wanted} was asked for, but this processor supports {', '.join(supported)}")
        if wanted and not _there(wanted):
            raise ImportError(
                f"PYDIFF_SIMD={wanted} was asked for, but this installation was built for {', '.join(built())} alone; "
                "PYDIFF_CPU_LEVELS=all builds every instruction set"
            )
        level = wanted or levels()[0]
        return importlib.import_module(LEVELS[level]), f"instruction set {level}"
    except ImportError as error:
        if mode == "require" or wanted:
            raise ImportError(f"the compiled CPU kernels could not be loaded: {error}") from error
        missing = isinstance(error, ModuleNotFoundError) and error.name in LEVELS.values()
        return None, f"not built: {why_not('cpu')}" if missing else f"failed to load: {error}"


def why_not(what):
    """Why the installation has no "cpu" or "cuda" module, as half a sentence."""
    return record().get(f"no_{what}") or "pydiff is not installed here, or not for this Python"


def load(module, what):
    """Another compiled module. Raises RuntimeError if there is none."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        reason = f"was not built: {why_not('cuda')}" if missing else f"could not be loaded: {error}"
        raise RuntimeError(f"{what}, {module}, {reason}") from error
