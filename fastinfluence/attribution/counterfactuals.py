"""Counterfactuals: the smallest set found without which another item is recommended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.contests import Contest, Standing, contest_of
from fastinfluence.attribution.objectives import Margin
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.attribution.sets import (
    check_count,
    leave_out_best,
    most_to_leave_out,
    rows_needed,
)
from fastinfluence.data import Interactions, Triples
from fastinfluence.models.base import Model
from fastinfluence.models.retrained import predrawn, without
from fastinfluence.progress import progress

if TYPE_CHECKING:
    from fastinfluence.attribution.method import Attribution

__all__ = ["Counterfactual", "TripleCounterfactual", "counterfactual"]

_REPLACEMENTS = 3  # runners-up that are tried as the answer given instead


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BaseCounterfactual:
    """A set of training examples without which a model answers otherwise.

    Shows itself as text. What the query was, a subclass says.

    Attributes
    ----------
    found : bool
        Whether there is such a set. If not, the others tell which came closest.
    replacement
        Raw id of the answer that is ahead without the examples, or closest behind.
    train_index : (m,) int64
        The examples left out, the most influential first.
    lead_before, lead_after : float
        Score of the answer minus score of the replacement: of the model, and after training
        without the examples.
    at_most : int
        Largest set that was looked for.
    n_retrainings : int
        Models trained on the way.
    data : Interactions or Triples
        The training data.
    method : str
        The method that proposed the examples.
    """

    found: bool
    replacement: Any
    train_index: npt.NDArray[np.int64]
    lead_before: float
    lead_after: float
    at_most: int
    n_retrainings: int
    data: Interactions | Triples
    method: str
    _contest: Contest

    def __len__(self) -> int:
        return len(self.train_index)

    def __repr__(self) -> str:
        contest, rows = self._contest, self.train_index
        replacement = int(contest.code(self.replacement)[0])
        name, other = contest.name(contest.answer), contest.answer_name(replacement)
        if not self.found:
            return (
                f"{name} stays: no set of at most {self.at_most:,} examples was found without "
                f"which it changes; {other} came closest (lead {self.lead_before:.3g}, "
                f"{self.lead_after:.3g} when trained without {len(self):,} examples)"
            )
        these = f"these {len(self):,} examples" if len(self) > 1 else "this example"
        text = (
            f"{name}, but {other} is ahead when trained without {these} "
            f"(lead {self.lead_before:.3g} before, {self.lead_after:.3g} then)"
        )
        return "\n  ".join([text, *contest.lines(rows, replacement)])


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Counterfactual(BaseCounterfactual):
    """A set of training examples without which a recommendation is another one.

    Shows itself as text.

    Attributes
    ----------
    user, item
        Raw ids of the recommendation.
    found, replacement, train_index, lead_before, lead_after, at_most, n_retrainings, data, method
        As `BaseCounterfactual` has them; an answer is an item.
    """

    user: Any
    item: Any


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TripleCounterfactual(BaseCounterfactual):
    """A set of training triples without which a question has another answer.

    Shows itself as text.

    Attributes
    ----------
    head, relation, tail
        Raw ids of the prediction.
    predicted : {"tail", "head"}
        Which of them was asked for.
    found, replacement, train_index, lead_before, lead_after, at_most, n_retrainings, data, method
        As `BaseCounterfactual` has them; an answer is an entity.
    """

    head: Any
    relation: Any
    tail: Any
    predicted: str


def counterfactual(
    method: Attribution,
    query: Any,
    target: Any = None,
    *,
    at_most: int = 100,
    chunk: int = 5,
    show_progress: bool | None = None,
) -> Counterfactual | TripleCounterfactual:
    """Find the smallest set of examples without which a model answers otherwise.

    Examples that set the item, or the entity, ahead of a replacement are left out greedily, as
    in `explain_set`, until training without them puts another one ahead; then the set is made
    smaller as long as that stays so. Whether one is ahead is only ever told by training again,
    so what is found is true, and close to the smallest there is as far as the method is.

    Parameters
    ----------
    method : attribution object
        The object itself where this is called as its method.
    query : (user, item) pair, or (head, relation, tail) triple
        Raw ids. The item is what is recommended, and the user has no example of it. The tail is
        what the model answers, of all entities but those that other training and validation
        triples hold there; None as tail asks for its best one, None as head for its best head.
        A `Score` of a triple says which end is asked for.
    target : raw id of an item or entity, optional
        What is to be ahead of it. By default any that is not known: the three that follow are
        tried, and the smallest set is kept.
    at_most : int, default 100
        Largest set to look for.
    chunk : int, default 5
        Examples between two trainings.
    show_progress : bool, optional

    Returns
    -------
    Counterfactual or TripleCounterfactual
        With ``found=False`` where no set was found.

    Raises
    ------
    UnknownIdError
        An id is not in the training data.
    ParameterError
        The item is not recommended, or not ahead of the target; the user has an example of one
        of them; the entity is not predicted, the target is known; several queries; at_most or
        chunk < 1.

    Notes
    -----
    At most ``at_most / chunk`` times one training and what the method takes for one query of a
    new model, for each replacement; and a training for each example of the set found. What the
    examples that are left out say still counts as known.

    The replacements are those of Tran, Ghazimatin & Saha Roy, Counterfactual explanations for
    neural recommenders (ACCENT), SIGIR 2021, which leaves out what it estimates to be enough.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(
    ...     ["ann", "bob", "bob", "bob"], ["x", "x", "y", "z"], [4, 5, 4, 3])
    >>> model = fi.MatrixFactorization(n_factors=4, learning_rate=0.1, rng=0).fit(data)
    >>> fi.Replay(model).counterfactual(("ann", "y"))
    ann → y, but z is ahead when trained without this example (lead 0.898 before, -0.24 then)
      bob → z: 3  (of the item ahead)
    """
    at_most, chunk = check_count("at_most", at_most), check_count("chunk", chunk)
    contest = contest_of(method.model, query, target)
    model = predrawn(method.model)
    search = _Search(method, model, contest, min(at_most, most_to_leave_out(model)), chunk)
    found = search.run(show_progress)
    chosen = found or search.closest
    standing = search.standing_without(chosen)
    of_triple = isinstance(model.data_, Triples)
    kind: Any = TripleCounterfactual if of_triple else Counterfactual
    answered: Counterfactual | TripleCounterfactual = kind(
        **contest.asked,
        found=found is not None,
        replacement=contest.raw(standing.replacement),
        train_index=np.array(chosen, np.int64),
        lead_before=contest.lead(model, standing.replacement),
        lead_after=standing.lead,
        at_most=at_most,
        n_retrainings=search.n_retrainings,
        data=model.data_,
        method=method.name,
        _contest=contest,
    )
    return answered


class _Search:
    """The search for a set, and all that training again has told on the way.

    Attributes
    ----------
    closest : tuple of int
        The set tried that left the smallest lead.
    n_retrainings : int
    """

    def __init__(
        self,
        method: Attribution,
        model: Model,
        contest: Contest,
        at_most: int,
        chunk: int,
    ) -> None:
        self._method, self._model, self._contest = method, model, contest
        self._at_most, self._chunk = at_most, chunk
        self._standings = {frozenset[int](): contest.standing(model)}
        self.closest: tuple[int, ...] = ()
        self.n_retrainings = 0

    def run(self, show_progress: bool | None) -> tuple[int, ...] | None:
        """Return the smallest set found, or None."""
        best: tuple[int, ...] | None = None
        margins = self._margins()
        total = self._at_most * len(margins)
        bar = progress(total, description="counterfactual", show=show_progress, unit="example")
        with bar:
            for margin, influence in margins:
                most = self._at_most
                if best is not None:
                    if len(best) == 1:
                        break
                    # A set as large as the best, and a few more that may turn out unneeded.
                    most = min(most, len(best) + self._chunk - 1)
                found = self._greedily(margin, influence, most, bar)
                if found is not None:
                    found = self._thinned(found)
                    if best is None or len(found) < len(best):
                        best = found
        return best

    def _margins(self) -> list[tuple[Margin, Any]]:
        """Margin over each replacement, and influence on it, the easiest to overturn first."""
        model, contest = self._model, self._contest
        others = contest.replacements(model, _REPLACEMENTS)
        both = contest.margin(others)
        influence = self._method.on(model, rows_needed(both, model)).influence(both)
        _, values, _ = top_of_rows(influence, self._at_most)
        leads = np.array([contest.lead(model, other) for other in others])
        needed = (np.cumsum(np.fmax(values, 0), axis=1) < leads[:, None]).sum(axis=1)
        return [
            (contest.margin([others[n]]), influence[[n]])
            for n in np.argsort(needed, kind="stable").tolist()
        ]

    def _greedily(
        self, margin: Margin, influence: Any, most: int, bar: Any
    ) -> tuple[int, ...] | None:
        """Leave examples out until another item is ahead; the shortest such run of them."""
        taken: tuple[int, ...] = ()
        for step in leave_out_best(self._method, self._model, margin, influence, most, self._chunk):
            before, taken = len(taken), (*taken, *step.train_index.tolist())
            standing = self._note(taken, step.model)
            bar.set_postfix(lead=f"{standing.lead:.3g}")
            bar.update(len(taken) - before)
            if standing.changed:
                return self._shortened(taken, before)
        return None

    def _shortened(self, taken: tuple[int, ...], before: int) -> tuple[int, ...]:
        """Bisect for the shortest beginning that is enough; `before` of them are not."""
        enough = len(taken)
        while enough - before > 1:
            middle = (before + enough) // 2
            if self.standing_without(taken[:middle]).changed:
                enough = middle
            else:
                before = middle
        return taken[:enough]

    def _thinned(self, examples: tuple[int, ...]) -> tuple[int, ...]:
        """Leave out of the set whatever is not needed, the last found first."""
        for example in reversed(examples):
            others = tuple(other for other in examples if other != example)
            if others and self.standing_without(others).changed:
                examples = others
        return examples

    def standing_without(self, examples: tuple[int, ...]) -> Standing:
        """How the item stands after training without some examples."""
        known = self._standings.get(frozenset(examples))
        return known or self._note(examples, without(self._model, list(examples)))

    def _note(self, examples: tuple[int, ...], model: Model) -> Standing:
        self.n_retrainings += 1
        standing = self._contest.standing(model)
        self._standings[frozenset(examples)] = standing
        if standing.lead < self._standings[frozenset(self.closest)].lead:
            self.closest = examples
        return standing
