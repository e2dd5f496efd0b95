"""Codecs of samples that are not images: points and clips. codec.py has the interface; importing this
registers them.
"""

from pydiff.codecs.frames import Frames
from pydiff.codecs.points import Points

__all__ = ["Frames", "Points"]
