"""The experiment with descriptions never seen: its judge on drawings of known score, and the script end to end."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from pydiff.data import load
from pydiff.data.emoji import factorial

unseen = pytest.importorskip("benchmarks.papers.unseen", reason="the benchmarks are not here, only the package")

CELLS, IMAGES = factorial(), load("emoji").images
WANTED = CELLS.unseen


def test_the_true_images_score_all_and_noise_does_not_matter_to_them():
    noise = np.random.default_rng(0).integers(-8, 9, IMAGES[WANTED].shape)
    noisy = np.clip(IMAGES[WANTED].astype(int) + noise, 0, 255).astype(np.uint8)
    for drawn in (IMAGES[WANTED], noisy):
        assert unseen.score(drawn, WANTED, IMAGES, CELLS.cells) == {"top1": 1, "role": 1, "gender": 1, "tone": 1}


@pytest.mark.parametrize(("axis", "name"), [(0, "role"), (1, "gender"), (2, "tone")])
def test_an_attribute_that_is_wrong_is_the_only_one_that_counts_as_wrong(axis, name):
    others = np.roll(CELLS.cells, 7 if axis == 0 else 1, axis)  # the next role but six, the other gender, the next tone
    twice = np.isin(CELLS.cells, CELLS.cells[[CELLS.roles.index(role) for role in ("adult", "blonde hair")]])
    where = CELLS.held_out & ~twice & ~np.isin(others, CELLS.cells[twice])
    result = unseen.score(IMAGES[others[where]], CELLS.cells[where], IMAGES, CELLS.cells)
    assert result == {"top1": 0, "role": 1, "gender": 1, "tone": 1} | {name: 0}


def test_drawings_at_random_score_chance():
    rng = np.random.default_rng(1)
    drawn = IMAGES[rng.choice(CELLS.cells.ravel(), 144)]
    result = unseen.score(drawn, WANTED, IMAGES, CELLS.cells)
    assert result["top1"] < 0.03
    assert 0.35 < result["gender"] < 0.65
    assert 0.05 < result["tone"] < 0.3


def test_the_nearest_by_the_definition():
    rng = np.random.default_rng(2)
    drawn, kept = (rng.integers(0, 256, (n, 3, 3, 3), dtype=np.uint8) for n in (5, 40))
    squares = ((drawn[:, None].astype(float) - kept) ** 2).mean((2, 3, 4))
    np.testing.assert_array_equal(unseen.nearest(drawn, kept), squares.argmin(1))


def test_intervals_of_a_share():
    assert unseen.wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert unseen.wilson(0.0, 144) == pytest.approx([0, 0.026], abs=1e-3)


def test_the_control_deals_the_same_captions_to_other_images():
    data, cells = unseen.captioned()
    wrong, _ = unseen.captioned(control=True)
    kept = [[d.captions[i] for i in cells.kept] for d in (data, wrong)]
    assert sorted(kept[0]) == sorted(kept[1])
    assert np.mean([a == b for a, b in zip(*kept, strict=True)]) < 0.02
    assert [wrong.captions[i] for i in cells.unseen] == [data.captions[i] for i in cells.unseen]
    np.testing.assert_array_equal(wrong.images, data.images)


def test_what_was_taken_for_what_and_how_far_off():
    drawn = IMAGES[WANTED].copy()
    drawn[0] = IMAGES[WANTED[1]]
    found = unseen.distances(drawn, WANTED, unseen.captioned()[0], CELLS)
    captions = [unseen.captioned()[0].captions[i][0] for i in WANTED[:2]]
    assert (found["wrong"], found["median_rms"]) == ([captions], 0)


def test_nothing_is_judged_twice(tmp_path, monkeypatch):
    asked = []

    def judged(run, guidance, sampling):
        asked.append((run.step, guidance, sampling["steps"]))
        return {"guidance": guidance, "unseen": {"top1": guidance / 10}, "seen": {"top1": 1}}

    monkeypatch.setattr(unseen, "judged", judged)
    options = {"text": "glove", "steps": 3}
    run = types.SimpleNamespace(step=2, options=options, parameters=4, log=lambda: [{"time": 1.0}])
    kept = tmp_path / "scores.json"
    for guidance in ([1], [3, 1], [2]):
        result = unseen.experiment(run, "a", guidance, {"steps": 5}, kept)
    assert asked == [(2, 1, 5), (2, 3, 5), (2, 2, 5)]
    assert ([row["guidance"] for row in result["scores"]], result["best"]) == ([1, 2, 3], 3)
    run.step = 3
    assert len(unseen.experiment(run, "a", [1], {"steps": 5}, kept)["scores"]) == 1
    assert asked[-1] == (3, 1, 5)


@pytest.mark.filterwarnings("ignore:.*facepalming.*:pydiff.text.PromptWarning")
def test_the_script_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unseen, "RECIPE", unseen.RECIPE | {"batch_size": 4, "groups": 4, "attention": (1,)})
    docs = tmp_path / "words.md"
    docs.write_text(f"before\n{unseen.MARKS[0]}\nold\n{unseen.MARKS[1]}\nafter\n")
    place = ["--out", tmp_path / "runs", "--json", tmp_path / "unseen.json", "--docs", docs]
    budget = ["--steps", 2, "--encoder-steps", 1, "--encoders", "learned", "--channels", 4, 8]
    judge = ["--sampling-steps", 1, "--guidance", 2, "--fewer", 1]
    arguments = [str(a) for a in (*place, *budget, *judge)]
    result = unseen.main(arguments)
    assert json.loads((tmp_path / "unseen.json").read_text())["top1"] == result["top1"] <= 0.05
    assert [run["name"] for run in result["runs"]] == ["best: glove", "shorter: learned", "control"]
    assert [run["steps"] for run in result["runs"]] == [2, 1, 2]
    table = capsys.readouterr().out.partition("| run |")[2]
    assert "| best: glove | 2 | 2 | " in table
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| control | 2 |") == 1
    with Image.open(tmp_path / "never-seen.png") as file:
        drawn = np.asarray(file)
    framed = (drawn[1::65, 1::65] == (255, 0, 0)).all(-1)[:12, :12]
    np.testing.assert_array_equal(framed, CELLS.held_out[:12].reshape(12, 12))
    for kept in (tmp_path / "runs").glob("*/scores.json"):
        kept.unlink()
    again = unseen.main([*arguments, "--newest"])  # and the same from checkpoints
    assert [run["scores"] for run in again["runs"]] == [run["scores"] for run in result["runs"]]
