"""The Python of docs/sampling.md runs as it stands, top to bottom, with less training."""

import re
from pathlib import Path

import numpy as np
import pytest

import pydiff

PAGE = Path(__file__).parents[1] / "docs/sampling.md"
LESS = {"steps": 4, "batch_size": 8, "channels": (8,), "groups": 4, "sample_every": 0, "progress": False}


@pytest.mark.skipif(not PAGE.is_file(), reason="the pages are not here, only the installed package")
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    train, loop = pydiff.train, "range(1, 601)"
    assert sum(block.count(loop) for block in blocks) == 1
    monkeypatch.setattr(
        pydiff,
        "train",
        lambda data, **options: train(
            data, **{**options, **LESS, **({"checkpoint_every": 1} if "checkpoint_every" in options else {})}
        ),
    )
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block.replace(loop, "range(1, 4)"), str(PAGE), "exec"), names)
    for name in (
        "images",
        "fast",
        "noisy",
        "bounded",
        "sevens",
        "limited",
        "filled",
        "again",
        "similar",
        "row",
        "drawn",
    ):
        assert names[name].dtype == np.uint8, name
        assert names[name].shape[1:] == (8, 8, 1), name
    assert (names["filled"][:, :, :4] == names["real"][:, :, :4]).all()
    assert np.isfinite(names["state"].x).all()
    assert (names["early"].conv_out.weight.data != names["run"].model.conv_out.weight.data).any()
