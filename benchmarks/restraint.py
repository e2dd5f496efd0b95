"""--simd: the comparison on an older instruction set than the processor's, with everyone restrained alike.

The libraries read these variables while they are loaded. So a script that was asked to restrain them starts itself
anew, with the variables set; processes that it starts inherit them.
"""

import os
import sys

import numpy as np

# What everyone is told. At "baseline" that is the least each of them knows: SSE2 for pydiff and torch's own kernels,
# SSE4 for the libraries behind torch and NumPy.
ENVIRONMENT = {
    "avx2": {
        "PYDIFF_SIMD": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "baseline": {
        "PYDIFF_SIMD": "baseline",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}
# What torch and OpenBLAS then say they use.
EXPECTED = {"avx2": {"torch": "AVX2", "blas": "Haswell"}, "baseline": {"torch": "DEFAULT", "blas": "Nehalem"}}
# NumPy's own loops have no level, but every feature can be disabled; names before and since NumPy 2.4.
AVX512, AVX2 = ("AVX512", "X86_V4"), ("AVX", "F16C", "FMA", "XOP", "X86_V3")


def restrain(level, arguments=None):
    """Starts the script anew with everyone restrained to `level`; returns if that is so already, or for None.

    arguments: what the script was called with from Python, if it was; RuntimeError then, for the libraries are loaded.
    """
    if level is None or in_force() == level:
        return
    if arguments is not None:
        raise RuntimeError(
            f"--simd {level} works from the command line only: torch and NumPy are loaded already, and have chosen "
            f"their instruction sets"
        )
    variables = ENVIRONMENT[level] | {"NPY_DISABLE_CPU_FEATURES": " ".join(too_new(level))}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)


def in_force():
    """The level to which this process is restrained, or None."""
    for level, variables in ENVIRONMENT.items():
        if all(os.environ.get(name) == value for name, value in variables.items()):
            return level
    return None


def too_new(level):
    """The features that NumPy's loops would use on this processor, and that `level` does not have."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return [name for name in found if name.startswith(AVX512 if level == "avx2" else (*AVX512, *AVX2))]


def instruction_sets():
    """{"torch": .., "blas": ..}: what those that are loaded say they use. RuntimeError if they were not restrained."""
    found = {}
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].backends.cpu.get_cpu_capability()
    if "threadpoolctl" in sys.modules:
        libraries = sys.modules["threadpoolctl"].threadpool_info()
        names = [library["architecture"] for library in libraries if library["internal_api"] == "openblas"]
        found |= {"blas": names[0]} if names else {}
    level = in_force()
    for name, value in found.items():
        if level and value != EXPECTED[level][name]:
            raise RuntimeError(f"{name} was to be restrained to {level}, but works with {value}: not a fair comparison")
    return found


def in_words(machine):
    """pydiff's instruction set, and whether everyone is restrained to it; of a report's machine."""
    restrained = machine.get("restrained")  # older reports do not say
    return machine["simd"] + (f", everyone restrained to {restrained}" if restrained else "")
