"""Timing a call and its rivals in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

Rival = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds of our call, round by round, and of every rival in the same rounds."""

    own: list[float]
    rivals: dict[str, list[float]]

    @property
    def seconds(self) -> float:
        """Median of our call."""
        return median(self.own)

    def ratios(self, name: str) -> list[float]:
        """Seconds of the rival over ours, round by round: above 1 where we are faster."""
        return [theirs / ours for theirs, ours in zip(self.rivals[name], self.own, strict=True)]

    def ratio(self, name: str) -> float:
        """Median of `ratios`."""
        return median(self.ratios(name))


def claim_memory(n_bytes: int) -> None:
    """Touch so much memory and let it go, for the call that comes next.

    A virtual machine hands free memory back to its host within seconds, and getting it again
    takes 15 us a page where a page of one's own takes 0.6: several seconds a gigabyte, which
    are no property of what is measured.
    """
    np.zeros(n_bytes, np.uint8)[::4096] = 1


def timed(function: Callable[[], Any], *, share: float = 1.0, memory: int = 0) -> Rival:
    """A rival whose seconds are those of `function`, which does `share` of the work."""

    def seconds() -> float:
        claim_memory(memory)
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) / share

    return seconds


def training_once(model: Any, threads: int) -> Rival:
    """A rival that trains a model of ours again, plainly; the mean of three, as it is short."""

    def train() -> None:
        for _ in range(3):
            model.trajectory_.verify(n_threads=threads)

    return timed(train, share=3)


def compare(
    benchmark: Any,
    ours: Callable[[], Any],
    rivals: Mapping[str, Rival] | None = None,
    *,
    suite: str,
    label: str,
    work: float,
    unit: str,
    rounds: int,
    threads: int = 1,
    warm_up: bool = True,
    memory: int = 0,
    missing: Mapping[str, str] | None = None,
    note: str = "",
) -> Timing:
    """Run rivals and our call in turn, `rounds` times, and leave the outcome in the JSON.

    Parameters
    ----------
    benchmark : BenchmarkFixture
    ours : callable
    rivals : mapping of name to Rival
        Each returns the seconds of the same work.
    suite, label : str
        Table and row of the report.
    work : float
        Amount of `unit` that one call does.
    rounds, threads : int
    warm_up : bool
        Call everything once beforehand, for compilation and page faults.
    memory : int
        Bytes our call takes, see `claim_memory`.
    missing : mapping of name to reason
        Rivals that cannot run here.
    note : str
        Said below the table.
    """
    rivals = dict(rivals or {})
    timing = Timing([], {name: [] for name in rivals})

    def run_rivals() -> None:
        for name, rival in rivals.items():
            timing.rivals[name].append(rival())

    def run_ours() -> None:
        claim_memory(memory)
        start = time.perf_counter()
        ours()
        timing.own.append(time.perf_counter() - start)

    if warm_up:
        ours()
        for rival in rivals.values():
            rival()
    benchmark.pedantic(run_ours, setup=run_rivals, rounds=rounds)
    benchmark.extra_info.update(
        suite=suite,
        label=label,
        work=work,
        unit=unit,
        threads=threads,
        seconds=timing.own,
        rivals={
            name: {"seconds": timing.rivals[name], "ratios": timing.ratios(name)} for name in rivals
        },
        missing=dict(missing or {}),
        note=note,
        figures=[],
        facts={},
    )
    return timing


def figure(benchmark: Any, name: str, value: float, *, target: float, at_least: bool) -> None:
    """Put a measured value beside the figure it should reach."""
    entry = {"name": name, "value": value, "target": target, "at_least": at_least}
    benchmark.extra_info["figures"].append(entry)


def fact(benchmark: Any, name: str, value: float, unit: str) -> None:
    """Add something else that was measured."""
    benchmark.extra_info["facts"][name] = [value, unit]
