"""Influence functions: negative curvature, unsolved systems, threads, memory, bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from endpoints import fit, with_duplicates
from oracles import hessian as oracle
from planted import LOSSES, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import Explanations, InfluenceFunction, MatrixFactorization, PairInfluence
from fastinfluence.attribution import influence_function, solve
from fastinfluence.attribution.solve import SolveReport
from fastinfluence.errors import (
    ConvergenceWarning,
    DataError,
    NegativeCurvature,
    NotFittedError,
    ParameterError,
    UnknownIdError,
)

each_loss = pytest.mark.parametrize("loss", LOSSES)
MANY = [(user, item) for user in range(12) for item in range(4)]  # three blocks of 16


# ---------------------------------------------------------------- negative curvature


def indefinite():
    """20 users, 15 items and 4 factors, as other libraries were found to be silent on.

    The model, the smallest eigenvalue of its full Hessian, and the curvature of every example's
    own loss along that direction.
    """
    model = fit(
        ratings(n_users=20, n_items=15, n=120), n_factors=4, n_epochs=30, learning_rate=0.02,
        regularization=0.02,
    )  # fmt: skip
    problem = oracle.of_program(model.trajectory_.program, model.trajectory_.end.tables)
    assert problem.parameters.size == 175
    values, vectors = np.linalg.eigh(oracle.hessian(problem, full=True))
    x = vectors[:, 0]
    own = [x @ oracle.hessian(problem, full=True, members=[j]) @ x for j in range(120)]
    return model, float(values[0]), np.array(own)


@pytest.mark.parametrize("share", [0, 0.2, 0.9])
def test_raises_on_an_indefinite_hessian(share):
    model, smallest, _ = indefinite()
    assert smallest < -0.01
    why = InfluenceFunction(model, hessian="full", damping=-share * smallest)
    for ask in (why.influence, why.explain, why.influence_factors):
        with pytest.raises(NegativeCurvature, match="not positive definite: its smallest") as info:
            ask(MANY)
    with pytest.raises(NegativeCurvature):
        why.self_influence()
    message = str(info.value)
    assert "on_negative_curvature='lift' (which does) or 'gauss-newton'" in message
    named = float(message.split("give damping > ")[1].split(",")[0])
    assert -smallest < named < -1.2 * smallest
    other = InfluenceFunction(model, hessian="full", damping=named)
    assert np.isfinite(other.influence(MANY)).all()
    assert other.damping_ == named
    assert other.hessian_ == "full"


def test_lifts_the_damping_of_an_indefinite_hessian():
    model, smallest, _ = indefinite()
    why = InfluenceFunction(model, hessian="full", on_negative_curvature="lift", damping=0.001)
    found = why.influence(MANY)
    assert -smallest < why.damping_ < -1.2 * smallest
    assert why.report_.damping == why.damping_
    assert why.report_.converged.all()
    lifted = InfluenceFunction(model, hessian="full", damping=why.damping_).influence(MANY)
    assert same_bits(found, lifted)
    assert same_bits(why.influence(MANY), found)  # lifted once


def test_takes_gauss_newton_for_an_indefinite_hessian():
    model, *_ = indefinite()
    options = {"hessian": "full", "on_negative_curvature": "gauss-newton", "damping": 0.001}
    why = InfluenceFunction(model, **options)
    expected = InfluenceFunction(model, damping=0.001).influence(MANY)
    assert same_bits(why.influence(MANY), expected)
    assert (why.hessian_, why.report_.hessian) == ("gauss-newton",) * 2
    assert why.damping_ == 0.001


@pytest.mark.parametrize("policy", ["raise", "lift", "gauss-newton"])
def test_damping_that_is_enough_is_left_alone(policy):
    model, smallest, _ = indefinite()
    damping = -1.5 * smallest
    options = {"hessian": "full", "on_negative_curvature": policy, "damping": damping}
    why = InfluenceFunction(model, **options)
    assert np.isfinite(why.influence(MANY)).all()
    assert (why.damping_, why.hessian_) == (damping, "full")


def test_a_singular_system_is_told():
    model = fit(ratings(n_users=12, n_items=9, n=30), n_factors=8, regularization=0.0)
    for hessian in ("gauss-newton", "full"):
        with pytest.raises(NegativeCurvature, match="damping"):
            InfluenceFunction(model, hessian=hessian, damping=0).influence(MANY)


def test_a_group_that_holds_the_hessian_up_is_told():
    """With it the damped full Hessian is definite, without it no more."""
    model, smallest, own = indefinite()
    group = np.argsort(-own)[:10]
    why = InfluenceFunction(model, hessian="full", damping=-1.02 * smallest)
    assert np.isfinite(why.influence(MANY[:2])).all()
    with pytest.raises(NegativeCurvature, match="it has an eigenvalue of"):
        why.group_influence(MANY[:2], [group])
    more = InfluenceFunction(model, hessian="full", damping=-1.5 * smallest)
    assert np.isfinite(more.group_influence(MANY[:2], [group])).all()


# ---------------------------------------------------------------- unsolved systems


def unsolved(**keywords):
    return InfluenceFunction(fit(ratings()), max_iterations=1, rtol=1e-6, **keywords)


def test_running_out_of_iterations_is_told_and_results_are_returned():
    why = unsolved()
    message = r"48 of 48 queries were not solved to rtol=1e-06 within 1 iterations \(largest"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        found = why.influence(MANY)
    assert len(caught) == 1
    assert "Raise max_iterations, damping (now " in str(caught[0].message)
    assert "float64" not in str(caught[0].message)
    assert found.shape == (48, 60)
    assert np.isfinite(found).all()
    assert found.any(axis=1).all()
    report = why.report_
    assert len(report) == 48
    assert not report.converged.any()
    assert report.iterations.tolist() == [1] * 48
    assert ((report.residual > 1e-6) & (report.residual < 1)).all()
    solved = InfluenceFunction(why.model, rtol=1e-6)
    solved.influence(MANY)
    assert solved.report_.converged.all()


def test_float32_is_told_what_would_help():
    why = InfluenceFunction(fit(ratings(), dtype="float32"), rtol=1e-12)
    with pytest.warns(ConvergenceWarning, match="train in dtype='float64'"):
        why.influence(MANY)
    assert not why.report_.converged.any()
    assert (why.report_.residual < 1e-4).all()


def test_what_was_left_travels_with_explanations(tmp_path):
    why = unsolved()
    with pytest.warns(ConvergenceWarning):
        lists = why.explain(MANY, k=3)
    np.testing.assert_array_equal(lists.residual, why.report_.residual)
    np.testing.assert_array_equal(lists.converged, why.report_.converged)
    line = f"(the system behind these numbers was not solved: {lists.residual[5]:.2g} of it is left"
    assert line in lists.because(5)
    assert line in repr(lists[5])
    np.testing.assert_array_equal(lists[4:9].residual, lists.residual[4:9])
    lists.save(tmp_path / "why.npz")
    loaded = Explanations.load(tmp_path / "why.npz", why.data)
    assert same_bits(loaded.residual, lists.residual)
    assert same_bits(loaded.converged, lists.converged)
    assert line in loaded.because(5)
    solved = InfluenceFunction(why.model).explain(MANY, k=3)
    assert solved.converged.all()
    assert (solved.residual <= 1e-3).all()
    assert "not solved" not in solved.because(5)
    assert (solved.method, solved.units) == ("influence-function", "effect")


def test_groups_are_told_too():
    why = unsolved()
    with pytest.warns(ConvergenceWarning):
        found = why.group_influence(MANY[:2], [[0, 1], [2]])
    assert np.isfinite(found).all()
    assert len(why.report_) == 2 * 3  # for all the data and without each of two groups


# ---------------------------------------------------------------- promises


@each_loss
def test_threads_change_no_bit(loss, monkeypatch):
    monkeypatch.setattr(influence_function, "_LEAST_WORK", 0)  # share the smallest work too
    model = fit(data_for(loss), loss=loss, dtype="float32")
    results = []
    for n_threads in (1, 2):
        why = InfluenceFunction(model, n_threads=n_threads)
        found = []
        for queries in (MANY, MANY[:3]):  # blocks side by side; one block on two threads
            lists = why.explain(queries, k=4)
            found += [why.influence(queries), lists.influence, lists.train_index]
            found += [getattr(why.report_, name) for name in SolveReport.COLUMNS]
        found += [why.self_influence(), why.group_influence(MANY[:20], [[1, 2], [9]])]
        results.append([*found, why.influence_factors(MANY).vectors])
    for one, two in zip(*results, strict=True):
        assert same_bits(one, two)


def test_queries_do_not_know_of_each_other():
    why = InfluenceFunction(fit(ratings(), dtype="float32"))
    together = why.influence(MANY)
    for number in (0, 17, 47):
        assert same_bits(why.influence([MANY[number]])[0], together[number])
    assert same_bits(why.influence(MANY[::-1]), together[::-1].copy())


def test_lists_are_those_of_the_whole_matrix():
    why = InfluenceFunction(fit(ratings()))
    matrix = why.influence(MANY)
    for proponents, sign in ((True, 1), (False, -1)):
        lists = why.explain(MANY, k=5, proponents=proponents)
        order = np.argsort(-sign * matrix, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(lists.train_index, order)
        np.testing.assert_array_equal(lists.influence, np.take_along_axis(matrix, order, 1))
    np.testing.assert_allclose(lists.total_influence, np.abs(matrix).sum(1))


def test_memory_decides_how_many_go_side_by_side(monkeypatch):
    model = fit(ratings())
    wide = InfluenceFunction(model, n_threads=2)
    monkeypatch.setattr(solve, "_PANELS", 600)
    narrow = InfluenceFunction(model, n_threads=2, memory_budget=2**23)
    assert (narrow._at_once(), wide._at_once() > 2) == (1, True)
    assert same_bits(narrow.influence(MANY), wide.influence(MANY))


def test_too_little_memory_is_told():
    model = fit(ratings(n_users=900, n_items=900, n=1_000), n_factors=32, n_epochs=1)
    why = InfluenceFunction(model, memory_budget=2**20)
    with pytest.raises(ParameterError, match=r"16 queries take [\d,]+ MiB, more than the memory"):
        why.explain([(0, 0)])
    with pytest.raises(ParameterError, match="memory"):
        why.influence([(0, item) for item in range(200)])


def test_options_of_iterations_are_not_of_the_closed_form():
    model = fit(ratings())
    with pytest.raises(ParameterError, match="closed form: leave out max_iterations, rtol"):
        InfluenceFunction(model, scope="pair", rtol=1e-6, max_iterations=3)
    with pytest.raises(ParameterError, match="rtol must be"):
        InfluenceFunction(model, rtol=True)


def test_scope():
    model = fit(ratings())
    pair = InfluenceFunction(model, scope="pair", damping=2.0)
    assert type(pair) is type(pair.on(model)) is PairInfluence
    whole = InfluenceFunction(model, scope="global", rtol=1e-7, damping=2.0)
    assert type(whole) is type(whole.on(model)) is InfluenceFunction
    assert (whole.on(model).rtol, whole.on(model).damping_) == (1e-7, 2)
    near = pair.influence(MANY, dense=True) != 0
    assert (whole.influence(MANY)[~near] != 0).any()
    assert (whole.name, whole.units) == ("influence-function", "effect")


def test_repeated_queries_and_pairs():
    model = fit(with_duplicates("squared"))
    found = InfluenceFunction(model).influence([(3, 3)] * 20)
    assert (found == found[0]).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1}, "damping must be a finite number >= 0, not -1"),
        ({"damping": np.nan}, "damping must be a finite number"),
        ({"damping": np.inf}, "damping must be a finite number"),
        ({"damping": "auto"}, "damping must be a finite number >= 0, not 'auto'"),
        ({"damping": True}, "damping must be a finite number"),
        ({"rtol": -1e-3}, "rtol must be a finite number >= 0"),
        ({"rtol": np.nan}, "rtol must be a finite number"),
        ({"rtol": "small"}, "rtol must be a finite number"),
        ({"atol": -1}, "atol must be a finite number"),
        ({"atol": None}, "atol must be a finite number"),
        ({"rtol": 0}, "rtol and atol are both 0"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1, not 0"),
        ({"max_iterations": 2.5}, "max_iterations must be an integer"),
        ({"max_iterations": True}, "max_iterations must be an integer"),
        ({"max_iterations": "many"}, "max_iterations must be an integer"),
        ({"hessian": "fisher"}, "hessian='fisher' is not known: use one of gauss-newton, full"),
        ({"scope": "user"}, "scope='user' is not known: use one of global, pair"),
        ({"on_negative_curvature": "ignore"}, "on_negative_curvature='ignore' is not known: use"),
        ({"memory_budget": 10}, "memory_budget=10 bytes is below"),
        ({"n_threads": 0}, "n_threads"),
        ({"device": "abacus"}, "device"),
    ],
    ids=str,
)
def test_options_out_of_range(options, message):
    with pytest.raises(ParameterError, match=message):
        InfluenceFunction(fit(ratings()), **options)


def test_models_that_cannot_be_explained():
    with pytest.raises(NotFittedError):
        InfluenceFunction(MatrixFactorization())
    for model in (None, "model", np.zeros(3)):
        with pytest.raises(ParameterError, match="a MatrixFactorization is needed"):
            InfluenceFunction(model)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_parameters_that_are_no_numbers(value):
    model = fit(ratings())
    model.trajectory_.end.tables.item_factors[3, 1] = value
    for ask in ("influence", "explain", "influence_factors"):
        with pytest.raises(DataError, match="the row of item 3 holds NaN or infinity"):
            getattr(InfluenceFunction(model), ask)(MANY)


def test_queries_that_are_none():
    why = InfluenceFunction(fit(ratings()))
    for ask in (why.influence, why.explain):
        with pytest.raises(UnknownIdError, match="99"):
            ask([(99, 0)])
        with pytest.raises(DataError, match="no queries"):
            ask([])
    with pytest.raises(ParameterError):
        why.explain(MANY, k=0)
    with pytest.raises(ParameterError):
        why.explain(fi.objectives.Mean(MANY))
    with pytest.raises(DataError, match="train_index"):
        why.self_influence([60])


@pytest.mark.parametrize("groups", [[[60]], [[0], [-1]], [["x"]], [[0.5]]])
def test_groups_of_examples_there_are_not(groups):
    with pytest.raises(DataError, match="a group"):
        InfluenceFunction(fit(ratings())).group_influence(MANY, groups)


def test_groups_with_an_example_twice():
    with pytest.raises(DataError, match="group 1 holds an example twice"):
        InfluenceFunction(fit(ratings())).group_influence(MANY, [[3], [2, 5, 2]])


def test_no_groups():
    assert InfluenceFunction(fit(ratings())).group_influence(MANY, []).shape == (48, 0)


def test_nothing_is_warned_of_without_need():
    why = InfluenceFunction(fit(ratings()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why.influence(MANY)
    assert why.report_.converged.all()
