"""A report in a few lines for the terminal: what failed, what every stage took, and the ratios."""


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
    for row in rows:
        if not row["ok"]:
            yield f"  WRONG {row['op']}, {row['shape']}, {row['dtype']}, {row['kernel']}: {trouble(row)}"


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
    """Ratios, and who was not timed."""
    for stage in ("timing", "models"):
        found = report.get(stage, {})
        for row in found.get("rows", []):
            if "failure" in row:
                yield f"  FAILED {row['op']}, {row['shape']}: {row.get('name', row.get('kernel'))}: {row['failure']}"
        for title, ratio in found.get("ratio", {}).items():
            yield f"  best peer / ours {ratio:6.2f}   {title}"


def stages(report):
    """What was not reached, and what failed as a whole."""
    for name, stage in report["stages"].items():
        for failure in stage["failures"]:
            yield f"{name} FAILED {failure['task']}: {failure['failure']}"
        if stage["not_reached"]:
            yield f"{name}: {len(stage['not_reached'])} tasks not reached, from {stage['not_reached'][0]} on"
    yield f"{report.get('seconds', 0):.0f} s in all"
