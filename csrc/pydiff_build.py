"""The build backend: scikit-build-core's, and once more without the kernels where the compiler fails on them.

A machine that has no compiler at all is CMakeLists.txt's own business. scikit-build-core could try again by itself
(`if.failed`), but then it no longer tells name and version without building, and every resolver would compile.
"""

import os
import sys

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403  what else installers may ask for: metadata, sdist, requirements

WHY = "the C++ compiler failed on the kernels; with PYDIFF_REQUIRE_NATIVE=1 pip shows its message"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _or_without_kernels(build.build_wheel, wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _or_without_kernels(build.build_editable, wheel_directory, config_settings, metadata_directory)


def _or_without_kernels(hook, *arguments):
    """What was asked for and cannot be had (PYDIFF_REQUIRE_NATIVE, PYDIFF_CUDA=ON) fails the second time, too."""
    try:
        return hook(*arguments)
    except SystemExit:
        print(f"pydiff is built once more, without compiled kernels: {WHY}", file=sys.stderr)
        os.environ["PYDIFF_BUILD_FAILED"] = WHY  # pyproject.toml hands it to CMake
        try:
            return hook(*arguments)
        finally:
            del os.environ["PYDIFF_BUILD_FAILED"]
