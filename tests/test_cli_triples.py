"""The command line on knowledge graphs: every command, and what it says to bad input."""

from __future__ import annotations

import csv
import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import invoke, succeed

import fastinfluence as fi
from fastinfluence.cli.hyperparameters import MODELS
from fastinfluence.storage import open_shards

SMALL = ["--n-factors", "4", "--n-epochs", "3", "--rng", "0"]
KINDS = ["likes", "knows"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graphs in several forms, queries, and a trained run."""
    folder = tmp_path_factory.mktemp("graphs")
    codes = np.random.default_rng(0).permutation(10 * 2 * 10)[:80]
    heads, kinds, tails = np.unravel_index(codes, (10, 2, 10))
    rows = [
        (f"person {h}", KINDS[r], f"person {t}")
        for h, r, t in zip(heads, kinds, tails, strict=True)
    ]
    (folder / "graph").mkdir()
    parts = {"train": rows[:60], "valid": rows[60:70], "test": rows[70:]}
    for name, part in parts.items():
        text = "".join("\t".join(row) + "\n" for row in part)
        (folder / "graph" / f"{name}.txt").write_text(text)
        (folder / f"{name}.tsv").write_text(text)
    with tarfile.open(folder / "graph.tar.gz", "w:gz") as archive:
        archive.add(folder / "graph", "graph")
    lines = [f"{t},{i},{h},{r}\n" for i, (h, r, t) in enumerate(parts["train"])]
    (folder / "columns.csv").write_text("object,when,subject,predicate\n" + "".join(lines))
    (folder / "two.tsv").write_text("a\tb\nc\td\n")
    (folder / "four.tsv").write_text("a\tr\tb\t1\nc\tr\td\t2\n")
    (folder / "ragged.tsv").write_text("a\tr\tb\na\tr\tsmall\ttown\n")
    (folder / "twice.tsv").write_text("a\tr\tb\na\tr\tb\nb\tr\tc\n")
    (folder / "empty.tsv").write_text("")
    (folder / "nothing.csv").write_text("head,relation,tail\n")
    (folder / "q.csv").write_text(
        "when,tail,head,relation\n1,person 1,person 0,likes\n2,,person 3,knows\n3,person 4,,likes\n"
    )
    (folder / "plain.tsv").write_text("person 0\tlikes\tperson 1\nperson 3\tknows\t\n")
    (folder / "strangers.csv").write_text("head,relation,tail\nperson 1,likes,persom 2\n")
    (folder / "unknown.csv").write_text("head,relation,tail\nperson 1,like,person 2\n")
    (folder / "open.csv").write_text("head,relation,tail\n,likes,\n")
    (folder / "no-relation.csv").write_text("head,relation,tail\nperson 1,,person 2\n")
    (folder / "pairs.csv").write_text("u,i,v\n1,2,3\n1,3,4\n2,2,1\n")
    succeed("train", folder / "graph", "--model", "complex", *SMALL, "--out", folder / "run")
    succeed(
        "train", folder / "train.tsv", "--model", "distmult", "--sides", "tail", *SMALL,
        "--out", folder / "tails",
    )  # fmt: skip
    succeed("train", folder / "pairs.csv", "--user", 0, "--item", 1, *SMALL, "--out", folder / "mf")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train graph --model complex --out run", "replace it with --overwrite"),
        ("train missing.tsv --model distmult --out new", "there is no such file"),
        ("train mf --model distmult --out new", "no train.txt or train.tsv"),
        ("train two.tsv --model distmult --out new", "say which of 2 columns hold heads"),
        ("train four.tsv --model distmult --out new", "say which of 4 columns hold heads"),
        ("train four.tsv --model distmult --head 0 --out new", "say which of 4 columns"),
        ("train ragged.tsv --model distmult --out new", "line 2 has 4 columns"),
        ("train twice.tsv --model distmult --out new", "repeat an earlier"),
        ("train empty.tsv --model distmult --out new", "the file is empty"),
        ("train train.tsv --model distmult --test empty.tsv --out new", "the file is empty"),
        ("train train.tsv --model distmult --test missing.tsv --out new", "no such file"),
        ("train columns.csv --model distmult --head s --relation predicate --tail object --out n",
         "there is no column 's'"),
        ("train graph --model distmult --user 0 --out new", "--user belongs to --model mf"),
        ("train pairs.csv --user 0 --item 1 --head 2 --out new", "--head belongs to --model dist"),
        ("train pairs.csv --user 0 --item 1 --test q.csv --out new", "--test belongs to"),
        ("train pairs.csv --user 0 --item 1 --sides tail --out new",
         "--sides belongs to --model distmult and complex, not mf"),
        ("train pairs.csv --user 0 --item 1 --reciprocal --out new", "--reciprocal belongs to"),
        ("train pairs.csv --user 0 --item 1 --validation q.csv --out n", "is no share of the rows"),
        ("train pairs.csv --user 0 --item 1 --duplicates first --out new",
         "--duplicates first belongs to --model distmult and complex"),
        ("train graph --model complex --early-stopping 2 --out new",
         "--early-stopping belongs to --model mf, not complex"),
        ("train graph --model complex --duplicates sum --out new", "--duplicates sum belongs to"),
        ("train graph --model complex --loss bpr --out new", "'--loss': 'bpr' is not one of"),
        ("train graph --model complex --optimizer lion --out new", "'lion' is not one of"),
        ("train graph --model complex --learning-rate-decay 0.9 --out new", "'linear', 'constant'"),
        ("train graph --model complex --n-negatives some --out new", "is not a valid integer"),
        ("train graph --model complex --n-negatives 0 --out new", "n_negatives must be"),
        ("train graph --model complex --n-factors 5 --out new", "must be even"),
        ("train graph --model complex --test test.tsv --out new", "leave out --test"),
        ("train nations --model complex --head 0 --out new", "is bundled: leave out --head"),
        ("train nations --out new", "choose --model distmult or --model complex"),
        ("train graph --model transe --out new", "'transe'"),
        ("explain run --out new.csv", "exactly one of"),
        ("explain run q.csv --test --out new.csv", "exactly one of"),
        ("explain run strangers.csv --out new.csv", "'persom 2'; nearest known: 'person 2'"),
        ("explain run unknown.csv --out new.csv", "'like'; nearest known: 'likes'"),
        ("explain run open.csv --out new.csv", "query 0 has neither head nor tail"),
        ("explain run no-relation.csv --out new.csv", "missing"),
        ("explain run nothing.csv --out new.csv", "no queries to explain"),
        ("explain run two.tsv --out new.csv", "say which of 2 columns hold heads"),
        ("explain run four.tsv --out new.csv", "say which of 4 columns hold heads"),
        ("explain run missing.csv --out new.csv", "there is no such file"),
        ("explain run q.csv --head who --out new.csv", "there is no column 'who'"),
        ("explain run q.csv --user when --out new.csv", "--user is for models of pairs"),
        ("explain run --test --head when --out new.csv", "name columns of a file"),
        ("explain run --all --out new.csv", "--all is for models of pairs"),
        ("explain run --recommend 10 --out new.csv", "k=10 is more than the"),
        ("explain run q.csv --objective rank --out new.csv", "'rank'"),
        ("explain run q.csv --method replay --out new", "cannot stream predictions"),
        ("explain tails --test --out new.csv", "the run has no test triples"),
        ("explain tails --recommend 1 --predict head --out new.csv", "no rows to predict heads"),
        ("explain mf --test --out new.csv", "has no test data"),
        ("explain mf q.csv --head head --out new.csv", "--head is for models of triples"),
        ("explain mf --all --objective score --out new.csv", "--objective is for models of trip"),
        ("explain mf --all --predict head --out new.csv", "--predict is for models of triples"),
        ("evaluate run --queries 2 --head 0 --out new", "name columns of a file"),
        ("evaluate run --queries q.csv --user 0 --out new", "--user is for models of pairs"),
        ("evaluate run --queries 2 --predict head --out new", "needs a file of queries"),
        ("evaluate run --queries 99 --out new", "99 queries cannot be drawn"),
        ("evaluate run --queries strangers.csv --out new", "nearest known"),
    ],
)  # fmt: skip
def test_bad_input_exits_with_2_and_writes_nothing(
    files: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    result = invoke(*shlex.split(arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(files.iterdir()) == before


# -------------------------------------------------------------------- train


def test_train_writes_the_run_that_the_class_would_write(files: Path, tmp_path: Path) -> None:
    model = fi.load(files / "run")
    data = fi.datasets.knowledge_graph(files / "graph")
    same = fi.ComplEx(n_factors=4, n_epochs=3, rng=0).fit(data)
    assert isinstance(model, fi.ComplEx)
    assert model.trajectory_.end.same_bits(same.trajectory_.end)
    assert model.get_params() == same.get_params()
    forms = {
        "archive": ["graph.tar.gz"],
        "files": ["train.tsv", "--validation", files / "valid.tsv", "--test", files / "test.tsv"],
        "columns": ["columns.csv", "--head", "subject", "--relation", "predicate", "--tail", 0,
                    "--header"],
    }  # fmt: skip
    for name, (source, *options) in forms.items():
        out = tmp_path / name
        text = succeed(
            "train", files / source, *options, "--model", "complex", *SMALL, "--out", out
        )
        assert "60 triples of 10 entities and 2 relations" in text
        again = fi.load(out)
        assert again.trajectory_.end.same_bits(same.trajectory_.end)
        assert (again.data_.test is None) == (name == "columns")


def test_train_passes_every_hyperparameter_on(files: Path, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "n_factors": 6, "loss": "logistic", "n_negatives": "all", "sides": "tail",
        "reciprocal": False, "n_epochs": 2, "learning_rate": 0.02,
        "learning_rate_decay": "constant", "regularization": 0.003, "optimizer": "adam-dense",
        "epsilon": 1e-6, "fixed_negatives": True, "shuffle": False, "unit_norm": True,
        "init": "uniform", "init_scale": 0.2, "dtype": "float64", "rng": 5, "n_threads": 1,
    }  # fmt: skip
    assert set(wanted) == set(fi.DistMult().get_params())
    options: list[object] = []
    for name, value in wanted.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options += [f"--{option}", value]
    succeed("train", files / "graph", "--model", "distmult", *options, "--out", tmp_path / "run")
    assert fi.load(tmp_path / "run").get_params() == wanted


@pytest.mark.parametrize("model", ["mf", "distmult", "complex"])
def test_what_is_not_given_is_the_default_of_the_model(
    files: Path, tmp_path: Path, model: str
) -> None:
    source = ["pairs.csv", "--user", 0, "--item", 1] if model == "mf" else ["graph"]
    succeed(
        "train", files / source[0], *source[1:], "--model", model, "--rng", 3,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert fi.load(tmp_path / "run").get_params() == MODELS[model](rng=3).get_params()


def test_help_says_which_model_an_option_belongs_to() -> None:
    text = " ".join(succeed("train", "--help").split())
    assert "--n-negatives INTEGER|all" in text
    assert "--loss squared|logistic|bpr|softmax" in text
    assert "(distmult, complex) Whether heads are asked for as well as tails. [default: both]" in (
        text
    )
    assert "(mf) [default: 0.01] (distmult, complex) [default: 0.1]" in text


def test_train_reports_link_prediction(files: Path, tmp_path: Path) -> None:
    text = succeed("train", files / "graph", "--model", "distmult", *SMALL, "--out", tmp_path / "a")
    model = fi.load(tmp_path / "a")
    assert repr(fi.evaluation.link_prediction(model)) in text
    assert "After 3 epochs: softmax loss " in text
    summary = json.loads(
        succeed(
            "train", files / "graph", "--model", "distmult", *SMALL, "--sides", "tail",
            "--out", tmp_path / "b", "--json",
        )
    )  # fmt: skip
    model = fi.load(tmp_path / "b")
    for split in ("validation", "test"):
        found = fi.evaluation.link_prediction(model, split, predict="tail")
        told = summary["link_prediction"][split]
        assert told["sides"] == ["tail"]
        assert (told["mrr"], told["hits_10"]) == (found.mrr, found.hits(10))
    assert (summary["n_examples"], summary["n_validation"], summary["n_test"]) == (60, 10, 10)
    assert (summary["n_entities"], summary["n_relations"]) == (10, 2)
    assert summary["losses"] == model.trajectory_.losses
    assert summary["hyperparameters"]["model"] == "distmult"


def test_training_that_diverges_fails_with_the_step(files: Path, tmp_path: Path) -> None:
    result = invoke(
        "train", files / "graph", "--model", "distmult", *SMALL, "--learning-rate", 1e9,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "the loss of step" in result.stderr
    assert "Lower learning_rate" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nations_is_a_word(tmp_path: Path) -> None:
    text = succeed("train", "nations", "--model", "distmult", *SMALL, "--out", tmp_path / "run")
    assert "1,592 triples of 14 entities and 55 relations" in text
    assert fi.load(tmp_path / "run").data_.entity_ids[0] == "brazil"


def test_info_of_a_run(files: Path) -> None:
    facts = json.loads(succeed("info", files / "run", "--json"))
    sizes = [facts[n] for n in ("examples", "validation_triples", "test_triples", "entities")]
    assert (facts["holds"], sizes, facts["relations"]) == ("complex", [60, 10, 10, 10], 2)
    assert "test_triples" not in json.loads(succeed("info", files / "tails", "--json"))
    assert "optimizer='sgd'" in succeed("info", files / "run")


# -------------------------------------------------------------------- explain


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_explain_writes_what_the_class_finds(files: Path, tmp_path: Path) -> None:
    model = fi.load(files / "run")
    queries = [("person 0", "likes", "person 1"), ("person 3", "knows", None),
               (None, "likes", "person 4")]  # fmt: skip
    expected = fi.GradientRollback(model).explain(queries, 4)
    text = succeed("explain", files / "run", files / "q.csv", "--k", 4, "--out", tmp_path / "w.csv")
    assert expected.because(0) in text
    rows = read_csv(tmp_path / "w.csv")
    assert [int(row["train_index"]) for row in rows] == expected.train_index.ravel().tolist()
    assert [row["predicted"] for row in rows[::4]] == ["tail", "tail", "head"]
    assert rows[4]["tail"] == model.data_.entity_ids[expected.tails[1]]
    # Without a header, three columns are head, relation and tail.
    succeed("explain", files / "run", files / "plain.tsv", "--k", 4, "--out", tmp_path / "p.csv")
    assert read_csv(tmp_path / "p.csv") == rows[:8]


@pytest.mark.parametrize("objective", ["score", "probability", "log-probability"])
def test_explain_objectives_of_heads(files: Path, tmp_path: Path, objective: str) -> None:
    model = fi.load(files / "run")
    kinds = {kind.__name__.lower(): kind for kind in (
        fi.objectives.Score, fi.objectives.Probability, fi.objectives.LogProbability,
    )}  # fmt: skip
    what = kinds[objective.replace("-", "")]([("person 0", "likes", "person 1")], predict="head")
    (tmp_path / "q.tsv").write_text("who\tto\thow\nperson 0\tperson 1\tlikes\n")
    summary = json.loads(
        succeed(
            "explain", files / "run", tmp_path / "q.tsv", "--head", "who", "--relation", "how",
            "--tail", 1, "--predict", "head", "--objective", objective, "--opponents",
            "--method", "curvature-rollback", "--out", tmp_path / "why.csv", "--json",
        )
    )  # fmt: skip
    expected = fi.CurvatureRollback(model, rows=what).explain(what, proponents=False)
    rows = read_csv(tmp_path / "why.csv")
    assert {row["predicted"] for row in rows} == {"head"}
    assert [int(row["train_index"]) for row in rows] == expected.train_index[0].tolist()
    np.testing.assert_allclose(
        [float(row["influence"]) for row in rows], expected.influence[0], rtol=1e-5
    )
    assert (summary["objective"], summary["n_queries"]) == (objective, 1)


def test_explain_test_triples_to_a_file_and_a_folder(files: Path, tmp_path: Path) -> None:
    model = fi.load(files / "run")
    common = ["explain", files / "run", "--test", "--k", 3, "--objective", "probability", "--out"]
    succeed(*common, tmp_path / "why.parquet")
    expected = fi.GradientRollback(model).explain(fi.objectives.Probability(model.data_.test), 3)
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "why.parquet").equals(expected.to_arrow())
    succeed(*common, tmp_path / "why")
    assert invoke(*common, tmp_path / "why").exit_code == 2
    succeed(*common, tmp_path / "why", "--resume")
    table = open_shards(tmp_path / "why")[:]
    assert np.array_equal(table["train_index"], expected.train_index)
    assert np.array_equal(table["tail"], model.data_.test.tails)
    facts = json.loads(succeed("info", tmp_path / "why", "--json"))
    assert (facts["holds"], facts["quantity"], facts["rows"]) == ("explanations", "probability", 10)


@pytest.mark.parametrize("predict", ["tail", "head"])
def test_explain_recommendations(files: Path, tmp_path: Path, predict: str) -> None:
    model = fi.load(files / "run")
    data, test = model.data_, model.data_.test
    succeed(
        "explain", files / "run", "--recommend", 2, "--predict", predict, "--k", 1,
        "--out", tmp_path / "why.csv",
    )  # fmt: skip
    rows = read_csv(tmp_path / "why.csv")
    given, asked = ("head", "tail") if predict == "tail" else ("tail", "head")
    codes = test.heads if predict == "tail" else test.tails
    questions = sorted(set(zip(codes.tolist(), test.relations.tolist(), strict=True)))
    assert len(rows) == 2 * len(questions)
    for number, (entity, relation) in enumerate(questions):
        known, kind = data.entity_ids[entity], data.relation_ids[relation]
        if predict == "tail":
            best, _ = model.predict_tails(known, kind, 2)
        else:
            best, _ = model.predict_heads(kind, known, 2)
        found = rows[2 * number : 2 * number + 2]
        assert {row["predicted"] for row in found} == {predict}
        assert [row[given] for row in found] == [known] * 2
        assert [row[asked] for row in found] == best[0].tolist()


def test_integer_ids(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    codes = rng.permutation(6 * 6)[:20]
    columns = {"head": codes // 6, "relation": codes * 0, "tail": codes % 6}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "graph.parquet")
    succeed(
        "train", tmp_path / "graph.parquet", "--model", "distmult", *SMALL,
        "--out", tmp_path / "run",
    )  # fmt: skip
    queries = {"head": pyarrow.array([1, None, 3]), "relation": [0, 0, 0], "tail": [2, 4, 5]}
    pyarrow.parquet.write_table(pyarrow.table(queries), tmp_path / "q.parquet")
    (tmp_path / "q.csv").write_text("head,relation,tail\n1,0,2\n,0,4\n3,0,5\n")
    for name in ("q.parquet", "q.csv"):
        out = tmp_path / f"{name}.csv"
        succeed("explain", tmp_path / "run", tmp_path / name, "--k", 1, "--out", out)
        rows = read_csv(out)
        assert [(row["tail"], row["predicted"]) for row in rows] == [
            ("2", "tail"), ("4", "head"), ("5", "tail"),
        ]  # fmt: skip
        assert (rows[0]["head"], rows[2]["head"]) == ("1", "3")
    (tmp_path / "bad.csv").write_text("head,relation,tail\nann,0,2\n")
    result = invoke("explain", tmp_path / "run", tmp_path / "bad.csv", "--out", tmp_path / "w.csv")
    assert result.exit_code == 2
    assert "bad.csv: 'ann' is no id" in result.stderr


def test_warnings_are_lines(tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\n")
    (tmp_path / "t.tsv").write_text("a\tr\tstranger\n")
    succeed(
        "train", tmp_path / "g.tsv", "--model", "distmult", "--test", tmp_path / "t.tsv", *SMALL,
        "--out", tmp_path / "run",
    )  # fmt: skip
    result = invoke("explain", tmp_path / "run", "--test", "--out", tmp_path / "why.csv")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: no training triple holds the entity 'stranger'")


# -------------------------------------------------------------------- evaluate


def test_evaluate_writes_what_compare_finds(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "truth"
    summary = json.loads(
        succeed(
            "evaluate", files / "run", "--queries", 3, "--adjacent", 15, "--others", 5,
            "--objective", "log-probability", "--deletion", 2, "--out", out, "--json",
        )
    )  # fmt: skip
    model = fi.load(files / "run")
    queries = fi.evaluation.sample_queries(model, 3)
    assert summary["queries"] == [[*query] for query in queries]
    assert (summary["objective"], summary["predict"]) == ("log-probability", "tail")
    assert (summary["n_entities"], summary["n_relations"], summary["n_examples"]) == (10, 2, 60)
    what = fi.objectives.LogProbability(queries)
    methods = [fi.GradientRollback(model), fi.CurvatureRollback(model, rows=what), fi.Replay(model)]
    expected = fi.evaluation.compare(methods, what, adjacent=15, others=5)
    for row, wanted in zip(summary["methods"], expected.rows, strict=True):
        assert row["method"] == wanted["method"]
        for name in ("spearman_adjacent", "spearman_all", "scale"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5)
    assert summary["methods"][2]["spearman_all"] > 0.8
    conditions = [(row["method"], row["size"]) for row in summary["deletion"]]
    assert ("replay", 2) in conditions
    assert conditions[-1] == ("nothing", 0)
    assert summary["deletion"][-1]["probability_drop"] == 0
    facts = json.loads(succeed("info", out / "retraining" / "leave-one-out", "--json"))
    assert facts["holds"] == "retrainings"


def test_evaluate_chosen_queries(files: Path, tmp_path: Path) -> None:
    summary = json.loads(
        succeed(
            "evaluate", files / "run", "--queries", files / "q.csv", "--predict", "head",
            "--adjacent", 2, "--others", 4, "--methods", "gradient-rollback",
            "--out", tmp_path / "truth", "--json",
        )
    )  # fmt: skip
    assert summary["queries"] == [
        ["person 0", "likes", "person 1"],
        ["person 3", "knows", None],
        [None, "likes", "person 4"],
    ]
    assert summary["n_queries"] == 3
    assert summary["predict"] == "head"
