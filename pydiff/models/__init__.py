"""Networks, one class per file; registry.py finds them by the names that checkpoints give them."""

from pydiff.mistakes import of_models
from pydiff.models.autoencoder import Autoencoder, AutoencoderKL, Posterior
from pydiff.models.autoencoder_tiny import AutoencoderTiny
from pydiff.models.bert import BertModel
from pydiff.models.classifier import NoisyClassifier
from pydiff.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from pydiff.models.points import PointsMLP
from pydiff.models.registry import MODELS, build, name_of, register, twin
from pydiff.models.text_transformer import ReadingUNet, TextTransformer
from pydiff.models.unet import UNet2D
from pydiff.models.unet1d import UNet1D
from pydiff.models.unet3d import ClipUNet, UNet3D, widened
from pydiff.models.unet_condition import UNet2DCondition

__all__ = [
    "MODELS",
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderTiny",
    "BertModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "ClipUNet",
    "NoisyClassifier",
    "PointsMLP",
    "Posterior",
    "ReadingUNet",
    "TextTransformer",
    "UNet1D",
    "UNet2D",
    "UNet2DCondition",
    "UNet3D",
    "build",
    "name_of",
    "register",
    "twin",
    "widened",
]


def __getattr__(name):
    of_models(name, MODELS, __all__)
