"""Influence functions by torch, pyDVL and dattri, all on the same positive definite system.

They solve ``H x = grad score`` for a query and multiply x with every rating's gradient. The
Hessian of factors is indefinite away from a perfect fit, where conjugate gradients mean nothing,
so pyDVL and dattri are given the linearized network: its Hessian is the model's Gauss-Newton
matrix, its gradients are the model's. An iteration costs the same whether it converges or not, so
a few are timed and scaled up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from comparison import Rival, timed
from torch_influence import CHUNK, LISSA_BATCH, GaussNewton

import fastinfluence as fi

# Of the ratings' gradients, dense, that pyDVL and dattri make at a time: more is slower.
GRADIENT_BYTES = 2**25
MEMORY = 2**30  # bytes that libraries take, see `comparison.claim_memory`
LISSA_ITERATIONS = 5_000  # as Koh & Liang
LISSA_SCALE = 3.0  # of the largest eigenvalue, as those of batches are larger than that of all

CG = ("CG in torch", "pyDVL CG", "dattri CG")
LISSA = "LiSSA in torch"

Codes = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Peer:
    """One way to the influence of all ratings on all queries."""

    label: str
    seconds: Rival
    solve: Callable[[], Any]  # the solution of the first query, (n_parameters,)


def peers(
    model: fi.MatrixFactorization,
    queries: Codes,
    *,
    damping: float,
    n_iterations: int,
    n_timed: int = 2,
    sample: np.ndarray | None = None,
    names: tuple[str, ...] = CG,
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those that are installed, and why the others are missing.

    Parameters
    ----------
    model : MatrixFactorization
        Of the squared loss.
    queries : tuple of (n,) int
        Codes of the pairs that are explained; the first is solved for.
    damping : float
        In the sum over all ratings.
    n_iterations : int
        Of conjugate gradients.
    n_timed : int
        Of those, how many are timed.
    sample : (m,) int, optional
        Training indices whose Hessian pyDVL and dattri are given, all by default; their seconds
        are extrapolated.
    names : tuple of str
    """
    builds = {
        "CG in torch": _in_torch,
        "pyDVL CG": _pydvl,
        "dattri CG": _dattri,
        LISSA: _lissa,
    }
    sample = np.arange(len(model.data_)) if sample is None else sample
    found, missing = {}, {}
    for name in names:
        try:
            problem = GaussNewton(model, damping)
            work = _Work(model, problem, queries, damping, n_iterations, n_timed, sample)
            found[name] = builds[name](work)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing


def rivals(found: Mapping[str, Peer]) -> dict[str, Rival]:
    """Peers as `comparison.compare` takes them, their labels as names."""
    return {f"{name} ({peer.label}; extrapolated)": peer.seconds for name, peer in found.items()}


@dataclass(frozen=True)
class _Work:
    model: fi.MatrixFactorization
    problem: GaussNewton
    queries: Codes
    damping: float
    n_iterations: int
    n_timed: int
    sample: np.ndarray

    @property
    def n_queries(self) -> int:
        return len(self.queries[0])

    @property
    def n_train(self) -> int:
        return len(self.model.data_)

    @property
    def right(self) -> Any:
        """Gradient of the first score, (n_parameters,)."""
        return self.problem.score_gradient(int(self.queries[0][0]), int(self.queries[1][0]))

    @property
    def n_gradients(self) -> int:
        """Ratings whose gradients are made at a time: each is as large as all parameters."""
        return min(self.n_train, max(2, GRADIENT_BYTES // (4 * len(self.problem.parameters))))

    @property
    def label(self) -> str:
        """What of the whole is timed."""
        label = f"{self.n_timed} of {self.n_iterations} iterations, 1 of {self.n_queries} queries"
        if len(self.sample) == self.n_train:
            return label
        return f"{label}, {len(self.sample):,} of {self.n_train:,} ratings"

    def iterations(self, function: Callable[[], Any]) -> Rival:
        """Seconds of all iterations of all queries, from the few that the function does.

        Those make one product more with the Hessian of the sample, for the first residual: pyDVL
        and dattri start from the right-hand side.
        """
        share = (self.n_timed + 1) / (self.n_iterations + 1)
        share *= len(self.sample) / self.n_train / self.n_queries
        return timed(function, share=share, memory=MEMORY)

    def gradients(self, multiply: Callable[[], Any]) -> Rival:
        """Seconds of all ratings' gradients, from those of `n_gradients`."""
        return timed(multiply, share=self.n_gradients / self.n_train, memory=MEMORY)


# -------------------------------------------------------------------------- in torch


def _in_torch(work: _Work) -> Peer:
    problem, right = work.problem, work.right
    share = work.n_timed / work.n_iterations / work.n_queries
    solve = timed(lambda: problem.solve(right, work.n_timed), share=share)
    multiply = timed(lambda: problem.influence(right), share=1 / work.n_queries)
    label = f"{work.n_timed} of {work.n_iterations} iterations, 1 of {work.n_queries} queries"
    return Peer(
        label, lambda: solve() + multiply(), lambda: problem.solve(right, work.n_iterations)[0]
    )


def _lissa(work: _Work) -> Peer:
    problem, right, n_timed = work.problem, work.right, 20 * work.n_timed
    scale = LISSA_SCALE * problem.largest_eigenvalue()
    share = n_timed / LISSA_ITERATIONS / work.n_queries
    solve = timed(lambda: problem.lissa(right, n_timed, scale), share=share)
    multiply = timed(lambda: problem.influence(right), share=1 / work.n_queries)
    label = (
        f"batches of {LISSA_BATCH:,}, {n_timed} of {LISSA_ITERATIONS:,} iterations, "
        f"1 of {work.n_queries} queries"
    )
    return Peer(
        label,
        lambda: solve() + multiply(),
        lambda: problem.lissa(right, LISSA_ITERATIONS, scale),
    )


# -------------------------------------------------------------------------- the linearized network


def _linearized(model: fi.MatrixFactorization) -> Any:
    """A torch module at the model's parameters: pairs (n, 2) to scores and squared norms (n, 2).

    ``p . q`` is differentiated as if of two factors one were constant at a time: value and
    gradient are what they were, and it has no curvature of its own. The squared norms, of all
    rows that a rating touches, are for the regularization.
    """
    import torch
    from torch import nn

    torch.set_num_threads(1)
    tables = [torch.tensor(table) for table in model.trajectory_.end.tables]
    tables = [table if table.ndim == 2 else table[:, None] for table in tables]
    mean = model.global_mean_

    class Linearized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items, self.user_biases, self.item_biases = (
                nn.Embedding.from_pretrained(table.clone(), freeze=False) for table in tables
            )

        def forward(self, pairs: Any) -> Any:
            users, items = pairs[..., 0], pairs[..., 1]
            p, q = self.users(users), self.items(items)
            b_u, b_i = self.user_biases(users), self.item_biases(items)
            products = p * q.detach() + (q - q.detach()) * p.detach()
            scores = mean + (b_u + b_i).sum(-1) + products.sum(-1)
            norms = sum((row * row).sum(-1) for row in (p, q, b_u, b_i))
            return torch.stack([scores, norms], -1)

    return Linearized()


def _loss(output: Any, target: Any) -> Any:
    """(n,), of targets (n, 2): the value, and the regularization."""
    return 0.5 * ((output[..., 0] - target[..., 0]) ** 2 + target[..., 1] * output[..., 1])


def _examples(work: _Work, indices: np.ndarray) -> tuple[Any, Any]:
    """Pairs (n, 2) and targets (n, 2) of some ratings."""
    import torch

    data = work.model.data_
    pairs = np.column_stack([data.users[indices], data.items[indices]]).astype(np.int64)
    values = np.asarray(data.values, np.float32)[indices]
    targets = np.column_stack([values, np.full_like(values, work.model.regularization)])
    return torch.tensor(pairs), torch.tensor(targets)


def _query(work: _Work) -> Any:
    """The first query's pair, (1, 2)."""
    import torch

    return torch.tensor([[int(codes[0]) for codes in work.queries]])


# -------------------------------------------------------------------------- pyDVL


def _pydvl(work: _Work) -> Peer:
    import torch
    from pydvl.influence.torch import CgInfluence
    from torch.utils.data import DataLoader, TensorDataset

    network, m = _linearized(work.model), len(work.sample)
    asked = _query(work)
    with torch.no_grad():  # the gradient of the loss is then that of the score
        targets = torch.stack([network(asked)[:, 0] - 1, torch.zeros(1)], -1)
    pairs, values = _examples(work, work.sample)
    # Cut out whole, as the usual loader collates pair by pair, and of one size, as pyDVL averages
    # batches whatever their size.
    batches = np.array_split(np.arange(m), -(-m // CHUNK))
    loader = DataLoader(TensorDataset(pairs, values), sampler=batches, batch_size=None)

    def cg(n_iterations: int) -> Any:
        return CgInfluence(
            network,
            lambda output, target: _loss(output, target).mean(),
            regularization=work.damping / work.n_train,
            rtol=0.0,  # its tolerances are squared: so many iterations instead
            atol=0.0,
            maxiter=n_iterations,
            warn_on_max_iteration=False,
        ).fit(loader)

    few = cg(work.n_timed)
    factors = few.influence_factors(asked, targets)
    own = _examples(work, np.arange(work.n_gradients))
    stacked = factors.repeat(work.n_queries, 1)

    solve = work.iterations(lambda: few.influence_factors(asked, targets))
    gradients = work.gradients(lambda: few.influences_from_factors(stacked, *own))
    return Peer(
        work.label,
        lambda: solve() + gradients(),
        lambda: cg(work.n_iterations).influence_factors(asked, targets)[0] / work.n_train,
    )


# -------------------------------------------------------------------------- dattri


def _dattri(work: _Work) -> Peer:
    import torch
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    network = _linearized(work.model)

    def output(parameters: Any, pairs: Any) -> Any:
        return torch.func.functional_call(network, parameters, (pairs,))

    task = AttributionTask(
        lambda parameters, batch: _loss(output(parameters, batch[0]), batch[1]).mean(),
        network,
        network.state_dict(),
        target_func=lambda parameters, batch: output(parameters, batch[0])[..., 0].sum(),
    )
    train = _examples(work, work.sample)
    # One batch: it adds up the inverses of batches.
    whole = DataLoader(
        TensorDataset(*train), sampler=[np.arange(len(work.sample))], batch_size=None
    )

    def cg(n_iterations: int) -> Any:
        damping = work.damping / work.n_train
        attributor = IFAttributorCG(task, max_iter=n_iterations, regularization=damping)
        attributor.cache(whole)
        return attributor

    few = cg(work.n_timed)
    right = few.generate_test_rep(0, (_query(work)[None],))
    own = tuple(array[None] for array in _examples(work, np.arange(work.n_gradients)))
    stacked = right.repeat(work.n_queries, 1)

    solve = work.iterations(lambda: few.transform_test_rep(0, right))
    gradients = work.gradients(lambda: few.generate_train_rep(0, own) @ stacked.T)
    return Peer(
        work.label,
        lambda: solve() + gradients(),
        lambda: cg(work.n_iterations).transform_test_rep(0, right)[0] / work.n_train,
    )
