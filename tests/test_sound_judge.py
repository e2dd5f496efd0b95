"""The benchmark of sounds judges as it should: sounds of the formula pass, noise and other classes' sounds do not."""

import json
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.papers import sound
from pydiff.data.tones import CLASSES, load_tones

RESULT = Path(sound.__file__).parents[1] / "results/sound.json"


def test_the_formula_passes_and_others_do_not():
    tones = load_tones(44, rate=sound.RATE, seconds=sound.SECONDS)
    right = sound.judged(tones.images, tones.labels)
    assert right["notes_right"] == right["sweeps_right"] == 1
    assert right["vowels_right"] >= 0.8
    assert right["median_cents"] <= 10
    wrong = sound.judged(np.roll(tones.images, 1, 0), tones.labels)
    noise = 0.1 * np.random.default_rng(0).standard_normal(tones.images.shape)
    for bad in (wrong, sound.judged(noise, tones.labels)):
        assert bad["notes_right"] <= 0.25
        assert bad["sweeps_right"] <= 0.25
        assert bad["vowels_right"] <= 0.5


def test_nearness_and_variety():
    tones = load_tones(22, rate=sound.RATE, seconds=sound.SECONDS)
    between = sound.distances(sound.features(tones.images), sound.features(tones.images))
    assert np.abs(np.diag(between)).max() < 1e-4
    assert (between[0][np.arange(22) % len(CLASSES) != 0] > between[0, 11]).mean() > 0.7  # the other C4 is nearer
    assert sound.variety(np.repeat(tones.images[:1], 4, 0), np.zeros(4, int)) < 1e-3


def test_the_page_shows_the_recorded_figures():
    page = Path(__file__).parents[1] / "docs/sound.md"
    assert tables.render(page.read_text(), RESULT.parent) == page.read_text()
    assert tables.table_of(json.loads(RESULT.read_text())).count("\n") == 6
