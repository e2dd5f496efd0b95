"""The gates of csrc/cuda/gate.py: every kernel passes them, and each of them fails when it should."""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[2] / "csrc/cuda"
if not CUDA.is_dir():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)

spec = importlib.util.spec_from_file_location("gate", CUDA / "gate.py")
gate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gate)

ARCH = "sm_90a"  # the other one as well: python csrc/cuda/gate.py, which CI runs
TABLE = json.loads(gate.TABLE.read_text())


@pytest.fixture(scope="module")
def nvcc():
    found = gate.find_tool("nvcc")
    if not found:
        pytest.skip("nvcc is not installed: the CUDA kernels were not compiled as CUDA (see csrc/cuda/nvcc.txt)")
    return found


@pytest.fixture
def nvdisasm():
    found = gate.find_tool("nvdisasm")
    if not found:
        pytest.skip("nvdisasm is not installed: machine code was not read (see csrc/cuda/nvcc.txt)")
    return found


# ---- the kernels ---------------------------------------------------------------------------------------------------


def test_every_kernel_passes(nvcc):
    """Compiler, instructions and, for the compiler that wrote the table, registers: the only build of all kernels."""
    table, failures, _ = gate.compile_all(nvcc, gate.find_tool("nvdisasm"), CUDA, [ARCH])
    differences = gate.compare(table, TABLE)
    if gate.version_of(nvcc) != TABLE["nvcc"]:
        differences = [line for line in differences if "table" in line]
    assert failures + differences == []


def test_the_page_is_made_from_the_table():
    assert gate.TABLE.with_suffix(".md").read_text() == gate.markdown(TABLE)


def test_the_table_has_both_architectures_and_every_file():
    assert [key for key in TABLE if key != "nvcc"] == list(gate.ARCHITECTURES)
    for arch in gate.ARCHITECTURES:
        assert sorted(TABLE[arch]) == sorted(path.stem for path in CUDA.glob("*.cu"))


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in gate.RULES])
def test_every_rule_is_somebodys(pattern):
    kernels = [f"{file}:{kernel}" for file, names in TABLE[ARCH].items() for kernel in names]
    first = {kernel: next(p for p, _ in gate.RULES if gate.fnmatchcase(kernel, p)) for kernel in kernels}
    assert pattern in first.values() or not all(TABLE[ARCH].values())  # a file without kernels is not written yet


# ---- what they fail for --------------------------------------------------------------------------------------------

SPECIMEN = """
#include "%s/vector.h"
namespace pydiff {
namespace {
%s
}  // namespace
void launcher(int64_t n, float* x, cudaStream_t stream) {
    launch<specimen_kernel>(dim3(1), dim3(256), 0, stream, n, x);
}
}  // namespace pydiff
"""
RIGHT = """
__global__ void __launch_bounds__(256) specimen_kernel(int64_t n, float* x) {
    for (int64_t i = blockIdx.x * int64_t(256) + threadIdx.x; 8 * i < n; i += gridDim.x * int64_t(256)) {
        float v[8];
        load_upto(v, x + 8 * i, n - 8 * i, true);
        for (int k = 0; k < 8; ++k) v[k] *= 3.0f;
        store_upto(x + 8 * i, v, n - 8 * i, true);
    }
}
"""
# 64 numbers of which each thread keeps every one, in the 32 registers that 2048 threads leave it
SPILLING = """
__global__ void __launch_bounds__(1024, 2) specimen_kernel(int64_t n, float* x) {
    float v[64];
#pragma unroll
    for (int k = 0; k < 64; ++k) v[k] = x[k * n + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 64; ++k) x[k * n + threadIdx.x] = v[k] * v[63 - k];
}
"""
INDEXED = """
__global__ void __launch_bounds__(256) specimen_kernel(int64_t n, float* x) {
    float v[64];
#pragma unroll
    for (int k = 0; k < 64; ++k) v[k] = x[k * n + threadIdx.x];
    v[int(v[0])] = 1.0f;  // which register that is, nobody knows before
#pragma unroll
    for (int k = 0; k < 64; ++k) x[k * n + threadIdx.x] = v[63 - k];
}
"""
UNUSED = RIGHT.replace("float v[8];", "float v[8], forgotten;")


def specimen(nvcc, nvdisasm, directory, kernel=RIGHT):
    """What the gates say about a file with this kernel: (its figures, [failures])."""
    source = directory / "specimen.cu"
    source.write_text(SPECIMEN % (CUDA, kernel))
    kernels, failures, _ = gate.compile_one(nvcc, nvdisasm, source, ARCH)
    return kernels, failures


@pytest.mark.parametrize("tool", ["SASS", "PTX"])
def test_a_right_kernel_passes(nvcc, tool, request, tmp_path):
    kernels, failures = specimen(nvcc, request.getfixturevalue("nvdisasm") if tool == "SASS" else None, tmp_path)
    assert failures == []
    assert list(kernels) == ["specimen_kernel"]
    assert kernels["specimen_kernel"]["threads"] == 256
    assert 8 < kernels["specimen_kernel"]["registers"] <= 64


@pytest.mark.parametrize(
    ("kernel", "message"),
    [(SPILLING, "'specimen_kernel'.*spill"), (INDEXED, "[Ll]ocal memory.*specimen_kernel"), (UNUSED, "forgotten")],
)
def test_what_the_compiler_says_is_a_failure(nvcc, kernel, message, tmp_path):
    """Kernels by the names they have in the source."""
    kernels, failures = specimen(nvcc, None, tmp_path, kernel)
    assert kernels is None
    assert re.search(f"specimen.cu for {ARCH}: .*{message}", "\n".join(failures)), failures


@pytest.mark.parametrize("tool", ["SASS", "PTX"])
def test_wrong_instructions_are_failures(nvcc, tool, request, tmp_path):
    """Narrow stores, arithmetic in double, no launch bounds; then copies and tensor cores that a rule asks for."""
    wrong = (
        RIGHT.replace("__launch_bounds__(256)", "")
        .replace("store_upto(x + 8 * i, v, n - 8 * i, true)", "store_upto(x + 8 * i, v, n - 8 * i, false)")
        .replace("v[k] *= 3.0f", "v[k] = float(double(v[k]) * n)")
    )
    nvdisasm = request.getfixturevalue("nvdisasm") if tool == "SASS" else None
    kernels, failures = specimen(nvcc, nvdisasm, tmp_path, wrong)
    about = f"specimen:specimen_kernel for {ARCH}"
    assert f"{about} has no 16-byte stores to global memory in its {tool}" in failures
    assert any(line.startswith(f"{about} has double precision in its {tool}: ") for line in failures)
    assert any("no __launch_bounds__" in line for line in failures)
    assert len(failures) == 3
    assert list(kernels) == ["specimen_kernel"]


@pytest.mark.parametrize("language", ["SASS", "PTX"])
def test_instructions_that_a_rule_asks_for(monkeypatch, language):
    code = {
        "SASS": "HMMA.16816.F32.BF16 R4, R8, R2, R4 ;\n LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;\n LDL R1, [R2] ;",
        "PTX": "mma.sync.aligned.m16n8k16.row.col.f32 {%f1};\n cp.async.cg.shared.global [%r1], [%rd1], 16;",
    }[language]
    figures = {"threads": 128}
    monkeypatch.setattr(gate, "RULES", [("*", "load16 mma copies")])
    local = ["a:b for sm_80 has local memory in its SASS: LDL"] if language == "SASS" else []
    assert gate.check_kernel("a:b", "sm_80", code, language, figures) == local
    missing = gate.check_kernel("a:b", "sm_80", "FFMA R1, R2, R3, R4 ;", language, figures)
    assert [line.split(" has no ")[1].split(" in ")[0] for line in missing] == [
        "16-byte loads from global memory", "tensor-core instructions", "asynchronous copies",
    ]  # fmt: skip


def test_a_table_that_differs_is_a_failure():
    found = {ARCH: copy.deepcopy(TABLE[ARCH])}
    assert gate.compare(found, TABLE) == []
    name = next(iter(found[ARCH]["noise"]))
    figures = found[ARCH]["noise"].pop(name)
    assert gate.compare(found, TABLE) == [f"noise:{name} for {ARCH} is in the table and no longer compiled"]
    found[ARCH]["noise"][name] = figures | {"registers": figures["registers"] + 1}
    (line,) = gate.compare(found, TABLE)
    assert line == f"noise:{name} for {ARCH}: registers {figures['registers']} -> {figures['registers'] + 1}"
    found[ARCH]["noise"] = TABLE[ARCH]["noise"] | {"new_kernel<float>": figures}
    assert gate.compare(found, TABLE) == [f"noise:new_kernel<float> for {ARCH} is not in the table"]
    assert gate.compare({ARCH: {}}, TABLE) != []


@pytest.mark.usefixtures("nvcc")
def test_the_command_fails_and_updates(tmp_path):
    """As CI calls it: one file, its table written, then changed."""
    (tmp_path / "specimen.cu").write_text(SPECIMEN % (CUDA, RIGHT))

    def command(*words):
        line = [sys.executable, CUDA / "gate.py", "--directory", tmp_path, "--table", tmp_path / "table.json", *words]
        done = subprocess.run(line, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert command("--update")[0] == 0
    assert "specimen_kernel" in (tmp_path / "table.md").read_text()
    status, text = command("--arch", ARCH)
    assert status == 0, text
    assert "1 kernels on sm_90a" in text
    table = json.loads((tmp_path / "table.json").read_text())
    table[ARCH]["specimen"]["specimen_kernel"]["registers"] -= 1
    (tmp_path / "table.json").write_text(json.dumps(table))
    status, text = command("--arch", ARCH)
    assert status == 1
    assert "specimen:specimen_kernel for sm_90a: registers" in text


def test_without_nvcc_the_command_says_so():
    """-S -I: none of this Python's packages either."""
    command = [sys.executable, "-S", "-I", CUDA / "gate.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": "/nowhere"})
    assert done.returncode == 2
    assert "no gate was checked" in done.stdout


# ---- occupancy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "arch", "blocks"),
    [
        (32, 0, 256, "sm_90a", 8),  # 8 x 256 threads = 2048
        (33, 0, 256, "sm_90a", 6),  # 40 a thread after rounding: 65,536 / 1,280 = 51 warps, in fours 48
        (255, 0, 128, "sm_90a", 2),  # 8 warps of 8,192
        (128, 0, 128, "sm_90a", 4),  # 16 warps of 4,096
        (16, 0, 32, "sm_90a", 32),  # no more than 32 blocks
        (16, 48 << 10, 128, "sm_90a", 4),  # 228 KB / (48 + 1)
        (16, 48 << 10, 128, "sm_80", 3),  # 164 KB / (48 + 1)
        (16, 0, 1024, "sm_80", 2),
    ],
)
def test_occupancy(registers, shared, threads, arch, blocks):
    figures = {"registers": registers, "shared": shared, "threads": threads}
    found, room = gate.resident(figures, arch)
    assert found == blocks
    assert found * (room + shared + 1024) <= gate.LIMITS[arch]["shared"] < found * (room + shared + 1024 + 128) + 128


# ---- the driver ----------------------------------------------------------------------------------------------------


def test_the_driver_has_a_check_for_every_file():
    checks = {path.stem for path in (CUDA / "check").glob("*.cpp")} - {"main"}
    assert checks == {path.stem for path in CUDA.glob("*.cu")}
    launchers = set(re.findall(r"^void (\w+)\(", (CUDA.parent / "kernels.h").read_text(), re.M))
    text = "".join(path.read_text() for path in (CUDA / "check").glob("*.cpp"))
    assert [name for name in launchers if not re.search(rf"\b{name}(<T>)?, ", text)] == []


def test_the_driver_builds_for_a_gpu(nvcc, tmp_path):
    """The C++ half with CUDA's own headers; kernels are compiled above, and no GPU is here to run any."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    source = tmp_path / "all.cu"  # as CUDA: nvcc then knows where its headers are
    checks = sorted((CUDA / "check").glob("*.cpp"))
    source.write_text("".join(f'#include "{path}"\n' for path in checks))
    command = [nvcc, "-std=c++17", "-DPYDIFF_GPU", "-Werror", "all-warnings", "-c", source, "-o", tmp_path / "all.o"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
