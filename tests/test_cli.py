"""The command line: every command, its exit codes, and what a killed process leaves."""

from __future__ import annotations

import csv
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import COLUMNS, N_ITEMS, N_USERS, SMALL, end, invoke, start, succeed, write_files

import fastinfluence as fi
from fastinfluence.storage import open_shards, shards

DOCS = Path(__file__).parents[1] / "docs" / "command-line.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ratings, queries and trained runs."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


# -------------------------------------------------------------------- the whole


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fastinfluence.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print({'numba', 'torch', 'pandas', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    )
    path = str(Path(fi.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(name in process.stdout for name in ("demo", "evaluate", "explain", "info", "train"))
    assert process.stdout.endswith("set()\n")
    assert fi.__version__ in succeed("--version")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train missing.csv --out new", "there is no such file"),
        ("train ratings.csv --out new", "the columns are 'userId', 'movieId', 'rating', 'when'"),
        ("train ratings.csv --user who --item movieId --out new", "there is no column 'who'"),
        ("train ratings.csv --user 0 --item 1 --value 2 --loss logistic --out new", "logistic"),
        ("train ratings.csv --user 0 --item 1 --loss hinge --out new", "'hinge' is not one of"),
        ("train ratings.csv --user 0 --item 1 --n-factors 0 --out new", "n_factors must be"),
        ("train ratings.csv --user 0 --item 1 --rng -1 --out new", "rng must be"),
        ("train ratings.csv --user 0 --item 1 --early-stopping 2 --out new", "--validation"),
        ("train ratings.csv --user 0 --item 1 --validation 2 --out new", "fraction=2.0"),
        ("train ratings.csv --user 0 --item 3 --out new", "repeat an earlier"),
        ("train ml --user 0 --out new", "leave out --user"),
        ("train ratings.csv --user 0 --item 1 --out run", "replace it with --overwrite"),
        ("train ratings.csv --user 0 --item 1 --out ml --overwrite", "is not a run directory"),
        ("train ratings.csv --user 0 --item 1", "Missing option '--out'"),
        ("explain nowhere queries.csv --out new.csv", "there is no run directory at"),
        ("explain ml queries.csv --out new.csv", "holds no manifest.json"),
        ("explain run --out new.csv", "exactly one of QUERIES, --recommend, --all and --test"),
        ("explain run queries.csv --all --out new.csv", "exactly one of"),
        ("explain run ratings.csv --out new.csv", "there is no column 'user'"),
        ("explain run queries.csv --user item --item user --out new.csv", "unknown item 39"),
        ("explain run queries.csv --k 0 --out new.csv", "--k"),
        ("explain run queries.csv --out new.txt", "must be one of .parquet, .csv, .npz"),
        ("explain run queries.csv --out new.csv --resume", "leave out --resume"),
        ("explain run queries.csv --out ml", "continue it with --resume"),
        ("explain run queries.csv --out ml --resume", "holds no start.json"),
        ("explain run --recommend 31 --out new.csv", "k=31 is more than"),
        ("explain run --all --method tarot --out new", "'tarot'"),
        ("explain run --all --method replay --out new", "cannot stream predictions into a folder"),
        ("explain run --all --method replay --out n.csv --batch-size 9", "leave out --batch-size"),
        ("evaluate nowhere --out new", "there is no run directory at"),
        ("evaluate run", "Missing option '--out'"),
        ("evaluate run --out ml", "ml exists already: choose another name, or go on with it"),
        ("evaluate run --out ml --resume", "ml holds no retraining folder: nothing to go on with"),
        ("evaluate run --methods replay,tarot --out new", "'all' or some of curvature-rollback"),
        ("evaluate run --methods replay,replay --out new", "names the same twice"),
        ("evaluate run --methods all,replay --out new", "'all' or some of"),
        ("evaluate run --queries 0 --out new", "asks for nothing"),
        ("evaluate run --queries 41 --out new", "40 users have examples and an item left"),
        ("evaluate run --queries 2 --user 0 --out new", "name columns of a file"),
        ("evaluate run --queries no.csv --out new", "there is no such file"),
        ("evaluate run --queries ratings.csv --out new", "there is no column 'user'"),
        ("evaluate run --queries empty.csv --out new", "no queries to explain"),
        ("evaluate run --queries strangers.csv --out new", "unknown user 99"),
        ("evaluate run --adjacent 0 --others 0 --out new", "no example to leave out"),
        ("evaluate run --lds 0.1,2 --out new", "numbers between 0 and 1"),
        ("evaluate run --lds 0.1, --out new", "numbers between 0 and 1"),
        ("evaluate run --deletion 0 --out new", "numbers of examples"),
        ("evaluate run --deletion 1,many --out new", "numbers of examples"),
        ("evaluate run --subsets 1 --lds 0.1 --out new", "--subsets"),
        ("evaluate changed --out new", "'values' is damaged"),
        ("evaluate cut --out new", "'user_factors' is missing"),
        ("info nowhere", "there is no run directory at"),
        ("demo --dataset iris", "'iris'"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    files: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    result = invoke(*shlex.split(arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(files.iterdir()) == before


def test_failure_exits_with_1(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--learning-rate", "1000", "--out", tmp_path / "run"], "diverged"),
        (["--out", tmp_path / "file" / "run"], "file"),
    ):
        result = invoke("train", files / "ratings.csv", *COLUMNS, *SMALL, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "write_npy", full)
    result = invoke("explain", files / "run", files / "queries.csv", "--out", tmp_path / "why")
    assert result.exit_code == 1
    assert "No space left" in result.stderr


# -------------------------------------------------------------------- train


def test_train_writes_the_run_that_the_class_would_write(files: Path, tmp_path: Path) -> None:
    model = fi.load(files / "run")
    data = fi.read_interactions(
        files / "ratings.csv", user="userId", item="movieId", value="rating"
    )
    same = fi.MatrixFactorization(n_factors=4, n_epochs=3, rng=0).fit(data)
    assert model.trajectory_.end.same_bits(same.trajectory_.end)
    assert model.get_params() == same.get_params()

    text = succeed(
        "train", files / "r.tsv", "--user", 0, "--item", 1, "--value", 2, "--no-header", *SMALL,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert "400 examples of 40 users and 30 items" in text
    assert fi.load(tmp_path / "run").trajectory_.end.same_bits(same.trajectory_.end)


def test_train_passes_every_hyperparameter_on(files: Path, tmp_path: Path) -> None:
    wanted = {
        "n_factors": 3, "loss": "bpr", "n_epochs": 4, "learning_rate": 0.02,
        "learning_rate_decay": 0.9, "regularization": 0.01, "optimizer": "adagrad",
        "n_negatives": 2, "early_stopping": 2, "init_scale": 0.2, "dtype": "float64",
        "rng": 5, "n_threads": 1, "device": "cpu",
    }  # fmt: skip
    assert set(wanted) == set(fi.MatrixFactorization().get_params())
    options = [x for name, value in wanted.items() for x in (f"--{name.replace('_', '-')}", value)]
    succeed(
        "train", files / "ratings.csv", *COLUMNS[:4], *options, "--validation", 0.25,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert fi.load(tmp_path / "run").get_params() == wanted


def test_train_summary_in_json(files: Path, tmp_path: Path) -> None:
    summary = json.loads(
        succeed(
            "train", files / "ratings.csv", *COLUMNS, *SMALL[:-2], "--validation", 0.1,
            "--out", tmp_path / "run", "--json",
        )
    )  # fmt: skip
    model = fi.load(tmp_path / "run")
    assert (summary["n_examples"], summary["n_validation"]) == (360, 40)
    assert summary["losses"] == model.trajectory_.losses
    assert len(summary["validation_losses"]) == summary["n_epochs"] == 3
    # No seed was given: the one that was drawn is told, and gives the same again.
    seed = summary["hyperparameters"]["seed"]
    succeed(
        "train", files / "ratings.csv", *COLUMNS, *SMALL[:-2], "--rng", seed,
        "--validation", 0.1, "--out", tmp_path / "again",
    )  # fmt: skip
    assert fi.load(tmp_path / "again").trajectory_.end.same_bits(model.trajectory_.end)


def test_train_overwrites_a_run_only_when_told(files: Path, tmp_path: Path) -> None:
    arguments = [
        "train",
        files / "ratings.csv",
        *COLUMNS,
        "--n-factors",
        2,
        "--out",
        tmp_path / "r",
    ]
    succeed(*arguments, "--n-epochs", 1)
    assert invoke(*arguments, "--n-epochs", 2).exit_code == 2
    succeed(*arguments, "--n-epochs", 2, "--overwrite")
    assert fi.load(tmp_path / "r").n_epochs_ == 2


def test_train_reads_movielens_with_titles(files: Path, tmp_path: Path) -> None:
    succeed("train", files / "ml", *SMALL, "--out", tmp_path / "run")
    assert fi.load(tmp_path / "run").data_.item_name(3) == "Film 3 (1995)"


def test_train_settles_duplicates_as_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("u,i,v\na,x,1\na,x,2\nb,y,3\n")
    for policy, values in (("last", [2, 3]), ("sum", [3, 3]), ("keep", [1, 2, 3])):
        succeed(
            "train", tmp_path / "rows.csv", "--duplicates", policy, *SMALL,
            "--out", tmp_path / policy,
        )  # fmt: skip
        assert fi.load(tmp_path / policy).data_.values.tolist() == values


@pytest.mark.parametrize("n_files", [0, 25])
def test_a_killed_train_leaves_no_half_run(files: Path, tmp_path: Path, n_files: int) -> None:
    run = tmp_path / "run"
    arguments = ["train", files / "ratings.csv", *COLUMNS, *SMALL, "--n-epochs", 20, "--out", run]

    def is_writing() -> bool:
        folders = list(tmp_path.glob(".run.tmp-*"))
        return bool(folders) and len(list(folders[0].rglob("*.npy"))) >= n_files

    assert end(start(*arguments), is_writing, signal.SIGKILL) in (-signal.SIGKILL, 0)
    if run.exists():
        fi.load(run).trajectory_.verify()
    else:
        succeed(*arguments)
    succeed(*arguments, "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_an_interrupted_train_leaves_nothing(files: Path, tmp_path: Path) -> None:
    arguments = ["train", files / "ratings.csv", *COLUMNS, *SMALL, "--n-epochs", 20]
    process = start(*arguments, "--out", tmp_path / "run")
    code = end(process, lambda: any(tmp_path.iterdir()), signal.SIGINT)
    left = [file.name for file in tmp_path.iterdir()]
    assert (code, left) in ((1, []), (1, ["run"]), (0, ["run"]))


# -------------------------------------------------------------------- explain


def test_explain_writes_what_the_class_finds(files: Path, tmp_path: Path) -> None:
    model = fi.load(files / "run")
    expected = fi.GradientRollback(model).explain([(0, 3), (0, 4), (39, 29)], 4)
    common = ["explain", files / "run", files / "queries.csv", "--k", 4, "--out"]
    text = succeed(*common, tmp_path / "why.npz")
    assert expected.because(0) in text
    found = fi.Explanations.load(tmp_path / "why.npz", model.data_)
    assert np.array_equal(found.train_index, expected.train_index)
    assert np.array_equal(found.influence, expected.influence)

    succeed(*common, tmp_path / "why.csv")
    with (tmp_path / "why.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["train_index"]) for row in rows] == expected.train_index.ravel().tolist()

    import pyarrow.parquet

    succeed(*common, tmp_path / "why.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "why.parquet").equals(expected.to_arrow())


def test_explain_opponents_of_named_columns(files: Path, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("movie\twho\n3\t0\n")
    summary = json.loads(
        succeed(
            "explain", files / "run", tmp_path / "q.tsv", "--user", "who", "--item", 0,
            "--opponents", "--out", tmp_path / "why.npz", "--json",
        )
    )  # fmt: skip
    model = fi.load(files / "run")
    found = fi.Explanations.load(tmp_path / "why.npz", model.data_)
    expected = fi.GradientRollback(model).explain([(0, 3)], proponents=False)
    assert np.array_equal(found.train_index, expected.train_index)
    assert summary["n_queries"] == 1
    assert summary["proponents"] is False
    assert summary["units"] == "rank"


@pytest.mark.parametrize("method", [fi.CurvatureRollback, fi.Replay])
def test_explain_by_other_methods(files: Path, tmp_path: Path, method: Any) -> None:
    model, pairs = fi.load(files / "run"), [(0, 3), (0, 4), (39, 29)]
    succeed(
        "explain", files / "run", files / "queries.csv", "--method", method.name,
        "--out", tmp_path / "why.npz",
    )  # fmt: skip
    found = fi.Explanations.load(tmp_path / "why.npz", model.data_)
    expected = method(model).explain(pairs)
    assert found.method == method.name
    assert np.array_equal(found.train_index, expected.train_index)
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-5)


def test_explain_recommendations(files: Path, tmp_path: Path) -> None:
    succeed("explain", files / "run", "--recommend", 2, "--out", tmp_path / "why.npz")
    model = fi.load(files / "run")
    found = fi.Explanations.load(tmp_path / "why.npz", model.data_)
    items, _ = model.recommend(k=2)
    assert np.array_equal(model.data_.item_ids[found.items].reshape(-1, 2), items)
    assert np.array_equal(found.users, np.repeat(np.arange(N_USERS), 2))


def test_explain_all_pairs_to_a_file_and_to_a_folder(files: Path, tmp_path: Path) -> None:
    common = ["explain", files / "run", "--all", "--k", 3, "--out"]
    succeed(*common, tmp_path / "why.npz")
    succeed(*common, f"{tmp_path / 'why.shards'}/")
    found = fi.Explanations.load(tmp_path / "why.npz", fi.load(files / "run").data_)
    table = open_shards(tmp_path / "why.shards")[:]
    assert len(found) == N_USERS * N_ITEMS
    for name, column in (("user", found.users), ("item", found.items)):
        assert np.array_equal(table[name], column)
    assert np.array_equal(table["train_index"], found.train_index)
    assert np.array_equal(table["influence"], found.influence)


def test_more_predictions_than_a_file_may_hold_are_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["fastinfluence.cli.explain"]  # the package has the command by that name
    monkeypatch.setattr(module, "memory_budget", lambda: 2**20)
    result = invoke("explain", files / "run", "--all", "--k", 30, "--out", tmp_path / "why.csv")
    assert result.exit_code == 2
    assert "give --out a folder" in result.stderr


def test_text_ids_that_look_like_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("u,i\n1,x\n1,y\nb,x\n")
    (tmp_path / "q.csv").write_text("user,item\n1,x\n")
    succeed("train", tmp_path / "rows.csv", "--user", "u", "--item", "i", *SMALL,
            "--out", tmp_path / "run")  # fmt: skip
    text = succeed("explain", tmp_path / "run", tmp_path / "q.csv", "--out", tmp_path / "why.csv")
    assert "1 → x" in text


def test_a_killed_explain_is_resumed(files: Path, tmp_path: Path) -> None:
    why = tmp_path / "why"
    common = ["explain", files / "run", "--all", "--k", 3, "--batch-size", 30, "--out"]
    n_shards = 5
    end(start(*common, why), (why / f"{n_shards:06d}").exists, signal.SIGKILL)
    complete = [shard.stat().st_mtime_ns for shard in sorted(why.glob("0*"))[:n_shards]]
    assert invoke(*common, why).exit_code == 2
    assert invoke(*common, why, "--resume", "--opponents").exit_code == 2
    succeed(*common, why, "--resume")
    assert [s.stat().st_mtime_ns for s in sorted(why.glob("0*"))[:n_shards]] == complete
    succeed(*common, tmp_path / "whole")
    resumed, whole = open_shards(why)[:], open_shards(tmp_path / "whole")[:]
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    assert len(whole["user"]) == N_USERS * N_ITEMS
    succeed(*common, why, "--resume")  # nothing is left to do


# -------------------------------------------------------------------- info


def test_info_of_the_machine() -> None:
    import numba

    facts = json.loads(succeed("info", "--json"))
    assert facts["fastinfluence"] == fi.__version__
    assert facts["numba"] == numba.__version__
    assert facts["backend"] == "cpu"
    assert facts["backend_reason"]
    assert facts["threads"] >= 1
    assert facts["blas"]
    assert facts["avx512"] in (True, False)
    text = succeed("info")
    assert f"numba           {numba.__version__}" in text
    assert "kernel cache" in text


def test_info_of_a_run_and_of_explanations(files: Path, tmp_path: Path) -> None:
    facts = json.loads(succeed("info", files / "run", "--json"))
    sizes = [facts[name] for name in ("examples", "users", "items", "epochs", "checkpoints")]
    assert sizes == [400, N_USERS, N_ITEMS, 3, 4]
    assert facts["recipe"]["n_factors"] == 4
    assert "n_factors=4" in succeed("info", files / "run")

    succeed("explain", files / "run", files / "queries.csv", "--out", tmp_path / "why")
    facts = json.loads(succeed("info", tmp_path / "why", "--json"))
    assert (facts["holds"], facts["method"], facts["rows"]) == (
        "explanations",
        "gradient-rollback",
        3,
    )


def test_info_finds_damage(files: Path, tmp_path: Path) -> None:
    succeed("explain", files / "run", files / "queries.csv", "--out", tmp_path / "why")
    file = tmp_path / "why" / "000000" / "influence.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = invoke("info", tmp_path / "why")
    assert result.exit_code == 2
    assert "influence" in result.stderr


# -------------------------------------------------------------------- the guide


def guide() -> list[tuple[str, str]]:
    """Commands and their output in docs/command-line.md."""
    blocks = DOCS.read_text(encoding="utf-8").split("```console\n")[1:]
    steps = "".join(block.partition("```")[0] for block in blocks).split("$ fastinfluence ")[1:]
    return [(command, output.strip()) for command, _, output in (s.partition("\n") for s in steps)]


def run_guide(folder: Path, data: Path, queries: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Outputs of the commands, run where `data` stands for MovieLens 100K."""
    monkeypatch.setattr("fastinfluence.demo.HYPERPARAMETERS", QUICK_DEMO)
    monkeypatch.chdir(folder)
    (folder / "ml-100k").symlink_to(data)
    (folder / "ratings.csv").write_text("userId,movieId,rating\n0,1,5\n0,2,3\n1,1,4\n")
    (folder / "queries.csv").write_text(f"user,item\n{queries}\n")
    (folder / "questions.csv").write_text(
        "head,relation,tail\nbrazil,exports3,\n,economicaid,egypt\n"
    )
    return [succeed(*shlex.split(command)).strip() for command, _ in guide()]


QUICK_DEMO = {"n_factors": 8, "loss": "logistic", "n_epochs": 1, "rng": 0}


def test_the_commands_of_the_guide_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = run_guide(tmp_path, files / "ml", "3,4", monkeypatch)
    assert len(outputs) >= 8
    for (command, shown), printed in zip(guide(), outputs, strict=True):
        assert len(shown.splitlines()) <= len(printed.splitlines()), command
    code = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["items"].tolist() == list(range(N_ITEMS)) * N_USERS


@pytest.mark.slow
def test_the_outputs_of_the_guide_are_real(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re
    import zipfile

    with zipfile.ZipFile(data_dir / "ml-100k" / "ml-100k.zip") as archive:
        archive.extractall(tmp_path)
    folder = next(tmp_path.rglob("u.data")).parent.rename(tmp_path / "set")
    work = tmp_path / "work"
    work.mkdir()
    outputs = run_guide(work, folder, "42,318\n42,12", monkeypatch)
    # "in 1.2 s", and the last column of the table of methods
    seconds = re.compile(r"in \d+\.\d s|(?<=\d) +[\d.]+$", re.MULTILINE)
    for (command, shown), printed in zip(guide(), outputs, strict=True):
        if command.startswith(("train ml-100k", "explain", "evaluate")) and shown:
            assert seconds.sub("", shown) == seconds.sub("", printed), command
