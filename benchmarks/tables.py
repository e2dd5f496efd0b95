"""Writes the tables of the READMEs from results/*.json, between their markers: python -m benchmarks.tables

A marker names a file: what stands between <!-- table: conv2d --> and the next <!-- end --> comes from conv2d.json.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text, results):
    """The text with every marked place filled from the folder `results`; places without a file say so."""

    def fill(match):
        file = results / f"{match[2]}.json"
        body = table_of(json.loads(file.read_text())) if file.exists() else f"No results/{file.name} yet.\n"
        return match[1] + body + match[3]

    return MARKED.sub(fill, text)


def table_of(report):
    """One report as Markdown."""
    if "samples_recognised" in report:
        return "\n".join(quality_table(report)) + "\n"
    if "scaling" in report:
        return "\n".join([setting(report), "", *scaling_table(report)]) + "\n"
    if "errors" in report:
        return "\n".join(winograd_table(report)) + "\n"
    whole = any("images_s" in row for row in report["rows"])
    return "\n".join([setting(report), "", *(whole_table(report) if whole else kernel_table(report))]) + "\n"


def setting(report):
    """The machine and its ceilings in a sentence."""
    machine, limits = report["machine"], report["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['simd']}; {versions}; {machine['date']}. "
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
    names = ["", "contender", "step, ms", "fastest, ms", "pictures/s", "GFLOP/s", "of ceiling", "peak memory, MB"]
    yield from header(names)
    for row in report["rows"]:
        figures = [milliseconds(row), f"{row['min_ms']:.1f}", f"{row['images_s']:.1f}"]
        figures += [f"{row['gflops']:.0f}", f"{row['share']:.0%}", f"{row['peak_mb']:.0f}"]
        yield line([f"{row['op']}, {row['shape']}", row["name"], *figures])
    yield ""
    for what, value in report["ratio"].items():
        yield f"{what}: best peer / ours {value:.2f}. "
    for name, off in report["agreement"].items():
        yield f"Difference between {name} and pydiff: {off:.0e}. " if off is not None else f"{name}: NaN. "
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
    yield from header(["changes", "threads", "pictures", "step, ms", "pictures/s", "GFLOP/s", "peak memory, MB"])
    for row in report["scaling"]:
        pictures = f"{row['batch']} x {row['size']}x{row['size']}"
        figures = [f"{row['images_s']:.1f}", f"{row['gflops']:.0f}", f"{row['peak_mb']:.0f}"]
        yield line([row["what"], row["threads"], pictures, milliseconds(row | {"wrong": False}), *figures])


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
    yield from header(["seed", "steps", "mean loss of the last fifth, plain", "Winograd"])
    for row in report["training"]:
        yield line([row["seed"], row["steps"], f"{row['plain']:.6f}", f"{row['winograd']:.6f}"])


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
    """Rewrites the READMEs of the benchmarks and of the project, and the page on Winograd's algorithm."""
    for readme in (HERE / "README.md", HERE.parent / "README.md", HERE.parent / "docs/winograd.md"):
        readme.write_text(render(readme.read_text(), HERE / "results"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
