"""Writes the tables of README.md and of docs/ from results/*.json, between their markers: python -m benchmarks.tables

A marker names a file: what stands between <!-- table: conv2d --> and the next <!-- end --> comes from conv2d.json. The
marker gpu stands for every gpu-*.json, the reports of benchmarks.gpu.
"""

import importlib
import json
import re
import sys
from pathlib import Path

from benchmarks.restraint import in_words

# What tells a paper's report from others, and the script that has its table; whether that wants all of the report.
PAPERS = {
    "tones": "sound", "speech": "speech", "digits": "spoken", "segmentation": "segmentation",
    "exact network": "points", "best_guidance": "clips",
}  # fmt: skip
OF_ITS_OWN = ("exact network", "best_guidance")
HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text, results):
    """The text with every marked place filled from the folder `results`; places without a file say so."""

    def fill(match):
        if match[2] == "gpu":
            reports = [json.loads(file.read_text()) for file in sorted(results.glob("gpu-*.json"))]
            return match[1] + gpu_tables(reports) + match[3]
        file = results / f"{match[2]}.json"
        body = table_of(json.loads(file.read_text())) if file.exists() else f"No results/{file.name} yet.\n"
        return match[1] + body + match[3]

    return MARKED.sub(fill, text)


def table_of(report):
    """One report as Markdown. `script`: the module of benchmarks that has its table."""
    if "script" in report:
        return importlib.import_module(f"benchmarks.{report['script']}").table(report) + "\n"
    if "samples_recognised" in report:
        return "\n".join(quality_table(report)) + "\n"
    for key, module in PAPERS.items():
        if key in report:
            table = importlib.import_module(f"benchmarks.papers.{module}").table
            return table(report if key in OF_ITS_OWN else report[key]) + "\n"
    if "scaling" in report:
        return "\n".join([setting(report), "", *scaling_table(report)]) + "\n"
    if "distributed" in report:
        from benchmarks.distributed import table

        return "\n".join(table(report)) + "\n"
    if "errors" in report:
        return "\n".join(winograd_table(report)) + "\n"
    whole = any("images_s" in row for row in report["rows"])
    return "\n".join([setting(report), "", *(whole_table(report) if whole else kernel_table(report))]) + "\n"


def setting(report):
    """The machine and its ceilings in a sentence."""
    machine, limits = report["machine"], report["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {in_words(machine)}; {versions}; {machine['date']}. "
        f"Best sgemm rate seen {limits['sgemm_gflops']:.0f} GFLOP/s, best copy rate seen {limits['copy_gbs']:.0f} GB/s."
    )


def kernel_table(report):
    """Lines of a table of kernels: one for every op and shape, a column for every contender."""
    rows = report["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    yield from header(["", "shape", *(f"{name}, ms" for name in names), "ours", "of ceiling", "error", "peer / ours"])
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in rows):
        here = {row["name"]: row for row in rows if (row["op"], row["shape"]) == (op, shape)}
        ours = next((row for row in here.values() if row["kind"] == "ours" and not row["wrong"]), None)
        cells = [op, shape, *(milliseconds(here.get(name)) for name in names)]
        cells += ["", "", ""] if ours is None else [rate(ours), f"{ours['share']:.0%}", f"{ours['error']:.0e}"]
        yield line([*cells, times(report["ratio"].get(f"{op} {shape}"))])


def whole_table(report):
    """Lines of a table of whole models: one for every contender; then where pydiff's time goes."""
    names = ["", "contender", "step, ms", "fastest, ms", "images/s", "GFLOP/s", "of ceiling", "peak memory, MB"]
    yield from header(names)
    for row in report["rows"]:
        figures = [milliseconds(row), f"{row['min_ms']:.1f}", f"{row['images_s']:.1f}"]
        figures += [f"{row['gflops']:.0f}", f"{row['share']:.0%}", f"{row['peak_rss_mb']:.0f}"]
        yield line([f"{row['op']}, {row['shape']}", row["name"], *figures])
    yield ""
    if report["ratio"] is not None:
        row = report["rows"][0]
        yield f"{row['op']} {row['shape']}: best peer / ours {report['ratio']:.2f}. "
    for sentence in report.get("left_out", {}).values():
        yield f"{sentence} "
    for name, off in report["agreement"].items():
        judge = report.get("judge", "pydiff")  # older reports do not say
        yield f"Difference between {name} and {judge}: {off:.0e}. " if off is not None else f"{name}: NaN. "
    shares = [f"{name} {share:.0%}" for name, share in report["profile"].items() if share >= 0.02]
    if shares:
        yield f"pydiff's time: {', '.join(shares)}."


def quality_table(report):
    """Lines of the table of benchmarks.quality."""
    digits = ", ".join(f"{digit}: {count}" for digit, count in enumerate(report["samples_per_digit"]))
    yield from header(["", "samples", "real held-out digits"])
    yield line(["how many", report["samples"], report["held_out_digits"]])
    yield line(
        [
            "recognised with confidence >= 0.9",
            f"{report['samples_recognised']:.1%}",
            f"{report['real_recognised']:.1%}",
        ]
    )
    yield line(["Fréchet distance", f"{report['frechet_samples']:.1f}", f"{report['frechet_real']:.1f}"])
    yield ""
    yield (
        f"{report['steps']:,} training steps. The classifier is right on {report['classifier_accuracy_held_out']:.1%} "
        f"of the held-out digits. Samples it calls {digits}."
    )


def scaling_table(report):
    """Lines of the table of benchmarks.scaling."""
    yield from header(["changes", "threads", "images", "step, ms", "images/s", "GFLOP/s", "peak memory, MB"])
    for row in report["scaling"]:
        images = f"{row['batch']} x {row['size']}x{row['size']}"
        figures = [f"{row['images_s']:.1f}", f"{row['gflops']:.0f}", f"{row['peak_rss_mb']:.0f}"]
        yield line([row["what"], row["threads"], images, milliseconds(row | {"wrong": False}), *figures])


def winograd_table(report):
    """Lines of the two tables of benchmarks.winograd."""
    header_row = ["shape", "result", "plain, rms", "Winograd, rms", "ratio", "plain, largest", "Winograd, largest"]
    yield from header(header_row)
    rows = {(row["shape"], row["what"], row["algorithm"]): row for row in report["errors"]}
    for shape, what in dict.fromkeys((row["shape"], row["what"]) for row in report["errors"]):
        plain, fast = rows[shape, what, "plain"], rows[shape, what, "winograd"]
        figures = [f"{plain['rms']:.1e}", f"{fast['rms']:.1e}", f"{fast['rms'] / plain['rms']:.1f}"]
        yield line([shape, what, *figures, f"{plain['largest']:.1e}", f"{fast['largest']:.1e}"])
    yield ""
    yield from header(["points, in NumPy float32", "rms error"])
    for name, error in report["points"].items():
        yield line([name, f"{error:.1e}"])
    yield ""
    yield from header(["seed", "steps", "mean loss of the last fifth, plain", "Winograd"])
    for row in report["training"]:
        yield line([row["seed"], row["steps"], f"{row['plain']:.6f}", f"{row['winograd']:.6f}"])


# ---- benchmarks.gpu --------------------------------------------------------------------------------------------------


def gpu_tables(reports):
    """The reports of benchmarks.gpu as Markdown; those of the emulator, whose times mean nothing, do not count."""
    real = [report for report in reports if report["device"] == "cuda"]
    return "\n".join(line for report in real for line in gpu_table(report)) or "Not yet measured on a GPU.\n"


def gpu_table(report):
    """Lines about one run: the machine, what was right, every kernel, whole models, and what is missing."""
    yield from gpu_setting(report)
    for title in dict.fromkeys(row["op"].split()[0].rstrip(",") for row in rows_of(report, "timing")):
        rows = [row for row in rows_of(report, "timing") if row["op"].split()[0].rstrip(",") == title]
        yield f"**{title}**"
        yield ""
        yield from gpu_kernels(rows, report["timing"]["ratio"])
        yield ""
    if rows_of(report, "models"):
        yield "**Whole models**"
        yield ""
        yield from header(["", "contender", "ms", "images/s", "TFLOP/s"])
        for row in rows_of(report, "models"):
            if "images_s" in row:
                figures = [milliseconds(row), f"{row['images_s']:.0f}", f"{row.get('tflops', 0):.1f}"]
                yield line([row["op"], row["name"], *figures])
            elif "name" in row:
                yield line([row["op"], row["name"], "failed", "", ""])
        yield ""
        for title, ratio in report["models"]["ratio"].items():
            yield f"{title}: best peer / ours {ratio:.2f}. "
        yield ""
    yield from gpu_gaps(report)


def rows_of(report, stage):
    """The rows of a stage; none if it did not run."""
    return report.get(stage, {}).get("rows", [])


def gpu_setting(report):
    """The GPU, its ceilings, and how many kernels are right."""
    machine, limits = report.get("machine", {}), report.get("ceilings", {})
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    clocks = machine.get("smi", {})
    yield (
        f"{machine.get('gpu', 'unknown GPU')}, driver {clocks.get('driver_version', 'unknown')}, SM clock at most "
        f"{clocks.get('clocks.max.sm', 'unknown')}; {versions}; {machine.get('date', 'undated')}."
    )
    units = {"copy_gbs": "copy {:.0f} GB/s", "bf16_tflops": "bfloat16 {:.0f} TFLOP/s"}
    units |= {"tf32_tflops": "tf32 {:.0f} TFLOP/s", "fp32_tflops": "float32 {:.0f} TFLOP/s"}
    found = ", ".join(text.format(limits[name]) for name, text in units.items() if name in limits)
    yield f"Ceilings: {found or 'not measured'}."
    checked = rows_of(report, "correctness")
    yield (
        f"Right, and the same bits twice: {sum(row['ok'] for row in checked)} of {len(checked)} checks "
        f"(seed {report['seed']})."
    )
    tools = [row for stage in ("driver", "sanitizer") for row in rows_of(report, stage)]
    tools = [row for row in tools if row["tool"] not in ("build", "alone") or not row["ok"]]
    said = [f"{row['tool']} {row.get('skipped') or ('clean' if row['ok'] else 'FAILED')}" for row in tools]
    yield f"compute-sanitizer: {', '.join(said) or 'did not run'}."
    yield ""


def gpu_kernels(rows, ratios):
    """Lines of a table of kernels: one for every case, a column for every contender."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    yield from header(
        ["", "shape", "", *(f"{name}, ms" for name in names), "ours", "of ceiling", "error", "peer / ours"]
    )
    for case in dict.fromkeys((row["op"], row["shape"], row["dtype"]) for row in rows):
        here = {row["name"]: row for row in rows if (row["op"], row["shape"], row["dtype"]) == case}
        ours = next((row for row in here.values() if row["kind"] == "ours" and not row["wrong"]), None)
        cells = [*case, *(gpu_milliseconds(here.get(name)) for name in names)]
        cells += ["", "", ""] if ours is None else [gpu_rate(ours), gpu_share(ours), f"{ours['error']:.0e}"]
        yield line([*cells, times(ratios.get(", ".join(case)))])


def gpu_milliseconds(row):
    """A time, or why there is none."""
    if row is None or "unsupported" in row:
        return ""
    if row["wrong"]:
        return "wrong" if row["error"] is not None else "failed"
    return milliseconds(row) + ("" if row["how"] == "graph" else " (launched)")


def gpu_rate(row):
    """TFLOP/s or GB/s."""
    return f"{row['tflops']:.1f} TFLOP/s" if "tflops" in row else f"{row['gbs']:.0f} GB/s"


def gpu_share(row):
    """The share of the ceiling, if that was measured."""
    return "" if row["share"] is None else f"{row['share']:.0%}"


def gpu_gaps(report):
    """What went wrong or was not reached."""
    for name, stage in report["stages"].items():
        for failure in stage["failures"]:
            yield f"Failed in {name}: {failure['task']}: {failure['failure']}. "
        if stage["not_reached"]:
            yield f"Not reached in {name}: {len(stage['not_reached'])} of its cases. "
    for row in rows_of(report, "correctness"):
        if not row["ok"]:
            yield f"Wrong: {row['op']}, {row['shape']}, {row['dtype']}, {row['kernel']}. "
    yield ""


def header(cells):
    """The head of a table."""
    return [line(cells), line(["---"] * len(cells))]


def line(cells):
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def milliseconds(row):
    """A time; ~ before those of repetitions that were disturbed."""
    if row is None:
        return ""
    if row["wrong"]:
        return "wrong"
    return f"{'' if row['quiet'] else '~'}{row['median_ms']:.3g}"


def rate(row):
    """GFLOP/s or GB/s."""
    return f"{row['gflops']:.0f} GFLOP/s" if "gflops" in row else f"{row['gbs']:.1f} GB/s"


def times(ratio):
    """A ratio; a dash where a row was disturbed or nobody is there to compare with."""
    return "-" if ratio is None else f"{ratio:.2f}"


def main():
    """Rewrites the README of the benchmarks, and the pages that have tables."""
    for page in (HERE / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))):
        text = page.read_text("utf-8")
        if (filled := render(text, HERE / "results")) != text:
            page.write_text(filled, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
