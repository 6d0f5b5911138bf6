"""The experiments of the Gradient Rollback paper, as they were published."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.data import Triples, datasets
from fastinfluence.errors import DataError, ParameterError, plural
from fastinfluence.evaluation.groups import DistinctSets
from fastinfluence.evaluation.link_prediction import link_prediction
from fastinfluence.evaluation.neighbours import check_count
from fastinfluence.evaluation.paper_experiment import PaperExperiment
from fastinfluence.evaluation.paper_parts import (
    METHODS,
    Condition,
    Predictions,
    Questions,
    prefix,
    removals,
)
from fastinfluence.evaluation.retraining import retrain_values
from fastinfluence.models import ComplEx, DistMult, KnowledgeGraphModel

__all__ = ["DATASETS", "MODELS", "OPTIMIZERS", "gradient_rollback_paper"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

MODELS: dict[str, type[KnowledgeGraphModel]] = {"distmult": DistMult, "complex": ComplEx}
_COMMON: dict[str, Any] = {
    "sides": "tail",
    "learning_rate": 3e-3,
    "learning_rate_decay": "constant",
    "regularization": 0.0,
    "optimizer": "adam-dense",
    "epsilon": 1e-7,
    "fixed_negatives": True,
    "shuffle": False,
    "init": "uniform",
    "init_scale": 0.05,
    "dtype": "float64",
}
# Other optimizers, with what they need to learn anything.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam-dense": {},
    "adam": {},
    "sgd": {"learning_rate": 0.2, "init_scale": 0.5},
}


class _Setting(NamedTuple):
    """How the paper treats a data set."""

    read: Callable[[Any], Triples] | None  # None: bundled
    hyperparameters: dict[str, Any]
    main_epoch: int  # the best in the paper's validation
    n_queries: int | None  # None: all
    among_tails: bool
    methods: tuple[str, ...]


_LARGE = {"n_factors": 100, "n_negatives": 500, "n_epochs": 1}
_THREE = ("gradient-rollback", "gradient-rollback-own", "curvature-rollback")
DATASETS = {
    "nations": _Setting(
        None,
        {"n_factors": 10, "n_negatives": 13, "n_epochs": 10, "loss": "softmax"},
        8,
        None,
        False,
        tuple(METHODS),
    ),
    "fb15k-237": _Setting(
        datasets.knowledge_graph, _LARGE | {"loss": "softmax"}, 1, 100, False, _THREE
    ),
    "movielens-kg": _Setting(
        datasets.movielens_graph, _LARGE | {"loss": "logistic"}, 1, 100, True, _THREE
    ),
}


def gradient_rollback_paper(
    dataset: str = "nations",
    *,
    data: str | os.PathLike[str] | None = None,
    model: str = "distmult",
    n_seeds: int = 5,
    n_queries: int | None = None,
    retrain_epochs: int | str = "both",
    methods: Sequence[str] | None = None,
    optimizer: str = "adam-dense",
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    tell: Callable[[str], object] | None = None,
    show_progress: bool | None = None,
) -> PaperExperiment:
    """Repeat the paper's experiments: leave explanations out, train again, see what changes.

    Training is as in the paper: one triple a step in the order of the file, tails only, dense
    Adam at a constant rate, no regularization, the same negatives in every epoch. On Nations the
    model is taken after 8 of 10 epochs (the paper's best in validation), and training again
    takes 10: leaving out nothing then already changes predictions. Both lengths are reported.
    Retraining takes no step where a triple is left out, and all others keep their negatives.

    What is explained is the probability of the best tail of distinct questions (head, relation, ?)
    of the test triples, right or wrong, of those that neither training nor validation holds.
    Candidates share the relation, or an entity in any place; a method's explanation of size
    ``all`` is every candidate that by it did not lower the probability. The controls draw as
    many as Gradient Rollback explains with (or the first of the methods).

    Parameters
    ----------
    dataset : {"nations", "fb15k-237", "movielens-kg"}
        Of MovieLens, users and movies are heads and relations, and predictions are among the
        ratings. One epoch of the latter two.
    data : path, optional
        Where the latter two are: as for `datasets.knowledge_graph`, `datasets.movielens_graph`.
    model : {"distmult", "complex"}
        Of ComplEx as many complex numbers a row.
    n_seeds : int, default 5
        Seeds 0, 1, ...: of start, negatives and controls.
    n_queries : int, optional
        Predictions; 100 by default, of Nations all 143. Which ones is drawn, the same for every
        seed (the paper's list is not known).
    retrain_epochs : {"both", 10, 8}
        Of Nations; the others have one.
    methods : sequence of str, optional
        Of ``gradient-rollback`` (as published), ``gradient-rollback-own`` (credit for the
        triple's own gradient), ``curvature-rollback`` and ``replay``. All by default, of the
        large sets all but the last.
    optimizer : {"adam-dense", "adam", "sgd"}
        Others than the first are faster on large graphs, and not as published.
    n_threads : int, optional
        Retrainings at a time; it never changes a result.
    path : path-like, optional
        Folder that keeps the retrainings: a call that was killed goes on when it is repeated.
    tell : callable, optional
        Takes lines for a person: what is done, and how long it will take.
    show_progress : bool, optional

    Returns
    -------
    PaperExperiment

    Raises
    ------
    ParameterError
        An argument out of range, more queries than there are.
    DataError
        Data without test triples; `data` is missing, or of a bundled set.
    RunDirectoryError
        `path` holds the retrainings of another call.

    References
    ----------
    Lawrence, Sztyler & Niepert, Explaining neural matrix factorization with gradient rollback,
    AAAI 2021, arXiv 2010.05516.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> found = fi.evaluation.gradient_rollback_paper(
    ...     "nations", n_seeds=1, n_queries=3, methods=["gradient-rollback"], show_progress=False
    ... )
    >>> found.conditions[-1]
    ('gradient-rollback', 'all')
    """
    setting = _setting(dataset)
    check_count("n_seeds", n_seeds, 1)
    if n_queries is not None:
        check_count("n_queries", n_queries, 1)
    chosen = _methods(setting, methods)
    if dataset == "movielens-kg" and "replay" in chosen:
        raise ParameterError("replay explains no probability among ratings: choose other methods")
    lengths = _lengths(setting, retrain_epochs, dataset)
    hyperparameters = _hyperparameters(setting, model, optimizer)
    triples = _read(setting, dataset, data)
    wanted = setting.n_queries if n_queries is None else n_queries
    questions = Questions.of_test(triples, wanted, among_tails=setting.among_tails)
    start = time.perf_counter()
    runs = []
    for seed in range(n_seeds):
        fitted = MODELS[model](**hyperparameters, rng=seed, n_threads=n_threads)
        fitted.fit(triples, record=_recording(setting, chosen), show_progress=show_progress)
        run = _Run(fitted, setting.main_epoch, questions)
        explanations = {name: run.main.explanations(name, n_threads) for name in chosen}
        conditions = removals(run.main, explanations, seed)
        if tell is not None and seed == 0:
            tell(_expectation(fitted, conditions, lengths, n_seeds, n_threads))
        folder = None if path is None else Path(path) / f"seed-{seed}"
        runs.append(run.measure(conditions, lengths, n_threads, folder, show_progress))
    return PaperExperiment(
        dataset=dataset,
        model=model,
        hyperparameters=hyperparameters,
        deviations=tuple(_deviations(setting, model, optimizer, n_queries)),
        main_epoch=setting.main_epoch,
        retrain_epochs=lengths,
        best_epochs=np.array([run.best_epoch for run in runs]),
        test_mrr=np.array([run.test_mrr for run in runs]),
        conditions=runs[0].conditions,
        n_removed=np.stack([run.n_removed for run in runs], axis=1),
        before=np.stack([run.before for run in runs]),
        after=np.stack([run.after for run in runs], axis=2),
        best_before=np.stack([run.best_before for run in runs]),
        best_after=np.stack([run.best_after for run in runs], axis=2),
        n_retrainings=sum(run.n_retrainings for run in runs),
        seconds=time.perf_counter() - start,
    )


class _Measured(NamedTuple):
    """One seed; as in `PaperExperiment`."""

    best_epoch: int
    test_mrr: float
    conditions: tuple[tuple[str, str], ...]
    n_removed: Codes  # (c, n)
    before: Floats  # (n,)
    after: Floats  # (l, c, n)
    best_before: Codes
    best_after: Codes
    n_retrainings: int


class _Run:
    """A fitted model, as it was at the main epoch."""

    def __init__(self, fitted: KnowledgeGraphModel, epoch: int, questions: Questions) -> None:
        self._fitted = fitted
        self.main = Predictions(prefix(fitted, epoch), questions)

    def measure(
        self,
        conditions: list[Condition],
        lengths: Sequence[int],
        n_threads: int | None,
        folder: Path | None,
        show_progress: bool | None,
    ) -> _Measured:
        """Train again without what the conditions leave out."""
        sets = DistinctSets()
        own = np.array([[sets.number(some) for some in of.removed] for of in conditions])
        n = len(self.main.questions)
        queries = np.broadcast_to(np.arange(n), own.shape)
        after = []
        for length in lengths:
            values = retrain_values(
                prefix(self._fitted, length),
                self.main,
                sets.all,
                n_threads=n_threads,
                path=None if folder is None else folder / f"epochs-{length}",
                show_progress=show_progress,
            ).reshape(2, n, -1)
            after.append(values[:, queries, own])
        model = self.main.model
        before, best_before = self.main.values(model.trajectory_.end.tables, 0.0).reshape(2, n)
        return _Measured(
            best_epoch=self._best_epoch(n_threads),
            test_mrr=_mrr(model, "test", n_threads),
            conditions=tuple((of.name, of.size) for of in conditions),
            n_removed=np.array([[len(some) for some in of.removed] for of in conditions]),
            before=before,
            after=np.stack([probability for probability, _ in after]),
            best_before=best_before.astype(np.int64),
            best_after=np.stack([best for _, best in after]).astype(np.int64),
            n_retrainings=len(sets.all) * len(lengths),
        )

    def _best_epoch(self, n_threads: int | None) -> int:
        run = self._fitted.trajectory_
        epochs = sorted(run.checkpoints.keys() - {0})
        if len(epochs) == 1 or run.data.validation is None:
            return run.n_epochs
        found = [_mrr(prefix(self._fitted, epoch), "validation", n_threads) for epoch in epochs]
        return epochs[int(np.argmax(found))]


def _mrr(model: KnowledgeGraphModel, split: str, n_threads: int | None) -> float:
    found = link_prediction(model, split, predict="tail", n_threads=n_threads, show_progress=False)
    return found.mrr


# -------------------------------------------------------------------- what is asked for


def _setting(dataset: str) -> _Setting:
    if dataset not in DATASETS:
        raise ParameterError(f"dataset={dataset!r} is not known: use one of {', '.join(DATASETS)}")
    return DATASETS[dataset]


def _methods(setting: _Setting, methods: Sequence[str] | None) -> tuple[str, ...]:
    chosen = setting.methods if methods is None else tuple(methods)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise ParameterError(f"methods={chosen!r}: give some of {', '.join(METHODS)}, each once")
    return chosen


def _lengths(setting: _Setting, retrain_epochs: int | str, dataset: str) -> tuple[int, ...]:
    longest: int = setting.hyperparameters["n_epochs"]
    able = tuple(dict.fromkeys((longest, setting.main_epoch)))
    if retrain_epochs == "both":
        return able
    if retrain_epochs not in able:
        raise ParameterError(
            f"retrain_epochs={retrain_epochs!r}: {dataset} is trained again for "
            f"{' or '.join(map(str, able))} {plural('epoch', max(able))}"
        )
    return (int(retrain_epochs),)


def _hyperparameters(setting: _Setting, model: str, optimizer: str) -> dict[str, Any]:
    if model not in MODELS:
        raise ParameterError(f"model={model!r} is not known: use one of {', '.join(MODELS)}")
    if optimizer not in OPTIMIZERS:
        raise ParameterError(
            f"optimizer={optimizer!r} is not offered: use one of {', '.join(OPTIMIZERS)}"
        )
    chosen = _COMMON | setting.hyperparameters | OPTIMIZERS[optimizer] | {"optimizer": optimizer}
    if model == "complex":
        chosen["n_factors"] *= 2
    return chosen


def _read(setting: _Setting, dataset: str, data: Any) -> Triples:
    if setting.read is None:
        if data is not None:
            raise DataError(f"{dataset} is bundled: leave out the path of its data")
        return datasets.nations()
    if data is None:
        raise DataError(f"{dataset} is not bundled: say where it is (data=, --data)")
    triples = setting.read(data)
    if triples.test is None:
        raise DataError(f"{data} holds no test triples, whose questions are to be explained")
    return triples


def _recording(setting: _Setting, methods: Sequence[str]) -> str | None:
    """Whether training may save Gradient Rollback its own pass."""
    whole = setting.main_epoch == setting.hyperparameters["n_epochs"]
    return "rollback" if whole and "gradient-rollback" in methods else None


def _deviations(setting: _Setting, model: str, optimizer: str, n_queries: int | None) -> list[str]:
    found = []
    if optimizer != "adam-dense":
        changed = {"optimizer": optimizer} | OPTIMIZERS[optimizer]
        found.append(", ".join(f"{name}={value}" for name, value in changed.items()))
    if n_queries is not None and n_queries != setting.n_queries:
        found.append(f"{n_queries} {plural('prediction', n_queries)}")
    return found


def _expectation(
    fitted: KnowledgeGraphModel,
    conditions: list[Condition],
    lengths: Sequence[int],
    n_seeds: int,
    n_threads: int | None,
) -> str:
    """How long all the retraining will take, by some of its steps."""
    program, n = fitted.trajectory_.program, len(fitted.data_)
    state = program.enter(fitted.trajectory_.checkpoints[0])
    some = min(n, 2000)
    start = time.perf_counter()
    program.run_epoch(state, 0, part=(0, some))
    epoch = (time.perf_counter() - start) * n / some
    distinct = len({removed.tobytes() for of in conditions for removed in of.removed})
    # One more of each length shows that training gives the same again.
    work = n_seeds * (distinct + 1) * sum(lengths) * epoch
    at_a_time = dispatch.thread_count(n_threads)
    return (
        f"{n_seeds * distinct * len(lengths):,} retrainings of {n:,} triples, "
        f"{at_a_time} at a time: about {_duration(work / at_a_time)}"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
