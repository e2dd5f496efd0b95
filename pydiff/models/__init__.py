"""Networks, a class a file; registry.py knows them by the names that checkpoints give them."""

from pydiff.models.registry import MODELS, build, name_of, register, twin
from pydiff.models.unet import UNet2D
from pydiff.models.unet1d import UNet1D
from pydiff.models.unet_condition import UNet2DCondition

__all__ = ["MODELS", "UNet1D", "UNet2D", "UNet2DCondition", "build", "name_of", "register", "twin"]
