"""Cross-loss influence through the product: a model of one loss explained by another."""

from __future__ import annotations

import numpy as np
import pytest
from planted import pairs, positives

from fastinfluence import InfluenceFunction, Interactions, MatrixFactorization, Replay
from fastinfluence.attribution.objectives import Function, HeldOutLoss, Margin, Mean
from fastinfluence.evaluation import leave_one_out, pearson, per_query, relative_error, spearman

N_USERS, N_ITEMS = 12, 20


def feedback(loss):
    """Users and items of two tastes; nine in ten of the interactions stay within them."""
    if loss == "logistic":
        return positives(N_USERS, N_ITEMS, 120, zeros=True)
    rng = np.random.default_rng(2)
    users, items = pairs(N_USERS, N_ITEMS, 200, rng)
    kept = (users % 2 == items % 2) | (rng.random(200) < 0.1)
    ids = {"user_ids": np.arange(N_USERS), "item_ids": np.arange(N_ITEMS)}
    return Interactions.from_arrays(users[kept], items[kept], **ids)


def fit(loss, **keywords):
    settings = {"n_factors": 4, "n_epochs": 10, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0}
    return MatrixFactorization(loss=loss, dtype="float64", **(settings | keywords)).fit(
        feedback(loss)
    )


def gap_of_tastes(parameters):
    """Score of the even items minus that of the odd ones, averaged over the even users."""
    contrast = np.where(np.arange(N_ITEMS) % 2 == 0, 1, -1) / (N_ITEMS / 2)
    reader = parameters.user_factors[::2].mean(axis=0)
    value = contrast @ (parameters.item_factors @ reader + parameters.item_biases)
    by_users = np.zeros_like(parameters.user_factors)
    by_users[::2] = contrast @ parameters.item_factors / (N_USERS / 2)
    return value, {
        "user_factors": by_users,
        "item_factors": np.outer(contrast, reader),
        "item_biases": contrast,
    }


def questions():
    users, items = np.divmod(np.arange(0, N_USERS * N_ITEMS, 9), N_ITEMS)
    cells = np.column_stack([users, items])
    return {
        "squared": HeldOutLoss(cells, values=users % 2 == items % 2, loss="squared"),
        "mean squared": Mean(HeldOutLoss(cells, values=users % 2 == items % 2, loss="squared")),
        "margin": Margin(cells[:6], over=np.arange(1, 7)),
        "gap": Function(gap_of_tastes),
    }


@pytest.mark.parametrize("loss", ["bpr", "logistic"])
@pytest.mark.parametrize("question", list(questions()))
def test_replay_predicts_leaving_out(loss, question):
    """No question is one that training asked, and negatives leave with their example."""
    model, phi = fit(loss), questions()[question]
    truth = leave_one_out(model, phi, show_progress=False).change
    influence = Replay(model).influence(phi)
    assert np.abs(truth).max() > 1e-3
    linear = per_query(pearson, influence, truth)
    assert linear.mean() >= 0.95
    assert linear.min() >= 0.8
    assert per_query(spearman, influence, truth).mean() >= 0.94
    assert per_query(relative_error, influence, truth).mean() <= 0.35


@pytest.mark.parametrize("loss", ["bpr", "logistic"])
@pytest.mark.parametrize("question", list(questions()))
def test_influence_functions_go_in_that_direction(loss, question):
    """Training of ten epochs is far from a minimum, which they suppose it has reached."""
    model, phi = fit(loss), questions()[question]
    truth = leave_one_out(model, phi, show_progress=False).change
    found = per_query(pearson, InfluenceFunction(model).influence(phi), truth).mean()
    assert 0.6 <= found < per_query(pearson, Replay(model).influence(phi), truth).mean()


def test_another_loss_is_another_question():
    """What lowered the logistic loss of a pair raised its squared one where the score is high."""
    model = fit("bpr", n_epochs=100)
    users, items = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    scores = model.predict(users, items)
    assert scores.max() > 1.2
    pair = [(users[scores.argmax()], items[scores.argmax()])]
    squared, logistic = (
        Replay(model).influence(HeldOutLoss(pair, values=1, loss=loss))[0]
        for loss in ("squared", "logistic")
    )
    assert pearson(squared, logistic) == pytest.approx(-1)
