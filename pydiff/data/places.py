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

from pydiff.data.dataset import printable
from pydiff.data.folder import find_files
from pydiff.data.parquet import IMAGE_COLUMNS
from pydiff.data.picture import SUFFIXES

ARCHIVES = (".tar", ".zip")
BESIDE = (".txt", ".cls", ".json")  # what a member of the same name may say of an image


class Places:
    """names: of all images, in order. sizes: (N,) int64, bytes of each. skipped: (name, reason) of what is no image.

    beside: {name: {suffix: bytes}} of what lies beside an image in an archive.
    """

    def __init__(self, names, sizes, skipped=(), beside=None):
        self.names, self.sizes, self.skipped = names, np.asarray(sizes, np.int64), list(skipped)
        self.beside = {} if beside is None else beside

    def __len__(self):
        return len(self.names)

    def read(self, number) -> Path | bytes:
        """The encoded image: a file, or its contents. OSError or ValueError where it cannot be had any more."""
        raise NotImplementedError


class Files(Places):
    """The images in a folder, as `load_folder` finds them."""

    def __init__(self, root):
        paths, self.texts, skipped = find_files(root)
        self.root = root
        super().__init__(paths, np.fromiter((_length(root / path) for path in paths), np.int64, len(paths)), skipped)

    def read(self, number):
        """The file."""
        return self.root / self.names[number]


class Members(Places):
    """The images in archives, one archive after the other. What lies packed is unpacked one member at a time."""

    def __init__(self, archives):
        names, sizes, skipped, beside, self.at = [], [], [], {}, []
        self.archives = list(archives)
        for number, path in enumerate(self.archives):
            found = _in_zip(path) if path.suffix.lower() == ".zip" else _in_tar(path, skipped)
            before = "" if len(self.archives) == 1 else f"{path.name}/"
            for name, size, place in found:
                stem, suffix = os.path.splitext(name)
                if os.path.basename(name).startswith(".") or "__MACOSX" in name:
                    continue
                if suffix.lower() in SUFFIXES:
                    names.append(before + name)
                    sizes.append(size)
                    self.at.append((number, place))
                elif suffix.lower() in BESIDE and size <= 1 << 20:
                    beside.setdefault(before + stem, {})[suffix.lower()] = _bytes(path, place, size)
        self.handles = threading.local()
        super().__init__(names, sizes, skipped, {n: b for n in names if (b := beside.get(os.path.splitext(n)[0]))})

    def read(self, number):
        """The contents."""
        archive, place = self.at[number]
        return _bytes(self.archives[archive], place, int(self.sizes[number]), self.handles)


class Rows(Places):
    """The images in the rows of parquet files. A group of rows is read at a time, and the last few are kept.

    How long an image is stands nowhere: `sizes` has the length of its file instead.
    """

    KEPT = 4

    def __init__(self, files):
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


def places_of(path) -> Places:
    """The images in a folder, an archive, a parquet file, or a folder of archives or parquet files.

    ValueError, in one sentence, where nothing can be found piece by piece.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        found = Files(path)
        if found.names:
            return found
        for kind, make in ((ARCHIVES, Members), ((".parquet",), Rows)):
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in kind and file.is_file())
            if files:
                return make(files)
        return found
    if suffix in ARCHIVES and path.is_file():
        return Members([path])
    if suffix == ".parquet" and path.is_file():
        return Rows([path])
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    raise ValueError(f"{path} cannot be read piece by piece: that takes a folder, a .zip, .tar or .parquet file")


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
                archive.members = []  # or it would remember them all  # pyright: ignore[reportAttributeAccessIssue]
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
        return os.pread(file.fileno(), size, place)  # pyright: ignore[reportArgumentType]
