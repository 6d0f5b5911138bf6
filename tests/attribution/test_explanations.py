"""Explanations: what a reader sees, and what every table and file holds."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastinfluence.attribution.explanations import Explanations
from fastinfluence.data.interactions import Interactions
from fastinfluence.errors import DataError, MissingExtraError, ParameterError

mpl.use("Agg")

# training index:   0        1         2        3        4
TRAIN_USERS = ["ann", "ann", "bob", "bob", "cyd"]
TRAIN_ITEMS = [10, 20, 10, 30, 30]
VALUES = [5.0, 3.5, 1.0, 2.0, 4.0]
NAN = np.nan


@pytest.fixture
def data() -> Interactions:
    return Interactions.from_arrays(
        ["ann", "ann", "bob", "bob", "cyd", "dan"],
        [*TRAIN_ITEMS, 40],
        [*VALUES, 1.0],
        item_labels={10: "Jaws", 20: "<Alien>", 30: "Brazil", 40: "Heat"},
    ).select(np.arange(5))  # dan and Heat have no example


def explain(data: Interactions, /, **changes: Any) -> Explanations:
    """(ann, Brazil), (bob, Jaws) which is an example itself, and (dan, Heat)."""
    arguments: dict[str, Any] = {
        "users": data.user_index(["ann", "bob", "dan"]),
        "items": data.item_index([30, 10, 40]),
        "prediction": np.array([4.25, 1.5, 3.0], np.float32),
        "train_index": np.array([[0, 4, 3], [2, 0, -1], [-1, -1, -1]], np.int32),
        "influence": np.array([[0.41, 0.1, -0.25], [0.5, -0.1, NAN], [NAN] * 3], np.float32),
        "total_influence": np.array([0.95, 0.6, 0.0], np.float32),
        "data": data,
        "method": "gradient-rollback",
        "units": "effect",
        "proponents": True,
    }
    return Explanations(**arguments | changes)


@pytest.fixture
def ex(data: Interactions) -> Explanations:
    return explain(data)


EXPECTED = {
    "query": [0, 0, 0, 1, 1],
    "user": ["ann", "ann", "ann", "bob", "bob"],
    "item": [30, 30, 30, 10, 10],
    "prediction": [4.25, 4.25, 4.25, 1.5, 1.5],
    "rank": [1, 2, 3, 1, 2],
    "train_index": [0, 4, 3, 2, 0],
    "train_user": ["ann", "cyd", "bob", "bob", "ann"],
    "train_item": [10, 30, 30, 10, 10],
    "train_value": [5.0, 4.0, 2.0, 1.0, 5.0],
    "influence": np.float32([0.41, 0.1, -0.25, 0.5, -0.1]).tolist(),
    "side": ["user", "item", "item", "both", "item"],
    "coverage": pytest.approx([0.8, 0.8, 0.8, 1.0, 1.0]),
    "item_label": ["Brazil", "Brazil", "Brazil", "Jaws", "Jaws"],
    "train_item_label": ["Jaws", "Brazil", "Brazil", "Jaws", "Jaws"],
}


# -------------------------------------------------------------------- as a sequence


def test_sequence(ex: Explanations) -> None:
    assert len(ex) == 3
    assert [one.user for one in ex] == ["ann", "bob", "dan"]
    assert ex[-1].item == 40
    with pytest.raises(IndexError):
        ex[3]
    tail = ex[1:]
    assert isinstance(tail, Explanations)
    assert len(tail) == 2
    assert tail.because(0) == ex.because(1)
    assert tail.to_dict()["query"].tolist() == [0, 0]
    np.testing.assert_array_equal(tail.coverage, ex.coverage[1:])


def test_one_explanation(ex: Explanations) -> None:
    one = ex[1]
    assert len(one) == 2
    assert one.name == "bob → Jaws"
    assert one.prediction == 1.5
    assert one.train_index.tolist() == [2, 0]
    assert one.influence.tolist() == np.float32([0.5, -0.1]).tolist()
    assert one.side.tolist() == ["both", "item"]
    assert one.coverage == pytest.approx(1.0)


def test_side_and_coverage(data: Interactions) -> None:
    ex = explain(data)
    assert ex.side.tolist() == [["user", "item", "item"], ["both", "item", ""], ["", "", ""]]
    np.testing.assert_allclose(ex.coverage, [0.8, 1.0, NAN], rtol=1e-6)
    assert (ex.coverage[:2] <= 1).all()
    far = explain(data, train_index=np.array([[2, -1, -1], [1, -1, -1], [0, -1, -1]]))
    assert far.side[:, 0].tolist() == ["other"] * 3
    assert np.isnan(explain(data, total_influence=None).coverage).all()


@pytest.mark.parametrize("name", ["items", "prediction", "influence", "total_influence"])
def test_shapes_that_do_not_fit(data: Interactions, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} has shape .*3 queries"):
        explain(data, **{name: np.zeros((2, 3), np.float32)})


# -------------------------------------------------------------------- for people


def test_because(ex: Explanations) -> None:
    assert ex.because(0) == (
        "ann → Brazil: predicted 4.25, because of\n"
        "  +0.41  ann → Jaws: 5    (same user)\n"
        "   +0.1  cyd → Brazil: 4  (same item)\n"
        "  (54% of the influence of all its training examples)"
    )
    assert ex.because(0, n=1).count("→") == 2
    assert "(this very pair)" in ex.because(1)
    assert repr(ex[0]) == ex.because(0)
    with pytest.raises(ParameterError, match="at least 1, not 0"):
        ex.because(0, n=0)


def test_because_without_a_reason(data: Interactions) -> None:
    assert explain(data).because(2) == (
        "dan → Heat: predicted 3; no training example shares its user or its item."
    )
    assert repr(explain(data)[2]) == explain(data).because(2)
    only_against = np.array([[-0.41, -0.1, -0.25], [0.5, -0.1, NAN], [NAN] * 3])
    assert explain(data, influence=only_against).because(0) == (
        "ann → Brazil: predicted 4.25; no training example raised it."
    )


def test_because_of_opponents_and_of_ranks(data: Interactions) -> None:
    ex = explain(
        data,
        train_index=np.array([[3, 0, 4], [0, 2, -1], [-1, -1, -1]]),
        influence=np.array([[-0.25, 0.41, 0.1], [-0.1, 0.5, NAN], [NAN] * 3]),
        total_influence=None,
        units="rank",
        proponents=False,
    )
    assert ex.because(0) == (
        "ann → Brazil: predicted 4.25, in spite of\n"
        "  -0.25  bob → Brazil: 2  (same item)\n"
        "  (these numbers order the examples; they do not measure a change)"
    )


def test_values_the_data_never_had_are_not_shown(data: Interactions) -> None:
    bare = Interactions.from_arrays(TRAIN_USERS, TRAIN_ITEMS)
    ex = explain(data, data=bare)
    assert "ann → 10  (same user)" in ex.because(0)


def test_repr(ex: Explanations) -> None:
    assert repr(ex) == (
        "Explanations(3 predictions, up to 3 proponents each, "
        "method='gradient-rollback', units='effect')"
    )


def test_html_is_escaped_and_cut(data: Interactions) -> None:
    ex = explain(data, items=data.item_index([20, 10, 40]))
    shown = ex._repr_html_()
    assert "ann → &lt;Alien&gt;" in shown
    assert "<Alien>" not in shown
    assert "+0.41 ann → Jaws: 5 (same user)" in shown
    assert "more" not in shown
    many = {name: np.repeat(getattr(ex, name), 4, axis=0) for name in ("users", "items")}
    for name in ("prediction", "train_index", "influence", "total_influence"):
        many[name] = np.repeat(getattr(ex, name), 4, axis=0)
    assert "and 7 more" in explain(data, **many)._repr_html_()


def test_plot(ex: Explanations) -> None:
    from matplotlib import pyplot as plt

    ax = ex.plot(0)
    assert ax.get_title() == "ann → Brazil: predicted 4.25"
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["ann → Jaws: 5", "cyd → Brazil: 4", "bob → Brazil: 2"]
    widths = {round(bar.get_y() + 0.4): bar.get_width() for bar in ax.patches}
    assert widths == pytest.approx({0: 0.41, 1: 0.1, 2: -0.25})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["same user", "same item"]
    _, given = plt.subplots()
    assert ex.plot(2, ax=given) is given  # nothing to draw is no error
    plt.close("all")


# -------------------------------------------------------------------- tables and files


def check_table(columns: dict[str, list[object]]) -> None:
    assert list(columns) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert list(columns[name]) == expected, name


def test_to_dict(ex: Explanations) -> None:
    columns = ex.to_dict()
    assert all(type(column) is np.ndarray for column in columns.values())
    check_table({name: column.tolist() for name, column in columns.items()})


def test_to_pandas(ex: Explanations) -> None:
    frame = ex.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["user"].dtype == pd.Series(["ann"]).dtype
    check_table(frame.to_dict(orient="list"))


def test_to_polars(ex: Explanations) -> None:
    frame = ex.to_polars()
    assert frame.schema["user"] == pl.String
    check_table(frame.to_dict(as_series=False))


def test_to_arrow_and_its_stream(ex: Explanations) -> None:
    table = ex.to_arrow()
    assert pa.types.is_dictionary(table.schema.field("user").type)
    assert table["side"].chunk(0).dictionary.to_pylist() == ["user", "item", "both"]
    check_table(table.to_pydict())
    check_table(pa.table(ex).to_pydict())
    check_table(pl.DataFrame(ex).to_dict(as_series=False))


def test_no_rows_at_all(ex: Explanations) -> None:
    nothing = ex[2:]
    assert nothing.to_arrow().num_rows == 0
    assert len(nothing.to_pandas()) == 0
    assert len(nothing.to_polars()) == 0
    assert ex[:0].to_dict()["user"].tolist() == []


def test_user_labels(data: Interactions) -> None:
    labelled = Interactions.from_arrays([1, 2], [1, 2], user_labels=["Ann", "Bob"])
    ex = explain(
        data,
        data=labelled,
        users=labelled.user_index([1, 2, 2]),
        items=labelled.item_index([2, 2, 2]),
        train_index=np.array([[0, -1, -1], [1, -1, -1], [-1, -1, -1]]),
    )
    columns = ex.to_dict()
    assert columns["user"].tolist() == [1, 2]
    assert columns["user_label"].tolist() == ["Ann", "Bob"]
    assert columns["train_user_label"].tolist() == ["Ann", "Bob"]
    assert "item_label" not in columns


def test_save_parquet(ex: Explanations, tmp_path: Path) -> None:
    ex.save(tmp_path / "why.parquet")
    check_table(pq.read_table(tmp_path / "why.parquet").to_pydict())


def test_save_csv(ex: Explanations, tmp_path: Path) -> None:
    ex.save(str(tmp_path / "why.csv"))
    with open(tmp_path / "why.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(EXPECTED)
    assert [row["influence"] for row in rows] == ["0.41", "0.1", "-0.25", "0.5", "-0.1"]
    assert [row["train_item_label"] for row in rows] == EXPECTED["train_item_label"]


def test_csv_quotes_what_csv_must_quote(data: Interactions, tmp_path: Path) -> None:
    labels = {10: "Good, Bad", 20: 'so-called "Ugly"', 30: "two\r\nlines"}
    odd = Interactions.from_arrays(TRAIN_USERS, TRAIN_ITEMS, item_labels=labels)
    ex = explain(data, data=odd, items=np.array([0, 1, 2], np.int32))
    ex.save(tmp_path / "why.csv")
    with open(tmp_path / "why.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("item_label", "train_item_label"):
        assert [row[name] for row in rows] == ex.to_dict()[name].tolist()
    assert {row["item_label"] for row in rows} == {labels[10], labels[20]}
    assert {row["train_item_label"] for row in rows} == {labels[10], labels[30]}


def test_save_and_load_npz(ex: Explanations, data: Interactions, tmp_path: Path) -> None:
    ex.save(tmp_path / "why.npz")
    again = Explanations.load(tmp_path / "why.npz", data)
    assert repr(again) == repr(ex)
    assert again.proponents is True
    for name in ("users", "items", "prediction", "train_index", "influence", "total_influence"):
        found, expected = getattr(again, name), getattr(ex, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    explain(data, total_influence=None).save(tmp_path / "bare.npz")
    assert Explanations.load(tmp_path / "bare.npz", data).total_influence is None


def test_load_refuses_other_data(ex: Explanations, data: Interactions, tmp_path: Path) -> None:
    ex.save(tmp_path / "why.npz")
    with pytest.raises(DataError, match="other training data"):
        Explanations.load(tmp_path / "why.npz", data.select(np.arange(4)))


def test_load_refuses_what_it_cannot_read(
    ex: Explanations, data: Interactions, tmp_path: Path
) -> None:
    ex.save(tmp_path / "why.npz")
    whole = (tmp_path / "why.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    np.save(tmp_path / "array.npy", np.ones(2))
    names = ["cut.npz", "text.npz", "empty.npz", "other.npz", "array.npy", "absent.npz"]
    for name in names:
        with pytest.raises(DataError, match=f"cannot read explanations from .*{name}"):
            Explanations.load(tmp_path / name, data)


def test_save_refuses_other_suffixes(ex: Explanations, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'why\.xlsx'.*\.parquet, \.csv, \.npz"):
        ex.save(tmp_path / "why.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "call", "install"),
    [
        ("pandas", "to_pandas", "pip install pandas"),
        ("polars", "to_polars", "pip install polars"),
        ("pyarrow", "to_arrow", r"pip install 'fastinfluence\[arrow\]'"),
        ("pyarrow", "__arrow_c_stream__", r"pip install 'fastinfluence\[arrow\]'"),
        ("matplotlib", "plot", r"pip install 'fastinfluence\[plot\]'"),
    ],
)
def test_missing_extras(
    ex: Explanations, monkeypatch: pytest.MonkeyPatch, package: str, call: str, install: str
) -> None:
    def absent(name: str, *args: object) -> object:
        if name.startswith(package):
            raise ImportError(name)
        return builtins.__import__(name)

    monkeypatch.setattr("fastinfluence.storage.tables.importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match=f"needs {package}, .*{install}"):
        getattr(ex, call)()
