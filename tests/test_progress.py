"""The progress bar: silent off a terminal, shown where asked for."""

from __future__ import annotations

import pytest

from fastinfluence.progress import progress


def test_hidden_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], description="training")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, description="training", show=True, unit="epoch") as bar:
        bar.set_postfix(loss=0.42)
        bar.update(3)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "3/3" in shown
    assert "loss=0.42" in shown
    assert "epoch" in shown
