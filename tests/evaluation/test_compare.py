"""`compare` on small planted models: the table, its files and its picture."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted import ratings
from scipy.sparse import csr_array

import fastinfluence as fi
from fastinfluence import GradientRollback, MatrixFactorization
from fastinfluence.attribution.objectives import Function, Margin, Mean, Objective
from fastinfluence.errors import DataError, MissingExtraError, ParameterError, RunDirectoryError
from fastinfluence.evaluation import (
    Comparison,
    bootstrap_interval,
    compare,
    leave_one_out,
    linear_datamodeling_score,
    relative_error,
    sample_examples,
    scale,
    spearman,
    subset_removal,
    top1_ratio,
)

PAIRS = [(user, user % 7) for user in range(6)]
ENDS = ("", "_low", "_high")


@pytest.fixture(scope="module")
def model():
    return fit()


def fit(rng=0):
    data = ratings(30, 20, 400)
    return MatrixFactorization(n_factors=4, n_epochs=4, learning_rate=0.05, rng=rng).fit(data)


@pytest.fixture(scope="module")
def truth(model):
    return leave_one_out(model, PAIRS)


class Known:
    """A method whose influence is known beforehand."""

    name, units = "known", "effect"

    def __init__(self, model, influence, name="known"):
        self.model, self.matrix, self.name = model, influence, name

    def influence(self, queries):
        assert isinstance(queries, Objective)
        return self.matrix


def test_the_truth_itself_is_right(model, truth):
    (row,) = compare([Known(model, truth.change)], PAIRS, truth=truth).rows
    assert row["method"] == "known"
    assert row["units"] == "effect"
    assert row["n_queries"] == 6
    for name in ("spearman_adjacent", "spearman_all", "scale", "top1_ratio"):
        assert [row[name + end] for end in ENDS] == pytest.approx([1, 1, 1])
    assert row["spearman_adjacent_min"] == pytest.approx(1)
    assert row["relative_error"] == pytest.approx(0, abs=1e-12)
    assert 0 <= row["seconds"] < 1


@pytest.mark.parametrize("kind", [np.asarray, csr_array])
def test_every_figure(model, truth, kind):
    noise = np.random.default_rng(0).standard_normal(truth.change.shape)
    estimate = 5 * truth.change + 0.05 * noise
    comparison = compare([Known(model, kind(estimate))], PAIRS, truth=truth, bootstrap=200)
    np.testing.assert_array_equal(comparison.estimates["known"], estimate)
    (row,) = comparison.rows
    rng = int(np.random.default_rng(0).integers(2**62))
    data, pairs = model.data_, np.array(PAIRS)
    for name, metric, middle in (
        ("spearman_adjacent", spearman, np.mean),
        ("spearman_all", spearman, np.mean),
        ("scale", scale, np.median),
        ("relative_error", relative_error, np.mean),
        ("top1_ratio", top1_ratio, np.mean),
    ):
        values = []
        for q, (user, item) in enumerate(pairs):
            own = (data.users == user) | (data.items == item)
            some = slice(None) if name == "spearman_all" else own
            values.append(metric(estimate[q, some], truth.change[q, some]))
        assert row[name] == pytest.approx(middle(values))
        ends = bootstrap_interval(values, 200, rng=rng, statistic=middle)
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(ends)
        if name == "spearman_adjacent":
            assert row["spearman_adjacent_min"] == pytest.approx(min(values))


def test_end_to_end(model, tmp_path):
    why = GradientRollback(model)
    comparison = compare([why], PAIRS, adjacent=20, others=50, path=tmp_path / "loo")
    assert isinstance(comparison, Comparison)
    train = sample_examples(model, PAIRS, 20, 50)
    np.testing.assert_array_equal(comparison.truth.train_index, train)
    expected = why.influence(PAIRS, dense=True)[:, train]
    np.testing.assert_array_equal(comparison.estimates["gradient-rollback"], expected)
    (row,) = comparison.rows
    assert 0.3 < row["spearman_adjacent"] < 1
    assert row["spearman_adjacent_low"] < row["spearman_adjacent"] < row["spearman_adjacent_high"]
    again = compare([why], PAIRS, adjacent=20, others=50, path=tmp_path / "loo")
    assert {**again.rows[0], "seconds": 0} == {**row, "seconds": 0}
    with pytest.raises(RunDirectoryError, match="removals"):
        compare([why], PAIRS, adjacent=20, others=51, path=tmp_path / "loo")


def test_given_examples_and_several_methods(model):
    why = GradientRollback(model)
    methods = {"rollback": why, "doubled": Known(model, 2 * why.influence(PAIRS))}
    comparison = compare(methods, PAIRS, train=range(0, 400, 2))
    first, second = comparison.rows
    assert (first["method"], second["method"]) == ("rollback", "doubled")
    assert second["scale"] == pytest.approx(first["scale"] / 2)
    assert second["spearman_all"] == pytest.approx(first["spearman_all"])
    assert comparison.truth.train_index.tolist() == list(range(0, 400, 2))


def test_a_mean_of_queries(model):
    objective = Mean(PAIRS)
    (row,) = compare([GradientRollback(model)], objective, others=0, adjacent=60).rows
    assert row["n_queries"] == 1
    assert row["spearman_adjacent"] > 0.3


def test_too_few_adjacent_examples(model):
    comparison = compare([GradientRollback(model)], PAIRS, adjacent=2, others=4)
    (row,) = comparison.rows
    assert row["n_queries"] == 0
    for name in ("spearman_adjacent", "scale", "relative_error", "top1_ratio"):
        assert np.isnan([row[name + end] for end in ENDS]).all()
    assert np.isfinite(row["spearman_all"])
    assert "– [–, –]" in repr(comparison)


# ---------------------------------------------------------------- bad input


def test_methods_that_cannot_be_compared(model, truth):
    why = GradientRollback(model)
    for methods, message in (
        ([why, GradientRollback(fit(rng=1))], "mapping of name to method"),
        ({"a": why, "b": GradientRollback(fit(rng=1))}, "'a' and 'b' explain different models"),
        ([], "no method to compare"),
        (why, "methods is a sequence"),
        ([model], "no attribution method"),
    ):
        with pytest.raises(ParameterError, match=message):
            compare(methods, PAIRS)
    assert compare({"a": why, "b": GradientRollback(fit())}, PAIRS, truth=truth).rows[1]["units"]


def test_an_objective_a_method_cannot_explain(model):
    def value(parameters):
        raise AssertionError("nothing is retrained")

    with pytest.raises(ParameterError, match="Replay"):
        compare([GradientRollback(model)], Function(value))


def test_a_truth_about_something_else(model, truth):
    methods = [GradientRollback(model)]
    for queries in (PAIRS[:3], PAIRS[::-1], Mean(PAIRS)):
        with pytest.raises(DataError, match="make it with leave_one_out"):
            compare(methods, queries, truth=truth)
    for given in ({"train": [0]}, {"path": "somewhere"}):
        with pytest.raises(ParameterError, match="would have no use"):
            compare(methods, PAIRS, truth=truth, **given)
    with pytest.raises(ParameterError, match="bootstrap"):
        compare(methods, PAIRS, truth=truth, bootstrap=0)


# ---------------------------------------------------------------- what is shown and written


@pytest.fixture(scope="module")
def comparison(model, truth):
    return compare([GradientRollback(model), Known(model, truth.change)], PAIRS, truth=truth)


def test_table(comparison):
    head, names, first, second, note = repr(comparison).splitlines()
    assert head == "6 queries against 400 retrainings, one example left out in each"
    assert first.startswith("gradient-rollback*  ")
    assert second.startswith("known  ")
    assert "1.000 [1.000, 1.000]" in second
    assert note.startswith("* orders")
    for word in ("Spearman adjacent", "least", "all", "scale", "error", "top-1", "seconds"):
        assert word in names
        end = names.index(word) + len(word)  # numbers stand right under their heads
        assert first[:end][-1].isdigit() or first[:end][-1] == "]"
        assert first[end : end + 2] in ("", "  ")


def test_frames_and_files(comparison, tmp_path):
    frame = comparison.to_pandas()
    assert frame["method"].tolist() == ["gradient-rollback", "known"]
    assert frame["scale"].tolist() == [row["scale"] for row in comparison.rows]
    comparison.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["spearman_all"]) for row in read] == frame["spearman_all"].tolist()
    comparison.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["n_queries"], content["n_retrainings"]) == (6, 400)
    assert content["methods"] == comparison.rows


def test_json_has_no_nan(model, tmp_path):
    compare([GradientRollback(model)], PAIRS, adjacent=0, others=4).to_json(tmp_path / "t.json")
    (row,) = json.loads((tmp_path / "t.json").read_text())["methods"]
    assert row["scale"] is None
    assert row["spearman_all"] is not None


def test_picture(comparison, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    figure = comparison.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert not pyplot.get_fignums()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["gradient-rollback", "known"]
    for axes, name in zip(panels, comparison.estimates, strict=True):
        points = np.concatenate([dots.get_offsets() for dots in axes.collections])
        drawn = np.column_stack(
            [comparison.estimates[name].ravel(), comparison.truth.change.ravel()]
        )
        np.testing.assert_array_equal(points[np.lexsort(points.T)], drawn[np.lexsort(drawn.T)])
        (line,) = axes.get_lines()
        np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert "order only" in panels[0].get_xlabel()
    shown = comparison.plot()
    assert pyplot.get_fignums()
    pyplot.close(shown)


def test_picture_without_matplotlib(comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fastinfluence\[plot\]"):
        comparison.plot(tmp_path / "picture.png")


def test_queries_from_an_iterator(model, truth):
    why = GradientRollback(model)
    comparison = compare({"a": why, "b": why}, iter(PAIRS), truth=truth)
    assert (comparison.estimates["a"] == why.influence(PAIRS, dense=True)).all()
    assert (comparison.estimates["a"] == comparison.estimates["b"]).all()


def test_linear_datamodeling_scores(model, truth, tmp_path):
    subsets = [subset_removal(model, PAIRS, fraction, n_subsets=12) for fraction in (0.005, 0.1)]
    why = GradientRollback(model)
    methods = {"rollback": why, "truth": Known(model, truth.change)}
    comparison = compare(methods, PAIRS, truth=truth, subsets=subsets, bootstrap=100)
    for row, influence in zip(comparison.rows, (why.influence(PAIRS), truth.change), strict=True):
        for subset, name in zip(subsets, ("lds_0.005", "lds_0.1"), strict=True):
            found = linear_datamodeling_score(influence, subset.removals, subset.change)
            assert row[name] == pytest.approx(found.mean())
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert comparison.rows[1]["lds_0.005"] > 0.95
    assert comparison.rows[0]["lds_0.1"] < comparison.rows[1]["lds_0.1"]
    _, names, first, *_ = repr(comparison).splitlines()
    assert names.split()[-5:] == ["LDS", "0.5%", "LDS", "10%", "seconds"]
    assert first.split()[-3] == f"{comparison.rows[0]['lds_0.005']:.3f}"
    comparison.to_csv(tmp_path / "table.csv")
    assert "lds_0.1,lds_0.1_low,lds_0.1_high,seconds" in (tmp_path / "table.csv").read_text()
    with pytest.raises(DataError, match="about 6 queries, not these 3"):
        compare([why], PAIRS[:3], subsets=subsets)


def test_margins(model):
    (row,) = compare([GradientRollback(model)], Margin(PAIRS, 11), adjacent=30, others=0).rows
    assert row["spearman_adjacent"] > 0.3


def test_import_is_light():
    code = "import sys, fastinfluence.evaluation; print('scipy.stats' in sys.modules)"
    root = Path(fi.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "False\n", done.stderr
