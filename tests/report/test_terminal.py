"""Images in a terminal."""

import io
import re

import numpy as np
import pytest

from pydiff.report.terminal import show
from tests.report.example import random_images

CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class OldTerminal(Terminal):
    encoding = "latin-1"


@pytest.fixture(autouse=True)
def colour_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def decode(text):
    """The pixels (H, W, 3) that half blocks stand for."""
    lines = [[list(map(int, cell)) for cell in CELL.findall(line)] for line in text.split("\n")]
    cells = np.array(lines)  # (H / 2, W, 6)
    return cells.reshape(len(lines), -1, 2, 3).swapaxes(1, 2).reshape(2 * len(lines), -1, 3)


def test_half_blocks_are_the_pixels():
    image = random_images(1, seed=0, shape=(6, 9, 3))[0]
    text = show(image, Terminal(), width=9)
    np.testing.assert_array_equal(decode(text), image)
    assert all(line.endswith("\x1b[0m") for line in text.split("\n"))


def test_grey_and_odd_height():
    image = random_images(1, seed=0, shape=(5, 4, 1))[0]
    expected = np.concatenate([image, np.zeros((1, 4, 1), np.uint8)]).repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(show(image, Terminal(), width=80)), expected)


def test_wide_images_are_reduced_by_block_means():
    image = random_images(1, seed=0, shape=(8, 10, 3))[0]
    got = decode(show(image, Terminal(), width=4))  # ceil(10 / 4) = 3: blocks of 3 x 3, narrower at the edges
    assert got.shape == (4, 4, 3)  # 3 rows and a black one
    np.testing.assert_array_equal(got[0, 0], np.rint(image[:3, :3].mean(axis=(0, 1))))
    np.testing.assert_array_equal(got[2, 3], np.rint(image[6:, 9:].mean(axis=(0, 1))))


def test_transparent_pixels_are_black():
    image = np.full((2, 1, 4), 200, np.uint8)
    image[0, 0, 3], image[1, 0, 3] = 0, 255
    np.testing.assert_array_equal(decode(show(image, Terminal(), width=9))[:, 0], [[0] * 3, [200] * 3])


@pytest.mark.parametrize(
    ("stream", "environment"),
    [(io.StringIO(), {}), (OldTerminal(), {}), (Terminal(), {"NO_COLOR": "1"}), (Terminal(), {"TERM": "dumb"})],
)
def test_ascii_where_colours_are_not_wanted(monkeypatch, stream, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    image = np.array([[0, 255, 128], [0, 255, 128]], np.uint8)[..., None]
    assert show(image, stream, width=80) == " @+"


def test_the_terminals_own_width_is_the_limit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = show(random_images(1, seed=0, shape=(64, 64, 1))[0], io.StringIO())
    assert {len(line) for line in text.split("\n")} == {16}  # 64 / ceil(64 / 20)


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="an image is a non-empty array"):
        show(np.zeros((2, 2), np.uint8), Terminal())
    with pytest.raises(ValueError, match="at least 1 column, got 0"):
        show(np.zeros((2, 2, 1), np.uint8), Terminal(), width=0)
