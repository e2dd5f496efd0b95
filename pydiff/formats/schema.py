"""Rules for the options in a configuration of unknown origin, applied before anything is built.


rules = {"layers_per_block": whole(1, 256), "act_fn": one_of("silu", "gelu"), "norm_eps": number(0, 1)}
config, unknown = checked(config, rules, "unet/config.json")
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydiff.formats.safetensors import CheckpointError

# What is raised where values of a wrong type or size reach code that is written for right ones.
UNFIT = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


class Rule(NamedTuple):
    """allows: whether a value is valid. expected: which values are, in words."""

    allows: Callable[[object], bool]
    expected: str


def whole(least: int, most: int) -> Rule:
    """Integers from least to most; a float with an integer value is one, and True is not."""

    def allows(value):
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        return is_whole and least <= value <= most

    return Rule(allows, f"a whole number from {least} to {most}")


def number(least: float, most: float) -> Rule:
    """Numbers from least to most; infinities are allowed if the bound is infinite."""

    def allows(value):
        return type(value) in (int, float) and not math.isnan(value) and least <= value <= most

    return Rule(allows, f"a number from {least} to {most}")


def one_of(*values: str | None) -> Rule:
    """A rule that allows only these strings."""
    return Rule(lambda value: (value is None or type(value) is str) and value in values, ", ".join(map(str, values)))


TRUTH = Rule(lambda value: type(value) is bool, "true or false")


def text(most: int, words: str = "text") -> Rule:
    """A rule that allows strings of at most `most` characters."""
    return Rule(lambda value: type(value) is str and len(value) <= most, words)


TEXT = text(200, "a short text")
ANYTHING = Rule(lambda _: True, "anything")


def listed(rule: Rule, least: int, most: int) -> Rule:
    """A rule that allows lists of `least` to `most` values, each satisfying `rule`."""

    def allows(value):
        return type(value) in (list, tuple) and least <= len(value) <= most and all(map(rule.allows, value))

    return Rule(allows, f"a list of {least} to {most}, each {rule.expected}")


def table(rule: Rule) -> Rule:
    """A rule that allows objects whose values satisfy `rule`."""
    return Rule(
        lambda value: type(value) is dict and all(map(rule.allows, value.values())),
        f"an object, in which everything is {rule.expected}",
    )


def either(*rules: Rule) -> Rule:
    """A rule that allows what any of these rules allows."""
    return Rule(lambda value: any(r.allows(value) for r in rules), " or ".join(r.expected for r in rules))


NULL = Rule(lambda value: value is None, "null")


def checked(config: Mapping, rules: Mapping[str, Rule], source: object) -> tuple[dict, list[str]]:
    """(the options that have a rule, the names of the others). Names with a leading underscore are diffusers'
    bookkeeping.

    Raises CheckpointError for a value that its rule does not allow.
    """
    known, unknown = {}, []
    for name, value in config.items():
        if name.startswith("_"):
            continue
        if name not in rules:
            unknown.append(name)
        elif not rules[name].allows(value):
            raise CheckpointError(
                f"{source} has {name} = {_shown(value)}, expected {rules[name].expected}: correct it or use another."
            )
        else:
            known[name] = _tidy(value)
    return known, sorted(unknown)


def _shown(value) -> str:
    try:
        return ascii(value)[:80]
    except (ValueError, RecursionError):  # an integer of 5000 digits
        return "something too long to be shown"


def _tidy(value):
    """A value as JSON would give it: tuples become lists; floats stay floats, even with an integer value."""
    return list(value) if isinstance(value, tuple) else value
