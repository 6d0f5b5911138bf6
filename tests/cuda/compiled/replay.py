"""Replay's kernel, as production launches it."""

from __future__ import annotations

from typing import Any

from toolchain import Compiled
from typed import array, number, structure

from fastinfluence.kernels.cuda import replay


def compiled() -> list[Compiled]:
    """SGD and Adagrad, the squared loss and five negatives."""
    return [
        entry(adagrad, dtype, candidates)
        for adagrad in (False, True)
        for dtype in ("f4", "f8")
        for candidates in (1, 6)
    ]


def entry(adagrad: bool, dtype: str, candidates: int) -> Compiled:
    teams, room = replay.room_of_teams(candidates, 65, adagrad, dtype)
    rows = structure("Adjoint", dtype, users=array(dtype, 2), items=array(dtype, 2))
    signature: tuple[Any, ...] = (
        rows,
        rows,
        structure("Examples", dtype),
        structure("Log", dtype),
        structure("Hyper", dtype),
        number,
        array("u2", 1),
        array("u2", 1),
        array("i4", 1),
        array("i8", 1),
        number,
        array(dtype, 2),
    )
    size = int(dtype[1])
    return Compiled(
        replay.replay_tiles(adagrad, size),
        signature,
        teams * 32,
        teams * room * size,
        f"{'adagrad' if adagrad else 'sgd'}, {dtype}, {candidates} candidates, k=64",
    )
