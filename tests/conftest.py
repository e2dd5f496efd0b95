"""Settings every test shares: property tests draw the same examples every time, so CI is repeatable."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

settings.register_profile(
    "ci",
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", parent=settings.get_profile("ci"), max_examples=1000, derandomize=False)
settings.register_profile("random", parent=settings.get_profile("ci"), derandomize=False)  # as short, other examples
settings.load_profile(os.environ.get("PYDIFF_HYPOTHESIS", "ci"))
if settings.default.derandomize:
    # Hypothesis also draws constants that it finds in the modules loaded so far, and these depend on the tests that ran
    # before in the same process: the seed alone does not make examples the same every time.
    providers._get_local_constants = providers.Constants

# Shells start what stands before "&" deaf to Ctrl-C, and nohup what it starts deaf to hang-ups, and a training honours
# that; tests of both must be heard.
for number, heard in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, heard)


@pytest.fixture
def background():
    """background(command, ready) starts a process and waits until ready(); whatever becomes of the test, it is ended.

    errors: where its messages go (subprocess.PIPE: to process.stderr). A pipe that nobody reads is full after minutes.
    """
    running = []

    def begin(command, ready, errors=subprocess.DEVNULL):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen([str(word) for word in command], stderr=errors, text=True, **quiet)
        running.append(process)
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "it took two minutes to come so far"
            time.sleep(0.02)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@pytest.fixture
def training(background):
    """training(command, out): a training with the folder `out` in the background, once it has three steps."""

    def begin(command, out, errors=subprocess.DEVNULL):
        log = Path(out) / "log.jsonl"
        return background(command, lambda: log.exists() and log.read_text().count("\n") >= 3, errors)

    return begin
