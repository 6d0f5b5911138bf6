"""One epoch of stochastic gradient descent as Cornac and Surprise run it, on one thread."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from comparison import Rival, timed

import fastinfluence as fi

LEARNING_RATE, REGULARIZATION = 0.01, 0.05


def cornac_epoch(data: fi.Interactions, n_factors: int) -> Rival:
    """The compiled epoch behind ``cornac.models.MF``; drawing the factors is not counted."""
    fit, columns, parameters = _cornac(data, n_factors)
    return timed(lambda: fit(*columns, *parameters, n_epochs=1, n_threads=1))


def cornac_retrainings(
    data: fi.Interactions, n_factors: int, n_epochs: int, without: np.ndarray, n_threads: int
) -> Rival:
    """Whole trainings by that loop, one without each rating of `without`, from the same start."""
    fit, columns, start = _cornac(data, n_factors)

    def retrain() -> None:
        for example in without:
            rest = [np.delete(column, example) for column in columns]
            fresh = [table.copy() for table in start]
            fit(*rest, *fresh, n_epochs=n_epochs, n_threads=n_threads)

    return timed(retrain)


def _cornac(
    data: fi.Interactions, n_factors: int
) -> tuple[Callable[..., None], list[np.ndarray], list[np.ndarray]]:
    """The compiled training loop, the ratings and fresh parameters as it takes them."""
    from cornac.models.mf import backend_cpu

    rng = np.random.default_rng(0)
    values = np.array(data.values, np.float32)
    columns = [data.users.astype(np.int64), data.items.astype(np.int64), values]
    sizes = (data.n_users, data.n_items)
    factors = [rng.normal(0, 0.1, (n, n_factors)).astype(np.float32) for n in sizes]
    biases = [np.zeros(n, np.float32) for n in sizes]
    mean = float(values.mean())

    def fit(*arrays: np.ndarray, n_epochs: int, n_threads: int) -> None:
        settings = (LEARNING_RATE, REGULARIZATION, mean, n_epochs, n_threads, True, False, False)
        backend_cpu.fit_sgd(*arrays, *settings)

    return fit, columns, factors + biases


def cornac_epoch_shuffled(data: fi.Interactions, n_factors: int) -> Rival:
    """The same over the ratings in random order, as stochastic gradient descent wants them."""
    order = np.random.default_rng(0).permutation(len(data))
    return cornac_epoch(data.select(order), n_factors)


def surprise_epoch(data: fi.Interactions, n_factors: int) -> Rival:
    """``surprise.SVD(n_epochs=1)``; drawing the factors (``n_epochs=0``) is taken off."""
    from surprise import SVD, Trainset

    by_user, by_item = defaultdict(list), defaultdict(list)
    rows = zip(data.users.tolist(), data.items.tolist(), data.values.tolist(), strict=True)
    for user, item, value in rows:
        by_user[user].append((item, value))
        by_item[item].append((user, value))
    names = [{i: i for i in range(n)} for n in (data.n_users, data.n_items)]
    sizes = (data.n_users, data.n_items, len(data))
    trainset = Trainset(by_user, by_item, *sizes, (1, 5), *names)

    def fit(n_epochs: int) -> float:
        svd = SVD(
            n_factors=n_factors,
            n_epochs=n_epochs,
            biased=True,
            init_std_dev=0.1,
            lr_all=LEARNING_RATE,
            reg_all=REGULARIZATION,
            random_state=0,
        )
        start = time.perf_counter()
        svd.fit(trainset)
        return time.perf_counter() - start

    fit(0)  # the mean rating is worked out once and kept
    return lambda: fit(1) - fit(0)


PEERS = {
    "Cornac MF": cornac_epoch,
    "Cornac MF, ratings shuffled": cornac_epoch_shuffled,
    "Surprise SVD": surprise_epoch,
}


def rivals(data: fi.Interactions, n_factors: int) -> tuple[dict[str, Rival], dict[str, str]]:
    """The peers that are installed, and why the others are missing."""
    found, missing = {}, {}
    for name, build in PEERS.items():
        try:
            found[name] = build(data, n_factors)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing
