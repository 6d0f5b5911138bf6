"""Solving once and multiplying later: factors as results, as files, of the wrong model."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import fit
from planted import LOSSES, data_for, ratings, same_bits

from fastinfluence import InfluenceFunction, objectives
from fastinfluence.attribution.influence_factors import InfluenceFactors
from fastinfluence.attribution.solve import SolveReport
from fastinfluence.errors import (
    ConvergenceWarning,
    DataError,
    ParameterError,
    RunDirectoryError,
    UnknownIdError,
)

MANY = [(user, item) for user in range(12) for item in (0, 4, 8)]  # more than two blocks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_factors_and_examples_make_the_influence(loss, dtype):
    model = fit(data_for(loss), loss=loss, dtype=dtype)
    why = InfluenceFunction(model)
    factors = why.influence_factors(MANY)
    expected = why.influence(MANY)
    n_rows = model.data_.n_users + model.data_.n_items
    assert factors.vectors.shape == (len(factors), n_rows, 4) == (36, n_rows, 4)
    assert factors.vectors.dtype == dtype
    assert same_bits(why.influence_from_factors(factors), expected)
    some = [5, 0, 5, 59]
    assert same_bits(why.influence_from_factors(factors, some), expected[:, some])
    other = InfluenceFunction(model, damping=99.0)  # it is not asked to solve
    assert same_bits(other.influence_from_factors(factors), expected)


def test_they_are_the_solutions():
    model = fit(ratings())
    why = InfluenceFunction(model, rtol=1e-10, damping=0.7)
    factors = why.influence_factors(objectives.Margin(MANY[:5], over=2))
    endpoint = model.trajectory_.program.endpoint(model.trajectory_.end.tables)
    quantity = objectives.Margin(MANY[:5], over=2).bind(model.data_, model.trajectory_.recipe)
    panel, image = endpoint.panel(quantity, 0), np.zeros((*endpoint.rows.shape, 16))
    x = np.zeros_like(panel)
    x[:, :, :5] = factors.vectors.transpose(1, 2, 0)
    endpoint.product(x, image)
    np.testing.assert_allclose(image + 0.7 * x, panel, rtol=0, atol=1e-9)
    assert factors.report.converged.all()
    assert factors.report.damping == 0.7
    assert repr(factors).startswith("InfluenceFactors(5 queries, 21 rows of 4 numbers; SolveRep")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_come_back_from_a_folder(tmp_path, dtype):
    model = fit(ratings(), dtype=dtype)
    why = InfluenceFunction(model)
    factors = why.influence_factors(MANY)
    factors.save(tmp_path / "factors")
    loaded = InfluenceFactors.load(tmp_path / "factors")
    assert same_bits(loaded.vectors, factors.vectors)
    assert loaded.model == factors.model
    for name in SolveReport.COLUMNS:
        assert same_bits(getattr(loaded.report, name), getattr(factors.report, name))
    for name in SolveReport.SCALARS:
        assert getattr(loaded.report, name) == getattr(factors.report, name)
    again = InfluenceFunction(fit(ratings(), dtype=dtype))  # the same model, trained again
    assert same_bits(again.influence_from_factors(loaded), why.influence(MANY))
    with pytest.raises(RunDirectoryError):
        factors.save(tmp_path / "factors")
    why.influence_factors(MANY[:2]).save(tmp_path / "factors", overwrite=True)
    assert len(InfluenceFactors.load(tmp_path / "factors")) == 2


def test_unsolved_ones_say_so(tmp_path):
    why = InfluenceFunction(fit(ratings()), max_iterations=1, rtol=1e-8)
    with pytest.warns(ConvergenceWarning, match="36 of 36 queries were not solved"):
        factors = why.influence_factors(MANY)
    factors.save(tmp_path / "rough")
    loaded = InfluenceFactors.load(tmp_path / "rough")
    assert not loaded.report.converged.any()
    assert (loaded.report.residual > 1e-8).all()
    assert "36 not converged" in repr(loaded)


# ---------------------------------------------------------------- bad input


def test_of_another_model():
    factors = InfluenceFunction(fit(ratings())).influence_factors(MANY)
    for other in (fit(ratings(), n_epochs=5), fit(ratings(seed=1)), fit(ratings(), rng=1)):
        with pytest.raises(DataError, match="solved for another model"):
            InfluenceFunction(other).influence_from_factors(factors)


@pytest.mark.parametrize("index", [[60], [-1], [0.5], ["x"]])
def test_of_examples_there_are_not(index):
    why = InfluenceFunction(fit(ratings()))
    factors = why.influence_factors(MANY[:2])
    with pytest.raises(DataError, match="train_index"):
        why.influence_from_factors(factors, index)


def test_of_unknown_queries():
    why = InfluenceFunction(fit(ratings()))
    with pytest.raises(UnknownIdError):
        why.influence_factors([(99, 0)])
    with pytest.raises(DataError, match="no queries"):
        why.influence_factors([])


def test_that_fit_no_memory():
    model = fit(ratings(n_users=900, n_items=900, n=1_000), n_factors=32, n_epochs=1)
    why = InfluenceFunction(model, memory_budget=2**24)
    with pytest.raises(ParameterError, match="memory"):
        why.influence_factors([(0, item) for item in range(64)])


def test_a_damaged_folder(tmp_path):
    factors = InfluenceFunction(fit(ratings())).influence_factors(MANY)
    with pytest.raises(RunDirectoryError):
        InfluenceFactors.load(tmp_path / "nothing")
    fit(ratings()).save(tmp_path / "model")
    with pytest.raises(RunDirectoryError, match="influence-factors"):
        InfluenceFactors.load(tmp_path / "model")
    factors.save(tmp_path / "cut")
    path = tmp_path / "cut" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunDirectoryError, match="vectors"):
        InfluenceFactors.load(tmp_path / "cut")
    factors.save(tmp_path / "flipped")
    path = tmp_path / "flipped" / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="vectors"):
        InfluenceFactors.load(tmp_path / "flipped")
