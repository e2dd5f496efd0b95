"""Files in a folder that are not samples, or cannot be read: what they are, and what to do about them."""

import functools
import importlib
import os
from collections import Counter
from collections.abc import Sequence

from pydiff.data.dataset import plural, some
from pydiff.printed import printable

# Suffix -> the library that reads such images, once it is installed.
LIBRARIES = {"heic": "pillow-heif", "heif": "pillow-heif", "hif": "pillow-heif", "jxl": "pillow-jxl-plugin"}
_MODULES = {"pillow-heif": "pillow_heif", "pillow-jxl-plugin": "pillow_jxl"}
_FORMATS = {"pillow-heif": "HEIF", "pillow-jxl-plugin": "JXL"}
_RAW = "cr2 cr3 nef arw dng orf rw2 raf pef srw"
_COMPRESSED = "m4a m4b aac wma ape wv tta amr ac3 dts caf ra mka"  # sounds that nothing here decodes
_CONVERT = {
    **dict.fromkeys(_RAW.split(), "develop them to JPEG or TIFF, with darktable or rawpy"),
    **dict.fromkeys(("jp2", "j2k", "jpx", "tga", "ico", "icns", "pcx", "dds", "qoi"), "convert them to PNG"),
    **dict.fromkeys(("psd", "xcf", "kra", "exr", "hdr"), "export them as PNG or TIFF"),
    **dict.fromkeys(("svg", "eps", "ai", "pdf"), "render them to PNG"),
    **dict.fromkeys(
        ("mp4", "mov", "avi", "mkv", "webm", "m4v"),
        "take images out of them, with ffmpeg, or give frames= to learn clips (--frames)",
    ),
    **dict.fromkeys(_COMPRESSED.split(), "convert them to .wav or .flac, with ffmpeg"),
    **dict.fromkeys(("dcm", "nii", "fits", "fit"), "convert their slices to PNG or .npy"),
    **dict.fromkeys(
        ("npy", "npz", "parquet", "zip", "tar", "tgz", "h5", "hdf5", "mat"),
        "give such a file itself, unpacked if it is in an archive",
    ),
}
_CONVERT |= dict.fromkeys(("rar", "7z", "zst", "lz4"), "unpack it, and give the folder")
_CONVERT |= dict.fromkeys(("h5", "hdf5", "mat", "pt", "pth", "tfrecord", "lmdb"), "save their images with numpy.savez")
_CONVERT |= dict.fromkeys(("arrow", "feather"), "give what datasets.load_from_disk(folder) returns, in Python")
SHOWN = 6

# Folders of thumbnails and system files; names in lower case.
FOLDERS = frozenset(["__macosx", "@eadir", "thumbs", "thumbnails", "#recycle", "$recycle.bin", "lost+found",
                     "__pycache__", "system volume information"])  # fmt: skip
THUMBNAIL = ("_thumb", "-thumb", ".thumb", "_thumbnail", "-thumbnail", ".thumbnail")


@functools.cache
def readable() -> tuple[frozenset[str], tuple[str, ...]]:
    """(suffixes, Pillow's format names) that installed libraries other than Pillow can read."""
    suffixes, formats = set(), []
    for library, module in _MODULES.items():
        try:
            found = importlib.import_module(module)
            if hasattr(found, "register_heif_opener"):
                found.register_heif_opener()
        except Exception:  # not installed, or broken: a note then names it, and its images are left out
            continue
        suffixes |= {f".{name}" for name, of in LIBRARIES.items() if of == library}
        formats.append(_FORMATS[library])
    return frozenset(suffixes), tuple(formats)


def is_thumbnail(path: str, others: frozenset[str] | set[str]) -> bool:
    """Whether an image is a small copy of another beside it. others: paths without their suffixes."""
    stem = os.path.splitext(path)[0]
    return any(stem.lower().endswith(end) and stem[: -len(end)] in others for end in THUMBNAIL)


def notes_on(others: Sequence[str], thumbnails: int, empty: Sequence[str] = (), again: Sequence[str] = ()) -> list[str]:
    """Sentences on files that were left out (those of kinds that can be converted, with what to do, and the rest by
    kind), on folders with nothing in them, and on links to folders that were read already.
    """
    kinds = Counter(os.path.splitext(path)[1].lower().removeprefix(".") for path in others)
    notes, by_advice = [], {}
    for kind, count in sorted(kinds.items()):
        advice = advice_on(kind)
        if advice:
            by_advice.setdefault(advice, []).append(f"{count:,} .{kind}")
    notes += [f"left out: {', '.join(files)}; {advice}" for advice, files in by_advice.items()]
    rest = {kind: count for kind, count in sorted(kinds.items()) if not advice_on(kind)}
    if rest:
        told = [f".{printable(kind)} {n:,}" if kind else f"without a suffix {n:,}" for kind, n in rest.items()]
        total = sum(rest.values())
        notes.append(f"{plural(total, 'other file')} left out ({some(told, ', ', SHOWN)})")
    if thumbnails:
        notes.append(f"{plural(thumbnails, 'thumbnail')} left out, being small copies of others or in a folder of such")
    if empty:
        notes.append(f"nothing in {plural(len(empty), 'folder')} ({some([printable(p) for p in empty], ', ', SHOWN)})")
    if again:
        links = plural(len(again), "link")
        notes.append(f"{links} to folders read already left out ({some([printable(p) for p in again], ', ', SHOWN)})")
    return notes


def advice_on(kind: str) -> str:
    """What to do about files with this suffix; "" if there is nothing to be done."""
    if kind in LIBRARIES:
        return f"pip install {LIBRARIES[kind]} makes them readable"
    return _CONVERT.get(kind, "")
