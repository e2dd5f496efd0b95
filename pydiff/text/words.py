"""Arithmetic with word vectors: berlin - germany + france is close to paris (Mikolov, Yih and Zweig, NAACL 2013).

Every word is a vector of length 1; the neighbours of a sum are the words with the largest cosine similarity to it.
There are two ways to rank them: *with the inputs*, and *without* them, as papers do, where the words of the question
are not allowed as answers. The second hides that the sum is often closest to one of its own words.
"""

import re
from typing import NamedTuple

import numpy as np

from pydiff.text.glove import english, vectors
from pydiff.text.names import CAPITAL_OF, GERMAN_OF, PAIRS

_TERM = re.compile(r"\s*([+\-\u2013\u2212])?\s*([^\s+\-\u2013\u2212]+)")


class Answer(NamedTuple):
    """terms: (sign, word) in English. translated: {German: English}. words: the neighbours, nearest first. cosines:
    theirs. expected: the capital that the question asks for, or None.
    """

    terms: list[tuple[int, str]]
    translated: dict[str, str]
    words: list[str]
    cosines: np.ndarray
    expected: str | None

    def rank(self, word: str, with_inputs: bool = True) -> int:
        """The position of a word among the neighbours, from 1."""
        inputs = {term for _, term in self.terms} - {word}
        place = self.words.index(word)
        return place + 1 - (0 if with_inputs else sum(other in inputs for other in self.words[:place]))

    def without_inputs(self) -> list[str]:
        """The neighbours that are not words of the question."""
        return [word for word in self.words if word not in {term for _, term in self.terms}]


def solve(expression: str) -> Answer:
    """All words in order of their cosine similarity to a sum such as "berlin - germany + france".

    Raises ValueError for anything but such a sum, and for an unknown word.
    """
    terms, translated, place = [], {}, 0
    known = vectors().place
    text = expression.strip()
    while place < len(text):
        match = _TERM.match(text, place)
        if match is None or (terms and not match[1]):
            raise ValueError(f"{expression!r:.80} cannot be calculated; write it like 'berlin - germany + france'")
        given = match[2].lower()
        word = english(given, known)
        if word not in known:
            raise ValueError(
                f"{given!r:.40} is not among the {len(known):,} English words of the list, nor a German name"
            )
        if word != given:
            translated[given] = word
        terms.append((1 if match[1] in (None, "+") else -1, word))
        place = match.end()
    if not terms:
        raise ValueError("there is nothing to calculate; write for example 'berlin - germany + france'")
    return _solved(terms, translated)


def _solved(terms, translated) -> Answer:
    table, unit = vectors(), _unit()
    total = sum(sign * unit[table.place[word]] for sign, word in terms)
    cosines = unit @ (total / max(np.linalg.norm(total), 1e-12))
    order = np.argsort(-cosines, kind="stable")
    return Answer(terms, translated, [table.words[i] for i in order], cosines[order], _expected(terms))


def _unit() -> np.ndarray:
    raw = vectors().raw.astype(np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def _expected(terms) -> str | None:
    """The answer to capital - country + other country, in any order; None for another question."""
    plus, minus = ([word for sign, word in terms if sign == s] for s in (1, -1))
    if len(plus) == 2 and len(minus) == 1:
        for capital, country in (plus, plus[::-1]):
            if CAPITAL_OF.get(minus[0]) == capital and country in CAPITAL_OF:
                return CAPITAL_OF[country]
    return None


def describe(expression: str, count: int = 8) -> str:
    """The text that `pydiff words` prints: neighbours without and with the inputs, and the expected answer's rank."""
    answer = solve(expression)
    cosine = dict(zip(answer.words, answer.cosines, strict=True))
    lines = [f"{given} is read as {word}" for given, word in answer.translated.items()]
    if answer.translated:
        lines.append("The words are English; of German, names of countries and capitals are known, and nothing else.")
    lines.append(f"{'':5}{'without the inputs':<32}with them")
    for i, pair in enumerate(zip(answer.without_inputs()[:count], answer.words[:count], strict=True), 1):
        left, right = (f"{_shown(word, answer)} ({cosine[word]:.2f})" for word in pair)
        lines.append(f"{i:>3}  {left:<32}{right}")
    if answer.expected is not None:
        word = answer.expected
        plain, raw = answer.rank(word, with_inputs=False), answer.rank(word)
        verdict = (
            "" if plain == 1 else f": this sum fails, its first answer is {_shown(answer.without_inputs()[0], answer)}"
        )
        lines.append(
            f"The expected word is {_shown(word, answer)}: number {plain} without the inputs, {raw} with them{verdict}."
        )
    return "\n".join(lines)


def _shown(word: str, answer: Answer) -> str:
    """A word, with its German name if the question was in German."""
    german = GERMAN_OF.get(word) if answer.translated else None
    return f"{word} ({german})" if german else word


class Capitals(NamedTuple):
    """Statistics of all questions capital - country + other country: their number, and the fractions whose answer is
    first without the inputs, among the first five without them, and first with them. right: {other country: how many of
    its 34 are right}.
    """

    questions: int
    first: float
    first_five: float
    first_with_inputs: float
    right: dict[str, int]


def capitals() -> Capitals:
    """The results for the 1,190 questions between 35 countries and their capitals."""
    right, five, raw = dict.fromkeys((country for country, _ in PAIRS), 0), 0, 0
    for country, capital in PAIRS:
        for other, expected in PAIRS:
            if other != country:
                answer = _solved([(1, capital), (-1, country), (1, other)], {})
                place = answer.rank(expected, with_inputs=False)
                right[other] += place == 1
                five += place <= 5
                raw += answer.words[0] == expected
    n = len(PAIRS) * (len(PAIRS) - 1)
    return Capitals(n, sum(right.values()) / n, five / n, raw / n, right)


def describe_capitals() -> str:
    """The text that `pydiff words` prints without a question: how often the sums work, and where they do not."""
    found = capitals()
    each, asked = sorted(found.right.items(), key=lambda item: item[1]), len(PAIRS) - 1
    worst = ", ".join(f"{country} {count}" for country, count in each[:8])
    return "\n".join(
        [
            f"{found.questions:,} questions like berlin - germany + france = ?, between {len(PAIRS)} countries:",
            f"  {found.first:.1%} have the right capital first, {found.first_five:.1%} among the first five,",
            f"  {found.first_with_inputs:.1%} have it first when the words of the question may be answers, too.",
            f"Right answers of {asked} for each country asked about, the fewest: {worst}.",
            "Ask one: pydiff words 'berlin - germany + spain'. docs/words.md says what else such lists have learned.",
        ]
    )
