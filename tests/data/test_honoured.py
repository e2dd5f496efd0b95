"""What is asked of data is honoured or refused, whatever the data are, and whoever reads them asks the limit first."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pydiff.data import load
from pydiff.data.origin import Origin
from pydiff.sound.wav import wav_bytes

RNG = np.random.default_rng(5)


def image_folder(folder, names=("a", "b", "c"), value=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) if value is None else value
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def deep_grey(folder, highest=4095, n=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        grey = RNG.integers(0, highest + 1, (8, 8)).astype(np.uint16)
        grey[0, 0] = highest
        Image.fromarray(grey).save(folder / f"{i}.png")
    return folder


def deep_colour() -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    lines = b"".join(b"\0" + RNG.integers(0, 65536, (8, 3)).astype(">u2").tobytes() for _ in range(8))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sounds(folder, n=3, rate=8000, length=8000):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.wav").write_bytes(wav_bytes(0.3 * np.sin(np.arange(length) * (0.05 + 0.01 * i)), rate))
    return folder


def animations(folder, frames=8, size=16, n=1):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        made = [Image.new("P", (size, size), k) for k in range(frames)]
        for k, frame in enumerate(made):
            frame.putpalette([k * 5, 255 - k, i] * 256)
        made[0].save(folder / f"{i}.gif", save_all=True, append_images=made[1:], duration=100)
    return folder


ASKED = {"layout": "NHWC", "pages": "all", "split": "train", "bits": 16}
# What is loaded -> which of ASKED concern it. `layout` is not tried on what has one.
SOURCES = {
    "a folder": (lambda path: image_folder(path / "p"), {}, {"pages", "bits"}),
    "a folder, streamed": (lambda path: image_folder(path / "p"), {"cache_gb": 1}, {"pages", "bits"}),
    "an array": (lambda _: np.zeros((4, 8, 8, 3), np.uint8), {}, {"layout", "bits"}),
    "a dict": (lambda _: {"images": np.zeros((4, 8, 8, 3), np.uint8)}, {}, {"layout", "bits"}),
    "a pair": (lambda _: (np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)), {}, {"layout", "bits"}),
    "a list of arrays": (lambda _: [np.zeros((8, 8, 3), np.uint8)] * 4, {}, {"layout", "bits"}),
    "a list of images": (lambda _: [Image.new("RGB", (8, 8))] * 4, {}, {"pages", "bits"}),
    "a Dataset": (lambda _: load("digits"), {}, set()),
    "digits": (lambda _: "digits", {}, set()),
    "sounds": (lambda path: sounds(path / "s"), {}, set()),
    "tones": (lambda _: "tones", {}, set()),
    "clips": (lambda path: animations(path / "c"), {"frames": 8}, set()),
    "moving-shapes": (lambda _: "moving-shapes", {"frames": 2, "size": 16}, set()),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_wish_is_honoured_or_refused(tmp_path, source):
    make, options, honoured = SOURCES[source]
    data = make(tmp_path)
    for name, value in ASKED.items():
        if name in honoured:
            load(data, **options, **{name: value})
            continue
        with pytest.raises(ValueError, match=name) as caught:
            load(data, **options, **{name: value})
        assert "leave" in str(caught.value), "the message says what to do"
    assert len(load(data, **options)), "which works"


def folders_of_frames(folder, n=3):
    for i in range(n):
        image_folder(folder / f"clip {i}", [f"frame {k}" for k in range(8)])


@pytest.mark.parametrize(
    ("make", "options", "noun"),
    [
        (sounds, {}, "sound"),
        (lambda folder: animations(folder, n=3), {"frames": 8}, "clip"),
        (folders_of_frames, {"frames": 8}, "clip"),
    ],
    ids=["sounds", "animations", "folders of frames"],
)
def test_parts_of_sounds_and_clips_are_no_classes(tmp_path, make, options, noun):
    for folder in ("p/train/up", "p/train/down", "p/test/up", "q/up/train", "q/up/val", "q/down/train", "q/down/val"):
        make(tmp_path / folder)
    data = load(tmp_path / "p", **options)
    assert (len(data), data.classes) == (6, ["down", "up"])
    assert any(f"train/ (6 {noun}s) taken; left out: test/ (3 {noun}s)" in note for note in data.notes)
    assert (len(load(tmp_path / "p", split="test", **options)), len(load(tmp_path / "p", split="all", **options))) == (
        3,
        9,
    )
    assert load(tmp_path / "p", split="all", **options).classes == ["down", "up"]
    for split, count in ((None, 6), ("val", 6), ("all", 12)):
        data = load(tmp_path / "q", split=split, **options)
        assert (len(data), data.classes) == (count, ["down", "up"])
    with pytest.raises(ValueError, match="has test, train, and no val; use split='test'"):
        load(tmp_path / "p", split="val", **options)


def test_an_archive_goes_by_what_is_in_it(tmp_path):
    for part in ("train", "val"):
        image_folder(tmp_path / "p" / part / "x")
        image_folder(tmp_path / "p" / part / "y")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "p").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "p"))
    for source in (tmp_path / "p", tmp_path / "a.zip"):
        for more in ({}, {"cache_gb": 1}):
            assert (len(load(source, **more)), load(source, **more).classes) == (6, ["x", "y"])
            assert len(load(source, split="all", **more)) == 12
            assert any("left out: val/ (6 images)" in note for note in load(source, **more).notes)
            with pytest.raises(ValueError, match="and no test; use split='train'"):
                load(source, split="test", **more)
            with pytest.raises(ValueError, match="leave layout out"):
                load(source, layout="NHWC", **more)
        assert np.array_equal(load(source, split="val").images, load(source, split="val", cache_gb=1).samples(range(6)))


def test_streamed_data_leave_out_thumbnails_and_say_what_else(tmp_path):
    image_folder(tmp_path / "p")
    image_folder(tmp_path / "p" / "thumbs", "de")
    (tmp_path / "p" / "a_thumb.png").write_bytes((tmp_path / "p" / "a.png").read_bytes())
    (tmp_path / "p" / "b.heic").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "p").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "p"))
    for source in (tmp_path / "p", tmp_path / "a.zip"):
        streamed = load(source, cache_gb=1)
        assert len(streamed) == 3
        assert np.array_equal(streamed.samples(range(3)), load(source).images)
        told = " ".join(streamed.notes)
        assert "3 thumbnails left out" in told
        assert "HEIC" in told.upper()


def test_deep_grey_that_is_streamed_has_to_be_told_its_bits(tmp_path):
    folder = deep_grey(tmp_path / "p")
    with pytest.raises(ValueError, match=r"up to 4095; streamed data need bits, for example bits=12 \(--bits 12\)"):
        load(folder, cache_gb=1)
    streamed = load(folder, cache_gb=1, bits=12)  # as the message says
    assert np.array_equal(streamed.samples(range(3)), load(folder).images)
    assert load(folder, cache_gb=1, bits=16).samples(range(3)).max() < 20
    assert streamed.subset([2]).samples([0]).max() == 255, "a part of them knows it too"


def test_pages_are_streamed_or_said(tmp_path):
    (tmp_path / "p").mkdir()
    made = [Image.new("L", (8, 8), i) for i in range(5)]
    made[0].save(tmp_path / "p" / "a.tif", save_all=True, append_images=made[1:])
    assert any("first is taken" in note for note in load(tmp_path / "p", cache_gb=1).notes)
    assert len(load(tmp_path / "p", cache_gb=1, pages="all")) == 5
    assert len(load(tmp_path / "p", pages="all")) == 5


@pytest.mark.parametrize("kind", ["png", "ppm", "plain ppm"])
def test_deep_colours_that_become_8_bits_are_said(tmp_path, kind):
    image_folder(tmp_path / "p")
    data = {"png": deep_colour(), "ppm": b"P6 8 8 65535\n" + bytes(384), "plain ppm": b"P3 1 1 1023\n1 2 3\n"}[kind]
    (tmp_path / "p" / f"deep.{kind[-3:]}").write_bytes(data)
    told = "1 image with colours of more than 8 bits a channel reduced to 8 bits"
    assert told in load(tmp_path / "p", size=8).notes
    assert any("colours of more than 8 bits" in note for note in load(tmp_path / "p", size=8, cache_gb=1).notes)
    (tmp_path / "p" / f"deep.{kind[-3:]}").unlink()
    for more in ({}, {"cache_gb": 1}):
        assert not any("more than 8 bits" in note for note in load(tmp_path / "p", size=8, **more).notes)


def most_of(call) -> int:
    """Bytes that Python and NumPy held at most. Pillow's own are not in it."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"above the limit|would unfold") as caught:
            call()
        assert "--limit" in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_clips_ask_the_limit(tmp_path):
    animations(tmp_path / "bomb", frames=40, size=700)  # a few kB, 78 MB
    assert sum(f.stat().st_size for f in (tmp_path / "bomb").iterdir()) < 200_000
    assert most_of(lambda: load(tmp_path / "bomb", frames=8)) < 40 << 20
    data = load(tmp_path / "bomb", frames=8, limit=4, size=16)  # as the message says
    assert data.shape == (8, 16, 16, 3)
    animations(tmp_path / "many", n=3)
    with pytest.raises(ValueError, match=r"all frames of .* above the limit"):
        load(tmp_path / "many", frames=8, limit=15_000 / 2**30)
    for i in range(3):
        image_folder(tmp_path / "frames" / str(i))
    with pytest.raises(ValueError, match=r"all frames of .* above the limit"):
        load(tmp_path / "frames", frames=3, limit=1000 / 2**30)
    assert len(load(tmp_path / "frames", frames=3)) == 3
    with pytest.raises(ValueError, match=r"all frames of .* above the limit"):  # what small frames are enlarged to
        load(tmp_path / "frames", frames=3, size=4096, limit=0.5)


def test_pages_of_images_ask_the_limit(tmp_path):
    animations(tmp_path / "p", frames=20, size=100)
    with pytest.raises(ValueError, match="above the limit"):
        load(tmp_path / "p", pages="all", size=1024, limit=0.05)
    assert len(load(tmp_path / "p", pages="all", size=16)) == 20


def test_sounds_ask_the_limit(tmp_path):
    """A few samples a second are minutes, and megabytes once they are resampled."""
    one = tmp_path / "slow" / "a.wav"
    one.parent.mkdir()
    header = b"RIFF" + struct.pack("<I", 1236) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 1, 2, 2, 16)
    one.write_bytes(header + b"data" + struct.pack("<I", 1200) + RNG.integers(-9999, 9999, 600).astype("<i2").tobytes())
    assert most_of(lambda: load(one.parent, rate=48_000)) < 40 << 20
    sounds(tmp_path / "s", n=3)
    with pytest.raises(ValueError, match="above the limit"):
        load(tmp_path / "s", limit=50_000 / 2**30)  # one of them takes more, while it is read
    with pytest.raises(ValueError, match=r"3 sounds of 60 s would take .* above the limit"):
        load(tmp_path / "s", seconds=60, rate=100_000, limit=0.1)
    sounds(tmp_path / "long", n=6, length=80_000)  # 10 pieces each
    with pytest.raises(ValueError, match=r"cut to pieces, would take .* above the limit"):
        load(tmp_path / "long", limit=3e6 / 2**30)
    assert len(load(tmp_path / "s", limit=1)) == 3


def test_members_and_rows_that_are_streamed_ask_the_limit(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abcd":
            archive.writestr(f"{name}.png", buffer.getvalue())
        with archive.open("e.png", "w") as stream:
            for _ in range(100):
                stream.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        data = load(tmp_path / "a.zip", cache_gb=1, limit=0.05)
        assert data.samples([4]).shape == (1, 8, 8, 1), "another takes its place"
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert "above the limit" in data.images.failed["e.png"]
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = arrow.table({"image": [buffer.getvalue() * 1000] * 8, "label": list(range(8))})
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"4 groups of rows of .*, as many as are kept, would take .* above the limit"):
        load(tmp_path / "a.parquet", cache_gb=1, size=8, limit=1e-4)


def test_only_decoders_of_images_are_tried(tmp_path, monkeypatch):
    """PostScript would start a program; a file is not trusted for its name."""
    from PIL import EpsImagePlugin

    from pydiff.data.masks import load_masked

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("images", "masks"):
        image_folder(tmp_path / "m" / name, "ab", np.arange(64, dtype=np.uint8).reshape(8, 8) // 32)
    (tmp_path / "m" / "masks" / "b.png").write_bytes(eps)
    data = load_masked(tmp_path / "m")
    assert (len(data), data.skipped[0][0]) == (1, "b.png")
    (tmp_path / "m" / "images" / "a.png").write_bytes(eps)
    with pytest.raises(ValueError, match=r"no image|cannot be used"):
        load_masked(tmp_path / "m")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "1.png").write_bytes(eps)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "f", frames=2)


def test_the_origin_of_a_single_sample():
    one = load(np.zeros((1, 8, 8, 1), np.uint8))
    assert len(Origin.of(one, "array").samples) == 1


@pytest.mark.parametrize("order", "<>")
def test_text_of_no_characters_is_refused(tmp_path, order):
    """A file may claim a character above the last one there is."""
    words = np.array(["a", "b", "c"], f"{order}U1")
    wrong = np.array([97, 0x110000, 99], f"{order}u4").view(f"{order}U1")
    for names, fine in ((words, True), (wrong, False)):
        np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8), captions=names)
        if fine:
            assert load(tmp_path / "a.npz").captions is not None
        else:
            with pytest.raises(ValueError, match="numbers that are no characters"):
                load(tmp_path / "a.npz")


@pytest.mark.parametrize("cache_gb", [0, 1])
@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory when reading image file")])
def test_what_there_is_no_memory_for_is_not_damaged(tmp_path, monkeypatch, error, cache_gb):
    """An image would be missing, and nobody would know why."""
    for i in range(4):
        Image.fromarray(np.full((9, 9, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    load_ = ImageFile.ImageFile.load

    def load_or_not(image):
        if str(getattr(image, "filename", "")).endswith("2.png"):
            raise error
        return load_(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_or_not)
    with pytest.raises(MemoryError, match="there is not enough memory"):
        load(tmp_path, cache_gb=cache_gb).images[:]


def test_nor_is_what_cannot_be_unpacked_for_that_reason(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8))

    def read(*_arguments):
        raise zlib.error("Error -4 while decompressing data")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(MemoryError, match="there is not enough memory"):
        load(tmp_path / "a.npz")
