"""Networks."""

from pydiff.models.unet import UNet2D

__all__ = ["UNet2D"]
