"""What a user may request of data of any kind. `load` checks it once, and all readers rely on that."""

from typing import NamedTuple

from pydiff.data.limits import USUAL, Limit, limit_of
from pydiff.data.pixels import check_size

LAYOUTS = ("NHWC", "NCHW", "NHW")
PAGES = ("first", "all")
SPLITS = ("train", "val", "test", "all")
BITS = (8, 10, 12, 14, 16)
# Options that apply to some kinds of data only -> the kinds they apply to.
CONCERNS = {
    "layout": "arrays and .npz and .npy files",
    "pages": "images in folders, archives, lists and .parquet files",
    "split": "folders of images, sounds, clips or .parquet files, archives of images, and files of MNIST or CIFAR",
    "bits": "grey deeper than 8 bits, in arrays or images",
}


class Asked(NamedTuple):
    """Options of `load`; None leaves the choice to the data.

    size: (height, width). channels: 1, 3, 4. layout: of arrays. pages: of files that hold several. split: of folders
    that are divided. bits: of grey levels deeper than 8 bits. limit: of memory.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    layout: str | None = None
    pages: str | None = None
    split: str | None = None
    bits: int | None = None
    limit: Limit = USUAL
    rate: float | None = None  # of arrays of clips, frames per second

    def only(self, what: str, *served: str) -> "Asked":
        """Returns these options; raises ValueError for one that does not apply to the data, so that none is silently
        ignored.

        what: the data, in a few words. served: those of the options in CONCERNS that do apply.
        """
        for name, about in CONCERNS.items():
            value = getattr(self, name)
            if value is not None and name not in served:
                raise ValueError(f"{name}={value!r} is for {about}, and {what} is none of these; leave {name} out")
        return self


NOTHING_ASKED = Asked()


def asked(size=None, channels=None, layout=None, pages=None, split=None, bits=None, limit=None, rate=None) -> Asked:
    """The options, checked, as Asked. Raises ValueError or TypeError for values that cannot be."""
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
