"""TracIn as Captum and dattri run it on the equivalent torch model, dense embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from comparison import Rival, timed

import fastinfluence as fi

BATCH = 128


def rivals(
    model: fi.MatrixFactorization,
    sample: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray],
    epochs: list[int],
    names: tuple[str, ...] = ("Captum TracInCP", "dattri TracIn"),
) -> tuple[dict[str, Rival], dict[str, str]]:
    """The peers that are installed, and why the others are missing.

    Parameters
    ----------
    model : MatrixFactorization
    sample : (m,) int
        Training indices that are scored; the seconds are extrapolated to all of them.
    queries : tuple of (n,) int
        Codes of the pairs that are explained.
    epochs : list of int
        Checkpoints used.
    names : tuple of str
        Peers to run.
    """
    builds = {"Captum TracInCP": _captum, "dattri TracIn": _dattri}
    found, missing = {}, {}
    for name in names:
        parts = sample, sample[: len(sample) // 2]
        try:
            all_of_it, half = (timed(builds[name](model, p, queries, epochs)) for p in parts)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
            continue
        label = f"{name} ({len(sample):,} of {len(model.data_):,} ratings sampled, extrapolated)"
        found[label] = extrapolated(all_of_it, half, 2 * len(model.data_) / len(sample))
    return found, missing


def extrapolated(all_of_it: Rival, half: Rival, scale: float) -> Rival:
    """What the second half of the sample costs, scaled up: work done only once drops out."""
    return lambda: (all_of_it() - half()) * scale


def _torch_model(mean: float, n_users: int, n_items: int, n_factors: int) -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(1)

    class Factorization(nn.Module):
        """``mean + b_u + b_i + p_u . q_i`` of pairs (n, 2)."""

        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = (
                nn.Embedding(n_users, n_factors),
                nn.Embedding(n_items, n_factors),
            )
            self.user_biases = nn.Embedding(n_users, 1)
            self.item_biases = nn.Embedding(n_items, 1)

        def forward(self, pairs: Any) -> Any:
            users, items = pairs[..., 0], pairs[..., 1]
            products = (self.users(users) * self.items(items)).sum(-1, keepdim=True)
            return mean + self.user_biases(users) + self.item_biases(items) + products

    return Factorization()


def prepare(
    model: fi.MatrixFactorization,
    sample: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray],
    epochs: list[int],
) -> tuple[Any, list[dict[str, Any]], list[tuple[Any, Any]]]:
    """The torch model, its checkpoints, and (pairs, values) of training sample and queries."""
    import torch

    data = model.data_
    network = _torch_model(model.global_mean_, data.n_users, data.n_items, model.n_factors)
    checkpoints = []
    for epoch in epochs:
        p, q, b_u, b_i = map(torch.tensor, model.trajectory_.checkpoints[epoch].tables)
        names = ("users", "items", "user_biases", "item_biases")
        tables = (p, q, b_u[:, None], b_i[:, None])
        checkpoints.append({f"{n}.weight": t for n, t in zip(names, tables, strict=True)})
    columns = [(data.users[sample], data.items[sample], data.values[sample])]
    columns.append((*queries, np.zeros(len(queries[0]), np.float32)))
    sets = [
        (torch.tensor(np.column_stack([u, i]).astype(np.int64)), torch.tensor(v)[:, None])
        for u, i, v in columns
    ]
    return network, checkpoints, sets


def _captum(
    model: fi.MatrixFactorization,
    sample: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray],
    epochs: list[int],
) -> Callable[[], Any]:
    from captum.influence import TracInCP
    from torch.utils.data import TensorDataset

    network, checkpoints, (train, asked) = prepare(model, sample, queries, epochs)

    def load(module: Any, checkpoint: dict[str, Any]) -> float:
        module.load_state_dict(checkpoint)
        return model.learning_rate

    tracin = TracInCP(
        network,
        TensorDataset(*train),
        checkpoints,
        checkpoints_load_func=load,
        loss_fn=lambda scores, values: 0.5 * ((scores - values) ** 2).sum(-1),
        test_loss_fn=lambda scores, values: scores.sum(-1),
        batch_size=BATCH,
    )
    return lambda: tracin.influence(asked)


def _dattri(
    model: fi.MatrixFactorization,
    sample: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray],
    epochs: list[int],
) -> Callable[[], Any]:
    import torch
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    network, checkpoints, (train, asked) = prepare(model, sample, queries, epochs)

    def score(parameters: Any, batch: Any) -> Any:
        return torch.func.functional_call(network, parameters, (batch[0],)).sum()

    def loss(parameters: Any, batch: Any) -> Any:
        scores = torch.func.functional_call(network, parameters, (batch[0],))
        return 0.5 * ((scores - batch[1]) ** 2).sum()

    attributor = TracInAttributor(
        AttributionTask(loss, network, checkpoints, target_func=score),
        weight_list=torch.full((len(checkpoints),), model.learning_rate),
        normalized_grad=False,
    )
    attributor.projector_kwargs = None  # exact gradients; the constructor insists on a projector
    loaders = [DataLoader(TensorDataset(*part), batch_size=BATCH) for part in (train, asked)]
    return lambda: attributor.attribute(*loaders)
