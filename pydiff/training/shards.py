"""A batch in parts whose gradients are added in a fixed order, so that it does not matter which process computes which.

The batch of a step is cut into shards. Their gradients are the leaves of a binary tree; every other node is the sum of
its left and its right child:

    level 3               (3, 0)                 the whole batch
    level 2       (2, 0)          (2, 1)
    level 1   (1, 0)  (1, 1)  (1, 2)  (1, 3)
    level 0   0   1   2   3   4   5   6   7      shards

Floating-point sums depend on the order, and the tree fixes it: the bits are the same whichever process adds, and when.
The tree depends only on the number of shards. If that is not a power of two, a node without a right sibling also stands
for its parent.

Computing shards from left to right needs at most one unfinished sum per level: log2(shards) buffers.
"""

from typing import NamedTuple


class Node(NamedTuple):
    """A node of the tree: the shards from place 2^level up to, but not including, (place + 1) 2^level."""

    level: int
    place: int

    @property
    def first(self):
        """The leftmost shard below a node."""
        return self.place << self.level

    @property
    def end(self):
        """One more than the rightmost shard below the node, if the tree is that wide."""
        return (self.place + 1) << self.level

    @property
    def parent(self):
        """The node above a node."""
        return Node(self.level + 1, self.place >> 1)

    @property
    def sibling(self):
        """The other child of a node's parent."""
        return Node(self.level, self.place ^ 1)


def cut(n, parts):
    """[(first, end)] of n items in this many parts, whose sizes differ by at most one; never more parts than items."""
    parts = min(n, parts)
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def climbed(node, shards):
    """The highest node that stands for the same sum in a tree with this many shards."""
    while not is_root(node, shards) and node.place % 2 == 0 and node.sibling.first >= shards:
        node = node.parent
    return node


def is_root(node, shards):
    """Whether a node is the sum of all shards."""
    return node.first == 0 and node.end >= shards


def whole_nodes(first, end, shards):
    """The largest nodes that cover only shards from `first` up to, but not including, `end`, from left to right."""
    nodes = []
    while first < end:
        node = climbed(Node(0, first), shards)
        while not is_root(node, shards) and node.parent.first == first and min(node.parent.end, shards) <= end:
            node = climbed(node.parent, shards)
        nodes.append(node)
        first = node.end
    return nodes


class TreeSum:
    """The sums of one array over the tree, from leaves that arrive in any order.

    shards: leaves of the tree. copy(array): returns a copy that may be written to. free(array): takes back such a copy
    when it is no longer needed. Sums are computed in place in the left child.
    """

    def __init__(self, shards, copy, free):
        self.shards, self.copy, self.free = shards, copy, free
        self.waiting = {}  # node -> its sum, while the sibling's is missing

    def add(self, node, array, borrowed=False):
        """Takes the sum of a node, adds what can be added, and returns the highest node that is now known.

        borrowed: the caller keeps the array and will change it, so it is copied if it must be kept.
        """
        node = climbed(node, self.shards)
        while not is_root(node, self.shards) and node.sibling in self.waiting:
            other = self.waiting.pop(node.sibling)
            if node.place % 2 == 0 and borrowed:
                array, borrowed = self.copy(array), False
            left, right = (array, other) if node.place % 2 == 0 else (other, array)
            left += right
            if not (right is array and borrowed):
                self.free(right)
            node, array, borrowed = climbed(node.parent, self.shards), left, False
        self.waiting[node] = self.copy(array) if borrowed else array
        return node

    def take(self, node):
        """Removes and returns the sum of a node; the array then belongs to the caller."""
        return self.waiting.pop(node)
