"""The training loss of matrix factorization at fixed parameters, as a whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from endpoints import (
    fit,
    gradients_by_differences,
    panel_of,
    product,
    random_tables,
    tables_of,
    weights_of,
    with_duplicates,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hessian as oracle
from planted import LOSSES, data_for, same_bits

from fastinfluence import dispatch, objectives
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import LANES

each_loss = pytest.mark.parametrize("loss", LOSSES)


def endpoint_of(loss="squared", *, n_threads=1, seed=0, **keywords):
    data = with_duplicates(loss)
    program = fit(
        data, loss=loss, sample_weight=weights_of(len(data), seed), **keywords
    ).trajectory_.program
    return program.endpoint(random_tables(program, seed), n_threads=n_threads)


def naive(endpoint):
    """Rows are read back from the endpoint, so that float32 ones are what it has."""
    program = endpoint._program
    return oracle.of_program(program, tables_of(endpoint, endpoint.rows.astype(float)))


def assert_near(got, expected, tolerance):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the naive numbers


@settings(deadline=None, max_examples=12)
@given(
    st.fixed_dictionaries(
        {
            "loss": st.sampled_from(LOSSES),
            "n_negatives": st.sampled_from([None, 1, 3]),
            "n_factors": st.integers(1, 9),
            "n_epochs": st.sampled_from([1, 3, 6]),
            "regularization": st.sampled_from([0.0, 0.1]),
            "dtype": st.sampled_from(["float32", "float64"]),
            "seed": st.integers(0, 10**6),
        }
    )
)
def test_is_the_naive_loss(keywords):
    endpoint = endpoint_of(**keywords)
    problem, panel = naive(endpoint), panel_of(endpoint)
    n_rows, d = problem.parameters.shape
    assert (endpoint.n_rows, endpoint.d, endpoint.n) == (n_rows, d, 27)
    tolerance = 2e-5 if endpoint.dtype == np.float32 else 1e-12
    gradients, matrix = oracle.gradients(problem), oracle.hessian(problem)
    assert_near(endpoint.losses(), oracle.losses(problem), tolerance)
    assert_near(endpoint.norms(), np.sqrt((gradients**2).sum((1, 2))), tolerance)
    expected = -np.einsum("jrd,rdq->jq", gradients, panel.astype(float))
    assert_near(endpoint.credit(panel), expected, tolerance)
    for full in (False, True):
        dense = oracle.hessian(problem, full=full)
        expected = (dense @ panel.reshape(-1, LANES)).reshape(panel.shape)
        assert_near(product(endpoint, panel, full=full), expected, tolerance)
    rows = np.arange(n_rows)
    expected = matrix.reshape(n_rows, d, n_rows, d)[rows, :, rows]
    assert_near(endpoint.blocks(), expected, tolerance)


@each_loss
def test_gradients_and_hessian_by_differences(loss):
    endpoint = endpoint_of(loss)
    panel, basis = panel_of(endpoint), panel_of(endpoint, 1)
    move = panel[:, :, 2]
    ends = [endpoint.at(tables_of(endpoint, endpoint.rows + s * move)) for s in (1e-5, -1e-5)]
    slopes = (ends[0].losses() - ends[1].losses()) / 2e-5
    assert_near(-endpoint.credit(panel)[:, 2], slopes, 1e-6)
    change = -(ends[0].credit(basis) - ends[1].credit(basis)).sum(0) / 2e-5
    curved = product(endpoint, basis, full=True)
    assert_near(np.einsum("rd,rdq->q", move, curved), change, 1e-6)
    assert np.abs(curved - product(endpoint, basis)).max() > 1e-2


@each_loss
def test_both_matrices_are_symmetric_and_gauss_newton_has_no_negative_curvature(loss):
    endpoint = endpoint_of(loss, n_factors=2)
    size = endpoint.n_rows * endpoint.d
    for full in (False, True):
        columns = []
        for start in range(0, size, LANES):
            panel = np.eye(size, LANES, -start).reshape(endpoint.n_rows, endpoint.d, LANES)
            columns.append(product(endpoint, panel, full=full).reshape(size, LANES))
        matrix = np.hstack(columns)[:, :size]
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-13)
        smallest = np.linalg.eigvalsh(matrix)[0]
        assert (smallest < -1e-2) if full else (smallest > -1e-12)


# ---------------------------------------------------------------- negatives


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
@pytest.mark.parametrize("n_epochs", [1, 2, 6])
def test_negatives_are_those_that_training_drew(loss, n_epochs):
    """The mean loss over the draws of the last epochs, in a grid of several blocks."""
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=loss, n_epochs=n_epochs, n_negatives=2, regularization=0.0)
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    assert program.schedule.n_groups > 1
    scores = (
        tables.user_factors @ tables.item_factors.T
        + tables.user_biases[:, None]
        + tables.item_biases
    )
    order, pointers = program.schedule.order, program.schedule.pointers
    own = scores[data.users, data.items]
    expected, epochs = np.zeros(len(data)), range(max(0, n_epochs - 4), n_epochs)
    for epoch in epochs:
        drawn = np.full((len(data), 2), -1, np.int32)
        dispatch.kernels("negatives").draw_epoch(
            program.examples, pointers, program.sampler, epoch, 0, len(pointers) - 1, drawn
        )
        for column in drawn.T:
            real, visits = column >= 0, order[column >= 0]
            z = scores[data.users[visits], program.schedule.pool[column[real]]]
            expected[visits] += np.logaddexp(0, z - own[visits] if loss == "bpr" else z)
    expected /= len(epochs)
    if loss == "logistic":
        expected += np.logaddexp(0, np.where(data.values > 0, -own, own))
    np.testing.assert_allclose(program.endpoint(tables).losses(), expected, rtol=1e-10)


@each_loss
def test_examples_of_weight_0_have_no_part(loss):
    """With or without them: but the others' negatives still avoid their items."""
    data = with_duplicates(loss)
    weights = np.ones(len(data))
    weights[[2, 5, 11]] = 0
    program = fit(data, loss=loss, sample_weight=weights).trajectory_.program
    endpoint = program.endpoint(random_tables(program))
    problem, panel = naive(endpoint), panel_of(endpoint)
    kept = problem._replace(examples=[e for e in problem.examples if e.weight])
    assert len(kept.examples) == 24
    matrix = oracle.hessian(kept, full=True)
    expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
    assert_near(product(endpoint, panel, full=True), expected, 1e-12)
    for numbers in (endpoint.losses(), endpoint.norms(), endpoint.credit(panel)):
        assert not numbers[weights == 0].any()
        assert numbers[weights > 0].any()


# ---------------------------------------------------------------- queries


@pytest.mark.parametrize(
    "objective",
    [
        objectives.Score([(u, i) for u in range(4) for i in (0, 3, 9, 3, 1)]),
        objectives.Margin([(u % 8, u % 3) for u in range(20)], over=5),
        objectives.HeldOutLoss([(u % 8, u % 9) for u in range(20)], values=2.0),
        objectives.Mean(objectives.HeldOutLoss([(0, 1), (0, 1), (2, 3)], values=1.0)),
    ],
    ids=["score", "margin", "loss", "mean"],
)
def test_gradients_of_queries_one_a_lane(objective):
    endpoint = endpoint_of()
    program = endpoint._program
    quantity = objective.bind(program.data, program.recipe)
    n, expected = len(quantity), gradients_by_differences(quantity, endpoint, program.mean)
    for start in range(0, n, LANES):
        found = endpoint.panel(quantity, start)
        some = np.moveaxis(expected[start : start + LANES], 0, -1)
        assert_near(found[:, :, : n - start], some, 1e-8)
    assert not found[:, :, n - start :].any()


def test_another_quantity_is_another_panel():
    endpoint = endpoint_of()
    program = endpoint._program
    one, two = (
        objectives.Score([pair]).bind(program.data, program.recipe) for pair in ((0, 1), (2, 3))
    )
    first, second = endpoint.panel(one, 0), endpoint.panel(two, 0)
    assert first[0].any()
    assert not second[0].any()
    assert same_bits(first, endpoint.panel(one, 0))
    moved = endpoint.at(random_tables(program, 1))
    assert not same_bits(moved.panel(one, 0), first)


# ---------------------------------------------------------------- other parameters, other weights


@each_loss
def test_at_other_parameters(loss):
    endpoint = endpoint_of(loss)
    panel, tables = panel_of(endpoint), random_tables(endpoint._program, 9)
    before = endpoint.losses(), product(endpoint, panel)
    moved, expected = endpoint.at(tables), endpoint._program.endpoint(tables)
    for mine, its in ((moved, expected), (endpoint.at(tables).twin(), expected)):
        assert same_bits(mine.rows, its.rows)
        assert same_bits(mine.losses(), its.losses())
        assert same_bits(product(mine, panel, full=True), product(its, panel, full=True))
    assert not same_bits(moved.losses(), before[0])
    assert same_bits(endpoint.losses(), before[0])
    assert same_bits(product(endpoint, panel), before[1])


@each_loss
def test_other_weights(loss):
    endpoint = endpoint_of(loss)
    endpoint.blocks()  # with its own weights, which no other may take over
    ones = endpoint.reweighted(np.ones(endpoint.n))
    weights, panel = weights_of(endpoint.n, 7), panel_of(endpoint)
    other = endpoint.reweighted(weights)
    np.testing.assert_allclose(other.losses(), weights * ones.losses())
    np.testing.assert_allclose(other.norms(), weights * ones.norms())
    np.testing.assert_allclose(
        other.credit(panel), weights[:, None] * ones.credit(panel), atol=1e-14
    )
    expected = endpoint._program.reweighted(weights).endpoint(endpoint._tables)
    assert same_bits(product(other, panel, full=True), product(expected, panel, full=True))
    assert same_bits(other.blocks(), expected.blocks())


def arrays_of(endpoint):
    """All that an endpoint holds in memory, as bytes."""
    held = vars(endpoint).items()
    return {name: array.tobytes() for name, array in held if isinstance(array, np.ndarray)}


def test_twins_work_at_the_same_time():
    """What one of them does leaves no trace in the other."""
    endpoint = endpoint_of("bpr", n_threads=2)
    panels = [panel_of(endpoint, seed) for seed in range(8)]
    expected = [product(endpoint, panel, full=True) for panel in panels]
    twins = [endpoint.twin() for _ in range(2)]
    for twin in twins:
        product(twin, panels[0])
    before = arrays_of(twins[0])
    product(twins[1], panels[1])
    product(endpoint, panels[2])
    assert arrays_of(twins[0]) == before
    assert arrays_of(twins[1]) != before
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(
            lambda n: [product(twins[n], panel, full=True) for panel in panels[n::2]], range(2)
        )
    for n, found in enumerate(halves):
        for mine, its in zip(found, expected[n::2], strict=True):
            assert same_bits(mine, its)


@each_loss
def test_threads_change_no_bit(loss):
    alone = endpoint_of(loss, dtype="float32")
    panel = panel_of(alone)
    for n_threads in (2, 3):
        endpoint = endpoint_of(loss, dtype="float32", n_threads=n_threads)
        for full in (False, True):
            assert same_bits(product(alone, panel, full=full), product(endpoint, panel, full=full))
        for name in ("losses", "norms", "blocks"):
            assert same_bits(getattr(alone, name)(), getattr(endpoint, name)())
        assert same_bits(alone.credit(panel), endpoint.credit(panel))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "place", "row"),
    [
        ("user_factors", (4, 1), "user 4"),
        ("user_biases", 2, "user 2"),
        ("item_factors", (0, 0), "item 0"),
        ("item_biases", 9, "item 9"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_no_numbers(name, place, row, value):
    good = endpoint_of()
    tables = random_tables(good._program)
    getattr(tables, name)[place] = value
    for make in (good._program.endpoint, good.at):
        with pytest.raises(DataError, match=f"the row of {row} holds NaN or infinity"):
            make(tables)


@pytest.mark.parametrize("name", ["user_factors", "item_factors", "user_biases", "item_biases"])
def test_parameters_of_another_shape(name):
    good = endpoint_of()
    tables = random_tables(good._program)
    bad = tables._replace(**{name: getattr(tables, name)[:-1]})
    for make in (good._program.endpoint, good.at):
        with pytest.raises(DataError, match="are no"):
            make(bad)
    wide = tables._replace(user_factors=np.zeros((8, 4)))
    with pytest.raises(DataError, match="are no 8 rows of 3 factors"):
        good.at(wide)
