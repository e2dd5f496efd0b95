"""The process that does a stage's tasks one after the other and tells the parent, a line of JSON at a time:

    {"tasks": [names]}   {"start": k}   {"done": k, "seconds": s, "result": {..}}   {"failed": k, "failure": why}
    {"broken": why}, instead of all that, if it cannot begin: no GPU, say

A task that raises has failed, and the next one follows. If the GPU does not answer after that, as after an illegal
access, the process ends with status 3, and the parent goes on with the next task in a new one.
"""

import argparse
import itertools
import json
import os
import sys
import time
from functools import partial

from benchmarks.cases import checked, timed
from benchmarks.devices import GPUS, Gpu
from benchmarks.gpu import ceilings, machine, models
from benchmarks.harness import check, in_a_line, line_of, measure

OPS = ("group_norm", "conv2d", "attention", "linear", "layer_norm", "gelu", "noise", "dropout", "denoise", "adamw")
LOST = 3  # exit status: the GPU does not answer


def cases(device, which):
    """All cases that are `checked` or `timed`, the ops in turns, so that a stage cut short has seen each of them."""
    groups = itertools.zip_longest(*(list(which(op, device)) for op in OPS))
    return [case for group in groups for case in group if case is not None]


def correctness(device, _limits):
    """A task for every case."""
    return {case.title: partial(_check, device, case) for case in cases(device, checked)}


def _check(device, case):
    return {"rows": check(device, case)}


def timing(device, limits):
    """A task for every case."""
    return {case.title: partial(_measure, device, case, limits) for case in cases(device, timed)}


def _measure(device, case, limits):
    rows, ratio = measure(device, case, limits)
    print(case.title, *map(line_of, rows), sep="\n")
    return {"rows": rows, "ratio": {} if ratio is None else {case.title: ratio}}


def warm(device, _limits):
    """Compiles what the timing stage will want compiled, while the kernels are still being built."""
    found = {}
    for case in cases(device, timed):
        compiled = [c for c in case.contenders if "compile" in c.name or c.name == "Triton"]
        if compiled:
            found[case.title] = partial(_warm, case, compiled, device)
    return found


def _warm(case, contenders, device):
    inputs, *_ = device.inputs(case.problem)
    for contender in contenders:
        contender.make(inputs)()
    device.synchronize()
    return {}


def warm_model(batch, device, _limits):
    """Compiles the peer's U-Net for one batch size."""
    return {f"compile, batch {batch}": partial(models.warm, device, batch)}


def whole(device, _limits):
    """A task for every section of models.py."""
    return {name: partial(_whole, name, task) for name, task in models.tasks(device).items()}


def _whole(name, task):
    rows = task()
    ratios = {row["op"]: row.pop("ratio") for row in rows if row.get("ratio") is not None}
    print(name, *rows, sep="\n  ")
    return {"rows": rows, "ratio": ratios}


STAGES = {
    "machine": lambda device, _limits: {"machine": partial(machine.describe, device)},
    "warm": warm,
    **{f"warm-{batch}": partial(warm_model, batch) for batch in (16, 64, 128)},
    "correctness": correctness,
    "ceilings": lambda device, _limits: {"ceilings": partial(ceilings.ceilings, device)},
    "timing": timing,
    "models": whole,
}
WITHOUT_KERNELS = ("machine", "warm", "ceilings")  # by the first word of the name


def main(arguments=None):
    """Returns the exit status."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("stage", choices=STAGES)
    p.add_argument("--device", choices=GPUS, required=True)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--limits", type=json.loads, default={}, help="the ceilings, as JSON")
    p.add_argument("--first", type=int, default=0, help="the task to begin with")
    options = p.parse_args(arguments)
    # What libraries print goes to the log, with the errors; the old stdout is for the parent alone.
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return serve(options, lambda message: print(json.dumps(message, allow_nan=False), file=parent, flush=True))


def serve(options, tell):
    """Does the tasks and tells about each."""
    try:
        device = Gpu(options.device, options.stage.partition("-")[0] not in WITHOUT_KERNELS, options.seed)
        tasks = STAGES[options.stage](device, options.limits)
    except Exception as error:  # in one sentence, where a traceback would only be in the log
        tell({"broken": in_a_line(error)})
        raise
    tell({"tasks": list(tasks)})
    for k, task in itertools.islice(enumerate(tasks.values()), options.first, None):
        tell({"start": k})
        begin = time.perf_counter()
        try:
            result = task()
            device.synchronize()
            tell({"done": k, "seconds": time.perf_counter() - begin, "result": result or {}})
        except Exception as error:  # recorded by the parent; the next task wants its turn
            tell({"failed": k, "failure": in_a_line(error)})
            try:
                device.synchronize()
            except Exception:
                return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
