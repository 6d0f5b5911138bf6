"""The work on single rows and on pairs in plain torch, as someone who knows torch well would."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpu_torch import put

__all__ = ["PairLists", "PairSystems", "RowSolves"]

Array = Any
Tensor = torch.Tensor


class RowSolves:
    """Gradients times minus the inverse of their row's block, in float64; rows in batches."""

    def __init__(self, blocks: Array, damping: float, pointers: Array, gradients: Array) -> None:
        self.blocks, self.gradients = put(np.tril(blocks)), put(gradients)
        self.damping, self.first = damping, put(pointers[:-1])
        degrees = np.diff(pointers)
        order = np.argsort(degrees)
        self.batches = [(put(some), int(degrees[some[-1]])) for some in _batches(order, 256)]
        self.degrees = put(degrees)

    def __call__(self) -> Tensor:
        """Solutions (n, d)."""
        found = torch.empty_like(self.gradients)
        for some, longest in self.batches:
            matrices = self.blocks[some].double()
            matrices.diagonal(dim1=1, dim2=2).add_(self.damping)
            factors = torch.linalg.cholesky_ex(matrices)[0]
            places = torch.arange(longest, device=found.device).expand(len(some), -1)
            there = places < self.degrees[some, None]
            at = (self.first[some, None] + places).clamp(max=len(found) - 1)
            solved = -torch.cholesky_solve(self.gradients[at].double().mT, factors).mT
            found[at[there]] = solved[there].to(found.dtype)
        return found


class PairSystems:
    """Solutions of the two rows of pairs with one rating of weight 1, in float64."""

    def __init__(self, ends: Array, blocks: Array, damping: float, u: Array, i: Array) -> None:
        self.ends, self.blocks, self.damping = put(ends), put(np.tril(blocks)), damping
        self.pairs = list(zip(put(u).split(2_000), put(i).split(2_000), strict=True))

    def __call__(self) -> tuple[Tensor, ...]:
        """What changes of either row are multiplied with: (m, d) each."""
        parts = [self._solved(u, i) for u, i in self.pairs]
        return tuple(torch.cat(part).to(self.ends.dtype) for part in zip(*parts, strict=True))

    def _solved(self, u: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        q, p, d = self.ends[i].double(), self.ends[u].double(), self.ends.shape[1]
        coupling = q[:, :, None] * p[:, None]
        matrices = q.new_zeros(len(u), 2 * d, 2 * d)
        matrices[:, :d, :d], matrices[:, d:, d:] = self.blocks[u], self.blocks[i]
        matrices[:, d:, :d] = coupling.mT
        matrices.diagonal(dim1=1, dim2=2).add_(self.damping)
        factors = torch.linalg.cholesky_ex(matrices)[0]
        v = torch.cholesky_solve(torch.cat([q, p], 1)[:, :, None], factors)
        return q - (coupling @ v[:, d:])[:, :, 0], p - (coupling.mT @ v[:, :d])[:, :, 0]


class PairLists:
    """The k greatest of every pair over the rows of both sides, its only example's added up."""

    def __init__(self, sides: Any, changes: Any, vectors: Any, columns: Any, own: Array) -> None:
        self.sides = [
            (put(pointers), put(order), put(rows), put(x), put(groups))
            for (pointers, order), rows, x, groups in zip(
                sides, changes, vectors, columns, strict=True
            )
        ]
        self.own = put(own)
        degrees = sum(np.diff(side[0])[groups] for side, groups in zip(sides, columns, strict=True))
        self.parts = [put(some) for some in _batches(np.argsort(degrees), 256)]

    def __call__(self, k: int) -> Tensor:
        """Values (m, k)."""
        found = torch.full((len(self.own), k), -torch.inf, device=self.own.device)
        for some in self.parts:
            (mine, of_user), (its, of_item) = (self._scores(some, *side) for side in self.sides)
            other = its.masked_fill(~of_item, 0).sum(1, keepdim=True)
            values = torch.cat([mine + of_user * other, its.masked_fill(of_item, -torch.inf)], 1)
            best = values.topk(min(k, values.shape[1])).values
            found[some, : best.shape[1]] = best
        return found

    def _scores(
        self, some: Tensor, pointers: Tensor, order: Tensor, rows: Tensor, x: Tensor, groups: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores (pairs, longest) of one side's rows, -inf behind them, and which is the own."""
        first, behind = pointers[groups[some]], pointers[groups[some] + 1]
        places = torch.arange(int((behind - first).max()), device=x.device)
        at = first[:, None] + places
        there = at < behind[:, None]
        at = at.clamp(max=len(rows) - 1)
        scores = (rows[at] @ x[some][:, :, None])[:, :, 0]
        own = there & (order[at] == self.own[some, None])
        return scores.masked_fill(~there, -torch.inf), own


def _batches(order: Array, size: int) -> list[Array]:
    return [order[start : start + size] for start in range(0, len(order), size)]
