"""Clips as data: arrays (N, F, H, W, C). clip_files.py reads them from films and folders, moving.py makes some."""

import dataclasses

import numpy as np

from pydiff.codecs import Frames
from pydiff.data.dataset import Dataset, colours, plural
from pydiff.data.held import as_array
from pydiff.data.pixels import resize, to_channels

RATE = 8.0  # frames per second, by default


def check_frames(frames, rate):
    """Raises ValueError for a number of frames, or of frames per second, that no clip can have; None is allowed."""
    whole = isinstance(frames, int | np.integer) and not isinstance(frames, bool)
    if frames is not None and not (whole and frames >= 1):
        raise ValueError(f"frames is {frames!r}, expected a whole number of at least 1, for example 8")
    number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if rate is not None and not (number and 1e-3 <= rate < 1e4):
        raise ValueError(f"frame_rate is {rate!r}, expected frames a second from 0.001 up to, but not, 10000")


@dataclasses.dataclass(frozen=True, eq=False)
class Clips(Dataset):
    """N clips of F frames, uint8 or float32 in [-1, 1], as `images` (N, F, H, W, C); otherwise a Dataset.

    rate: frames per second.
    """

    rate: float = RATE

    noun = "clip"

    @staticmethod
    def _checked(samples):
        clips = as_array(samples, "clips")
        if clips.ndim != 5 or 0 in clips.shape:
            raise ValueError(f"clips have shape {clips.shape}, expected (N, F, H, W, C), each at least 1")
        if clips.dtype != np.uint8 and clips.dtype != np.float32:
            raise ValueError(f"clips are {clips.dtype}, expected uint8, or float32 in [-1, 1]")
        if clips.dtype == np.float32 and not (clips.min() >= -1 and clips.max() <= 1):
            raise ValueError(f"clips run from {clips.min()} to {clips.max()}, expected [-1, 1]")
        return clips

    @property
    def codec(self):
        """The codec that diffuses the pixels of the frames."""
        return Frames(self.shape, self.rate)

    def resized(self, size=None, channels=None):
        """The same clips at (height, width) `size` and with 1, 3 or 4 channels; None keeps what they have."""
        clips = self.images if channels is None else to_channels(self.images, channels)
        if size is not None and clips.shape[2:4] != tuple(size):
            n, frames = clips.shape[:2]
            flat = resize(clips.reshape(n * frames, *clips.shape[2:]), size)
            clips = flat.reshape(n, frames, *flat.shape[1:])
        return self if clips is self.images else dataclasses.replace(self, images=clips)

    def kind(self):
        """The number of clips, their length and their size, as a phrase."""
        frames, height, width, channels = self.shape
        many = plural(len(self), "clip")
        return f"{many} of {plural(frames, 'frame')} at {self.rate:g} a second, {height} x {width}, {colours(channels)}"

    def facts(self, count=None):
        """What a run's page says about the data: {term: description}."""
        frames, height, width, channels = self.shape
        size = f"{height} × {width}, {colours(channels)}"
        return {"Clips": f"{count or len(self):,}, {frames} frames at {self.rate:g} a second, {size}"}

    def hints(self):
        """Sentences of advice on training with this data."""
        return self._hints(compare="compare samples with the nearest clips")

    def stills(self) -> Dataset:
        """Every frame as an image, with the class and captions of its clip: a Dataset of N F images."""
        frames = self.shape[0]
        rows = np.repeat(np.arange(len(self)), frames)
        labels = None if self.labels is None else self.labels[rows]
        columns = {name: column[rows] for name, column in self.columns.items()}
        words = {name: getattr(self, name) for name in ("captions", "languages")}
        words = {name: None if w is None else tuple(w[i] for i in rows) for name, w in words.items()}
        images = self.images.reshape(-1, *self.shape[1:])
        more = {"classes": self.classes, "columns": columns, "nothing": self.nothing, **words}
        return Dataset(f"{self.name}, frame by frame", images, labels, **more)
