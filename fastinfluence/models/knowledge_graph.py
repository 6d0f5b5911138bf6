"""DistMult and ComplEx: factorization models of (head, relation, tail) triples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.data import Triples
from fastinfluence.errors import DataError, NotFittedError, ParameterError
from fastinfluence.kernels.structures import Exclusions, Graph, GraphTables, Links
from fastinfluence.memory import memory_budget
from fastinfluence.models.base import Model, Parts
from fastinfluence.models.link_scores import score_links, top_entities
from fastinfluence.models.links import make_links
from fastinfluence.training import GraphProgram, GraphRecipe, GraphState, train
from fastinfluence.training.program import check_weights
from fastinfluence.training.recipe import seed_of

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = ["ComplEx", "DistMult", "KnowledgeGraphModel"]


class KnowledgeGraphModel(Model):
    """What DistMult and ComplEx share; their parameters are those of `DistMult`."""

    def __init__(
        self,
        n_factors: int = 64,
        *,
        loss: str = "softmax",
        n_negatives: int | str = 10,
        sides: str = "both",
        reciprocal: bool = True,
        n_epochs: int = 20,
        learning_rate: float = 0.1,
        learning_rate_decay: str = "linear",
        regularization: float = 0.01,
        optimizer: str = "sgd",
        epsilon: float = 1e-7,
        fixed_negatives: bool = False,
        shuffle: bool = True,
        unit_norm: bool = False,
        init: str = "normal",
        init_scale: float = 0.3,
        dtype: str = "float32",
        rng: int | np.random.Generator | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.n_factors = n_factors
        self.loss = loss
        self.n_negatives = n_negatives
        self.sides = sides
        self.reciprocal = reciprocal
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.regularization = regularization
        self.optimizer = optimizer
        self.epsilon = epsilon
        self.fixed_negatives = fixed_negatives
        self.shuffle = shuffle
        self.unit_norm = unit_norm
        self.init = init
        self.init_scale = init_scale
        self.dtype = dtype
        self.rng = rng
        self.n_threads = n_threads

    parts = Parts(Triples, GraphRecipe, GraphProgram, GraphState)
    global_mean_ = 0.0  # scores have no constant part

    def _fitted_on(self) -> str:
        data = self.data_
        return (
            f"{len(data):,} triples of {data.n_entities:,} entities and {data.n_relations:,} "
            f"relations in {self.n_epochs_} epochs"
        )

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        data: Triples,
        *,
        sample_weight: npt.ArrayLike | None = None,
        record: str | None = None,
        show_progress: bool | None = None,
    ) -> Self:
        """Train on `data`.

        Parameters
        ----------
        data : Triples
            Its validation and test triples are not trained on.
        sample_weight : (n,) array-like, optional
            Weight of every triple; 0 leaves it out.
        record : {None, "rollback"}, optional
            "rollback" adds up every triple's row changes while training, which saves
            `GradientRollback` its own pass (3 or 4 x n x n_factors numbers of memory).
        show_progress : bool, optional
            None shows a progress bar at a terminal.

        Returns
        -------
        DistMult or ComplEx
            The model itself.

        Raises
        ------
        DataError
            No Triples, wrong weights, fewer than two entities.
        ParameterError
            A hyper-parameter out of range.
        DivergenceError
            A loss is no longer finite: the message says at which step and what to lower, the
            error's `trajectory` holds the run so far. A model fitted before stays as it was.
        """
        if not isinstance(data, Triples):
            raise DataError(
                f"fit needs Triples, not {type(data).__name__}: make them with fi.read_triples, "
                "Triples.from_arrays, from_table or from_pykeen"
            )
        if record not in (None, "rollback"):
            raise ParameterError(f"record must be None or 'rollback', not {record!r}")
        trajectory = train(
            GraphProgram(data, check_weights(sample_weight, len(data)), self._recipe()),
            record=record == "rollback",
            memory_budget=memory_budget(),
            n_threads=dispatch.thread_count(self.n_threads),
            show_progress=show_progress,
        )
        return self._take(trajectory)

    def _recipe(self) -> GraphRecipe:
        names = [n for n in self.get_params() if n not in ("rng", "n_threads")]
        given = {n: getattr(self, n) for n in names}
        return GraphRecipe(model=self.kind, **given, seed=seed_of(self.rng))

    def _take(self, trajectory: Trajectory) -> Self:
        """Become the model at the end of a trajectory."""
        self.trajectory_ = trajectory
        self.data_ = trajectory.data
        self.graph_: Graph = trajectory.program.graph
        rows = trajectory.end.tables.rows
        self.entity_factors_ = rows[: self.graph_.n_entities]
        self.relation_factors_ = rows[self.graph_.n_entities :]
        self.n_epochs_ = trajectory.n_epochs
        return self

    # ---------------------------------------------------------------- using

    def links(
        self,
        heads: npt.NDArray[np.int32],
        relations: npt.NDArray[np.int32],
        tails: npt.NDArray[np.int32],
        predict: str | npt.NDArray[np.bool_] = "tail",
    ) -> Links:
        """Questions of the model behind triples of codes.

        Parameters
        ----------
        heads, relations, tails : (n,) int32
        predict : {"tail", "head"}, or (n,) bool
            What is asked for; True asks for the head.

        Raises
        ------
        ParameterError
            A head is asked for, and reciprocal relations were not trained.
        """
        return make_links(self.trajectory_.recipe, self.graph_, heads, relations, tails, predict)

    def predict(
        self, heads: Any, relations: Any, tails: Any, *, predict: str = "tail"
    ) -> npt.NDArray[Any]:
        """Scores (n,) of triples of raw ids.

        Parameters
        ----------
        heads, relations, tails : (n,) array-like, or a single id for all
        predict : {"tail", "head"}, default "tail"
            Which end is asked for: with reciprocal relations a triple has two scores.

        Raises
        ------
        UnknownIdError, ParameterError
        """
        tables, data = self._tables(), self.data_
        codes = (
            data.entity_index(heads),
            data.relation_index(relations),
            data.entity_index(tails),
        )
        try:
            h, r, t = np.broadcast_arrays(*codes)
        except ValueError as error:
            lengths = ", ".join(f"{len(column):,}" for column in codes)
            raise DataError(
                f"heads, relations and tails of lengths {lengths} do not make triples"
            ) from error
        return score_links(self.graph_, tables, self.links(h, r, t, predict))

    def predict_tails(
        self,
        heads: Any,
        relations: Any,
        k: int = 10,
        *,
        exclude_known: bool = True,
        device: str = "auto",
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Find the k best tails of each (head, relation).

        Parameters
        ----------
        heads, relations : (n,) array-like of raw ids, or a single id for all
        k : int, default 10
        exclude_known : bool, default True
            Leave out the tails that the training triples have.
        device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"

        Returns
        -------
        tails : (n, k)
            Raw ids, the best first; ties by code.
        scores : (n, k) float

        Raises
        ------
        UnknownIdError
        ParameterError
            k < 1, or more than some question has candidates.
        DeviceError
            The device is not there, or has not memory enough.
        """
        return self._best("tail", heads, relations, k, exclude_known, device)

    def predict_heads(
        self,
        relations: Any,
        tails: Any,
        k: int = 10,
        *,
        exclude_known: bool = True,
        device: str = "auto",
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Find the k best heads of each (relation, tail), as `predict_tails` finds tails."""
        return self._best("head", tails, relations, k, exclude_known, device)

    def _best(
        self,
        predict: Literal["tail", "head"],
        entities: Any,
        relations: Any,
        k: int,
        exclude_known: bool,
        device: str,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        tables, data = self._tables(), self.data_
        backend, _ = dispatch.choose(device, ("cpu", "cuda", "torch"))
        codes = data.entity_index(entities), data.relation_index(relations)
        if len(codes[0]) != len(codes[1]) and 1 not in map(len, codes):
            raise DataError(
                f"{len(codes[0]):,} entities and {len(codes[1]):,} relations do not make questions"
            )
        e, r = np.broadcast_arrays(*codes)
        excluded = None
        if exclude_known:
            answers = data.alone.known(predict).answers
            starts, stops = data.alone.answers(predict, e, r)
            excluded = Exclusions(starts, stops, answers)
        # Either way the given entity is the question's subject; the answer is a placeholder.
        heads, tails = (e, e[:1].repeat(len(e))) if predict == "tail" else (e[:1].repeat(len(e)), e)
        found, scores = top_entities(
            self.graph_, tables, self.links(heads, r, tails, predict), k, excluded=excluded,
            n_threads=dispatch.thread_count(self.n_threads), device=backend,
        )  # fmt: skip
        return data.entity_ids[found], scores

    def _tables(self) -> GraphTables:
        if not self.is_fitted:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        tables: GraphTables = self.trajectory_.end.tables
        return tables


class DistMult(KnowledgeGraphModel):
    """DistMult, trained by stochastic gradient descent one triple a step.

    The score of (h, r, t) is ``sum(e_h * w_r * e_t)``. Each step asks for one end of a triple:
    its answer is told apart from other entities by the loss. Negatives are drawn by counter,
    uniformly and unfiltered, so leaving a triple out changes nobody else's; a triple takes its
    negatives and its regularization with it. The same data, hyper-parameters and seed give the
    same bits, and the model keeps the Trajectory that every explanation is computed from.

    Parameters
    ----------
    n_factors : int, default 64
        Numbers in a row.
    loss : {"softmax", "logistic"}, default "softmax"
        ``softmax``: minus the log-probability of the answer among the candidates; ``logistic``:
        mean logistic loss over them.
    n_negatives : int or "all", default 10
        Entities drawn for every question, or all others (1-vs-all).
    sides : {"both", "tail"}, default "both"
        Whether heads are asked for as well as tails.
    reciprocal : bool, default True
        Ask for heads through relation rows of their own.
    n_epochs : int, default 20
    learning_rate : float, default 0.1
    learning_rate_decay : {"linear", "constant"}, default "linear"
        ``linear`` reaches 0 behind the last step.
    regularization : float, default 0.01
        L2 coefficient on the rows of the triple a step belongs to (not of its negatives).
    optimizer : {"sgd", "adagrad", "adam", "adam-dense"}, default "sgd"
        ``adam`` moves the rows a step touches, ``adam-dense`` all rows at every step (the same
        numbers up to rounding as moving them, at the cost of the touched ones).
    epsilon : float, default 1e-7
        Adagrad's and Adam's addend to the root.
    fixed_negatives : bool, default False
        Draw the same negatives in every epoch.
    shuffle : bool, default True
        Visit the triples in a random order, drawn once per run; False: as they stand.
    unit_norm : bool, default False
        Bring the entity rows a step has moved back to length 1. Only Gradient Rollback with
        ``credit="update"`` can explain such a run.
    init : {"normal", "uniform"}, default "normal"
    init_scale : float, default 0.3
        Standard deviation, or bound of the uniform distribution.
    dtype : {"float32", "float64"}, default "float32"
    rng : int, numpy Generator or None, default None
        Seed of everything random.
    n_threads : int, optional
        Of ranking; training is one sequence of steps.

    Attributes
    ----------
    entity_factors_ : (n_entities, n_factors)
    relation_factors_ : (n_relations, n_factors)
        With reciprocal relations (2 n_relations, n_factors), the reciprocals behind.
    graph_ : Graph
    n_epochs_ : int
    data_ : Triples
    trajectory_ : Trajectory

    References
    ----------
    Yang et al., Embedding entities and relations for learning and inference in knowledge
    bases, ICLR 2015; reciprocal relations: Lacroix, Usunier & Obozinski, Canonical tensor
    decomposition for knowledge base completion, ICML 2018.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> model = fi.DistMult(n_factors=10, n_epochs=2, rng=0).fit(fi.datasets.nations())
    >>> model.entity_factors_.shape
    (14, 10)
    """

    kind = "distmult"


class ComplEx(KnowledgeGraphModel):
    """ComplEx, trained as `DistMult` is.

    The score of (h, r, t) is ``Re(sum(e_h * w_r * conj(e_t)))``, rows of ``n_factors / 2``
    complex numbers: real parts first, then imaginary parts. Parameters and attributes are those
    of `DistMult`; `n_factors` counts real numbers and is even.

    References
    ----------
    Trouillon et al., Complex embeddings for simple link prediction, ICML 2016.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> model = fi.ComplEx(n_factors=20, n_epochs=2, rng=0).fit(fi.datasets.nations())
    >>> model.relation_factors_.shape
    (110, 20)
    """

    kind = "complex"
