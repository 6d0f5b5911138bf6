"""The naive walks over a training run prove each other; the fast ones are measured by them."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from oracles import adjoint, curvature
from oracles import sgd as oracle
from oracles import steps as walk
from planted import LOSSES, OPTIMIZERS, data_for

from fastinfluence import Interactions
from fastinfluence.training import Program, Recipe

N_EPOCHS = 3
RECIPE = {
    "n_factors": 3,
    "n_epochs": N_EPOCHS,
    "learning_rate": 0.1,
    "learning_rate_decay": 0.8,
    "regularization": 0.05,
    "n_negatives": 2,
    "init_scale": 0.5,
    "dtype": "float64",
    "seed": 3,
}
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def program_of(data, *, weights=None, **keywords):
    """A program whose users and items stand in two groups, however small the data."""
    if weights is None:
        weights = np.random.default_rng(1).choice([0.5, 1, 2], len(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastinfluence.training.schedule.group_count", lambda *_: 2)
        return Program(data, np.asarray(weights, float), Recipe(**RECIPE | keywords))


@functools.cache
def program_for(loss, optimizer, **keywords):
    data = data_for(loss, n_users=6, n_items=9, n=28)
    return program_of(data, loss=loss, optimizer=optimizer, **keywords)


def run(program):
    return walk.run(program, program.start(), N_EPOCHS)


def query(program):
    """An unseen pair of rows: what is explained is its score."""
    users, items = program.examples.users, program.examples.items
    seen = set(zip(users.tolist(), items.tolist(), strict=True))
    known = itertools.product(sorted(set(users.tolist())), sorted(set(items.tolist())))
    return next(pair for pair in known if pair not in seen)


def phi(program, theta):
    user, item = query(program)
    return oracle.scores(theta, user, [item], 0.0)[0]


def phi_gradient(program, theta):
    return adjoint.score_gradient(theta, *query(program))


def explained(program):
    """Steps and exact derivatives of a run."""
    steps, end = run(program)
    return steps, adjoint.reverse(steps, phi_gradient(program, end))


def slope(function, distance=1e-5):
    return (function(distance) - function(-distance)) / (2 * distance)


def assert_near(got, expected, tolerance):
    """Equal up to a share of the largest entry."""
    got, expected = np.asarray(got), np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 1e-3  # there is something to compare
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the run and its steps


@each_optimizer
@each_loss
def test_a_run_is_the_programs(loss, optimizer):
    data = data_for(loss, n_users=6, n_items=9, n=28)
    weights = np.random.default_rng(0).choice([0, 0.5, 2], len(data))
    program = program_of(data, weights=weights, loss=loss, optimizer=optimizer)
    steps, end = run(program)
    assert [step.t for step in steps] == np.flatnonzero(program.examples.weights).tolist() * 3
    state = program.enter(program.start())
    for epoch in range(N_EPOCHS):
        program.run_epoch(state, epoch)
    for name, row in oracle.rows_of(state.tables).items():
        np.testing.assert_allclose(end[name], row, rtol=0, atol=1e-12)
    for (kind, code), row in oracle.rows_of(program.leave(state).tables).items():
        at = walk.name_of(program, kind, code)
        np.testing.assert_allclose(end[at], row, rtol=0, atol=1e-12)


@each_optimizer
@each_loss
def test_rows_and_changes_of_the_steps_are_the_path(loss, optimizer):
    program = program_for(loss, optimizer)
    steps, end = run(program)
    theta = oracle.rows_of(program.enter(program.start()).tables)
    for step in steps:
        for name, change in step.changes.items():
            np.testing.assert_array_equal(step.rows[name], theta[name])
            theta[name] = theta[name] + change
    assert all((theta[name] == end[name]).all() for name in end)


@each_loss
def test_derivatives_of_the_loss_of_the_scores(loss):
    for step in run(program_for(loss, "sgd")).steps[:30]:

        def slope_at(distance, c=0, step=step):
            scores = step.scores + distance * np.eye(len(step.scores))[c]
            return oracle.score_gradients(scores, step.value, step.loss)[c]

        candidates = range(len(step.scores))
        expected = [slope_at(0, c) for c in candidates]
        assert walk.score_slopes(step) == pytest.approx(expected, abs=1e-14)
        expected = [slope(functools.partial(slope_at, c=c)) for c in candidates]
        assert walk.score_curvatures(step) == pytest.approx(expected, abs=1e-9)


@each_loss
def test_hessian_of_a_step(loss):
    rng = np.random.default_rng(0)
    for step in run(program_for(loss, "sgd")).steps[:30]:
        v = {name: rng.standard_normal(len(row)) for name, row in step.rows.items()}

        def gradients_at(distance, step=step, v=v):
            rows = {name: row + distance * v[name] for name, row in step.rows.items()}
            inputs = step.user, step.candidates, step.value, step.hyper, step.loss
            return np.concatenate([*oracle.gradients(rows, *inputs).values()])

        product = walk.hessian_product(step, v)
        assert [*product] == [*step.gradients]
        assert_near(np.concatenate([*product.values()]), slope(gradients_at), 1e-8)
        for name in step.rows:
            alone = {other: v[other] * (other == name) for other in v}
            block = walk.row_hessian(step, name)
            assert_near(block @ v[name], walk.hessian_product(step, alone)[name], 1e-13)


# ---------------------------------------------------------------- reverse and forward mode


@each_optimizer
@each_loss
def test_reverse_is_the_derivative_of_retraining(loss, optimizer):
    program = program_for(loss, optimizer)
    _, found = explained(program)

    def retrained(distance, j):
        weights = program.weights.copy()
        weights[j] += distance
        return phi(program, run(program.reweighted(weights)).end)

    some = range(0, len(program.data), 2)
    expected = [slope(functools.partial(retrained, j=j)) for j in some]
    assert_near(walk.in_training_order(program, found.weights)[some], expected, 1e-6)


@each_optimizer
@each_loss
def test_reverse_reaches_the_start(loss, optimizer):
    program = program_for(loss, optimizer)
    _, found = explained(program)

    direction = np.array([1, -2, 3])  # of the factors

    def retrained(distance, kind, code):
        start = program.start()
        getattr(start.tables, f"{kind}_factors")[code] += distance * direction
        return phi(program, walk.run(program, start, N_EPOCHS).end)

    rows = [("user", 1), ("user", 4), ("item", 0), ("item", 5), ("item", 7)]
    expected = [slope(functools.partial(retrained, kind=kind, code=code)) for kind, code in rows]
    got = [found.rows[walk.name_of(program, *row)][:-1] @ direction for row in rows]
    assert_near(got, expected, 1e-6)


@each_optimizer
@each_loss
def test_forward_is_reverse(loss, optimizer):
    program = program_for(loss, optimizer)
    steps, end = run(program)
    gradient = phi_gradient(program, end)
    found = adjoint.reverse(steps, gradient)
    for t, derivative in found.weights.items():
        tangent = adjoint.forward(steps, t)
        through = sum(float(tangent[name] @ row) for name, row in gradient.items())
        scale = max(map(abs, found.weights.values()))
        assert derivative == pytest.approx(through, rel=1e-10, abs=1e-12 * scale)


@each_optimizer
@each_loss
def test_all_weights_together_scale_the_gradient(loss, optimizer):
    program = program_for(loss, optimizer)
    steps, found = explained(program)

    def retrained(distance):
        """From a training whose every gradient is 1 + distance times as large."""
        if optimizer == "adagrad":
            return phi(program, run(program.reweighted(program.weights * (1 + distance))).end)
        rate = RECIPE["learning_rate"] * (1 + distance)
        return phi(program, run(program_for(loss, optimizer, learning_rate=rate)).end)

    weights = {step.t: step.weight for step in steps}
    total = sum(weights[t] * derivative for t, derivative in found.weights.items())
    scale = sum(abs(weights[t] * derivative) for t, derivative in found.weights.items())
    assert total == pytest.approx(slope(retrained), rel=0, abs=1e-6 * scale)


def test_another_component_has_no_influence():
    """Users 0 to 2 never meet the items of users 3 to 5."""
    users, items = np.divmod(np.arange(18), 3)
    items = items + 3 * (users >= 3)
    data = Interactions.from_arrays(users, items, np.random.default_rng(0).uniform(1, 5, 18))
    program = program_of(data, loss="squared", optimizer="adagrad", n_negatives=0)
    steps, end = run(program)
    row = (walk.name_of(program, kind, 0) for kind in ("user", "item"))
    gradient = adjoint.score_gradient(end, *(number for _, number in row))
    found = adjoint.reverse(steps, gradient)
    derivatives = walk.in_training_order(program, found.weights)
    assert derivatives[users < 3].all()
    assert not derivatives[users >= 3].any()


def test_hops():
    program = program_for("logistic", "adagrad")
    steps, end = run(program)
    gradient = phi_gradient(program, end)
    exact = adjoint.reverse(steps, gradient)
    assert adjoint.reverse(steps, gradient, hops=set(end)).weights == exact.weights
    assert not any(adjoint.reverse(steps, gradient, hops=set()).weights.values())
    user = next(iter(gradient))
    of_user = adjoint.reverse(steps, gradient, hops={user})
    assert [*of_user.rows] == [user]
    for step in steps:
        assert (of_user.weights[step.t] != 0) == (user in step.rows)


def test_an_example_of_weight_zero_makes_no_step():
    data = data_for("squared", n_users=6, n_items=9, n=28)
    weights = np.ones(28)
    weights[5] = 0
    program = program_of(data, weights=weights, loss="squared", optimizer="sgd", n_negatives=0)
    derivatives = walk.in_training_order(program, explained(program)[1].weights)
    assert np.flatnonzero(derivatives == 0).tolist() == [5]


def test_a_coordinate_without_gradients_hands_derivatives_on():
    """The user's bias in BPR, at zero: 1 / epsilon would multiply them at every step."""
    program = program_for("bpr", "adagrad")
    steps, end = run(program)
    gradient = phi_gradient(program, end)
    user = next(iter(gradient))
    assert any(step.squares[user][-1] == 0 for step in steps if user in step.rows)
    assert adjoint.reverse(steps, gradient).rows[user][-1] == gradient[user][-1] == 1
    assert np.isfinite([*curvature.rollback(steps * 20).values()]).all()


# ---------------------------------------------------------------- curvature


def assert_same_record(got, expected):
    assert got.keys() == expected.keys()
    assert_near([got[at] for at in expected], [*expected.values()], 1e-12)


@each_optimizer
@each_loss
def test_identities_give_gradient_rollback(loss, optimizer):
    program = program_for(loss, optimizer)
    state, record = program.enter(program.start()), {}
    theta = oracle.rows_of(state.tables)
    squares = state.squares and oracle.rows_of(state.squares)
    for epoch in range(N_EPOCHS):
        inputs = program.examples, program.schedule.pointers, program.sampler
        numbers = program.hyper(epoch), program.recipe.loss_code, epoch
        oracle.sgd_epoch(theta, squares, *inputs, *numbers, record)
    steps = run(program).steps
    got = curvature.rollback(steps, curvature=False, regularization=False)
    assert_same_record(got, record)


@each_loss
def test_decay_alone_gives_hydra(loss):
    steps = run(program_for(loss, "sgd")).steps
    expected = {}
    for n, step in enumerate(steps):
        for kind, number in (("user", step.user), ("item", step.candidates[0])):
            shrinking = 1.0
            for later in steps[n + 1 :]:
                if (kind, number) in later.rows:
                    shrinking *= 1 - later.hyper.learning_rate * later.weight * 0.05
            at, change = (step.t, kind), step.changes[kind, number]
            expected[at] = expected.get(at, 0.0) + shrinking * change
    assert_same_record(curvature.rollback(steps, curvature=False), expected)


def one_row(steps, name, start, t, distance):
    """Where one row ends if nothing else changes and the weight at position t does."""
    row = start
    for step in steps:
        if name in step.rows:
            rows = {**step.rows, name: row}
            inputs = step.user, step.candidates, step.value, step.hyper, step.loss
            gradient = oracle.gradients(rows, *inputs)[name]
            weight = step.weight + distance * (step.t == t)
            row = row - step.rates[name] * weight * gradient
    return row


@each_optimizer
@each_loss
def test_curvature_is_the_derivative_of_a_row_alone(loss, optimizer):
    """All other rows, and Adagrad's rates, as they were recorded."""
    program = program_for(loss, optimizer)
    steps = run(program).steps
    start = oracle.rows_of(program.enter(program.start()).tables)
    record = curvature.rollback(steps)
    for step in steps[: len(program.data) : 3]:
        for kind, number in (("user", step.user), ("item", step.candidates[0])):
            name = kind, number
            expected = slope(functools.partial(one_row, steps, name, start[name], step.t))
            assert_near(record[step.t, kind], step.weight * expected, 1e-7)


def test_curvature_is_the_adjoint_of_the_two_rows():
    program = program_for("squared", "sgd")
    steps, end = run(program)
    gradient = phi_gradient(program, end)
    found = adjoint.reverse(steps, gradient, hops=set(gradient)).weights
    record = curvature.rollback(steps)
    expected = {step.t: 0.0 for step in steps}
    for step in steps[: len(program.data)]:
        for kind, number in (("user", step.user), ("item", step.candidates[0])):
            if (kind, number) in gradient:
                expected[step.t] += gradient[kind, number] @ record[step.t, kind] / step.weight
    assert_near([found[t] for t in expected], [*expected.values()], 1e-12)


# ---------------------------------------------------------------- autograd


def unrolled(torch, program, steps, weights, start):
    """The explained score after a training that torch can differentiate."""
    softplus = torch.nn.functional.softplus
    rows, squares = dict(start), {name: torch.zeros_like(row) for name, row in start.items()}
    for step in steps:
        user = "user", step.user
        names = [user, *(("item", item) for item in step.candidates)]
        p, *candidates = (rows[name] for name in names)
        f = [step.hyper.mean + p[:-1] @ q[:-1] + p[-1] + q[-1] for q in candidates]
        if program.recipe.loss == "squared":
            loss = (f[0] - step.value) ** 2 / 2
        elif program.recipe.loss == "logistic":
            loss = softplus(f[0]) - step.value * f[0] + sum(softplus(x) for x in f[1:])
        else:
            loss = sum((softplus(x - f[0]) for x in f[1:]), torch.zeros((), dtype=p.dtype))
        loss = loss + step.hyper.regularization / 2 * sum(rows[name] @ rows[name] for name in names)
        inputs = [rows[name] for name in names]
        gradients = torch.autograd.grad(weights[step.t] * loss, inputs, create_graph=True)
        for name, g in zip(names, gradients, strict=True):
            scale = 1.0
            if program.recipe.optimizer == "adagrad":
                squares[name] = squares[name] + g**2
                used = torch.where(squares[name] > 0, squares[name], 1.0)
                scale = torch.where(squares[name] > 0, 1 / (used.sqrt() + step.hyper.epsilon), 0.0)
            rows[name] = rows[name] - step.hyper.learning_rate * scale * g
    user, item = query(program)
    p, q = rows["user", user], rows["item", item]
    return p[:-1] @ q[:-1] + p[-1] + q[-1]


@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
@each_optimizer
@each_loss
def test_autograd_through_the_unrolled_run(loss, optimizer, epsilon, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("fastinfluence.training.recipe._ADAGRAD_EPSILON", epsilon)
    program = program_for(loss, optimizer)
    steps, found = explained(program)
    assert steps[0].hyper.epsilon == epsilon

    start = {
        name: torch.tensor(row, requires_grad=True)
        for name, row in oracle.rows_of(program.enter(program.start()).tables).items()
    }
    weights = torch.tensor(program.examples.weights, requires_grad=True)
    score = unrolled(torch, program, steps, weights, start)
    assert score.item() == pytest.approx(phi(program, run(program).end), abs=1e-12)
    of_weights, *of_rows = torch.autograd.grad(score, [weights, *start.values()])
    assert_near([found.weights[t] for t in range(len(weights))], of_weights.numpy(), 1e-10)
    for name, expected in zip(start, of_rows, strict=True):
        np.testing.assert_allclose(found.rows[name], expected.numpy(), rtol=1e-9, atol=1e-10)
