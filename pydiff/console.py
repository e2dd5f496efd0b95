"""What the commands print, whatever the terminal or pipe at the other end, and what was typed before tyro reads it."""

import contextlib
import os
import shutil
import sys
import warnings

from pydiff.printed import expanded, printable


def say(*lines, to="stdout", image=False):
    """Prints lines. If the terminal or pipe is gone, the output is lost, but the command goes on.

    image: whether the lines are an image, whose control characters are intended; in all others, which may contain names
    of files, control characters are escaped.
    """
    stream = getattr(sys, to)
    if stream is None:
        return
    text = "\n".join(map(str, lines) if image else map(tame, lines))
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:  # the terminal's encoding does not have a character
            print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except (OSError, ValueError):
        setattr(sys, to, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process


def name_of(path):
    """A path as it is printed: on one line, whatever its name."""
    return printable(str(path))


def complaint(error):
    """What is printed of an error: one line. The system's errors without their numbers."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{name_of(os.fsdecode(error.filename))}: {error.strerror}"
    if isinstance(error, FileNotFoundError) and not current_folder():
        return "the current folder was removed; change into another"
    return printable(str(error)) or "there is not enough memory"


def current_folder() -> str:
    """Its path, or "" if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def tame(lines):
    """Text with all control characters escaped, except ends of lines."""
    return "\n".join(map(printable, str(lines).split("\n")))


def flags(arguments) -> frozenset:
    """Names of the options that have a flag among these arguments."""
    names = (a[2:].partition("=")[0].replace("-", "_") for a in arguments if a.startswith("--"))
    return frozenset(form for name in names for form in (name, name.removeprefix("no_")))


def prompts_in(path):
    """The non-empty lines of a file, or of the standard input for "-". Raises ValueError if there are none."""
    if str(path) == "-" and sys.stdin is None:
        raise ValueError("the standard input is closed; give a file with a prompt a line")
    try:
        text = sys.stdin.read() if str(path) == "-" else expanded(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save it as that") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a file with a prompt a line") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return lines


MAY_BE_EMPTY = ("--prompt", "--negative-prompt", "--sentence")


def refuse_empty(arguments):
    """Raises ValueError for an argument without a character, as a variable of the shell that is not set leaves it: for
    a path it would mean the current folder.
    """
    flag = before = ""  # the last flag, which may have several values, and the last argument
    for argument in arguments:
        named = len(argument) > 1 and argument[0] == "-" and not argument[1].isdigit()
        name, given, value = argument.partition("=") if named else (flag, "=", argument)
        if given and not value and name not in MAY_BE_EMPTY:
            what = f"the argument after {before}" if before else "the command"
            what = name if named or name == before != "" else what
            raise ValueError(f"{what} is empty; give it a value, or leave it out")
        flag, before = name, argument


@contextlib.contextmanager
def warnings_in_sentences(always):
    """Inside, a warning of ours is a sentence, without the line of Python that Python shows with it; those of the
    category `always` also when they were shown before.
    """
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, *where, **more):
            if category.__module__.partition(".")[0] == "pydiff":
                say(f"pydiff: {message}", to="stderr")
            else:
                shown(message, category, *where, **more)

        warnings.simplefilter("always", always)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def wide_enough(least=20):
    """Inside, tyro sees a terminal of at least this many columns: with five or fewer it would never find a place to
    break a line.
    """
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < least:
        os.environ["COLUMNS"] = str(least)
    try:
        yield
    finally:
        if before is not None:
            os.environ["COLUMNS"] = before
        else:
            os.environ.pop("COLUMNS", None)
