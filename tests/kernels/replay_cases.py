"""Runs to go back over, their derivatives by the kernels, and by the naive oracle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from backends import Kernels
from oracles import adjoint as oracle
from oracles import steps as walk

from fastinfluence.kernels.structures import LANES, Adjoint
from fastinfluence.training import Program, Recipe, Trajectory
from fastinfluence.training.backward import backward

ALL_LANES = 2**LANES - 1
TOLERANCE = {"float64": 1e-11, "float32": 3e-5}  # relative to the largest entry


def program_of(data, *, n_groups=2, weights=None, **keywords):
    if weights is None:
        weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], len(data))
    recipe = {
        "n_factors": 3,
        "loss": "squared",
        "optimizer": "sgd",
        "n_epochs": 2,
        "learning_rate": 0.1,
        "learning_rate_decay": 0.8,
        "regularization": 0.05,
        "n_negatives": 2,
        "init_scale": 0.5,
        "dtype": "float64",
        "seed": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastinfluence.training.schedule.group_count", lambda *_: n_groups)
        return Program(data, np.asarray(weights, float), Recipe(**recipe | keywords))


def trajectory_of(program, kept=(0, 1, 2)):
    """A run that kept some of its checkpoints."""
    state = program.enter(program.start())
    states = [program.leave(state)]
    for epoch in range(program.recipe.n_epochs):
        program.run_epoch(state, epoch)
        states.append(program.leave(state))
    checkpoints = {n: state for n, state in enumerate(states) if n in kept}
    return Trajectory(program, checkpoints, [0.0] * program.recipe.n_epochs, [])


class Derivatives(NamedTuple):
    """Of a block of quantities, by the weights (times the weights), and by the start."""

    weights: np.ndarray
    adjoint: Adjoint
    squares: Adjoint | None


def gradients(program, seed=0):
    """One random gradient a lane; the last lane has none."""
    rng = np.random.default_rng(seed)
    k = program.recipe.n_factors
    shapes = [(n, k + 1, LANES) for n in (program.data.n_users, program.data.n_items)]
    adjoint = Adjoint(*(rng.standard_normal(shape).astype(program.dtype) for shape in shapes))
    for rows in adjoint:
        rows[:, :, -1] = 0
    return adjoint


def everywhere(program):
    return tuple(
        np.full(n, ALL_LANES, np.uint16) for n in (program.data.n_users, program.data.n_items)
    )


CPU = Kernels("cpu", "replay")


def derive(trajectory, gradient, *, allowed=None, memory_budget=2**30, order=None, kernels=CPU):
    """Of the steps of a run, its tiles gone through one stratum after the other."""
    program, n_groups = trajectory.program, trajectory.program.schedule.n_groups
    adjoint = Adjoint(*(rows.copy() for rows in gradient))
    adagrad = program.recipe.optimizer == "adagrad"
    squares = Adjoint(*map(np.zeros_like, gradient)) if adagrad else None
    out = np.zeros((len(program.data), LANES), program.dtype)
    order = np.arange(len(out), dtype=np.int32) if order is None else order
    for stage in backward(trajectory, memory_budget=memory_budget, show_progress=False):
        bounds = np.clip(program.schedule.pointers, stage.start, stage.stop)
        for stratum in range(n_groups - 1, -1, -1):
            tiles = stratum * n_groups, (stratum + 1) * n_groups
            if bounds[tiles[0]] == bounds[tiles[1]]:
                continue
            kernels.replay_steps(
                adjoint,
                squares,
                program.examples,
                stage.log,
                program.hyper(stage.epoch),
                program.recipe.loss_code,
                *(allowed or everywhere(program)),
                order,
                bounds,
                *tiles,
                out,
            )
    return Derivatives(out, adjoint, squares)


def named(program, rows):
    """Rows of a pair of tables by name, as the oracles have them; zeros are absent."""
    return {
        (kind, number): np.array(row, float)
        for kind, table in zip(("user", "item"), rows, strict=True)
        for number, row in enumerate(table)
        if np.any(row)
    }


def derive_naively(trajectory, gradient, *, allowed=None):
    program = trajectory.program
    steps = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs).steps
    shapes = [rows.shape for rows in gradient]
    found = Derivatives(
        np.zeros((len(program.data), LANES)),
        Adjoint(*map(np.zeros, shapes)),
        Adjoint(*map(np.zeros, shapes)),
    )
    for lane in range(LANES):
        hops = None
        if allowed is not None:
            hops = {
                (kind, number)
                for kind, bits in zip(("user", "item"), allowed, strict=True)
                for number in np.flatnonzero(bits >> lane & 1).tolist()
            }
        ours = named(program, [rows[:, :, lane] for rows in gradient])
        exact = oracle.reverse(steps, ours, hops)
        for t, derivative in exact.weights.items():
            found.weights[t, lane] = program.examples.weights[t] * derivative
        for rows, part in ((exact.rows, found.adjoint), (exact.squares, found.squares)):
            for (kind, number), row in rows.items():
                (part.users if kind == "user" else part.items)[number, :, lane] = row
    return found


def assert_near(got, expected, tolerance):
    scale = np.abs(expected).max()
    assert scale > 0.1  # there is something to compare
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def assert_like_oracle(trajectory, gradient, *, allowed=None, tolerance=None, kernels=CPU):
    tolerance = tolerance or TOLERANCE[trajectory.recipe.dtype]
    got = derive(trajectory, gradient, allowed=allowed, kernels=kernels)
    expected = derive_naively(trajectory, gradient, allowed=allowed)
    assert_near(got.weights, expected.weights, tolerance)
    for mine, right in zip(got.adjoint, expected.adjoint, strict=True):
        assert_near(mine, right, tolerance)
    if got.squares is not None:
        for mine, right in zip(got.squares, expected.squares, strict=True):
            scale = max(1, np.abs(right).max())
            np.testing.assert_allclose(mine, right, rtol=0, atol=tolerance * scale)
