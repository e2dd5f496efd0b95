"""The log: every entry once, in memory and on disk alike, whatever a crash left of the last line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.store.log import Log


def entries(n):
    return [{"step": step, "loss": 1.0 / step, "skipped": None} for step in range(1, n + 1)]


def filled(path, n):
    log = Log(path)
    for entry in entries(n):
        log.append(entry)
    log.sync()
    return log


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "log.jsonl"
    assert filled(path, 3).entries == entries(3) == Log(path).entries
    assert [json.loads(line) for line in path.read_text().splitlines()] == entries(3)
    again = Log(path)
    again.append({"step": 4})
    assert Log(path).entries == [*entries(3), {"step": 4}] == again.entries


def test_a_log_of_a_file_that_is_not_there_is_empty_and_makes_none(tmp_path):
    assert Log(tmp_path / "log.jsonl").entries == []
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
def test_of_a_file_cut_anywhere_all_whole_lines_are_read(tmp_path_factory, data):
    """As a crash leaves it: cut inside a line, or right before the line's end."""
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    filled(path, 4)
    whole = path.read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:kept])
    log, complete = Log(path), entries((whole[:kept] + b"\n").count(b"}\n"))  # the line's end itself may be missing
    assert log.entries == complete
    assert log.damaged == (whole[:kept] != b"" and whole[kept - 1 : kept] not in (b"}", b"\n"))
    log.cut(4)  # what a resumed run does before its first step: the half line is gone
    log.append({"step": 5})
    again = Log(path)
    assert again.entries == log.entries == [*complete, {"step": 5}]
    assert again.damaged == 0


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("on_disk", [True, False])
def test_cut_forgets_what_came_after_a_step(tmp_path, step, on_disk):
    path = tmp_path / "log.jsonl"
    log = filled(path, 4) if on_disk else Log(entries=entries(4))
    log.cut(step)
    assert log.entries == entries(4)[:step]
    log.append({"step": step + 1})
    assert log.entries == [*entries(4)[:step], {"step": step + 1}]
    if on_disk:
        assert Log(path).entries == log.entries
        assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]  # and nothing beside it


def test_a_log_in_memory_writes_nothing_and_copies_what_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given_entries = entries(2)
    log = Log(entries=given_entries)
    log.append({"step": 3})
    log.sync()
    log.cut(3)
    assert log.entries == [*entries(2), {"step": 3}]
    assert given_entries == entries(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["loss", "lr", "time", "images_per_second"])
def test_a_line_that_no_training_wrote_is_left_out_and_counted(tmp_path, name):
    path = tmp_path / "log.jsonl"
    filled(path, 2)
    for wrong in ("slow", [1.0], True, {}):
        path.write_text(path.read_text() + json.dumps({"step": 3, name: wrong}) + "\n")
    path.write_text(path.read_text() + json.dumps({"step": 3, name: None}) + "\n")
    log = Log(path)
    assert log.entries == [*entries(2), {"step": 3, name: None}]
    assert log.damaged == 4
