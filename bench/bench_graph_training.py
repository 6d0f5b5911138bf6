"""Steps of DistMult and ComplEx on FB15k-237: plain, recorded, and PyKEEN's training loop."""

from __future__ import annotations

from typing import Any

import machine
import numpy as np
import peers_graph
import pytest
from comparison import Rival, compare, fact, figure, timed

import fastinfluence as fi
from fastinfluence.models.knowledge_graph import ComplEx, DistMult
from fastinfluence.training import GraphProgram

D, NEGATIVES = 100, 500
STEPS = {"sgd": 6_000, "adam-dense": 1_500}  # of an epoch, in every round
PUBLISHED_STEP = {"DistMult": 0.0336, "ComplEx": 0.0480}  # seconds, dense Adam, tails

SUITE = f"Knowledge graphs, training: FB15k-237, d={D}, {NEGATIVES} negatives, a triple a step"
PLAIN, SGEMM, COPY = "without recording", "sgemm 2048", "copy 256 MB"


class Run:
    """A training run, gone through one part of an epoch at a call."""

    def __init__(self, program: GraphProgram, n_visits: int, *, recorded: bool = False) -> None:
        self.program, self.n_visits, self.start = program, n_visits, 0
        self.state = program.enter(program.start())
        self.record = program.new_record() if recorded else None
        if self.record is not None:
            self.record.changes.fill(0)  # touches its pages, which training is not to pay for

    def __call__(self) -> None:
        part = self.start, self.start + self.n_visits
        self.program.run_epoch(self.state, 0, part=part, record=self.record)
        self.start += self.n_visits


def _cases() -> list[Any]:
    return [
        pytest.param(model, optimizer, sides, id=f"{model.__name__}-{optimizer}-{sides}")
        for sides in ("tail", "both")
        for model in (DistMult, ComplEx)
        for optimizer in ("sgd", "adam-dense")
    ]


@pytest.mark.parametrize(("model", "optimizer", "sides"), _cases())
def bench_steps(
    benchmark: Any, fb15k_237: fi.Triples, model: Any, optimizer: str, sides: str, smoke: bool
) -> None:
    """Steps that add up every triple's row changes, against plain ones and PyKEEN's."""
    name = f"{model.__name__}, {'tails' if sides == 'tail' else 'both sides'}, {optimizer}"
    program = _program(fb15k_237, model, optimizer, sides)
    rounds = 1 if smoke else 3
    n_visits = min(STEPS[optimizer] // program.recipe.n_sides, len(fb15k_237) // (rounds + 1))
    steps = n_visits * program.recipe.n_sides
    plain, recorded = Run(program, n_visits), Run(program, n_visits, recorded=True)
    rivals: dict[str, Rival] = {PLAIN: timed(plain)}
    missing: dict[str, str] = {}
    if sides == "tail":
        peers, missing = peers_graph.training(program, steps)
        rivals |= peers
        if optimizer == "adam-dense":
            rivals |= peers_graph.published(PUBLISHED_STEP[model.__name__] * steps)
    timing = compare(
        benchmark,
        recorded,
        rivals | {SGEMM: machine.sgemm_seconds, COPY: machine.copy_seconds},
        suite=SUITE,
        label=f"{name}, with recording",
        work=steps,
        unit="steps",
        rounds=rounds,
        missing=missing,
        note=(
            "Float32, no regularization. Bytes are those of the rows and of the optimizer's "
            "state, each read and written once a step, and flops those of the candidates (a root "
            "or a quotient counts as one; dense Adam's catching up counts every row and step it "
            "stands for): what has to be done, not what the code does. The tables stay in the "
            "processor's caches, so more than the copy rate of memory is possible. "
            + peers_graph.TRAINING_NOTE
            + " "
            + peers_graph.PUBLISHED_NOTE
        ),
    )
    assert recorded.state.same_bits(plain.state), "recording changed the parameters"
    without = float(np.median(timing.rivals[PLAIN])) / steps
    cost = 1 / timing.ratio(PLAIN)
    flops, n_bytes = _work(program)
    sgemm = machine.sgemm_flops() / np.median(timing.rivals[SGEMM])
    copy = machine.copy_bytes() / np.median(timing.rivals[COPY])
    epoch = len(program.data) * program.recipe.n_sides
    fact(benchmark, "a plain step", 1e6 * without, "µs")
    fact(benchmark, "a recorded step", 1e6 * timing.seconds / steps, "µs")
    fact(benchmark, f"a plain epoch of {epoch:,} steps, extrapolated", without * epoch, "s")
    fact(benchmark, "arithmetic of a plain step", flops / 1e6, "MFLOP")
    fact(benchmark, "share of sgemm's rate", 100 * flops / without / sgemm, "%")
    fact(benchmark, "bytes of a plain step", n_bytes / 1e6, "MB")
    fact(benchmark, "share of the copy rate", 100 * n_bytes / without / copy, "%")
    if sides == "tail":
        figure(
            benchmark,
            f"graph training, µs a recorded step, {name}, one thread",
            1e6 * timing.seconds / steps,
            target=300,
            at_least=False,
        )
        figure(
            benchmark,
            f"graph training, cost of recording in plain steps, {name}, one thread",
            cost,
            target=1.2,
            at_least=False,
        )


def _program(data: fi.Triples, model: Any, optimizer: str, sides: str) -> GraphProgram:
    settings = model(
        D,
        n_negatives=NEGATIVES,
        sides=sides,
        n_epochs=1,
        optimizer=optimizer,
        learning_rate=0.1 if optimizer == "sgd" else 0.003,
        regularization=0.0,
        rng=0,
    )
    return GraphProgram(data, np.ones(len(data)), settings._recipe())


def _work(program: GraphProgram) -> tuple[float, float]:
    """Floating-point operations and bytes that a plain step needs, on average."""
    others, d = program.data.n_entities - 1, program.recipe.n_factors
    candidates = 1 + others * (1 - (1 - 1 / others) ** NEGATIVES)  # distinct ones
    dense = program.recipe.optimizer == "adam-dense"
    # A score, its share of the sum and the move; Adam's move is 13 operations a number, and
    # catching up 5 for every step on which a row was not touched.
    flops = candidates * d * (17 if dense else 6)
    if dense:
        flops += 5 * d * (others + 1 - candidates)
    arrays = 3 if dense else 1
    return flops, 2.0 * arrays * (candidates + 2) * d * program.dtype.itemsize
