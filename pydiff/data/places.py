"""Where encoded images lie: files of a folder, members of .zip and .tar files, rows of .parquet files. Each kind knows
how to find one by its number without reading the others, and holds little more than its name, place and length.

A .tar file may have the layout of WebDataset: 000017.jpg, 000017.txt (a caption), 000017.cls (a class) or 000017.json
(both) belong together.
"""

import json
import os
import threading
from pathlib import Path

import numpy as np

from pydiff.data.asked import NOTHING_ASKED
from pydiff.data.classes import divided
from pydiff.data.dataset import plural
from pydiff.data.folder import files_in
from pydiff.data.limits import USUAL
from pydiff.data.parquet import IMAGE_COLUMNS
from pydiff.data.picture import SUFFIXES
from pydiff.data.unreadable import FOLDERS, is_thumbnail, notes_on
from pydiff.printed import printable

ARCHIVES = (".tar", ".zip")
BESIDE = (".txt", ".cls", ".json")  # what a member of the same name may say of an image


class Places:
    """names: of all images, in order. sizes: (N,) int64, bytes of each. skipped: (name, reason) of what is no image.

    beside: {name: {suffix: bytes}} of what lies beside an image in an archive. notes: sentences on what was left out.
    """

    def __init__(self, names, sizes, skipped=(), beside=None, notes=()):
        self.names, self.sizes, self.skipped = names, np.asarray(sizes, np.int64), list(skipped)
        self.beside, self.notes = {} if beside is None else beside, list(notes)

    def __len__(self):
        return len(self.names)

    def read(self, number) -> Path | bytes:
        """The encoded image: a file, or its contents. OSError or ValueError where it cannot be had any more."""
        raise NotImplementedError


class Files(Places):
    """The images in a folder, as `load_folder` finds them. split: which part, where there are train, val and test."""

    def __init__(self, root, split=None):
        found = files_in(root)
        paths, notes = divided(found.pictures, split, printable(str(root))) if found.pictures else ([], [])
        self.root, self.texts = root, found.texts
        sizes = np.fromiter((_length(root / path) for path in paths), np.int64, len(paths))
        notes = [*notes, *notes_on(found.others, found.thumbnails)]
        super().__init__(paths, sizes, found.skipped, notes=notes)

    def read(self, number):
        """The file."""
        return self.root / self.names[number]


class Members(Places):
    """The images in archives, one archive after the other. What lies packed is unpacked one member at a time.

    split: as for a folder. limit: of what one member may unfold to.
    """

    def __init__(self, archives, split=None, limit=USUAL):
        names, sizes, skipped, beside, self.at = [], [], [], {}, []
        self.archives, self.limit, others, thumbnails = list(archives), limit, [], 0
        for number, path in enumerate(self.archives):
            found = _in_zip(path) if path.suffix.lower() == ".zip" else _in_tar(path, skipped)
            before = "" if len(self.archives) == 1 else f"{path.name}/"
            stems = {os.path.splitext(name)[0] for name, _, _ in found}
            for name, size, place in found:
                stem, suffix = os.path.splitext(name)
                if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
                    continue
                folders = name.lower().split("/")[:-1]
                if suffix.lower() in SUFFIXES and (not FOLDERS.isdisjoint(folders) or is_thumbnail(name, stems)):
                    thumbnails += 1
                elif suffix.lower() in SUFFIXES:
                    names.append(before + name)
                    sizes.append(size)
                    self.at.append((number, place))
                elif suffix.lower() not in BESIDE:
                    others.append(name)
                elif size <= 1 << 20:
                    beside.setdefault(before + stem, {})[suffix.lower()] = _bytes(path, place, size)
        kept, notes = divided(names, split, "the archive") if names else ([], [])
        if len(kept) < len(names):
            chosen = set(kept)
            rows = [i for i, name in enumerate(names) if name in chosen]
            names, sizes, self.at = ([column[i] for i in rows] for column in (names, sizes, self.at))
        self.handles, notes = threading.local(), [*notes, *notes_on(others, thumbnails)]
        said = {name: b for name in names if (b := beside.get(os.path.splitext(name)[0]))}
        super().__init__(names, sizes, skipped, said, notes)

    def read(self, number):
        """The contents."""
        archive, place = self.at[number]
        self.limit.check(int(self.sizes[number]), printable(self.names[number]))
        return _bytes(self.archives[archive], place, int(self.sizes[number]), self.handles)


class Rows(Places):
    """The images in the rows of parquet files. A group of rows is read at a time, and the last few are kept.

    How long an image is stands nowhere: `sizes` has the length of its file instead.
    """

    KEPT = 4

    def __init__(self, files, limit=USUAL):
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(
                f"{files[0]} needs pyarrow, which is missing; run: pip install 'pydiff[parquet]'"
            ) from error
        self.files, names, sizes, self.at = list(files), [], [], []
        self.groups, self.lock, self.opened = {}, threading.Lock(), []
        for number, path in enumerate(self.files):
            try:
                self.opened.append(pq.ParquetFile(path))
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{path} cannot be read ({reason}); download it again") from error
            facts, row = self.opened[-1].metadata, 0
            for group in range(facts.num_row_groups):
                what = f"{plural(facts.row_group(group).num_rows, 'row')} of {printable(str(path))}, read at a time,"
                limit.check(self.KEPT * facts.row_group(group).total_byte_size, what)
                for inside in range(facts.row_group(group).num_rows):
                    names.append(f"row {row}" if len(self.files) == 1 else f"{path.name}/row {row}")
                    self.at.append((number, group, inside))
                    row += 1
            sizes += [_length(path)] * row
        columns = self.opened[0].schema_arrow.names
        self.column = next((name for name in IMAGE_COLUMNS if name in columns), None)
        if self.column is None:
            raise ValueError(
                f"{self.files[0]} has the columns {', '.join(map(printable, columns))}, "
                f"expected pictures in one of {', '.join(IMAGE_COLUMNS)}"
            )
        super().__init__(names, sizes)

    def facts(self):
        """A table of everything but the images."""
        import pyarrow as arrow

        names = [name for name in self.opened[0].schema_arrow.names if name != self.column]
        return arrow.concat_tables([file.read(columns=names) for file in self.opened])

    def read(self, number):
        """The contents."""
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
            raise ValueError("no picture in the file")
        return data


def places_of(path, asked=NOTHING_ASKED) -> Places:
    """The images in a folder, an archive, a parquet file, or a folder of archives or parquet files.

    asked: data.asked.Asked, of which split and limit count here. ValueError, in one sentence, where nothing can be
    found piece by piece.
    """
    split, limit = asked.split, asked.limit
    suffix = path.suffix.lower()
    if path.is_dir():
        found = Files(path, split)
        if found.names:
            return found
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        archives = [file for file in files if file.suffix.lower() in ARCHIVES]
        rows = [file for file in files if file.suffix.lower() == ".parquet"]
        return Members(archives, split, limit) if archives else _rows(rows, asked) if rows else found
    if suffix in ARCHIVES and path.is_file():
        return Members([path], split, limit)
    if suffix == ".parquet" and path.is_file():
        return _rows([path], asked)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    raise ValueError(f"{path} cannot be read piece by piece: that takes a folder, a .zip, .tar or .parquet file")


def _rows(files, asked):
    asked.only(f"{printable(str(files[0]))} (.parquet)", "pages", "bits")
    return Rows(files, asked.limit)


def told_beside(places):
    """(class names by image or None, captions by image or None) of what lies beside images in archives."""
    classes, captions = [], []
    for name in places.names:
        said = places.beside.get(name, {})
        facts = {}
        if ".json" in said:
            try:
                facts = json.loads(said[".json"])
            except ValueError:
                facts = {}
            facts = facts if isinstance(facts, dict) else {}
        text = said[".txt"].decode("utf-8", "replace") if ".txt" in said else facts.get("caption", facts.get("text"))
        label = said[".cls"].decode("utf-8", "replace").strip() if ".cls" in said else facts.get("label")
        captions.append(" ".join(text.split()) if isinstance(text, str) else "")
        classes.append(None if label is None or isinstance(label, dict | list) else str(label))
    all_classes = None if not classes or any(label is None for label in classes) else classes
    return all_classes, captions if any(captions) else None


def _length(path):
    try:
        return os.stat(path).st_size
    except OSError:  # gone, or a link to nowhere; it is told of when it is read
        return -1


def _in_tar(path, skipped):
    """(name, size, offset) of the regular files of a .tar file; what is behind a damaged header is lost, and listed."""
    import tarfile

    found, length = [], path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # or it would remember them all
                if not info.isreg():
                    continue
                if info.offset_data + info.size > length:
                    skipped.append((printable(info.name), "the archive ends before it does"))
                    break
                found.append((info.name.removeprefix("./"), info.size, info.offset_data))
    except (tarfile.TarError, OSError, EOFError) as error:
        if not found:
            raise ValueError(
                f"{path} cannot be read as a .tar file ({error}); one that is packed (.tar.gz) has to be unpacked"
            ) from error
        skipped.append((printable(path.name), f"damaged after {found[-1][0]!a}: {error}"))
    return found


def _in_zip(path):
    """(name, size, name again) of the files of a .zip file."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return [(i.filename, i.file_size, i.filename) for i in archive.infolist() if not i.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as a .zip file ({error})") from error


def _bytes(path, place, size, handles=None):
    """A member's contents. handles: a thread's open .zip files."""
    if isinstance(place, str):
        import zipfile

        opened = {} if handles is None else handles.__dict__
        if str(path) not in opened:
            opened[str(path)] = zipfile.ZipFile(path)
        try:
            with opened[str(path)].open(place) as stream:
                return stream.read(size + 1)[:size]
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError(str(error)) from error
        finally:
            if handles is None:
                opened[str(path)].close()
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, place)
