"""Grids of prompts: patterns, and what captions have in common."""

import pytest

from pydiff.data import load
from pydiff.report.attributes import Attributes, found, parse


def test_a_pattern_is_rows_and_columns():
    grid = parse("a {red, green} {heart,book,} of mine", ["a red heart of mine", "a green dog"])
    assert grid == Attributes("a {} {} of mine", ["red", "green"], ["heart", "book", ""], {"a red heart of mine"})
    assert grid.prompts()[:3] == ["a red heart of mine", "a red book of mine", "a red  of mine"]
    assert parse("{a}{b,c}").known is None


@pytest.mark.parametrize("pattern", ["a heart", "{a,b}", "{a} {b} {c}", "{a,{b}} {c}", "{a} {b} }"])
def test_what_is_no_pattern_is_said(pattern):
    with pytest.raises(ValueError, match="a grid has two choices in braces, like") as error:
        parse(pattern)
    assert "\n" not in str(error.value)


def test_what_captions_have_in_common_is_found():
    colours, things = ["blue", "green", "red"], ["book", "heart"]
    captions = [f"a {c} {t}" for c in colours for t in things if (c, t) != ("red", "book")] + ["a dog", "the sun"]
    grid = found(captions)
    assert (grid.pattern, grid.rows, grid.columns) == ("a {} {}", colours, things)
    assert set(grid.prompts()) - grid.known == {"a red book"}
    for few in ([], ["a cat"], ["a cat sat", "a dog sat"], ["{} {} {}"] * 9):
        assert found(few) is None


def test_of_the_emoji_it_is_tones():
    grid = found([row[0] for row in load("emoji").captions])
    assert len(grid.rows) * len(grid.columns) >= 20
    assert len(grid.known) == len(grid.prompts())
