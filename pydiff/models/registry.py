"""Which class a checkpoint's `_class_name` means, and networks without initial weights, for weights to be loaded.

@register("MyUNet")
class MyUNet(nn.Module): ...       self.config: its keyword arguments, as read back from JSON
"""

from collections.abc import Callable
from typing import Any

from pydiff.nn import Module, blank

MODELS: dict[str, type[Module]] = {}
PARTS: set[str] = set()  # those used beside a network: autoencoders, text encoders


def register(name: str, part: bool = False) -> Callable[[type], type]:
    """A class decorator: models whose config.json says `name` are of this class.

    part: whether it is another part of a pipeline, rather than the network that is called with (x, t).
    """

    def remember(cls):
        MODELS[name] = cls
        (PARTS.add if part else PARTS.discard)(name)
        return cls

    return remember


def name_of(model: Module) -> str:
    """The `_class_name` of a model. Raises ValueError for an unregistered class."""
    for name, cls in MODELS.items():
        if type(model) is cls:
            return name
    raise ValueError(
        f"{type(model).__name__} cannot be saved, for no class name is known; use pydiff.models.register on the class"
    )


def build(name: str, config: dict, most: int | None = None) -> Any:
    """A model of this class and configuration with zero weights, to be loaded. Raises ValueError for an
    unknown class, and for a network of more than `most` numbers, see nn.blank.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model class {name!r:.60}; known are {', '.join(MODELS)}")
    with blank(most):
        return MODELS[name](**config)


def twin(model: Module) -> Any:
    """A second model of the same class and configuration, without its weights."""
    return build(name_of(model), model.config)
