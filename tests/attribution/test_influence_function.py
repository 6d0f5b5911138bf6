"""Influence functions against dense systems, closed forms, an optimum, retraining."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import fit, gradients_by_differences, tables_of, weights_of, with_duplicates
from oracles import hessian as oracle
from planted import LOSSES, data_for, ratings
from scipy.optimize import minimize
from scipy.stats import spearmanr

import fastinfluence as fi
from fastinfluence import InfluenceFunction, objectives
from fastinfluence.attribution.damping import default_damping
from fastinfluence.training.endpoint import Endpoint

each_loss = pytest.mark.parametrize("loss", LOSSES)
EXACT = {"rtol": 1e-11, "max_iterations": 3000}
QUERIES = [(0, 1), (7, 3), (2, 9), (5, 5), (7, 9), (1, 2)]  # user 7 and item 9 have no example


def trained(loss="squared", **keywords):
    data = with_duplicates(loss)
    return fit(data, loss=loss, sample_weight=weights_of(len(data)), **keywords)


class Dense:
    """The gradients and the Hessian of a model's training loss, naive and dense."""

    def __init__(self, model):
        trajectory = model.trajectory_
        self.model, self.program = model, trajectory.program
        self.endpoint = self.program.endpoint(trajectory.end.tables)
        self.problem = oracle.of_program(self.program, trajectory.end.tables)
        self.gradients = oracle.gradients(self.problem).reshape(len(model.data_), -1)

    def hessian(self, damping=0.0, **options):
        matrix = oracle.hessian(self.problem, **options)
        return matrix + damping * np.eye(len(matrix))

    def of_queries(self, objective):
        recipe = self.model.trajectory_.recipe
        quantity = objectives.as_objective(objective).bind(self.model.data_, recipe)
        found = gradients_by_differences(quantity, self.endpoint, self.program.mean)
        return found.reshape(len(quantity), -1)

    def influence(self, objective, damping, *, full=False):
        solved = np.linalg.solve(self.hessian(damping, full=full), self.gradients.T)
        return -self.of_queries(objective) @ solved

    def group_influence(self, objective, group, damping, *, full=False):
        """A Newton step away from a group's examples."""
        of_group = oracle.hessian(self.problem, full=full, members=group)
        left = self.hessian(damping, full=full) - of_group
        return -self.of_queries(objective) @ np.linalg.solve(left, self.gradients[group].sum(0))


def assert_near(got, expected, tolerance=1e-6):
    assert got.shape == expected.shape
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.count_nonzero(scale > 1e-4) >= len(scale) - 1  # a pair without examples: all are 0
    assert (np.abs(got - expected) <= tolerance * scale + 1e-12).all()


def size_of_items(parameters):
    factors = parameters.item_factors
    value = (factors**2).sum() / 2 + parameters.user_biases.sum()
    biases = np.ones_like(parameters.user_biases)
    return value, {"item_factors": factors, "user_biases": biases}


OBJECTIVES = {
    "score": QUERIES,
    "margin": objectives.Margin(QUERIES, over=[4, 4, 1, 0, 0, 9]),
    "squared-loss": objectives.HeldOutLoss(QUERIES, values=4.0, loss="squared"),
    "logistic-loss": objectives.HeldOutLoss(QUERIES, values=[0, 1, 1, 0, 0, 1], loss="logistic"),
    "mean": objectives.Mean(objectives.HeldOutLoss(QUERIES, values=1.0, loss="logistic")),
    "function": objectives.Function(size_of_items),
}


# ---------------------------------------------------------------- by definition


@pytest.mark.parametrize("objective", OBJECTIVES)
@each_loss
def test_is_the_dense_solution(loss, objective):
    """Any objective of a model of any loss: the two need not be the same."""
    model, queries = trained(loss), OBJECTIVES[objective]
    expected = Dense(model).influence(queries, 0.4)
    assert_near(InfluenceFunction(model, damping=0.4, **EXACT).influence(queries), expected)
    rough = InfluenceFunction(model, damping=0.4).influence(queries)  # as asked for by default
    assert np.linalg.norm(rough - expected) < 1e-2 * np.linalg.norm(expected)


@each_loss
def test_of_the_full_hessian(loss):
    """Indefinite, and lifted until it is not."""
    model = trained(loss, regularization=0.01)
    dense = Dense(model)
    smallest = np.linalg.eigvalsh(dense.hessian(full=True))[0]
    why = InfluenceFunction(
        model, hessian="full", on_negative_curvature="lift", damping=0.01, **EXACT
    )
    found = why.influence(QUERIES)
    assert smallest < -0.01
    assert -smallest < why.damping_ < -1.2 * smallest
    assert (why.hessian_, why.report_.hessian) == ("full", "full")
    assert_near(found, dense.influence(QUERIES, why.damping_, full=True))
    assert np.abs(found - dense.influence(QUERIES, why.damping_)).max() > 1e-3
    margin = objectives.Margin(QUERIES, over=4)
    assert_near(why.influence(margin), dense.influence(margin, why.damping_, full=True))


@each_loss
def test_self_influence(loss):
    model = trained(loss)
    data = model.data_
    pairs = np.column_stack([data.users, data.items])
    expected = np.diag(Dense(model).influence(pairs, 0.4))
    why = InfluenceFunction(model, damping=0.4, **EXACT)
    np.testing.assert_allclose(why.self_influence(), expected, rtol=0, atol=1e-7)
    some = [20, 3, 3]
    np.testing.assert_allclose(why.self_influence(some), expected[some], rtol=0, atol=1e-7)
    if loss == "squared":  # an example pulls its own score to its value
        off = data.values - model.predict(data.users, data.items)
        own = off * expected > 0
        assert own[model.trajectory_.program.weights > 0].mean() > 0.8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_are_those_of_the_model(dtype):
    model = trained(dtype=dtype)
    found = InfluenceFunction(model, damping=0.4, rtol=1e-5).influence(QUERIES)
    assert found.dtype == dtype
    assert_near(found, Dense(model).influence(QUERIES, 0.4), 1e-3)


# ---------------------------------------------------------------- groups


@each_loss
def test_groups_are_a_newton_step(loss):
    """Of Gauss-Newton and of the full Hessian; the same as by Woodbury; not a sum."""
    model, damping = trained(loss), 8.0
    dense = Dense(model)
    groups = [[4], [0, 9, 20], list(range(5, 15)), []]
    singles = InfluenceFunction(model, damping=damping, **EXACT).influence(QUERIES)
    for hessian in ("gauss-newton", "full"):
        why = InfluenceFunction(model, hessian=hessian, damping=damping, **EXACT)
        found = why.group_influence(QUERIES, groups)
        full = hessian == "full"
        for number, group in enumerate(groups[:3]):
            expected = dense.group_influence(QUERIES, group, damping, full=full)
            assert_near(found[:, [number]].T, expected[None])
        assert not found[:, 3].any()
        assert why.report_.converged.all()
    for group in groups[1:3]:
        np.testing.assert_allclose(
            woodbury(dense, group, damping),
            dense.group_influence(QUERIES, group, damping),
            rtol=1e-6, atol=1e-9,
        )  # fmt: skip
    sums, steps = singles[:, groups[2]].sum(1), dense.group_influence(QUERIES, groups[2], damping)
    assert np.abs(sums - steps).max() > 1e-2 * np.abs(steps).max()


def woodbury(dense, group, damping):
    """Influence of a group by the inverse for all the data: H_group = A' A."""
    values, vectors = np.linalg.eigh(oracle.hessian(dense.problem, members=group))
    kept = values > 1e-12
    a = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    inverse = np.linalg.inv(dense.hessian(damping))
    inner = np.linalg.inv(np.eye(len(a)) - a @ inverse @ a.T)
    corrected = inverse + inverse @ a.T @ inner @ a @ inverse
    return -dense.of_queries(QUERIES) @ corrected @ dense.gradients[group].sum(0)


class ItemsHeld(Endpoint):
    """The loss as a function of the users' rows: a ridge regression for each of them."""

    # Nobody's: the users are not eliminated, as they would leave nothing.
    identity = property(lambda self: None, lambda self, value: None)

    def panel(self, quantity, start):
        found = super().panel(quantity, start)
        found[self.n_users :] = 0
        return found

    def product(self, panel, out, *, full=False):
        assert not panel[self.n_users :].any()
        super().product(panel, out, full=full)
        out[self.n_users :] = 0

    def blocks(self):
        found = super().blocks()
        found[self.n_users :] = np.eye(self.d)
        return found


@pytest.mark.parametrize(("regularization", "damping"), [(0.0, 0.3), (0.2, 0.0)])
def test_leaving_out_of_a_ridge_exactly(regularization, damping):
    """Solving again without the examples, which take their own regularization along."""
    data = ratings(n_users=6, n_items=14, n=60)
    model = fit(data, regularization=regularization, n_epochs=2)
    tables, mean = model.trajectory_.end.tables, model.global_mean_
    x_all = np.column_stack([tables.item_factors, np.ones(data.n_items)])

    def ridge(members):
        """Row of a user, and its Hessian."""
        x = x_all[data.items[members]]
        y = data.values[members].astype(float) - mean - tables.item_biases[data.items[members]]
        hessian = x.T @ x + (damping + regularization * len(members)) * np.eye(4)
        return np.linalg.solve(hessian, x.T @ y), hessian

    of_users = [np.flatnonzero(data.users == user) for user in range(data.n_users)]
    for user, members in enumerate(of_users):
        row = ridge(members)[0]
        tables.user_factors[user], tables.user_biases[user] = row[:-1], row[-1]
    # The damping 0.3 is as good as a penalty on the whole row, which stays when examples go.
    why = InfluenceFunction(model, damping=damping, **EXACT)
    why._endpoint = ItemsHeld(model.trajectory_.program, tables)
    queries = [(user, 3) for user in range(data.n_users)]
    single = why.influence(queries)
    for user, members in enumerate(of_users):
        groups = [[j] for j in members] + [members[:3].tolist(), members[1:5].tolist()]
        kept = [np.setdiff1d(members, group) for group in groups]
        row, hessian = ridge(members)
        truth = [x_all[3] @ (row - ridge(left)[0]) for left in kept]
        found = why.group_influence([(user, 3)], groups)[0]
        np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-10)
        assert np.abs(truth).max() > 1e-3
        if not regularization:
            x = x_all[data.items[members]]
            leverage = np.einsum("nd,de,ne->n", x, np.linalg.inv(hessian), x)
            exact = single[user, members] / (1 - leverage)
            np.testing.assert_allclose(exact, truth[: len(members)], rtol=1e-7, atol=1e-10)
        others = np.setdiff1d(np.arange(len(data)), members)
        assert not single[user, others].any()


# ---------------------------------------------------------------- what it stands for


class Proximal:
    """The proximal Bregman response: stay near the model's scores and rows, forget an example."""

    def __init__(self, model, damping):
        self.dense, self.damping = Dense(model), damping
        self.endpoint = self.dense.endpoint
        data, self.regularization = model.data_, model.trajectory_.recipe.regularization
        self.users, self.items = data.users, data.items + data.n_users
        self.rows = self.endpoint.rows.copy()
        self.mean, self.values = model.global_mean_, data.values.astype(float)
        self.logistic = model.loss == "logistic"
        self.at = self.derivative(self.scores(self.rows))
        counts = np.bincount(np.r_[self.users, self.items], minlength=len(self.rows))
        self.pull = (damping + self.regularization * counts)[:, None]

    def scores(self, rows):
        p, q = rows[self.users], rows[self.items]
        return (p[:, :-1] * q[:, :-1]).sum(1) + p[:, -1] + q[:, -1] + self.mean

    def losses(self, scores):
        if self.logistic:
            return np.logaddexp(0, scores) - self.values * scores
        return (scores - self.values) ** 2 / 2

    def derivative(self, scores):
        return (1 / (1 + np.exp(-scores)) if self.logistic else scores) - self.values

    def without(self, j, share):
        """Rows at the optimum, `share` of example j forgotten."""

        def objective(flat):
            rows = flat.reshape(self.rows.shape)
            moved, scores = rows - self.rows, self.scores(rows)
            before = self.scores(self.rows)
            divergence = self.losses(scores) - self.losses(before) - self.at * (scores - before)
            touched = rows[[self.users[j], self.items[j]]]
            forgotten = self.losses(scores)[j] + self.regularization / 2 * (touched**2).sum()
            value = divergence.sum() + (self.pull * moved**2).sum() / 2 - share * forgotten
            slopes = self.derivative(scores) - self.at
            slopes[j] -= share * self.derivative(scores)[j]
            gradient = self.pull * moved
            for mine, its in ((self.users, self.items), (self.items, self.users)):
                x = np.column_stack([rows[its, :-1], np.ones(len(its))])
                np.add.at(gradient, mine, slopes[:, None] * x)
                gradient[mine[j]] -= share * self.regularization * rows[mine[j]]
            return value, gradient.ravel()

        found = minimize(
            objective, self.rows.ravel(), jac=True, method="BFGS", options={"gtol": 1e-9}
        )
        assert np.abs(found.jac).max() < 1e-6
        return found.x.reshape(self.rows.shape)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_near_the_proximal_bregman_response(loss):
    """Gauss-Newton is its Hessian: the derivative is exact, and whole examples nearly are."""
    data = data_for(loss, n_users=5, n_items=6, n=16)
    more = {"n_negatives": 0} if loss == "logistic" else {}
    model = fit(data, loss=loss, n_factors=2, n_epochs=15, **more)
    queries, damping = [(0, 0), (1, 3), (4, 5)], 1.0
    quantity = objectives.Score(queries).bind(data, model.trajectory_.recipe)
    found = InfluenceFunction(model, damping=damping, **EXACT).influence(queries)
    proximal = Proximal(model, damping)
    before = quantity.values(tables_of(proximal.endpoint, proximal.rows), model.global_mean_)

    def change(j, share):
        rows = proximal.without(j, share)
        after = quantity.values(tables_of(proximal.endpoint, rows), model.global_mean_)
        return (before - after) / share

    small = np.column_stack([change(j, 1e-3) for j in range(len(data))])
    whole = np.column_stack([change(j, 1.0) for j in range(len(data))])
    assert_near(found, small, 1e-2)
    for mine, its in zip(found, whole, strict=True):
        assert np.corrcoef(mine, its)[0, 1] > 0.95
    assert np.corrcoef(found.ravel(), small.ravel())[0, 1] > 0.999


def test_agrees_with_replay_where_training_has_found_the_minimum():
    """There the derivative by a weight is that of the minimum: of the full Hessian."""
    data = ratings(n_users=20, n_items=15, n=140)
    rates = {"learning_rate": 0.05, "learning_rate_decay": 0.998}
    model = fit(data, n_epochs=1500, regularization=0.2, **rates)
    queries = [(0, 0), (3, 9), (11, 14), (19, 2)]
    exact = fi.Replay(model).influence(queries)
    found = InfluenceFunction(model, hessian="full", damping=1e-3, **EXACT).influence(queries)
    rough = InfluenceFunction(model).influence(queries)  # leaves out what errors are left
    for mine, its, other in zip(found, exact, rough, strict=True):
        assert spearmanr(mine, its)[0] > 0.99
        assert np.linalg.norm(mine - its) < 0.05 * np.linalg.norm(its)
        assert spearmanr(other, its)[0] > 0.5


@each_loss
def test_close_to_retraining(loss):
    data = data_for(loss, n_users=40, n_items=30, n=500)
    model = fit(data, loss=loss, n_epochs=20, learning_rate=0.02 if loss == "squared" else 0.05)
    queries = fi.evaluation.sample_queries(model, 4)
    users, items = np.array(queries).T
    train = np.flatnonzero(np.isin(data.users, users) | np.isin(data.items, items))
    truth = fi.evaluation.leave_one_out(model, queries, train, show_progress=False)
    found, near = InfluenceFunction(model).influence(queries)[:, train], truth.adjacent
    ranks = [spearmanr(found[n, j], truth.change[n, j])[0] for n, j in enumerate(near)]
    assert np.mean(ranks) > 0.8
    size, true = found[near], truth.change[near]
    assert 0.5 < (size @ true) / (size @ size) < 2


# ---------------------------------------------------------------- damping


def test_default_damping_is_one_over_what_the_rates_add_up_to():
    data = ratings()
    model = fit(data, n_epochs=7, learning_rate=0.04)
    assert InfluenceFunction(model).damping_ == pytest.approx(1 / (7 * 0.04))
    model = fit(data, n_epochs=5, learning_rate=0.1, learning_rate_decay=0.5)
    assert InfluenceFunction(model).damping_ == pytest.approx(1 / (0.1 * (2 - 2**-4)))
    assert InfluenceFunction(model, damping=0).damping_ == 0


def test_default_damping_of_adagrad_is_by_the_rate_of_the_mean_coordinate():
    """Its rate is learning_rate / root of the sum: on its way there, twice that in the mean."""
    model = fit(ratings(), optimizer="adagrad", n_epochs=4, learning_rate=0.1)
    squares = model.trajectory_.end.squares
    roots = np.sqrt(np.concatenate([table.ravel() for table in squares]))
    assert (roots > 0).all()
    expected = roots.mean() / 2 / (4 * 0.1)
    assert default_damping(model.trajectory_) == pytest.approx(expected)
    assert InfluenceFunction(model).damping_ == pytest.approx(expected)


@pytest.mark.slow
def test_movielens_100k(data_dir):
    """Adjacent Spearman with leaving examples out, over a few recommendations."""
    path = data_dir / "ml-100k" / "ml-100k.zip"
    if not path.exists():
        pytest.skip(f"no MovieLens 100K at {path}")
    train, _ = fi.datasets.movielens(path).split(0.1, rng=0)
    model = fi.MatrixFactorization(n_factors=16, rng=0).fit(train)
    queries = fi.evaluation.sample_queries(model, 6)
    measured = fi.evaluation.compare(
        [InfluenceFunction(model)], queries, adjacent=48, others=0, show_progress=False
    )
    (row,) = measured.rows
    print(f"MovieLens 100K: adjacent Spearman {row['spearman_adjacent']:.3f}")
    assert row["spearman_adjacent"] >= 0.75
