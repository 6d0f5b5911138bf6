"""How far leaving one triple out can move a model at most: the Lipschitz constants of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, memory
from fastinfluence.errors import ParameterError
from fastinfluence.models.base import trajectory_of
from fastinfluence.models.knowledge_graph import KnowledgeGraphModel
from fastinfluence.training.backward import backward

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = ["Stability", "stability"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Stability:
    """Lipschitz constants of a training run, and what they bound. Shows itself as text.

    Attributes
    ----------
    model : str
        ``"DistMult"`` or ``"ComplEx"``.
    optimizer : str
    n_epochs : int
    subject_relation, relation_object, subject_object : float
        Greatest norms of ``e_s * w_r``, ``w_r * e_o`` and ``e_s * e_o`` in training, over answers
        and negatives o.
    score_lipschitz : float
        Bound of the gradient of a score.
    loss_lipschitz : float
        Bound G of the gradient of a step's loss, its regularization included.
    smoothness : float
        Bound beta of the loss' second derivative, on the run and, if `proven`, as far from it as
        the bound on the change reaches.
    log10_change : (n,) float64 or None
        For each training triple, log10 of the bound on the norm of the change of all parameters
        that leaving it out makes; -inf for one of weight 0. None unless training was plain
        SGD: the bound is for nothing else.
    log10_error : (n,) float64 or None
        Likewise on how far taking back the changes that `GradientRollback` credits to the triple
        ends from retraining without it.
    proven : bool
        The constants hold wherever the bound says that retraining may go. Otherwise the
        bounds assume that it stays where they hold.
    parameter_norm : float
        Norm of all parameters at the end, to compare with.
    """

    model: str
    optimizer: str
    n_epochs: int
    subject_relation: float
    relation_object: float
    subject_object: float
    score_lipschitz: float
    loss_lipschitz: float
    smoothness: float
    log10_change: Floats | None
    log10_error: Floats | None
    proven: bool
    parameter_norm: float

    @property
    def vacuous(self) -> bool:
        """Whether the bound on a change exceeds the parameters themselves, or there is none."""
        if self.log10_change is None:
            return True
        return bool(10.0 ** min(self.log10_change.max(), 300.0) >= self.parameter_norm)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of the bounds the greatest and the median triple's, as log10."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("log10_")]
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("log10_change", "log10_error"):
            bounds = getattr(self, name)
            found[f"greatest_{name}"] = None if bounds is None else float(bounds.max())
            found[f"median_{name}"] = None if bounds is None else float(np.median(bounds))
        return found | {"vacuous": self.vacuous}

    def __repr__(self) -> str:
        norms = (
            f"greatest norms: |e_s * w_r| {self.subject_relation:.3g}, |w_r * e_o| "
            f"{self.relation_object:.3g}, |e_s * e_o| {self.subject_object:.3g}"
        )
        constants = (
            f"Lipschitz constants: score {self.score_lipschitz:.3g}, loss "
            f"{self.loss_lipschitz:.3g}; smoothness of the loss {self.smoothness:.3g}"
        )
        epochs = f"{self.n_epochs} epoch{'' if self.n_epochs == 1 else 's'}"
        lines = [f"Stability of {self.model} trained by {self.optimizer} in {epochs}"]
        lines += [norms, constants]
        if self.log10_change is None or self.log10_error is None:
            lines.append("no bound on leaving a triple out: it is for plain SGD (no unit_norm)")
            return "\n".join(lines)
        change, error = (_power(bounds.max()) for bounds in (self.log10_change, self.log10_error))
        lines += [
            f"leaving one triple out changes the parameters by at most {change} (their norm is "
            f"{self.parameter_norm:.3g})" + (": vacuous" if self.vacuous else ""),
            f"Gradient Rollback is off by at most {error}",
        ]
        if not self.proven:
            lines.append("(if retraining stays where these constants hold)")
        return "\n".join(lines)


def stability(
    model: KnowledgeGraphModel,
    *,
    memory_budget: int | None = None,
    show_progress: bool | None = None,
) -> Stability:
    """Bound what leaving one triple out can do to a model, from the run that made it.

    Parameters
    ----------
    model : DistMult or ComplEx
        Fitted. Training is run again.
    memory_budget : int, optional
        Bytes for the log of the run, a quarter of RAM by default.
    show_progress : bool, optional
        None shows a progress bar at a terminal.

    Returns
    -------
    Stability

    Raises
    ------
    ParameterError
        No model of a knowledge graph.
    NotFittedError
        The model is not fitted.

    Notes
    -----
    Let A, B and C be the greatest norms of ``e_s * w_r``, ``w_r * e_o`` and ``e_s * e_o`` over all
    steps and candidates o, E and W the largest moduli in the rows of entities and relations, and R
    the greatest norm of the rows of a step's subject, relation and answer together. A score z =
    <e_s * w_r, e_o> has the three products as derivatives, and as second derivatives multiplication
    with the three rows:

        |grad z| <= L = sqrt(k (A^2 + B^2 + C^2)),  |hess z| <= S = k (W + sqrt(W^2 + 8 E^2)) / 2,

    k being 2 if a subject was ever among its own candidates (two of the rows are then one), else
    1. The slopes of the loss by the scores add up to at most g = 2 and its curvatures to h = 1
    (softmax), or g = 1 and h = 1/4 (logistic). With regularization lambda a step's loss has

        |gradient| <= G = g L + lambda R,   |second derivative| <= beta = h L^2 + g S + lambda.

    Train a second time without triple j. The distance of both runs is multiplied by at most
    1 + eta_t w_t beta in step t of another triple, and grows by at most eta_t w_j G in one of j:

        |theta - theta_without_j| <= sum over steps t of j: eta_t w_j G P_t,
        P_t = product over later steps u of others: 1 + eta_u w_u beta.

    Taking back all that j's own steps changed leaves ``eta_t w_j G (P_t - 1)`` of each;
    `GradientRollback` leaves the rows of its negatives as they are, at most ``eta_t w_j A`` more.

    G is needed on the recorded run alone, beta also between the two. At a distance D from the
    run A and B are larger by at most ``D sqrt(E^2 + W^2) + D^2 / 2``, C by ``2 D E + D^2``, E
    and W by D. If there is a D for which the bound is at most D with the beta at D, then no
    run leaves that neighbourhood and the bound is `proven`. Else beta is that of the run itself.

    The bound fails to say anything where the product is large: in long or hot training, that is
    in most. It sees neither that most steps share no row with each other nor that losses curve
    upwards; the growth that `Replay` and `CurvatureRollback` measure (their `amplification`)
    does. Adam and Adagrad change the scale of a step by what others did, and unit_norm projects:
    none of that is covered. Rounding is not either.

    References
    ----------
    Hardt, Recht & Singer, Train faster, generalize better: stability of stochastic gradient
    descent, ICML 2016; Lawrence, Sztyler & Niepert, Explaining neural matrix factorization with
    gradient rollback, AAAI 2021.
    """
    if not isinstance(model, KnowledgeGraphModel):
        raise ParameterError(f"stability needs a DistMult or ComplEx, not {type(model).__name__}")
    trajectory = trajectory_of(model, "its stability")
    recipe = trajectory.recipe
    norms = _greatest_norms(
        trajectory,
        memory.memory_budget(memory_budget),
        dispatch.thread_count(model.n_threads),
        show_progress,
    )
    smoothness, bounds, proven = norms.smoothness(recipe.loss, recipe.regularization), None, False
    if recipe.optimizer == "sgd" and not recipe.unit_norm:
        smoothness, bounds, proven = _bounds(trajectory, norms)
    return Stability(
        model=type(model).__name__,
        optimizer=recipe.optimizer,
        n_epochs=trajectory.n_epochs,
        subject_relation=norms.subject_relation,
        relation_object=norms.relation_object,
        subject_object=norms.subject_object,
        score_lipschitz=norms.score_lipschitz,
        loss_lipschitz=norms.loss_lipschitz(recipe.loss, recipe.regularization),
        smoothness=smoothness,
        log10_change=None if bounds is None else bounds.log_change / np.log(10),
        log10_error=None if bounds is None else bounds.log_error / np.log(10),
        proven=proven,
        parameter_norm=float(np.linalg.norm(trajectory.end.tables.rows.astype(np.float64))),
    )


_SLOPES = {"softmax": 2.0, "logistic": 1.0}  # sums of |dL/dz| over the candidates, at most
_CURVATURES = {"softmax": 1.0, "logistic": 0.25}  # likewise of d2L/dz2 along any direction
_MOST_TRIES = 40  # to find how far the bound reaches


class _Norms(NamedTuple):
    """What the kernel `graph_norms` returns."""

    subject_relation: float
    relation_object: float
    subject_object: float
    entity: float
    relation: float
    triple: float
    own: float

    @property
    def merged(self) -> float:
        """How often a row may count twice, as subject and as candidate."""
        return 1.0 + self.own

    @property
    def score_lipschitz(self) -> float:
        products = self.subject_relation, self.relation_object, self.subject_object
        return float(np.sqrt(self.merged) * np.linalg.norm(products))

    def loss_lipschitz(self, loss: str, regularization: float) -> float:
        return _SLOPES[loss] * self.score_lipschitz + regularization * self.triple

    def smoothness(self, loss: str, regularization: float) -> float:
        root = np.sqrt(self.relation**2 + 8 * self.entity**2)
        bend = self.merged * (self.relation + root) / 2
        slope = self.score_lipschitz
        return float(_CURVATURES[loss] * slope**2 + _SLOPES[loss] * bend + regularization)

    def beyond(self, distance: float) -> _Norms:
        """Norms that hold up to so far from the run."""
        more = distance * np.hypot(self.entity, self.relation) + distance**2 / 2
        return self._replace(
            subject_relation=self.subject_relation + more,
            relation_object=self.relation_object + more,
            subject_object=self.subject_object + 2 * distance * self.entity + distance**2,
            entity=self.entity + distance,
            relation=self.relation + distance,
        )


class _Bounds(NamedTuple):
    """Natural logarithms, (n,) by training index."""

    log_change: Floats
    log_error: Floats


def _greatest_norms(
    trajectory: Trajectory, budget: int, n_threads: int, show_progress: bool | None
) -> _Norms:
    graph_norms = dispatch.kernels("graph_norms").graph_norms
    program, norms = trajectory.program, np.zeros(len(_Norms._fields))
    stages = backward(
        trajectory,
        memory_budget=budget,
        n_threads=n_threads,
        description="norms",
        show_progress=show_progress,
    )
    for stage in stages:
        graph_norms(
            norms,
            program.graph,
            program.examples,
            stage.log,
            program.hyper.sides,
            stage.start,
            stage.stop,
        )
    return _Norms(*norms.tolist())


def _bounds(trajectory: Trajectory, norms: _Norms) -> tuple[float, _Bounds, bool]:
    """The smoothness that is used, the bounds it gives, and whether they are proven."""
    recipe = trajectory.recipe

    def smoothness_at(distance: float) -> float:
        return norms.beyond(distance).smoothness(recipe.loss, recipe.regularization)

    here = smoothness_at(0.0), _bounds_of(trajectory, norms, smoothness_at(0.0))
    found = here[1]
    for _ in range(_MOST_TRIES):
        furthest = found.log_change.max()
        if not furthest < np.log(100 * (norms.entity + norms.relation)):
            break
        reach = 1.05 * float(np.exp(furthest))
        smoothness = smoothness_at(reach)
        found = _bounds_of(trajectory, norms, smoothness)
        if found.log_change.max() <= np.log(reach):
            return smoothness, found, True
    return *here, False


def _bounds_of(trajectory: Trajectory, norms: _Norms, smoothness: float) -> _Bounds:
    """Bounds for every triple, from the last epoch to the first.

    All in logarithms: the products overflow.
    """
    program, recipe = trajectory.program, trajectory.recipe
    hyper, n = program.hyper, len(program.data)
    weights = program.examples.weights.astype(np.float64)[:, None]
    log_lipschitz = np.log(norms.loss_lipschitz(recipe.loss, recipe.regularization))
    log_negatives = np.log(norms.subject_relation)
    change, error = np.full(n, -np.inf), np.full(n, -np.inf)
    behind, own_behind = 0.0, np.zeros(n)
    with np.errstate(divide="ignore"):  # log(0): a triple of weight 0, a product without factors
        for epoch in range(trajectory.n_epochs - 1, -1, -1):
            steps = (epoch * n + np.arange(n)[:, None]) * hyper.sides + np.arange(hyper.sides)
            rates = (hyper.learning_rate - hyper.decline * steps) * weights
            own = np.log1p(rates * smoothness).sum(axis=1)
            after = np.append(np.cumsum(own[:0:-1])[::-1], 0.0)
            growth = behind + after - own_behind  # log P of both sides of a visit
            growth = np.maximum(growth, 0.0)  # rounding
            log_rates = np.log(rates.sum(axis=1))
            more = growth + np.log(-np.expm1(-growth))  # log(P - 1)
            change = np.logaddexp(change, log_rates + log_lipschitz + growth)
            left = np.logaddexp(log_lipschitz + more, log_negatives)
            error = np.logaddexp(error, log_rates + left)
            behind += float(own.sum())
            own_behind += own
    visits = trajectory.visits()
    return _Bounds(change[visits], error[visits])


def _power(log10: float) -> str:
    """A number by its logarithm, whatever its size."""
    return f"{10.0**log10:.3g}" if log10 < 6 else f"10^{log10:,.1f}"
