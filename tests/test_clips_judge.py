"""The benchmark of clips: what can be known of a noisy clip, by all of its frames and by each alone."""

import numpy as np
import pytest

import pydiff
from pydiff.data.moving import moving_shapes

clips = pytest.importorskip("benchmarks.papers.clips", reason="the benchmarks are not here, only the package")


def test_all_frames_together_tell_more_than_each_alone(monkeypatch):
    monkeypatch.setattr(clips, "LEVELS", (100, 850, 999))
    tiny = {"batch_size": 2, "channels": (8, 8), "groups": 4, "warmup": 1, "sample_every": 0, "prediction": "x0"}
    run = pydiff.train(moving_shapes(4), steps=1, progress=False, **tiny)
    found = clips.errors_by_noise(run, count=4, candidates=60)
    assert found[850]["best"] < 0.7 * found[850]["best_by_frames"]
    assert found[100]["best"] < 0.3 * found[999]["best"]  # where nothing is seen, the mean of all clips is the best
    np.testing.assert_allclose(found[999]["best"], found[999]["best_by_frames"], rtol=0.1)
    assert all(row["model"] > row["best"] for row in found.values())
    table = clips.noise_table({"errors_by_noise": found})
    assert table.count("\n") == 4
    assert f"| the model | {1000 * found[100]['model']:.1f} |" in table
