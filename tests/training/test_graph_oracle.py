"""The naive training on triples proves itself; the fast one is measured by it."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import graph_sgd as oracle
from oracles.graph_sgd import ADAGRAD, ADAM, DENSE, GRADIENT, SGD, UPDATE, Setting

N_ENTITIES, N_RELATIONS, D = 5, 2, 4
MODELS = [False, True]  # complex?
LOSSES = [oracle.SOFTMAX, oracle.LOGISTIC]
OPTIMIZERS = [SGD, ADAGRAD, ADAM, DENSE]
each_model = pytest.mark.parametrize("is_complex", MODELS)
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def setting_of(**keywords):
    return Setting(N_ENTITIES, N_RELATIONS, **{"regularization": 0.05} | keywords)


def start_of(setting, seed=0):
    n_relations = setting.n_relations * (2 if setting.reciprocal else 1)
    return np.random.default_rng(seed).normal(size=(setting.n_entities + n_relations, D)) / 2


def examples_of(setting, n=8, seed=1):
    """Random triples, self loops among them, one of weight 0 and one of 0.5."""
    rng = np.random.default_rng(seed)
    heads, tails = rng.integers(0, setting.n_entities, (2, n)).tolist()
    relations = rng.integers(0, setting.n_relations, n).tolist()
    tails[2] = heads[2]
    weights = [0.5, 0.0, *[1.0] * (n - 2)]
    return list(zip(heads, relations, tails, weights, range(10, 10 + n), strict=True))


# ---------------------------------------------------------------- model, loss, draws


def test_complex_score_in_real_numbers():
    rows = start_of(setting := setting_of(complex=True))
    (a, b), (c, d), (e, f) = (np.split(rows[at], 2) for at in (0, 5, 1))  # s, w, o
    forward = np.sum(a * c * e - b * d * e + a * d * f + b * c * f)
    got = oracle.score(setting, rows, oracle.Link(0, 5, False, 1), 1)
    np.testing.assert_allclose(got, forward, rtol=1e-14)


@each_model
def test_both_sides_of_a_triple_have_one_score_without_reciprocal_rows(is_complex):
    rows = start_of(setting := setting_of(complex=is_complex, reciprocal=False))
    links = [oracle.link_of(setting, oracle.Example(0, 1, 3, 1.0, 0), side) for side in (0, 1)]
    tail, head = (oracle.score(setting, rows, link, link.target) for link in links)
    np.testing.assert_allclose(head, tail, rtol=1e-14)


def test_reciprocal_rows_predict_heads():
    link = oracle.link_of(setting_of(), oracle.Example(0, 1, 3, 1.0, 0), 1)
    assert link == (3, N_ENTITIES + N_RELATIONS + 1, False, 0)


@each_loss
@each_model
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("subject", "candidates", "counts"),
    [
        (0, [1, 2, 3], [1, 1, 1]),
        (0, [1, 0, 3], [1, 2, 1]),  # the subject among the negatives, drawn twice
        (2, [2, 0, 4], [1, 1, 3]),  # a self loop
    ],
)
def test_gradient_is_the_losss(loss, is_complex, flip, subject, candidates, counts):
    setting = setting_of(loss=loss, complex=is_complex)
    rows, link = start_of(setting), oracle.Link(subject, 6, flip, candidates[0])
    slopes = oracle.gradients(setting, rows, link, candidates, counts)
    assert set(slopes) == {subject, 6, *candidates}
    for at in range(len(rows)):
        for coordinate in range(D):
            ends = []
            for distance in (1e-5, -1e-5):
                moved = rows.copy()
                moved[at, coordinate] += distance
                ends.append(oracle.example_loss(setting, moved, link, candidates, counts))
            got = slopes[at][coordinate] if at in slopes else 0.0
            np.testing.assert_allclose(got, (ends[0] - ends[1]) / 2e-5, rtol=1e-7, atol=1e-10)


def test_softmax_over_all_is_the_log_probability():
    setting = setting_of(n_negatives="all")
    rows, example = start_of(setting), oracle.Example(0, 1, 3, 1.0, 0)
    link = oracle.link_of(setting, example, 0)
    candidates, counts = oracle.candidates_of(setting, example, link, 0, 0)
    assert candidates == [3, 0, 1, 2, 4]
    scores = rows[:N_ENTITIES] @ (rows[0] * rows[link.relation])
    expected = np.log(np.exp(scores).sum()) - scores[3]
    got = oracle.prediction_loss(setting, scores[candidates].tolist(), counts)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_drawn_candidates():
    setting = setting_of(n_negatives=6)
    seen = set()
    for id_ in range(40):
        example = oracle.Example(0, 1, 3, 1.0, id_)
        link = oracle.link_of(setting, example, 1)
        candidates, counts = oracle.candidates_of(setting, example, link, 1, 2)
        assert candidates[0] == 0
        assert len(set(candidates)) == len(candidates) == len(counts)
        assert counts[0] == 1
        assert sum(counts) == 7
        seen |= set(candidates)
    assert seen == set(range(N_ENTITIES))


def test_fixed_negatives_stay():
    example = oracle.Example(0, 1, 3, 1.0, 0)
    for fixed in (True, False):
        setting = setting_of(fixed=fixed)
        link = oracle.link_of(setting, example, 0)
        drawn = [oracle.candidates_of(setting, example, link, 0, epoch) for epoch in range(5)]
        assert all(draw == drawn[0] for draw in drawn) is fixed


# ---------------------------------------------------------------- runs


def test_one_step_of_each_optimizer():
    """The first step from empty states, written out."""
    for optimizer, move in [
        (SGD, lambda g: 0.1 * g),
        (ADAGRAD, lambda g: 0.1 * g / (np.abs(g) + 1e-7)),
        (ADAM, lambda g: 0.1 * np.sqrt(1e-3) * g / (np.sqrt(1e-3) * np.abs(g) + 1e-7)),
        (DENSE, lambda g: 0.1 * np.sqrt(1e-3) * g / (np.sqrt(1e-3) * np.abs(g) + 1e-7)),
    ]:
        setting = setting_of(optimizer=optimizer, sides=1, n_epochs=1)
        start = start_of(setting)
        found = oracle.run(setting, start, [(0, 1, 3, 0.5, 7)])
        (step,) = found.steps
        expected = start.copy()
        for row, gradient in step.gradients.items():
            expected[row] -= move(gradient)
        np.testing.assert_allclose(found.rows, expected, rtol=1e-12)


@each_model
@pytest.mark.parametrize("sides", [1, 2])
def test_dense_adam_is_adam_where_every_row_is_touched(is_complex, sides):
    keywords = {"complex": is_complex, "reciprocal": False, "n_negatives": "all", "sides": sides}
    rows = []
    for optimizer in (ADAM, DENSE):
        setting = Setting(N_ENTITIES, 1, optimizer=optimizer, **keywords)
        examples = [(*example[:3], 1.0, 0) for example in examples_of(setting)]
        rows.append(oracle.run(setting, start_of(setting), examples).rows)
    np.testing.assert_array_equal(*rows)
    assert np.abs(rows[0] - start_of(setting)).min() > 1e-3


def test_rows_that_no_step_touches():
    """They rest; under dense Adam their momentum carries them on, over skipped steps too."""
    for optimizer in (ADAM, DENSE):
        setting = Setting(9, 1, sides=1, n_negatives=1, n_epochs=1, optimizer=optimizer)
        start = start_of(setting)
        examples = [(0, 0, 1, 1.0, 0), (2, 0, 3, 0.0, 1), (4, 0, 5, 1.0, 2)]
        found = oracle.run(setting, start, examples)
        touched = {row for step in found.steps for row in step.gradients}
        rest = [row for row in range(10) if row not in touched]
        assert rest
        np.testing.assert_array_equal(found.rows[rest], start[rest])
        first, last = found.steps
        assert (first.k, last.k) == (0, 2)
        lonely = [row for row in first.gradients if row not in last.gradients]
        moves = np.abs(found.rows[lonely] - [first.after[row] for row in lonely])
        assert (moves.min() > 1e-3) if optimizer == DENSE else (moves.max() == 0)


@each_model
@each_loss
def test_changes_of_the_steps_are_the_path(is_complex, loss):
    for optimizer in OPTIMIZERS:
        setting = setting_of(complex=is_complex, loss=loss, optimizer=optimizer)
        start = start_of(setting)
        found = oracle.run(setting, start, examples_of(setting))
        assert [step.k for step in found.steps[:4]] == [0, 1, 4, 5]
        if optimizer == DENSE:
            continue
        rows = start.copy()
        for step in found.steps:
            for row in step.gradients:
                np.testing.assert_array_equal(step.before[row], rows[row])
                rows[row] = step.after[row]
                if optimizer != ADAM:
                    credits = [step.credit(row, kind) for kind in (UPDATE, GRADIENT)]
                    np.testing.assert_allclose(*credits, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(rows, found.rows)


@pytest.mark.parametrize("reciprocal", [False, True])
def test_record_adds_up_the_triples_own_rows(reciprocal):
    setting = setting_of(reciprocal=reciprocal, n_epochs=1)
    examples = [(0, 1, 3, 1.0, 5), (2, 0, 2, 1.0, 6)]
    steps = oracle.run(setting, start_of(setting), examples).steps
    record = oracle.record(setting, examples, steps, UPDATE)
    assert record.shape == (2, 4 if reciprocal else 3, D)
    tail, head, loop_tail, loop_head = steps
    relation, inverse = N_ENTITIES + 1, N_ENTITIES + N_RELATIONS + 1
    for slot, row in [(0, 0), (1, 3)]:
        expected = tail.credit(row, UPDATE) + head.credit(row, UPDATE)
        np.testing.assert_array_equal(record[0, slot], expected)
    if reciprocal:
        np.testing.assert_array_equal(record[0, 2], tail.credit(relation, UPDATE))
        np.testing.assert_array_equal(record[0, 3], head.credit(inverse, UPDATE))
    else:
        expected = tail.credit(relation, UPDATE) + head.credit(relation, UPDATE)
        np.testing.assert_array_equal(record[0, 2], expected)
    expected = loop_tail.credit(2, UPDATE) + loop_head.credit(2, UPDATE)
    np.testing.assert_array_equal(record[1, 0], expected)
    assert not record[1, 1].any()


def test_unit_norm():
    setting = setting_of(unit_norm=True)
    found = oracle.run(setting, start_of(setting), examples_of(setting))
    norms = np.linalg.norm(found.rows, axis=1)
    np.testing.assert_allclose(norms[:N_ENTITIES], 1, rtol=1e-14)
    assert np.abs(norms[N_ENTITIES:] - 1).min() > 1e-3


def test_learning_rate_declines_to_nothing_behind_the_last_step():
    setting = setting_of(learning_rate=0.2)
    rates = [oracle.rate_at(setting, k, 4) for k in (0, 8, 15, 16)]
    np.testing.assert_allclose(rates, [0.2, 0.1, 0.2 / 16, 0])
    assert oracle.rate_at(setting._replace(linear=False), 15, 4) == 0.2


# ---------------------------------------------------------------- removal and influence


@each_optimizer
def test_a_triple_of_weight_0_might_as_well_not_stand_there(optimizer):
    """Nobody else's draws depend on it, and its own rows rest but for dense Adam's momentum."""
    setting = setting_of(optimizer=optimizer, n_epochs=2)
    examples, start = examples_of(setting), start_of(setting)
    without = [
        (*example[:3], example[3] * (t != 4), example[4]) for t, example in enumerate(examples)
    ]
    full, less = (oracle.run(setting, start, them) for them in (examples, without))
    kept = [step for step in full.steps if step.t != 4]
    assert len(kept) == len(less.steps) == len(full.steps) - 4
    for one, other in zip(kept, less.steps, strict=True):
        assert one[:6] == other[:6]


def test_influence_of_a_single_step():
    """One step of SGD: the derivative by the weight is what the step did, read out."""
    setting = setting_of(sides=1, n_epochs=1, linear=False)
    start, examples = start_of(setting), [(0, 1, 3, 1.0, 7)]
    query = np.random.default_rng(5).normal(size=start.shape)
    got = oracle.influence_by_differences(
        setting, start, examples, lambda rows: float((rows * query).sum())
    )
    found = oracle.run(setting, start, examples)
    expected = ((found.rows - start) * query).sum()
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


@each_optimizer
def test_differences_do_not_depend_on_their_distance(optimizer):
    setting = setting_of(optimizer=optimizer, complex=True, epsilon=1e-4)
    start, examples = start_of(setting), [(*e[:3], 1.0, e[4]) for e in examples_of(setting, 4)]

    def phi(rows):
        return [oracle.score(setting, rows, oracle.Link(0, 5, False, o), o) for o in (1, 2)]

    near, far = (
        oracle.influence_by_differences(setting, start, examples, phi, [0, 3], distance)
        for distance in (1e-5, 1e-4)
    )
    assert near.shape == (2, 2)
    np.testing.assert_allclose(near, far, rtol=0, atol=1e-5 * np.abs(near).max())
