"""How data are read, defined once: keywords of `pydiff.train`, flags of `pydiff train` and of `pydiff data`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydiff.data.asked import asked

# Options -> keywords of `pydiff.data.load`, where the names differ.
CALLED = {"image_channels": "channels"}
NOT_OF_IMAGES = ("cache_gb", "frames", "frame_rate", "rate", "seconds")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options for reading data."""

    cache_gb: float = 0.0
    """GB of decoded images to keep, where they are decoded when they are needed; 0: all of them, from the start."""
    size: int | tuple[int, int] | None = None
    """Side length of the images in pixels, or height and width; left out, what the data has."""
    image_channels: int | None = None
    """Of the images: 1 for grey, 3 for RGB, 4 for RGBA; left out, what the data has."""
    layout: Literal["NHWC", "NCHW", "NHW"] | None = None
    """How the axes of an array of images are to be read; left out, by their lengths."""
    pages: Literal["first", "all"] | None = None
    """Which pages or frames of files that hold several are taken; left out, the first."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Which part of data that come in folders of that name, or in several files; left out, train."""
    bits: int | None = None
    """How many bits of grey deeper than 8 bits are used; left out, as few as hold the values."""
    limit: float | None = None
    """GiB of memory that the data may take; left out, 4."""
    rate: int | None = None
    """Of sounds: samples a second; left out, 8000."""
    seconds: float | None = None
    """Of sounds: how long each is; left out, 1, or what the named set has."""
    frames: int | None = None
    """Of clips: frames of each; left out, 8, or what the data have. A folder is then read for its clips."""
    frame_rate: float | None = None
    """Of clips: frames a second to read them at; left out, 8, or what the data have."""

    def reading(self) -> dict:
        """The keywords of `pydiff.data.load` among these options."""
        return reading(vars(self))

    def check_reading(self):
        """Raises ValueError or TypeError for values that cannot work."""
        asked(**{name: value for name, value in self.reading().items() if name not in NOT_OF_IMAGES})


def reading(options: Mapping) -> dict:
    """The keywords of `pydiff.data.load` among the named options that are not None."""
    given = {name: options.get(name) for name in ReadingOptions.__dataclass_fields__}
    return {CALLED.get(name, name): value for name, value in given.items() if value is not None}
