"""A plugin of pytest for planted_faults.py: one module of pydiff is loaded from another file.

PYDIFF_PLANTED=pydiff.optim=/tmp/planted.py pytest -p tests.stress.planted_module ..
"""

import importlib.abc
import importlib.util
import os
import sys

NAME, _, FILE = os.environ["PYDIFF_PLANTED"].partition("=")


class Finder(importlib.abc.MetaPathFinder):
    """Finds that module and no other."""

    def find_spec(self, fullname, path=None, target=None):  # noqa: ARG002 - the interface
        """Its specification, from the other file; None for all others."""
        if fullname != NAME:
            return None
        return importlib.util.spec_from_file_location(NAME, FILE)


sys.meta_path.insert(0, Finder())
