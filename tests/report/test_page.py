"""The page as text: one file, nothing from outside, nothing unescaped."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pydiff.report import loss
from pydiff.report.markup import data_json, duration, fill, kind, number
from pydiff.report.page import render, write_page
from pydiff.report.sections import Neighbours, options, samples
from tests.report.example import page, random_images

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{js}}"
VOID = {"meta", "link", "img", "input", "br", "path", "line"}


class Reader(HTMLParser):
    """Collects what the tests ask about and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return render(page())


def test_it_is_one_file_that_refers_to_nothing_else(html, tmp_path):
    reader = Reader(html)
    rest = re.sub(r'"data:[^"]*"', "", html)
    assert not re.search(r"https?:|//[a-z]|@import|\burl\(|\bfetch\b|XMLHttpRequest|WebSocket", rest)
    for tag, attributes in reader.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert (attributes[name] or "").startswith("data:"), (tag, name)
    assert [script.get("type") for script in reader.all("script")] == ["application/json", None]
    assert write_page(tmp_path / "report.html", page()).read_bytes() == html.encode()  # the same page, the same bytes
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_policy_forbids_the_network(html):
    policies = [m["content"] for m in Reader(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    inside = "img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policies == [f"default-src 'none'; {inside}"]


def test_every_image_has_a_text(html):
    reader = Reader(html)
    hidden = re.search(r"<div hidden>(.*?)</div>", html, re.S)[1]  # the sprite sheets
    assert hidden.count("<img ") == 6
    described = [image for image in reader.all("img") if not image.get("id")]
    assert all(image["alt"] for image in described)
    assert all(canvas["role"] == "img" for canvas in reader.all("canvas"))


def test_user_text_is_escaped_wherever_it_appears():
    near = Neighbours(random_images(4, seed=3), np.arange(4), np.linspace(1, 2, 4), np.linspace(1, 3, 50), HOSTILE)
    hostile = page(
        name=HOSTILE,
        facts={HOSTILE: HOSTILE},
        captions=[HOSTILE] * 5,
        options={HOSTILE: HOSTILE},
        sampler=HOSTILE,
        neighbours=near,
        commands=[(HOSTILE, HOSTILE)],
    )
    text = render(hostile)
    reader = Reader(text)
    assert [tag for tag, _ in reader.elements] == [
        tag for tag, _ in Reader(render(page(facts={"a": "a"}, options={"a": "a"}))).elements
    ]
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    # As text: title, h1, facts, captions, options, sampler, note and commands, one place each or two.
    assert "".join(reader.texts).count(HOSTILE) == 1 + 1 + 2 + 5 + 2 + 1 + 1 + 2
    assert sum(image["alt"].endswith(HOSTILE) for image in reader.all("img")) == 5


def test_numbers_for_the_script_cannot_end_it():
    assert data_json({"a": "</script><!--", "b": [1.5]}) == '{"a":"\\u003c/script>\\u003c!--","b":[1.5]}'
    with pytest.raises(ValueError, match="JSON"):
        data_json(float("nan"))


def test_sprite_sheets_hold_every_tile_where_the_script_looks_for_it(html):
    shown = page()
    trace, forward = shown.trace, shown.forward
    sheets = {image["id"]: image["src"] for image in Reader(html).all("img") if image.get("id")}
    expected = {
        "trace-x": trace.x,
        "trace-x0": trace.x0,
        "trace-eps": trace.eps,
        "forward-x": forward.x,
        "forward-x0": forward.x0[None],
        "forward-eps": forward.eps[None],
    }
    assert sheets.keys() == expected.keys()
    for name, tiles in expected.items():
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheets[name].split(",")[1]))))
        rows, n, height, width, _ = tiles.shape
        assert sheet.shape[:2] == (rows * height, n * width)
        for row in range(rows):
            for column in range(n):
                tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
                np.testing.assert_array_equal(tile, tiles[row, column])


def test_numbers_are_those_of_the_page(html):
    shown = page()
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', html, re.S)[1])
    assert numbers["trace"] == {"steps": shown.trace.steps.tolist(), "t": shown.trace.t.tolist(), "total": 1000}
    np.testing.assert_allclose(numbers["forward"]["alpha"], shown.forward.alpha, rtol=1e-5)
    np.testing.assert_allclose(numbers["loss"]["loss"], loss.curve(shown.log).loss, rtol=1e-5)


def test_marks_stand_at_the_lectures_moments():
    for steps, expected in ((1000, [700, 800, 900, 1000]), (50, [35, 40, 45, 50])):
        shown = page(steps=steps)
        ticks = [button for button in Reader(render(shown)).all("button") if button.get("class") == "tick"]
        assert [shown.trace.steps[int(tick["data-position"])] for tick in ticks] == expected


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (4, 4), (6, 3)])
def test_other_channels_one_image_and_an_empty_log(channels, shown):
    near = Neighbours(random_images(1, 3, (8, 8, shown)), np.zeros(1, int), np.zeros(1), np.empty(0))
    training, drawn = random_images(1, 0, (8, 8, channels)), random_images(1, 1, (8, 8, channels))
    text = render(page(n=1, training=training, captions=None, samples=drawn, neighbours=near, log=[]))
    galleries = [div["class"].split() for div in Reader(text).all("div") if "gallery" in div.get("class", "")]
    assert galleries == [["gallery", "pixels"] + ["alpha"] * (channels == 4)]
    assert "no curve yet" in text
    assert "no sign of copying" not in text  # nothing to compare with


def test_copies_are_reported_and_new_images_are_not():
    usual = np.linspace(1, 2, 100)
    for distance, copying in ((np.zeros(16), True), (np.full(16, 1.5), False), (np.array([0.5] + [1.5] * 15), False)):
        text = samples(random_images(16, 0), Neighbours(random_images(16, 1), np.arange(16), distance, usual))
        assert ("may be copying" in text) == copying
        assert ("no sign of copying" in text) != copying
        assert text.count("class=near") == (distance < 1).sum()


def test_options_are_flat_and_readable():
    model = {"channels": [8, 16], "attention": None}
    table = options({"lr": 2e-4, "model": model, "flip": True, "beta": list(range(99))})
    rows = re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", table)
    assert rows == [
        ("lr", "0.0002"),
        ("model.channels", "8, 16"),
        ("model.attention", "none"),
        ("flip", "yes"),
        ("beta", "99 values"),
    ]


def test_templates_take_each_value_once_and_miss_none():
    assert fill("{{a}} {{b}}", {"a": "{{b}}", "b": "x"}) == "{{b}} x"
    with pytest.raises(KeyError, match="missing"):
        fill("{{missing}}", {})


def test_small_images_keep_hard_pixels_and_transparent_ones_lie_on_a_checkerboard():
    expected = {(64, 64, 3): "pixels", (64, 65, 3): "", (8, 8, 4): "pixels alpha"}
    assert {shape: kind(np.zeros((2, *shape))) for shape in expected} == expected


def test_short_forms():
    values = {1234567: "1,234,567", 0.000123456: "0.0001235", False: "no", "text": "text", np.int64(5): "5", (): "none"}
    assert [number(value) for value in values] == list(values.values())
    assert [duration(s) for s in (41.6, 600, 9000, float("inf"))] == ["42 s", "10 min", "2.5 h", "unknown"]
