"""Arithmetic in a prompt: "[man firefighter] - [man] + [woman]", "0.5 [a cat] + 0.5 [a dog]"."""

import re

_TERM = re.compile(r"\s*([+\-\u2013\u2212]?)\s*(\d+(?:\.\d*)?|\.\d+)?\s*\*?\s*\[([^\[\]]*)\]\s*")


def arithmetic(prompt: str) -> list[tuple[float, str]]:
    """(factor, prompt) of every term; a prompt without brackets is one term.

    Raises ValueError for brackets that do not form a sum. Text before the first bracket makes all of them ordinary
    characters: "a cat [sketch]" is a prompt.
    """
    if not re.match(r"[\s\d.*+\-\u2013\u2212]*\[", prompt):
        return [(1.0, prompt)]
    terms, place = [], 0
    while place < len(prompt):
        match = _TERM.match(prompt, place)
        if match is None or (terms and not match[1]):
            raise ValueError(
                f"the prompt {prompt!r:.80} cannot be calculated; write it like '[man firefighter] - [man] + [woman]'"
            )
        sign, factor, text = match.groups()
        terms.append((float(factor or 1) * (1 if sign in ("", "+") else -1), text.strip()))
        place = match.end()
    return terms
