"""A table of vectors: the matrix product of one-hot rows and the table, without the one-hot rows (Bengio et al. 2003,
"A Neural Probabilistic Language Model", section 2).

    y[n, t] = table[ids[n, t]],      dtable[r] = sum of dy[n, t] over the n, t whose ids[n, t] is r

The sum is taken in the order of n and t on the CPU, and in a tree of fixed shape on a GPU, whose atomic scatters would
add in any order: so the result is bitwise reproducible. It needs memory for dy and the table, not for rows x N.

Reference: reference/embedding.py.
"""

import numpy as np

from pydiff.arrays import array_module, to_host
from pydiff.backend import widened
from pydiff.tensor import Function


def embedding(table, ids):
    """Looks up vectors by their numbers.

    table: (rows, D). ids: integers of any shape (...), such as (N,) class labels or (N, T) tokens, from 0 to rows - 1,
    on the host or on the table's device. Returns (..., D). Raises ValueError for ids out of range; checking those on a
    GPU waits for it.
    """
    return Embedding.apply(table, ids)


class Embedding(Function):
    def forward(self, table, ids):
        if table.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"embedding needs a table (rows, D) and integers, got {table.shape} and {ids.dtype}")
        if ids.size and not (ids.min() >= 0 and ids.max() < len(table)):
            raise ValueError(f"ids must lie in 0..{len(table) - 1}, got {ids.min()}..{ids.max()}")
        self.shape, self.ids = table.shape, ids
        return table[array_module(table).asarray(ids)]

    def backward(self, dy):
        xp = array_module(dy)
        ids, dy = self.ids.reshape(-1), dy.reshape(self.ids.size, self.shape[1])
        dy = widened(dy)  # a table's gradient is a sum
        dtable = xp.zeros(self.shape, dy.dtype)
        if xp is np:
            np.add.at(dtable, ids, dy)
        else:
            sum_by_tree(dtable, to_host(ids), dy)
        return dtable, None


def sum_by_tree(total, ids, values):
    """total[r] = sum of values[i] over the i with ids[i] = r, for the rows r that occur.

    ids (N,) on the host, values (N, D). Sorted by row, the summands of a row are adjacent; in round k every one whose
    position in the row is a multiple of 2^(k+1) adds the one 2^k behind it. No element is written twice in a round, so
    the order within a round does not matter.
    """
    xp = array_module(values)
    order = np.argsort(ids, kind="stable")
    rows, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    place = np.arange(len(ids)) - np.repeat(starts, counts)
    behind = np.repeat(counts, counts) - place  # summands left in the row, including this one
    parts, step = [order, rows, starts], 1
    while step < counts.max(initial=0):
        takes = np.flatnonzero((place % (2 * step) == 0) & (behind > step))
        parts += [takes, takes + step]
        step *= 2
    moved, ends = xp.asarray(np.concatenate(parts)), np.cumsum([len(part) for part in parts])  # one journey for all
    order, rows, starts, *rounds = (moved[end - len(part) : end] for part, end in zip(parts, ends, strict=True))
    values = values[order]
    for takes, taken in zip(rounds[::2], rounds[1::2], strict=True):
        values[takes] += values[taken]
    total[rows] = values[starts]
