"""The groups of arrays that kernels take: plain named tuples, shared by all backends.

They live apart from the kernels so that the Python layers can build them without importing a
compiler.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

__all__ = [
    "LANES",
    "Adjoint",
    "Curvature",
    "Edges",
    "Examples",
    "Exclusions",
    "Graph",
    "GraphCurvature",
    "GraphHyper",
    "GraphLog",
    "GraphPoint",
    "GraphSampler",
    "GraphTables",
    "Hyper",
    "Influences",
    "LinkGroups",
    "Links",
    "Log",
    "Queries",
    "Record",
    "RowAdjoint",
    "RowState",
    "Sampler",
    "ScoreTerms",
    "Side",
    "Tables",
    "Top",
    "Touches",
    "TripleExamples",
    "TripleRecord",
    "TripleRows",
]

Array = npt.NDArray[Any]

LANES = 16
"""Numbers in a vector of the kernels: rows are padded to whole vectors, and so many queries go
through Replay side by side."""

# Columns of Log.numbers: dL/df, curvature (see losses.candidate_curvatures), f, both biases before
# the step, the example's weight and how many candidates it has.
GRADIENT, CURVATURE, SCORE, ITEM_BIAS, USER_BIAS, WEIGHT, N_CANDIDATES = range(7)


class Tables(NamedTuple):
    """Parameters, or anything shaped like them (Adagrad's sums of squared gradients)."""

    user_factors: Array  # (n_users, k)
    item_factors: Array  # (n_items, k)
    user_biases: Array  # (n_users,)
    item_biases: Array  # (n_items,)


class Examples(NamedTuple):
    """Training examples in the order of their visits."""

    users: Array  # (n,) int32
    items: Array  # (n,) int32
    values: Array  # (n,) dtype of the tables
    weights: Array  # (n,) dtype of the tables; 0 skips the example
    ids: Array  # (n,) int64, keys of the random draws


class Sampler(NamedTuple):
    """Where negatives come from: pool g serves the blocks whose item group is g."""

    n_negatives: int
    seed: int
    pool_pointers: Array  # (n_groups + 1,) int64
    pool: Array  # (n_items,) int32, items of group 0, group 1, ...
    known_pointers: Array  # (n_users + 1,) int64
    known_items: Array  # (n,) int32, ascending within a user
    drawn: Array  # (n, n_negatives) int32, -1 behind the last: this epoch's; (0, n_negatives): draw


class Hyper(NamedTuple):
    """Scalars of the step, in the dtype of the tables."""

    mean: Any
    learning_rate: Any
    regularization: Any
    epsilon: Any  # Adagrad only


class Record(NamedTuple):
    """Row changes added up per example, in the order of visits (Gradient Rollback)."""

    user_rows: Array  # (n, k)
    item_rows: Array  # (n, k)
    biases: Array  # (n, 2): user, item


class Log(NamedTuple):
    """What the steps of an epoch, or of some of them, saw; C candidates: the item, negatives."""

    slots: Array  # (n,) int32: place of every visit in the log, -1 if it is not in it
    items: Array  # (m, C) int32: candidates, -1 where fewer were drawn
    user_rows: Array  # (m, k): before the step
    item_rows: Array  # (m * C, k): before the step
    numbers: Array  # (m * C, 8): GRADIENT, ... of every candidate, on one cache line
    user_squares: Array  # (m, k + 1): Adagrad's sums behind the step, bias last; else (0, k + 1)
    item_squares: Array  # (m * C, k + 1)


class Touches(NamedTuple):
    """Which steps touched each of some rows, in the order of the visits."""

    pointers: Array  # (n_rows + 1,) int64
    entries: Array  # (m,) int64: place in the log * C + candidate (0 for users)
    places: Array  # (m,) int64: where the touch's credit goes, -1: nowhere


class Curvature(NamedTuple):
    """What Curvature Rollback carries backwards for each of some rows; see rank4."""

    matrices: Array  # (n_rows, k + 1, width): M transposed, without its last row
    last_rows: Array  # (n_rows, width + 16): the row of M that makes the bias
    values: Array  # (n_rows, width): M times the row, factors
    bias_values: Array  # (n_rows,)


class Adjoint(NamedTuple):
    """Derivatives of a block of quantities by every row, one quantity a lane; bias last."""

    users: Array  # (n_users, k + 1, LANES)
    items: Array  # (n_items, k + 1, LANES)


class Edges(NamedTuple):
    """The scores that a training loss is made of: each joins a user's row and an item's.

    Rows are those of the users, then those of the items. The edges of an example are consecutive,
    the first is that of its own pair, those of its negatives follow; the examples stand user by
    user, and so the edges do.
    """

    pointers: Array  # (n_rows + 1,) int64: bounds of the places of each row
    others: Array  # (2 m,) int32: the row at the other end
    numbers: Array  # (2 m,) int32: the edge at each place
    first: Array  # (n + 1,) int64: bounds of the edges of each example
    owns: Array  # (m,) int32: the first edge of the same example
    examples: Array  # (n,) int64: training index of each example


class ScoreTerms(NamedTuple):
    """The scores that some quantities are made of, and the rows that those are made of.

    The quantity of a term is ``weight * (score, or minus the loss of the score)``, terms of the
    same quantity add up.
    """

    queries: Array  # (m,) int64: number of the quantity
    users: Array  # (m,) int32: row in `rows`
    items: Array  # (m,) int32
    weights: Array  # (m,) dtype of the rows
    targets: Array  # (m,) dtype of the rows: y of the loss, if it is one
    rows: Tables  # of the a users and b items that occur, to be changed in place
    user_slots: Array  # (n_users,) int32: which of them is that of each user, -1: none
    item_slots: Array  # (n_items,) int32
    user_pointers: Array  # (a + 1,) int64
    by_user: Array  # (m,) int64: terms of each user's row, ascending
    item_pointers: Array  # (b + 1,) int64
    by_item: Array  # (m,) int64


class Side(NamedTuple):
    """Rows of the examples of every user (or every item), packed for the read-out."""

    rows: Array  # (n * d,) float32, float64, or bfloat16 in uint16
    pointers: Array  # (n_groups + 1,) int64
    order: Array  # (n,) int64: training index of each row, ascending in a group


class Queries(NamedTuple):
    """Queries sorted by group; query number `ids[s]` reads out with ``vectors[columns[s]]``."""

    ids: Array  # (m,) int64
    columns: Array  # (m,) int32
    vectors: Array  # (n_columns, d)


class Exclusions(NamedTuple):
    """Rows a query must not see: ``places[starts[id] : stops[id]]``, places in the store."""

    starts: Array  # (n_queries,) int64
    stops: Array  # (n_queries,) int64
    places: Array  # int64


class Top(NamedTuple):
    """Lists of the best k, by query id, changed in place."""

    values: Array  # (n_queries, k), -inf where empty
    indices: Array  # (n_queries, k) int32, -1 where empty
    totals: Array  # (n_queries,) float64: sum of |score| over all candidates; or (0,)


# ---------------------------------------------------------------- knowledge graphs


class GraphTables(NamedTuple):
    """Parameters of a knowledge-graph model, or anything shaped like them."""

    rows: Array  # (n_rows, d): entities, then relations, then their reciprocals


class Graph(NamedTuple):
    """What kind of model the rows make up."""

    n_entities: int
    n_relations: int
    reciprocal: bool  # heads are predicted by relation rows of their own
    complex: bool  # a row is d/2 real parts, then d/2 imaginary parts (ComplEx); else DistMult


class Links(NamedTuple):
    """Questions with an answer: which entity stands at the other end of a relation."""

    subjects: Array  # (n,) int32 row
    relations: Array  # (n,) int32 row
    flips: Array  # (n,) bool: read the relation's row conjugated
    targets: Array  # (n,) int32 row, the answer


class TripleExamples(NamedTuple):
    """Training triples in the order of their visits."""

    heads: Array  # (n,) int32
    relations: Array  # (n,) int32, from 0
    tails: Array  # (n,) int32
    weights: Array  # (n,) dtype of the rows; 0 skips the triple
    ids: Array  # (n,) int64, keys of the random draws


class GraphSampler(NamedTuple):
    """Where the candidates of a step come from."""

    n_negatives: int  # -1: all other entities
    seed: int
    fixed: bool  # the same negatives in every epoch


class GraphHyper(NamedTuple):
    """Scalars of all steps of a run, float64; kernels cast what they use to the rows' dtype."""

    sides: int  # 1: tails are predicted, 2: tails and heads
    loss: int
    optimizer: int
    learning_rate: float
    decline: float  # of the learning rate, a step
    regularization: float
    epsilon: float
    beta1: float
    beta2: float
    unit_norm: bool


class RowState(NamedTuple):
    """All that training changes; what the optimizer does without is (0, d) or (0,)."""

    rows: Array  # (n_rows, d)
    momenta: Array  # (n_rows, d): Adam's first moments
    squares: Array  # (n_rows, d): Adagrad's sums, Adam's second moments
    clocks: Array  # (n_rows,) int64: dense Adam's, the time each row was last brought up to


class TripleRecord(NamedTuple):
    """Row changes added up per triple, in the order of visits."""

    changes: Array  # (n, S, d): rows of head, tail, relation, its reciprocal


class RowAdjoint(NamedTuple):
    """Derivatives of a block of quantities by rows and optimizer state, one quantity a lane."""

    rows: Array  # (n_rows, d, LANES)
    momenta: Array  # (n_rows, d, LANES) or (0, d, LANES)
    squares: Array  # (n_rows, d, LANES) or (0, d, LANES)


class GraphCurvature(NamedTuple):
    """What Curvature Rollback carries backwards for some rows of a model of triples."""

    matrices: Array  # (m, d, d): the end of each row by what it is now
    momenta: Array  # (m, d, d) or (0, d, d): the same by Adam's momentum
    slots: Array  # (n_rows,) int32: which matrix is that of each row, -1: none
    touched: Array  # (m,) int64: touches so far; -1: the matrix has vanished
    growth: Array  # (m,) float64: the greatest root mean square gain seen


class GraphLog(NamedTuple):
    """What some steps saw, one entry a step: place p of a visit holds steps p * sides + side."""

    slots: Array  # (n,) int32: place of every visit in the log, -1 if it is not in it
    n_candidates: Array  # (m,) int32
    candidates: Array  # (m, C) int32: distinct rows, the answer first
    counts: Array  # (m, C), dtype of the rows: how often each was drawn
    rows: Array  # (m, C + 2, d): subject, relation, candidates before the step
    momenta: Array  # as rows, or (0, ...): before the catch-up and the step
    squares: Array  # as rows, or (0, ...): before the catch-up and the step
    clocks: Array  # (m, C + 2) int64, or (0, C + 2): before the catch-up
    settled: RowState  # dense Adam: momenta, squares, clocks before the epoch's end settles them


class GraphPoint(NamedTuple):
    """The training loss of a model of triples at fixed rows, a mean over epochs."""

    rows: Array  # (n_rows, d)
    graph: Graph
    examples: TripleExamples
    sampler: GraphSampler
    hyper: GraphHyper
    first: int  # epochs `first` to `behind` draw the negatives
    behind: int


class TripleRows(NamedTuple):
    """What every triple changed in its rows, by training index, and where each row occurs."""

    changes: Array  # (n, S, d): rows of head, tail, relation, its reciprocal; see TripleRecord
    heads: Array  # (n,) int32
    relations: Array  # (n,) int32, from 0
    tails: Array  # (n,) int32
    entity_pointers: Array  # (n_entities + 1,) int64
    by_entity: Array  # int32: triples of each entity, in either place, ascending, each once
    relation_pointers: Array  # (n_relations + 1,) int64
    by_relation: Array  # (n,) int32: triples of each relation, ascending


class LinkGroups(NamedTuple):
    """Links that differ in nothing but the target, one group each, and the triples they touch."""

    subjects: Array  # (n_groups,) int32 row
    relations: Array  # (n_groups,) int32 row
    flips: Array  # (n_groups,) bool
    targets: Array  # (n_links,) int32 row, group after group
    links: Array  # (n_links,) int64: number of the link
    pointers: Array  # (n_groups + 1,) int64: bounds of each group's links
    touched: Array  # int32: triples that move the group's subject or relation, ascending
    touched_pointers: Array  # (n_groups + 1,) int64


class Influences(NamedTuple):
    """A sparse matrix of influences, row by row."""

    pointers: Array  # (n_rows + 1,) int64
    indices: Array  # (m,) int32: training indices, ascending in a row
    values: Array  # (m,)
