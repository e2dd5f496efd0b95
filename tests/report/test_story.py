"""Pages with a story: players that move together, the page of points, the ink drop and what it computes."""

import json

import numpy as np
import pytest

import pydiff
from pydiff.report import ink
from pydiff.report.particles import cloud, rainbow
from pydiff.report.story import player, table, write_story
from tests.report import browser as driver

needs_browser = pytest.mark.skipif(
    not (driver.CHROMIUM and driver.DRIVER), reason="needs chromium and chromedriver, which are not installed"
)
CANVAS = """
const canvas = document.querySelectorAll("canvas")[arguments[0]];
return [canvas.height, canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
"""
MOVE = """
const slider = document.querySelector(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input"));
"""


def shown(window, number):
    height, width, *values = window.execute(CANVAS, number)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


@needs_browser
def test_panels_move_together_over_noise_and_over_time(tmp_path):
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (3, 5, 7, 9, 3)).astype(np.uint8) for _ in range(2))
    said = [f"step {s}, frame {f} <&" for s in range(3) for f in range(5)]
    html = player([("one", one), ("two & more", two)], said, down="noise")
    path = write_story(
        tmp_path / "a.html", "A <name>", "Lead & more", [("First", html), ("Second", table("ab", ["cd"]))]
    )
    with driver.browser() as window:
        window.open(path.as_uri())
        window.wait("document.documentElement.dataset.ready === 'yes'")
        assert np.array_equal(shown(window, 0), one[2, 0])  # the last step of the noise, the first frame
        for s, f in ((0, 0), (1, 4), (2, 3)):
            window.execute(MOVE, "input[name=row]", s)
            window.execute(MOVE, "input[name=column]", f)
            assert np.array_equal(shown(window, 0), one[s, f])
            assert np.array_equal(shown(window, 1), two[s, f])
            assert window.execute("return document.querySelector('.said2').innerText") == f"step {s}, frame {f} <&"
        window.click(".player2 button")
        window.wait("document.querySelector('input[name=column]').value !== '3'")
        window.click(".player2 button")
        assert window.execute("return document.querySelector('.player2 button').innerText") == "Play"
        assert window.execute("return document.querySelector('h1').innerText") == "A <name>"
        assert not [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]
        asked = [json.loads(entry["message"])["message"] for entry in window.log("performance")]
        asked = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
        assert not [url for url in asked if url.startswith(("http:", "https:", "ws:", "wss:"))]


def test_panels_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="move together"):
        player([("a", np.zeros((2, 4, 4, 1), np.uint8)), ("b", np.zeros((3, 4, 4, 1), np.uint8))])
    with pytest.raises(ValueError, match="lines to say"):
        player([("a", np.zeros((2, 4, 4, 1), np.uint8))], ["one"])


def test_a_cloud_shows_every_particle_where_it_is():
    image = cloud(
        np.array([[0.0, 0.0], [3.0, 3.0], [99.0, 0.0]]), np.array([[255, 0, 0], [0, 0, 255], [0, 0, 0]]), 3.5, 70
    )
    assert image.shape == (70, 70, 3)
    assert image[35, 35, 1] < 120 < image[35, 35, 0]  # red in the middle
    assert image[5, 65, 1] < 120 < image[5, 65, 2]  # blue above and to the right
    assert (image[40:, :30] == 255).all()
    assert len(np.unique(rainbow(np.arange(10.0)), axis=0)) == 10


# ---- the ink drop ---------------------------------------------------------------------------------------------------


def test_the_steps_of_the_equation_follow_the_exact_solution():
    moments = np.array([0.0, 0.1, 0.4])
    rows = ink.compared(moments, ink.drop_by_steps(moments), ink.walks(moments, count=4000))
    for t, exact, by_steps, of_particles, worst in rows:
        assert abs(by_steps / exact - 1) < 2e-3
        assert abs(of_particles / exact - 1) < 5 / np.sqrt(4000)  # 8000 numbers: the error is sqrt(2 / 8000)
        assert worst < 5e-3
        assert exact == pytest.approx(ink.START + 2 * ink.D * t)


def test_the_histogram_of_pixels_follows_the_exact_density():
    image = np.random.default_rng(0).choice([0, 255, 60], (64, 64, 3)).astype(np.uint8)
    images, histograms = ink.pixels_that_diffuse(image, [0.0, 0.5, 3.0])
    assert np.array_equal(images[0], image)
    assert histograms[0][1] is None
    for counted, exact in histograms[1:]:
        assert abs(exact.sum() * 0.1 - 1) < 1e-2
        assert np.abs(counted - exact).max() < 0.06  # 12288 numbers in cells of 0.1: 5 standard errors


@needs_browser
def test_the_page_of_the_ink_drop(tmp_path, monkeypatch):
    monkeypatch.setattr(ink, "MOMENTS", 7)
    monkeypatch.setattr(ink, "CELLS", 97)
    image = pydiff.data.load("emoji", channels=3).images[0]
    page, rows = ink.write_ink_page(tmp_path, image)
    assert len(rows) == 7
    assert (tmp_path / "ink.webp").is_file() or (tmp_path / "ink.gif").is_file()
    with driver.browser() as window:
        window.open(page.as_uri())
        window.wait("document.documentElement.dataset.ready === 'yes'", 20)
        first = shown(window, 3)
        assert np.array_equal(first[::6, ::6], image)
        window.execute(MOVE, ".player2:nth-of-type(1) input", 6)
        assert "t = 1.20" in window.execute("return document.querySelector('.said2').innerText")
        assert not [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]


def test_the_command_of_the_ink_drop(tmp_path, monkeypatch, capsys):
    from pydiff.cli import main

    monkeypatch.setattr(ink, "MOMENTS", 7)
    assert main(["ink", "--out", str(tmp_path / "ink"), "--emoji", "heart"]) == 0
    assert "of its peak" in capsys.readouterr().out
    assert main(["ink", "--out", str(tmp_path / "ink"), "--emoji", "no such thing"]) == 1
    assert "no emoji's caption contains" in capsys.readouterr().err


# ---- the page of points ---------------------------------------------------------------------------------------------


def test_the_page_of_points(tmp_path):
    data = pydiff.data.swiss_roll(300)
    run = pydiff.train(
        data, steps=3, batch_size=8, channels=(8,), timesteps=30, sample_every=0, progress=False, out=tmp_path / "run"
    )
    page = run.report(n=4, steps=5).read_text()
    assert "300 of 2 numbers" in page
    assert "Forth" in page
    assert "Back" in page
    assert (tmp_path / "run" / "samples.png").is_file()
    assert list((tmp_path / "run").glob("film.*"))
