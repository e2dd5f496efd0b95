"""Python objects that hold samples, as plain NumPy arrays, or an error that says why they cannot be."""

from typing import Any

import numpy as np


def several(samples: Any) -> np.ndarray:
    """Samples that were given to be edited, (N, ...): an array of any library, or a list of arrays or Pillow images.

    Raises TypeError for one Pillow image, a name and whatever else is no array, ValueError for images that differ in
    size.
    """
    if hasattr(samples, "convert") and hasattr(samples, "getbands"):
        raise TypeError("this is one image; give a list of images, [image]")
    if isinstance(samples, list | tuple) and samples and all(hasattr(sample, "shape") for sample in samples):
        samples = [as_array(sample) for sample in samples]
    if isinstance(samples, list | tuple) and len({np.shape(sample) for sample in samples if not _is_name(sample)}) > 1:
        raise ValueError("the images are of different sizes; resize them, or give them one by one")
    array = as_array(samples)
    if array.dtype.kind not in "iufb" or not array.ndim:
        told = f"{type(samples).__name__} {samples!r:.40}" if samples is not None else "None"
        raise TypeError(f"got {told}, expected samples (N, ...): an array, or a list of arrays or Pillow images")
    return array


def _is_name(sample) -> bool:
    return isinstance(sample, str | bytes)


def as_array(values: Any, what: str = "images") -> np.ndarray:
    """`values` as an array in this machine's byte order, without a copy if none is needed.

    Masked arrays are accepted only if no value is masked. PyTorch tensors that require a gradient are detached. what:
    the name of the values in messages. Raises ValueError or TypeError.
    """
    masked: Any = values
    if np.ma.isMaskedArray(masked) and np.ma.getmaskarray(masked).any():
        raise ValueError(f"{what} are a masked array with masked values, which are none; fill them with .filled(0)")
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        if str(getattr(values, "dtype", "")) == "torch.bfloat16":
            raise TypeError(f"{what} are bfloat16, which NumPy does not know; convert them with .float()") from error
        if "inhomogeneous" in str(error):
            raise ValueError(f"{what} are rows of different lengths; give an array, or a list of arrays") from error
        raise
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
