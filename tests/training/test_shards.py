"""The tree that gradients are added in: the same sum, to the bit, in whatever order and by however many it is made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.training import DiffusionTask, LoopOptions, Options, Trainer, train_task, training_steps
from pydiff.training.distributed import settled, share_of
from pydiff.training.gradient import tree_sum
from pydiff.training.shards import Node, TreeSum, cut, is_root, whole_nodes
from tests.bits import assert_same_bits
from tests.training.numbered_images import dataset


def written_out(shards, level, place):
    """The tree of the definition, as text."""
    if level == 0:
        return str(place) if place < shards else None
    left, right = (written_out(shards, level - 1, 2 * place + i) for i in (0, 1))
    return left if right is None else f"({left}+{right})"


class Text:
    """A number that remembers how it was made. size: what the pool of buffers asks for."""

    def __init__(self, text):
        self.text = text

    def __iadd__(self, other):
        self.text = f"({self.text}+{other.text})"
        return self


def texts(shards, freed=None, copied=None):
    def copy(a):
        made = Text(a.text)
        if copied is not None:
            copied.append(made)
        return made

    return TreeSum(shards, copy, [].append if freed is None else freed.append)


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 7, 8, 13, 31, 32])
@given(data=st.data())
def test_leaves_in_any_order_make_the_same_tree(shards, data):
    freed, copied = [], []
    made, given = texts(shards, freed, copied), []
    for shard in data.draw(st.permutations(range(shards))):
        leaf, borrowed = Text(str(shard)), data.draw(st.booleans())
        given += [] if borrowed else [leaf]
        node = made.add(Node(0, shard), leaf, borrowed=borrowed)
    assert is_root(node, shards)
    levels = (shards - 1).bit_length()
    total = made.take(node)
    assert total.text == written_out(shards, levels, 0)
    assert made.waiting == {}
    # What was given for good and what was copied is given back once each, but for the sum.
    assert sorted(map(id, [*freed, total])) == sorted(map(id, [*given, *copied]))


@given(shards=st.integers(1, 64), size=st.integers(1, 64))
def test_a_process_adds_its_own_shards_to_whole_nodes_with_few_buffers(shards, size):
    if size > shards:
        return
    gathered = texts(shards)
    for first, end in cut(shards, size):
        own, most = texts(shards), 0
        for shard in range(first, end):
            own.add(Node(0, shard), Text(str(shard)))
            most = max(most, len(own.waiting))
        assert sorted(own.waiting) == sorted(whole_nodes(first, end, shards))
        assert most <= 2 * max(1, (end - first).bit_length())
        for node in list(own.waiting):
            root = gathered.add(node, own.take(node))
    assert gathered.take(root).text == written_out(shards, (shards - 1).bit_length(), 0)


def test_a_borrowed_array_is_left_as_it_is():
    made = TreeSum(2, np.ndarray.copy, lambda _: None)
    a, b = np.ones(3), np.full(3, 2.0)
    made.add(Node(0, 0), a, borrowed=True)
    root = made.add(Node(0, 1), b, borrowed=True)
    np.testing.assert_array_equal(made.take(root), 3.0)
    assert (a == 1).all()
    assert (b == 2).all()


def test_numbers_are_added_in_the_same_tree():
    numbers = np.random.default_rng(0).standard_normal(13).tolist()
    made = TreeSum(13, np.ndarray.copy, lambda _: None)
    for shard, number in enumerate(numbers):
        root = made.add(Node(0, shard), np.array([number]))
    expected = made.take(root)[0]
    assert tree_sum(numbers) == expected


@pytest.mark.parametrize(("n", "parts"), [(10, 3), (8, 8), (3, 8), (1, 1), (64, 7)])
def test_parts_differ_by_one_at_most(n, parts):
    pieces = cut(n, parts)
    assert [i for first, end in pieces for i in range(first, end)] == list(range(n))
    lengths = {end - first for first, end in pieces}
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == min(n, parts)


# ---- training with them, in one process ------------------------------------------------------------------------------

SMALL = {"channels": (8,), "groups": 4, "steps": 3, "batch_size": 6, "warmup": 1, "timesteps": 20}


def trained(**more):
    options = Options(**SMALL, **more)
    trainer = Trainer(DiffusionTask(dataset(), options), options)
    return trainer, list(training_steps(trainer))


def test_one_shard_is_the_plain_step():
    plain, cut_once = trained(), trained(shards=1)
    assert plain[1] == cut_once[1]
    assert_same_bits(plain[0].arrays()["optimizer"].values(), cut_once[0].arrays()["optimizer"].values())


def test_shards_compute_the_same_gradient_to_rounding():
    plain, shards = trained(), trained(shards=4)
    for a, b in zip(plain[1], shards[1], strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
        np.testing.assert_allclose(a.grad_norm, b.grad_norm, rtol=1e-4)
    a, b = (those[0].arrays()["optimizer"]["m"] for those in (plain, shards))
    assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
    assert (a != b).any()  # or nothing was cut


def test_a_single_process_cuts_in_shards_however_they_are_reduced():
    exact, fast = trained(shards=4), trained(shards=4, reduce="fast")
    assert exact[1] == fast[1]
    assert_same_bits(exact[0].arrays()["optimizer"].values(), fast[0].arrays()["optimizer"].values())


def test_more_shards_than_samples_are_as_many_as_samples():
    a, b = trained(shards=6), trained(shards=100)
    assert a[1] == b[1]


def test_what_is_recomputed_is_finished_when_it_is_finished():
    """The gradient of a block that is computed again arrives late; a piece must not be added before."""
    a, b = trained(shards=3), trained(shards=3, recompute=True)
    assert a[1] == b[1]


def test_a_run_keeps_its_number_of_shards(tmp_path):
    class Alone:
        size, shared, first = 1, False, True

        @staticmethod
        def agree(value):
            return value

    class Started(Alone):
        shared = True

    options = LoopOptions(steps=1, batch_size=16)
    assert settled(options, None, Alone).shards == 0
    assert settled(options, None, Started).shards == 8
    data_options = Options(**SMALL, shards=3)
    train_task(DiffusionTask(dataset(), data_options), data_options, tmp_path / "run", progress=False)
    later = Options(**SMALL)
    assert settled(later, tmp_path / "run", Alone).shards == 3
    assert settled(later, tmp_path / "run", Started).shards == 3
    train_task(DiffusionTask(dataset(), later), later, tmp_path / "run", progress=False)  # it goes on, to no step more
    other = Options(**SMALL, shards=2)
    with pytest.raises(ValueError, match="complete after 3 steps, where shards = 2 would change nothing"):
        train_task(DiffusionTask(dataset(), other), other, tmp_path / "run", progress=False)


def test_a_process_has_the_processors_that_no_other_uses():
    assert share_of(0, [("a", [0, 1, 2, 3]), ("a", [0, 1, 2, 3])]) == 2
    assert share_of(1, [("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3])]) == 4
    assert share_of(0, [("a", [0]), ("a", [1])]) == 1
    assert share_of(2, [("a", [0, 1])] * 8) == 1
    assert share_of(0, [("a", [0, 1, 2]), ("a", [2, 3])]) == 2
