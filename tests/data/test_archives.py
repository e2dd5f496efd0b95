"""Archives are read as the folders that they are, and nothing unfolds beyond the limit."""

import gzip
import io
import shutil
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from pydiff.data import load
from tests.data.made_files import image, image_folder, packed
from tests.test_cli import pydiff_command

RNG = np.random.default_rng(0)
TINY = {"steps": 1, "batch_size": 2, "channels": (8, 8), "groups": 4, "sample_every": 0, "progress": False}


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_is_read_as_the_folder_that_it_is(tmp_path, kind):
    for name in ("cat", "dog"):
        image_folder(tmp_path / "p" / name)
    (tmp_path / "p" / "cat" / "0.txt").write_text("a cat")
    (tmp_path / "p" / "cat" / "bad.png").write_bytes(b"x")
    expected, found = load(tmp_path / "p"), load(packed(tmp_path / "p", tmp_path / f"a.{kind}"))
    np.testing.assert_array_equal(found.images, expected.images)
    assert (found.classes, found.captions, found.skipped) == (expected.classes, expected.captions, expected.skipped)
    assert found.name == f"a.{kind}"
    assert pydiff_command("data", tmp_path / f"a.{kind}").returncode == 0


def test_archives_go_by_their_first_bytes(tmp_path):
    source = image_folder(tmp_path / "p" / "a").parent
    image_folder(source / "b")
    for kind in ("zip", "tar", "gztar"):
        made = shutil.make_archive(str(tmp_path / kind), kind, source)
        for name in ("x.zip", "x.tar", "x.tgz"):
            shutil.copy(made, tmp_path / name)
            assert load(tmp_path / name).classes == ["a", "b"]
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="File is not a zip file"):
        load(tmp_path / "x.zip")


def test_a_tar_that_was_cut_between_two_members_is_noticed(tmp_path):
    """What is there is whole; only the mark of the end is missing."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(image_folder(tmp_path / "p"), "p")
    data, ends = (tmp_path / "a.tar").read_bytes(), []
    with tarfile.open(tmp_path / "a.tar") as archive:
        ends = [-(-(member.offset_data + member.size) // 512) * 512 for member in archive if member.isreg()]
    whole = load(tmp_path / "a.tar")
    assert (len(whole), whole.skipped) == (3, [])
    for name, pack in (("cut.tar", bytes), ("cut.tar.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(data[: ends[1]]))
        part = load(tmp_path / name)
        assert (len(part), part.skipped) == (
            2, [(name, "it ends without the mark of an end, so members may be missing")]
        )  # fmt: skip


def test_archives_that_are_hostile(tmp_path):
    encoded = io.BytesIO()
    image().save(encoded, "png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../out.png", encoded.getvalue())
        archive.writestr("/abs/in.png", encoded.getvalue())
        archive.writestr("in.png", encoded.getvalue())
    dataset = load(tmp_path / "a.zip")
    assert len(dataset) == 2
    assert dataset.skipped == [("../../out.png", "its name leads out of the archive")]
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("device.png", tarfile.CHRTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("v.png", "x.png", "y.png", "z.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded.getvalue())
            archive.addfile(info, io.BytesIO(encoded.getvalue()))
    dataset = load(tmp_path / "b.tar")
    assert len(dataset) == 4
    assert [path for path, _ in dataset.skipped] == ["device.png", "link.png", "pipe.png"]
    whole = (tmp_path / "b.tar").read_bytes()
    for kind, data in (("tar", whole), ("zip", (tmp_path / "a.zip").read_bytes()), ("tar.gz", gzip.compress(whole))):
        for length in range(0, len(data), max(len(data) // 40, 1)):
            (tmp_path / f"cut.{kind}").write_bytes(data[:length])
            try:
                load(tmp_path / f"cut.{kind}")  # a tar may end anywhere
            except ValueError as error:
                assert str(error).isprintable()  # noqa: PT017


MIB = 100


def bomb_npz(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (300, 1 << 20, 1)}
        )
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as stream:
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_tar(path, pax=False):
    with gzip.open(path, "wb", compresslevel=9) as stream:
        info = tarfile.TarInfo("a.png")
        info.size = MIB << 20
        info.type = tarfile.XHDTYPE if pax else tarfile.REGTYPE
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(MIB):
            stream.write(bytes(1 << 20))


def bomb_idx(path):
    path.mkdir()
    with gzip.open(path / "train-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(struct.pack(">BBBB3I", 0, 0, 8, 3, MIB, 1024, 1024))
        for _ in range(MIB):
            stream.write(bytes(1 << 20))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 300) + bytes(300))
    )


def bomb_png(path):
    path.mkdir()
    Image.new("RGBA", (8192, 8192), (1, 2, 3, 4)).save(path / "a.png")


BOMBS = {
    "npz": (bomb_npz, "a.npz"),
    "zip": (bomb_zip, "a.zip"),
    "tar": (bomb_tar, "a.tar.gz"),
    "tar, in a header": (lambda path: bomb_tar(path, pax=True), "a.tgz"),
    "idx": (bomb_idx, "mnist"),
    "png": (bomb_png, "folder"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_unfold(tmp_path, name):
    make, file = BOMBS[name]
    make(tmp_path / file)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would unfold from .* times as many|say limit=4") as caught:
            load(tmp_path / file)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "--limit" in str(caught.value)
    assert most < (160 << 20 if "header" in name else 40 << 20), f"{most >> 20} MiB"


def test_a_limit_is_stated_and_can_be_raised(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((100, 1 << 20, 1), np.uint8))
    with pytest.raises(ValueError, match=r"if it is what it seems, say limit=4 \(--limit 4\)"):
        load(tmp_path / "zeros.npz")
    assert load(tmp_path / "zeros.npz", limit=4).shape == (1 << 20, 1, 1)
    large = RNG.integers(0, 256, (2, 512, 512), dtype=np.uint8)
    np.save(tmp_path / "large.npy", large)
    with pytest.raises(ValueError, match=r"above the limit of 0\.0001 GiB; raise it with limit=4 \(--limit 4\)"):
        load(tmp_path / "large.npy", limit=0.0001)
    assert len(load(tmp_path / "large.npy", limit=4)) == 2
    for wrong in (0, -1, "4", True, float("nan"), [1]):
        with pytest.raises(ValueError, match=r"limit is .*expected GiB of memory"):
            load(large, limit=wrong)
    for source, options in ((large, {}), ("digits", {"size": 4096}), (image_folder(tmp_path / "p"), {"size": 8192})):
        with pytest.raises(ValueError, match="above the limit"):
            load(source, limit=1e-5, **options)
