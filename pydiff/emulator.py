"""The emulator of CUDA kernels, pydiff._simt: compiled on first use, once for all users of the cache.

It is for tests and for stepping through a kernel, so an installation contains only its sources (csrc/simt and
csrc/cuda). The module is stored in the user's cache, under a name that is a hash of everything it is made from:
sources, compiler, flags, Python, pybind11. So are the object files it is linked from; after a change only the affected
ones are compiled. Every file is written under a temporary name and then renamed: a build may be killed at any moment.
"""

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydiff

NAME = "pydiff._simt"
FLAGS = ["-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # #pragma unroll is nvcc's
LINK = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
PYTHON = ("bindings", "call")  # the Python interface computes nothing, but is half of the compiler's work
DAYS = 30  # builds unused for this long are deleted
_alone = threading.Lock()
_refused = None  # a sentence, once a build has failed in this process


def load():
    """The emulator's module, built first if necessary. Raises RuntimeError if that fails."""
    with _alone:
        if NAME not in sys.modules:
            spec = importlib.util.spec_from_file_location(NAME, build())
            module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
            spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
            sys.modules[NAME] = pydiff._simt = module  # pyright: ignore[reportAttributeAccessIssue]
        return sys.modules[NAME]


def describe():
    """A line for `pydiff info`; builds nothing."""
    try:
        made = Recipe().module
    except RuntimeError as error:
        return str(error)
    if made.is_file():
        return f"built ({made})"
    return "not built yet; device simt and the tests build it when they first need it, in a minute or less"


def build():
    """The path of the module, built if necessary. Other processes wait for a build in progress."""
    global _refused
    if _refused:
        raise RuntimeError(_refused)
    try:
        recipe = Recipe()
        if not recipe.module.is_file():
            with _locked(recipe.folder) as began:
                if not recipe.module.is_file():
                    _build(recipe, began)
        _use(recipe.module)
        return recipe.module
    except OSError as error:
        _refused = f"the emulator of CUDA kernels cannot be built: {error} (XDG_CACHE_HOME says where the cache is)"
    except RuntimeError as error:
        _refused = str(error)
    raise RuntimeError(_refused)


class Recipe:
    """What is compiled and how, and the names of the results.

    folder: of the cache. units: {source: its object file}. module: the file that is linked from them.
    """

    def __init__(self):
        self.csrc = _sources()
        self.compiler = _compiler()
        self.include = [f"-isystem{path}" for path in (sysconfig.get_path("include"), _pybind11())]
        version = subprocess.run([*self.compiler, "--version"], capture_output=True, text=True).stdout
        self.suffix = sysconfig.get_config_var("EXT_SUFFIX")
        common = _digest(version, str(self.compiler), str(FLAGS), *self.include, self.suffix, sys.version)
        folders = ("bindings", "simt", "simt/selftest", "cuda")
        headers = sorted(path for folder in (".", *folders) for path in self._all(folder, ".h"))
        common = _digest(common, *(text for path in headers for text in (path.name, path.read_text())))
        self.folder = _cache()
        self.units = {
            source: self.folder
            / f"{source.stem}-{_digest(common, str(source.relative_to(self.csrc)), source.read_text())}.o"
            for folder in folders
            for source in self._all(folder, ".cpp", ".cu")
            if source.name != "main.cpp" and source != self.csrc / "cuda/bindings.cpp"  # programs; CuPy's arrays
        }
        self.module = self.folder / f"_simt-{_digest(*(made.name for made in self.units.values()))}{self.suffix}"

    def _all(self, folder, *suffixes):
        return sorted(path for path in (self.csrc / folder).iterdir() if path.suffix in suffixes)

    def compile(self, source, to):
        """The command that compiles a source."""
        python = source.parent.name == "bindings" or source.stem in PYTHON
        language = [] if source.suffix == ".cpp" else ["-x", "c++"]
        return [*self.compiler, *FLAGS, "-O1" if python else "-O2", *self.include, *language, "-c", source, "-o", to]

    def link(self, to):
        """The command that links the module."""
        return [*self.compiler, "-pthread", *LINK, *self.units.values(), "-o", to]


def _build(recipe, began):
    """Compiles missing objects, as many at a time as there are processors, and links. Call with the lock held."""
    said = recipe.module.with_suffix(".failed")
    if said.is_file() and said.stat().st_mtime > began:  # built while this process waited
        raise RuntimeError(said.read_text())
    for left in recipe.folder.glob("building-*"):  # left by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    missing = sorted((s for s, made in recipe.units.items() if not made.is_file()), key=lambda s: -_weight(s))
    print(f"pydiff compiles the emulator of CUDA kernels, once: {len(missing)} files ..", file=sys.stderr, flush=True)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(processors, 8))
    with tempfile.TemporaryDirectory(prefix="building-", dir=recipe.folder, ignore_cleanup_errors=True) as folder:
        try:
            for _ in pool.map(lambda s: _make(recipe.compile, s, recipe.units[s], folder), missing):
                pass
            for made in recipe.units.values():
                _use(made)
            _make(lambda _, to: recipe.link(to), Path("the link"), recipe.module, folder)
        except RuntimeError as error:
            _replace(said, str(error), folder)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    said.unlink(missing_ok=True)
    for path in recipe.folder.iterdir():
        if path.name != "lock" and path.stat().st_mtime < time.time() - DAYS * 86400:
            path.unlink(missing_ok=True)


def _make(command, source, to, folder):
    """Runs command(source, a temporary file) and renames the file to `to`."""
    part = Path(folder, to.name)
    done = subprocess.run([str(word) for word in command(source, part)], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        reason = lines[0].strip() if lines else f"it ended with status {done.returncode}"
        log = to.with_suffix(".log")
        _replace(log, done.stderr, folder)
        raise RuntimeError(
            f"the emulator of CUDA kernels could not be built: the compiler failed on {source.name}: {reason} "
            f"(all it said is in {log})"
        )
    os.replace(part, to)


def _replace(path, text, folder):
    part = Path(folder, path.name)
    part.write_text(text)
    os.replace(part, path)


@contextlib.contextmanager
def _locked(folder):
    """Holds the lock of the cache; yields the time at which this process began to wait. The lock of a dead process is
    released.
    """
    try:
        import fcntl
    except ImportError:
        raise RuntimeError(f"the emulator of CUDA kernels runs on Linux and macOS, not on {sys.platform}") from None
    began = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield began


def _sources():
    """The csrc folder of the installation or, if pydiff is imported from a checkout, of the checkout."""
    package = Path(__file__).resolve().parent
    for csrc in (package / "csrc", package.parent / "csrc"):
        if (csrc / "simt").is_dir():
            return csrc
    raise RuntimeError("the emulator of CUDA kernels cannot be built: this installation does not have its sources")


def _compiler():
    """The C++ compiler and its arguments: from CXX, or the first one found."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for words in [wanted] if wanted else (["c++"], ["g++"], ["clang++"]):
        if shutil.which(words[0]):
            return words
    missing = f"CXX names {wanted[0]}, which is not there" if wanted else "there is no C++ compiler"
    raise RuntimeError(f"the emulator of CUDA kernels cannot be built: {missing}")


def _pybind11():
    try:
        import pybind11
    except ImportError:
        raise RuntimeError(
            "the emulator of CUDA kernels cannot be built without pybind11; pip install pybind11"
        ) from None
    return pybind11.get_include()


def _cache():
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "pydiff" / "emulator"


def _digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def _use(path):
    """Records that the path was used today."""
    with contextlib.suppress(OSError):  # the cache may be read-only
        os.utime(path)


def _weight(source):
    """A sort key that puts the slowest files first, so that no processor works on one alone at the end."""
    return (source.stem in ("kernels", *PYTHON, "attention", "group_norm")) * 1e6 + source.stat().st_size
