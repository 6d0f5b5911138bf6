"""``fastinfluence evaluate --protocol``: the paper's experiments as one command."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from console import invoke, succeed

from fastinfluence.evaluation import gradient_rollback_paper

NATIONS = ["evaluate", "--protocol", "gradient-rollback-paper", "--dataset", "nations"]
QUICK = ["--queries", "2", "--seeds", "1", "--methods", "gradient-rollback"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--protocol other --dataset nations", "'other' is not"),
        ("--protocol gradient-rollback-paper", "Missing option '--dataset'"),
        ("--protocol gradient-rollback-paper --dataset iris", "'iris' is not one of"),
        ("--protocol=gradient-rollback-paper --dataset fb15k-237", "say where it is"),
        ("--protocol=gradient-rollback-paper --dataset fb15k-237 --data no", "no such folder"),
        ("--protocol=gradient-rollback-paper --dataset nations --data no", "is bundled"),
        ("--protocol=gradient-rollback-paper --dataset nations --seeds 0", "--seeds"),
        ("--protocol=gradient-rollback-paper --dataset nations --queries 144", "143 questions"),
        ("--protocol=gradient-rollback-paper --dataset nations --retrain-epochs 9", "'9'"),
        ("--protocol=gradient-rollback-paper --dataset nations --model mf", "'mf'"),
        ("--protocol=gradient-rollback-paper --dataset nations --optimizer lion", "'lion'"),
        ("--protocol=gradient-rollback-paper --dataset nations --methods tarot",
         "some of gradient-rollback, gradient-rollback-own"),
        ("--protocol=gradient-rollback-paper --dataset nations --methods replay,replay",
         "names the same twice"),
        ("--protocol=gradient-rollback-paper --dataset nations --resume", "say which by --out"),
        ("--protocol=gradient-rollback-paper --dataset nations --out .", "exists already"),
        ("--protocol=gradient-rollback-paper --dataset nations --out . --resume",
         "nothing to go on with"),
        ("--protocol=gradient-rollback-paper --dataset nations run", "unexpected extra argument"),
    ],
)  # fmt: skip
def test_bad_input(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("evaluate", *shlex.split(arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_of_both_commands() -> None:
    assert "--retrain-epochs" in succeed(*NATIONS[:3], "--help")
    text = " ".join(succeed("evaluate", "--help").split())
    assert "--retrain-epochs" not in text
    assert "`evaluate --protocol gradient-rollback-paper` takes no RUN" in text


def test_it_shows_and_keeps_what_the_function_finds(tmp_path: Path) -> None:
    out = tmp_path / "new" / "paper"
    result = invoke(*NATIONS, *QUICK, "--out", out)
    assert result.exit_code == 0, result.stderr
    expected = gradient_rollback_paper(
        "nations", n_queries=2, n_seeds=1, methods=["gradient-rollback"], show_progress=False
    )
    assert result.stdout.startswith(f"{expected!r}\n\n{expected.n_retrainings} retrainings in ")
    assert result.stdout.endswith(f"written to {out}: table.csv, table.json.\n")
    assert f"{expected.n_retrainings} retrainings of 1,592 triples" in result.stderr
    summary = json.loads((out / "table.json").read_text())
    assert (summary["protocol"], summary["dataset"]) == ("gradient-rollback-paper", "nations")
    assert (summary["n_predictions"], summary["main_epoch"]) == (2, 8)
    assert summary["hyperparameters"]["optimizer"] == "adam-dense"
    assert summary["rows"][0]["probability_drop_sd"] is None
    for row, wanted in zip(summary["rows"], expected.rows, strict=True):
        assert row["probability_drop"] == wanted["probability_drop"]
        assert row["mean_drop"] == wanted["mean_drop"]
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(row["left_out"], row["size"]) for row in lines] == [
        (row["left_out"], row["size"]) for row in summary["rows"]
    ]
    assert invoke(*NATIONS, *QUICK, "--out", out).exit_code == 2
    again = json.loads(succeed(*NATIONS, *QUICK, "--out", out, "--resume", "--json"))
    assert again["rows"] == summary["rows"]
    result = invoke(*NATIONS, *QUICK, "--model", "complex", "--out", out, "--resume")
    assert result.exit_code == 2
    assert "holds retrainings of another kind" in result.stderr


def test_it_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = succeed(*NATIONS, *QUICK, "--retrain-epochs", 8, "--n-threads", 1)
    assert "trained again for 8 epochs" in text
    assert "trained again for 10 epochs" not in text
    assert list(tmp_path.iterdir()) == []
