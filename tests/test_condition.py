"""Condition and Conditioning: rows that stay together, what says "nothing asked for", and one sentence for the rest."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.condition import LABELS, Condition, Conditioning
from tests.bits import assert_same_bits

NOTHING = {LABELS: np.int64(4), "context": np.full((2, 3), -1.0, np.float32), "mask": np.zeros(2, np.int64)}
counts = st.integers(1, 9)


def condition(n=5, names=tuple(NOTHING), nothing=NOTHING):
    """n rows that can be told apart."""
    rows = np.arange(n)
    arrays = {
        LABELS: rows % 4,
        "context": np.arange(6 * n, dtype=np.float32).reshape(n, 2, 3),
        "mask": np.stack([rows, rows + 100], axis=1),
    }
    return Condition({name: arrays[name] for name in names}, nothing)


def same(a, b):
    """Whether two conditions have the same arrays, bit for bit, and the same null."""
    assert list(a) == list(b)
    assert a.rows == b.rows
    assert_same_bits(a.values(), b.values())
    assert a.has_null == b.has_null
    if a.has_null:
        assert_same_bits(a.null().values(), b.null().values())


# ---- a mapping with rows ---------------------------------------------------------------------------------------------


def test_a_condition_is_what_a_network_is_given_by_name():
    made = condition()
    assert (lambda **given: list(given))(**made) == [LABELS, "context", "mask"]
    assert (len(made), made.rows) == (3, 5)
    assert made["mask"].shape == (5, 2)
    assert repr(made) == "Condition(class_labels int64 (5,), context float32 (5, 2, 3), mask int64 (5, 2); 5 rows)"
    with pytest.raises(KeyError, match="text"):
        made["text"]


def test_no_condition_still_has_rows():
    made = Condition(rows=4)
    assert (dict(made), made.rows, made.has_null) == ({}, 4, False)
    assert (Condition().rows, Condition().take([]).rows) == (0, 0)
    assert made.take([2, 0, 0]).rows == 3
    assert made.take(slice(1, 4)).rows == 3
    assert made.drop(np.ones(4, bool)).rows == made.null().rows == 4  # nothing is easily left out
    assert repr(made) == "Condition(none; 4 rows)"


@pytest.mark.parametrize(
    ("arrays", "rows", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros((4, 2))}, None, r"one row a sample in every array, got a \(3,\), b \(4, 2\)"),
        ({"a": np.zeros(3)}, 5, r"got a \(3,\) for 5 samples"),
    ],
)
def test_unequal_numbers_of_rows(arrays, rows, message):
    with pytest.raises(ValueError, match=message):
        Condition(arrays, rows=rows)


@given(n=counts, data=st.data())
def test_take_takes_these_rows_of_every_array_in_this_order(n, data):
    made = condition(n)
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)))
    taken = made.take(indices)
    assert taken.rows == len(indices)
    for name, a in made.items():
        assert_same_bits([taken[name]], [np.stack([a[i] for i in indices])])
    again = data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1, max_size=12))
    same(taken.take(again), made.take(indices[again]))
    same(made.take(np.arange(n)), made)


# ---- nothing asked for -----------------------------------------------------------------------------------------------


@given(n=counts, data=st.data())
def test_drop_replaces_these_rows_alone_and_of_all_arrays(n, data):
    made = condition(n)
    before = {name: a.copy() for name, a in made.items()}
    where = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    dropped = made.drop(where)
    for name, a in made.items():
        expected = np.stack([np.asarray(NOTHING[name], a.dtype) if where[i] else a[i] for i in range(n)])
        assert_same_bits([dropped[name]], [expected])
        assert_same_bits([a], [before[name]])  # the original stays as it was
    same(dropped.drop(where), dropped)
    same(dropped.drop(~where), made.null())
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12))
    same(dropped.take(indices), made.take(indices).drop(where[indices]))  # half a batch is that half


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e300), ("float16", 1e5), ("float64", float("nan"))])
def test_a_stored_row_that_is_not_finite_is_refused(dtype, value):
    """And NumPy does not announce it, as it would announce an overflow."""
    with pytest.raises(ValueError, match=r"^the row of class_labels that asks for nothing is not finite$"):
        Conditioning.from_config({"nothing": {"class_labels": {"dtype": dtype, "row": [0.0, value]}}})


def test_null_says_nothing_in_every_row():
    null = condition(3).null()
    assert null[LABELS].tolist() == [4, 4, 4]
    assert (null["context"] == -1).all()
    assert null["context"].shape == (3, 2, 3)
    assert (null["mask"] == 0).all()
    assert [a.dtype for a in null.values()] == [np.int64, np.float32, np.int64]
    same(null.null(), null)


def test_has_null_needs_a_row_for_every_array():
    partly = {LABELS: np.int64(4)}
    assert condition().has_null
    assert condition(names=[LABELS], nothing=partly).has_null
    assert not condition(nothing=partly).has_null
    assert not condition(nothing={}).has_null
    assert not Condition(rows=3).has_null


def test_what_the_model_never_went_without_cannot_be_left_out():
    made = condition(nothing={LABELS: np.int64(4)})
    for leave_out in (made.null, lambda: made.drop(np.zeros(5, bool))):
        with pytest.raises(ValueError, match="never shown samples without context, mask, so guidance cannot leave it"):
            leave_out()
    same(made.take([1]), condition(nothing={LABELS: np.int64(4)}).take([1]))


# ---- devices ---------------------------------------------------------------------------------------------------------


class Elsewhere:
    """A library of another device: it says which arrays came to it."""

    def __init__(self):
        self.arrived = []

    def asarray(self, a):
        self.arrived.append(a)
        return a.copy()


def test_floats_and_masks_go_to_the_device_and_integers_stay_on_the_host():
    seen = np.array([True, False, True, True, False])
    made, xp = Condition(dict(condition()) | {"seen": seen}, NOTHING | {"seen": np.bool_(False)}), Elsewhere()
    moved = made.to(xp)
    assert [id(a) for a in xp.arrived] == [id(made["context"]), id(seen)]
    assert moved[LABELS] is made[LABELS]
    assert moved["mask"] is made["mask"]
    same(moved, made)


# ---- what a user asks for --------------------------------------------------------------------------------------------

CLASSES = ["cat", "dog", "owl"]
BOTH = Conditioning(CLASSES, {"context": np.zeros((2, 3), np.float32)})


def test_kinds_of_conditioning():
    plain, classes = Conditioning(), Conditioning(CLASSES)
    assert (plain.empty, plain.embeddings, plain.classes) == (True, None, None)
    assert (classes.empty, classes.embeddings, classes.classes) == (False, 4, CLASSES)  # one row for "withheld"
    assert not Conditioning(nothing={"context": np.zeros(3)}).empty
    assert not BOTH.empty


@given(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_classes_take_turns_by_number_whoever_else_is_there(numbers):
    made = BOTH.rows(np.array(numbers))
    assert made[LABELS].tolist() == [i % 3 for i in numbers]
    assert made.rows == len(numbers)
    assert not made["context"].any()  # left out: null


def test_rows_hold_what_was_asked_for():
    context = np.arange(12.0).reshape(2, 2, 3)
    made = BOTH.rows(np.arange(2), [2, 0], {"context": context})
    assert made[LABELS].tolist() == [2, 0]
    assert_same_bits([made["context"]], [context.astype(np.float32)])  # in the dtype the model was trained with
    longer = np.ones((2, 7, 3))
    asked = BOTH.rows(np.arange(2), condition={"context": longer})
    assert asked["context"].shape == (2, 7, 3)
    assert asked.null()["context"].shape == (2, 2, 3)  # nothing asked for is as long as it always is
    same(BOTH.nothing_asked(3), BOTH.rows(np.arange(3)).null())
    assert BOTH.nothing_asked(3)[LABELS].tolist() == [3, 3, 3]
    assert Conditioning().rows(np.arange(3)).rows == Conditioning().nothing_asked(3).rows == 3


def test_classes_are_known_by_their_characters_however_they_are_encoded():
    """A Mac's shell takes accents apart; a terminal without UTF-8 hands over bytes."""
    conditioning = Conditioning(["éa", "cat", "e\u0301b", "日本"])
    apart = unicodedata.normalize("NFD", "éa")
    as_bytes = "日本".encode().decode("ascii", "surrogateescape")
    assert [conditioning.number_of(name) for name in (apart, "éb", as_bytes)] == [0, 2, 3]
    both = Conditioning(["é", "e\u0301"])
    assert [both.number_of(name) for name in ("é", "e\u0301")] == [0, 1]


@pytest.mark.parametrize(("name", "meant"), [("Cat", "cat"), ("big_dog", "big dog"), ("birds", "bird")])
def test_a_class_that_is_misspelled_is_asked_about(name, meant):
    with pytest.raises(ValueError, match=f"there is no class '{name}'; did you mean '{meant}'"):
        Conditioning(["cat", "big dog", "bird"]).number_of(name)


def test_labels_of_every_kind():
    for labels in ("owl", 2, np.int8(2), np.str_("owl"), ["owl", 2], np.array(["owl", "owl"], object), ("2", "owl")):
        assert BOTH.rows(np.arange(2), labels)[LABELS].tolist() == [2, 2]
    # a name that looks like a number wins, even where other names do not
    some = Conditioning(["2", "5", "cat"])
    assert some.rows(np.arange(3), [2, 5, 1])[LABELS].tolist() == [0, 1, 1]
    assert some.rows(np.arange(3), ["2", "cat", "0"])[LABELS].tolist() == [0, 2, 0]
    with pytest.raises(ValueError, match=r"labels must be 2 whole numbers .* got \['owl', 'cat', 'owl'\]"):
        BOTH.rows(np.arange(2), ["owl", "cat", "owl"])


@pytest.mark.parametrize(
    ("conditioning", "asked", "message"),
    [
        (Conditioning(), {"labels": [1, 2]}, "trained without classes, so labels cannot be given"),
        (BOTH, {"labels": [1]}, "labels must be 2 whole numbers from 0 to 2"),
        (BOTH, {"labels": [1, 3]}, "labels must be 2 whole numbers from 0 to 2"),
        (BOTH, {"labels": [-1, 0]}, "labels must be 2 whole numbers"),
        (BOTH, {"labels": [0.0, 1.0]}, "labels must be 2 whole numbers"),
        (BOTH, {"labels": [[0], [1]]}, "labels must be 2 whole numbers"),
        (BOTH, {"condition": {"text": 1}}, "this model takes no condition 'text'; it takes context"),
        (Conditioning(CLASSES), {"condition": {"text": 1}}, "takes no condition 'text'; it takes none"),
        (
            BOTH,
            {"condition": {"context": np.zeros((3, 2, 3))}},
            r"context must have shape \(2, 2, 3\), got \(3, 2, 3\)",
        ),
        (BOTH, {"condition": {"context": np.zeros((2, 2, 4))}}, r"context must have shape .*, got \(2, 2, 4\)"),
        (BOTH, {"condition": {"context": np.zeros((2, 3))}}, r"context must have shape .*, got \(2, 3\)"),
    ],
)
def test_what_cannot_be_asked_for(conditioning, asked, message):
    with pytest.raises(ValueError, match=message) as error:
        conditioning.rows(np.arange(2), **asked)
    assert "\n" not in str(error.value)


# ---- data and files --------------------------------------------------------------------------------------------------


def test_the_condition_of_data_has_the_columns_that_the_model_takes():
    labels, context = np.array([2, 1]), np.ones((2, 2, 3), np.float32)
    made = BOTH.of_data(labels, {"context": context, "never used": np.zeros(2)})
    assert list(made) == [LABELS, "context"]
    assert made[LABELS] is labels
    assert made.null()[LABELS].tolist() == [3, 3]
    assert not made.null()["context"].any()
    assert list(Conditioning(nothing=BOTH.nothing).of_data(None, {"context": context})) == ["context"]


@given(
    classes=st.none() | st.lists(st.text(max_size=5), min_size=1, max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=2),
    dtype=st.sampled_from(["float32", "float64", "float16", "int64", "uint8"]),
    seed=st.integers(0, 99),
)
def test_a_conditioning_comes_back_from_json(classes, shape, dtype, seed):
    row = (np.random.default_rng(seed).standard_normal(shape) * 9).astype(dtype)
    made = Conditioning(classes, {"a": row, "b": np.float32(0.1)})
    again = Conditioning.from_config(json.loads(json.dumps(made.to_config())))
    assert (again.classes, again.embeddings, list(again.nothing)) == (made.classes, made.embeddings, ["a", "b"])
    if row.size:  # a row without numbers keeps its number of axes alone
        assert_same_bits(again.nothing.values(), made.nothing.values())


def test_the_configuration_of_an_older_file():
    """Before further arrays there were classes alone, or nothing."""
    assert Conditioning.from_config({"classes": CLASSES}).classes == CLASSES
    assert Conditioning.from_config({}).empty
