"""How names of files, folders and classes are printed: as one line, without anything that a terminal would interpret;
and paths as they are typed in a shell.
"""

import shlex


def printable(path: str) -> str:
    """The name in a form that can be printed and stored anywhere: file names need not be valid text, nor one line."""
    try:
        text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte: not from a file system
        text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    """A path quoted for a shell, for commands that are shown to be copied."""
    return shlex.quote(printable(str(path)))
