"""Explanations of triples: what a reader sees, the paths, and what tables and files hold."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import pytest

from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.triple_explanations import TripleExplanations
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import DataError, ParameterError

mpl.use("Agg")

NAN = np.nan
TRAIN = [  # by training index
    ("brazil", "ally", "usa"),
    ("usa", "exports", "china"),
    ("brazil", "exports", "usa"),
    ("cuba", "exports", "china"),
    ("cuba", "aids", "brazil"),
    ("peru", "aids", "peru"),
    ("brazil", "aids", "china"),
    ("china", "exports", "brazil"),
    ("usa", "aids", "cuba"),
]


def triples(rows: list[tuple[str, str, str]], **others: Any) -> Triples:
    return Triples.from_arrays(*map(list, zip(*rows, strict=True)), **others)


DATA = triples(TRAIN, test=(["mars"], ["exports"], ["usa"]))  # mars only in a held-out triple


def explain(
    asked: list[tuple[str, str, str]],
    reasons: list[dict[int, float]],
    data: Triples = DATA,
    **changes: Any,
) -> TripleExplanations:
    """Explanations of triples by reasons: the influence of each training index, in order."""
    n, k = len(asked), max(map(len, reasons))
    train_index, influence = np.full((n, k), -1, np.int32), np.full((n, k), NAN, np.float32)
    for i, found in enumerate(reasons):
        train_index[i, : len(found)] = list(found)
        influence[i, : len(found)] = list(found.values())
    heads, relations, tails = (list(column) for column in zip(*asked, strict=True))
    arguments: dict[str, Any] = {
        "heads": data.entity_index(heads),
        "relations": data.relation_index(relations),
        "tails": data.entity_index(tails),
        "predict_head": np.zeros(n, bool),
        "prediction": np.full(n, 0.61),
        "quantity": "probability",
        "train_index": train_index,
        "influence": influence,
        "total_influence": None,
        "data": data,
        "method": "replay",
        "units": "effect",
        "proponents": True,
    }
    return TripleExplanations(**arguments | changes)


ASKED = [("brazil", "exports", "china"), ("usa", "aids", "cuba"), ("mars", "ally", "mars")]


@pytest.fixture
def ex() -> TripleExplanations:
    """Brazil's exports, a head that is an example itself, and a self loop of a stranger."""
    return explain(
        ASKED,
        [{0: 0.5, 1: 0.25, 6: -0.25}, {8: 0.4}, {}],
        predict_head=np.array([False, True, False]),
        prediction=np.array([0.61, 0.125, 0.0]),
        total_influence=np.array([1.25, 0.8, 0.0]),
        amplification=np.array([2.0, 5e4, NAN]),
    )


EXPECTED = {
    "query": [0, 0, 0, 1],
    "head": ["brazil"] * 3 + ["usa"],
    "relation": ["exports"] * 3 + ["aids"],
    "tail": ["china"] * 3 + ["cuba"],
    "predicted": ["tail"] * 3 + ["head"],
    "prediction": [0.61] * 3 + [0.125],
    "rank": [1, 2, 3, 1],
    "train_index": [0, 1, 6, 8],
    "train_head": ["brazil", "usa", "brazil", "usa"],
    "train_relation": ["ally", "exports", "aids", "aids"],
    "train_tail": ["usa", "china", "china", "cuba"],
    "influence": np.float32([0.5, 0.25, -0.25, 0.4]).tolist(),
    "side": ["same head", "relation and tail", "head and tail", "this very triple"],
    "coverage": pytest.approx([0.8] * 3 + [0.5]),
}


# -------------------------------------------------------------------- a sequence of them


def test_sequence(ex: TripleExplanations) -> None:
    assert len(ex) == 3
    assert [one.name for one in ex] == [
        "brazil — exports → china",
        "usa — aids → cuba",
        "mars — ally → mars",
    ]
    tail = ex[1:]
    assert isinstance(tail, TripleExplanations)
    assert tail.amplification is not None
    assert tail.amplification[0] == 5e4
    assert tail.quantity == "probability"
    with pytest.raises(IndexError):
        ex[3]


def test_one(ex: TripleExplanations) -> None:
    one = ex[-2]
    assert (one.head, one.relation, one.tail, one.asked) == ("usa", "aids", "cuba", "head")
    assert (len(one), one.prediction, one.amplification) == (1, 0.125, 5e4)
    assert one.train_index.tolist() == [8]
    assert one.side.tolist() == ["this very triple"]
    assert np.isnan(explain(ASKED[:1], [{0: 0.5}])[0].amplification)


@pytest.mark.parametrize("name", ["tails", "predict_head", "influence", "amplification"])
def test_shapes_must_agree(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} has shape \(5,\).*for 1 queries"):
        explain(ASKED[:1], [{0: 0.5}], **{name: np.zeros(5)})


# -------------------------------------------------------------------- what is shared


def side_by_hand(query: tuple[Any, Any, Any], example: tuple[Any, Any, Any]) -> str:
    """The table of the documentation, row by row."""
    (h, r, t), (head, relation, tail) = query, example
    rows = [
        (head == h and tail == t, ("head and tail", "this very triple")),
        (head == h, ("same head", "head and relation")),
        (tail == t, ("same tail", "relation and tail")),
        (head == t and tail == h, ("reversed", "relation, reversed")),
        (tail == h, ("head as tail", "relation, head as tail")),
        (head == t, ("tail as head", "relation, tail as head")),
        (True, ("other", "same relation")),
    ]
    return next(names[relation == r] for holds, names in rows if holds)


def test_sides_of_all_triples_against_the_table() -> None:
    rows = list(product("abc", "xy", "abc"))
    data = triples(rows)
    k = len(rows)
    ex = explain(rows, [dict.fromkeys(range(k), 1.0)] * k, data)
    expected = [[side_by_hand(query, example) for example in rows] for query in rows]
    assert ex.side.tolist() == expected
    assert {*np.unique(ex.side)} == {*ex.IN_WORDS} == {*ex.COLORS} == {*ex.SIDES} - {""}


def test_side_of_no_example(ex: TripleExplanations) -> None:
    assert ex.side[1:].tolist() == [["this very triple", "", ""], ["", "", ""]]


# -------------------------------------------------------------------- text


def test_because(ex: TripleExplanations) -> None:
    assert ex.because(0, n=1) == (
        "brazil — exports → china: probability 0.61, because of\n"
        "  +0.5  brazil — ally → usa  (same head)\n"
        "  (40% of the influence of all its training examples)\n"
        "  by way of\n"
        "    brazil —ally→ usa —exports→ china  (+0.75)"
    )
    assert "aids" not in ex.because(0, n=5)  # it lowered the probability


def test_because_of_a_head_under_a_chaotic_training_run(ex: TripleExplanations) -> None:
    assert ex.because(1) == (
        "usa — aids → cuba: probability 0.125 of usa as head, because of\n"
        "  +0.4  usa — aids → cuba  (this very triple)\n"
        "  (50% of the influence of all its training examples)\n"
        "  (this training run amplifies small changes 5e+04 times, more than 1000: retraining "
        "may tell otherwise)"
    )
    assert repr(ex[1]) == ex.because(1)


def test_because_in_spite_of() -> None:
    ex = explain(ASKED[:1], [{6: -0.25, 7: -0.125, 0: 0.5}], proponents=False, quantity="score")
    assert ex.because(0) == (
        "brazil — exports → china: score 0.61, in spite of\n"
        "   -0.25  brazil — aids → china     (same head and tail)\n"
        "  -0.125  china — exports → brazil  (same relation, head and tail reversed)"
    )


def test_because_without_a_reason(ex: TripleExplanations) -> None:
    assert ex.because(2) == (
        "mars — ally → mars: probability 0; no training triple raised it.\n"
        "  (no training triple holds mars)"
    )
    alone = triples(TRAIN[5:6], test=(["mars"], ["hails"], ["venus"]))
    assert explain([("mars", "hails", "venus")], [{}], alone).because(0) == (
        "mars — hails → venus: probability 0.61; "
        "no training triple shares its head, its relation or its tail.\n"
        "  (no training triple holds mars)\n"
        "  (no training triple holds venus)\n"
        "  (no training triple holds hails)"
    )
    lowered = explain([("peru", "exports", "usa")], [{5: 0.2}], proponents=False)
    assert lowered.because(0).endswith("; no training triple lowered it.")


def test_repr(ex: TripleExplanations) -> None:
    assert repr(ex) == (
        "TripleExplanations(3 predictions, up to 3 proponents each, method='replay', "
        "units='effect', quantity='probability', 1 amplified more than 1000 times)"
    )
    assert "amplified" not in repr(ex[:1])
    assert "amplified" not in repr(explain(ASKED[:1], [{}]))


def test_html(ex: TripleExplanations) -> None:
    shown = ex._repr_html_()
    assert "<th>triple</th>" in shown
    assert "brazil — exports → china" in shown
    assert "probability 0.125 of usa as head" in shown
    assert "+0.5 brazil — ally → usa (same head)" in shown


ODD = [
    ("A: b/c", "→ of →", "$\\x$ <y>"),
    ("$\\x$ <y>", "is: a, b", "a — b"),
    ("self", "is: a, b", "self"),
]


def test_odd_names(tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    data = triples(ODD)
    ex = explain([("A: b/c", "→ of →", "a — b"), ODD[2]], [{0: 0.5, 1: 0.25}, {2: 1.0}], data)
    assert "A: b/c —→ of →→ $\\x$ <y> —is: a, b→ a — b  (+0.75)" in ex.because(0)
    assert "self — is: a, b → self: probability 0.61, because of" in ex.because(1)
    assert "&lt;y&gt;" in ex._repr_html_()
    assert "<y>" not in ex._repr_html_()
    ex.save(tmp_path / "why.csv")
    with open(tmp_path / "why.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        tuple(row[f"train_{place}"] for place in ("head", "relation", "tail")) for row in rows
    ] == ODD
    figure, axes = plt.subplots(1, 2)
    ex.plot(0, axes[0])
    ex.plot_paths(0, axes[1])
    assert "$\\x$ <y>" in [text.get_text() for text in axes[1].texts]
    figure.canvas.draw()  # would fail if "$\\x$" were taken for a formula
    plt.close("all")


# -------------------------------------------------------------------- paths


def path_texts(ex: TripleExplanations, i: int = 0, **arguments: Any) -> list[str]:
    return [repr(path) for path in ex.paths(i, **arguments)]


def test_paths() -> None:
    every = {j: 0.5 - 0.05 * j for j in range(len(TRAIN))}
    ex = explain([("brazil", "exports", "china"), ("china", "aids", "brazil")], [every, every])
    short = [
        "brazil —ally→ usa —exports→ china  (+0.95)",
        "brazil ←aids— cuba —exports→ china  (+0.65)",
    ]
    assert path_texts(ex, max_length=2) == short
    assert path_texts(ex) == [
        *short,
        "brazil —ally→ usa —aids→ cuba —exports→ china  (+0.95)",
        "brazil ←aids— cuba ←aids— usa —exports→ china  (+0.85)",
    ]
    assert path_texts(ex, 1, max_length=2) == [
        "china ←exports— usa ←ally— brazil  (+0.95)",
        "china ←exports— cuba —aids→ brazil  (+0.65)",
    ]
    path = ex.paths(0)[1]
    assert path.train_index.tolist() == [4, 3]
    assert path.forward.tolist() == [False, True]
    assert path.influences == pytest.approx([0.3, 0.35])
    assert [DATA.entity_name(e) for e in path.entities] == ["brazil", "cuba", "china"]


def test_the_strongest_of_parallel_triples_stands_for_them() -> None:
    weak_first = explain(ASKED[:1], [{0: 0.1, 2: 0.3, 1: 0.2}])
    assert path_texts(weak_first) == ["brazil —exports→ usa —exports→ china  (+0.5)"]
    equal = explain(ASKED[:1], [{2: 0.3, 0: 0.3, 1: 0.2}])
    assert path_texts(equal) == ["brazil —exports→ usa —exports→ china  (+0.5)"]


def test_paths_keep_to_the_direction_asked_for() -> None:
    mixed = {0: 0.5, 3: -0.125, 1: -0.25, 4: -0.5}
    assert path_texts(explain(ASKED[:1], [mixed])) == []
    against = explain(ASKED[:1], [mixed], proponents=False)
    assert path_texts(against) == ["brazil ←aids— cuba —exports→ china  (-0.625)"]
    assert "by way of" not in explain(ASKED[:1], [mixed]).because(0)


def test_what_has_no_paths() -> None:
    direct = explain(ASKED[:1], [{6: 0.5, 7: 0.25}])  # no other entity between
    assert path_texts(direct) == []
    every = dict.fromkeys(range(len(TRAIN)), 1.0)
    loops = explain([("brazil", "ally", "brazil"), ("peru", "ally", "usa")], [every, every])
    assert path_texts(loops) == []
    assert path_texts(loops, 1) == []
    assert path_texts(explain([("mars", "ally", "usa")], [every])) == []
    assert path_texts(explain(ASKED[:1], [{}])) == []


@pytest.mark.parametrize("max_length", [0, 1, 4, True, 2.5])
def test_length_of_paths(max_length: Any, ex: TripleExplanations) -> None:
    with pytest.raises(ParameterError, match="max_length must be 2 or 3"):
        ex.paths(0, max_length)


def paths_by_hand(rows: list[tuple[str, str, str]], start: str, goal: str) -> set[tuple[str, ...]]:
    linked = {frozenset((head, tail)) for head, _, tail in rows if head != tail}
    between = sorted({end for head, _, tail in rows for end in (head, tail)} - {start, goal})
    ways = [(start, x, goal) for x in between]
    ways += [(start, x, y, goal) for x in between for y in between if x != y]
    return {
        way for way in ways if all(frozenset(way[j : j + 2]) in linked for j in range(len(way) - 1))
    }


@pytest.mark.parametrize("seed", range(5))
def test_paths_against_all_ways(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(h, r, t) for h, r, t in product("abcdef", "xy", "abcdef") if rng.random() < 0.15]
    data = triples([*rows, ("a", "z", "a"), ("f", "z", "f")])
    values = np.sort(rng.random(len(rows)))[::-1]
    ex = explain([("a", "z", "f")], [dict(enumerate(values.tolist()))], data)
    found = [tuple(data.entity_name(e) for e in path.entities) for path in ex.paths()]
    assert len(set(found)) == len(found)
    assert set(found) == paths_by_hand(rows, "a", "f")
    for path in ex.paths():
        for row, forward, a, b in zip(
            path.train_index, path.forward, path.entities, path.entities[1:], strict=False
        ):
            ends = (a, b) if forward else (b, a)
            assert (data.heads[row], data.tails[row]) == ends
        assert path.influence == pytest.approx(float(ex.influence[0, path.train_index].sum()))


# -------------------------------------------------------------------- pictures


def test_plot(ex: TripleExplanations) -> None:
    from matplotlib import pyplot as plt

    ax = ex.plot(0)
    assert ax.get_title() == "brazil — exports → china: probability 0.61"
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["brazil — ally → usa", "usa — exports → china", "brazil — aids → china"]
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["same head", "same relation and tail", "same head and tail"]
    plt.close("all")


def arrows(ax: Any) -> dict[tuple[float, float], Any]:
    """Arrows by the horizontal places of their two ends."""
    found = {}
    for text in ax.texts:
        if (arrow := getattr(text, "arrow_patch", None)) is not None:
            found[round(text.xyann[0], 3), round(text.xy[0], 3)] = arrow
    return found


def test_plot_paths() -> None:
    from matplotlib import colors
    from matplotlib import pyplot as plt

    ex = explain(ASKED[:1], [{0: 0.4, 3: 0.2, 4: 0.2, 1: 0.1}])
    ax = ex.plot_paths(0)
    assert ax.get_title() == "brazil — exports → china: probability 0.61"
    places = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert places["brazil"] == (0, 0.5)
    assert places["china"] == (1, 0.5)
    assert places["usa"][0] == places["cuba"][0] == 0.5
    assert places["usa"][1] > places["cuba"][1]  # the stronger path above
    assert places["ally"] == pytest.approx((0.25, 0.75))
    drawn = arrows(ax)
    assert set(drawn) == {(0, 0.5), (0.5, 1), (0.5, 0)}  # cuba's aids point to brazil
    assert drawn[0, 0.5].get_linewidth() == pytest.approx(2 * drawn[0.5, 0].get_linewidth())
    blue = drawn[0, 0.5].get_edgecolor()
    against = explain(ASKED[:1], [{0: -0.4, 1: -0.1}], proponents=False).plot_paths(0)
    red = arrows(against)[0, 0.5].get_edgecolor()
    assert blue == colors.to_rgba("#0072b2")
    assert red == colors.to_rgba("#d55e00")
    ax.figure.canvas.draw()
    plt.close("all")


def test_plot_paths_draws_a_shared_triple_once_and_nothing_is_no_error(
    ex: TripleExplanations,
) -> None:
    from matplotlib import pyplot as plt

    every = {j: 0.5 - 0.05 * j for j in range(len(TRAIN))}
    ax = explain(ASKED[:1], [every]).plot_paths(0)
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("ally") == 1  # two paths take it
    assert sorted(t for t in texts if t) == sorted(
        ["brazil", "china", "usa", "cuba", "ally", "exports", "exports", "aids", "aids"]
    )
    _, given = plt.subplots()
    assert ex.plot_paths(2, ax=given) is given
    assert [text.get_text() for text in given.texts] == ["mars", "no path among these triples"]
    plt.close("all")


# -------------------------------------------------------------------- tables and files


def check_table(columns: dict[str, list[object]]) -> None:
    assert list(columns) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert list(columns[name]) == expected, name


def test_tables(ex: TripleExplanations, tmp_path: Path) -> None:
    check_table({name: column.tolist() for name, column in ex.to_dict().items()})
    check_table(ex.to_pandas().to_dict(orient="list"))
    check_table(ex.to_polars().to_dict(as_series=False))
    check_table(ex.to_arrow().to_pydict())
    ex.save(tmp_path / "why.parquet")
    check_table(pq.read_table(tmp_path / "why.parquet").to_pydict())
    assert len(ex[2:].to_pandas()) == 0


def test_labels_and_whole_numbers() -> None:
    data = Triples.from_arrays(
        [1, 2], [7, 7], [2, 3], entity_labels={1: "one", 3: "three"}, relation_labels=["before"]
    )
    ex = explain([(1, 7, 3)], [{1: 0.5}], data)  # type: ignore[list-item]
    columns = {name: column.tolist() for name, column in ex.to_dict().items()}
    assert columns["train_head"] == [2]
    assert columns["train_head_label"] == [""]
    assert columns["tail_label"] == columns["train_tail_label"] == ["three"]
    assert columns["relation_label"] == ["before"]
    assert "2 — before → three" in ex.because(0)


def test_save_and_load_npz(ex: TripleExplanations, tmp_path: Path) -> None:
    ex.save(tmp_path / "why.npz")
    again = TripleExplanations.load(tmp_path / "why.npz", DATA)
    assert repr(again) == repr(ex)
    names = ["heads", "relations", "tails", "predict_head", "prediction", "train_index"]
    for name in [*names, "influence", "total_influence", "amplification"]:
        found, expected = getattr(again, name), getattr(ex, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    bare = explain(ASKED[:1], [{0: 0.5}])
    bare.save(tmp_path / "bare.npz")
    assert TripleExplanations.load(tmp_path / "bare.npz", DATA).amplification is None


def test_load_refuses_other_data_and_other_families(ex: TripleExplanations, tmp_path: Path) -> None:
    ex.save(tmp_path / "why.npz")
    with pytest.raises(DataError, match="other training data"):
        TripleExplanations.load(tmp_path / "why.npz", triples(TRAIN[:5]))
    pairs = Interactions.from_arrays([0, 1], [0, 1])
    with pytest.raises(DataError, match=r"cannot read explanations from .*users"):
        Explanations.load(tmp_path / "why.npz", pairs)
