"""The package from outside: a light import, documented names, examples that run, packaging."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastinfluence as fi
from fastinfluence import errors

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "pandas", "polars", "pyarrow", "matplotlib", "numba", "llvmlite", "click"]

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(fi.__path__, "fastinfluence.")
    if not name.startswith("fastinfluence.kernels") and not name.endswith("__main__")
)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_is_light():
    code = f"import sys, fastinfluence; print(*(m for m in {HEAVY} if m in sys.modules))"
    assert run(code) == []


@pytest.mark.parametrize("name", fi.__all__)
def test_names_exist_and_are_documented(name):
    assert inspect.getdoc(getattr(fi, name))


def test_nothing_else_is_public():
    found = {
        name
        for name, value in vars(fi).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert found <= set(fi.__all__)
    assert list(fi.__all__) == sorted(fi.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_what_modules_export_exists_and_is_documented(module):
    module = importlib.import_module(module)
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if getattr(value, "__module__", None) == module.__name__ and callable(value):
            assert inspect.getdoc(value), name


def public_methods():
    for name in fi.__all__:
        value = getattr(fi, name)
        if inspect.isclass(value) and not issubclass(value, Exception):
            for attribute, method in inspect.getmembers(value):
                if not attribute.startswith("_") and (
                    inspect.isroutine(method) or isinstance(method, property)
                ):
                    yield pytest.param(method, id=f"{name}.{attribute}")


@pytest.mark.parametrize("method", list(public_methods()))
def test_methods_are_documented(method):
    assert inspect.getdoc(method)


def test_one_except_catches_every_error_of_ours():
    made = [getattr(errors, name) for name in errors.__all__ if not name.endswith("Warning")]
    assert errors.FastInfluenceError in made
    assert all(issubclass(error, fi.FastInfluenceError) for error in made)
    assert fi.errors is errors
    for error, builtin in (
        (errors.DataError, ValueError),
        (errors.ParameterError, ValueError),
        (errors.NotFittedError, AttributeError),
        (errors.RunDirectoryError, OSError),
        (errors.ReplayMismatch, RuntimeError),
        (errors.MissingExtraError, ImportError),
        (errors.UnknownIdError, KeyError),
    ):
        assert issubclass(error, builtin)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(
        importlib.import_module(module),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = [
        name for name in ("MatrixFactorization", "GradientRollback")
        if any(test.examples for test in finder.find(getattr(fi, name), name))
    ]  # fmt: skip
    assert with_examples == ["MatrixFactorization", "GradientRollback"]


# ---------------------------------------------------------------- packaging


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_list_of_packages_is_what_is_on_the_disk(project):
    def packages(folder, name):
        return {
            ".".join([name, *file.parent.relative_to(folder).parts])
            for file in folder.rglob("__init__.py")
        }

    found = packages(ROOT / "fastinfluence", "fastinfluence")
    found |= packages(ROOT / "kernels", "fastinfluence.kernels")
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_one_version(project):
    assert project["project"]["version"] == fi.__version__


def test_kernels_are_found_where_the_link_did_not_survive(tmp_path):
    """A checkout without symbolic links: the kernels lie beside the package."""
    code = (
        "import sys, pathlib\n"
        f"root, copy = pathlib.Path({str(ROOT)!r}), pathlib.Path({str(tmp_path)!r})\n"
        "(copy / 'fastinfluence').mkdir()\n"
        "for entry in (root / 'fastinfluence').iterdir():\n"
        "    if entry.name not in ('kernels', '__pycache__'):\n"
        "        (copy / 'fastinfluence' / entry.name).symlink_to(entry)\n"
        "(copy / 'kernels').symlink_to(root / 'kernels')\n"
        "others = [p for p in sys.path if pathlib.Path(p).resolve() != root]\n"
        "sys.path[:] = [str(copy), *others]\n"
        "import fastinfluence.kernels.structures as found\n"
        "print(found.__file__.startswith(str(copy)))\n"
    )
    assert run(code) == ["True"]
