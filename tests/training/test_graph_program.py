"""Training on triples as a whole: the naive loop's numbers, equal bits, weights, breaking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_sgd as oracle
from oracles.graph_sgd import Setting
from planted import same_bits

from fastinfluence import FastInfluenceError, Triples
from fastinfluence.errors import DataError, DivergenceError, ParameterError, ReplayMismatch
from fastinfluence.training import GraphProgram, GraphRecipe, train

OPTIMIZERS = ["sgd", "adagrad", "adam", "adam-dense"]
CREDITS = ["update", "gradient"]
PLENTY = 10**9
RECIPE = GraphRecipe(
    model="complex",
    n_factors=6,
    loss="softmax",
    n_negatives=4,
    sides="both",
    reciprocal=True,
    n_epochs=3,
    learning_rate=0.05,
    learning_rate_decay="linear",
    regularization=0.02,
    optimizer="sgd",
    epsilon=1e-3,
    fixed_negatives=False,
    shuffle=True,
    unit_norm=False,
    init="normal",
    init_scale=0.5,
    dtype="float64",
    seed=3,
)
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def triples(n=24, n_entities=6, n_relations=3, seed=0):
    """Random triples with self loops; the last entity is in none of them."""
    rng = np.random.default_rng(seed)
    heads, tails = rng.integers(0, n_entities - 1, (2, n))
    tails[::7] = heads[::7]
    return Triples.from_arrays(
        heads,
        rng.integers(0, n_relations, n),
        tails,
        entity_ids=np.arange(n_entities),
        relation_ids=np.arange(n_relations),
        duplicates="keep",
    )


def program_of(data=None, weights=None, **keywords):
    data = triples() if data is None else data
    weights = np.ones(len(data)) if weights is None else np.asarray(weights, float)
    return GraphProgram(data, weights, replace(RECIPE, **keywords))


def trained(program, **keywords):
    return train(program, memory_budget=PLENTY, show_progress=False, **keywords)


def naive(program, weights=None):
    """Arguments of the oracle: all from the recipe and the data, but for the start's numbers."""
    recipe, data = program.recipe, program.data
    setting = Setting(
        data.n_entities,
        data.n_relations,
        complex=recipe.model == "complex",
        reciprocal=recipe.reciprocal and recipe.sides == "both",
        sides=2 if recipe.sides == "both" else 1,
        loss=recipe.loss,
        n_negatives=recipe.n_negatives,
        seed=recipe.seed,
        fixed=recipe.fixed_negatives,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        n_epochs=recipe.n_epochs,
        linear=recipe.learning_rate_decay == "linear",
        regularization=recipe.regularization,
        epsilon=recipe.epsilon,
        unit_norm=recipe.unit_norm,
    )
    order = np.arange(len(data))
    if recipe.shuffle:
        order = np.random.Generator(np.random.PCG64(recipe.seed)).permutation(len(data))
    weights = program.weights if weights is None else weights
    columns = (
        data.heads,
        data.relations,
        data.tails,
        weights.astype(recipe.dtype),
        np.arange(len(data)),
    )
    examples = list(zip(*(column[order].tolist() for column in columns), strict=True))
    return setting, program.start().rows, examples


def assert_near(got, expected, tolerance):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def same_state(mine, other):
    return all(same_bits(a, b) for a, b in zip(mine, other, strict=True))


# ---------------------------------------------------------------- the naive loop's numbers


@settings(deadline=None, max_examples=30)
@given(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(["distmult", "complex"]),
            "loss": st.sampled_from(["softmax", "logistic"]),
            "n_negatives": st.sampled_from([1, 4, "all"]),
            "sides": st.sampled_from(["both", "tail"]),
            "reciprocal": st.booleans(),
            "learning_rate_decay": st.sampled_from(["linear", "constant"]),
            "optimizer": st.sampled_from(OPTIMIZERS),
            "fixed_negatives": st.booleans(),
            "shuffle": st.booleans(),
            "unit_norm": st.booleans(),
            "init": st.sampled_from(["normal", "uniform"]),
            "dtype": st.sampled_from(["float32", "float64"]),
            "seed": st.integers(0, 2**62),
        }
    )
)
def test_follows_the_naive_loop(keywords):
    data = triples(seed=keywords["seed"])
    weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], len(data))
    program = program_of(data, weights, **keywords)
    trajectory = trained(program)
    found = oracle.run(*naive(program))
    tolerance = {"float32": 2e-4, "float64": 1e-11}[program.recipe.dtype]
    assert trajectory.end.rows.dtype == program.recipe.dtype
    assert_near(trajectory.end.rows, found.rows, tolerance)
    losses = np.array(found.losses) / (weights.sum() * program.recipe.n_sides)
    np.testing.assert_allclose(trajectory.losses, losses, rtol=tolerance)


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_start(init):
    start = program_of(init=init, init_scale=0.3).start()
    generator = np.random.Generator(np.random.PCG64(RECIPE.seed).jumped())
    shape = 6 + 3 + 3, RECIPE.n_factors
    drawn = (
        generator.standard_normal(shape) if init == "normal" else generator.uniform(-1, 1, shape)
    )
    np.testing.assert_array_equal(start.rows, drawn * 0.3)


@pytest.mark.parametrize(
    ("sides", "reciprocal", "n_rows", "n_slots"),
    [("both", True, 12, 4), ("both", False, 9, 3), ("tail", True, 9, 3), ("tail", False, 9, 3)],
)
def test_rows_and_slots(sides, reciprocal, n_rows, n_slots):
    """Only predicting heads takes reciprocal rows."""
    program = program_of(sides=sides, reciprocal=reciprocal)
    trajectory = trained(program, record=True)
    assert trajectory.end.rows.shape == (n_rows, RECIPE.n_factors)
    assert trajectory.record.changes.shape == (24, n_slots, RECIPE.n_factors)


def test_entities_without_a_triple_are_candidates():
    program = program_of()
    moved = trained(program).end.rows - program.start().rows
    assert np.abs(moved[program.data.n_entities - 1]).max() > 1e-3


# ---------------------------------------------------------------- records


@each_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_record_is_rebuilt_to_the_bit(optimizer, dtype):
    program = program_of(optimizer=optimizer, dtype=dtype)
    plain, recorded = trained(program), trained(program, record=True)
    assert same_state(plain.end, recorded.end)
    assert plain.losses == recorded.losses
    assert plain.record is None
    assert same_bits(plain.replay(show_progress=False).changes, recorded.record.changes)


@each_optimizer
@pytest.mark.parametrize("credit", CREDITS)
def test_records_are_the_naive_ones(credit, optimizer):
    program = program_of(optimizer=optimizer)
    found = trained(program).replay(show_progress=False, credit=credit).changes
    setting, start, examples = naive(program)
    steps = oracle.run(setting, start, examples).steps
    assert_near(found, oracle.record(setting, examples, steps, credit), 1e-11)


def test_credits_differ_where_momentum_moves_rows():
    trajectory = trained(program_of(optimizer="adam"))
    update, gradient = (
        trajectory.replay(show_progress=False, credit=credit).changes for credit in CREDITS
    )
    assert np.abs(update - gradient).max() > 1e-3


# ---------------------------------------------------------------- equal bits


@each_optimizer
@pytest.mark.parametrize("most", [1, 5, 100])
def test_parts_and_logs_change_no_bit(optimizer, most):
    program = program_of(optimizer=optimizer, weights=np.tile([1, 0, 0.5], 8))
    wanted = np.random.default_rng(most).random(24) < 0.5
    parts = program.parts(wanted, most)
    assert [start for start, _ in parts] == [0, *[stop for _, stop in parts[:-1]]]
    assert parts[-1][1] == 24
    whole, pieces = program.enter(program.start()), program.enter(program.start())
    for epoch in range(2):
        loss, part_losses = program.run_epoch(whole, epoch), []
        for part in parts:
            visits = np.arange(*program.visits(part))
            assert len(visits) > 0
            logged = visits[wanted[visits]]
            assert len(logged) <= most
            log = program.new_log(len(logged))
            log.slots[logged] = np.arange(len(logged))
            part_losses.append(program.run_epoch(pieces, epoch, part=part, log=log))
        assert same_state(whole, pieces)
        np.testing.assert_allclose(sum(part_losses), loss, rtol=1e-12)


@each_optimizer
def test_trajectory_runs_again_to_the_bit(optimizer):
    trajectory = trained(program_of(optimizer=optimizer, dtype="float32"))
    trajectory.verify()
    again = trained(program_of(optimizer=optimizer, dtype="float32"))
    assert list(trajectory.checkpoints) == [0, 1, 2, 3]
    for epoch, state in trajectory.checkpoints.items():
        assert same_state(state, again.checkpoints[epoch])
    middle = trajectory.program.enter(trajectory.checkpoints[1])
    trajectory.program.run_epoch(middle, 1)
    assert same_state(middle, trajectory.checkpoints[2])
    trajectory.end.rows[0, 0] += 1e-3
    with pytest.raises(ReplayMismatch):
        trajectory.verify()


def test_seeds_and_shuffling_matter():
    rows = [
        trained(program_of(**keywords)).end.rows
        for keywords in ({}, {"seed": 4}, {"shuffle": False}, {"fixed_negatives": True})
    ]
    for other in rows[1:]:
        assert np.abs(rows[0] - other).max() > 1e-3


# ---------------------------------------------------------------- leaving out


@each_optimizer
def test_retraining_without_triples_is_the_naive_run_without_them(optimizer):
    program = program_of(optimizer=optimizer)
    trajectory = trained(program)
    left_out = [2, 7, 8]
    weights = np.ones(24)
    weights[left_out] = 0
    rows = trajectory.retrain(without=left_out).rows
    assert_near(rows, oracle.run(*naive(program, weights)).rows, 1e-11)
    assert same_bits(rows, trained(program_of(weights=weights, optimizer=optimizer)).end.rows)
    assert same_bits(trajectory.retrain().rows, trajectory.end.rows)


def test_leaving_a_triple_out_changes_nobody_elses_candidates():
    trajectory = trained(program_of())
    logs = []
    for program in (trajectory.program, trajectory.reweighted([5])):
        log = program.new_log(24)
        log.slots[:] = np.arange(24)
        program.run_epoch(program.enter(program.start()), 1, log=log)
        logs.append(log)
    visit = int(trajectory.visits()[5])
    kept = np.delete(np.arange(48), [2 * visit, 2 * visit + 1])
    for name in ("n_candidates", "candidates", "counts"):
        full, less = (getattr(log, name)[kept] for log in logs)
        np.testing.assert_array_equal(full, less)
    assert not logs[1].n_candidates[[2 * visit, 2 * visit + 1]].any()


@each_optimizer
def test_derivative_by_a_weight_is_the_naive_one(optimizer):
    program = program_of(optimizer=optimizer)
    trajectory = trained(program)
    setting, start, examples = naive(program)
    query = np.random.default_rng(5).normal(size=start.shape)

    def phi(rows):
        return float((rows * query).sum())

    visit = int(trajectory.visits()[4])
    (expected,) = oracle.influence_by_differences(setting, start, examples, phi, [visit])
    ends = []
    for distance in (1e-5, -1e-5):
        weights = np.ones(24)
        weights[4] += distance
        ends.append(phi(trajectory.retrain(sample_weight=weights).rows))
    assert abs(expected) > 1e-3
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, expected, rtol=1e-6)


# ---------------------------------------------------------------- room


@each_optimizer
@pytest.mark.parametrize("n_negatives", [4, "all"])
def test_log_takes_the_room_it_says(optimizer, n_negatives):
    program = program_of(optimizer=optimizer, n_negatives=n_negatives)
    log = program.new_log(10)
    taken = sum(
        array.nbytes for name, array in log._asdict().items() if name not in ("slots", "settled")
    )
    assert 0.7 * 10 * program.log_bytes < taken <= 10 * program.log_bytes


# ---------------------------------------------------------------- breaking


@each_optimizer
@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_divergence_says_where_and_keeps_the_run_so_far(loss, optimizer):
    keywords = {"learning_rate": 1e100, "learning_rate_decay": "constant", "dtype": "float32"}
    program = program_of(optimizer=optimizer, loss=loss, **keywords)
    with pytest.raises(DivergenceError, match=r"lower learning_rate|Lower learning_rate") as caught:
        trained(program)
    so_far = caught.value.trajectory
    assert np.isfinite(so_far.end.rows).all()
    assert len(so_far.losses) == max(so_far.checkpoints)


def test_one_entity_is_no_graph():
    data = Triples.from_arrays([0], [0], [0])
    with pytest.raises(DataError, match="one entity"):
        program_of(data)


@pytest.mark.parametrize(
    "keywords",
    [
        {"n_factors": 5},  # odd, ComplEx
        {"n_factors": 0},
        {"n_negatives": 0},
        {"n_negatives": True},
        {"n_negatives": 1.5},
        {"n_negatives": "some"},
        {"loss": "hinge"},
        {"optimizer": "lbfgs"},
        {"sides": "head"},
        {"learning_rate_decay": 0.9},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"regularization": -1.0},
        {"epsilon": 0.0},
        {"init": "zeros"},
        {"dtype": "float16"},
        {"reciprocal": 1},
        {"unit_norm": "yes"},
    ],
)
def test_wrong_recipes(keywords):
    with pytest.raises(ParameterError, match=next(iter(keywords))) as caught:
        replace(RECIPE, **keywords)
    assert isinstance(caught.value, FastInfluenceError)


def test_odd_rows_are_for_distmult():
    assert trained(program_of(model="distmult", n_factors=5)).end.rows.shape[1] == 5
