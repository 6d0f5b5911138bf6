"""Counterfactuals: the smallest set found without which another item is recommended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.explanation import pair_name
from fastinfluence.attribution.objectives import Margin
from fastinfluence.attribution.quantities import Margins
from fastinfluence.attribution.queries import query_codes
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.attribution.sets import (
    as_queries,
    check_count,
    example_lines,
    leave_out_best,
    most_to_leave_out,
    pairs_needed,
    side_names,
    value_of,
)
from fastinfluence.errors import ParameterError
from fastinfluence.models.retrained import predrawn, without
from fastinfluence.progress import progress

if TYPE_CHECKING:
    from fastinfluence.attribution.method import Attribution
    from fastinfluence.data import Interactions
    from fastinfluence.models import MatrixFactorization

__all__ = ["Counterfactual", "counterfactual"]

Codes = npt.NDArray[np.int32]

_REPLACEMENTS = 3  # runners-up that are tried as the item recommended instead


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Counterfactual:
    """A set of training examples without which a recommendation is another one.

    Shows itself as text.

    Attributes
    ----------
    found : bool
        Whether there is such a set. If not, the others tell which came closest.
    user, item
        Raw ids of the recommendation.
    replacement
        Raw id of the item that is ahead without the examples, or closest behind.
    train_index : (m,) int64
        The examples left out, the most influential first.
    lead_before, lead_after : float
        Score of the item minus score of the replacement: of the model, and after training
        without the examples.
    at_most : int
        Largest set that was looked for.
    n_retrainings : int
        Models trained on the way.
    data : Interactions
        The training data.
    method : str
        The method that proposed the examples.
    """

    found: bool
    user: Any
    item: Any
    replacement: Any
    train_index: npt.NDArray[np.int64]
    lead_before: float
    lead_after: float
    at_most: int
    n_retrainings: int
    data: Interactions
    method: str

    def __len__(self) -> int:
        return len(self.train_index)

    def __repr__(self) -> str:
        data, rows = self.data, self.train_index
        user, item = int(data.user_index(self.user)[0]), int(data.item_index(self.item)[0])
        replacement = int(data.item_index(self.replacement)[0])
        other = data.item_name(replacement)
        name = pair_name(data, user, item)
        if not self.found:
            return (
                f"{name} stays: no set of at most {self.at_most:,} examples was found without "
                f"which it changes; {other} came closest (lead {self.lead_before:.3g}, "
                f"{self.lead_after:.3g} when trained without {len(rows):,} examples)"
            )
        these = f"these {len(rows):,} examples" if len(rows) > 1 else "this example"
        text = (
            f"{name}, but {other} is ahead when trained without {these} "
            f"(lead {self.lead_before:.3g} before, {self.lead_after:.3g} then)"
        )
        remarks = [
            "of the item ahead" if of_other else side
            for of_other, side in zip(
                data.items[rows] == replacement, side_names(data, rows, (user, item)), strict=True
            )
        ]
        return "\n  ".join([text, *example_lines(data, rows, remarks)])


def counterfactual(
    method: Attribution,
    query: Any,
    target: Any = None,
    *,
    at_most: int = 100,
    chunk: int = 5,
    show_progress: bool | None = None,
) -> Counterfactual:
    """Find the smallest set of examples without which another item is recommended.

    Examples that set the item ahead of a replacement are left out greedily, as in `explain_set`,
    until training without them puts another item ahead; then the set is made smaller as long as
    that stays so. Whether an item is ahead is only ever told by training again, so what is found
    is true, and close to the smallest there is as far as the method is.

    Parameters
    ----------
    method : attribution object
        The object itself where this is called as its method.
    query : (user, item) pair
        Raw ids: the item is what is recommended, and the user has no example of it.
    target : raw item id, optional
        The item that is to be ahead of it. By default any item the user has no example of: the
        three that follow are tried, and the smallest set is kept.
    at_most : int, default 100
        Largest set to look for.
    chunk : int, default 5
        Examples between two trainings.
    show_progress : bool, optional

    Returns
    -------
    Counterfactual
        With ``found=False`` where no set was found.

    Raises
    ------
    UnknownIdError
        The user or an item is not in the training data.
    ParameterError
        The item is not recommended, or not ahead of the target; the user has an example of one
        of them; several queries; at_most or chunk < 1.

    Notes
    -----
    At most ``at_most / chunk`` times one training and what the method takes for one query of a
    new model, for each replacement; and a training for each example of the set found. The items
    of examples that are left out still count as known.

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
    question = _Question.ask(method.model, query, target)
    model = predrawn(method.model)
    search = _Search(method, model, question, min(at_most, most_to_leave_out(model)), chunk)
    found = search.run(show_progress)
    chosen = found or search.closest
    standing = search.standing_without(chosen)
    data, other = model.data_, standing.replacement
    return Counterfactual(
        found=found is not None,
        user=data.user_ids[question.user].item(),
        item=data.item_ids[question.item].item(),
        replacement=data.item_ids[other].item(),
        train_index=np.array(chosen, np.int64),
        lead_before=question.lead(model, other),
        lead_after=standing.lead,
        at_most=at_most,
        n_retrainings=search.n_retrainings,
        data=data,
        method=method.name,
    )


class _Standing(NamedTuple):
    """How an item stands in a model."""

    replacement: int  # the item ahead of it, or closest behind
    lead: float
    changed: bool


class _Question(NamedTuple):
    """Is this item still ahead? Of one item, or of all that the user has no example of."""

    user: int
    item: int
    target: int | None

    @classmethod
    def ask(cls, model: MatrixFactorization, query: Any, target: Any) -> _Question:
        """Look up the ids; ParameterError where there is nothing to ask about."""
        data = model.data_
        users, items = query_codes(as_queries(query), data)
        if len(users) != 1:
            raise ParameterError(f"a counterfactual is of one query, not of {len(users):,}")
        user, item = int(users[0]), int(items[0])
        name = pair_name(data, user, item)
        known = np.unique(data.items[data.users == user])
        if item in known:
            raise ParameterError(f"{name} is in the training data, so it is no recommendation")
        if target is None:
            if data.n_items - len(known) < 2:
                raise ParameterError(f"{name} is all that is left to recommend")
            if (best := _recommended(model, user, 1)[0]) != item:
                raise ParameterError(
                    f"{name} is not what is recommended: that is {pair_name(data, user, best)}; "
                    "explain that, or give the target to compare with"
                )
            return cls(user, item, None)
        codes = data.item_index(target)
        if len(codes) != 1:
            raise ParameterError(f"target is one item, not {len(codes):,}")
        other = int(codes[0])
        if other == item:
            raise ParameterError(f"the target, {data.item_name(other)}, is the query's own item")
        if other in known:
            raise ParameterError(
                f"the target, {data.item_name(other)}, cannot be recommended: "
                f"{pair_name(data, user, other)} is in the training data"
            )
        if (question := cls(user, item, other)).standing(model).changed:
            raise ParameterError(f"the target, {data.item_name(other)}, is ahead of {name} already")
        return question

    def standing(self, model: MatrixFactorization) -> _Standing:
        """How the item stands, by the scores that the model predicts and recommends by."""
        if self.target is None:
            first, second = _recommended(model, self.user, 2)
            changed = first != self.item
            other = first if changed else second
        else:
            data, other = model.data_, self.target
            scores = model.predict(data.user_ids[[self.user]], data.item_ids[[self.item, other]])
            changed = bool(scores[0] < scores[1])
        return _Standing(other, self.lead(model, other), changed)

    def lead(self, model: MatrixFactorization, other: int) -> float:
        """Score of the item minus that of another."""
        codes = (np.array([code], np.int32) for code in (self.user, self.item, other))
        return value_of(Margins(*codes), model)

    def replacements(self, model: MatrixFactorization) -> list[int]:
        """Items to try."""
        if self.target is not None:
            return [self.target]
        data = model.data_
        n_left = data.n_items - len(np.unique(data.items[data.users == self.user]))
        return _recommended(model, self.user, min(1 + _REPLACEMENTS, n_left))[1:]


def _recommended(model: MatrixFactorization, user: int, k: int) -> list[int]:
    """Codes of the k items recommended to a user."""
    data = model.data_
    items, _ = model.recommend(data.user_ids[[user]], k)
    codes: list[int] = data.item_index(items[0]).tolist()
    return codes


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
        model: MatrixFactorization,
        question: _Question,
        at_most: int,
        chunk: int,
    ) -> None:
        self._method, self._model, self._question = method, model, question
        self._at_most, self._chunk = at_most, chunk
        self._standings = {frozenset[int](): question.standing(model)}
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
        model, question = self._model, self._question
        data, others = model.data_, question.replacements(model)
        pair = (data.user_ids[question.user], data.item_ids[question.item])
        both = Margin([pair] * len(others), data.item_ids[others])
        quantity = both.bind(data, model.trajectory_.recipe)
        queries = pairs_needed(quantity, model)
        influence = self._method.on(model, queries).influence(both)
        _, values, _ = top_of_rows(influence, self._at_most)
        leads = quantity.values(model.trajectory_.end.tables, model.global_mean_)
        needed = (np.cumsum(np.fmax(values, 0), axis=1) < leads[:, None]).sum(axis=1)
        return [
            (Margin([pair], data.item_ids[[others[n]]]), influence[[n]])
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

    def standing_without(self, examples: tuple[int, ...]) -> _Standing:
        """How the item stands after training without some examples."""
        known = self._standings.get(frozenset(examples))
        return known or self._note(examples, without(self._model, list(examples)))

    def _note(self, examples: tuple[int, ...], model: MatrixFactorization) -> _Standing:
        self.n_retrainings += 1
        standing = self._question.standing(model)
        self._standings[frozenset(examples)] = standing
        if standing.lead < self._standings[frozenset(self.closest)].lead:
            self.closest = examples
        return standing
