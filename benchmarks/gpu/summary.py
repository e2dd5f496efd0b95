"""A report in a few lines for the terminal: what failed, and the ratios of every kernel. The report has the rest."""

import statistics

MOST = 30  # lines about failures of one kind


def summary(report):
    """The text."""
    return "\n".join([*machine(report), *correctness(report), *sanitizer(report), *timings(report), *stages(report)])


def machine(report):
    """What it ran on."""
    found = report.get("machine", {})
    yield f"\n{found.get('gpu', 'unknown GPU')}, seed {report['seed']}"
    limits = ", ".join(f"{name} {value:.0f}" for name, value in report.get("ceilings", {}).items())
    yield f"ceilings: {limits or 'not measured'}"


def correctness(report):
    """How many cases were right, and those that were not."""
    rows = report.get("correctness", {}).get("rows", [])
    yield f"correctness: {sum(row['ok'] for row in rows)} of {len(rows)} right"
    wrong = [row for row in rows if not row["ok"]]
    yield from shortened(
        [f"  WRONG {row['op']}, {row['shape']}, {row['dtype']}, {row['kernel']}: {trouble(row)}" for row in wrong]
    )


def shortened(lines):
    """The first lines, and how many more there are."""
    yield from (line[:240] for line in lines[:MOST])
    if len(lines) > MOST:
        yield f"  .. and {len(lines) - MOST} more"


def trouble(row):
    """Why a row is not right."""
    if "failure" in row:
        return row["failure"]
    error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
    return "differs from run to run" if row["repeats"] is False else f"error {error}, allowed {row['limit']:.1e}"


def sanitizer(report):
    """What the tools said."""
    for row in [row for stage in ("driver", "sanitizer") for row in report.get(stage, {}).get("rows", [])]:
        yield f"sanitizer {row['tool']}: {row.get('skipped') or ('clean' if row['ok'] else row['failure'])}"


def timings(report):
    """Who was not timed, and the ratios: whole models one by one, kernels by op and type."""
    for stage in ("timing", "models"):
        rows = report.get(stage, {}).get("rows", [])
        names = [(f"{row['op']}, {row['shape']}: {row.get('name', row.get('kernel'))}", row) for row in rows]
        yield from shortened([f"  FAILED {name}: {row['failure']}" for name, row in names if "failure" in row])
    groups = {}
    for title, ratio in report.get("timing", {}).get("ratio", {}).items():
        groups.setdefault(f"{title.split(', ')[0]}, {title.split(', ')[-1]}", []).append(ratio)
    for name, ratios in groups.items():
        mean, among = statistics.geometric_mean(ratios), f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)}"
        yield f"  best peer / ours {mean:6.2f} ({among})   {name}"
    for title, ratio in report.get("models", {}).get("ratio", {}).items():
        yield f"  best peer / ours {ratio:6.2f}   {title}"


def stages(report):
    """What was not reached, and what failed as a whole."""
    for name, stage in report["stages"].items():
        for failure in stage["failures"]:
            yield f"{name} FAILED {failure['task']}: {failure['failure']}"
        if stage["not_reached"]:
            yield f"{name}: {len(stage['not_reached'])} tasks not reached, from {stage['not_reached'][0]} on"
    yield f"{report.get('seconds', 0):.0f} s in all"
