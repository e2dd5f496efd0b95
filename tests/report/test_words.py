"""The section on words: a grid over two attributes, maps of attention for each word, nothing where there is none."""

import re

import numpy as np
import pytest

import pydiff
from pydiff.data import load
from pydiff.report import words
from pydiff.report.attributes import Attributes
from pydiff.report.looks import listen, maps
from pydiff.report.words import Grid, Looks

SMALL = {"steps": 2, "batch_size": 4, "channels": (8, 8), "groups": 4, "sample_every": 0, "attention": (1,)}
COLOURS, THINGS = ["red", "green", "blue"], ["heart", "book"]


@pytest.fixture(scope="module")
def run():
    """Told colours and things, but no blue book."""
    emoji = load("emoji", size=8, channels=1).subset(np.arange(10))
    captions = [f"a {c} {t}" for c in COLOURS for t in THINGS if (c, t) != ("blue", "book")] * 2
    return pydiff.train(load(emoji.images, captions=captions), progress=False, **SMALL)


@pytest.mark.parametrize("encoder", ["glove", "learned"])
def test_the_shares_are_those_of_the_network_at_that_step(run, encoder):
    if encoder == "learned":
        run = pydiff.train(run.dataset(), progress=False, text=encoder, **SMALL)
    prompts = ["a red heart", "[red] - [green]", "", "blue book", "a green book", "a red book"]
    found = words.looks(run.pipeline, prompts, 0, 10, 2.0)
    begins = ["[start]"] if encoder == "learned" else []
    said = ["a red heart", "", "blue book"] if begins else ["a red heart", "blue book", "a green book"]
    assert [one.prompt for one in found] == said
    assert [one.words for one in found] == [begins + prompt.split() for prompt in said]
    assert len(found) == words.SHOWN
    one = found[0]
    assert one.steps.tolist() == [0, 2, 4, 5, 7, 9]
    assert one.shares.shape == (6, len(one.words), 4, 4)
    assert (one.shares >= 0).all()
    assert (one.shares.sum(1) <= 1 + 1e-5).all()
    *_, last = run.sample_states([0], prompts=["a red heart"], steps=10, guidance=2.0)
    before = list(run.sample_states([0], prompts=["a red heart"], steps=10, guidance=2.0))[-2]
    heard = listen(run.model, before.x, np.full(1, last.t), **run.embed("a red heart"))
    np.testing.assert_allclose(one.shares[-1], maps(heard, (8, 8))[0, : len(one.words)], atol=1e-6)
    np.testing.assert_array_equal(one.x0[-1], run.codec.show_x(last.x0)[0])


def test_networks_that_cannot_be_listened_to(run):
    plain = pydiff.train(run.dataset(), progress=False, text="none", **SMALL)
    assert words.looks(plain.pipeline, ["a"], 0, 10, 1.0) == []
    conditioned = pydiff.train(run.dataset(), progress=False, self_conditioning=True, **SMALL)
    assert words.looks(conditioned.pipeline, ["a red heart"], 0, 10, 1.0) == []
    assert words.looks(run.pipeline, ["", "[red] + [heart]"], 0, 10, 1.0) == []


def test_the_page_of_a_run_with_captions(run, tmp_path):
    html = run.report(tmp_path / "page", n=3, steps=3).read_text("utf-8")
    section = re.search(r'<section id="words">.*?</section>', html, re.DOTALL)[0]
    assert "“a … …”" in section
    assert section.count("<td class=new>") == 1
    assert "Framed: 1 prompts that are no captions of the data" in section
    for word in (*COLOURS, *THINGS):
        assert f"{word}</th>" in section
    assert section.count('alt="where ') >= 3 * 6
    asked = run.report(tmp_path / "asked", n=2, steps=3, attributes="{red,<b>} {heart,}", prompts="[red] - [blue]")
    section = re.search(r'<section id="words">.*?</section>', asked.read_text("utf-8"), re.DOTALL)[0]
    assert "&lt;b&gt;</th>" in section
    assert "<b>" not in section
    assert "Which word looks where" not in section
    with pytest.raises(ValueError, match="a grid has two choices in braces"):
        run.report(tmp_path / "wrong", n=2, steps=3, attributes="{red,green} heart")


def test_every_cell_is_the_sample_of_its_prompt_with_the_same_noise(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("pydiff.report.words.section", lambda grid, found: kept.append(grid) or str(len(found)))
    run.report(tmp_path, n=2, steps=3, attributes="a {red,green} {heart,book}", guidance=2.0, seed=3)
    prompts = ["a red heart", "a red book", "a green heart", "a green book"]
    assert kept[0].attributes.prompts() == prompts
    expected = run.codec.show(run.sample(1, 3, prompts=prompts, guidance=2.0))
    np.testing.assert_array_equal(kept[0].images, expected)


def test_without_captions_there_is_no_section(tmp_path):
    plain = pydiff.train("digits", progress=False, steps=2, channels=(8,), groups=4, batch_size=4)
    assert 'id="words"' not in plain.report(tmp_path, n=2, steps=3).read_text("utf-8")
    with pytest.raises(ValueError, match="trained without captions, so a grid of prompts cannot be drawn"):
        plain.report(tmp_path, n=2, steps=3, attributes="{a,b} {c,d}")
    assert words.section(None, []) == ""


def test_pieces_of_the_section():
    images = np.zeros((4, 3, 3, 3), np.uint8)
    grid = Grid(Attributes("{} & {}", ["a", "b"], ["c", "d"]), images, "ddim <8>")
    html = words.section(grid, [])
    assert html.count("<img") == 4
    assert "“… &amp; …”" in html
    assert "ddim &lt;8&gt;." in html
    assert "Framed" not in html
    shares = np.zeros((2, 1, 2, 2))
    shares[0, 0, 0, 0] = 0.25
    html = words.section(None, [Looks("<hi>", ["<hi>"], np.array([0, 5]), images[:2], shares)])
    assert html.count("&lt;hi&gt;") == 2 + 2
    assert "Bright: 25% of a pixel's attention" in html
    assert html.count("<img") == 2 + 2
