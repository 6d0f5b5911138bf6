"""The list of bad inputs: each gets an error of ours that names what is wrong, and loses nothing.

One check of every kind, through the public names alone. The parts have their own, more detailed
tests: readers and tables in data/, run directories in storage/ and models/, hyper-parameters in
training/, queries in attribution/, the command line in test_cli.py, arrays in test_functional.py.
"""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted import ratings
from scipy.sparse import csr_array

import fastinfluence as fi
from fastinfluence.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    RunDirectoryError,
    UnknownIdError,
)

CSV = "userId,movieId,rating\n1,10,4\n1,20,5\n2,10,3\n"


def small(**keywords):
    return fi.MatrixFactorization(**({"n_factors": 4, "n_epochs": 2, "rng": 0} | keywords))


@pytest.fixture(scope="module")
def why():
    data = fi.Interactions.from_arrays(["ann", "bob", "cyd"], ["x", "y", "y"], [1, 2, 3])
    return fi.GradientRollback(small().fit(data))


from_arrays = fi.Interactions.from_arrays

ARRAYS = {
    "NaN value": (([1, 2], [3, 4], [1.0, np.nan]), "[1]"),
    "infinite value": (([1, 2], [3, 4], [np.inf, 1.0]), "[0]"),
    "NaN id": (([1.0, np.nan], [3, 4]), "users[1]"),
    "fractional id": (([1, 2], [3, 4.5]), "items[1] = 4.5"),
    "negative id": ((np.array([1, -2]), [3, 4]), "users[1] = -2 is negative"),
    "missing id": (([None, "a"], ["x", "y"]), "users[0]"),
    "mixed ids": ((["a", 1], ["x", "y"]), "mixes types"),
    "empty data": (([], []), "empty"),
    "mismatched items": (([1, 2], [3]), "users has 2 rows but items has 1"),
    "mismatched values": (([1, 2], [3, 4], [1.0]), "1"),
    "repeated pair": (([1, 1], [3, 3]), "duplicates='last'"),
    "two-dimensional ids": ((np.ones((2, 2), int), [1, 2]), "users"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case):
    arguments, named = ARRAYS[case]
    with pytest.raises(DataError, match=re.escape(named)):
        from_arrays(*arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sparse_matrix_of_bad_values(value):
    with pytest.raises(DataError, match=f"{value}"):
        fi.Interactions.from_csr(csr_array([[value, 1.0]]))


def test_sparse_matrix_without_entries():
    with pytest.raises(DataError, match="empty"):
        fi.Interactions.from_csr(csr_array((3, 3)))


FILES = {
    "missing column": (CSV, {"user": "user", "item": "movieId"}, "'userId', 'movieId', 'rating'"),
    "NaN cell": (CSV + "2,20,nan\n", {}, "ratings.csv"),
    "word for a number": (CSV + "2,20,good\n", {}, "ratings.csv"),
    "short line": (CSV + "2,20\n", {}, "line 5"),
    "no rows": ("userId,movieId,rating\n", {}, "ratings.csv"),
    "empty file": ("", {}, "ratings.csv"),
    "binary file": (b"\xff\xfe\x00\x01" * 50, {}, "ratings.csv"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(tmp_path, case):
    content, columns, named = FILES[case]
    file = tmp_path / "ratings.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(named)):
        fi.read_interactions(file, **columns)


@pytest.mark.parametrize("form", ["ratings.csv.gz", "ratings.npz", "ratings.parquet"])
def test_truncated_files(tmp_path, form):
    import pandas as pd

    file = tmp_path / form
    if form == "ratings.csv.gz":
        file.write_bytes(gzip.compress(CSV.encode() * 50))
    elif form == "ratings.npz":
        ratings().to_npz(file)
    else:
        pd.DataFrame({"user": [1, 2], "item": [3, 4]}).to_parquet(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=form):
        fi.read_interactions(file)


def test_absent_and_unreadable_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv"):
        fi.read_interactions(tmp_path / "none.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="MovieLens"):
        fi.datasets.movielens(tmp_path / "folder")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("loss", "values", "named"),
    [
        ("logistic", [1, 0, 4], "row 2 of the data has 4"),
        ("logistic", [1, 0.5, 0], "row 1 of the data has 0.5"),
        ("logistic", [1, -1, 1], "row 1 of the data has -1"),
        ("bpr", [1, 0, 1], "row 1 of the data has 0"),
        ("bpr", [3, 1, 1], "row 0 of the data has 3"),
    ],
)
def test_values_that_do_not_fit_the_loss(loss, values, named):
    data = from_arrays([0, 1, 2], [0, 1, 2], values)
    with pytest.raises(DataError, match=f"loss='{loss}' needs values of .*{re.escape(named)}"):
        small(loss=loss).fit(data)


@pytest.mark.parametrize(
    ("weights", "named"),
    [([1.0, 2.0], "60 examples"), (np.full(60, np.nan), "row 0 is nan"), (np.zeros(60), "every")],
)
def test_weights(weights, named):
    with pytest.raises(DataError, match=named):
        small().fit(ratings(), sample_weight=weights)


@pytest.mark.parametrize(
    "keywords",
    [
        {"n_factors": 0},
        {"n_epochs": 0},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"regularization": -1},
        {"loss": "poisson"},
        {"optimizer": "lbfgs"},
        {"dtype": "float16"},
        {"rng": -1},
        {"n_threads": 0},
        {"early_stopping": 2},
    ],
)
def test_hyper_parameters(keywords):
    (name,) = keywords
    with pytest.raises(ParameterError, match=name):
        small(**keywords).fit(ratings())


def test_divergence_keeps_the_last_fit():
    model = small().fit(ratings())
    before = model.trajectory_
    model.learning_rate = 1e6
    with pytest.raises(fi.FastInfluenceError, match=r"diverged.*lower learning_rate"):
        model.fit(ratings())
    assert model.trajectory_ is before
    assert np.isfinite(model.predict(0, 0)).all()


# ---------------------------------------------------------------- asking


def test_unknown_ids_are_named_and_the_others_counted(why):
    for ask in (
        lambda: why.explain([("anne", "x"), ("dan", "x"), ("eve", "x"), ("bob", "x")]),
        lambda: why.influence([("anne", "x"), ("dan", "x"), ("eve", "x")]),
        lambda: why.model.predict(["anne", "dan", "eve"], "x"),
        lambda: why.model.recommend(["anne", "dan", "eve"], k=1),
    ):
        with pytest.raises(UnknownIdError) as caught:
            ask()
        assert "unknown user 'anne' and 2 other unknown users; nearest" in str(caught.value)
        assert "'ann'" in str(caught.value)
        assert caught.value.unknown == ["anne", "dan", "eve"]


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_k(why, tmp_path, k):
    for ask in (
        lambda: why.explain([("ann", "x")], k=k),
        lambda: why.explain_to(tmp_path / "out", k=k),
        lambda: why.model.recommend(k=k),
    ):
        with pytest.raises(ParameterError, match=f"k must be an integer >= 1, not {k}"):
            ask()
    assert not (tmp_path / "out").exists()


def test_k_beyond_what_can_be_recommended(why):
    with pytest.raises(ParameterError, match="k=2 is more than the 1 items left for user 'ann'"):
        why.model.recommend("ann", k=2)


@pytest.mark.parametrize("queries", [5, "ann", ("ann", "x"), [("ann",)], np.ones(3)])
def test_queries_that_are_no_pairs(why, queries):
    with pytest.raises(DataError, match="queries"):
        why.explain(queries)


def test_an_empty_place_of_an_explanation_is_no_example_to_leave_out(why):
    listed = why.explain([("ann", "x")], k=5).train_index[0]
    assert listed[-1] == -1
    with pytest.raises(DataError, match="holds -1, which is no training index"):
        why.model.trajectory_.retrain(without=listed)


def test_an_unfitted_model():
    for ask in (
        lambda: small().predict([0], [0]),
        lambda: small().recommend(),
        lambda: small().save("nowhere"),
        lambda: fi.GradientRollback(small()),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet: call fit"):
            ask()
    assert not Path("nowhere").exists()


# ---------------------------------------------------------------- run directories


@pytest.fixture
def run(tmp_path):
    small().fit(ratings()).save(tmp_path / "run")
    return tmp_path / "run"


def test_another_format_version(run):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"format_version": 0}))
    with pytest.raises(RunDirectoryError, match="format version 0, this library reads version"):
        fi.load(run)


def test_a_flipped_byte(run):
    file = run / "data" / "users.npy"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"users\.npy do not match their checksum"):
        fi.load(run)


def test_a_file_cut_short_and_half_a_run(run):
    (run / "weights.npy").write_bytes((run / "weights.npy").read_bytes()[:50])
    with pytest.raises(RunDirectoryError, match="'weights' is damaged"):
        fi.load(run)
    (run / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match="only half of one"):
        fi.load(run)


KILLED = """
import os, signal, sys
import fastinfluence as fi
from fastinfluence.storage import run

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

path, old, seed = sys.argv[1], sys.argv[2] == "old", 0
data = fi.Interactions.from_arrays([0, 1, 1], [0, 0, 1], [1, 2, 3])
if old:
    fi.MatrixFactorization(4, n_epochs=2, rng=0).fit(data).save(path)
model = fi.MatrixFactorization(4, n_epochs=2, rng=1).fit(data)
run.write_manifest = die  # every array is on the disk by then
model.save(path, overwrite=old)
"""


@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_killed_save_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), before], check=False)
    assert done.returncode == -signal.SIGKILL
    if before == "nothing":
        with pytest.raises(RunDirectoryError, match="no run directory"):
            fi.load(path)
        small().fit(ratings()).save(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]  # nothing left behind
    else:
        model = fi.load(path)
        assert model.rng == 0
        model.trajectory_.verify()


def test_a_failed_save_leaves_what_was_there(run):
    other = small(rng=1).fit(ratings())
    other.n_threads = object()  # cannot be written as JSON
    with pytest.raises(ParameterError, match="plain JSON"):
        other.save(run, overwrite=True)
    assert fi.load(run).rng == 0
