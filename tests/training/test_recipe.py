"""Hyper-parameters: checked once, plain numbers afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastinfluence.errors import ParameterError
from fastinfluence.training import Recipe
from fastinfluence.training.recipe import seed_of

GOOD = {
    "n_factors": 8,
    "loss": "squared",
    "optimizer": "sgd",
    "n_epochs": 3,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.5,
    "regularization": 0.05,
    "n_negatives": None,
    "init_scale": 0.1,
    "dtype": "float32",
    "seed": 0,
}


def recipe(**changes):
    return Recipe(**(GOOD | changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_factors", 0),
        ("n_factors", 2.5),
        ("n_factors", True),
        ("n_epochs", -1),
        ("n_epochs", "3"),
        ("loss", "hinge"),
        ("optimizer", "adam"),
        ("dtype", "float16"),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("learning_rate", None),
        ("learning_rate_decay", 0.0),
        ("regularization", -1e-3),
        ("init_scale", -1),
        ("n_negatives", -1),
        ("n_negatives", 1.0),
        ("n_negatives", False),
    ],
)
def test_what_is_refused_is_named_with_its_value(name, value):
    with pytest.raises(ParameterError) as caught:
        recipe(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_bpr_needs_a_negative():
    with pytest.raises(ParameterError, match="bpr"):
        recipe(loss="bpr", n_negatives=0)


@pytest.mark.parametrize(("loss", "n"), [("squared", 0), ("logistic", 4), ("bpr", 1)])
def test_default_negatives(loss, n):
    assert recipe(loss=loss).n_negatives == n
    assert recipe(loss=loss, n_negatives=7).n_negatives == 7


def test_zeros_that_mean_something_are_allowed():
    made = recipe(regularization=0, init_scale=0, n_negatives=0)
    assert (made.regularization, made.init_scale) == (0.0, 0.0)


def test_numpy_numbers_become_plain_ones():
    given = {"n_factors": np.int64(8), "learning_rate": np.float32(0.5), "n_epochs": np.int16(3)}
    made = recipe(**given)
    assert Recipe(**json.loads(json.dumps(made.to_dict()))) == made
    assert type(made.n_factors) is int
    assert type(made.learning_rate) is float


def test_rate_decays_by_epoch():
    assert [recipe().rate(epoch) for epoch in range(3)] == [0.01, 0.005, 0.0025]


def test_seeds():
    assert seed_of(7) == 7
    assert seed_of(np.int32(7)) == 7
    assert seed_of(2**70) == 2**70
    assert seed_of(np.random.default_rng(3)) == seed_of(np.random.default_rng(3))
    generator = np.random.default_rng(3)
    assert seed_of(generator) != seed_of(generator)
    assert seed_of(None) != seed_of(None)


@pytest.mark.parametrize("rng", [-1, 1.0, "0", True])
def test_bad_seeds(rng):
    with pytest.raises(ParameterError, match=f"rng must be.*not {rng!r}"):
        seed_of(rng)
