"""Arithmetic with words, and the figures that docs/words.md gives."""

import re

import numpy as np
import pytest

from pydiff.cli import main
from pydiff.text import words
from pydiff.text.glove import vectors
from pydiff.text.names import PAIRS


def test_berlin_minus_germany_plus_france_is_paris():
    answer = words.solve("berlin - germany + france")
    assert answer.words[0] == answer.expected == "paris"
    assert (answer.rank("paris"), answer.rank("paris", with_inputs=False)) == (1, 1)
    assert (np.diff(answer.cosines) <= 0).all()
    assert sorted(answer.words) == sorted(vectors().words)


@pytest.mark.parametrize(
    "expression",
    ["Berlin - Deutschland + Frankreich", "berlin–deutschland+frankreich", "frankreich + berlin − deutschland"],
)
def test_the_same_in_german(expression):
    answer, english = words.solve(expression), words.solve("berlin - germany + france")
    assert answer.words[:20] == english.words[:20]
    assert answer.translated == {"deutschland": "germany", "frankreich": "france"}
    assert answer.expected == "paris"


def test_what_fails_is_said():
    text = words.describe("berlin - germany + spain")
    assert "The expected word is madrid: number 3 without the inputs, 4 with them: this sum fails" in text
    assert "fails" not in words.describe("berlin - germany + france")


def test_cosines_against_the_definition():
    table = vectors()
    unit = {w: v / np.linalg.norm(v) for w, v in zip(table.words, table.raw.astype(np.float64), strict=True)}
    total = unit["king"] - unit["man"] + unit["woman"]
    answer = words.solve("king - man + woman")
    for word, cosine in list(zip(answer.words, answer.cosines, strict=True))[::500]:
        assert cosine == pytest.approx(total @ unit[word] / np.linalg.norm(total), abs=1e-12)
    assert answer.expected is None
    assert answer.words[0] == "king"
    assert answer.without_inputs()[0] == "queen"
    assert (answer.rank("queen"), answer.rank("queen", with_inputs=False)) == (2, 1)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "nothing to calculate"),
        ("berlin germany", "cannot be calculated"),
        ("berlin +", "cannot be calculated"),
        ("berlin - - germany", "cannot be calculated"),
        ("berlin - blorptopia", "'blorptopia' is not among the 4,724 English words"),
        ("巴黎", "is not among the 4,724 English words"),
    ],
)
def test_what_cannot_be_calculated(expression, message):
    with pytest.raises(ValueError, match=message) as error:
        words.solve(expression)
    assert "\n" not in str(error.value)


def test_a_sum_that_is_nothing_has_neighbours_all_the_same():
    assert np.isfinite(words.solve("berlin - berlin").cosines).all()


def test_the_capitals():
    found = words.capitals()
    assert found.questions == len(PAIRS) * (len(PAIRS) - 1) == 1190
    assert sum(found.right.values()) == round(found.first * 1190)
    assert found.first == pytest.approx(0.726, abs=0.0005)
    assert found.first_five == pytest.approx(0.941, abs=0.0005)
    assert found.first_with_inputs == pytest.approx(0.591, abs=0.0005)


def test_the_command(capsys):
    assert main(["words", "berlin - deutschland + frankreich", "-n", "3"]) == 0
    printed = capsys.readouterr().out
    assert "deutschland is read as germany" in printed
    assert re.search(r"^ +1  paris \(0\.91\) +paris \(0\.91\)$", printed, re.MULTILINE)
    assert "brussels (brüssel) (0.76)" in printed
    assert main(["words"]) == 0
    printed = capsys.readouterr().out
    assert "72.6% have the right capital first, 94.1% among the first five" in printed
    assert "spain 20" in printed
    assert main(["words", "berlin - nowhereville"]) == 1
    assert "'nowhereville' is not among" in capsys.readouterr().err
