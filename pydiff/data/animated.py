"""Animated emoji with captions, read at use from the npm package @lobehub/fluent-emoji-anim-1 (MIT; Microsoft's Fluent
emoji), where it is installed. Nothing of it is in pydiff.

    npm install @lobehub/fluent-emoji-anim-1
    pydiff train animated-emoji --size 32 --images frames

A caption is the emoji's name in Unicode, with the tone in words: "waving hand sign, medium tone".
"""

import dataclasses
import unicodedata
from pathlib import Path

from pydiff.data.clip_files import load_clips
from pydiff.data.clips import Clips

PACKAGE = Path("node_modules/@lobehub/fluent-emoji-anim-1/assets")
ROOTS = (Path("/usr/local/lib"), Path("/usr/lib"))  # where npm install --global puts it
SIZE = 32
TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
SILENT = {0x200D, 0xFE0F, 0x20E3}  # what joins, colours and frames the others


def animated_emoji(
    frames: int | None = None, rate: float | None = None, size=None, channels: int | None = None
) -> Clips:
    """The clips of the package's animated emoji, in order of their codes; arguments as `load_clips`, 32 x 32 if None.

    FileNotFoundError where the package is not installed in this folder, one above it, or for all.
    """
    here = Path.cwd()
    found = [root / PACKAGE for root in (here, *here.parents, *ROOTS) if (root / PACKAGE).is_dir()]
    if not found:
        raise FileNotFoundError(
            "animated-emoji is read from an npm package that is not installed here; npm install "
            "@lobehub/fluent-emoji-anim-1"
        )
    made = load_clips(found[0], frames, rate, size or (SIZE, SIZE), channels, only=is_animated, told=caption_of)
    return dataclasses.replace(made, name="animated-emoji")


def is_animated(path: Path) -> bool:
    """Whether a WebP file holds more than one image, by its header (RFC 9649, section 2.7)."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def caption_of(path) -> str:
    """What a file such as 1f44b-1f3fd.webp shows, in English."""
    codes = [int(code, 16) for code in Path(path).stem.split("-")]
    names = [unicodedata.name(chr(code), "").lower() for code in codes if code not in SILENT and code not in TONES]
    tones = [f"{TONES[code]} tone" for code in codes if code in TONES]
    return ", ".join([*filter(None, names), *tones])
