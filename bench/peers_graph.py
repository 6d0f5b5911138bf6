"""PyKEEN's training loop and its evaluator on the same triples, model and settings, and the
reference implementation's times as published."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from comparison import Rival, timed

import fastinfluence as fi
from fastinfluence.models.knowledge_graph import KnowledgeGraphModel
from fastinfluence.training import GraphProgram

Found = tuple[dict[str, Rival], dict[str, str]]  # rivals, and why others are missing

PUBLISHED = "reference implementation (CPU time as published, not run here)"
PUBLISHED_NOTE = (
    "The reference implementation's times are constants, none of them measured in this run: CPU "
    "seconds on one core, from the design notes of this project (ALGORITHMS.md, section 5.3). "
    "Where they give a range it is the lower end; those of FB15k-237 were extrapolated from a "
    "sample."
)
TRAINING_NOTE = (
    "PyKEEN: `SLCWATrainingLoop`, `CrossEntropyLoss` over one positive and as many negatives, "
    "`BasicNegativeSampler`, dense SGD or Adam of torch in float32, no regularizer and no "
    "constraint, one thread; batch 1 takes our steps, batch 256 is its default and takes one step "
    "where we take 256. Differences: it draws an entity twice where we count it twice, shuffles "
    "anew in every epoch, and its learning rate does not decline. Where both sides are asked for "
    "it trains on inverse triples. Its seconds are those of a sample, without the first batch."
)

BATCHES = {1: 31, 256: 2}  # number of batches that are run of each size


def published(seconds: float) -> dict[str, Rival]:
    """The reference implementation, as a rival that takes always so long."""
    return {PUBLISHED: lambda: seconds}


def training(program: GraphProgram, steps: int) -> Found:
    """PyKEEN's training loop at several batch sizes: the seconds of so many of our steps."""
    try:
        import pykeen  # noqa: F401
    except ImportError as error:
        return {}, {"PyKEEN": f"not installed ({error})"}
    return {
        f"PyKEEN, batch {size} ({size * (n - 1):,} triples sampled, extrapolated)": _loop(
            program, size, n, steps
        )
        for size, n in BATCHES.items()
    }, {}


def _loop(program: GraphProgram, batch_size: int, n_batches: int, steps: int) -> Rival:
    import torch
    from pykeen.losses import CrossEntropyLoss
    from pykeen.training import SLCWATrainingLoop
    from pykeen.training.callbacks import TrainingCallback

    torch.set_num_threads(1)
    data, recipe = program.data, program.recipe
    wanted = -(-batch_size * n_batches // recipe.n_sides)
    sample = np.random.default_rng(0).permutation(len(data))[:wanted]
    factory = _factory(data, data.select(sample), inverse=recipe.n_sides == 2)
    model = _model(recipe.complex, recipe.n_factors, factory, loss=CrossEntropyLoss())
    optimizer = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.Adam

    class Clock(TrainingCallback):  # type: ignore[misc]
        """When every batch was done."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def post_batch(self, epoch: int, batch: Any, **_: Any) -> None:
            self.times.append(time.perf_counter())

    def seconds() -> float:
        loop = SLCWATrainingLoop(
            model=model,
            triples_factory=factory,
            optimizer=optimizer(model.get_grad_params(), lr=recipe.learning_rate),
            automatic_memory_optimization=False,
            negative_sampler="basic",
            negative_sampler_kwargs={
                "num_negs_per_pos": recipe.n_negatives,
                "corruption_scheme": ("tail",),
            },
        )
        clock = Clock()
        loop.train(factory, num_epochs=1, batch_size=batch_size, use_tqdm=False, callbacks=clock)
        trained = batch_size * (len(clock.times) - 1)
        return (clock.times[-1] - clock.times[0]) / trained * steps

    return seconds


def evaluation(
    model: KnowledgeGraphModel, sample: np.ndarray, n_threads: int, metrics: dict[str, float]
) -> Found:
    """PyKEEN's filtered evaluation of some test triples, both sides, on the model's embeddings.

    Parameters
    ----------
    model : KnowledgeGraphModel
        Without reciprocal relations.
    sample : (m,) int
        Positions in the test split; the seconds are extrapolated to all of it.
    n_threads : int
    metrics : dict
        Its MRR is left here.
    """
    name = f"PyKEEN's RankBasedEvaluator ({len(sample):,} test triples sampled, extrapolated)"
    try:
        import torch
        from pykeen.evaluation import RankBasedEvaluator
    except ImportError as error:
        return {}, {"PyKEEN's RankBasedEvaluator": f"not installed ({error})"}
    data = model.data_
    factory = _factory(data, data)
    theirs = _model(model.kind == "complex", model.n_factors, factory).eval()
    for table, rows in (
        (theirs.entity_representations[0], model.entity_factors_),
        (theirs.relation_representations[0], model.relation_factors_),
    ):
        with torch.no_grad():
            weight = table._embeddings.weight
            weight.copy_(torch.as_tensor(_packed(rows, model)).reshape(weight.shape))
    known = [_columns(part) for part in (data, data.validation, data.test) if part is not None]
    asked = _columns(data.test)[torch.as_tensor(sample)]

    def run() -> None:
        torch.set_num_threads(n_threads)
        found = RankBasedEvaluator(filtered=True).evaluate(
            theirs, asked, batch_size=len(asked), use_tqdm=False, device="cpu",
            additional_filter_triples=known,
        )  # fmt: skip
        torch.set_num_threads(1)
        metrics["mrr"] = found.get_metric("both.realistic.inverse_harmonic_mean_rank")

    return {name: timed(run, share=len(sample) / len(data.test))}, {}


def _columns(triples: fi.Triples) -> Any:
    import torch

    return torch.as_tensor(np.stack([triples.heads, triples.relations, triples.tails], 1)).long()


def _factory(data: fi.Triples, part: fi.Triples, *, inverse: bool = False) -> Any:
    from pykeen.triples import CoreTriplesFactory

    sizes = data.n_entities, data.n_relations
    return CoreTriplesFactory(_columns(part), *sizes, create_inverse_triples=inverse)


def _model(is_complex: bool, n_factors: int, factory: Any, **options: Any) -> Any:
    from pykeen.models import ComplEx, DistMult

    settings: Mapping[str, Any] = {"regularizer": None, "random_seed": 0, **options}
    if is_complex:
        return ComplEx(triples_factory=factory, embedding_dim=n_factors // 2, **settings)
    return DistMult(
        triples_factory=factory, embedding_dim=n_factors, entity_constrainer=None, **settings
    )


def _packed(rows: np.ndarray, model: KnowledgeGraphModel) -> np.ndarray:
    """Rows as PyKEEN has them: real and imaginary parts in turn."""
    if model.kind != "complex":
        return np.array(rows)
    half = model.n_factors // 2
    return np.stack([rows[:, :half], rows[:, half:]], axis=2)
