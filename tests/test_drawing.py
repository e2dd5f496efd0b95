"""Many samples into a folder: gone on with, by any number of processes, to the same images."""

import numpy as np
import pytest

from pydiff import drawing
from pydiff.drawing import RECORD, draw_into
from pydiff.report.grid import save_png
from pydiff.training.distributed import Group

SETTINGS = {"seed": 1, "model": "abc", "interval": (0.1, 2.0)}


def image_of(number):
    return np.full((2, 3, 1), number, np.uint8)


def draw(numbers):
    return np.stack([image_of(number) for number in numbers])


class Part(Group):
    """One of several processes, which does its part while nobody else does."""

    def __init__(self, rank, size):
        super().__init__()
        self.rank, self.size = rank, size

    def agree(self, value):
        if self.first:
            Part.agreed = value
        return Part.agreed


def fill(folder, total, group=None, settings=SETTINGS, draw=draw):
    files = [folder / f"{number:06d}.png" for number in range(total)]
    group = Group() if group is None else group
    return draw_into(folder, files, draw, lambda i, image: save_png(files[i], image), settings, group, progress=False)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def test_a_folder_is_gone_on_with(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert fill(whole, 70) == 70

    def draw_some(numbers):
        if 64 in numbers:
            raise KeyboardInterrupt
        return draw(numbers)

    with pytest.raises(KeyboardInterrupt):
        fill(stopped, 70, draw=draw_some)
    assert len(contents(stopped)) == 64
    (stopped / "000003.png").unlink()
    assert fill(stopped, 70) == 7
    assert contents(stopped) == contents(whole)
    assert fill(stopped, 70) == 0
    assert fill(stopped, 72) == 2  # more of them


@pytest.mark.parametrize(("total", "size"), [(200, 3), (10, 4), (3, 8), (1, 2)])
def test_any_number_of_processes_fills_it_alike(total, size, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "PART", 16)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    fill(alone, total)
    drawn = []

    def counted(numbers):
        drawn.append(len(numbers))
        return draw(numbers)

    for rank in range(size):
        fill(shared, total, Part(rank, size), draw=counted)
    assert contents(shared) == contents(alone)
    assert sum(drawn) == total  # nothing twice


def test_images_of_other_settings_are_not_mixed(tmp_path):
    fill(tmp_path, 2)
    with pytest.raises(ValueError, match="drawn with another seed; choose another folder"):
        fill(tmp_path, 4, settings=SETTINGS | {"seed": 2})
    with pytest.raises(ValueError, match="drawn with another guidance and model"):
        fill(tmp_path, 4, settings=SETTINGS | {"model": "b", "guidance": 2.0})
    (tmp_path / RECORD).write_text("{broken")
    with pytest.raises(ValueError, match="drawn with another"):
        fill(tmp_path, 4)
    (tmp_path / RECORD).unlink()
    with pytest.raises(ValueError, match="does not say how they were drawn"):
        fill(tmp_path, 4)
    assert len(contents(tmp_path)) == 2
