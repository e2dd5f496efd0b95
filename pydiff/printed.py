"""How names of files, folders and classes are printed: as one line, without anything that a terminal would interpret;
and paths as they are typed in a shell.
"""

import contextlib
import difflib
import shlex
import unicodedata
from pathlib import Path


def printable(path: str) -> str:
    """The name in a form that can be printed and stored anywhere: file names need not be valid text, nor one line."""
    try:
        text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte: not from a file system
        text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expanded(path) -> Path:
    """A path as somebody has typed it, with ~ expanded. Raises ValueError if that is the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no user has this home folder; write the path in full") from error


def all_printable(values):
    """The same dicts, lists and tuples with every string in them printable, for options, which may contain paths."""
    if isinstance(values, str):
        return printable(values)
    if isinstance(values, dict):
        return {name: all_printable(value) for name, value in values.items()}
    return type(values)(map(all_printable, values)) if isinstance(values, list | tuple) else values


def first_line(error: Exception) -> str:
    """The first line of another library's exception, short and printable."""
    lines = str(error).splitlines()
    return printable(lines[0][:160]) if lines and lines[0] else type(error).__name__


def typed(path: object) -> str:
    """A path quoted for a shell, for commands that are shown to be copied: control characters and bytes that are no
    text as bash's $'..' has them, and with ./ before a name that would be taken for an option.
    """
    name = f"./{path}" if str(path).startswith("-") else str(path)
    if printable(name) == name:
        return shlex.quote(name)
    text = "".join(c if c.isprintable() and c not in "\\'" else _octal(c) for c in name)
    return f"$'{text}'"


def spelled(name: str) -> str:
    """A name as it is compared with others: accented letters as one character each, and what a terminal without UTF-8
    gives as bytes read as that.
    """
    with contextlib.suppress(UnicodeError):
        name = name.encode("utf-8", "surrogateescape").decode("utf-8")
    return unicodedata.normalize("NFC", name)


def meant(name: str, known) -> str:
    """ "; did you mean 'cat'?" if one of the known names is near, else "".

    Upper and lower case, and - and _, count as equal.
    """
    plain = {spelled(one).lower().replace("_", "-").replace(" ", "-"): one for one in reversed([*known])}
    near = difflib.get_close_matches(spelled(name).lower().replace("_", "-").replace(" ", "-"), plain, 1, 0.75)
    return f"; did you mean '{printable(plain[near[0]])}'?" if near else ""


def _octal(character):
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
