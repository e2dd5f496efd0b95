"""The page in a real browser: every control does what it says, and nothing is fetched."""

import json
import time

import numpy as np
import pytest

from pydiff.report.page import write_page
from tests.report import browser as driver
from tests.report.example import page

pytestmark = pytest.mark.skipif(
    not (driver.CHROMIUM and driver.DRIVER), reason="needs chromium and chromedriver, which are not installed"
)

SLIDER = "#reverse input[type=range]"
PANELS = ("x", "eps", "x0")
CANVAS = """
const canvas = document.querySelector(arguments[0]);
return [canvas.height, canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
"""
OFFSET = """
const [a, b] = [...arguments].map((selector) => document.querySelector(selector).getBoundingClientRect());
return a.left + a.width / 2 - b.left;
"""


@pytest.fixture(scope="module")
def shown():
    return page()


@pytest.fixture(scope="module")
def window(shown, tmp_path_factory):
    path = write_page(tmp_path_factory.mktemp("page") / "report.html", shown)
    with driver.browser() as window:
        window.address = path.as_uri()
        yield window


@pytest.fixture
def opened(window):
    """The page as it is after loading, 1200 pixels wide, with empty logs."""
    window.resize(1200, 900)
    window.log("browser")
    window.log("performance")
    window.open(window.address)
    window.wait("document.documentElement.dataset.ready === 'yes'")
    return window


def pixels(window, selector):
    """A canvas as (H, W, 3) uint8."""
    height, width, *values = window.execute(CANVAS, selector)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def panel(show):
    return f"#reverse .panels canvas[data-show={show}]"


def assert_shows(window, trace, row, sample):
    """The slider, the three panels, the grid of samples and the words agree with row and sample of the trace."""
    assert int(window.execute(f"return document.querySelector('{SLIDER}').value")) == row
    for show in PANELS:
        np.testing.assert_array_equal(pixels(window, panel(show)), getattr(trace, show)[row, sample])
    for i in range(trace.x.shape[1]):
        np.testing.assert_array_equal(pixels(window, f"#reverse .choice canvas[data-column='{i}']"), trace.x[row, i])
    words = window.execute("return document.querySelector('#reverse .readout').innerText")
    assert " ".join(words.split()) == f"After {trace.steps[row]} of 1,000 steps, t = {trace.t[row]}"
    label = window.execute(f"return document.querySelector('{panel('x')}').getAttribute('aria-label')")
    assert label == f"the image so far, sample {sample + 1}, after {trace.steps[row]} of 1000 steps"


def row_of(trace, step):
    return int(np.flatnonzero(trace.steps == step)[0])


def test_it_opens_without_errors_or_requests(opened, shown):
    assert_shows(opened, shown.trace, len(shown.trace.steps) - 1, 0)
    assert opened.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert opened.address in urls  # the log does record requests
    assert [url for url in urls - {opened.address} if not url.startswith(("data:", "chrome:"))] == []


def test_the_policy_stops_what_a_page_could_fetch(opened):
    opened.execute("const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);")
    opened.wait("document.images[document.images.length - 1].complete")
    assert any("Content Security Policy" in entry["message"] for entry in opened.log("browser"))


def test_dragging_the_slider_changes_the_image_on_the_screen(opened, shown):
    last = len(shown.trace.steps) - 1
    before = opened.screenshot(panel("x"))
    opened.drag(SLIDER, dx=-150)
    row = int(opened.execute(f"return document.querySelector('{SLIDER}').value"))
    assert 0 < row < last
    assert_shows(opened, shown.trace, row, 0)
    after = opened.screenshot(panel("x"))
    assert not np.array_equal(before, after)
    # On the screen a pixel is a block of one colour: the same in its middle and off it, but for the rounded corners.
    for within in (0.25, 0.5, 0.75):
        sides = zip(shown.trace.x.shape[2:4], after.shape[:2], strict=True)
        y, x = (((np.arange(n) + within) * side / n).astype(int) for n, side in sides)
        np.testing.assert_array_equal(after[np.ix_(y, x)], shown.trace.x[row, 0])


def test_arrow_keys_step_through(opened, shown):
    last = len(shown.trace.steps) - 1
    for key, row in (("left", last - 1), ("left", last - 2), ("right", last - 1), ("home", 0), ("end", last)):
        opened.press(SLIDER, key)
        assert_shows(opened, shown.trace, row, 0)


@pytest.mark.parametrize("moment", [700, 800, 900, 1000])
def test_marks_jump_to_the_lectures_moments(opened, shown, moment):
    row = row_of(shown.trace, moment)
    opened.press(SLIDER, "home")
    opened.click(f"#reverse .tick[data-position='{row}']")
    assert_shows(opened, shown.trace, row, 0)
    current = "[...document.querySelectorAll('#reverse .tick[aria-current=true]')].map(tick => tick.innerText)"
    assert opened.execute(f"return {current}") == [str(moment)]
    opened.press(SLIDER, "home")
    opened.click(f"#reverse .moments [data-position='{row}']")
    assert_shows(opened, shown.trace, row, 0)


def test_marks_stand_under_the_thumb(opened, shown):
    """The thumb's centre, found as the accent-coloured pixels of the slider, is where the tick is."""
    for moment in (700, 1000):
        row = row_of(shown.trace, moment)
        opened.click(f"#reverse .tick[data-position='{row}']")
        slider = opened.screenshot(SLIDER).astype(int)
        thumb = np.flatnonzero((np.abs(slider - [15, 107, 104]) < 10).all(-1).sum(0) >= 3)
        tick = opened.execute(OFFSET, f"#reverse .tick[data-position='{row}']", SLIDER)
        assert abs((thumb[0] + thumb[-1] + 1) / 2 - tick) <= 1.5


def test_choosing_a_sample_changes_all_three_panels(opened, shown):
    opened.press(SLIDER, "left")
    row = len(shown.trace.steps) - 2
    opened.click("#reverse input[type=radio][value='2']")
    assert_shows(opened, shown.trace, row, 2)
    k = row_of(shown.trace, 700)
    moment = pixels(opened, f"#reverse .moments [data-position='{k}'] canvas")
    np.testing.assert_array_equal(moment, shown.trace.x[k, 2])
    opened.press("#reverse input[type=radio][value='2']", "right")
    assert_shows(opened, shown.trace, row, 3)


def test_play_advances_and_pause_stops(opened, shown):
    value = f"Number(document.querySelector('{SLIDER}').value)"
    opened.click("#reverse .play")  # at the end, so it starts over
    opened.wait(f"{value} >= 2 && {value} < 50")
    assert opened.execute("return document.querySelector('#reverse .play').innerText") == "Pause"
    opened.click("#reverse .play")
    stopped = opened.execute(f"return {value}")
    time.sleep(0.4)  # at 60 to 200 ms a step, a film that went on would show
    assert_shows(opened, shown.trace, stopped, 0)
    assert opened.execute("return document.querySelector('#reverse .play').innerText") == "Play"


def test_play_stops_by_itself_at_the_end(opened, shown):
    opened.press(SLIDER, "left")
    opened.press(SLIDER, "left")
    opened.click("#reverse .play")
    opened.wait("document.querySelector('#reverse .play').innerText === 'Play'")
    assert_shows(opened, shown.trace, len(shown.trace.steps) - 1, 0)


def test_forward_slider_mixes_image_and_noise(opened, shown):
    process = shown.forward
    opened.click("#forward input[type=radio][value='3']")
    for key, k in (("home", 0), ("right", 1), ("end", len(process.t) - 1)):
        opened.press("#forward input[type=range]", key)
        for show, expected in (("x", process.x[k, 3]), ("x0", process.x0[3]), ("eps", process.eps[3])):
            np.testing.assert_array_equal(pixels(opened, f"#forward .equation canvas[data-show={show}]"), expected)
        outputs = "[...document.querySelectorAll('#forward output')].map(output => [output.name, Number(output.value)])"
        alpha, sigma = process.alpha[k], process.sigma[k]
        expected = {"alpha": alpha, "sigma": sigma, "t": process.t[k], "share": alpha**2}
        assert dict(opened.execute(f"return {outputs}")) == pytest.approx(expected, abs=0.0051)
    opened.click("#forward .strip .chosen:first-child")
    np.testing.assert_array_equal(pixels(opened, "#forward .equation canvas[data-show=x]"), process.x[0, 3])


def test_the_loss_curve_tells_values(opened):
    read = "return document.querySelector('#loss-readout').innerText"
    opened.press("#chart .plot", "home")
    assert opened.execute(read) == "Step 1: loss 1.00, smoothed 1.00"
    opened.press("#chart .plot", "right")
    assert opened.execute(read).startswith("Step 2: loss 0.500")
    opened.drag("#chart .plot", dx=0)
    assert opened.execute(read).startswith(("Step 50: loss 0.0200", "Step 51: loss 0.0196"))


@pytest.mark.parametrize("width", [320, 400, 800])
def test_narrow_screens_do_not_scroll_sideways(opened, shown, width):
    opened.resize(width, 800)
    assert opened.execute("return document.documentElement.scrollWidth") <= width
    opened.click(f"#reverse .tick[data-position='{row_of(shown.trace, 900)}']")
    assert_shows(opened, shown.trace, row_of(shown.trace, 900), 0)


def test_dark_mode_is_dark(opened):
    brightness = {}
    for scheme in ("light", "dark"):
        opened.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        brightness[scheme] = opened.screenshot("header").mean()
    assert brightness["dark"] < 80 < 200 < brightness["light"]
    opened.devtools("Emulation.setEmulatedMedia", features=[])
