"""The emulator of CUDA kernels for tests: built when the first of them needs it, while the others wait for it or are
busy with tests that do not."""

import os

import pytest


def module():
    """pydiff._simt. Where it cannot be built the test is skipped, or fails if compiled kernels are required."""
    from pydiff import emulator

    try:
        return emulator.load()
    except RuntimeError as error:
        if os.environ.get("PYDIFF_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise
        pytest.skip(str(error))


class _Later:
    """Stands for the module in files that would otherwise have it built while tests are being collected."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(module(), name)


simt = _Later()
