"""Retraining in bulk: against `Trajectory.retrain`, on threads, killed and continued."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits

from fastinfluence import MatrixFactorization
from fastinfluence.errors import (
    DataError,
    FastInfluenceError,
    NotFittedError,
    ParameterError,
    ReplayMismatch,
    RunDirectoryError,
)
from fastinfluence.evaluation import leave_out, retrain_values, retraining
from fastinfluence.models.matrix_factorization import scores
from fastinfluence.storage import ShardWriter
from fastinfluence.training import Trajectory

PAIRS = [(0, 0), (3, 5), (7, 1)]
USERS, ITEMS = np.array(PAIRS, np.int32).T
SETS = [[4], [], [0, 1, 2], [59, 7], [7, 7, 59], [30]]


def fit(data=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(ratings() if data is None else data)


class Counted:
    """Scores of the pairs; counts how often it is read, and can fail."""

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.n_read, self.fail_at, self.error = 0, fail_at, error
        self.lock = threading.Lock()

    def __len__(self):
        return len(PAIRS)

    def values(self, tables, mean):
        with self.lock:
            self.n_read += 1
            failing = self.n_read == self.fail_at
        if failing:
            raise self.error
        return scores(tables, mean, USERS, ITEMS).astype(np.float64)

    @property
    def n_retrained(self):
        """One reading tells the queries of a folder apart."""
        return self.n_read - 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_set_is_retrained_without(loss, optimizer):
    model = fit(data_for(loss), loss=loss, optimizer=optimizer, dtype="float64")
    change = leave_out(model, PAIRS, SETS)
    assert change.shape == (3, 6)
    assert change.dtype == np.float64
    now = model.predict(USERS, ITEMS)
    for number, removed in enumerate(SETS):
        tables = model.trajectory_.retrain(without=removed)
        without = scores(tables, model.global_mean_, USERS, ITEMS)
        np.testing.assert_allclose(change[:, number], now - without, rtol=0, atol=1e-13)
    assert (change[:, 1] == 0).all()
    assert same_bits(change[:, 3], change[:, 4])
    assert np.abs(change[:, 2]).max() > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_threads_change_no_bit(loss):
    model = fit(data_for(loss), loss=loss)
    sets = np.arange(12)[:, None]
    one, two = (leave_out(model, PAIRS, sets, n_threads=n) for n in (1, 2))
    assert same_bits(one, two)


def test_a_single_retraining_uses_all_threads(monkeypatch):
    model = fit(ratings(130, 90, 4_100))  # two groups, so that one training can use two threads
    used = []
    retrain = Trajectory.retrain

    def noted(self, **keywords):
        used.append(keywords["n_threads"])
        return retrain(self, **keywords)

    monkeypatch.setattr(Trajectory, "retrain", noted)
    two = leave_out(model, PAIRS, [[0]], n_threads=2)
    assert same_bits(two, leave_out(model, PAIRS, [[0]], n_threads=1))
    assert same_bits(two, leave_out(model, PAIRS, [[0], [1]], n_threads=2)[:, :1].copy())
    assert used == [2, 1, 1, 1]


def test_weights_of_the_run_stay():
    data = ratings()
    weights = np.random.default_rng(0).choice([0, 0.5, 1], len(data))
    model = MatrixFactorization(n_factors=4, n_epochs=3, rng=0).fit(data, sample_weight=weights)
    change = leave_out(model, PAIRS, np.arange(len(data))[:, None])
    assert (change[:, weights == 0] == 0).all()
    assert np.abs(change[:, weights > 0]).max() > 0
    with pytest.raises(DataError, match=r"removals\[1\] holds every example"):
        leave_out(model, PAIRS, [[0], np.flatnonzero(weights)])


def test_without_any_rating_of_a_user_her_row_stays_at_its_start():
    model = fit()
    data, start = model.data_, model.trajectory_.checkpoints[0].tables

    class RowOfUser3:
        def __len__(self):
            return 5

        def values(self, tables, mean):
            return np.append(tables.user_factors[3], tables.user_biases[3]).astype(np.float64)

    hers = np.flatnonzero(data.users == 3)
    assert len(hers) > 1
    row, other = retrain_values(model, RowOfUser3(), [hers, hers[1:]]).T
    np.testing.assert_array_equal(row, np.append(start.user_factors[3], 0))
    assert (row != other).all()


def test_no_sets():
    assert leave_out(fit(), PAIRS, []).shape == (3, 0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[0], [60]], r"removals\[1\] holds 60, which is no training index: they go from 0 to 59"),
        ([[0, -1]], r"removals\[0\] holds -1"),
        ([[0.0]], r"removals\[0\] takes training indices, not float64"),
        ([[True]], "not bool"),
        ([3, 4], r"removals\[0\] is 3: every set is a sequence"),
        ([[0], range(60)], r"removals\[1\] holds every example: nothing is left"),
        ([np.tile(np.arange(60), 2)], "nothing is left"),
    ],
)
def test_what_cannot_be_left_out(sets, message):
    with pytest.raises(DataError, match=message):
        leave_out(fit(), PAIRS, sets)


def test_bad_models_and_queries():
    with pytest.raises(NotFittedError, match="call fit before"):
        leave_out(MatrixFactorization(), PAIRS, [[0]])
    with pytest.raises(ParameterError, match="MatrixFactorization is needed, not str"):
        leave_out("model", PAIRS, [[0]])
    with pytest.raises(DataError, match="no queries"):
        leave_out(fit(), [], [[0]])
    with pytest.raises(ParameterError, match="n_threads"):
        leave_out(fit(), PAIRS, [[0]], n_threads=0)


def test_a_model_that_was_changed_is_not_compared_with():
    model = fit()
    model.item_biases_[2] += 1
    with pytest.raises(ReplayMismatch, match="have been changed since"):
        leave_out(model, PAIRS, [[0]])


def test_a_retraining_that_diverges():
    class Late(Counted):
        def values(self, tables, mean):
            return super().values(tables, mean) + (np.inf if self.n_read > 3 else 0)

    with pytest.raises(FastInfluenceError, match=r"without removals\[2\] diverged"):
        retrain_values(fit(), Late(), SETS, n_threads=1)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_path_keeps_the_results(tmp_path, n_threads):
    model, sets = fit(), np.arange(20)[:, None]
    expected = retrain_values(model, Counted(), sets)
    for n_retrained in (20, 0):
        counted = Counted()
        found = retrain_values(model, counted, sets, n_threads=n_threads, path=tmp_path / "kept")
        assert counted.n_retrained == n_retrained
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, monkeypatch, error, n_threads):
    monkeypatch.setattr(retraining, "_MOST_IN_SHARD", 3)
    model, sets, path = fit(), np.arange(20)[:, None], tmp_path / "kept"
    expected = retrain_values(model, Counted(), sets)
    interrupted = Counted(fail_at=12, error=error)
    with pytest.raises(error):
        retrain_values(model, interrupted, sets, path=path, n_threads=n_threads)
    finished = 20 - retrained_on(model, sets, path, expected)
    # Ten before the eleventh failed; on two threads, three are under way in any order.
    assert finished == 10 if n_threads == 1 else 8 <= finished <= 12


def retrained_on(model, sets, path, expected):
    counted = Counted()
    found = retrain_values(model, counted, sets, path=path)
    np.testing.assert_array_equal(found, expected)
    return counted.n_retrained


def test_results_reach_the_disk_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "_SHARD_SECONDS", 0.0)
    retrain_values(fit(), Counted(), np.arange(5)[:, None], path=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("0*"))) == 5


KILLED = """
import os, sys
sys.path[:0] = {paths!r}
import numpy as np
from test_retraining import Counted, fit
from fastinfluence.evaluation import retrain_values, retraining

class Killed(Counted):
    def values(self, tables, mean):
        if self.n_read == 22:
            os._exit(9)
        return super().values(tables, mean)

Killed.__name__ = "Counted"
retraining._MOST_IN_SHARD = 4
retrain_values(fit(), Killed(), np.arange(30)[:, None], path={path!r}, n_threads=1)
"""


def test_a_killed_process_goes_on_where_it_was(tmp_path):
    here, path = Path(__file__).resolve().parent, tmp_path / "kept"
    code = KILLED.format(paths=[str(here), str(here.parent), str(here.parents[1])], path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    model, sets = fit(), np.arange(30)[:, None]
    expected = retrain_values(model, Counted(), sets)
    finished = 30 - retrained_on(model, sets, path, expected)
    # Of the five shards handed over, the last two may still have been on their way.
    assert finished in (12, 16, 20)


@pytest.mark.parametrize("finished", [True, False])
def test_a_path_of_something_else(tmp_path, finished):
    model, sets, path = fit(), np.arange(6)[:, None], tmp_path / "kept"
    readout = Counted(fail_at=None if finished else 4)
    try:
        retrain_values(model, readout, sets, path=path, n_threads=1)
    except KeyboardInterrupt:
        assert not finished

    class Other(Counted):
        pass

    for name, arguments in {
        "model": (fit(rng=1), Counted(), sets),
        "queries": (model, Other(), sets),
        "removals": (model, Counted(), sets + 1),
        "n_removals": (model, Counted(), sets[:5]),
    }.items():
        with pytest.raises(RunDirectoryError, match=rf"kept .*{name}"):
            retrain_values(*arguments, path=path)
    retrain_values(model, Counted(), sets.tolist(), path=path)  # the same sets, other types


def test_sets_are_told_apart(tmp_path):
    """The same examples in other sets are something else."""
    model, path = fit(), tmp_path / "kept"
    retrain_values(model, Counted(), [[0], [1, 2]], path=path)
    with pytest.raises(RunDirectoryError, match="differs in: removals"):
        retrain_values(model, Counted(), [[0, 1], [2]], path=path)


def test_pairs_of_equal_score_are_told_apart():
    model = fit()
    tables, mean = model.trajectory_.end.tables, model.global_mean_
    tables.item_factors[5], tables.item_biases[5] = tables.item_factors[4], tables.item_biases[4]
    quantities = [retraining.bind(model, [(0, item)]) for item in (4, 5, 4)]
    values = [quantity.values(tables, mean) for quantity in quantities]
    assert values[0] == values[1]
    first, second, third = map(retraining._query_checksum, quantities, values)
    assert first == third != second


def test_a_folder_of_another_kind_or_damaged(tmp_path):
    model, sets = fit(), np.arange(4)[:, None]
    with ShardWriter(tmp_path / "other", meta={"of": "something else"}) as writer:
        writer.append({"x": np.arange(3)})
    with pytest.raises(RunDirectoryError, match="another kind"):
        retrain_values(model, Counted(), sets, path=tmp_path / "other")
    retrain_values(model, Counted(), sets, path=tmp_path / "kept")
    file = tmp_path / "kept" / "000000" / "value.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"value\.npy"):
        retrain_values(model, Counted(), sets, path=tmp_path / "kept")
