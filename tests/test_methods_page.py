"""docs/methods.md says what was measured, of every method there is."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastinfluence.cli.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "report_methods", ROOT / "bench" / "report_methods.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured(report: ModuleType) -> Any:
    return json.loads(report.SOURCE.read_text())


def test_the_page_is_made_of_what_was_measured(report: ModuleType, measured: Any) -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == report.document(measured), "run python bench/report_methods.py"


def test_every_figure_is_on_the_page(report: ModuleType, measured: Any) -> None:
    before = report.document(measured)
    names = ["spearman_adjacent", "spearman_all", "scale", "top1_ratio"]
    for study in measured:
        for method, row in measured[study]["methods"].items():
            for name in [*names, "each_seconds", "first_seconds"] if "units" in row else []:
                changed = copy.deepcopy(measured)
                changed[study]["methods"][method][name] = 123.0
                assert report.document(changed) != before, (study, method, name)


def test_what_was_left_out_or_warned_of_is_said(report: ModuleType, measured: Any) -> None:
    study = next(iter(measured.values()))
    study["methods"]["gradient-rollback"]["warnings"] = ["beware of it"]
    study["methods"]["replay"] = {"left_out": "it is tired"}
    text = report.document(measured)
    assert "`gradient-rollback`: beware of it\n" in text
    assert "`replay`: it is tired\n" in text


def test_every_method_is_described(report: ModuleType) -> None:
    assert set(METHODS) <= set(report.FACTS)
    guide = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in guide for name in METHODS)
