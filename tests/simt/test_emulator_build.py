"""How pydiff._simt comes to be: once for everybody, whole or not at all, and in one sentence why not. The compiler is a
script here, which takes no time; the other files of this folder use what the real one makes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pydiff import emulator

if os.name != "posix":
    pytest.skip("Windows has no emulator", allow_module_level=True)
pytest.importorskip("pybind11")

COMPILER = """#!/bin/sh
[ "$1" = --version ] && { cat "$0.version"; exit; }
sleep ${SLOW:-0}
while [ $# -gt 0 ]; do
    case "$1" in -o) made=$2;; -c) source=$2;; esac
    shift
done
echo "${source:-module}" >> "$0.log"
if [ "${source##*/}" = "${FAILS:-none}" ]; then
    echo "In file included from somewhere:" >&2
    echo "noise.cu:7:3: error: 'sigma' was not declared" >&2
    exit 1
fi
echo made > "$made"
"""
BUILD = "from pydiff import emulator; print(emulator.build())"


class Compiler:
    """A script in place of the compiler, and a cache of its own."""

    def __init__(self, folder):
        self.path = folder / "c++"
        self.path.write_text(COMPILER)
        self.path.chmod(0o755)
        self.version("1.0")
        self.cache = folder / "cache/pydiff/emulator"
        self.environment = {"CXX": str(self.path), "XDG_CACHE_HOME": str(folder / "cache")}

    def version(self, text):
        Path(f"{self.path}.version").write_text(f"c++ {text}\n")

    def compiled(self):
        """{source, or "module" for the link: how often} since this was asked last."""
        log = Path(f"{self.path}.log")
        names = log.read_text().splitlines() if log.is_file() else []
        log.unlink(missing_ok=True)
        return Counter(names)

    def start(self, code=BUILD, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | self.environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def left(self):
        """What is in the cache and is neither whole nor the lock."""
        whole = {path.name for suffix in (".o", emulator.Recipe().suffix) for path in self.cache.glob(f"*{suffix}")}
        return {path.name for path in self.cache.iterdir()} - whole - {"lock"}


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    compiler = Compiler(tmp_path)
    for name, value in compiler.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(emulator, "_refused", None)
    return compiler


def test_it_is_built_once_and_found_again(compiler, capfd):
    assert emulator.describe().startswith("not built yet")
    made = emulator.build()
    assert made.parent == compiler.cache
    assert made.name.endswith(emulator.Recipe().suffix)
    assert capfd.readouterr().err.count("\n") == 1  # the one sentence
    counts = compiler.compiled()
    assert counts.keys() == {str(source) for source in emulator.Recipe().units} | {"module"}
    assert {*counts.values()} == {1}
    assert emulator.build() == made
    assert not compiler.compiled()
    assert capfd.readouterr().err == ""
    assert emulator.describe() == f"built ({made})"
    assert compiler.left() == set()


def test_two_processes_at_once_build_it_once(compiler):
    both = [compiler.start(SLOW="0.02") for _ in range(2)]
    paths = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert {*compiler.compiled().values()} == {1}


def test_a_build_that_is_killed_leaves_nothing_half_made(compiler):
    process = compiler.start(SLOW="0.1")
    end = time.monotonic() + 60
    while len([*compiler.cache.glob("*.o")]) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.3)  # for compilers that outlive it
    before = compiler.compiled()
    assert "module" not in before
    assert not emulator.Recipe().module.exists()
    assert all(made.read_text() == "made\n" for made in compiler.cache.glob("*.o"))
    whole = {str(source) for source, made in emulator.Recipe().units.items() if made.exists()}
    assert 3 <= len(whole) < len(emulator.Recipe().units)
    assert emulator.build().read_text() == "made\n"
    assert compiler.compiled().keys().isdisjoint(whole)  # what was whole is not made again
    assert compiler.left() == set()


def test_only_what_was_changed_is_compiled_again(compiler, tmp_path, monkeypatch):
    csrc = tmp_path / "csrc"
    shutil.copytree(emulator.Recipe().csrc, csrc)
    monkeypatch.setattr(emulator, "_sources", lambda: csrc)
    first = emulator.build()
    compiler.compiled()
    for source, change in (("cuda/noise.cu", {"noise.cu", "module"}), ("simt/device.h", None)):
        with open(csrc / source, "a") as file:
            file.write("// changed\n")
        assert emulator.build() != first
        compiled = {Path(name).name for name in compiler.compiled()}
        assert compiled == (change or {path.name for path in emulator.Recipe().units} | {"module"})
    compiler.version("2.0")
    assert emulator.build() != first
    assert len(compiler.compiled()) == len(emulator.Recipe().units) + 1


def test_why_a_build_failed_is_one_sentence(compiler, monkeypatch):
    monkeypatch.setenv("FAILS", "noise.cu")
    with pytest.raises(RuntimeError) as caught:
        emulator.build()
    text = str(caught.value)
    assert "\n" not in text
    assert "the compiler failed on noise.cu: noise.cu:7:3: error: 'sigma' was not declared" in text
    log = Path(text.split(" is in ")[1].rstrip(")"))
    assert log.read_text().startswith("In file included from somewhere:\n")
    compiler.compiled()
    with pytest.raises(RuntimeError, match=r"failed on noise\.cu"):  # at once: a test suite asks a thousand times
        emulator.build()
    assert not compiler.compiled()
    monkeypatch.delenv("FAILS")
    monkeypatch.setattr(emulator, "_refused", None)  # another process, later
    assert emulator.build().is_file()


def test_whoever_waited_for_a_build_that_failed_does_not_try_again(compiler, monkeypatch):
    monkeypatch.setenv("FAILS", "noise.cu")
    began = time.time()
    with pytest.raises(RuntimeError) as first:
        emulator.build()
    compiler.compiled()
    with pytest.raises(RuntimeError) as second:
        emulator._build(emulator.Recipe(), began)  # as if it had come to the lock then
    assert str(first.value) == str(second.value)
    assert not compiler.compiled()
    with pytest.raises(RuntimeError):
        emulator._build(emulator.Recipe(), time.time() + 1)
    assert compiler.compiled()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "", "PATH": "/nowhere"}, "there is no C++ compiler"),
        ({"CXX": "/nowhere/g++ -m64"}, "CXX names /nowhere/g++, which is not there"),
    ],
)
def test_without_a_compiler(monkeypatch, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sentence = f"the emulator of CUDA kernels cannot be built: {reason}"
    assert emulator.describe() == sentence
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        emulator.build()


def test_a_broken_compiler(compiler):
    process = compiler.start(CXX="/bin/false")
    assert "could not be built: the compiler failed on" in process.communicate()[1].splitlines()[-1]


def test_without_pybind11_or_sources_or_a_place_for_it(compiler, tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pybind11", None)
        assert emulator.describe() == (
            "the emulator of CUDA kernels cannot be built without pybind11; pip install pybind11"
        )
    with monkeypatch.context() as without:
        without.setattr(emulator, "__file__", str(tmp_path / "pydiff/emulator.py"))
        assert "this installation does not have its sources" in emulator.describe()
    (tmp_path / "file").touch()
    process = compiler.start(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "(XDG_CACHE_HOME says where the cache is)" in process.communicate()[1].splitlines()[-1]


def test_what_nobody_has_used_for_long_is_deleted(compiler):
    first = emulator.build()
    long_ago = time.time() - (emulator.DAYS + 1) * 86400
    for path in compiler.cache.iterdir():
        os.utime(path, (long_ago, long_ago))
    compiler.version("2.0")
    second = emulator.build()
    assert second.is_file()
    assert not first.exists()
    assert len([*compiler.cache.glob("*.o")]) == len(emulator.Recipe().units)
