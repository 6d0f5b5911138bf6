"""Subsets and top lists left out together."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings

import fastinfluence as fi
from fastinfluence import GradientRollback, MatrixFactorization
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation import (
    deletion_curve,
    leave_out,
    linear_datamodeling_score,
    subset_removal,
)

PAIRS = [(0, 0), (3, 5), (7, 1)]


@pytest.fixture(scope="module")
def model():
    return fit()


def fit(sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(ratings(), sample_weight=sample_weight)


# ---------------------------------------------------------------- subsets


@pytest.mark.parametrize(("fraction", "size"), [(0.001, 1), (0.1, 6), (0.5, 30)])
def test_subsets(model, fraction, size):
    found = subset_removal(model, PAIRS, fraction, n_subsets=5)
    assert found.change.shape == (3, 5)
    assert [len(np.unique(removed)) for removed in found.removals] == [size] * 5
    assert len({tuple(removed) for removed in found.removals}) > 1
    np.testing.assert_array_equal(found.change, leave_out(model, PAIRS, found.removals))
    again = subset_removal(model, PAIRS, fraction, n_subsets=5)
    np.testing.assert_array_equal(found.change, again.change)
    other = subset_removal(model, PAIRS, fraction, n_subsets=5, rng=1)
    assert not np.array_equal(np.array(found.removals), np.array(other.removals))
    assert f"5 subsets of {size} examples" in repr(found)


def test_subsets_score_the_truth_itself():
    """Far from the end of training, changes of single examples nearly add up."""
    model = fit(n_epochs=1, learning_rate=0.01)
    each = leave_out(model, PAIRS, np.arange(60)[:, None])
    found = subset_removal(model, PAIRS, 0.1, n_subsets=40)
    assert linear_datamodeling_score(each, found.removals, found.change).min() > 0.95
    assert linear_datamodeling_score(-each, found.removals, found.change).max() < -0.95


def test_subsets_of_the_examples_with_a_weight():
    weights = np.where(np.arange(60) < 40, 0.0, 1.0)
    found = subset_removal(fit(weights), PAIRS, 0.5, n_subsets=4)
    assert all(len(removed) == 10 and removed.min() >= 40 for removed in found.removals)


def test_subsets_are_kept(model, tmp_path):
    first = subset_removal(model, PAIRS, 0.1, n_subsets=3, path=tmp_path / "lds")
    again = subset_removal(model, PAIRS, 0.1, n_subsets=3, path=tmp_path / "lds")
    np.testing.assert_array_equal(first.change, again.change)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0}, "fraction must lie between 0 and 1"),
        ({"fraction": 1.0}, "fraction must lie"),
        ({"fraction": float("nan")}, "fraction must lie"),
        ({"n_subsets": 0}, "n_subsets must be an integer >= 1"),
    ],
)
def test_bad_subsets(model, wrong, message):
    with pytest.raises(ParameterError, match=message):
        subset_removal(model, PAIRS, **({"fraction": 0.1} | wrong))


def test_subsets_that_leave_nothing(model):
    with pytest.raises(DataError, match="nothing is left"):
        subset_removal(model, PAIRS, 0.999)


# ---------------------------------------------------------------- top lists


def test_deletion_curve(model):
    ex = GradientRollback(model).explain(PAIRS, k=4)
    lists = np.array([[5, 6, 7, 8], [9, 5, -1, -1], [-1, -1, -1, -1]])
    curve = deletion_curve(model, PAIRS, {"rollback": ex, "own": lists}, sizes=(1, 3))
    assert curve.names == ("rollback", "own")
    assert curve.sizes == (1, 3)
    assert curve.drop.shape == (2, 2, 3)
    for q in range(3):
        sets = [ex.train_index[q, :1], ex.train_index[q, :3]]
        np.testing.assert_array_equal(curve.drop[0, :, q], leave_out(model, PAIRS, sets)[q])
    own = leave_out(model, PAIRS, [[5], [5, 6, 7], [9], [9, 5], []])
    np.testing.assert_array_equal(curve.drop[1, :, 0], own[0, :2])
    np.testing.assert_array_equal(curve.drop[1, :, 1], own[1, 2:4])
    assert (curve.drop[1, :, 2] == 0).all()


def test_deletion_curve_as_a_table(model):
    lists = np.array([[5, 6], [9, 5], [1, 2]])
    curve = deletion_curve(model, PAIRS, {"a": lists, "another": lists[:, ::-1]}, sizes=[2, 1])
    frame = curve.to_pandas()
    assert list(frame.columns) == ["name", "size", "query", "drop"]
    assert len(frame) == 12
    row = frame[(frame["name"] == "another") & (frame["size"] == 1) & (frame["query"] == 2)]
    assert row["drop"].item() == curve.drop[1, 1, 2]
    assert (curve.drop[0, 0] == curve.drop[1, 0]).all()  # the order inside a set is nothing
    lines = repr(curve).splitlines()
    assert lines[0].split()[-2:] == ["2", "1"]
    assert lines[2].startswith("another")
    assert lines[2].split()[-1] == f"{curve.drop[1, 1].mean():.4g}"


def test_a_set_is_left_out_once(model, monkeypatch):
    retrained = []
    retrain = fi.Trajectory.retrain
    monkeypatch.setattr(
        fi.Trajectory, "retrain", lambda self, **k: retrained.append(1) or retrain(self, **k)
    )
    lists = np.array([[5, 6], [5, 6], [6, 5]])
    deletion_curve(model, PAIRS, {"a": lists, "b": lists.copy()}, sizes=(1, 2))
    assert len(retrained) == 3  # {5}, {6}, {5, 6}


@pytest.mark.parametrize(
    ("rankings", "sizes", "error", "message"),
    [
        ({"a": [[1], [2], [3]]}, (1, 10), ParameterError, "'a' holds 1 examples a query, but 10"),
        ({"a": [[1], [2]]}, (1,), DataError, r"'a' has shape \(2, 1\): one list for each of the 3"),
        ({"a": [1, 2, 3]}, (1,), DataError, r"shape \(3,\)"),
        ({"a": [[1], [60], [3]]}, (1,), DataError, "holds 60"),
        ({"a": [[1.5], [2], [3]]}, (1,), DataError, "float64"),
        ({}, (1,), DataError, "at least one ranking"),
        ({"a": [[1], [2], [3]]}, (), DataError, "one size"),
        ({"a": [[1], [2], [3]]}, (0,), ParameterError, "a size must be an integer >= 1"),
    ],
)
def test_bad_rankings(model, rankings, sizes, error, message):
    with pytest.raises(error, match=message):
        deletion_curve(model, PAIRS, rankings, sizes)
