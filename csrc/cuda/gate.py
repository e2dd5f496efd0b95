"""Gates that the CUDA kernels pass without a GPU: every .cu is compiled, and what the compiler made of it is read.

    python csrc/cuda/gate.py                        sm_80 and sm_90a: compile, check, compare with registers.json
    python csrc/cuda/gate.py --arch sm_90a          one of them
    python csrc/cuda/gate.py --update               write registers.json, and registers.md made from it, instead
    python csrc/cuda/gate.py --check-program DIR    print the nvcc command of check/, for compute-sanitizer on a GPU

Gates, each a line of the report that names the kernel:
1. The compiler: nvcc takes the file without a warning. No kernel spills or uses local memory: ptxas makes it an error.
2. The instructions: 16-byte accesses, tensor cores and asynchronous copies where RULES expects them; double precision
   only where it is allowed. Read from the machine code (SASS) by nvdisasm; without it from the compiler's PTX, and the
   report says so.
3. The figures: kernels, registers, shared memory and threads are those of registers.json. They are compared only
   when nvcc has the version that wrote the table, because every version allocates registers in its own way.

nvcc and nvdisasm are taken from this Python's packages (`pip install -r csrc/cuda/nvcc.txt` has both), or from PATH.
Exit status: 0 all gates pass, 1 one does not, 2 there is no nvcc, so nothing was checked.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "registers.json"
ARCHITECTURES = ("sm_80", "sm_90a")
FLAGS = [
    "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v,-Werror,-warn-spills,-warn-lmem-usage",
]  # fmt: skip

# ---- what is expected of each kernel -------------------------------------------------------------------------------

# The first pattern that fits "file:kernel<arguments>" counts. What the words mean is in INSTRUCTIONS.
RULES = [
    ("*naive*", "double"),  # the equation as it stands
    ("adamw:adamw_kernel", "load16 store16 double"),  # the schedule is in double
    ("adamw:squares_kernel", "load16 double"),  # reads arrays and writes a number a block, as others below
    ("adamw:add_chunks_kernel", "double"),  # adds up the numbers of blocks, as others below
    ("attention:attention_delta_kernel*", "load16"),
    ("attention:attention_hide_kernel*", "store16"),
    ("attention:bf16::*", "load16 store16 mma copies"),
    ("attention:float32::*<16, float>", "load16 copies"),  # a thread has one or two columns
    ("attention:float32::*<32, float>", "load16 copies"),
    ("attention:float32::*bfloat16>", ""),  # four at a time, 8 bytes, widened on their way
    ("attention:float32::*", "load16 store16 copies"),
    ("conv2d:sum_parts_kernel", ""),
    ("conv2d:sample_bias_kernel<*", "load16"),
    ("conv2d:*<bfloat16*", "load16 store16 mma copies"),
    ("conv2d:*<float*", "load16 store16 copies"),
    ("group_norm:group_norm_batch_kernel", "double"),
    ("group_norm:*, false>", ""),  # for channels and addresses that no 16 bytes fit
    ("group_norm:*moments_kernel<*", "load16"),
    ("group_norm:*sums_kernel<*", "load16"),
    ("layer_norm:layer_norm_chunks_kernel", "double"),
    ("layer_norm:layer_norm_columns_kernel<*", ""),  # single columns, side by side in a warp
    ("noise:noise_loss_kernel", "double"),
    ("noise:noise_loss_tiles_kernel<*", "load16"),
    ("*", "load16 store16"),  # everything else moves arrays, 16 bytes at a time
]
# word: (in SASS, in PTX, how a report calls it)
INSTRUCTIONS = {
    "load16": (
        r"\bLDG\.E\S*\.128|\bLDGSTS\.E\S*\.128",
        r"\bld\.global\S*\.(v4\.[fsub]32|v2\.[fsub]64)|\bcp\.async\.cg",
        "16-byte loads from global memory",
    ),
    "store16": (
        r"\bSTG\.E\S*\.128",
        r"\bst\.global\S*\.(v4\.[fsub]32|v2\.[fsub]64)",
        "16-byte stores to global memory",
    ),
    "mma": (r"\bH?G?MMA\.\S+", r"\bmma\.sync\S*|\bwgmma\.mma_async\S*", "tensor-core instructions"),
    "copies": (r"\bLDGSTS\b", r"\bcp\.async\.c[ag]\b", "asynchronous copies"),
    "double": (
        r"\bD(ADD|MUL|FMA|SETP|MNMX)\b|\bMUFU\S*64H",
        r"\b(add|sub|mul|fma|div|sqrt)\S*\.f64",
        "double precision",
    ),
    "local": (r"\b(LDL|STL)\b", r"\b(ld|st)\.local\b", "local memory"),
}
# Found without its word: a failure. Local memory in PTX is no failure: ptxas may still keep the array in registers, and
# makes it an error itself when it cannot.
FORBIDDEN = {"SASS": ("double", "local"), "PTX": ("double",)}


def expected(kernel):
    """The words of the rule for "file:kernel<arguments>"."""
    return next(words for pattern, words in RULES if fnmatchcase(kernel, pattern)).split()


# ---- the compiler --------------------------------------------------------------------------------------------------


def find_tool(name):
    """Path of nvcc or nvdisasm: in NVIDIA's packages for this Python, or on PATH; None if in neither."""
    spec = importlib.util.find_spec("nvidia")
    for directory in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(directory).glob(f"cu*/bin/{name}"), reverse=True):
            return str(path)
    return shutil.which(name)


def run(command):
    """(exit status, standard output, standard error)"""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def version_of(nvcc):
    """ "13.0.88" """
    found = re.search(r"V(\d+\.\d+\.\d+)", run([nvcc, "--version"])[1])
    return found[1] if found else "unknown"


def readable(mangled):
    """{mangled name: "noise_forward_kernel<float>"}: without namespaces and parameters."""
    lines = subprocess.run(["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = {}
    for name, line in zip(mangled, lines.stdout.splitlines(), strict=True):
        for noise in ("(anonymous namespace)::", "pydiff::", "void "):
            line = line.replace(noise, "")
        names[name] = line.replace("__nv_bfloat16", "bfloat16")
    return names


def compile_one(nvcc, nvdisasm, source, architecture):
    """What one file becomes on one architecture: ({kernel: figures} or None, [failures], "SASS" or "PTX")."""
    label = f"{source.name} for {architecture}"
    target = f"-gencode=arch=compute_{architecture.removeprefix('sm_')},code={architecture}"
    with tempfile.TemporaryDirectory() as keep:
        cubin = Path(keep) / "kernels.cubin"
        status, _, log = run([nvcc, *FLAGS, target, "-cubin", source, "-o", cubin, "-keep", "-keep-dir", keep])
        if status != 0:
            return None, [f"{label}: {line}" for line in complaints(log)], ""
        ptx = (Path(keep) / f"{source.stem}.ptx").read_text()
        code, language = dict(PTX_BODY.findall(ptx)), "PTX"
        if nvdisasm:
            status, sass, message = run([nvdisasm, "-c", cubin])
            if status != 0:
                return None, [f"{label}: nvdisasm: {message.strip()}"], ""
            code, language = dict(SASS_BODY.findall(sass)), "SASS"
    threads, entries = dict(PTX_THREADS.findall(ptx)), dict(PTXAS_ENTRY.findall(log))
    kernels, failures, names = {}, [], readable(list(entries))
    for mangled, used in entries.items():
        shared = re.search(r"(\d+) bytes smem", used)
        kernels[names[mangled]] = figures = {
            "registers": int(re.search(r"Used (\d+) registers", used)[1]),
            "shared": int(shared[1]) if shared else 0,
            "threads": int(threads.get(mangled, 0)),  # of __launch_bounds__
        }
        failures += check_kernel(f"{source.stem}:{names[mangled]}", architecture, code[mangled], language, figures)
    return kernels, failures, language


PTXAS_ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?Used \d+ registers[^\n]*)", re.DOTALL)
PTX_BODY = re.compile(r"^[^\n/]*\.entry (\w+)\((.*?)^}", re.DOTALL | re.MULTILINE)
PTX_THREADS = re.compile(r"\.entry (\w+)\([^{]*?\.maxntid (\d+)", re.DOTALL)
SASS_BODY = re.compile(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|^\s*\.section|\Z)", re.DOTALL | re.MULTILINE)


def complaints(log):
    """The lines of nvcc's and ptxas' messages that say what is wrong, kernels by their readable names."""
    lines = [line for line in log.splitlines() if line.strip() and not re.search(r"info +:|bytes stack frame", line)]
    names = readable(sorted(set(re.findall(r"\b_Z\w+", "\n".join(lines)))))
    return [re.sub(r"\b_Z\w+", lambda found: names[found[0]], line) for line in lines] or [log.strip()]


def check_kernel(kernel, architecture, code, language, figures):
    """Failures of one kernel: instructions that are missing, or that should not be there; no __launch_bounds__."""
    words, failures = expected(kernel), []
    for word, (sass, ptx, meaning) in INSTRUCTIONS.items():
        present = re.search(sass if language == "SASS" else ptx, code)
        if word in words and not present and word != "double":
            failures.append(f"{kernel} for {architecture} has no {meaning} in its {language}")
        if word not in words and present and word in FORBIDDEN[language]:
            failures.append(f"{kernel} for {architecture} has {meaning} in its {language}: {present[0]}")
    if not figures["threads"] and "naive" not in kernel:
        failures.append(f"{kernel} has no __launch_bounds__, so its registers are allocated for 1024 threads")
    return failures


# ---- the table -----------------------------------------------------------------------------------------------------


def compile_all(nvcc, nvdisasm, directory, architectures):
    """Two files at a time: ({architecture: {file: {kernel: figures}}}, [failures], what instructions were read in)."""
    sources = sorted(Path(directory).glob("*.cu"), key=lambda source: -source.stat().st_size)
    jobs = [(source, arch) for arch in architectures for source in sources]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, nvdisasm, *job), jobs))
    table, failures, languages = {arch: {} for arch in architectures}, [], set()
    for (source, arch), (kernels, wrong, language) in zip(jobs, results, strict=True):
        table[arch][source.stem] = dict(sorted(kernels.items())) if kernels is not None else None
        failures += wrong
        languages |= {language} - {""}
    table = {arch: dict(sorted(files.items())) for arch, files in table.items()}
    return table, failures, " and ".join(sorted(languages))


def compare(found, stored):
    """Lines that say how the table found differs from the stored one, over the architectures found."""
    lines = []
    for arch, files in found.items():
        for file in sorted({*files, *stored.get(arch, {})}):
            if files.get(file, {}) is None:  # it does not compile, and the failures say why
                continue
            now, then = files.get(file, {}), stored.get(arch, {}).get(file, {})
            lines += [f"{file}:{k} for {arch} is not in the table" for k in sorted({*now} - {*then})]
            lines += [f"{file}:{k} for {arch} is in the table and no longer compiled" for k in sorted({*then} - {*now})]
            for kernel in sorted({*now} & {*then}):
                lines += [
                    f"{file}:{kernel} for {arch}: {what} {then[kernel].get(what)} -> {value}"
                    for what, value in now[kernel].items()
                    if then[kernel].get(what) != value
                ]
    return lines


def write_table(table, version, path):
    """JSON with one kernel a line, so that a change of one is a change of one line; and the Markdown beside it."""
    text = json.dumps({"nvcc": version, **table}, indent=1)
    text = re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", text)
    path.write_text(text + "\n")
    path.with_suffix(".md").write_text(markdown({"nvcc": version, **table}))


# ---- occupancy -----------------------------------------------------------------------------------------------------

# Of one multiprocessor. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the granules
# and the 1 KB that the driver keeps of every block's shared memory from cuda_occupancy.h of CUDA 13.0.
LIMITS = {"sm_80": {"shared": 164 << 10}, "sm_90a": {"shared": 228 << 10}}
REGISTERS, THREADS, BLOCKS, WARPS_STEP = 65536, 2048, 32, 4
REGISTER_GRANULE, SHARED_GRANULE, DRIVER_SHARED = 256, 128, 1 << 10


def resident(figures, arch):
    """Blocks that fit on a multiprocessor, and the dynamic shared memory each may use with so many of them there."""
    warps = -(-figures["threads"] // 32)
    registers_of_warp = -(-figures["registers"] * 32 // REGISTER_GRANULE) * REGISTER_GRANULE
    warps_by_registers = REGISTERS // registers_of_warp // WARPS_STEP * WARPS_STEP  # each of four schedulers has a part
    own = figures["shared"] + DRIVER_SHARED
    by_shared = LIMITS[arch]["shared"] // (-(-own // SHARED_GRANULE) * SHARED_GRANULE)
    blocks = min(BLOCKS, THREADS // (32 * warps), warps_by_registers // warps, by_shared)
    share = LIMITS[arch]["shared"] // blocks // SHARED_GRANULE * SHARED_GRANULE if blocks else 0
    return blocks, max(share - own, 0)


def markdown(stored):
    """The table as a page."""
    lines = [
        "# Registers and occupancy of the CUDA kernels",
        "",
        f"Written by `python csrc/cuda/gate.py --update` with nvcc {stored['nvcc']}; do not edit. Threads are",
        "those of `__launch_bounds__`. Occupancy is the share of a multiprocessor's 2048 threads for which registers,",
        "threads and static shared memory leave room: an upper bound, computed and not measured. The last column is",
        "the dynamic shared memory that a block may ask for before fewer blocks fit. Naive kernels are left out.",
    ]
    for arch in (key for key in stored if key != "nvcc"):
        lines += ["", f"## {arch}", ""]
        lines += ["| kernel | registers | static shared, bytes | threads | blocks | occupancy | room, bytes |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for file, kernels in stored[arch].items():
            for kernel, f in kernels.items():
                if f["threads"]:
                    blocks, room = resident(f, arch)
                    share = f"{100 * blocks * f['threads'] / THREADS:.0f} %"
                    cells = f["registers"], f["shared"], f["threads"], blocks, share, room
                    lines.append(f"| `{file}: {kernel}` | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


# ---- the command ---------------------------------------------------------------------------------------------------


def check_program(nvcc, directory):
    """The command that builds check/ and the kernels for a GPU, with line numbers for compute-sanitizer."""
    targets = [f"-gencode=arch=compute_{a.removeprefix('sm_')},code={a}" for a in ARCHITECTURES]
    sources = [*sorted(HERE.glob("*.cu")), *sorted((HERE / "check").glob("*.cpp"))]
    libraries = Path(nvcc).resolve().parents[1] / "lib"  # of the packages; nvcc itself looks in lib64
    flags = ["-std=c++17", "-O3", "-lineinfo", "-DPYDIFF_GPU", *([f"-L{libraries}"] if libraries.is_dir() else [])]
    return [nvcc, *flags, *targets, *sources, "-o", Path(directory) / "check"]


def main():
    """Compile, check, compare; or update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--update", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--directory", type=Path, default=HERE, help="where the .cu files are")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--ptx", action="store_true", help="read the PTX even where nvdisasm is installed")
    parser.add_argument("--check-program", metavar="DIR", help="print the command that builds DIR/check for a GPU")
    options = parser.parse_args()
    if options.check_program:
        return print(*check_program(find_tool("nvcc") or "nvcc", options.check_program))
    nvcc = find_tool("nvcc")
    if not nvcc:
        print("nvcc is neither among this Python's packages (pip install -r csrc/cuda/nvcc.txt) nor on PATH:")
        print("the CUDA kernels were not compiled as CUDA, and no gate was checked")
        sys.exit(2)
    nvdisasm = None if options.ptx else find_tool("nvdisasm")
    architectures = ARCHITECTURES if options.update else options.arch
    table, failures, language = compile_all(nvcc, nvdisasm, options.directory, architectures)
    version, count = version_of(nvcc), sum(len(kernels or ()) for files in table.values() for kernels in files.values())
    if options.update and not failures:
        write_table(table, version, options.table)
        print(f"{count} kernels written to {options.table} and {options.table.with_suffix('.md')}")
    elif not options.update:
        stored = json.loads(options.table.read_text())
        differences = compare(table, stored)
        if version == stored["nvcc"]:
            failures += differences and [*differences, "if that is meant: python csrc/cuda/gate.py --update"]
        else:
            print(f"nvcc is {version}, the table was written by {stored['nvcc']}: registers were not compared")
            failures += [line for line in differences if "table" in line]
    print(f"{count} kernels on {', '.join(architectures)}, instructions read in {language or 'nothing'}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
