"""The benchmarks of speech, points and masks: who is held out from whom, and pages that show what was recorded."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.papers import segmentation, speech, spoken
from pydiff.data import Sounds, load
from pydiff.data.spoken import Recording, speaker_voices
from pydiff.sound import measure
from tests.sound.make import sine

DOCS, RESULTS = Path(__file__).parents[1] / "docs", Path(tables.__file__).parent / "results"


@pytest.mark.parametrize("page", ["sound.md", "points.md", "segmentation.md", "clips.md"])
def test_pages_show_the_recorded_figures(page):
    text = (DOCS / page).read_text()
    assert "<!-- table: " in text
    assert "No results/" not in text
    assert tables.render(text, RESULTS) == text


def test_nobody_judges_what_it_has_heard(monkeypatch):
    names = [f"espeak-ng en-us+m{i} 40 150" for i in range(30)]
    monkeypatch.setattr(speech.spoken, "synthetic_voices", lambda: names)
    ours, theirs, tested = speech.voices_of_three()
    assert not set(ours) & set(theirs)
    assert not set(tested) & {*ours, *theirs}
    assert {*ours, *theirs, *tested} == set(names)
    assert not {name.split()[1] for name in speaker_voices()} & {name.split()[1] for name in names}
    assert not {*speech.OTHERS} & {*speech.spoken.DIGITS}


def test_one_person_of_each_language_with_three_is_held_out(monkeypatch):
    said = [
        Recording(Path(f"{v}/{d}"), d, v) for v in ("fr 1", "fr 2", "fr_CA prompts", "de 1", "de 2") for d in (0, 1)
    ]
    monkeypatch.setattr(spoken, "digit_recordings", lambda: said)
    heard, held = spoken.people()
    assert len({one.voice for one in held}) == 1
    assert held[0].voice.startswith("fr")
    assert not {one.voice for one in heard} & {one.voice for one in held}
    assert len(heard) + len(held) == len(said)


def test_other_tempos_are_other_pitches():
    x = np.pad(sine(400, 8000, 0.3), (400, 400)).astype(np.float32)
    data = Sounds("x", x[None, None, :, None], np.array([3]), ["a", "b", "c", "d"], rate=8000)
    made = spoken.at_other_tempos(data)
    assert made.labels.tolist() == [3] * 5
    assert np.array_equal(made.images[0], data.images[0])
    for sound, tempo in zip(made.images[1:], spoken.TEMPOS, strict=True):
        assert abs(measure.cents(measure.pitch(sound[0, :, 0], 8000), 400 * tempo)) < 5


def test_what_was_made_is_kept(tmp_path):
    made = load("tones", rate=2000, seconds=0.1).subset(np.arange(4))
    first = spoken.kept(tmp_path / "deep/tones.npz", lambda: made)
    second = spoken.kept(tmp_path / "deep/tones.npz", lambda: pytest.fail("it was made again"))
    for again in (first, second):
        assert again.fingerprint() == made.fingerprint()
        assert (again.classes, again.rate) == (made.classes, made.rate)


def test_the_mask_of_an_emoji_is_all_but_the_white_around_it(tmp_path):
    emoji = np.full((8, 8, 3), 255, np.uint8)
    emoji[2:6, 2:6] = 30
    emoji[3:5, 3:5] = 255  # white inside is part of it
    inside = segmentation.drawn_in(emoji)
    assert inside.sum() == 16
    assert inside[2:6, 2:6].all()
    segmentation.write_folder(tmp_path, 3)
    masks = segmentation.segment.load_masked(tmp_path)
    assert masks.classes == ["0", "255"]
    assert 0.1 < masks.masks.mean() < 0.9


def test_intervals_hold_the_figure_and_grow_with_doubt():
    truth = np.zeros((20, 4, 4), int)
    truth[:, :2] = 1
    right = truth.copy()
    doubtful = truth.copy()
    doubtful[::3] = 0
    assert segmentation.interval(right, truth, 2) == [1.0, 1.0]
    low, high = segmentation.interval(doubtful, truth, 2)
    assert low < np.nanmean(segmentation.segment.iou(doubtful, truth, 2)) < high


def test_the_script_of_speech_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    tones = load("tones", rate=2000, seconds=0.25).subset(np.arange(40))
    digits = Sounds("d", tones.images, np.arange(40) % 10, speech.spoken.DIGITS, rate=2000)
    speech_alone = Sounds("s", tones.images, rate=2000)
    names = ("classifier", "recogniser", "tested", "speaker")
    known = dict.fromkeys(names, digits) | dict.fromkeys(("speech", "speaker's words", "others' words"), speech_alone)
    monkeypatch.setattr(speech, "data", lambda _: known)
    monkeypatch.setattr(speech, "SCALES", {"noise": (0.1,), "gradient": (1.0,)})
    monkeypatch.setattr(speech, "DRAWN", {"steps": 2})
    for recipe in ("RECIPE", "JUDGE"):
        small = {**getattr(speech, recipe), "channels": (8, 8), "batch_size": 4}
        monkeypatch.setattr(speech, recipe, small)
    steps = ["--steps", "1", "--classifier-steps", "1", "--recogniser-steps", "1", "--count", "2"]
    arguments = ["--out", str(tmp_path / "out"), *steps, "--json", str(tmp_path / "speech.json")]
    (tmp_path / "out").mkdir()
    first = speech.main(arguments)
    assert set(first["speech"]["rows"]) == {
        "the voice itself", "the voice itself, through the spectrogram", "the classifier's voices", "not steered",
        "by noise, scale 0.1", "by gradient, scale 1",
    }  # fmt: skip
    assert speech.table(first["speech"]).count("\n") == 7
    monkeypatch.setattr(speech, "judged", lambda *_, **__: pytest.fail("a row was made again"))
    assert speech.main(arguments)["speech"]["rows"] == first["speech"]["rows"]
    assert len(list((tmp_path / "out/samples").glob("*.wav"))) == 3
