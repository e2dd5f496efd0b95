"""Folders of clips: partial frames, variable rates, single frames, short and broken files, captions and classes."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from pydiff.data import Clips, load
from pydiff.data.clip_files import Fit, Reel, at_rate, read_reel


def frames_of(count, size=12, seed=0, colour=True):
    """Frames that differ: a bright square that moves, on a ground of its own."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 100, 3)
    made = np.empty((count, size, size, 3), np.uint8)
    made[:] = ground if colour else ground[:1]
    for i in range(count):
        made[i, 2:5, i % (size - 3) : i % (size - 3) + 3] = 255
    return made


def save(path, frames, durations=125, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = [Image.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    opened[0].save(path, save_all=True, append_images=opened[1:], duration=durations, loop=0, **lossless, **options)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png", ".apng"])
def test_animations_come_back(tmp_path, suffix):
    frames = frames_of(8)
    save(tmp_path / f"a{suffix}", frames, 100)
    data = load(tmp_path, frames=8)
    assert isinstance(data, Clips)
    assert data.shape == (8, 12, 12, 3)
    assert data.rate == 10
    off = np.abs(data.images[0].astype(int) - frames).max()
    assert off == 0 if suffix != ".gif" else off <= 8  # a palette of 256


def test_partial_frames_are_composed(tmp_path):
    """Frames that hold a changed corner alone, laid over what is there, and disposed of as the file says."""
    whole = np.zeros((4, 8, 8), np.uint8)  # indices of a palette: 0 black, 1 red, 2 white
    whole[:, :, :] = 1
    for i in range(4):
        whole[i, :2, 2 * i : 2 * i + 2] = 2
    palette = [0, 0, 0, 255, 0, 0, 255, 255, 255]
    opened = []
    for frame in whole:
        image = Image.fromarray(frame, "P")
        image.putpalette(palette)
        opened.append(image)
    path = tmp_path / "partial.gif"
    opened[0].save(path, save_all=True, append_images=opened[1:], duration=100, disposal=1)
    with Image.open(path) as stored:  # the file's later frames are smaller than the image
        stored.seek(1)
        assert stored.tile[0][1] != (0, 0, 8, 8)
    data = load(tmp_path, frames=4)
    expected = np.array(palette, np.uint8).reshape(3, 3)[whole]
    assert np.array_equal(data.images[0], expected)


def test_variable_rates_keep_their_speed_and_are_said(tmp_path):
    frames = frames_of(4)
    save(tmp_path / "varying.webp", frames, [100, 300, 100, 100])
    data = load(tmp_path, frames=6, frame_rate=10)
    assert np.array_equal(data.images[0], frames[[0, 1, 1, 1, 2, 3]])
    assert any("1 clip with a variable frame rate: varying.webp" in note for note in data.notes)


def test_another_rate_is_read_by_time(tmp_path):
    save(tmp_path / "a.webp", frames_of(16), 50)
    save(tmp_path / "b.webp", frames_of(16, seed=1), 50)
    save(tmp_path / "c.webp", frames_of(8, seed=2), 100)
    data = load(tmp_path, frames=16)
    assert data.rate == 20
    assert len(data) == 3
    assert np.array_equal(data.images[2][::2], data.images[2][1::2])
    assert any("read at 20 frames a second" in note and "1 at 10" in note for note in data.notes)
    half = load(tmp_path, frames=8, frame_rate=10)
    assert np.array_equal(half.images[0], load(tmp_path, frames=16).images[0][::2])


def test_single_frames_short_and_broken_clips_are_listed(tmp_path):
    for i in range(6):
        save(tmp_path / f"good{i}.webp", frames_of(8, seed=i))
    save(tmp_path / "one.gif", frames_of(1))
    save(tmp_path / "short.webp", frames_of(3))
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "text.gif").write_text("not an image")
    data = (tmp_path / "good0.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    found = load(tmp_path, frames=8)
    assert len(found) == 6
    reasons = dict(found.skipped)
    assert reasons["one.gif"] == "1 frame at 8 a second, and 8 are needed"
    assert reasons["short.webp"] == "3 frames at 8 a second, and 8 are needed"
    assert reasons["empty.gif"] == "empty file"
    assert reasons["text.gif"] == "not an image in any known format"
    assert "cut.webp" in reasons
    single = load(tmp_path, frames=1)
    assert single.shape == (1, 12, 12, 3)


def test_what_lies_beside_clips_is_told(tmp_path):
    save(tmp_path / "a.gif", frames_of(8), 100)
    for name in ("poster.jpg", "raw.psd"):
        (tmp_path / name).write_bytes(b"x")
    notes = load(tmp_path, frames=8).notes
    assert "1 other file left out (.jpg 1)" in notes
    assert "left out: 1 .psd; export them as PNG or TIFF" in notes


def test_long_clips_are_cut(tmp_path):
    frames = frames_of(20)
    save(tmp_path / "long.webp", frames)
    data = load(tmp_path, frames=8)
    assert np.array_equal(data.images.reshape(16, 12, 12, 3), frames[:16])
    assert any("1 file cut into 2 clips of 8 frames" in note for note in data.notes)


def test_folders_of_frames_with_classes_and_captions(tmp_path):
    for name, label in (("walk", 1), ("run", 2)):
        for clip in range(2):
            folder = tmp_path / name / f"c{clip}"
            folder.mkdir(parents=True)
            for i, frame in enumerate(frames_of(11, seed=10 * label + clip)):
                Image.fromarray(frame).save(folder / f"frame-{i}.png")  # 10 behind 9, not behind 1
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "walk/c0", "text": "someone walks"}))
    data = load(tmp_path, frames=11)
    assert data.shape == (11, 12, 12, 3)
    assert data.classes == ["run", "walk"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.images[2], frames_of(11, seed=10))
    assert data.captions[2] == ("someone walks",)


def test_sizes_channels_and_transparency(tmp_path):
    grey = np.repeat(frames_of(4, 20, colour=False)[..., :1], 3, axis=-1)
    save(tmp_path / "grey.webp", grey)
    assert load(tmp_path, frames=4, size=8).shape == (4, 8, 8, 1)
    clear = np.concatenate([grey, np.full((4, 20, 20, 1), 255, np.uint8)], axis=-1)
    clear[:, :4, :, 3] = 0
    save(tmp_path / "clear.webp", clear)
    data = load(tmp_path, frames=4)
    assert data.shape == (4, 20, 20, 3)
    assert (data.images[0, :, :4] == 255).all()
    assert any("transparent lies on white" in note for note in data.notes)
    assert load(tmp_path, frames=4, channels=4).shape == (4, 20, 20, 4)


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no clips"):
        load(tmp_path, frames=4)
    save(tmp_path / "a.webp", frames_of(3))
    with pytest.raises(ValueError, match=r"no clip in .* has 8 frames"):
        load(tmp_path, frames=8)
    (tmp_path / "b.gif").write_text("x")
    (tmp_path / "c.gif").write_text("x")
    with pytest.raises(ValueError, match=r"2 of 3 clips in .* cannot be used"):
        load(tmp_path, frames=3)
    with pytest.raises(ValueError, match="digits holds images, which have no frames"):
        load("digits", frames=8)


def test_untimed_frames_and_odd_rates():
    reel = Reel([0] * 5, np.arange(6) / 30, frozenset((1,)))
    assert at_rate(reel, 30) == [0, 1, 2, 3, 4]
    assert at_rate(reel, 15) == [0, 2]
    assert at_rate(reel, 60) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert at_rate(Reel([0] * 4, np.arange(5) * 0.12, frozenset((1,))), 8) == [0, 1, 2, 3]  # a GIF counts in hundredths
    assert at_rate(Reel([0], np.array([0.0, 0.01]), frozenset((1,))), 1) == [0]


def test_films(tmp_path):
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")
    frames = np.repeat(np.repeat(frames_of(10, 16), 4, axis=1), 4, axis=2)
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = load(tmp_path)  # a film can be nothing but clips
    assert isinstance(data, Clips)
    assert data.shape == (8, 64, 64, 3)
    assert abs(data.rate - 10) < 0.2
    assert np.abs(data.images[0].astype(int) - frames[:8]).mean() < 6
    (tmp_path / "broken.mp4").write_bytes(b"\x00" * 100)
    assert "damaged" in read_reel(tmp_path / "broken.mp4", Fit((8, 8)))


def test_no_clip_is_held_at_its_own_size(tmp_path):
    frames = [Image.fromarray(np.full((256, 256, 3), (i, 90, 200), np.uint8)) for i in range(60)]
    for name in "ab":
        frames[0].save(tmp_path / f"{name}.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    tracemalloc.start()
    data = load(tmp_path, frames=8, size=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.shape == (8, 16, 16, 3)
    assert peak < 60 * 256 * 256 * 3 / 2  # half of one clip as it is in its file


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"frames": -3}, "frames is -3"),
        ({"frames": 2.5}, "frames is 2.5"),
        ({"frames": True}, "frames is True"),
        ({"frame_rate": 0}, "frame_rate is 0"),
        ({"frame_rate": -1.0}, "frame_rate is -1.0"),
        ({"frame_rate": float("nan")}, "frame_rate is nan"),
        ({"frame_rate": float("inf")}, "frame_rate is inf"),
    ],
)
def test_frames_that_no_clip_can_have_are_refused(tmp_path, asked, why):
    for source in (tmp_path, "moving-shapes", np.zeros((2, 4, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=why):
            load(source, **asked)


def test_the_reason_for_no_clip_is_one_that_is_too_short(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a no more of it")
    images = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(3)]
    for name in ("b.gif", "c.gif"):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=125)
    with pytest.raises(ValueError, match=r"first: b.gif: 3 frames"):
        load(tmp_path, frames=8)
