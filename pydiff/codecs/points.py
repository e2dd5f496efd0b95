"""Points: rows of numbers, shifted and scaled so that the data have mean 0 and overall standard deviation 1."""

import numpy as np

from pydiff.arrays import to_host
from pydiff.codec import Codec, register

SIDE = 96  # pixels of the image of a point
REACH = 3.5  # standard deviations from the middle to its edge


@register
class Points(Codec):
    """Points (N, D), float32. mean: (D,); scale: one number for all axes, so that angles are preserved. reach: the
    largest magnitude in the x of the data, at which samplers clip x0-hat, or None; x0-hat predicted from pure noise is
    otherwise wild.
    """

    kind, noun = "points", "point"

    def __init__(self, dim, mean=None, scale=1.0, reach=None):
        self.mean = np.zeros(dim, np.float32) if mean is None else np.asarray(mean, np.float32)
        self.scale = float(scale)
        self.limits = None if reach is None else (-float(reach), float(reach))
        if self.mean.shape != (dim,) or not self.scale > 0:
            raise ValueError(f"points of {dim} numbers need a mean ({dim},) and a scale above 0, got {mean}, {scale}")

    @classmethod
    def of(cls, points):
        """The codec that brings these points (N, D) to mean 0 and mean square 1 per coordinate."""
        points = np.asarray(points, np.float64)
        mean = points.mean(axis=0).astype(np.float32)
        scale = float(np.float32(np.sqrt(((points - mean) ** 2).mean())))
        scale = scale if scale > 0 else 1.0
        reach = float(np.float32(np.abs(points - mean).max() / scale))
        return cls(points.shape[1], mean, scale, reach if reach > 0 else None)

    @property
    def bits(self):
        """(log2 of the scale, False): points are x times `scale`, so their density is smaller by that factor per
        coordinate.
        """
        return float(np.log2(self.scale)), False

    @property
    def shape(self):
        """The shape of one point, (D,)."""
        return self.mean.shape

    def encode(self, samples):
        """Turns finite numbers (N, D) into float32, shifted by the mean and divided by the scale."""
        samples = np.asarray(samples)
        if samples.ndim != 2 or samples.shape[1:] != self.shape or samples.dtype.kind not in "fiu":
            raise ValueError(f"points are {samples.dtype} {samples.shape}, expected numbers (N, {self.shape[0]})")
        if not np.isfinite(samples).all():
            raise ValueError("points hold NaN or infinite numbers; remove them")
        return ((samples - self.mean) / np.float32(self.scale)).astype(np.float32)

    def decode(self, x):
        """x -> (N, D) float32. Raises ValueError for NaN and infinity."""
        x = to_host(x)
        if not np.isfinite(x).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(x))} of {x.size} numbers are NaN or infinite")
        return (x * np.float32(self.scale) + self.mean).astype(np.float32)

    def show(self, samples):
        """Every point as an image with a dot at its first two coordinates: uint8 (N, SIDE, SIDE, 1), on white."""
        return self._dots((np.asarray(samples) - self.mean) / self.scale)

    def show_noise(self, eps):
        """Draws noise (N, D) as `show` draws points."""
        return self._dots(to_host(eps))

    mask_forms = "(D,) or (N, D)"

    def mask_axes(self, mask):
        """A mask of the same coordinates for all points (D,), or for each point separately (N, D), with all axes."""
        return mask[None] if mask.ndim == 1 else mask

    def _dots(self, x):
        images = np.full((len(x), SIDE, SIDE, 1), 255, np.uint8)
        row, column = self._place(x)
        for image, i, j in zip(images, row, column, strict=True):
            image[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 0
        return images

    def _place(self, x):
        """Rows and columns of the pixels of points x, clipped to the image."""
        first, second = x[:, 0], x[:, 1] if x.shape[1] > 1 else np.zeros(len(x), x.dtype)
        column, row = ((a / REACH + 1) / 2 * (SIDE - 1) for a in (first, -second))
        return (np.clip(np.rint(a), 0, SIDE - 1).astype(int) for a in (row, column))

    def to_config(self):
        """A dict for JSON; `from_config` turns it into an equal codec."""
        reach = None if self.limits is None else self.limits[1]
        return {"kind": self.kind, "mean": self.mean.tolist(), "scale": self.scale, "reach": reach}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(len(config["mean"]), config["mean"], config["scale"], config.get("reach"))
