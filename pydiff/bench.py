"""`pydiff bench`: runs the kernel benchmarks of the source checkout, benchmarks/bench_<op>.py.

They are not part of the installed package: they compare with other libraries, and are for developers of pydiff.
"""

import importlib
import sys
from pathlib import Path


def main(ops, json=None, quick=False):
    """Times the named ops (all, if the list is empty) and prints a table; `json` is a file for the figures.

    Raises FileNotFoundError if pydiff was installed without its sources, ValueError for an unknown op, RuntimeError if
    a contender gave wrong results.
    """
    checkout = find_checkout()
    known = sorted(file.stem.removeprefix("bench_") for file in (checkout / "benchmarks").glob("bench_*.py"))
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ValueError(f"there is no benchmark of {unknown[0]!r}; choose from {', '.join(known)}")
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    harness = importlib.import_module("benchmarks.harness")
    contenders = importlib.import_module("benchmarks.contenders")
    report = harness.run(ops or known, harness.settings_of(quick), contenders.available_threads())
    if harness.finish(report, json):
        raise RuntimeError(f"{len(report['wrong'])} contenders computed something wrong: {', '.join(report['wrong'])}")


def find_checkout():
    """The folder that contains benchmarks/: that of an editable installation, else the current one."""
    candidates = [Path(__file__).resolve().parent.parent, Path.cwd()]
    for folder in candidates:
        if (folder / "benchmarks" / "harness.py").is_file():
            return folder
    raise FileNotFoundError(
        "the benchmarks are part of pydiff's source checkout, not of the installed package: "
        "clone the repository and run `pydiff bench` inside it"
    )
