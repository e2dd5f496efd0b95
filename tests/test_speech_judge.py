"""The benchmarks of speech, points and masks: who is held out from whom, and pages that show what was recorded."""

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import pydiff
from benchmarks import tables
from benchmarks.papers import recogniser, segmentation, speech, spoken
from benchmarks.papers.spoken import Judge
from pydiff.data import Sounds, load
from pydiff.data.spoken import Recording, load_spoken_digits, speaker_voices
from pydiff.sound import measure
from tests.sound.make import sine, wav

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


class Ear(Judge):
    """A judge without a library, which hears the digit d in a tone of 200 + 60 d Hz."""

    def __init__(self, rate):
        self.rate = rate

    def _heard(self, samples):
        return round((measure.pitch(samples / 32767, self.rate) - 200) / 60)


def digits_by(voices, folder):
    """Recordings of three tones, one a digit, by each of the voices."""
    made = []
    for voice in voices:
        for digit in range(3):
            path = folder / f"{voice} {digit}.wav"
            path.write_bytes(wav(sine(200 + 60 * digit, 8000, 0.4)))
            made.append(Recording(path, digit, voice))
    return made


def test_the_judge_hears_sounds_of_any_loudness_and_says_what_it_missed():
    sounds = np.stack([a * sine(200 + 60 * d, 8000, 0.5) for d, a in ((3, 0.5), (7, 0.01), (2, 0.9))])
    sounds = sounds[:, None, :, None].astype(np.float32)
    assert Ear(8000).hears(sounds).tolist() == [3, 7, 2]
    found = spoken.recognised(Ear(8000), sounds, np.array([3, 7, 4]))
    assert found["recognised"] == 2 / 3
    assert found["sounds"] == 3
    assert found["not_recognised"] == {"four": 1}
    assert found["interval"][0] < 2 / 3 < found["interval"][1]


def test_a_judge_that_is_not_installed_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match="pip install pocketsphinx"):
        Judge(8000)
    monkeypatch.setitem(sys.modules, "pocketsphinx", types.SimpleNamespace(Decoder=None))
    with pytest.raises(FileNotFoundError, match="pocketsphinx-testdata"):
        Judge(8000, tmp_path / "none")


def test_the_judge_understands_people():
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed")
    pytest.importorskip("soundfile", reason="ogg needs soundfile: not installed")
    if not spoken.TIDIGITS.is_dir() or not spoken.people():
        pytest.skip("pocketsphinx-testdata, or every recording in English, is not installed")
    data = load_spoken_digits(recordings=[one for theirs in spoken.people().values() for one in theirs])
    judge = Judge(data.rate)
    assert spoken.recognised(judge, data.images, data.labels)["recognised"] >= 0.95
    hard = data.images[:, :, ::-1] + 0.02 * pydiff.random.normal(
        pydiff.random.key(0, pydiff.random.DATA, 0), data.shape
    )
    heard = judge.hears(hard)
    assert (heard == data.labels).mean() < 0.6
    assert np.array_equal(heard, judge.hears(hard[::-1])[::-1])  # nothing is left of what was heard before


def test_the_script_of_digits_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    voices = ("en_GB 1", "en_US 1", "fr 1")
    recorded = digits_by(voices, tmp_path)
    monkeypatch.setattr(spoken, "digit_recordings", lambda: recorded)
    monkeypatch.setattr(spoken, "synthetic_voices", list)
    monkeypatch.setattr(spoken, "Judge", Ear)
    monkeypatch.setattr(spoken, "RECIPE", {**spoken.RECIPE, "channels": (8, 8), "batch_size": 4})
    monkeypatch.setattr(spoken, "GUIDANCE", (1.0,))
    monkeypatch.setattr(spoken, "TEMPOS", (1.1,))
    monkeypatch.setattr(spoken, "BANDS", 16)
    monkeypatch.setattr(spoken, "fitting", lambda *_: {"size": 128, "hop": 32})
    monkeypatch.setattr(spoken, "DRAWN", {"steps": 2})
    trained = []
    train = spoken.pydiff.train
    monkeypatch.setattr(spoken.pydiff, "train", lambda data, **how: trained.append(data) or train(data, **how))
    arguments = ["--out", str(tmp_path / "out"), "--steps", "1", "--count", "2", "--json", str(tmp_path / "s.json")]
    first = spoken.main(arguments)["digits"]
    assert first["people"] == 2
    assert first["learned_from"] == first["rows"]["training sounds"]["sounds"] == 6  # one of them, at two tempos
    assert set(first["rows"]) == {
        "recordings, en_GB 1", "recordings, en_US 1", "recordings, together",
        "recordings, through 16 bands", "recordings, through 32 bands", "held out (en_GB 1)",
        "held out (en_GB 1): nearest training sounds",
        "training sounds", "training sounds, through 16 bands", "samples, guidance 1",
        "samples, guidance 1: nearest training sounds",
    }  # fmt: skip
    for name in ("recordings, together", "held out (en_GB 1)", "held out (en_GB 1): nearest training sounds"):
        assert first["rows"][name]["recognised"] == 1
    assert spoken.table(first).count("\n") == 12
    monkeypatch.setattr(Ear, "hears", lambda *_: pytest.fail("a row was made again"))
    assert spoken.main(arguments)["digits"]["rows"] == first["rows"]
    monkeypatch.setattr(spoken, "Judge", partial(Judge, folder=tmp_path / "none"))
    with pytest.raises(SystemExit, match="the judge of spoken digits needs"):
        spoken.main(arguments)
    monkeypatch.setattr(spoken, "digit_recordings", lambda: recorded[3:6])
    with pytest.raises(SystemExit, match="install the packages"):
        spoken.main(arguments)


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
    first = recogniser.kept(tmp_path / "deep/tones.npz", lambda: made)
    second = recogniser.kept(tmp_path / "deep/tones.npz", lambda: pytest.fail("it was made again"))
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
