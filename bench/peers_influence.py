"""Influence functions by conjugate gradients: in plain torch, and as pyDVL runs them.

Both solve ``H x = grad score`` for every query and multiply x with every rating's gradient. An
iteration costs the same whether it converges or not, so a few are timed and scaled up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peers_tracin
from comparison import Rival, timed

import fastinfluence as fi

N_ITERATIONS = 100
"""What a relative residual of 1e-4 takes on MovieLens 100K, k = 16; pyDVL's default tolerance."""

SOME = 2  # iterations that are timed
CHUNK = 2**15  # ratings a batch: four times as many are slower
N_GRADIENTS = 64  # ratings whose gradients pyDVL is given: each is as large as all parameters

Codes = tuple[np.ndarray, np.ndarray]


def rivals(
    model: fi.MatrixFactorization, queries: Codes, sample: np.ndarray
) -> tuple[dict[str, Rival], dict[str, str]]:
    """The peers that are installed, and why the others are missing.

    Parameters
    ----------
    model : MatrixFactorization
        Of the squared loss.
    queries : tuple of (n,) int
        Codes of the pairs that are explained; the first is solved for.
    sample : (m,) int
        Training indices that pyDVL is given; its seconds are extrapolated to all of them.
    """
    found, missing = {}, {}
    for name, build in {"CG in torch": _in_torch, "pyDVL CG": _pydvl}.items():
        try:
            label, rival = build(model, queries, sample)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
            continue
        found[f"{name} ({label}; extrapolated)"] = rival
    return found, missing


# -------------------------------------------------------------------------- in torch


class GaussNewton:
    """The damped least squares problem around a model, all parameters in one vector.

    The Hessian of factors is indefinite away from a perfect fit (conjugate gradients meet a
    negative curvature within ten iterations here), so it is the Gauss-Newton matrix, with the
    regularization as it was trained with.
    """

    def __init__(self, model: fi.MatrixFactorization) -> None:
        import torch

        torch.set_num_threads(1)
        data, tables = model.data_, model.trajectory_.end.tables
        self.mean, self.regularization = model.global_mean_, model.regularization
        self.users, self.items = (
            torch.tensor(codes.astype(np.int64)) for codes in (data.users, data.items)
        )
        self.values = torch.tensor(np.array(data.values, np.float32))
        self.parts = [slice(a, a + CHUNK) for a in range(0, len(data), CHUNK)]
        self.shapes = [(len(table), table[0].size) for table in tables]
        self.parameters = torch.cat([torch.tensor(table).ravel() for table in tables])
        degrees = [torch.bincount(codes) for codes in (self.users, self.items)] * 2
        self.shrinkage = self.regularization * torch.cat(
            [d.repeat_interleave(width) for d, (_, width) in zip(degrees, self.shapes, strict=True)]
        )

    def rows(self, parameters: Any, users: Any, items: Any) -> list[Any]:
        """Factors (n, k) and biases (n, 1): of the users, of the items, again of both."""
        from torch.nn.functional import embedding

        tables = parameters.split([n * width for n, width in self.shapes])
        return [
            embedding(codes, table.view(shape))
            for codes, table, shape in zip((users, items) * 2, tables, self.shapes, strict=True)
        ]

    def scores(self, parameters: Any, users: Any, items: Any) -> Any:
        """(n,)."""
        p, q, b_u, b_i = self.rows(parameters, users, items)
        return self.mean + (b_u + b_i).sum(1) + (p * q).sum(1)

    def losses(self, parameters: Any, part: slice) -> Any:
        """Of some ratings (n,), regularization included."""
        pairs = self.users[part], self.items[part]
        errors = self.scores(parameters, *pairs) - self.values[part]
        norms = sum((row * row).sum(1) for row in self.rows(parameters, *pairs))
        return 0.5 * (errors * errors + self.regularization * norms)

    def score_gradient(self, user: int, item: int) -> Any:
        """Gradient of one score by all parameters."""
        import torch

        pair = torch.tensor([user]), torch.tensor([item])
        return torch.func.grad(lambda at: self.scores(at, *pair).sum())(self.parameters)

    def product(self, vector: Any) -> Any:
        """Gauss-Newton matrix times a vector: forward mode, then reverse."""
        import torch

        total = self.shrinkage * vector
        for part in self.parts:

            def scores(at: Any, part: slice = part) -> Any:
                return self.scores(at, self.users[part], self.items[part])

            _, along = torch.func.jvp(scores, (self.parameters,), (vector,))
            total += torch.func.vjp(scores, self.parameters)[1](along)[0]
        return total

    def solve(self, right: Any, n_iterations: int) -> Any:
        """Conjugate gradients from zero."""
        x, residual = right * 0, right.clone()
        direction, norm = right.clone(), right @ right
        for _ in range(n_iterations):
            image = self.product(direction)
            step = norm / (direction @ image)
            x += step * direction
            residual -= step * image
            before, norm = norm, residual @ residual
            direction = residual + norm / before * direction
        return x

    def influence(self, solution: Any) -> Any:
        """(n_train,) ``solution . grad loss_j``."""
        import torch

        def of(part: slice) -> Any:
            losses: Callable[[Any], Any] = lambda at: self.losses(at, part)  # noqa: E731
            return torch.func.jvp(losses, (self.parameters,), (solution,))[1]

        return torch.cat([of(part) for part in self.parts])


def _in_torch(
    model: fi.MatrixFactorization, queries: Codes, sample: np.ndarray
) -> tuple[str, Rival]:
    problem, n = GaussNewton(model), len(queries[0])
    right = problem.score_gradient(int(queries[0][0]), int(queries[1][0]))
    solve = timed(lambda: problem.solve(right, SOME), share=SOME / N_ITERATIONS / n)
    multiply = timed(lambda: problem.influence(right), share=1 / n)
    label = f"{SOME} of {N_ITERATIONS} iterations, 1 of {n} queries"
    return label, lambda: solve() + multiply()


# -------------------------------------------------------------------------- pyDVL


def _pydvl(model: fi.MatrixFactorization, queries: Codes, sample: np.ndarray) -> tuple[str, Rival]:
    import torch
    from pydvl.influence.torch import CgInfluence
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

    n, n_train = len(queries[0]), len(model.data_)
    first = queries[0][:1], queries[1][:1]
    network, (end,), ((pairs, values), (asked, _)) = peers_tracin.prepare(
        model, sample, first, [model.n_epochs_]
    )
    network.load_state_dict(end)
    with torch.no_grad():
        targets = network(asked) - 1  # the gradient of the loss is then that of the score
    examples = TensorDataset(pairs, values)
    # Batches cut out whole: the usual loader would collate pair by pair.
    batches = BatchSampler(SequentialSampler(examples), CHUNK, drop_last=False)
    degree = 2 * n_train / (model.data_.n_users + model.data_.n_items)  # on average
    influence = CgInfluence(
        network,
        lambda scores, values: 0.5 * ((scores - values) ** 2).mean(),
        regularization=model.regularization * degree / n_train,
        maxiter=SOME,
        warn_on_max_iteration=False,
    ).fit(DataLoader(examples, sampler=batches, batch_size=None))
    factors = influence.influence_factors(asked, targets).repeat(n, 1)

    def multiply(m: int) -> Rival:
        return timed(lambda: influence.influences_from_factors(factors, pairs[:m], values[:m]))

    solve = timed(  # with one product more, for the first residual
        lambda: influence.influence_factors(asked, targets),
        share=(SOME + 1) / (N_ITERATIONS + 1) / n * len(sample) / n_train,
    )
    m = min(N_GRADIENTS, len(sample))
    gradients = peers_tracin.extrapolated(multiply(m), multiply(m // 2), 2 * n_train / m)
    label = (
        f"{SOME} of {N_ITERATIONS} iterations, 1 of {n} queries, {len(sample):,} of {n_train:,} "
        "ratings"
    )
    return label, lambda: solve() + gradients()
