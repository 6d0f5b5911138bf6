"""Influence functions: solves, queries over all ratings beside their peers, pairs."""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

import data_sets
import machine
import numpy as np
import peers_influence
import pytest
from comparison import Timing, compare, fact, figure, timed
from torch_influence import GaussNewton

import fastinfluence as fi
from fastinfluence.attribution.damping import default_damping
from fastinfluence.attribution.solve import BlockJacobi, SolveReport, solve
from fastinfluence.kernels.structures import LANES

SOLVING = "Influence functions: solving with the damped Gauss-Newton matrix"
QUERIES = "Influence functions: the influence of all ratings of MovieLens 100K on 32 predictions"
PAIRS = 'Influence functions: `scope="pair"`, 10 examples a prediction'
N_QUERIES = 32
RTOL = 1e-3
ONE, PLAIN, SGEMM, COPY = (
    "one right-hand side",
    "no preconditioner",
    "sgemm 2048",
    "copy 256 MB",
)


class Fitted(NamedTuple):
    """A model of one of the data sets, and what to call both."""

    name: str
    model: fi.MatrixFactorization

    @property
    def label(self) -> str:
        return f"{self.name}, k={self.model.n_factors}"

    def queries(self, n: int = N_QUERIES) -> np.ndarray:
        """(n, 2): the best new item of some users, raw ids."""
        users = np.random.default_rng(0).permutation(self.model.data_.user_ids)[:n]
        return np.column_stack([users, self.model.recommend(users, k=1)[0]])


CASES = [
    ("MovieLens 100K", "ml_100k", 16),
    ("MovieLens 1M", "ml_1m", 16),
    ("MovieLens 1M", "ml_1m", 64),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[1]}-k{case[2]}")
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """20 epochs with so many factors."""
    name, data, k = request.param
    if (data, k) == ("ml_1m", 64):
        return Fitted(name, request.getfixturevalue("model"))
    data = request.getfixturevalue(data)
    return Fitted(name, fi.MatrixFactorization(k, rng=0).fit(data, show_progress=False))


@pytest.fixture(scope="module")
def small(ml_100k: fi.Interactions) -> Fitted:
    """MovieLens 100K with 16 factors."""
    model = fi.MatrixFactorization(16, rng=0).fit(ml_100k, show_progress=False)
    return Fitted("MovieLens 100K", model)


# -------------------------------------------------------------------------- solving


class System:
    """The right-hand sides of all queries, and what solves for them."""

    def __init__(self, fitted: Fitted, threads: int) -> None:
        trajectory, data = fitted.model.trajectory_, fitted.model.data_
        self.endpoint = trajectory.program.endpoint(trajectory.end.tables, n_threads=threads)
        self.damping, self.threads = default_damping(trajectory), threads
        self.preconditioner = self.precondition()
        asked = [
            fi.objectives.as_objective(q).bind(data, trajectory.recipe)
            for q in self._blocks(fitted)
        ]
        self.panels = [self.endpoint.panel(quantity, 0) for quantity in asked]
        self.single = self.panels[0].copy()
        self.single[:, :, 1:] = 0

    def _blocks(self, fitted: Fitted) -> list[np.ndarray]:
        queries = fitted.queries()
        return [queries[start : start + LANES] for start in range(0, len(queries), LANES)]

    def precondition(self) -> BlockJacobi:
        """The preconditioner anew."""
        return BlockJacobi(self.endpoint, self.damping, n_threads=self.threads)

    def solve(self, panels: list[np.ndarray], *, plain: bool = False) -> SolveReport:
        """Solve for some panels."""
        reports = [
            solve(
                self.endpoint,
                panel,
                damping=self.damping,
                rtol=RTOL,
                max_iterations=1000,
                preconditioner=None if plain else self.preconditioner,
                n_threads=self.threads,
            )[1]
            for panel in panels
        ]
        return SolveReport.joined(reports)


def bench_solve(benchmark: Any, fitted: Fitted, threads: int, smoke: bool) -> None:
    """32 right-hand sides, beside one and beside no preconditioner."""
    system = System(fitted, threads)
    some = system.panels[:1]  # without a preconditioner it takes long
    share = len(some) / len(system.panels)
    timing = compare(
        benchmark,
        lambda: system.solve(system.panels),
        {
            ONE: timed(lambda: system.solve([system.single])),
            PLAIN: timed(lambda: system.solve(some, plain=True), share=share),
        },
        suite=SOLVING,
        label=f"32 right-hand sides, {fitted.label}",
        work=N_QUERIES,
        unit="solutions",
        threads=threads,
        rounds=1 if smoke else 3,
        note=(
            f"Conjugate gradients to a relative residual of {RTOL:g}, users eliminated and "
            "block-Jacobi preconditioner unless said; the damping is the training run's, 1 / (sum "
            "of its learning rates)."
        ),
    )
    report, plain = system.solve(system.panels), system.solve(some, plain=True)
    most = int(report.iterations.max())
    fact(benchmark, "at most", most, "iterations")
    fact(benchmark, "no preconditioner", int(plain.iterations.max()), "iterations")
    fact(benchmark, "largest relative residual", 1e3 * float(report.residual.max()), "/ 1000")
    fact(benchmark, "damping", system.damping, "on the sum of all losses")
    fact(benchmark, "making the preconditioner", 1e3 * timed(system.precondition)(), "ms")
    if threads > 1:  # the same bits
        return
    figure(
        benchmark,
        f"influence functions, iterations to a residual of 1e-3, {fitted.label}",
        most,
        target=15,
        at_least=False,
    )
    figure(
        benchmark,
        f"influence functions, 32 right-hand sides over one, {fitted.label}",
        1 / timing.ratio(ONE),
        target=8,
        at_least=False,
    )


def bench_product(benchmark: Any, fitted: Fitted, threads: int, smoke: bool) -> None:
    """The matrix times 16 vectors: what an iteration mostly is."""
    system = System(fitted, threads)
    panel = system.panels[0]
    out, n, d = np.empty_like(panel), len(fitted.model.data_), system.endpoint.d
    timing = compare(
        benchmark,
        lambda: system.endpoint.product(panel, out),
        {SGEMM: machine.sgemm_seconds, COPY: machine.copy_seconds},
        suite=SOLVING,
        label=f"the matrix times 16 vectors, {fitted.label}",
        work=n * LANES,
        unit="ratings × vectors",
        threads=threads,
        rounds=1 if smoke else 15,
    )
    flops = 8.0 * n * d * LANES
    # A number for every rating and vector, written by the users' pass, read and written by the
    # items' and by the losses', and read by either side's last pass: what no cache holds.
    n_bytes = 7.0 * n * LANES * panel.itemsize
    fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
    for name, amount, yardstick, of in (
        ("share of sgemm's rate a thread", flops / threads, SGEMM, machine.sgemm_flops()),
        (
            "its scores' way through memory, share of a copy's rate",
            n_bytes,
            COPY,
            machine.copy_bytes(),
        ),
    ):
        rates = [of / seconds for seconds in timing.rivals[yardstick]]
        shares = [amount / own / rate for own, rate in zip(timing.own, rates, strict=True)]
        fact(benchmark, name, 100 * median(shares), "%")


# -------------------------------------------------------------------------- queries


def _codes(fitted: Fitted, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    data = fitted.model.data_
    return data.user_index(queries[:, 0]), data.item_index(queries[:, 1])


def bench_global(benchmark: Any, small: Fitted, threads: int, smoke: bool) -> None:
    """`InfluenceFunction` from the model to the matrix; on one thread beside its peers."""
    queries, damping = small.queries(), default_damping(small.model.trajectory_)
    peers = Peers(small, queries, damping if threads == 1 else None)
    fi.InfluenceFunction(_tiny(), n_threads=threads).influence([(0, 0)])  # compiles
    made = []

    def influence() -> np.ndarray:
        why = fi.InfluenceFunction(
            small.model, damping=damping, rtol=peers.rtol, n_threads=threads, show_progress=False
        )
        made.append(why)
        return why.influence(queries)

    own = influence()
    timing = compare(
        benchmark,
        influence,
        peers_influence.rivals(peers.found),
        suite=QUERIES,
        label="`InfluenceFunction`, k=16",
        work=len(small.model.data_) * N_QUERIES,
        unit="scores",
        threads=threads,
        rounds=1 if smoke else 3,
        warm_up=False,
        missing=peers.missing,
        note=peers.note,
    )
    report = made[-1].report_
    fact(benchmark, "a query", 1e3 * timing.seconds / N_QUERIES, "ms")
    fact(benchmark, "at most", int(report.iterations.max()), "iterations")
    fact(benchmark, "largest relative residual", 1e3 * float(report.residual.max()), "/ 1000")
    peers.report(benchmark, timing, own[0])


class Peers:
    """The peers on the queries, and how near to the solution each of them comes.

    Without a damping there are none.
    """

    def __init__(self, fitted: Fitted, queries: np.ndarray, damping: float | None) -> None:
        self.found: dict[str, peers_influence.Peer] = {}
        self.missing: dict[str, str] = {}
        self.residuals: dict[str, float] = {}
        self.rtol, self.note = RTOL, ""
        if damping is None:
            return
        users, items = codes = _codes(fitted, queries)
        try:
            self.problem = GaussNewton(fitted.model, damping)
        except ImportError as error:
            self.missing = {"torch, pyDVL, dattri": f"not installed ({error})"}
            return
        right = self.problem.score_gradient(int(users[0]), int(items[0]))
        self.solution, n_iterations = self.problem.solve(right, 1000, RTOL)
        self.found, self.missing = peers_influence.peers(
            fitted.model,
            codes,
            damping=damping,
            n_iterations=n_iterations,
            names=(*peers_influence.CG, peers_influence.LISSA),
        )
        self.residuals = {
            name: self.problem.residual(peer.solve(), right) for name, peer in self.found.items()
        }
        self.rtol = min([RTOL, *self.residuals.values()])
        self.note = (
            "All solve the same damped Gauss-Newton system. pyDVL and dattri use the Hessian, "
            "which is indefinite on such a model, so they are given the network linearized in its "
            "parameters: its Hessian is that matrix. Their conjugate gradients take the "
            f"{n_iterations} iterations that a residual of {RTOL:g} needs without a "
            "preconditioner; ours end at the smallest residual of theirs. dattri is timed as if "
            "it solved once: its `attribute` solves again for every batch of ratings. Peers run on "
            "one thread."
        )

    def report(self, benchmark: Any, timing: Timing, own: np.ndarray) -> None:
        """Residuals, agreement on the first query, and the figures."""
        if not self.found:
            return
        for name, residual in self.residuals.items():
            fact(benchmark, f"that of {name}", 1e3 * residual, "/ 1000")
        theirs = self.problem.influence(self.solution).numpy()
        difference = float(np.abs(own - theirs).max() / np.abs(theirs).max())
        fact(benchmark, "difference from CG in torch, of the largest", 100 * difference, "%")
        for name, rival in zip(self.found, timing.rivals, strict=True):
            if name in ("pyDVL CG", "dattri CG"):
                figure(
                    benchmark,
                    f"influence functions, a query over all of MovieLens 100K, speed over {name}",
                    timing.ratio(rival),
                    target=1000,
                    at_least=True,
                )


def _tiny() -> fi.MatrixFactorization:
    return fi.MatrixFactorization(4, n_epochs=1, rng=0).fit(data_sets.synthetic(60, 50, 600))


METHODS = {
    "`TracIn`": (fi.TracIn, {}),
    '`TracIn(mode="checkpoints")`': (fi.TracIn, {"mode": "checkpoints"}),
    "`Hydra`": (fi.Hydra, {}),
    "`GradientSimilarity`": (fi.GradientSimilarity, {}),
}


@pytest.mark.parametrize("method", METHODS)
def bench_other(benchmark: Any, small: Fitted, method: str, threads: int, smoke: bool) -> None:
    """The other classical methods, from the model to the matrix."""
    make, options = METHODS[method]
    queries = small.queries()
    make(_tiny(), **options).influence([(0, 0)])  # compiles

    def influence() -> None:
        why = make(small.model, **options, n_threads=threads, show_progress=False)
        why.influence(queries)

    timing = compare(
        benchmark,
        influence,
        suite=QUERIES,
        label=f"{method}, k=16",
        work=len(small.model.data_) * N_QUERIES,
        unit="scores",
        threads=threads,
        rounds=1 if smoke else 5,
    )
    fact(benchmark, "a query", 1e3 * timing.seconds / N_QUERIES, "ms")


# -------------------------------------------------------------------------- pairs


def _new_pairs(model: fi.MatrixFactorization) -> np.ndarray:
    """Ten best new items of every user."""
    items, _ = model.recommend(k=10)
    return np.column_stack([np.repeat(model.data_.user_ids, 10), items.ravel()])


def _trained_pairs(model: fi.MatrixFactorization) -> np.ndarray:
    """As many pairs of the training data."""
    data = model.data_
    some = np.random.default_rng(0).permutation(len(data))[: 10 * data.n_users]
    return np.column_stack([data.user_ids[data.users[some]], data.item_ids[data.items[some]]])


@pytest.mark.parametrize("kind", ["new", "trained on"])
def bench_pairs(benchmark: Any, fitted: Fitted, kind: str, threads: int, smoke: bool) -> None:
    """`explain` from raw ids to Explanations, the credits of all examples there."""
    model = fitted.model
    why = fi.InfluenceFunction(model, scope="pair", n_threads=threads, show_progress=False)
    queries = _new_pairs(model) if kind == "new" else _trained_pairs(model)
    timing = compare(
        benchmark,
        lambda: why.explain(queries, k=10, show_progress=False),
        suite=PAIRS,
        label=f"pairs {kind}, {fitted.label}",
        work=len(queries),
        unit="predictions",
        threads=threads,
        rounds=1 if smoke else 7,
    )
    fact(benchmark, "making it", timed(lambda: fi.InfluenceFunction(
        model, scope="pair", n_threads=threads, show_progress=False))(), "s")  # fmt: skip
    if threads == min(2, machine.cores()) and model.n_factors == 16:
        figure(
            benchmark,
            f"influence functions, pairs {kind} a second on two threads, {fitted.label}",
            len(queries) / timing.seconds,
            target=20_000,
            at_least=True,
        )
