"""Data that can be read off a batch: every image says which one it is, of which class, and whether it is mirrored."""

from typing import NamedTuple

import numpy as np

from pydiff import nn
from pydiff.codec import to_uint8
from pydiff.data import Dataset

CLASSES = 7
SHAPE = (3, 4, 1)
NOTHING = np.full((2, 3), -1.0, np.float32)  # the row of "context" that says "nothing asked for"


def dataset(n=23, context=False):
    """n images (3, 4, 1): a row that tells left from right, a row of their number, a row of their class.

    context: whether there also is a float column that holds the number.
    """
    numbers = np.arange(n)
    labels = numbers * 5 % CLASSES  # another order than the images'
    images = np.zeros((n, *SHAPE), np.uint8)
    images[:, 0, 0], images[:, 1], images[:, 2] = 255, numbers[:, None, None], labels[:, None, None]
    more = {"columns": {"context": context_of(numbers)}, "nothing": {"context": NOTHING}} if context else {}
    return Dataset("readable", images, labels, [f"class {i}" for i in range(CLASSES)], **more)


def context_of(numbers):
    """What the column says of the images with these numbers."""
    return np.repeat(np.asarray(numbers, np.float32), 6).reshape(-1, 2, 3)


class Seen(NamedTuple):
    """What a batch of such images holds, (N,) each."""

    number: np.ndarray
    label: np.ndarray
    mirrored: np.ndarray


def read(x0):
    """The numbers, classes and sides of images (N, *SHAPE) as they come in a batch."""
    pixels = to_uint8(x0)[..., 0]
    assert ((pixels[:, 1] == pixels[:, 1, :1]) & (pixels[:, 2] == pixels[:, 2, :1])).all()
    left, right = pixels[:, 0, 0] == 255, pixels[:, 0, -1] == 255
    assert (left ^ right).all()
    return Seen(pixels[:, 1, 0].astype(int), pixels[:, 2, 0].astype(int), right)


class Recorder(nn.Module):
    """A network that takes note of what it is asked, and answers with a multiple of x."""

    def __init__(self, scale=0.5):
        self.scale, self.asked = nn.Parameter(np.array([scale], np.float32)), []

    def forward(self, x, t, **condition):
        self.asked.append((x.data.copy(), np.array(t), {name: np.array(a) for name, a in condition.items()}))
        return x * self.scale
