"""The order in which training visits the examples: fixed by data and seed, not by the machine.

Users and items are dealt to groups of equal load; block (g, h) holds the examples of user group
g and item group h. A stratum is a set of blocks no two of which share a row, so its blocks can
run in parallel (and on a single thread each block's rows stay in cache). Inside a block the
order is random, drawn once per run: reshuffling every epoch costs as much as the epoch and
changes no test error beyond the spread of seeds (RMSE .848 either way on MovieLens 1M).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch

if TYPE_CHECKING:
    from fastinfluence.data import Interactions

__all__ = ["Schedule", "group_count"]

_MOST_GROUPS = 64


def group_count(n_examples: int, n_users: int, n_items: int) -> int:
    """Groups to cut users and items into: a power of two that grows with the data.

    Blocks then hold a thousand examples or more: 1 group below 4,000 examples (a stratum
    would be shorter than the barrier behind it), 8 at 100,000, 16 at a million.
    """
    groups = 1
    while 4 * groups * groups * 1000 <= n_examples and groups < _MOST_GROUPS:
        groups *= 2
    while groups > min(n_users, n_items):
        groups //= 2
    return groups


@dataclass(frozen=True, eq=False)
class Schedule:
    """Visits of one epoch, the same in every epoch.

    Attributes
    ----------
    order : (n,) int64
        Training index of every visit.
    pointers : (n_groups ** 2 + 1,) int64
        Bounds of the blocks in `order`; block ``s * n_groups + g`` joins user group g and item
        group ``(g + s) % n_groups``, and the blocks of stratum s share no row.
    pool_pointers : (n_groups + 1,) int64
    pool : (n_items,) int32
        The items of each group: where the negatives of its blocks are drawn from.
    user_order : (n_users,) int64
        The users of group 0, of group 1, ...
    """

    order: npt.NDArray[np.int64]
    pointers: npt.NDArray[np.int64]
    pool_pointers: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int32]
    user_order: npt.NDArray[np.int64]

    @classmethod
    def build(cls, data: Interactions, seed: int) -> Schedule:
        """Make the schedule of a data set; weights play no part in it."""
        count_sort = dispatch.kernels("grouping").count_sort
        n_groups = group_count(len(data), data.n_users, data.n_items)
        user_groups = _deal(np.diff(data.by_user.pointers), n_groups)
        item_groups = _deal(np.diff(data.by_item.pointers), n_groups)
        of_user, of_item = user_groups[data.users], item_groups[data.items]
        blocks = (of_item - of_user) % n_groups * n_groups + of_user
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(data))
        pointers, order = count_sort(blocks, n_groups * n_groups, shuffled)
        pool_pointers, pool = count_sort(item_groups, n_groups)
        user_order = count_sort(user_groups, n_groups)[1]
        return cls(order, pointers, pool_pointers, pool.astype(np.int32), user_order)

    @property
    def n_groups(self) -> int:
        """Groups of users, and of items."""
        return len(self.pool_pointers) - 1


def _deal(degrees: npt.NDArray[np.int64], n_groups: int) -> npt.NDArray[np.int32]:
    descending = np.argsort(-degrees, kind="stable")
    groups: npt.NDArray[np.int32] = dispatch.kernels("schedule").balance(
        degrees, descending, n_groups
    )
    return groups
