"""Every Python example of the README and the array-level guide runs.

Those of docs/command-line.md, which need what its commands write, run in test_cli.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", ROOT / "docs" / "functional.md")
    for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, capsys):
    exec(compile(code, "example", "exec"), {})
    assert ("print(" not in code) or capsys.readouterr().out.strip()


def test_first_screen_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = BLOCK.findall(text)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 11
    assert "pip install . && fastinfluence demo" in text
    assert 'pip install -e ".[test]" && python -m pytest' in text
