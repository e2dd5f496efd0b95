"""Planted faults in the pool of threads, csrc/cpu/parallel.cpp: how many do its checks notice?

    python -m tests.stress.pool_faults [--faults 60] [--seed 0] [--json tests/stress/pool_faults.json]

A fault is one changed operator, comparison, constant or condition, or one statement taken away. Each is compiled into
the program of checks that csrc/cpu/cross.py builds (csrc/cpu/check/parallel.cpp, and the kernels of noise, which are
compared with one thread and with three), and that program has to fail. What the compiler refuses does not count.
The working tree stays as it is. `--json` is appended to, so that a run that was stopped goes on where it was.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POOL = "csrc/cpu/parallel.cpp"
PATIENCE = 5  # times as long as the checks take without a fault, after which they hang: caught
# (pattern, what it becomes, kind); spaces keep templates and arrows out
CHANGES = [
    (r"==", "!=", "comparison"),
    (r"!=", "==", "comparison"),
    (r"<=", "<", "comparison"),
    (r">=", ">", "comparison"),
    (r" < ", " <= ", "comparison"),
    (r" > ", " >= ", "comparison"),
    (r" \+ ", " - ", "operator"),
    (r" - ", " + ", "operator"),
    (r" / ", " * ", "operator"),
    (r" % ", " / ", "operator"),
    (r"&&", "||", "condition"),
    (r"\|\|", "&&", "condition"),
    (r"(?<=[( ])!(?=[\w(])", "", "condition"),
    (r"\+\+", "--", "operator"),
    (r"--", "++", "operator"),
    (r"\btrue\b", "false", "constant"),
    (r"\bfalse\b", "true", "constant"),
    (r"(?<![\w.])\d+(?![\w.])", lambda m: str(int(m.group()) + 1), "constant"),
    (r"(?<=if )\((?!\!\()([^;{}]*)\)(?= )", lambda m: f"(!({m.group(1)}))", "condition"),
]
STATEMENT = re.compile(r"^ +(?:[\w.\->\[\]():*]+(?:\(.*\)| [-+]?= [^;]*)|return [^;]*|(?:\+\+|--)\w+|\w+(?:\+\+|--));$")
TYPE = re.compile(r"^(?: {4})?(?:class|struct) (?:alignas\(\d+\) )?(\w+)[^;]*\{")
FUNCTION = re.compile(r"^(?: {4})?(?:[\w:<>*&~]+ )*[*&~]*(\w+)\([^;]*\{")
# Where a fault changes how long something takes and nothing else: no check can notice, and none should.
SPEED = [
    (
        r"^spin|spin\(|offered|if \(!?\(?seated_ >",
        "how long a thread looks for work, or for the others' end, before it sleeps",
    ),
    (r"^Placement|^Pool.place|crowded_|\.place\.|sched_getaffinity", "which processor a thread is sent to"),
    (
        r"^Pool.worth_waking|^Pool.asleep|asleep|awake|sleepers|short_work_",
        "how many sleepers a region wakes; one that sleeps is not waited for",
    ),
]
# The line as it is changed -> why no check can notice.
EQUIVALENT: dict[str, str] = {
    "while (share.next.load(std::memory_order_relaxed) <= share.end) {": "who claims what is not there gives it up",
    "int64_t end = 1;": "written before it is read",
    "(void)0; // inside_region = true;": "a region inside finds the pool taken, and runs on its thread as well",
    "(void)0; // buffers.data[slot] = nullptr;": "aligned_alloc writes there next, nullptr if it has nothing",
    "(void)0; // buffers.size[slot] = 0;": "without memory the pointer is nullptr, which is looked at, too",
    "const size_t bytes = (std::max<size_t>(count, 1) * sizeof(float) + 63) / 64 * 65;": "more memory than is needed",
    "region.work(1);": "which share a thread begins with",
}


def code_of(source: str) -> str:
    """The source with comments, strings and lines of the preprocessor blanked out, letter by letter."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())  # noqa: E731
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|^#[^\n]*', blank, source, flags=re.MULTILINE)


def functions(code: str) -> list[str]:
    """For each line the name of the function or class that it is in, "" outside."""
    names, depth, open_at = [], 0, []
    for line in code.split("\n"):
        begins = TYPE.match(line) or FUNCTION.match(line)
        if begins and begins.group(1) not in ("if", "for", "while", "switch", "catch"):
            open_at.append((depth, begins.group(1)))
        names.append(".".join(name for _, name in open_at))
        depth += line.count("{") - line.count("}")
        while open_at and depth <= open_at[-1][0]:
            open_at.pop()
    return names


def possible(source: str) -> list[dict]:
    """Every fault: where it begins and ends, what stands there instead, and of what kind it is."""
    code, found = code_of(source), []
    places = functions(code)
    starts = [0]
    for line in source.split("\n"):
        starts.append(starts[-1] + len(line) + 1)

    def add(start, end, new, kind):
        number = source.count("\n", 0, start)
        if not places[number] or "namespace" in source[starts[number] : starts[number + 1]]:
            return
        shown = f"{new}  // {source[start:end]}" if kind == "statement removed" else new
        changed = source[starts[number] : start] + shown + source[end : starts[number + 1] - 1]
        found.append(
            {"start": start, "end": end, "new": new, "kind": kind, "function": places[number], "number": number + 1,
             "line": " ".join(changed.split())[:160]}
        )  # fmt: skip

    for pattern, new, kind in CHANGES:
        for match in re.finditer(pattern, code):
            add(match.start(), match.end(), new(match) if callable(new) else new, kind)
    for start, line in zip(starts, code.split("\n"), strict=False):
        if STATEMENT.match(line):
            indent = len(line) - len(line.lstrip())
            add(start + indent, start + len(line), "(void)0;", "statement removed")
    return found


class Program:
    """The program of checks, of which one file is compiled anew."""

    def __init__(self, folder: Path):
        self.folder, self.timeout, self.seconds = folder, 600.0, 0.0
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        sys.path.insert(0, str(folder / "csrc/cpu"))
        import cross

        self.compiler = cross.tools(cross.LEVELS["baseline"])[0]
        self.flags = [*cross.COMMON, *cross.LEVELS["baseline"].flags, "-O1", "-Wno-error"]
        if not cross.build(
            self.compiler, [*cross.LEVELS["baseline"].flags, "-O1"], ["noise", "parallel"], folder / "made"
        ):
            raise SystemExit("the checks cannot be built; the compiler's message is above")

    def attempt(self, source: str) -> str:
        """caught, survived, or refused by the compiler."""
        made, path = self.folder / "made", self.folder / POOL
        path.write_text(source)
        objects = sorted(made.glob("*.o"))
        compiled = subprocess.run(
            [self.compiler, *self.flags, "-c", path, "-o", made / "cpu_parallel.o"], capture_output=True
        )
        linked = compiled.returncode == 0 and subprocess.run(
            [self.compiler, *self.flags, *objects, "-o", made / "check"], capture_output=True
        )
        if not linked or linked.returncode:
            return "refused"
        began = time.monotonic()
        try:
            done = subprocess.run([made / "check"], capture_output=True, timeout=self.timeout)
        except subprocess.TimeoutExpired:
            return "caught"
        self.seconds = time.monotonic() - began
        return "caught" if done.returncode else "survived"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = (ROOT / POOL).read_text()
    found = possible(source)
    order = random.Random(arguments.seed).sample(found, len(found))
    results = []
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text())["results"]
    known = {(r["number"], r["line"]) for r in results}
    with tempfile.TemporaryDirectory() as folder:
        program = Program(Path(folder))
        if program.attempt(source) != "survived":
            raise SystemExit("the checks fail without any fault; nothing can be judged")
        program.timeout = max(10.0, PATIENCE * program.seconds)
        for fault in order:
            if sum(r["result"] != "refused" for r in results) >= arguments.faults:
                break
            if (fault["number"], fault["line"]) in known:
                continue
            told = f"{fault['function']} {fault['line']}"
            slower = (reason for pattern, reason in SPEED if re.search(pattern, told))
            reason = EQUIVALENT.get(fault["line"]) or next(slower, None)
            changed = source[: fault["start"]] + fault["new"] + source[fault["end"] :]
            result = "equivalent" if reason else program.attempt(changed)
            told = {name: fault[name] for name in ("function", "number", "kind", "line")} | {"result": result}
            results.append(told | ({"reason": reason} if reason else {}))
            print(f"{len(results):4} {result:10} {POOL}:{fault['number']} {fault['kind']}: {fault['line']}", flush=True)
            if arguments.json is not None:
                write(arguments, found, results)


def write(arguments, found, results):
    """The figures so far."""
    counts = Counter(r["result"] for r in results)
    judged = counts["caught"] + counts["survived"]
    figures = {
        "possible faults": len(found),
        "seed": arguments.seed,
        **{name: counts[name] for name in ("caught", "survived", "equivalent", "refused")},
        "share caught": round(counts["caught"] / max(1, judged), 4),
        "results": results,
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
