"""Settings of a bench run, and the data and the model that several suites share."""

from __future__ import annotations

import os
import sys

# Before numpy: an OpenBLAS told to be an older processor runs at half its rate, and peers must
# not take a second thread unasked.
if "numpy" in sys.modules:
    raise RuntimeError("numpy was imported before bench/conftest.py could set up its BLAS")
UNSET = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if os.environ.pop(name, None)]
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"

import subprocess  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import data_sets  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import fastinfluence as fi  # noqa: E402

N_FACTORS = 64
_FACTS = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastinfluence")
    group.addoption(
        "--all-pairs",
        action="store_true",
        help="also explain every user-item pair of MovieLens 1M (a minute or two, 4 GB of disk)",
    )
    group.addoption(
        "--smoke",
        action="store_true",
        help="tiny synthetic data and one round: to see that every bench runs, not how fast",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    facts: dict[str, Any] = {"load_average_at_start": os.getloadavg()}
    if not session.config.option.collectonly:
        facts["sgemm_gflops"] = [machine.sgemm_gflops()]
        facts["copy_gb_per_s"] = [machine.copy_bandwidth()]
    session.config.stash[_FACTS] = facts


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add what the figures depend on; called once, when the JSON is written."""
    facts = config.stash[_FACTS]
    facts["sgemm_gflops"].append(machine.sgemm_gflops())
    facts["copy_gb_per_s"].append(machine.copy_bandwidth())
    machine_info["fastinfluence"] = facts | {
        "smoke": config.getoption("--smoke"),
        "cores": machine.cores(),
        "blas": machine.blas(),
        "unset": UNSET,
        "versions": machine.versions(),
    }


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether sizes and rounds are to be as small as possible."""
    return bool(request.config.getoption("--smoke"))


@pytest.fixture(scope="session")
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What is written into the JSON about this run."""
    return request.config.stash[_FACTS]


@pytest.fixture(scope="session")
def ml_1m(smoke: bool, facts: dict[str, Any]) -> fi.Interactions:
    """MovieLens 1M, or ratings of its shape."""
    data, facts["ml_1m"] = data_sets.ml_1m(smoke)
    return data


@pytest.fixture(scope="session")
def ml_100k(smoke: bool, facts: dict[str, Any]) -> fi.Interactions:
    """MovieLens 100K, or ratings of its shape."""
    data, facts["ml_100k"] = data_sets.ml_100k(smoke)
    return data


@pytest.fixture(scope="session")
def fb15k_237(smoke: bool, facts: dict[str, Any]) -> fi.Triples:
    """FB15k-237, or a graph of its shape."""
    data, facts["fb15k_237"] = data_sets.fb15k_237(smoke)
    return data


@pytest.fixture(scope="session")
def codex_s(smoke: bool, facts: dict[str, Any]) -> fi.Triples:
    """CoDEx-S, or a graph of its shape."""
    data, facts["codex_s"] = data_sets.codex_s(smoke)
    return data


@pytest.fixture(scope="session")
def umls(smoke: bool, facts: dict[str, Any]) -> fi.Triples:
    """UMLS, or a graph of its shape."""
    data, facts["umls"] = data_sets.umls(smoke)
    return data


@pytest.fixture(scope="session")
def model(ml_1m: fi.Interactions) -> fi.MatrixFactorization:
    """The model that is explained: k = 64, 20 epochs, everything else the default."""
    return fi.MatrixFactorization(n_factors=N_FACTORS, rng=0).fit(ml_1m, show_progress=False)


@pytest.fixture(scope="session")
def top_10(model: fi.MatrixFactorization) -> np.ndarray:
    """(10 * n_users, 2): the ten best new items of every user, user by user, raw ids."""
    items, _ = model.recommend(k=10)
    return np.column_stack([np.repeat(model.data_.user_ids, 10), items.ravel()])


@pytest.fixture
def disk() -> Iterator[Path]:
    """A fresh folder where temporary files go; TMPDIR chooses another disk."""
    with tempfile.TemporaryDirectory(prefix="fastinfluence-bench-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> int:
    """Threads of our call: one, and two where there are two processors."""
    if request.param > machine.cores():
        pytest.skip(f"{request.param} threads need as many processors")
    return int(request.param)


@pytest.fixture
def run_script(request: pytest.FixtureRequest) -> Any:
    """Run a Python script of this folder in a process of its own; what it printed."""

    def run(*arguments: object) -> str:
        environment = os.environ | {"PYTHONPATH": str(request.config.rootpath.parent)}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{command} failed:\n{done.stderr}")
        return done.stdout

    return run
