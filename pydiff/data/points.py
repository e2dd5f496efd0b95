"""Points: data whose samples are rows of a few numbers, from an array (N, D) or generated: the swiss roll."""

import dataclasses

import numpy as np

from pydiff import random
from pydiff.codecs import Points as PointsCodec
from pydiff.data.dataset import Dataset, plural
from pydiff.data.held import as_array

ROLL, NOISE = 20000, 0.1  # points; standard deviation of the noise around the roll's line
FIRST_TURN, LAST_TURN = 1.5 * np.pi, 4.5 * np.pi  # angles where the roll begins and ends


@dataclasses.dataclass(frozen=True, eq=False)
class Points(Dataset):
    """N points of D numbers, float32, as `images` (N, D); otherwise a Dataset."""

    noun = "point"
    mirrors = False

    @staticmethod
    def _checked(samples):
        points = as_array(samples, "points")
        if points.ndim != 2 or 0 in points.shape or points.dtype.kind not in "fiu":
            raise ValueError(f"points are {points.dtype} {points.shape}, expected real numbers (N, D), each at least 1")
        if not np.isfinite(points).all():
            raise ValueError("points hold NaN or infinite numbers; remove them")
        with np.errstate(over="ignore"):
            points = points.astype(np.float32)
        if not np.isfinite(points).all():
            raise ValueError("points hold numbers too large for float32; scale them")
        return points

    @property
    def codec(self):
        """The codec that shifts and scales the points to mean 0 and standard deviation 1."""
        return PointsCodec.of(self.images)

    def resized(self, size=None, channels=None):
        """Raises ValueError for any size or number of channels: points have neither."""
        if size is not None or channels is not None:
            raise ValueError(f"{self.name} holds points, which have no size and no channels; leave these out")
        return self

    def normalized(self, indices):
        """The points with these indices (n,), shifted and scaled: (n, D) float32."""
        return self.codec.encode(self.samples(indices))

    def kind(self):
        """The number of points and of their coordinates, as a phrase."""
        return f"{plural(len(self), 'point')} of {plural(self.shape[0], 'number')}"

    def facts(self, count=None):
        """What a run's page says about the data: {term: description}."""
        return {"Points": f"{count or len(self):,} of {plural(self.shape[0], 'number')}"}

    def hints(self):
        """Sentences of advice on training with this data."""
        return self._hints(compare="a network may repeat them")


def swiss_roll(n: int = ROLL, seed: int = 0, noise: float = NOISE) -> Points:
    """n points (n, 2) around a spiral: Sohl-Dickstein et al. 2015, figure 1.

    angle u uniform between 1.5 pi and 4.5 pi, point = u (cos u, sin u) / 4 + noise normal.
    """
    numbers = np.arange(n)
    u = FIRST_TURN + (LAST_TURN - FIRST_TURN) * random.uniform(
        random.key(seed, random.DATA, numbers, 1), (), np.float64
    )
    z = random.normal(random.key(seed, random.DATA, numbers, 2), (2,), np.float64)
    line = u[:, None] * np.stack([np.cos(u), np.sin(u)], axis=1) / 4
    return Points("swiss-roll", (line + noise * z).astype(np.float32))


def swiss_roll_density(points, noise: float = NOISE, parts: int = 20000) -> np.ndarray:
    """The density of the swiss roll at points (N, 2): (N,) float64.

    It is the mean over u of a normal density around the line: a one-dimensional integral, computed by the midpoint
    rule. With steps much smaller than the noise, the result is exact to rounding.
    """
    u = FIRST_TURN + (LAST_TURN - FIRST_TURN) * (np.arange(parts) + 0.5) / parts
    line = u[:, None] * np.stack([np.cos(u), np.sin(u)], axis=1) / 4
    density = np.empty(len(points))
    for i, point in enumerate(np.asarray(points, np.float64)):
        square = ((line - point) ** 2).sum(axis=1)
        density[i] = np.exp(-square / (2 * noise**2)).mean() / (2 * np.pi * noise**2)
    return density
