"""Codecs of what is no image: points and clips. codec.py says what a codec is; importing this makes them known."""

from pydiff.codecs.frames import Frames
from pydiff.codecs.points import Points

__all__ = ["Frames", "Points"]
