"""TracIn at checkpoints against Captum's TracInCP on the equivalent torch model."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings

import fastinfluence as fi

torch = pytest.importorskip("torch")
influence = pytest.importorskip("captum.influence")


class Factorization(torch.nn.Module):
    """``mean + b_u + b_i + p_u . q_i`` of pairs (n, 2), embeddings with the bias last."""

    def __init__(self, data, model):
        super().__init__()
        self.mean = model.global_mean_
        self.users, self.items = (
            torch.nn.Embedding(n, model.n_factors + 1, dtype=torch.float64)
            for n in (data.n_users, data.n_items)
        )

    def forward(self, pairs):
        p, q = self.users(pairs[..., 0]), self.items(pairs[..., 1])
        products = (p[..., :-1] * q[..., :-1]).sum(-1)
        return (self.mean + p[..., -1] + q[..., -1] + products)[..., None]


def squared(scores, values):
    return 0.5 * ((scores - values) ** 2).sum(-1)


def score(scores, values):
    return scores.sum(-1)


def captum(model, rates, loss=squared):
    """TracInCP over the model's checkpoints, each loaded with a learning rate of its own."""
    data, checkpoints = model.data_, model.trajectory_.checkpoints

    def load(network, epoch):
        p, q, b, c = checkpoints[int(epoch)].tables
        rows = {"users.weight": np.column_stack([p, b]), "items.weight": np.column_stack([q, c])}
        network.load_state_dict({name: torch.tensor(table) for name, table in rows.items()})
        return rates[int(epoch)]

    pairs = torch.tensor(np.column_stack([data.users, data.items]).astype(np.int64))
    return influence.TracInCP(
        Factorization(data, model),
        torch.utils.data.TensorDataset(pairs, torch.tensor(data.values.astype(float))[:, None]),
        [str(epoch) for epoch in rates],
        checkpoints_load_func=load,
        loss_fn=loss,
        test_loss_fn=score,
        batch_size=16,
    )


def fit(**keywords):
    model = fi.MatrixFactorization(
        4, n_epochs=3, learning_rate=0.05, regularization=0.0, dtype="float64", rng=0, **keywords
    )
    return model.fit(ratings())


QUERIES = [(0, 1), (5, 3), (5, 4)]


@pytest.mark.filterwarnings("ignore")  # of torch and Captum
def test_influence_like_captum():
    """Captum's explains with the test loss, whose gradient is that of a loss: the other sign."""
    model = fit(learning_rate_decay=0.5)
    peer = captum(model, {1: 0.05, 2: 0.025, 3: 0.0125})
    asked = torch.tensor(QUERIES), torch.zeros(len(QUERIES), 1, dtype=torch.float64)
    expected = -peer.influence(asked).detach().numpy()
    got = fi.TracIn(model, mode="checkpoints").influence(QUERIES)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_intermediate_quantities_like_captums_without_their_second_learning_rate():
    """They are multiplied by the rate on both sides, so their products hold it twice."""
    model, rates = fit(), dict.fromkeys((1, 2, 3), 0.05)
    data = model.data_
    sides = [
        captum(model, rates, loss)
        .compute_intermediate_quantities(
            (torch.tensor(pairs.astype(np.int64)), torch.tensor(values.astype(float))[:, None])
        )
        .numpy()
        for pairs, values, loss in (
            (np.array(QUERIES), np.zeros(len(QUERIES)), score),
            (np.column_stack([data.users, data.items]), data.values, squared),
        )
    ]
    expected = -(sides[0] @ sides[1].T) / 0.05
    got = fi.TracIn(model, mode="checkpoints").influence(QUERIES)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
