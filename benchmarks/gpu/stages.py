"""The order of events, each with a budget: what a stage has not done by then is written down as not reached.

    machine                     what this is
    build, driver, warm         side by side: pip install of the checkout; csrc/cuda/check for the sanitizer;
                                torch.compile fills its cache for the peers
    correctness, sanitizer      side by side: every kernel against float64; compute-sanitizer on csrc/cuda/check
    ceilings, timing, models    alone on the GPU

The report is a file of JSON that is written anew whenever something was found out.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.gpu import sanitizer
from benchmarks.gpu.build import CHECKOUT, build, site


class Budget(NamedTuple):
    """Seconds: at most for the stage, for one of its tasks, and what is kept for it from the stages before."""

    most: float
    task: float
    least: float


BUDGETS = {
    "machine": Budget(40, 40, 0),
    "build": Budget(200, 200, 0),
    "driver": Budget(200, 200, 0),
    "warm": Budget(200, 190, 0),
    "correctness": Budget(110, 30, 50),
    "sanitizer": Budget(120, 120, 50),
    "ceilings": Budget(30, 30, 15),
    "timing": Budget(190, 30, 110),
    "models": Budget(150, 110, 80),
}
GROUPS = (
    ("machine",),
    ("build", "driver", "warm"),
    ("correctness", "sanitizer"),
    ("ceilings",),
    ("timing",),
    ("models",),
)
WARM = ("warm", "warm-16", "warm-64", "warm-128")  # processes that compile side by side
START = 60  # seconds until a worker has to have said what its tasks are


class Run:
    """A run into a folder: report file and log. stages: which of BUDGETS; total: seconds for all of it."""

    def __init__(self, folder, name, device, stages, total, seed):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.device, self.stages = folder / f"gpu-{name}.json", device, stages
        self.log = (folder / "log.txt").open("a")
        self.start, self.end = time.perf_counter(), time.perf_counter() + total
        self.lock, self.written, self.total = threading.Lock(), 0.0, total
        self.report = json.loads(self.path.read_text()) if self.path.exists() else {"stages": {}}
        self.report |= {"device": device, "seed": seed, "total": total}

    def go(self):
        """All stages, in order. Returns the report."""
        for number, group in enumerate(GROUPS):
            wanted = [stage for stage in group if stage in self.stages]
            later = sum(max(BUDGETS[s].least for s in g) for g in GROUPS[number + 1 :] if set(g) & set(self.stages))
            with ThreadPoolExecutor(max(1, len(wanted))) as pool:
                list(pool.map(lambda stage, later=later: self.one(stage, self.end - later), wanted))
            self.flush()
        self.report["seconds"] = time.perf_counter() - self.start
        self.flush()
        self.log.close()
        return self.report

    def one(self, stage, limit):
        """A stage, which has to be over by `limit`. Whatever goes wrong is written down."""
        begin = time.perf_counter()
        deadline = min(begin + BUDGETS[stage].most, limit)
        found = {"failures": [], "not_reached": []}
        try:
            if stage == "build":
                self.report["build"] = outcome = build(self.log, deadline - begin)
                found["failures"] += [{"task": "build", "failure": outcome["failure"]}] if "failure" in outcome else []
            elif stage == "sanitizer":
                self.report["sanitizer"] = {"rows": sanitizer.sanitize(self.log, deadline - begin)}
            elif stage == "driver":
                self.report["driver"] = {"rows": [sanitizer.compile_program(self.log, deadline - begin)]}
            elif stage == "warm":
                with ThreadPoolExecutor(len(WARM)) as pool:
                    for part in pool.map(lambda name: self.work(name, stage, deadline), WARM):
                        found = {key: found[key] + part[key] for key in found}
            else:
                found = self.work(stage, stage, deadline)
        except Exception as error:  # the other stages want their turn
            found["failures"].append({"task": stage, "failure": f"{type(error).__name__}: {error}"})
        found["seconds"] = time.perf_counter() - begin
        self.report["stages"][stage] = found
        print(f"{stage}: {found['seconds']:.0f} s, {len(found['failures'])} failures, "
              f"{len(found['not_reached'])} not reached", flush=True)  # fmt: skip
        self.flush()

    # ---- workers ----

    def work(self, name, stage, deadline):
        """Has all tasks done by one worker after another: a new one wherever the last one was lost."""
        tasks, first, failures = None, 0, []
        if name == stage != "warm":
            self.report.pop(stage, None)  # of an earlier run into the same file
        while tasks is None or first < len(tasks):
            if time.perf_counter() >= deadline:
                break
            before, current, why = first, None, None
            with self.worker(name, first) as messages:
                while True:
                    patience = BUDGETS[stage].task if current is not None else START
                    message, why = messages(min(patience, deadline - time.perf_counter()))
                    if message is None:
                        break
                    if "broken" in message:
                        return {"failures": [{"task": stage, "failure": message["broken"]}], "not_reached": []}
                    tasks = message.get("tasks", tasks)
                    current = message.get("start", None if "done" in message or "failed" in message else current)
                    if "failed" in message:
                        failures.append({"task": tasks[message["failed"]], "failure": message["failure"]})
                    if "done" in message:
                        self.take(stage, message["result"])
                    first = max(first, message.get("done", -1) + 1, message.get("failed", -1) + 1)
            if tasks is None:
                return {"failures": [{"task": stage, "failure": f"the process {why}"}], "not_reached": []}
            over = time.perf_counter() >= deadline
            if current is not None and not over:
                failures.append({"task": tasks[current], "failure": f"the process {why}"})
                first = current + 1
            elif over or first == before:  # no time, or a process that cannot even begin
                failures += (
                    [] if over or first == len(tasks) else [{"task": tasks[first], "failure": f"the process {why}"}]
                )
                break
        return {"failures": failures, "not_reached": (tasks or [])[first:]}

    def command(self, name, first):
        """How a worker is started."""
        command = [sys.executable, "-m", "benchmarks.gpu.worker", name, "--device", self.device]
        command += ["--seed", str(self.report["seed"]), "--first", str(first)]
        return [*command, "--limits", json.dumps(self.report.get("ceilings", {}))]

    @contextlib.contextmanager
    def worker(self, name, first):
        """A worker as a function of patience: (message, None), or (None, why there is none)."""
        streams = {"stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        process = subprocess.Popen(
            self.command(name, first), env=self.environment(name), start_new_session=True, **streams
        )
        lines = queue.SimpleQueue()
        reader = threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True)
        reader.start()

        def next_message(patience):
            try:
                line = lines.get(timeout=max(patience, 0.01))
            except queue.Empty:
                return None, f"said nothing for {patience:.0f} s"
            if line is None:
                return None, f"ended with status {process.wait()}"
            return json.loads(line), None

        try:
            yield next_message
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its compilers
            process.wait()

    def environment(self, name):
        """The package that was built here comes first, if there is one; the checkout's own folder, where nothing is
        compiled, must not be in its way. Before and while it is built, nobody needs it."""
        early = name.partition("-")[0] in ("machine", "warm")
        places = [str(site())] if self.device == "cuda" and not early and site().exists() else []
        found = os.environ | {"PYTHONPATH": os.pathsep.join([*places, str(CHECKOUT)]), "PYTHONSAFEPATH": "1"}
        if self.device == "cuda":
            found["TORCHINDUCTOR_CACHE_DIR"] = str(site().parent / "inductor")
            found["TRITON_CACHE_DIR"] = str(site().parent / "triton")
            found["TORCHINDUCTOR_COMPILE_THREADS"] = "4" if early else "12"  # early, there are several, and nvcc
        return found

    # ---- the report ----

    def take(self, stage, result):
        """A task's result into the report."""
        if "rows" not in result:
            self.report[stage] = self.report.get(stage, {}) | result
        else:
            found = self.report.setdefault(stage, {"rows": [], "ratio": {}})
            found["rows"] += result["rows"]
            found["ratio"] |= result.get("ratio", {})
        if time.perf_counter() - self.written > 2:
            self.flush()

    def flush(self):
        """Writes the report."""
        with self.lock:
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.report, indent=1) + "\n")
            new.replace(self.path)
            self.written = time.perf_counter()


def _forward(stream, lines):
    """Lines of a stream into a queue, and None at its end."""
    for line in stream:
        lines.put(line)
    lines.put(None)
