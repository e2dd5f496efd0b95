"""Networks, a class a file; registry.py knows them by the names that checkpoints give them."""

from pydiff.models.points import PointsMLP
from pydiff.models.registry import MODELS, build, name_of, register, twin
from pydiff.models.unet import UNet2D
from pydiff.models.unet3d import ClipUNet, UNet3D, widened
from pydiff.models.unet_condition import UNet2DCondition

__all__ = [
    "MODELS",
    "ClipUNet",
    "PointsMLP",
    "UNet2D",
    "UNet2DCondition",
    "UNet3D",
    "build",
    "name_of",
    "register",
    "twin",
    "widened",
]
