"""Property tests draw the same examples every time, whatever ran before them in the same process."""

import subprocess
import sys
import textwrap


def examples(*modules):
    """What a property draws in a fresh process in which `modules` were imported before."""
    script = f"""
        import importlib
        from hypothesis import given, settings, strategies as st
        import tests.conftest

        drawn = []

        @settings(max_examples=300, database=None)
        @given(st.integers(0, 2**64 - 1), st.floats(), st.text())
        def draw(number, real, text):
            drawn.append((number, real, text))

        for name in {modules}:
            importlib.import_module(name)
        draw()
        print(ascii(drawn))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    return ran.stdout


def test_examples_do_not_depend_on_the_modules_loaded():
    assert examples() == examples("tests.test_random", "tests.test_bindings")
