"""The methods by name on the command line: all of them, and those for another kind of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import SMALL, invoke, succeed, write_files

import fastinfluence as fi
from fastinfluence.attribution.method import Attribution
from fastinfluence.cli.methods import METHODS, explaining, streams

EVALUATE = ["--queries", "3", "--adjacent", "15", "--others", "10", "--json"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on ratings, and one on triples."""
    folder = tmp_path_factory.mktemp("runs")
    write_files(folder)
    succeed("train", "nations", "--model", "distmult", *SMALL, "--out", folder / "graph")
    return folder


def test_names() -> None:
    public = [getattr(fi, name) for name in fi.__all__]
    methods = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Attribution)]
    assert {fi.GradientRollback, fi.CurvatureRollback, fi.Replay, fi.TracIn} <= set(methods)
    assert all(METHODS[method.name] is method for method in methods)
    assert streams("gradient-rollback")
    assert not streams("tracin")


@pytest.mark.parametrize("run", ["run", "graph"])
def test_all_are_those_that_explain_the_model(runs: Path, tmp_path: Path, run: str) -> None:
    text = succeed(
        "evaluate", runs / run, "--methods", "all", *EVALUATE, "--out", tmp_path / "truth"
    )
    summary = json.loads(text)
    names = [row["method"] for row in summary["methods"]]
    assert names == explaining(fi.load(runs / run))
    assert {"gradient-rollback", "curvature-rollback", "replay", "tracin"} <= set(names)
    assert ("turn-over-dropout" in names) == (run == "run")
    assert all(-1 <= row["spearman_all"] <= 1 for row in summary["methods"])


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate graph --methods replay,turn-over-dropout --out new",
        "explain graph --recommend 1 --method turn-over-dropout --out new.csv",
    ],
)
def test_a_method_for_other_models(
    runs: Path, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    result = invoke(*arguments.split())
    assert result.exit_code == 2
    able = explaining(fi.load("graph"))
    assert f"no turn-over-dropout for a DistMult: it can be explained by {', '.join(able)}" in (
        result.stderr
    )
    assert "turn-over-dropout" not in able
    assert not list(Path().glob("new*"))


def test_unknown_methods(runs: Path, tmp_path: Path) -> None:
    calls: list[list[Any]] = [
        ["evaluate", runs / "run", "--methods", "replay,tarot"],
        ["explain", runs / "run", "--recommend", 1, "--method", "tarot"],
    ]
    for call in calls:
        result = invoke(*call, "--out", tmp_path / "new.csv")
        assert result.exit_code == 2
        assert all(name in result.stderr for name in METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", ["run", "graph"])
def test_explain_by_every_method(runs: Path, tmp_path: Path, run: str, method: str) -> None:
    if method not in explaining(fi.load(runs / run)):
        pytest.skip("not for this kind of model")
    out = tmp_path / "why.npz"
    call = ["explain", runs / run, "--recommend", 1, "--k", 2, "--method", method, "--out", out]
    summary = json.loads(succeed(*call, "--json"))
    assert (summary["method"], summary["units"]) == (method, METHODS[method].units)
    with np.load(out) as found:
        assert found["influence"].shape == (summary["n_queries"], 2)
        assert np.abs(found["influence"]).max() > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("explain run --recommend 1 --out new.csv --device abacus", 2, "'abacus' is not known"),
        (
            "explain run --recommend 1 --out new.csv --method tracin --device cuda",
            2,
            "only for cpu",
        ),
        ("evaluate run --methods tracin --out new --device cuda", 2, "only for cpu"),
        ("explain graph --recommend 1 --out new.csv --method hydra --device cuda", 2, "only for"),
    ],
)
def test_devices_that_a_method_cannot_have(
    runs: Path, arguments: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    result = invoke(*arguments.split())
    assert result.exit_code == code
    assert words in result.stderr
    assert not list(Path().glob("new*"))


def test_a_device_by_name(runs: Path, tmp_path: Path) -> None:
    for command in ("explain", "evaluate"):
        assert "--device" in succeed(command, "--help")
    outs = [tmp_path / f"{device}.npz" for device in ("cpu", "auto")]
    for out in outs:
        succeed("explain", runs / "run", "--recommend", 1, "--device", out.stem, "--out", out)
    with np.load(outs[0]) as mine, np.load(outs[1]) as its:
        np.testing.assert_allclose(mine["influence"], its["influence"], rtol=1e-4)
