"""Writes emoji.npz: `python -m pydiff.data.make_emoji [--size 64] [FILE]`. Users of the 32 x 32 set do not need it.

Needs npm and `pip install resvg_py==0.5.0`. Fetches two packages with `npm pack`: @iconify-json/fluent-emoji-flat 1.2.6
(drawings, MIT, Microsoft) and emojibase-data 17.0.0 (names in English and German: MIT; Unicode-3.0, CLDR). Every
drawing whose character has a name is included, on white, in the order of the drawings' names. The same versions of the
tools write the same bytes.

The file holds images (N, S, S, 3) uint8, captions_en and captions_de (N,) UTF-8, so that any size of it can be loaded
like any other .npz, and the factorial of emoji.py: roles (80,) names; cells (80, 2, 6), the number of the image of
each role, gender and tone; held_out (80, 2, 6).
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from pathlib import Path

import numpy as np

from pydiff import random
from pydiff.data.emoji import FILE, GENDERS, TONES

PACKAGES = {  # as npm names them: SHA-256 of the archive
    "@iconify-json/fluent-emoji-flat@1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}
ICONS, ENGLISH, GERMAN = "package/icons.json", "package/en/data.json", "package/de/data.json"
CHARACTERS = "package/chars.json"
SUFFIXES = ["", *(f"-{tone}" for tone in TONES[1:])]
# Roles whose two drawings are not called man-.. and woman-..
PAIRS = {
    "adult": ("man", "woman"),
    "child": ("boy", "girl"),
    "old": ("old-man", "old-woman"),
    "prince": ("prince", "princess"),
    "claus": ("santa-claus", "mrs-claus"),
    "pregnant": ("pregnant-man", "pregnant-woman"),
}
HELD_OUT = 144  # of 960: 12 for every gender and tone, one or two for every role


def make(path: Path = FILE, size: int = 32) -> None:
    """Writes the file. Raises ValueError for a package other than those named above; also what npm itself raises."""
    archives = fetch()
    icons, characters = (json.loads(archives[name]) for name in (ICONS, CHARACTERS))
    names, captions = captioned(list(icons["icons"]), characters, *(labels(archives[n]) for n in (ENGLISH, GERMAN)))
    images = np.stack([draw(icons["icons"][name], icons, size) for name in names])
    roles, cells = factorial(names)
    utf8 = {
        f"captions_{lang}": np.array([pair[i].encode() for pair in captions]) for i, lang in enumerate(("en", "de"))
    }
    more = {"roles": np.array([role.encode() for role in roles]), "cells": cells, "held_out": held_out(len(roles))}
    np.savez_compressed(path, images=images, **utf8, **more)  # pyright: ignore[reportArgumentType]


def fetch() -> dict[str, bytes]:
    """{path inside the package: contents} of the files that are needed from the packages."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for package, expected in PACKAGES.items():
            said = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True)
            data = (Path(folder) / said.stdout.decode().split()[-1]).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise ValueError(f"{package} has another SHA-256 than the one it had when emoji.npz was made")
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for name in (ICONS, CHARACTERS, ENGLISH, GERMAN):
                    if name in archive.getnames():
                        found[name] = archive.extractfile(name).read()  # pyright: ignore[reportOptionalMemberAccess]
    return found


def labels(data: bytes) -> dict[str, str]:
    """{characters in hexadecimal: name} of an emojibase file, skin tones included."""
    entries = [entry for each in json.loads(data) for entry in (each, *each.get("skins", ()))]
    return {entry["hexcode"].replace("-FE0F", ""): entry["label"].replace("’", "'") for entry in entries}


def captioned(drawings, characters, english, german) -> tuple[list[str], list[tuple[str, str]]]:
    """(names of the drawings that have captions, their captions (English, German)).

    Wrestlers and people with bunny ears come in pairs; their drawings in a skin tone, which the file of characters
    lacks, are matched by their English names.
    """
    codes = {drawing: code.upper().replace("-FE0F", "") for code, drawing in characters.items()}
    plural = {slug(label): code for code, label in english.items()}
    names, captions = [], []
    for drawing in drawings:
        code = codes.get(drawing)
        if code not in english:
            several = re.sub(r"^(wo)?man\b", lambda m: f"{m[1] or ''}men", re.sub(r"^person\b", "people", drawing))
            code = plural.get(re.sub(r"-(light|dark|medium|medium-light|medium-dark)$", r"-\1-skin-tone", several))
        if code in english:
            names.append(drawing)
            captions.append((english[code], german[code]))
    return names, captions


def slug(label: str) -> str:
    """A name spelled as the drawings' file names are: lower case, hyphens."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", label.lower()) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def draw(icon: dict, icons: dict, size: int) -> np.ndarray:
    """Draws an SVG on white: (size, size, 3) uint8."""
    from PIL import Image
    from resvg_py import svg_to_bytes

    box = f"0 0 {icon.get('width', icons['width'])} {icon.get('height', icons['height'])}"
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {links} width="{size}" height="{size}" viewBox="{box}">{icon["body"]}</svg>'
    png = svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def factorial(names: list[str]) -> tuple[list[str], np.ndarray]:
    """The roles that are drawn as a man and as a woman in all six tones, and the images of their cells (R, 2, 6).

    Drawings that face right are left out: they are mirror images of those that face left, and would give a held-out
    image away.
    """
    place = {name: i for i, name in enumerate(names)}
    pairs = {name[4:]: (name, f"wo{name}") for name in names if name.startswith("man-")} | PAIRS
    pairs = {role: pair for role, pair in pairs.items() if not role.endswith("facing-right")}
    complete = {
        role: pair for role, pair in pairs.items() if all(name + tone in place for name in pair for tone in SUFFIXES)
    }
    cells = [[[place[name + tone] for tone in SUFFIXES] for name in pair] for pair in complete.values()]
    return [role.replace("-", " ") for role in complete], np.array(cells, np.int16)


def held_out(roles: int) -> np.ndarray:
    """(roles, 2, 6) bool: cell 5 i mod 12 of the i-th role, in a random order of the roles that is repeated."""
    order, held = random.permutation(0, random.DATA, 0, roles), np.zeros((roles, len(GENDERS) * len(TONES)), bool)
    for i in range(HELD_OUT):
        held[order[i % roles], 5 * i % 12] = True
    return held.reshape(roles, len(GENDERS), len(TONES))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws the emoji and writes them with their captions.")
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    parser.add_argument("--size", type=int, default=32)
    make(**{"path" if name == "file" else name: value for name, value in vars(parser.parse_args()).items()})
