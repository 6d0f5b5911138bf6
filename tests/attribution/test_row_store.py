"""The rows of Gradient Rollback: dtypes, files, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings, same_tables

from fastinfluence import GradientRollback, Hydra, MatrixFactorization
from fastinfluence.errors import NotFittedError, ParameterError, RunDirectoryError
from fastinfluence.training import Trajectory


def fit(data, **keywords):
    keywords = {"n_factors": 6, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(data)


@pytest.fixture(scope="module")
def model():
    return fit(ratings())


QUERIES = [(u, i) for u in range(12) for i in range(9)]


def same_rows(one, other):
    return same_tables(one.user_side, other.user_side) and same_tables(
        one.item_side, other.item_side
    )


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_take_the_dtype_of_the_model(dtype):
    model = fit(ratings(), dtype=dtype)
    rows = GradientRollback(model).rows
    assert rows.dtype == dtype
    assert rows.nbytes == 2 * 60 * 7 * np.dtype(dtype).itemsize
    assert same_rows(rows, GradientRollback(model, row_dtype=dtype).rows)


def test_bfloat16_rows_take_half_the_memory_and_keep_three_digits(model):
    full, half = GradientRollback(model), GradientRollback(model, row_dtype="bfloat16")
    assert half.rows.dtype == "bfloat16"
    assert half.rows.nbytes == full.rows.nbytes / 2
    expected, found = (why.influence(QUERIES, dense=True) for why in (full, half))
    assert not np.array_equal(expected, found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-8 * np.abs(expected).max())
    listed = half.explain(QUERIES, k=3)
    there = np.take_along_axis(found, listed.train_index, axis=1)
    np.testing.assert_array_equal(listed.influence, there)


@pytest.mark.parametrize(
    ("own", "asked"),
    [("float32", "float64"), ("float64", "float32"), ("float64", "bfloat16"), ("float32", "int8")],
)
def test_rows_of_another_precision_are_refused(own, asked):
    with pytest.raises(ParameterError, match=f"row_dtype='{asked}': the rows of a {own} model"):
        GradientRollback(fit(ratings(), dtype=own), row_dtype=asked)


@pytest.mark.parametrize(("rows", "factors"), [("float64", np.float32), ("float32", np.float64)])
def test_rows_and_factors_must_go_together(rows, factors):
    """What array-level callers could mix up."""
    store = GradientRollback(fit(ratings(), dtype=rows)).rows
    codes = np.zeros(1, np.int32)
    with pytest.raises(ParameterError, match=f"rows of {rows} cannot be multiplied"):
        store.top(np.ones((9, 7), factors), np.ones((12, 7), factors), codes, codes, 3)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("row_dtype", [None, "bfloat16"])
def test_rows_in_a_folder(model, tmp_path, row_dtype, monkeypatch):
    in_memory = GradientRollback(model, row_dtype=row_dtype)
    written = GradientRollback(model, row_dtype=row_dtype, path=tmp_path / "rows")
    monkeypatch.setattr(Trajectory, "replay", None)  # rows that are there are not rebuilt
    reopened = GradientRollback(model, row_dtype=row_dtype, path=tmp_path / "rows")
    expected = in_memory.explain(QUERIES, k=4)
    for why in (written, reopened):
        assert same_rows(why.rows, in_memory.rows)
        assert not why.rows.user_side.rows.flags.writeable  # a map of the file
        found = why.explain(QUERIES, k=4)
        np.testing.assert_array_equal(found.train_index, expected.train_index)
        np.testing.assert_array_equal(found.influence, expected.influence)
        np.testing.assert_array_equal(why.self_influence(), in_memory.self_influence())
        np.testing.assert_array_equal(
            why.influence(QUERIES, dense=True), in_memory.influence(QUERIES, dense=True)
        )


def test_rows_of_another_model_are_not_used(model, tmp_path):
    GradientRollback(model, path=tmp_path / "rows")
    for other in (fit(ratings(seed=1)), fit(ratings(), rng=1)):
        with pytest.raises(RunDirectoryError, match="belong to another model"):
            GradientRollback(other, path=tmp_path / "rows")
    with pytest.raises(RunDirectoryError, match="stored otherwise"):
        GradientRollback(model, path=tmp_path / "rows", row_dtype="bfloat16")
    with pytest.raises(ParameterError, match="row_dtype='int8'"):
        GradientRollback(model, path=tmp_path / "new", row_dtype="int8")
    assert not (tmp_path / "new").exists()


def test_a_run_of_a_model_holds_no_rows(model, tmp_path):
    model.save(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="'row-store' was expected"):
        GradientRollback(model, path=tmp_path / "run")


def test_damaged_rows(model, tmp_path):
    GradientRollback(model, path=tmp_path / "rows")
    file = tmp_path / "rows" / "item_rows.npy"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="'item_rows' is damaged"):
        GradientRollback(model, path=tmp_path / "rows")


# ---------------------------------------------------------------- what does not fit


def test_what_cannot_be_explained(model):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        GradientRollback(MatrixFactorization())
    with pytest.raises(ParameterError, match="MatrixFactorization is needed, not dict"):
        GradientRollback({})
    with pytest.raises(ParameterError, match="credit='both' is not known"):
        GradientRollback(model, credit="both")
    with pytest.raises(ParameterError, match="n_threads"):
        GradientRollback(model, n_threads=0)
    with pytest.raises(ParameterError, match=r"device='cuda'.*only for cpu"):
        Hydra(model, device="cuda")
    with pytest.raises(ParameterError, match="device='tpu' is not known"):
        GradientRollback(model, device="tpu")


def test_repr(model):
    assert repr(GradientRollback(model)) == f"GradientRollback({model!r})"
