"""The first minute: what comes trained draws at once, the second act is foretold, and Ctrl-C leaves what there is."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff import cli, trained
from pydiff.demo import demo, foretold, in_terminal
from pydiff.training import Interrupted
from tests.peers import import_diffusers

OPTIONS = pydiff.Options(steps=6, batch_size=8, channels=(8,), groups=4, sample_every=3, timesteps=40)
SHIPPED = trained.FOLDER / "digits"


class Heard(list):
    """What the demo says: (line, whether it is an image)."""

    def __call__(self, *lines, image=False):
        self.extend((str(line), image) for line in lines)

    @property
    def text(self):
        return "\n".join(line for line, image in self if not image)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    out, heard = tmp_path_factory.mktemp("demo") / "demo", Heard()
    return demo(out, OPTIONS, say=heard), out, heard


def test_the_first_act_comes_before_the_second_is_foretold(played):
    _, _, heard = played
    acts = [re.search("Act 1|Act 2: a model|after 3 steps|after 6 steps|Act 2 is done", line) for line, _ in heard]
    said = [found.group() for found in acts if found]
    assert said == ["Act 1", "Act 2: a model", "after 3 steps", "after 6 steps", "Act 2 is done"]
    assert re.search(r"6 steps, then a page.* ms a step, that takes about [\d.]+ (seconds|minutes)", heard.text)
    assert sum(image for _, image in heard) == 4  # both acts, and two on the way


def test_the_page_has_both(played):
    page, out, _ = played
    html = page.read_text()
    assert page == out / "report.html"
    assert html.index('id="acts"') < html.index('id="data"')
    assert html.count('alt="drawn ') == 20 + 2
    assert "drawn after 3 steps" in html
    for name in ("shipped.png", "samples.png", "model/model_index.json"):
        assert (out / name).is_file(), name


def test_the_same_call_again_trains_nothing(played, monkeypatch):
    _, out, _ = played
    log, heard = (out / "log.jsonl").read_bytes(), Heard()
    monkeypatch.setattr(pydiff.Run, "report", lambda *_, **__: out / "report.html")
    demo(out, OPTIONS, say=heard)
    assert (out / "log.jsonl").read_bytes() == log
    assert "has learned them already" in heard.text


def test_what_is_left_of_it_is_foretold(played):
    _, out, _ = played
    more = pydiff.Options(**{**OPTIONS.to_config(), "steps": 12, "channels": (8,)})
    assert "12 steps, of which 6 are done" in foretold(out, more, "cpu", 1e-3, 40)
    longer = [foretold(out.with_name("new"), more, "cpu", each, 40) for each in (0.0, 10.0)]
    assert "hours" in longer[1]
    assert "hours" not in longer[0]


def test_ctrl_c_leaves_what_there_is_and_goes_on(tmp_path):
    heard = Heard()

    def say(*lines, image=False):
        heard(*lines, image=image)
        if any("after 3 steps" in str(line) for line in lines):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 4"):  # the signal came while step 3 was shown
        demo(tmp_path, OPTIONS, say=say)
    assert (tmp_path / "shipped.png").is_file()
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1
    assert str(tmp_path / "shipped.png") in heard.text
    demo(tmp_path, OPTIONS, page_steps=5, say=heard)
    assert pydiff.load(tmp_path).step == 6
    assert "of which 4 are done" in heard.text


def test_ctrl_c_while_the_page_is_written(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pydiff.Run, "report", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"model is in .*pydiff report"):
        demo(tmp_path, OPTIONS, say=Heard())


def test_what_cannot_work_is_refused_before_anything_is_drawn(tmp_path):
    heard = Heard()
    with pytest.raises(ValueError, match="steps must be"):
        demo(tmp_path / "new", pydiff.Options(steps=0), say=heard)
    assert heard == []
    assert not (tmp_path / "new").exists()


def test_quick_has_a_folder_and_fewer_steps_of_its_own(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("pydiff.demo.demo", lambda *arguments: given.append(arguments) or Path("x/report.html"))
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("film.webp")]))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == cli.main(["demo", "--quick"]) == 0
    (out, options, _, steps, _), (quick_out, quick, _, quick_steps, _) = given
    assert (out, quick_out, steps) == (Path("demo"), Path("demo-quick"), None)
    assert quick.steps < options.steps
    assert quick_steps < options.timesteps


@pytest.mark.parametrize(("columns", "rows"), [(200, 10), (80, 19), (20, 46)])
def test_no_image_is_wider_than_the_terminal(monkeypatch, columns, rows):
    """No pixel is averaged away as long as two digits fit."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = in_terminal(np.zeros((20, 8, 8, 1), np.uint8)).split("\n")
    assert len(lines) == rows
    assert all(len(line) < columns for line in lines)


# ---- what comes trained ----------------------------------------------------------------------------------------------


def test_it_is_small_and_in_half_precision():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    header = (SHIPPED / "unet/diffusion_pytorch_model.safetensors").read_bytes()[:200_000]
    assert b'"F16"' in header
    assert b'"F32"' not in header


def test_it_draws_the_digit_that_is_asked_for():
    """As the training digit that is nearest says, which is right of 98.8 % of real ones, each left out in turn."""
    wanted = np.arange(100) % 10
    images = pydiff.load("digits").sample(100, seed=3, labels=wanted, steps=25)
    data = pydiff.data.load("digits")
    known, drawn = (a.reshape(len(a), -1).astype(np.float64) for a in (data.images, images))
    distance = (drawn**2).sum(1)[:, None] - 2 * drawn @ known.T + (known**2).sum(1)
    assert (data.labels[distance.argmin(1)] == wanted).mean() >= 0.9
    assert distance.min() > 0  # none is a copy


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained.place("digits") == SHIPPED
    assert trained.place("other") == Path("other")
    (tmp_path / "digits").mkdir()
    assert trained.place("digits") == Path("digits")


def test_diffusers_opens_it():
    pipeline = import_diffusers().DDPMPipeline.from_pretrained(SHIPPED)
    assert pipeline.unet.config.num_class_embeds == 11
