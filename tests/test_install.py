"""What CMakeLists.txt decides to build, and what it says when it builds nothing. Only the first half of an installation
runs here, which takes seconds; .ci/wheel runs the whole of it."""

import json
import os
import platform
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "CMakeLists.txt").is_file():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)
pybind11 = pytest.importorskip("pybind11")

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another processor, with one level")


@pytest.fixture
def configure(tmp_path):
    """configure(PYDIFF_..="..", env=..) -> (what _build.json says, or None if CMake failed; its words in one line)"""
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("needs cmake and ninja, which pip fetches for itself")

    def run(env=None, **defines):
        command = [shutil.which("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja"]
        command += [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
        command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        command += [f"-D{name}={value}" for name, value in defines.items()]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYDIFF_", "CMAKE_"))}
        done = subprocess.run(command, env=clean | (env or {}), capture_output=True, text=True, check=False)
        written = tmp_path / "build/_build.json"
        text = " ".join((done.stdout + done.stderr).split())
        return json.loads(written.read_text()) if done.returncode == 0 else None, text

    return run


@pytest.fixture
def no_compiler(tmp_path):
    """An environment in which there is none."""
    (tmp_path / "bin").mkdir()
    for tool in ("uname", "sh"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(tmp_path / "bin"), "CXX": "", "CC": ""}


def needs_a_compiler():
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")


def test_without_a_compiler_nothing_is_built(configure, no_compiler):
    built, text = configure(no_compiler)
    assert built["levels"] == []
    assert built["no_cpu"] == built["no_cuda"] == "no C++ compiler that works was found"
    assert "pydiff is installed without compiled kernels and will run in NumPy: no C++ compiler that works" in text


def test_a_compiler_that_does_not_work_is_none(configure):
    built, _ = configure({"CXX": "/bin/false"})
    assert built["levels"] == []
    assert built["no_cpu"] == "CXX is /bin/false, which is no C++ compiler that works"
    needs_a_compiler()
    assert (
        "baseline" in configure({"CXX": shutil.which("c++") or "g++"})[0]["levels"]
    )  # the same folder remembers nothing


def test_a_compiler_that_cannot_compile_the_kernels(configure, tmp_path):
    """It passes CMake's own examination."""
    needs_a_compiler()
    script = tmp_path / "old-c++"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *levels.cpp*) exit 1;; esac\nexec {shutil.which("c++") or "g++"} "$@"\n'
    )
    script.chmod(0o755)
    built, _ = configure({"CXX": str(script)})
    assert built["levels"] == []
    assert "cannot compile csrc/cpu/levels.cpp" in built["no_cpu"]


def test_a_build_that_failed_is_followed_by_one_of_nothing(configure):
    built, _ = configure(PYDIFF_BUILD_FAILED="the C++ compiler failed")
    assert (built["levels"], built["no_cpu"]) == ([], "the C++ compiler failed")


@pytest.mark.parametrize("why", ["no compiler", "no levels", "failed"])
def test_kernels_may_be_required(configure, why):
    env = {"CXX": "/bin/false"} if why == "no compiler" else None
    defines = {"no levels": {"PYDIFF_CPU_LEVELS": "none"}, "failed": {"PYDIFF_BUILD_FAILED": "it did"}}.get(why, {})
    built, text = configure(env, PYDIFF_REQUIRE_NATIVE="1", **defines)
    assert built is None
    assert "PYDIFF_REQUIRE_NATIVE is set, but the CPU kernels cannot be built: " in text


@x86
def test_which_instruction_sets(configure):
    needs_a_compiler()
    auto = configure()[0]["levels"]
    assert auto[0] == "baseline"
    assert len(auto) <= 2
    for wanted, levels in {
        "all": ["baseline", "avx2", "avx512"],
        "avx2": ["baseline", "avx2"],
        "avx512,avx2": ["baseline", "avx512", "avx2"],
        "baseline": ["baseline"],
        "none": [],
        "auto": auto,
    }.items():
        assert configure(PYDIFF_CPU_LEVELS=wanted)[0]["levels"] == levels
    built, text = configure(PYDIFF_CPU_LEVELS="sse9")
    assert built is None
    assert "PYDIFF_CPU_LEVELS names sse9" in text


def test_cuda_is_built_where_it_is_asked_for(configure):
    """None of these has an nvcc that works, so what is not an error is a refusal to look for one."""
    needs_a_compiler()
    env = {"CUDACXX": "/bin/false"}
    if not Path("/proc/driver/nvidia").exists() and not shutil.which("nvidia-smi"):
        assert configure(env)[0]["no_cuda"].startswith("this machine has no NVIDIA GPU")
    assert configure(env, PYDIFF_CUDA="OFF")[0]["no_cuda"] == "PYDIFF_CUDA was OFF"
    built, text = configure(env, PYDIFF_CUDA="ON")
    assert built is None
    assert "PYDIFF_CUDA is ON, but the CUDA kernels cannot be built: there is no nvcc that works" in text
    built, text = configure(env, PYDIFF_CUDA="maybe")
    assert built is None
    assert "PYDIFF_CUDA must be AUTO, ON or OFF; got maybe" in text


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_the_build_backend_tries_twice(monkeypatch, capsys, fails):
    """With scikit-build-core's hook replaced: it is not installed where tests run."""
    seen = []

    def hook(*arguments):
        seen.append((arguments, os.environ.get("PYDIFF_BUILD_FAILED")))
        if len(seen) <= fails:
            raise SystemExit(1)
        return "pydiff.whl"

    build = types.ModuleType("scikit_build_core.build")
    build.build_wheel = build.build_editable = hook
    package = types.ModuleType("scikit_build_core")
    package.build = build
    monkeypatch.setitem(sys.modules, "scikit_build_core", package)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", build)
    monkeypatch.delitem(sys.modules, "pydiff_build", raising=False)
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import pydiff_build

    for ours in (pydiff_build.build_wheel, pydiff_build.build_editable):
        seen.clear()
        if fails == 2:
            with pytest.raises(SystemExit):
                ours("folder", {"a": "b"})
        else:
            assert ours("folder", {"a": "b"}) == "pydiff.whl"
        assert [arguments for arguments, _ in seen] == [("folder", {"a": "b"}, None)] * min(fails + 1, 2)
        assert [bool(said) for _, said in seen] == [False, True][: fails + 1]
        assert ("without compiled kernels" in capsys.readouterr().err) == (fails > 0)
    assert "PYDIFF_BUILD_FAILED" not in os.environ
