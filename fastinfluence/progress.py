"""The progress bar of everything that takes long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(
    work: Iterable[Any] | int, *, description: str, show: bool | None = None, unit: str = "it"
) -> Any:
    """Return a `tqdm` bar over `work`: an iterable to loop over, or a total to `update`.

    ``bar.set_postfix(loss=0.42)`` shows a figure beside the bar. Use it as a context
    manager where the loop may end early.

    Parameters
    ----------
    work : iterable or int
        What to loop over, or the number of units that calls of ``bar.update(n)`` add up to.
    description : str
        Shown in front of the bar.
    show : bool, optional
        None shows it only where stderr is a terminal.
    unit : str, default "it"
        What is counted.
    """
    from tqdm import tqdm

    iterable, total = (None, work) if isinstance(work, int) else (work, None)
    disable = None if show is None else not show
    return tqdm(iterable, total=total, desc=description, unit=unit, disable=disable)
