"""``fastinfluence evaluate``: its tables, its settings, and what a killed call leaves."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from console import invoke, succeed, write_files

import fastinfluence as fi
from fastinfluence.storage import open_shards


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ratings, queries and trained runs."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


EVALUATE = ["--queries", "4", "--adjacent", "15", "--others", "20"]


def test_evaluate_writes_what_compare_finds(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "truth"
    text = succeed("evaluate", files / "run", *EVALUATE, "--out", out)
    model = fi.load(files / "run")
    queries = fi.evaluation.sample_queries(model, 4)
    methods = [fi.GradientRollback(model), fi.CurvatureRollback(model), fi.Replay(model)]
    expected = fi.evaluation.compare(methods, queries, adjacent=15, others=20)
    assert text.splitlines()[0] == repr(expected).splitlines()[0]
    assert f"written to {out}: table.csv, picture.png, table.json." in text
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, wanted in zip(rows, expected.rows, strict=True):
        assert (row["method"], row["units"]) == (wanted["method"], wanted["units"])
        for name in ("spearman_adjacent", "spearman_all_low", "scale", "top1_ratio"):
            assert float(row[name]) == pytest.approx(wanted[name], nan_ok=True)
    assert (out / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(file.name for file in out.iterdir()) == [
        "picture.png", "retraining", "table.csv", "table.json",
    ]  # fmt: skip
    assert fi.evaluation.compare(
        methods, queries, adjacent=15, others=20, path=out / "retraining" / "leave-one-out"
    ).truth.change.shape == (4, len(expected.truth.train_index))


def test_evaluate_summary_and_settings(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "truth"
    text = succeed(
        "evaluate", files / "run", "--methods", "replay", *EVALUATE, "--lds", "0.01,0.2",
        "--subsets", 6, "--deletion", "1,3", "--rng", 2, "--n-threads", 1, "--out", out, "--json",
    )  # fmt: skip
    summary = json.loads(text)
    assert summary == json.loads((out / "table.json").read_text())
    model = fi.load(files / "run")
    assert summary["queries"] == [[*pair] for pair in fi.evaluation.sample_queries(model, 4, 2)]
    assert summary["hyperparameters"] == model.trajectory_.recipe.to_dict()
    assert summary["model"] == f"{model.trajectory_.fingerprint():08x}"
    assert (summary["n_queries"], summary["n_examples"], summary["rng"]) == (4, 400, 2)
    kept = {path.name: len(open_shards(path)) for path in (out / "retraining").iterdir()}
    assert {name: kept[name] for name in kept if "subsets" in name} == {
        "subsets-0.01": 6, "subsets-0.2": 6,
    }  # fmt: skip
    assert sum(kept.values()) == summary["n_retrainings"]
    facts = json.loads(succeed("info", out / "retraining" / "leave-one-out", "--json"))
    assert facts["holds"] == "retrainings"
    assert (facts["n_queries"], facts["rows"]) == (4, kept["leave-one-out"])
    (row,) = summary["methods"]
    assert row["method"] == "replay"
    assert row["lds_0.01"] > 0.8
    with (out / "deletion.csv").open() as file:
        conditions = [(row["method"], int(row["size"])) for row in csv.DictReader(file)]
    assert conditions == [(row["method"], row["size"]) for row in summary["deletion"]]
    assert conditions == [
        (name, size) for size in (1, 3) for name in ("replay", "random", "neighbourhood")
    ] + [("nothing", 0)]  # fmt: skip
    assert summary["deletion"][-1]["probability_drop"] == 0


def test_what_was_evaluated_is_told_apart(files: Path, tmp_path: Path) -> None:
    facts = sys.modules["fastinfluence.cli.evaluate"]._facts
    model = fi.load(files / "run")
    weights = np.ones(400)
    weights[7] = 0
    changed = fi.MatrixFactorization(**model.get_params()).fit(model.data_, sample_weight=weights)
    assert facts(model)["data"] != facts(changed)["data"]
    assert facts(model)["model"] != facts(changed)["model"]
    assert facts(model) == facts(fi.load(files / "run"))


def test_evaluate_chosen_queries(files: Path, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("movie\twho\n3\t0\n29\t39\n")
    text = succeed(
        "evaluate", files / "run", "--queries", tmp_path / "q.tsv", "--user", "who", "--item", 0,
        "--adjacent", 2, "--others", 4, "--methods", "gradient-rollback",
        "--out", tmp_path / "truth", "--json",
    )  # fmt: skip
    summary = json.loads(text)
    assert summary["queries"] == [[0, 3], [39, 29]]
    # Too few adjacent examples for a figure over them: JSON has no NaN.
    assert summary["methods"][0]["n_queries"] == 0
    assert summary["methods"][0]["scale"] is None
    assert summary["methods"][0]["spearman_all"] is not None


def test_evaluate_without_matplotlib(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = succeed(
        "evaluate", files / "run", *EVALUATE, "--methods", "gradient-rollback",
        "--out", tmp_path / "truth",
    )  # fmt: skip
    assert "pip install 'fastinfluence[plot]'" in text
    assert "table.csv, table.json." in text
    assert not (tmp_path / "truth" / "picture.png").exists()


KILLED = """
import os, sys
from fastinfluence.cli import main
from fastinfluence.evaluation import retraining
from fastinfluence.training import Trajectory

retraining._MOST_IN_SHARD = 5
retrain, calls = Trajectory.retrain, []

def counted(self, **keywords):
    calls.append(0)
    if len(calls) == 33:
        os._exit(9)
    return retrain(self, **keywords)

Trajectory.retrain = counted
main(sys.argv[1:])
"""


def test_a_killed_evaluate_goes_on_without_repeating(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "truth"
    arguments = ["evaluate", files / "run", "--methods", "gradient-rollback", *EVALUATE]
    arguments += ["--lds", "0.1", "--subsets", "7", "--n-threads", "1", "--out"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, [*arguments, out])],
        env={**os.environ, "PYTHONPATH": str(Path(fi.__file__).parents[1])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert not (out / "table.csv").exists()
    assert invoke(*arguments, out).exit_code == 2
    calls: list[object] = []
    retrain = fi.Trajectory.retrain
    monkeypatch.setattr(
        fi.Trajectory,
        "retrain",
        lambda self, **keywords: calls.append(0) or retrain(self, **keywords),
    )
    resumed = json.loads(succeed(*arguments, out, "--resume", "--json"))
    n_retrainings = resumed["n_retrainings"]
    # 7 subsets and 25 examples were done; their last shards may still have been on their way.
    assert n_retrainings - 32 <= len(calls) <= n_retrainings - 32 + 10
    calls.clear()
    whole = json.loads(succeed(*arguments, tmp_path / "whole", "--json"))
    assert len(calls) == n_retrainings
    seconds = {"seconds": 0}
    assert [row | seconds for row in resumed["methods"]] == [
        row | seconds for row in whole["methods"]
    ]
    calls.clear()
    assert "those found in" in succeed(*arguments, out, "--resume")
    assert not calls
    result = invoke(*arguments, out, "--resume", "--rng", 1)
    assert result.exit_code == 2
    assert "holds retrainings of another kind" in result.stderr
