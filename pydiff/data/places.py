"""Where encoded images are that are read one by one: in a folder or in archives, listed by listing.py, or in rows of
.parquet files. Little more is kept of each than its name and its length.
"""

import os
import threading
from pathlib import Path

import numpy as np

from pydiff.data.archives import archives_among, is_archive, open_archive, open_archives
from pydiff.data.asked import Asked
from pydiff.data.classes import divided
from pydiff.data.clip_files import FILMS
from pydiff.data.folder import FRAME, Said, path_of, said_of
from pydiff.data.image import look
from pydiff.data.limits import check_system
from pydiff.data.listing import Found, files_in
from pydiff.data.parquet import IMAGE_COLUMNS, column_of, parquets_among, parts_of, said_in
from pydiff.data.sounds import SUFFIXES as SOUNDS
from pydiff.data.sources import TREES, refuse_run
from pydiff.data.unreadable import notes_on
from pydiff.printed import first_line, printable


class Places:
    """names: of all images, in order. sizes: (N,) int64, bytes of each. skipped: (name, reason) of unusable ones.

    notes: on what was left out.
    """

    def __init__(self, names, sizes, skipped=(), notes=()):
        self.names, self.sizes, self.skipped, self.notes = names, np.asarray(sizes, np.int64), list(skipped), [*notes]

    def __len__(self):
        return len(self.names)

    def read(self, number) -> Path | bytes:
        """The encoded image: a path, or its contents. Raises OSError or ValueError if it can no longer be read."""
        raise NotImplementedError

    def frame(self, _number) -> int:
        """The number of the image's frame in its file."""
        return 0

    def said(self) -> Said:
        """What else is known about the images: classes and captions."""
        raise NotImplementedError


class Files(Places):
    """The images below a root, a folder or an archive, chosen as `folder.load_folder` does."""

    def __init__(self, root, asked: Asked, found: Found):
        self.root, self.found = root, found
        self.paths, notes = divided(self.found.images, asked.split, printable(str(root)))
        names = self.paths if asked.pages != "all" else self._frames(asked.limit)
        length = root.length if hasattr(root, "length") else _length_below(root)
        sizes = np.fromiter((length(path_of(name)) for name in names), np.int64, len(names))
        super().__init__(names, sizes, self.found.skipped, notes)

    def _frames(self, limit):
        """Names of all frames of all files, each of which is opened to count them."""
        names = []
        for path in self.paths:
            try:
                seen = look(self.root / path, limit)
            except (OSError, ValueError):
                seen = None
            names += [f"{path}{FRAME}{i}" if i else path for i in range(seen.frames if seen else 1)]
        return names

    def read(self, number):
        """The path of the file, or the contents of the member."""
        return self.root / path_of(self.names[number])

    def frame(self, number):
        """The number of the frame, from its name."""
        return int(self.names[number].partition(FRAME)[2] or 0)

    def said(self):
        """Classes and captions from the folders and from files beside the images."""
        return said_of(self.root, self.names, self.paths, self.found)


class Rows(Places):
    """The images in the rows of parquet files. One row group is read at a time, and the last few are kept.

    The length of a single image is recorded nowhere: `sizes` has the length of its file instead.
    """

    KEPT = 4

    def __init__(self, path, files, limit, notes):
        try:
            import pyarrow as arrow
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(f"{path} needs pyarrow, which is missing; run: pip install 'pydiff[parquet]'") from error
        self.at, self.groups, self.lock, self.opened, sizes = [], {}, threading.Lock(), [], []
        for number, file in enumerate(files):
            try:
                self.opened.append(pq.ParquetFile(file))
            except (arrow.ArrowException, OSError) as error:
                check_system(error)
                raise ValueError(
                    f"{printable(str(file))} cannot be read ({first_line(error)}); fetch it again"
                ) from error
            facts = self.opened[-1].metadata
            rows = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
            largest = max((facts.row_group(group).total_byte_size for group in range(len(rows))), default=0)
            what = f"{self.KEPT} groups of rows of {printable(str(file))}, as many as are kept,"
            limit.check(self.KEPT * largest, what)
            self.at += [(number, group, inside) for group, count in enumerate(rows) for inside in range(count)]
            sizes += [os.stat(file).st_size] * sum(rows)
        columns = self.opened[0].schema_arrow.names
        self.column = column_of(columns)
        if self.column is None:
            raise ValueError(
                f"{printable(str(files[0]))} has the columns {', '.join(map(printable, columns))}, "
                f"expected images in one of {', '.join(IMAGE_COLUMNS)}"
            )
        if not self.at:
            raise ValueError(f"{printable(str(path))} has no rows; give a file with images")
        super().__init__([f"row {i}" for i in range(len(self.at))], sizes, notes=notes)

    def said(self):
        """Classes and captions from the other columns."""
        import pyarrow as arrow

        columns = [name for name in self.opened[0].schema_arrow.names if name != self.column]
        table = arrow.concat_tables([file.read(columns=columns) for file in self.opened])
        return Said(*said_in(table, list(range(len(self))), self.names), [])

    def read(self, number):
        """The contents of the image."""
        file, group, inside = self.at[number]
        with self.lock:
            data = self.groups.pop((file, group), None)
            if data is None:
                data = self.opened[file].read_row_group(group, columns=[self.column])[self.column].to_pylist()
            self.groups[file, group] = data  # the newest at the end
            while len(self.groups) > self.KEPT:
                del self.groups[next(iter(self.groups))]
        data = data[inside].get("bytes") if isinstance(data[inside], dict) else data[inside]
        if not isinstance(data, bytes):
            raise ValueError("no image in the file")
        return data


def places_of(path: Path, asked: Asked) -> Places:
    """The images in a folder, an archive, a parquet file, or a folder of archives or parquet files.

    Raises ValueError if nothing there can be read piece by piece.
    """
    where = printable(str(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no {where!r}")
    if path.is_dir():
        refuse_run(path)
        found = files_in(path)
        if files := [] if found.images else parquets_among(found):
            return _rows(path, files, asked)
        if not found.images and archives_among(found):
            root = open_archives(path, archives_among(found), asked.limit, whole=False)
            return Files(root, asked, files_in(root))
        return Files(path, asked, _only_images(path, found))
    if path.suffix.lower() == ".parquet":
        return _rows(path, None, asked)
    if is_archive(path.name):
        root = open_archive(path, asked.limit, whole=False)
        return Files(root, asked, _only_images(root, files_in(root)))
    raise ValueError(f"{where} cannot be read piece by piece: that takes a folder, a .zip, .tar or .parquet file")


def _rows(path, found, asked):
    if asked.pages == "all":
        raise ValueError(
            f"pages is for files of images, and {printable(str(path))} holds rows of parquet files; leave it out"
        )
    files, notes = parts_of(path, found, asked.split)
    return Rows(path, files, asked.limit, notes)


def _only_images(root, found: Found) -> Found:
    """What was found, if these are images. Raises ValueError if there are none, or for data read as a whole."""
    where = printable(str(root))
    for kind in TREES[:2]:
        if not found.images and kind.holds(root):
            raise ValueError(f"{where} holds {kind.name}, which are read as a whole; leave cache_gb out")
    for noun, suffixes in (("sounds", SOUNDS), ("films", FILMS)):
        if sum(os.path.splitext(path)[1].lower() in suffixes for path in found.others) > len(found.images):
            raise ValueError(f"{where} holds {noun}, and cache_gb is for images; leave it out")
    if not found.images:
        told = "".join(f"; {note}" for note in notes_on(found.others, found.thumbnails))
        raise ValueError(f"{where} holds no images{told}")
    return found


def _length_below(root):
    """A function from paths below a folder to lengths in bytes; -1 for a missing file, reported when it is read."""
    before = f"{root}/"

    def length(path):
        try:
            return os.stat(before + path).st_size
        except OSError:
            return -1

    return length
