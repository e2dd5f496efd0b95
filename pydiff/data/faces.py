"""A hundred faces, 25 x 25 grey, from scikit-image's subset of Labeled Faces in the Wild. pydiff does not ship them."""

import numpy as np

from pydiff.data.dataset import Dataset

FACES = 100  # the first 100 of the 200 images; the others are background


def load_faces() -> Dataset:
    """Images (100, 25, 25, 1) uint8 without labels. Raises ImportError when scikit-image is not installed.

    Huang, Mattar, Lee and Learned-Miller, "Learning to align from scratch", NIPS 2012. The source holds resized 8-bit
    photographs as floats in [0, 1]; they are rounded back to 8 bits.
    """
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise ImportError("'faces' needs scikit-image, which is missing; run: pip install 'pydiff[faces]'") from error
    faces = np.asarray(lfw_subset())[:FACES]
    return Dataset("faces", np.rint(faces * 255).astype(np.uint8)[..., None])
