"""How names that somebody else chose, of files, folders and classes, are printed: as one line, with nothing in it that
a terminal would act upon; and paths as they have to be typed.
"""

import shlex


def printable(path: str) -> str:
    """File names need not be valid text, nor one line; this form can be printed and stored anywhere."""
    try:
        text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte: not from a file system
        text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def all_printable(values):
    """The same dicts, lists and tuples with every string in them printable: options, in which a path may stand."""
    if isinstance(values, str):
        return printable(values)
    if isinstance(values, dict):
        return {name: all_printable(value) for name, value in values.items()}
    return type(values)(map(all_printable, values)) if isinstance(values, list | tuple) else values


def first_line(error: Exception) -> str:
    """What an exception of others says, in one short line that can be printed."""
    lines = str(error).splitlines()
    return printable(lines[0][:160]) if lines and lines[0] else type(error).__name__


def typed(path: object) -> str:
    """A path as a shell takes it, in a command that is shown for copying."""
    return shlex.quote(printable(str(path)))
