"""One epoch of matrix factorization: plain, recorded, on two threads, and its peers."""

from __future__ import annotations

from typing import Any

import machine
import peers_training
import pytest
from comparison import compare, figure, timed

import fastinfluence as fi
from fastinfluence.training import Program

SUITE = "Training, one epoch"
RATINGS = {"suite": SUITE, "unit": "ratings"}


@pytest.fixture(params=[64, 32], ids=lambda k: f"k{k}")
def program(request: pytest.FixtureRequest, ml_1m: fi.Interactions) -> Program:
    """The training program of a model with so many factors."""
    model = fi.MatrixFactorization(n_factors=request.param, n_epochs=1, rng=0)
    return model.fit(ml_1m, show_progress=False).trajectory_.program


def bench_plain(benchmark: Any, program: Program, smoke: bool) -> None:
    """Against Cornac and Surprise, which visit the ratings in the order of the file."""
    k, n = program.recipe.n_factors, len(program.data)
    state = program.enter(program.start())
    rivals, missing = peers_training.rivals(program.data, k)
    note = (
        "The peers visit the ratings in the order of the file, user by user, which spares the "
        "caches, unless it says shuffled; we visit them in random order inside cache-sized blocks. "
        "Drawing initial factors is not counted for anybody."
    )
    timing = compare(
        benchmark,
        lambda: program.run_epoch(state, 0),
        rivals,
        label=f"plain, k={k}",
        work=n,
        rounds=1 if smoke else 21,
        missing=missing,
        note=note,
        **RATINGS,
    )
    if k == 64:
        for name, target in (("Cornac MF", 2.0), ("Surprise SVD", 4.0)):
            if name in rivals:
                figure(
                    benchmark,
                    f"plain training, speed over {name}, k=64, one thread",
                    timing.ratio(name),
                    target=target,
                    at_least=True,
                )


def bench_two_threads(benchmark: Any, program: Program, smoke: bool) -> None:
    """Against the same program on one thread, to the same bits."""
    if machine.cores() < 2:
        pytest.skip("two threads need as many processors")
    k, n = program.recipe.n_factors, len(program.data)
    one, two = program.enter(program.start()), program.enter(program.start())
    timing = compare(
        benchmark,
        lambda: program.run_epoch(two, 0, n_threads=2),
        {"one thread": timed(lambda: program.run_epoch(one, 0))},
        label=f"plain, k={k}",
        work=n,
        rounds=1 if smoke else 31,
        threads=2,
        **RATINGS,
    )
    assert two.same_bits(one), "two threads gave other parameters than one"
    if k == 64:
        figure(
            benchmark,
            "two threads over one, same bits, k=64",
            timing.ratio("one thread"),
            target=1.7,
            at_least=True,
        )


def bench_recording(benchmark: Any, program: Program, smoke: bool, threads: int) -> None:
    """Adding up every rating's row changes, against not doing so."""
    k, n = program.recipe.n_factors, len(program.data)
    plain, recorded, record = (
        program.enter(program.start()),
        program.enter(program.start()),
        program.new_record(),
    )
    timing = compare(
        benchmark,
        lambda: program.run_epoch(recorded, 0, record=record, n_threads=threads),
        {"without recording": timed(lambda: program.run_epoch(plain, 0, n_threads=threads))},
        label=f"with recording, k={k}",
        work=n,
        rounds=1 if smoke else 21,
        threads=threads,
        **RATINGS,
    )
    assert recorded.same_bits(plain), "recording changed the parameters"
    if k == 64 and threads == 1:
        figure(
            benchmark,
            "cost of recording, in plain epochs, k=64, one thread",
            1 / timing.ratio("without recording"),
            target=2.0,
            at_least=False,
        )
