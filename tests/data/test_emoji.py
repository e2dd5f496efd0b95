"""The shipped emoji: images, captions, the factorial and what is held out of it; the script that made the file."""

import re

import numpy as np
import pytest

from pydiff.data import describe, load, make_emoji
from pydiff.data.emoji import GENDERS, TONES, factorial


@pytest.fixture(scope="module")
def emoji():
    return load("emoji")


@pytest.fixture(scope="module")
def cells():
    return factorial()


def test_images_and_captions_in_two_languages(emoji):
    assert emoji.images.shape == (3169, 32, 32, 3)
    assert all(len(row) == 2 and all(row) for row in emoji.captions)
    assert set(emoji.languages) == {("en", "de")}
    titles = dict(emoji.captions)
    assert titles["green heart"] == "grünes Herz"
    assert titles["man firefighter: dark skin tone"] == "Feuerwehrmann: dunkle Hautfarbe"
    assert (emoji.images[:, 0, 0] == 255).all(-1).mean() > 0.9  # on white
    assert "green heart | grünes Herz" in describe(emoji.subset([emoji.titles(range(3169)).index("green heart")]))


def test_the_colours_are_those_of_the_words(emoji):
    """The middle of the hearts and circles; an image in another place would show."""
    titles = emoji.titles(range(len(emoji)))
    strongest = {
        name: emoji.images[titles.index(f"{name} circle"), 16, 16].argmax() for name in ("red", "green", "blue")
    }
    assert strongest == {"red": 0, "green": 1, "blue": 2}
    black, white = (emoji.images[titles.index(f"{name} heart"), 14, 16].mean() for name in ("black", "white"))
    assert black < 80
    assert white > 200


def test_the_factorial_is_complete_and_what_is_held_out_is_there_once(emoji, cells):
    assert cells.cells.shape == (80, 2, 6) == (len(cells.roles), len(GENDERS), len(TONES))
    numbers = cells.cells.ravel()
    assert len(set(numbers)) == 960
    assert len(set(cells.roles)) == 80
    drawings = [emoji.images[i].tobytes() for i in numbers]
    twice = {
        tuple(cells.roles[i // 12] for i, p in enumerate(drawings) if p == q) for q in drawings if drawings.count(q) > 1
    }
    assert twice == {("blonde hair", "adult")}
    assert len(set(drawings)) == 958
    for i in cells.unseen:  # nothing gives them away, not even mirrored
        assert drawings.count(emoji.images[i].tobytes()) == 1
        assert emoji.images[i][:, ::-1].tobytes() not in drawings


def test_the_captions_of_the_cells_say_gender_and_tone(emoji, cells):
    women = re.compile(r"\b(wo(man|men)|girl|princess|mermaid|mrs\.)", re.IGNORECASE)
    for role in range(80):
        for gender in range(2):
            for tone, word in enumerate(TONES):
                caption = emoji.captions[cells.cells[role, gender, tone]][0]
                said = re.search(r"(light|medium-light|medium|medium-dark|dark) skin tone", caption)
                assert (said[1] if said else "none") == word, caption
                assert bool(women.search(caption)) == (gender == 1), caption


def test_what_is_held_out_is_fixed_and_balanced(cells):
    held = cells.held_out
    assert (len(cells.kept), len(cells.unseen)) == (816, 144)
    assert not set(cells.kept) & set(cells.unseen)
    assert (held.sum(0) == 12).all()  # every gender and tone alike
    assert set(held.sum((1, 2))) == {1, 2}
    np.testing.assert_array_equal(held, make_emoji.held_out(80))
    assert np.flatnonzero(held.reshape(80, 12)[cells.roles.index("firefighter")]).tolist() == FIREFIGHTER


FIREFIGHTER = [2, 10]  # which of the twelve firefighters are held out


# ---- the script ----------------------------------------------------------------------------------------------------


def test_captions_by_character_and_by_name():
    characters = {"1f9d1-200d-1f692": "firefighter", "2764": "red-heart", "1f600": "unnamed"}
    english = {"1F9D1-200D-1F692": "firefighter", "2764": "red heart", "A": "men wrestling: medium-light skin tone"}
    german = {"1F9D1-200D-1F692": "Feuerwehrleute", "2764": "rotes Herz", "A": "ringende Männer"}
    drawings = ["firefighter", "man-wrestling-medium-light", "nobody", "red-heart", "unnamed"]
    names, captions = make_emoji.captioned(drawings, characters, english, german)
    assert names == ["firefighter", "man-wrestling-medium-light", "red-heart"]
    assert captions[1] == ("men wrestling: medium-light skin tone", "ringende Männer")
    assert captions[2] == ("red heart", "rotes Herz")


def test_labels_have_their_skin_tones():
    data = '[{"hexcode": "270A-FE0F", "label": "x’s", "skins": [{"hexcode": "270A-1F3FB", "label": "light"}]}]'
    assert make_emoji.labels(data.encode()) == {"270A": "x's", "270A-1F3FB": "light"}


def test_the_factorial_takes_complete_roles_that_face_left():
    tones = make_emoji.SUFFIXES
    names = [f"{gender}-{role}{tone}" for gender in GENDERS for role in ("cook", "judge") for tone in tones]
    names += [f"{gender}-running-facing-right{tone}" for gender in GENDERS for tone in tones]
    names += [f"{name}{tone}" for name in ("boy", "girl") for tone in tones]
    names.remove("woman-judge-dark")
    roles, cells = make_emoji.factorial(names)
    assert roles == ["cook", "child"]
    assert [names[i] for i in cells[1, 1]] == [f"girl{tone}" for tone in tones]


@pytest.mark.parametrize("size", [32, 64])
def test_drawing(size):
    pytest.importorskip("resvg_py", reason="resvg_py draws the set anew, and is not installed")
    body = '<path fill="#f00" d="M0 0h32v16H0z"/>'
    icons = {"width": 32, "height": 32}
    image = make_emoji.draw({"body": body}, icons, size)
    assert image.shape == (size, size, 3)
    assert (image[: size // 2] == (255, 0, 0)).all()
    assert (image[size // 2 :] == 255).all()
    tall = make_emoji.draw({"body": body, "height": 64}, icons, size)  # in the middle
    assert (tall[0, 0] == 255).all()
    assert (tall[1, size // 2] == (255, 0, 0)).all()
