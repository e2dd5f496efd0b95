"""What a user may ask of data, whatever they lie in; `load` checks it once, and every reader takes it as it is."""

from typing import NamedTuple

from pydiff.data.limits import USUAL, Limit, limit_of
from pydiff.data.pixels import check_size

LAYOUTS = ("NHWC", "NCHW", "NHW")
PAGES = ("first", "all")
SPLITS = ("train", "val", "test", "all")
BITS = (8, 10, 12, 14, 16)
# Wishes that not all data know -> the data that do.
CONCERNS = {
    "layout": "arrays and .npz and .npy files",
    "pages": "images in folders, archives, lists and .parquet files",
    "split": "folders of images, sounds, clips or .parquet files, archives of images, and files of MNIST or CIFAR",
    "bits": "grey deeper than 8 bits, in arrays or images",
}


class Asked(NamedTuple):
    """size: (height, width). channels: 1, 3, 4. layout: of arrays. pages: of files that hold several. split: of
    folders that are divided. bits: of grey levels deeper than 8 bits. limit: of memory. None: what the data suggest.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    layout: str | None = None
    pages: str | None = None
    split: str | None = None
    bits: int | None = None
    limit: Limit = USUAL
    rate: float | None = None  # of arrays of clips, frames a second

    def only(self, what: str, *served: str) -> "Asked":
        """These wishes again. ValueError for one that does not concern such data: nothing is ignored in silence.

        what: the data, in a few words. served: which of the wishes in CONCERNS do concern them.
        """
        for name, about in CONCERNS.items():
            value = getattr(self, name)
            if value is not None and name not in served:
                raise ValueError(f"{name}={value!r} is for {about}, and {what} is none of these; leave {name} out")
        return self


NOTHING_ASKED = Asked()


def asked(size=None, channels=None, layout=None, pages=None, split=None, bits=None, limit=None, rate=None) -> Asked:
    """What is asked for, checked: ValueError or TypeError, in one sentence, for what cannot be."""
    size = check_size(size)
    if channels is not None and (isinstance(channels, bool) or channels not in (1, 3, 4)):
        raise ValueError(f"channels is {channels!r}, expected 1 (grey), 3 (RGB), 4 (RGBA) or None; leave it out")
    layout = layout.upper() if isinstance(layout, str) else layout
    for name, value, known in (("layout", layout, LAYOUTS), ("pages", pages, PAGES), ("split", split, SPLITS)):
        if value is not None and (not isinstance(value, str) or value not in known):
            raise ValueError(f"{name} is {value!r}, expected {', '.join(known)} or None; leave it out")
    if bits is not None and (isinstance(bits, bool) or bits not in BITS):
        raise ValueError(f"bits is {bits!r}, expected {', '.join(map(str, BITS))} or None; leave it out")
    channels, bits = (None if n is None else int(n) for n in (channels, bits))
    return Asked(size, channels, layout, pages, split, bits, limit_of(limit), rate)
