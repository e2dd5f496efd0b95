"""Networks, a class a file; registry.py knows them by the names that checkpoints give them."""

from pydiff.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from pydiff.models.registry import MODELS, build, name_of, register, twin
from pydiff.models.unet import UNet2D
from pydiff.models.unet_condition import UNet2DCondition

__all__ = [
    "MODELS",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "UNet2D",
    "UNet2DCondition",
    "build",
    "name_of",
    "register",
    "twin",
]
