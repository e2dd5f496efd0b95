"""Networks, a class a file; registry.py knows them by the names that checkpoints give them."""

from pydiff.models.registry import MODELS, build, name_of, register, twin
from pydiff.models.unet import UNet2D

__all__ = ["MODELS", "UNet2D", "build", "name_of", "register", "twin"]
