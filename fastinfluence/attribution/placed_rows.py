"""Row stores on devices: put there once, and forgotten with the store."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.kernels.structures import Side
from fastinfluence.pages import is_placed, place
from fastinfluence.readout import read_only

if TYPE_CHECKING:
    from fastinfluence.attribution.rows import RowStore

__all__ = ["Placed", "placed"]


class Placed(NamedTuple):
    """What read-outs need of a store, on a device."""

    user_side: Side
    item_side: Side
    known_items: npt.NDArray[np.int32]
    own_places: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

    def whole(self, device: str) -> bool:
        """Whether all rows are there; otherwise a side goes there page by page."""
        return is_placed(self.user_side, device) and is_placed(self.item_side, device)


# What a store keeps on devices is none of its own: it does not go where the store is sent.
_held: weakref.WeakKeyDictionary[RowStore, dict[str, Placed]] = weakref.WeakKeyDictionary()
_placing = threading.Lock()


def placed(store: RowStore, device: str) -> Placed:
    """Put a store on a device, once: the rows of a side only if they fit."""
    by_user, by_item = store.user_side, store.item_side
    pairs = store.known_items, store.own_places
    if device == "cpu":
        by_user, by_item = (side._replace(rows=read_only(side.rows)) for side in (by_user, by_item))
        return Placed(by_user, by_item, *pairs)
    with _placing:
        held = _held.setdefault(store, {})
        if device not in held:
            known, places = dispatch.memory(device).put(pairs)
            held[device] = Placed(place(by_user, device), place(by_item, device), known, places)
        return held[device]
