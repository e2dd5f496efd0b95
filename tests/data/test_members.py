"""Members of archives, read without the libraries that know all about them: the same as those."""

import contextlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff.data.archives import open_archive
from pydiff.data.limits import USUAL
from pydiff.data.members import TarMembers, ZipMembers, proper

name = st.text(st.sampled_from("aé .x字\U0001f600-/"), min_size=1, max_size=160).filter(lambda n: proper(n) is not None)
members = st.dictionaries(name.map(proper), st.binary(max_size=1500), max_size=8).filter(
    lambda found: not any(a != b and a.startswith(b + "/") for a in found for b in found)
)
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def contents(found):
    return {path: found.read(number) for path, number in found.numbers.items()}


def tar(path, wanted, kind=tarfile.GNU_FORMAT, headers=None):
    with tarfile.open(path, "w", format=kind, pax_headers=headers) as archive:
        for member, data in wanted.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=25, deadline=None)
@given(wanted=members, method=st.sampled_from(METHODS), before=st.binary(max_size=40), comment=st.binary(max_size=40))
def test_a_zip_holds_what_zipfile_put_into_it(tmp_path_factory, wanted, method, before, comment):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(before)  # as in archives that unpack themselves
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.comment = comment
        for member, data in wanted.items():
            archive.writestr(member, data)
    found = ZipMembers(path)
    assert contents(found) == wanted
    assert list(found.sizes) == [len(data) for data in wanted.values()]
    assert found.skipped == []


@settings(max_examples=25, deadline=None)
@given(wanted=members, kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_a_tar_holds_what_tarfile_put_into_it(tmp_path_factory, wanted, kind):
    found = TarMembers(tar(tmp_path_factory.mktemp("tar") / "a.tar", wanted, kind))
    assert contents(found) == wanted
    assert found.skipped == []


def test_headers_that_are_for_all_members_are_heard(tmp_path):
    """`path` in a global header is the name of every member that has no own; a comment changes nothing."""
    path = tar(tmp_path / "a.tar", {"a": b"1"}, tarfile.PAX_FORMAT, {"path": "b"})
    with tarfile.open(path) as archive:
        assert list(TarMembers(path).numbers) == archive.getnames() == ["b"]
    path = tar(tmp_path / "c.tar", {"a": b"1"}, tarfile.PAX_FORMAT, {"comment": "b"})
    assert list(TarMembers(path).numbers) == ["a"]


def test_large_numbers_have_fields_of_their_own(tmp_path):
    """A directory with 64-bit numbers, as files above 4 GB and archives of more than 65,535 members have."""
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("first", "w", force_zip64=True) as stream:
            stream.write(b"1234")
        for i in range(66_000):
            archive.writestr(f"{i}", b"")
    found = ZipMembers(path)
    assert len(found.numbers) == 66_001
    assert found.read(0) == b"1234"


def test_what_cannot_be_used_is_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for member in ("../out", "/in", "./b//c", "b/c", "d/", "a\\..\\e"):
            archive.writestr(member, member)
    found = ZipMembers(tmp_path / "a.zip")
    assert contents(found) == {"in": b"/in", "b/c": b"./b//c"}
    assert [reason for _, reason in found.skipped] == [
        "its name leads out of the archive",
        "there twice, the first is taken",
        "its name leads out of the archive",
    ]
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.index(b"PK\1\2") + 8
    data[at] |= 1  # encrypted
    (tmp_path / "a.zip").write_bytes(data)
    assert ("../out", "encrypted") in ZipMembers(tmp_path / "a.zip").skipped


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_of_a_zip_is_refused_and_the_others_are_read(tmp_path, method):
    path, noise = tmp_path / "a.zip", np.random.default_rng(0).bytes(400)
    with zipfile.ZipFile(path, "w", method) as archive:
        for member in "abc":
            archive.writestr(member, noise)
        where = archive.getinfo("b").header_offset + 30 + 1 + 60
    data = bytearray(path.read_bytes())
    data[where] ^= 0x55
    path.write_bytes(data)
    found = ZipMembers(path)
    assert found.read(0) == found.read(2) == noise
    with pytest.raises(ValueError, match=r"."):
        found.read(1)


def test_every_damaged_archive_is_refused_or_read_in_part(tmp_path):
    """A byte changed anywhere, or the end cut off: ValueError, or fewer members, never anything else."""
    wanted = {"a": b"1" * 700, "b/c": b"2" * 300, "d": b""}
    whole = tar(tmp_path / "whole.tar", wanted).read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in wanted.items():
            archive.writestr(member, data)
    rng = np.random.default_rng(0)
    for suffix, data in ((".tar", whole), (".zip", (tmp_path / "whole.zip").read_bytes())):
        path = tmp_path / f"damaged{suffix}"
        for trial in range(150):
            damaged = bytearray(data)
            if trial % 3:
                damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
            else:
                damaged = damaged[: rng.integers(len(damaged))]
            path.write_bytes(damaged)
            try:
                archive = open_archive(path, USUAL, whole=False)
            except ValueError:
                continue
            for member in archive.paths()[0]:
                with contextlib.suppress(ValueError):
                    assert len(archive / member) == archive.length(member)


def test_behind_a_damaged_header_all_is_lost_and_that_is_said(tmp_path):
    path = tar(tmp_path / "a.tar", {"a": b"1", "b": b"2", "c": b"3"})
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 0xFF  # in the name of b: the checksum tells
    path.write_bytes(data)
    found = TarMembers(path)
    assert contents(found) == {"a": b"1"}
    assert found.skipped == [("a.tar", "damaged after 'a': bad checksum")]
