"""What is said where somebody gives something else than is expected: arrays of other libraries, lists for arrays,
arguments that a function does not have, attributes that PyTorch's and NumPy's classes have.
"""

import functools
import inspect
import sys
from typing import Any

import numpy as np

from pydiff.arrays import array_module
from pydiff.printed import meant


def plain(a):
    """An array of NumPy or CuPy, a number or a list as it is; an array of another library as NumPy's.

    Raises TypeError for masked arrays, whose sums leave elements out, but whose gradients would not, and for
    np.matrix, whose * is a matrix product.
    """
    if isinstance(a, np.ndarray):
        if hasattr(a, "mask"):
            raise TypeError(f"expected a plain array, got a {type(a).__name__}; .filled(value) makes one")
        if isinstance(a, np.matrix):
            raise TypeError("expected a plain array, got a matrix, which multiplies otherwise; np.asarray(a) makes one")
    elif hasattr(a, "dtype") and not isinstance(a, np.generic) and array_module(a) is np:
        return np.asarray(a)
    return a


def array_of(values):
    """Numbers, or lists of them, as an array. Raises ValueError for lists whose rows have different lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"got a {type(values).__name__} with rows of different lengths, expected one shape") from error


def described(value):
    """What somebody has put in the place of an array."""
    shape = getattr(value, "shape", None)
    if shape == () and value.dtype.hasobject:
        return f"{value.item()!r}"[:50]
    return f"{value!r}"[:50] if shape is None else f"{type(value).__name__} of shape {shape}"


def refuse_call(function, name, arguments, options, error):
    """Raises TypeError with the reason if a call failed because the function's signature is another, or because it got
    a list, a number or a text where it needs an array. Otherwise does nothing.
    """
    try:
        inspect.signature(function).bind(None, *arguments, **options)
    except TypeError:
        reason = str(error).replace(f"{function.__qualname__}()", name)
        raise TypeError(f"{reason}{'; write axis=' * ('dim' in options)}") from error
    kind = next((type(a).__name__ for a in arguments if isinstance(a, list | tuple | str | int | float)), None)
    if kind is not None and isinstance(error, AttributeError):
        raise TypeError(f"{name} needs arrays or Tensors, got {kind}; np.array(..) makes one") from error


def refuse_lists(name, arguments, error):
    """Raises TypeError if an attribute was missed because a list, a number, a text or None was given in the place of an
    array or Tensor. Otherwise does nothing.
    """
    if error.name is None:
        return  # raised by hand: it does not say on what
    if isinstance(error.obj, list | tuple | str | int | float | None) and any(a is error.obj for a in arguments):
        made = "" if error.obj is None else "; np.array(.., np.float32) makes one"
        raise TypeError(f"{name} takes arrays or Tensors, got {described(error.obj)}{made}") from error


def callers_level() -> int:
    """The stacklevel with which the function that asks for it warns about the line that called pydiff."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("pydiff", "contextlib"):
        level, frame = level + 1, frame.f_back
    return level


def at_least_one(name, value):
    """A size as a Python int. Raises ValueError unless it is a whole number of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r:.60}")
    return int(value)


def is_number(value) -> bool:
    """Whether this is one real number, of Python or NumPy, neither a bool nor NaN: whether it can be compared."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and value == value


# What options, and arguments of layers, are called in other libraries -> what they are called here.
_ELSEWHERE = {
    **dict.fromkeys(("num_inference_steps", "num_steps", "sampling_timesteps", "max_train_steps"), "steps"),
    **dict.fromkeys(("train_num_steps", "num_train_steps", "epochs", "num_epochs", "num_train_epochs"), "steps"),
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cond_scale"), "guidance"),
    **dict.fromkeys(("generator", "random_state", "manual_seed"), "seed"),
    **dict.fromkeys(("num_images", "num_samples", "num_images_per_prompt", "n_samples"), "n"),
    **dict.fromkeys(("learning_rate", "train_lr"), "lr"),
    **dict.fromkeys(("train_batch_size", "bs"), "batch_size"),
    **dict.fromkeys(("image_size", "resolution"), "size"),
    **dict.fromkeys(("num_train_timesteps", "num_timesteps", "n_timesteps"), "timesteps"),
    **dict.fromkeys(("output_dir", "results_folder", "save_dir"), "out"),
    **dict.fromkeys(("prediction_type", "objective"), "prediction"),
    **dict.fromkeys(("class_labels", "classes", "y"), "labels"),
    **dict.fromkeys(("random_flip", "horizontal_flip"), "flip"),
    "beta_schedule": "schedule",
    "block_out_channels": "channels",
    "layers_per_block": "layers",
    "ema_decay": "ema",
    "gradient_accumulation_steps": "accumulate",
    "mixed_precision": "precision",
    "save_every": "checkpoint_every",
    "mask_image": "mask",
    "image": "images",
    "prompt": "prompts",
    "callback": "watch",
    **dict.fromkeys(("in_features", "in_channels", "in_dim", "dim_in"), "cin"),
    **dict.fromkeys(("out_features", "out_channels", "out_dim", "dim_out"), "cout"),
    **dict.fromkeys(("num_channels", "normalized_shape"), "channels"),
    **dict.fromkeys(("embedding_dim", "embed_dim"), "dim"),
    "kernel_size": "size",
    "num_groups": "groups",
    "num_embeddings": "count",
    "betas": "beta1",
}


def near_option(name, known) -> str:
    """ "; it is called 'steps' here" or "; did you mean 'steps'?" if an unknown option means a known one, else ""."""
    other = _ELSEWHERE.get(name)
    return f"; it is called {other!r} here" if other in known else meant(name, known)


def refuse_unknown(given, known, beside=()):
    """Raises TypeError for the first of these keywords that is not a known one, and says which one it may mean.

    beside: names that are taken elsewhere, which it may mean as well.
    """
    for name in given:
        if name not in known:
            listed = f"; there are {', '.join(known)}" if len(known) <= 24 else ""
            raise TypeError(f"there is no option {name!r}{near_option(name, [*known, *beside]) or listed}")


def by_name(function):
    """The same function, whose unknown keywords are refused as `refuse_unknown` does. Also a decorator."""
    known = keywords(function)

    @functools.wraps(function)
    def called(*arguments, **options):
        refuse_unknown(options, known)
        return function(*arguments, **options)

    return called


@functools.cache
def _keywords_of(constructor):
    kinds = [p.kind for p in inspect.signature(constructor).parameters.values()]
    return None if inspect.Parameter.VAR_KEYWORD in kinds else keywords(constructor)


def refuse_misnamed(cls, options):
    """Raises TypeError, as `refuse_unknown` does, for a keyword that a class's constructor does not have."""
    known = _keywords_of(cls.__init__)
    if known is not None:
        refuse_unknown(options, known)


def keywords(*functions, apart=()) -> list[str]:
    """Names of the arguments of these functions that can be given by name, without those in `apart`."""
    found = [p for function in functions for p in inspect.signature(function).parameters.values()]
    names = dict.fromkeys(p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return [name for name in names if name not in ("self", *apart)]


def made_fit(images, shape) -> str:
    """What makes these images uint8 (N, *shape): half a sentence."""
    if images.shape == shape:
        return "images[None] is an array of one image"
    if not images.size:
        return "give at least one"
    *size, channels = shape
    if channels == 1 and images.shape[1:] == tuple(size):
        return "images[..., None] has the axis of channels"
    if images.shape[1:] == (channels, *size) and len(size) == 2:
        return "images.transpose(0, 2, 3, 1) has the channels last"
    if images.shape[1:] != shape and images.shape[1:-1] == tuple(size):
        other = images.shape[-1]
        return f"they have {other} channel{'s' * (other != 1)} where the model's have {channels}; convert them"
    if images.shape[1:] != shape:
        return "resize them first"
    if images.dtype == bool:
        return "images * np.uint8(255) are black and white"
    low, high = images.min(), images.max()
    if images.dtype.kind == "f" and -1 <= low < 0 and high <= 1:
        return "pydiff.data.to_uint8(images) makes them of floats from -1 to 1"
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return "np.rint(images * 255).astype(np.uint8) makes them of floats from 0 to 1"
    if low >= 0 and high <= 255:
        return "images.astype(np.uint8) makes them of numbers from 0 to 255"
    return f"bring them from {low:g} .. {high:g} to 0 .. 255 first"


# What PyTorch's users look for in a Module -> what it is here.
_OF_MODULE = {
    **dict.fromkeys(("train", "eval"), "; there is no mode, dropout works inside of pydiff.nn.training(..) alone"),
    **dict.fromkeys(("cuda", "cpu"), '; write .to("cuda") or .to("cpu")'),
    "half": '; write .astype("float16")',
    "float": '; write .astype("float32")',
    "double": '; write .astype("float64")',
    "modules": "; write named_modules()",
}
_OF_TENSOR = {
    **dict.fromkeys(("mul", "sub", "div", "mm", "bmm", "floor_divide", "neg"), "; write the operator, x * y or x @ y"),
    **dict.fromkeys(("chunk", "split", "unbind", "narrow", "select"), "; write x[first:last], which is an operation"),
    **dict.fromkeys(
        ("repeat", "tile", "expand_as"), "; write x.expand(..) and x.reshape(..), or ops.concatenate(x, x)"
    ),
    **dict.fromkeys(("is_leaf", "grad_fn"), "; x.maker is the Function that made it, None for a leaf"),
    "retain_grad": "; gradients are kept for leaves alone, those that were made with requires_grad=True",
    "zero_grad": "; write x.grad = None, or optimiser.zero_grad()",
    "contiguous": "; leave it out, operations take arrays in any order",
    "type": "; write x.astype(..), x.dtype is what it has",
    "t": "; write x.T",
    **dict.fromkeys(
        ("to", "cpu", "cuda", "device"),
        "; it lies where its array x.data does, model.to(device) moves a model, x.numpy() is the values here",
    ),
    "requires_grad_": "; write Tensor(x.data, requires_grad=True)",
    "float": "; write x.astype('float32')",
    "double": "; write x.astype('float64')",
    "half": "; write x.astype('float16')",
    "long": "; write x.astype('int64')",
    "int": "; write x.astype('int32')",
    "bool": "; write x.astype('bool')",
}


# What other libraries call an operation -> what it is here.
_OF_OPS = {
    **dict.fromkeys(("cat", "concat", "hstack", "vstack"), "concatenate(a, b, axis=-1)"),
    **dict.fromkeys(("stack",), "concatenate(a[None], b[None], axis=0)"),
    **dict.fromkeys(("mse_loss", "mse"), "mean_squared_error"),
    **dict.fromkeys(("sum", "max", "min", "mul", "sub", "div", "abs", "pow", "neg"),
                    "a method or an operator of Tensor, x.sum() or x * y, or summation, maximum, multiply .."),
    **dict.fromkeys(("mm", "bmm", "dot", "einsum"), "matmul"),
    **dict.fromkeys(("dense", "fc"), "linear"),
    **dict.fromkeys(("interpolate", "resize"), "resample"),
    "swish": "silu",
    "scaled_dot_product_attention": "attention",
}  # fmt: skip


# What PyTorch has in torch.nn -> what it is here.
_OF_NN = {
    **dict.fromkeys(("Sequential", "ModuleList", "ModuleDict"), "; assign modules, or a list of them, to a Module"),
    **dict.fromkeys(("MSELoss", "L1Loss"), "; pydiff.ops.mean_squared_error(x, y) is an operation"),
    "CrossEntropyLoss": "; pydiff.ops.cross_entropy(logits, labels) is an operation",
    "BatchNorm2d": "; GroupNorm(groups, channels) needs no batch",
    "functional": "; operations are in pydiff.ops",
    **{name: f"; pydiff.ops.{name.lower()}(x) is an operation" for name in ("ReLU", "SiLU", "GELU", "Sigmoid", "Tanh")},
    **dict.fromkeys(("Upsample", "MaxPool2d", "AvgPool2d", "Softmax", "Flatten"), "; operations are in pydiff.ops"),
}
_OF_OPTIMIZER = {
    "param_groups": "; the learning rate is given to step(step, lr), for all parameters alike",
    **dict.fromkeys(("state_dict", "load_state_dict"), "; its state is the arrays p, m, v and ema"),
}


def of_nn(name, classes):
    """Raises AttributeError for a class that pydiff.nn does not have, and says what there is in its place."""
    raise AttributeError(f"module 'pydiff.nn' has no attribute {name!r}{_OF_NN.get(name) or meant(name, classes)}")


def of_models(name, models, classes):
    """Raises AttributeError for a network that pydiff.models does not have, and says which one is it here.

    models: the classes by the names that checkpoints give them.
    """
    told = f"; here it is {models[name].__name__}" if name in models else meant(name, classes)
    raise AttributeError(f"module 'pydiff.models' has no attribute {name!r}{told}")


def of_optimizer(optimizer, name):
    """Raises AttributeError for an attribute that an optimiser does not have, and says what there is in its place."""
    told = _OF_OPTIMIZER.get(name, "")
    raise AttributeError(f"{type(optimizer).__name__!r} object has no attribute {name!r}{told}")


def of_ops(name, operations):
    """Raises AttributeError for an operation that pydiff.ops does not have, and says what to write in its place."""
    told = f"; write {_OF_OPS[name]}" if name in _OF_OPS else meant(name, operations)
    raise AttributeError(f"module 'pydiff.ops' has no attribute {name!r}{told}")


def of_module(module, name):
    """Raises AttributeError for an attribute that a Module does not have, and says what to write in its place."""
    raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}{_OF_MODULE.get(name, '')}")


def of_tensor(tensor, name, operations):
    """Raises AttributeError for an attribute that a Tensor does not have, and says what to write in its place.

    operations: names of those in pydiff.ops.
    """
    if name in ("shape", "dtype", "ndim", "size"):
        said = f"the .data of this Tensor was replaced by {described(tensor.data)}, which is no array"
        raise AttributeError(said)
    instead = _OF_TENSOR.get(name, "")
    if not instead and name in operations:
        instead = f"; write pydiff.ops.{name}(x, ..)"
    elif not instead and not name.startswith("_"):
        if name.endswith("_"):
            instead = "; no Tensor is changed in place, write x = f(x) or change x.data"
        elif hasattr(np.ndarray, name):
            instead = f"; x.data.{name} is that of the values alone, without a gradient"
    raise AttributeError(f"{type(tensor).__name__!r} object has no attribute {name!r}{instead}")


class Places:
    """Where the Parameters of a model are, to notice that one was replaced by another."""

    def __init__(self, model):
        self.found = []  # (name, module, attribute, number in that list or None, Parameter)
        for prefix, module in model.named_modules():
            for name, child in module.children():
                attribute, _, number = name.partition(".")
                if not hasattr(child, "named_modules"):
                    full = f"{prefix}.{name}" if prefix else name
                    self.found.append((full, module, attribute, int(number) if number else None, child))

    def check(self):
        """Raises ValueError if the model has another Parameter in the place of one."""
        for name, module, attribute, number, p in self.found:
            now: Any = getattr(module, attribute, None)
            if (now if number is None else now[number]) is not p:
                raise ValueError(f"{name} is another Parameter now; assign to {name}.data, or make a new optimiser")
