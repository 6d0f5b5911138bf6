"""Every Python example of the README and the guides runs.

Those of docs/command-line.md, which need what its commands write, run in test_cli.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "cross-loss",
            "devices",
            "explaining",
            "faithfulness",
            "functional",
            "knowledge-graphs",
            "methods",
        )
    ),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, capsys):
    """One after the other: an example may use the names of those above it."""
    names: dict[str, object] = {}
    for code in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(code, page.name, "exec"), names)
        assert ("print(" not in code) or capsys.readouterr().out.strip()


def test_first_screen_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = BLOCK.findall(text)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 11
    assert "pip install . && fastinfluence demo" in text
    assert 'pip install -e ".[test]" && python -m pytest' in text
