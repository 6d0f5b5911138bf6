"""Methods with ``device="torch:cpu"`` against the CPU's own kernels."""

from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence.errors import DeviceError, NegativeCurvature, ParameterError

pytest.importorskip("torch")
TORCH = "torch:cpu"
QUERIES = [("u0", "i0"), ("u1", "i5"), ("u2", "i3"), ("u7", "i9"), ("u3", "i1")]

LOSSES = ["squared", "logistic", "bpr"]


def make_model(loss="squared", dtype="float64", n=150):
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 12, n), rng.integers(0, 15, n)
    _, first = np.unique(users * 15 + items, return_index=True)
    users, items = users[first], items[first]
    values = rng.normal(3, 1, len(first)) if loss == "squared" else np.ones(len(first))
    data = fi.Interactions.from_arrays([f"u{u}" for u in users], [f"i{i}" for i in items], values)
    return fi.MatrixFactorization(
        n_factors=5, loss=loss, n_epochs=6, regularization=0.05, rng=0, dtype=dtype
    ).fit(data)


def make_graph_model(family):
    rng = np.random.default_rng(1)
    heads, relations, tails = (rng.integers(0, m, 80).astype(str) for m in (12, 3, 12))
    data = fi.Triples.from_arrays(heads, relations, tails, duplicates="first")
    return family(n_factors=6, n_epochs=5, rng=0, dtype="float64").fit(data)


def both(make):
    """What is made on torch's CPU, and on the CPU."""
    return make(TORCH), make("cpu")


def trained_pairs(model):
    """Raw ids of the training pairs."""
    data = model.data_
    return list(zip(data.user_ids[data.users], data.item_ids[data.items], strict=True))


def assert_lists_alike(mine, its, **close):
    np.testing.assert_array_equal(mine.train_index, its.train_index)
    np.testing.assert_allclose(mine.influence, its.influence, **close)
    np.testing.assert_allclose(mine.total_influence, its.total_influence, **close)


CLOSE = {"rtol": 1e-8, "atol": 1e-11}


@pytest.mark.parametrize("proponents", [True, False])
def test_gradient_rollback(proponents):
    model = make_model()
    mine, its = both(lambda device: fi.GradientRollback(model, device=device))
    lists = (why.explain(QUERIES, k=7, proponents=proponents) for why in (mine, its))
    assert_lists_alike(*lists, **CLOSE)
    matrices = (why.influence(QUERIES, dense=True) for why in (mine, its))
    np.testing.assert_allclose(*matrices, **CLOSE)
    np.testing.assert_allclose(mine.self_influence(), its.self_influence(), **CLOSE)


def test_rows_larger_than_the_memory_of_a_device(monkeypatch):
    """They go there page by page."""
    from fastinfluence.kernels.torch import memory

    model = make_model()
    expected = fi.GradientRollback(model, device="cpu").explain(QUERIES, k=7)
    monkeypatch.setattr(memory.On, "free_bytes", lambda self: 10_000)
    found = fi.GradientRollback(model, device=TORCH).explain(QUERIES, k=7)
    assert_lists_alike(found, expected, **CLOSE)


def test_rollback_of_bfloat16_rows():
    model = make_model(dtype="float32")
    mine, its = both(lambda device: fi.GradientRollback(model, row_dtype="bfloat16", device=device))
    mine, its = (why.explain(QUERIES, k=5) for why in (mine, its))
    np.testing.assert_allclose(mine.influence, its.influence, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hessian", ["gauss-newton", "full"])
def test_influence_functions(loss, hessian):
    model = make_model(loss)
    options = {"hessian": hessian, "on_negative_curvature": "lift", "rtol": 1e-10}
    mine, its = (fi.InfluenceFunction(model, device=device, **options) for device in (TORCH, "cpu"))
    matrices = (why.influence(QUERIES) for why in (mine, its))
    np.testing.assert_allclose(*matrices, rtol=1e-5, atol=1e-8)
    assert mine.report_.converged.all()
    np.testing.assert_allclose(mine.self_influence(), its.self_influence(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hessian", ["gauss-newton", "full"])
def test_influence_functions_of_pairs(loss, hessian):
    model = make_model(loss)
    options = {"scope": "pair", "hessian": hessian, "damping": 6.0}
    mine, its = both(lambda device: fi.InfluenceFunction(model, device=device, **options))
    queries = [*QUERIES, *trained_pairs(model)[:3]]
    matrices = (why.influence(queries, dense=True) for why in (mine, its))
    np.testing.assert_allclose(*matrices, **CLOSE)
    lists = (why.explain(queries, k=4) for why in (mine, its))
    assert_lists_alike(*lists, **CLOSE)
    np.testing.assert_allclose(mine.self_influence(), its.self_influence(), **CLOSE)


def test_negative_curvature_of_a_pair_is_told_alike():
    model, messages = make_model("squared"), []
    for device in (TORCH, "cpu"):
        why = fi.InfluenceFunction(model, scope="pair", hessian="full", damping=0.0, device=device)
        with pytest.raises(NegativeCurvature) as caught:
            why.influence(trained_pairs(model))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("family", [fi.DistMult, fi.ComplEx])
def test_triples(family):
    model = make_graph_model(family)
    mine, its = both(lambda device: fi.GradientRollback(model, device=device))
    queries = [("0", "0", "1"), ("2", "1", "5"), ("3", "2", "3")]
    for objective in (queries, fi.objectives.Probability(queries)):
        matrices = (why.influence(objective, dense=True) for why in (mine, its))
        np.testing.assert_allclose(*matrices, **CLOSE)
    np.testing.assert_allclose(mine.self_influence(), its.self_influence(), **CLOSE)


@pytest.mark.parametrize("family", [fi.DistMult, fi.ComplEx])
def test_link_prediction(family):
    model = make_graph_model(family)
    mine, its = both(
        lambda device: fi.evaluation.link_prediction(model, model.data_, device=device)
    )
    np.testing.assert_array_equal(mine.ranks, its.ranks)
    np.testing.assert_array_equal(mine.ties, its.ties)


@pytest.mark.parametrize("device", ["torch:meta", "torch:nowhere"])
def test_devices_that_are_not_there(device):
    with pytest.raises(DeviceError, match=f"device='{device}' cannot be used"):
        fi.GradientRollback(make_model(), device=device)


def test_methods_that_torch_does_not_serve():
    with pytest.raises(ParameterError, match="there are no torch kernels for this"):
        fi.Hydra(make_model(), device=TORCH)
