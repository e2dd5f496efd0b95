"""Folders: what is found, in what order, what is skipped, and the size, channels and classes that are chosen."""

import os
from pathlib import Path

import numpy as np
import odd_images as made
import pytest
from PIL import Image

from pydiff.data import load


def fill(root: Path, files: dict) -> Path:
    """Writes {path: bytes or pixels} below root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else made.encode(content))
    return root


def shade(value, height=4, width=4):
    """An image that is recognised by its value."""
    return np.full((height, width), value, np.uint8)


def values(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_broken_files_are_skipped_and_the_order_of_the_rest_is_kept(tmp_path):
    broken = list(made.broken().items())
    assert len(broken) >= 60
    sound = {f"{i:03}-sound.png": shade(i) for i in range(len(broken) + 1)}
    names = [f"{i:03}-{name}" for i, (name, _) in enumerate(broken)]
    dataset = load(fill(tmp_path, sound | dict(zip(names, (content for _, content in broken), strict=True))))
    assert values(dataset) == list(range(len(broken) + 1))
    assert [path for path, _ in dataset.skipped] == names
    assert all(reason and "\n" not in reason for _, reason in dataset.skipped)
    assert f"{len(broken)} files skipped" in dataset.summary()


def test_odd_and_ordinary_files_are_all_used(tmp_path):
    files = {name: content for name, (content, _) in made.odd().items()} | made.ordinary()
    dataset = load(fill(tmp_path, files), size=9)
    assert len(dataset) == len(files)
    assert dataset.skipped == []
    assert dataset.images.shape == (len(files), 9, 9, 4)


def test_more_than_half_broken_is_an_error_and_half_is_not(tmp_path):
    fill(tmp_path, {"a.png": shade(1), "b.png": b"broken"})
    assert len(load(tmp_path)) == 1
    fill(tmp_path, {"c.png": b""})
    with pytest.raises(
        ValueError, match=r"^2 of 3 images in .* cannot be used \(first: b.png: .*\); remove or repair them$"
    ):
        load(tmp_path)


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    fill(
        tmp_path, {"notes.txt": b"hello", ".hidden.png": shade(1), ".cache/a.png": shade(1), "__MACOSX/a.png": shade(1)}
    )
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    fill(tmp_path, {"a.png": b""})
    with pytest.raises(ValueError, match=r"1 of 1 images .*empty file"):
        load(tmp_path)


def test_other_and_hidden_files_are_ignored(tmp_path):
    fill(
        tmp_path,
        {"b.png": shade(2), "a.png": shade(1), "Thumbs.db": b"x", "README.md": b"x", "labels.csv": b"x", ".x.png": b""},
    )
    dataset = load(tmp_path)
    assert values(dataset) == [1, 2]
    assert dataset.skipped == []


def test_order_is_by_path_whatever_the_order_of_writing(tmp_path):
    # "a b" sorts before "a/…" as text but after it as a path: folders stay together.
    names = ["a/2.png", "a b/1.png", "a/10.png", "c/d/e.png", "c/d.png", "B/z.png"]
    expected = sorted(names, key=lambda name: name.split("/"))
    for run, order in enumerate((names, names[::-1])):
        root = tmp_path / str(run)
        fill(root, {name: shade(expected.index(name)) for name in order})
        assert values(load(root)) == list(range(len(names)))


def test_classes_are_the_subfolders(tmp_path):
    fill(
        tmp_path, {"dog/1.png": shade(1), "cat/deep/er/2.png": shade(2), "cat/3.png": shade(3), "ant/4.png": b"broken"}
    )
    dataset = load(tmp_path)
    assert dataset.classes == ["cat", "dog"]  # a class without a usable image is none
    assert values(dataset) == [3, 2, 1]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert dataset.labels.dtype == np.int64


def test_a_folder_around_the_class_folders_makes_no_class(tmp_path):
    fill(tmp_path, {"train/cat/1.png": shade(1), "train/dog/2.png": shade(2)})
    assert load(tmp_path).classes == ["cat", "dog"]


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("all/1.png", "all/2.png"), ("1.png", "cat/2.png", "dog/3.png")])
def test_no_classes_without_two_class_folders(tmp_path, names):
    dataset = load(fill(tmp_path, {name: shade(i) for i, name in enumerate(names)}))
    assert dataset.labels is None
    assert dataset.classes is None
    assert any("no classes: 1 image beside" in note for note in dataset.notes) == (len(names) == 3)


def test_loops_of_links_end_and_each_folder_is_read_once(tmp_path):
    fill(tmp_path, {"a/1.png": shade(1), "b/2.png": shade(2)})
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / "b", target_is_directory=True)
    assert sorted(values(load(tmp_path))) == [1, 2]


def test_links_pipes_and_folders_with_the_suffix_of_a_image(tmp_path):
    fill(tmp_path, {"real/1.png": shade(1), "real/2.png": shade(2), "folder.png/3.png": shade(3)})
    (tmp_path / "real" / "link.png").symlink_to(tmp_path / "real" / "1.png")
    (tmp_path / "real" / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "real" / "pipe.png")
    dataset = load(tmp_path)
    assert values(dataset) == [3, 1, 2, 1]
    assert [path for path, _ in dataset.skipped] == ["real/dangling.png", "real/pipe.png"]


def test_names_that_are_not_valid_text(tmp_path):
    name = os.fsdecode(b"bad-\xff\xfe.png")
    try:
        fill(tmp_path, {name: b"broken", "a.png": shade(1)})
    except OSError:
        pytest.skip("this file system allows only valid text in names")
    dataset = load(tmp_path)
    assert dataset.skipped[0][0] == r"bad-\xff\xfe.png"
    dataset.summary().encode("utf-8")


def test_one_common_size_is_kept(tmp_path):
    dataset = load(fill(tmp_path, {f"{i}.png": shade(i, 7, 25) for i in range(3)}))
    assert dataset.images.shape == (3, 7, 25, 1)
    assert dataset.notes == []


def test_a_broken_file_has_no_say_in_the_size(tmp_path):
    whole = made.encode(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    fill(tmp_path, {f"{i}.png": shade(i, 20, 30) for i in range(3)} | {"cut.png": whole[: len(whole) // 2]})
    dataset = load(tmp_path)
    assert dataset.images.shape == (3, 20, 30, 1)
    assert [path for path, _ in dataset.skipped] == ["cut.png"]  # once, though the folder was read twice


def test_rotated_images_count_with_their_upright_size(tmp_path):
    turned = made.encode(made.colour(), exif=made.exif(6))
    dataset = load(fill(tmp_path, {"a.png": turned, "b.png": turned}))
    assert dataset.shape == (made.W, made.H, 3)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(40, 50), (41, 90), (60, 44)], 40),
        ([(33, 50), (39, 90)], 32),
        ([(300, 400)] * 3, 64),  # one size, but too large to be meant
        ([(500, 400), (700, 900)], 64),
        ([(2, 3), (3, 2)], 8),
        ([(1, 1)] + [(30, 31), (31, 30)] * 10, 24),  # one thumbnail does not shrink the rest
    ],
)
def test_mixed_or_large_sizes_choose_a_square_and_say_so(tmp_path, sizes, side):
    dataset = load(fill(tmp_path, {f"{i:02}.png": shade(i, *size) for i, size in enumerate(sizes)}))
    assert dataset.shape == (side, side, 1)
    assert f"cropped to {side} x {side}, pass size=" in dataset.notes[0]
    smaller = sum(min(size) < side for size in sizes)
    assert any(f"{smaller} image" in note and "enlarged" in note for note in dataset.notes) == (smaller > 0)


def test_size_resizes_the_shorter_side_and_crops_the_middle(tmp_path):
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = (250, 100, 50)
    fill(tmp_path, {"wide.png": image, "tall.png": image.swapaxes(0, 1)})
    dataset = load(tmp_path, size=10)
    assert dataset.shape == (10, 10, 3)
    np.testing.assert_array_equal(dataset.images[:, 2:-2, 2:-2], np.full((2, 6, 6, 3), (250, 100, 50)))
    assert load(tmp_path, size=(10, 30)).shape == (10, 30, 3)


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (("grey.png", "grey-as-rgb.png", "la-opaque.png", "16-bit.png", "1-bit.png"), 1),
        (("grey.png", "palette.png", "opaque-rgba.png"), 3),
        (("grey.png", "palette.png", "rgba.png"), 4),
        (("grey.png", "la.png"), 4),
        (("grey.png", "palette-index.gif"), 4),
    ],
)
def test_the_channel_count_comes_from_the_data(tmp_path, names, channels):
    files = made.odd()
    dataset = load(fill(tmp_path, {name: files[name][0] for name in names}))
    assert dataset.images.shape == (len(names), made.H, made.W, channels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_overrides_it(tmp_path, channels):
    clear = np.zeros((4, 4, 4), np.uint8)  # fully transparent black
    fill(tmp_path, {"clear.png": clear, "red.png": np.full((4, 4, 3), (255, 0, 0), np.uint8), "grey.png": shade(9)})
    images = load(tmp_path, channels=channels).images
    on_white = {1: [[255], [9], [76]], 3: [[255] * 3, [9] * 3, [255, 0, 0]]}
    expected = on_white.get(channels, [[0, 0, 0, 0], [9, 9, 9, 255], [255, 0, 0, 255]])
    np.testing.assert_array_equal(images[:, 1, 1], expected)


def test_transparent_colour_does_not_bleed_when_resized(tmp_path):
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, :4] = (0, 200, 0, 255)
    image[:, 4:] = (255, 0, 0, 0)  # invisible red
    images = load(fill(tmp_path, {"a.png": image}), size=3).images
    assert images.shape[-1] == 4
    visible = images[0][images[0, ..., 3] > 0]
    assert visible[:, 0].max() == 0


def test_reading_twice_gives_the_same_data(tmp_path):
    rng = np.random.default_rng(7)
    fill(tmp_path, {f"{i}.png": rng.integers(0, 256, (9 + i, 30 - i, 3), dtype=np.uint8) for i in range(20)})
    assert load(tmp_path, size=8).fingerprint() == load(str(tmp_path), size=(8, 8)).fingerprint()


def test_a_image_is_the_same_alone_and_in_a_folder(tmp_path):
    rng = np.random.default_rng(8)
    arrays = {f"{i}.png": rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for i in range(6)}
    together = load(fill(tmp_path / "all", arrays), size=8).images
    for i, (name, pixels) in enumerate(arrays.items()):
        alone = load(fill(tmp_path / name, {name: pixels}), size=8).images
        np.testing.assert_array_equal(alone[0], together[i])


def test_decoder_limits_of_the_process_are_left_alone(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    load(fill(tmp_path, {"a.png": shade(1), "bomb.png": made.broken()["bomb.png"]}))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("channels", [0, 2, 5, "3"])
def test_impossible_channels(tmp_path, channels):
    fill(tmp_path, {"a.png": shade(1)})
    with pytest.raises(ValueError, match="channels is"):
        load(tmp_path, channels=channels)
