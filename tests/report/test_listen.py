"""The players of sounds on a run's page, in a real browser: they load, they play, and they play in turn."""

import numpy as np
import pytest

import pydiff
from pydiff.data.tones import load_tones
from tests.report import browser as driver

TINY = {"steps": 2, "batch_size": 4, "warmup": 1, "timesteps": 20, "channels": (8, 8), "groups": 4, "head_dim": 4}
STATES = """
return [...document.querySelectorAll("audio")].map((a) => ({
  error: a.error && a.error.code, loaded: a.readyState, length: a.duration, at: a.currentTime, controls: a.controls,
  high: a.getBoundingClientRect().height, named: a.getAttribute("aria-label"),
}));
"""
HEARD = """
window.heard = [];
document.querySelectorAll(".way audio").forEach((a, i) => a.addEventListener("play", () => window.heard.push(i)));
"""


@pytest.mark.skipif(
    not (driver.CHROMIUM and driver.DRIVER), reason="needs chromium and chromedriver, which are not installed"
)
def test_every_player_of_the_page_plays(tmp_path):
    data = load_tones(11, rate=4000, seconds=0.2)
    run = pydiff.train(data, out=tmp_path / "run", progress=False, conditional=True, **TINY)
    page = run.report(n=2, steps=4)
    with driver.browser() as window:
        window.resize(900, 800)
        window.open(page.as_uri())
        window.wait("document.documentElement.dataset.ready === 'yes'", 20)
        window.wait("[...document.querySelectorAll('audio')].every((a) => a.readyState >= 1)", 20)
        states = window.execute(STATES)
        assert len(states) >= 10
        for state in states:
            assert state["error"] is None
            assert state["length"] == pytest.approx(0.2, abs=0.01)
            assert state["controls"]
            assert state["high"] > 20
            assert state["named"]
        assert len({state["named"] for state in states}) == len(states)
        window.execute(HEARD)
        window.click(".inturn")
        window.wait("window.heard.length >= 3", 20)  # one after the other, by themselves
        assert window.execute("return window.heard.slice(0, 3)") == [0, 1, 2]
        assert not [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]
        assert np.ptp(window.screenshot("audio")) > 50  # something to press is seen
