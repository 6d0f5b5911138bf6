"""The training loss of factors trained anywhere, as a run of ours would have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import IdMap
from fastinfluence.data.interactions import Interactions
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.functional.arrays import as_array, as_codes, as_tables, as_vector
from fastinfluence.kernels.structures import Tables
from fastinfluence.training.endpoint import Endpoint
from fastinfluence.training.pair_endpoint import Gradients, PairEndpoint
from fastinfluence.training.program import Program, check_weights
from fastinfluence.training.recipe import Recipe

__all__ = ["UnbiasedEndpoint", "UnbiasedPairEndpoint", "as_pairs", "program_of", "tables_of"]

Array = npt.NDArray[Any]

_LOSSES = ("squared", "logistic")


class UnbiasedEndpoint(Endpoint):
    """The loss of a model without biases: no score depends on the last number of a row."""

    BIAS_END = 0

    def blocks(self) -> Array:
        """Those of the factors, and beside them a one, so that they have an inverse."""
        blocks: Array = self._memory.fetch(super().blocks())
        blocks[:, -1, -1] += 1
        there: Array = self._memory.put(blocks)
        return there


class UnbiasedPairEndpoint(UnbiasedEndpoint, PairEndpoint):
    """A `PairEndpoint` of a model without biases."""

    def own_gradients(self) -> tuple[Gradients, Gradients]:
        """Those of a model with biases, without what is theirs."""
        both = super().own_gradients()
        for gradients in both:
            gradients.biases[:] = 0
        return both


def tables_of(user_factors: Any, item_factors: Any, user_biases: Any, item_biases: Any) -> Tables:
    """As tables that fit together; biases may both be None, which makes them zeros."""
    if (user_biases is None) != (item_biases is None):
        raise DataError(
            "one of user_biases and item_biases is None: give both, or None for both if the "
            "model has none"
        )
    factors = as_array(user_factors), as_array(item_factors)
    biases = [user_biases, item_biases]
    if user_biases is None:
        biases = [np.zeros(table.shape[:1], table.dtype) for table in factors]
    return as_tables(*factors, *biases, writable=False)


def as_pairs(users: Any, items: Any, tables: Tables, of: str = "") -> tuple[Array, Array]:
    """As codes (m,) of users and of items."""
    prefix = of.replace(" ", "_")
    u = as_codes(users, len(tables.user_biases), f"{prefix}users")
    i = as_codes(items, len(tables.item_biases), f"{prefix}items")
    if len(u) != len(i):
        raise DataError(f"{len(u)} {of}users and {len(i)} {of}items do not make pairs")
    return u, i


def program_of(
    users: Any,
    items: Any,
    values: Any,
    tables: Tables,
    mean: float,
    regularization: float,
    loss: str,
    sample_weight: Any,
) -> Program:
    """Make a run of the same loss; an `Endpoint` asks it for nothing that only steps need."""
    dtype = tables.user_factors.dtype
    u, i = as_pairs(users, items, tables)
    y = as_vector(values, dtype, "values", len(u))
    if not len(u):
        raise DataError("there are no training examples")
    weights = check_weights(None if sample_weight is None else as_array(sample_weight), len(u))
    if loss not in _LOSSES:
        raise ParameterError(f"loss={loss!r} is not known: use one of {', '.join(_LOSSES)}")
    if not np.isfinite(mean):
        raise ParameterError(f"mean must be a finite number, not {mean!r}")
    recipe = Recipe(
        n_factors=tables.user_factors.shape[1], loss=loss, regularization=regularization,
        dtype=dtype.name, n_negatives=0, optimizer="sgd", n_epochs=1, learning_rate=1.0,
        learning_rate_decay=1.0, init_scale=0.0, seed=0,
    )  # fmt: skip
    user_map = IdMap("user", np.arange(len(tables.user_biases)))
    item_map = IdMap("item", np.arange(len(tables.item_biases)))
    # Interactions.from_arrays would round values of float64 to float32.
    program = Program(Interactions(u, i, y, True, user_map, item_map), weights, recipe)
    program.mean = float(mean)
    return program
