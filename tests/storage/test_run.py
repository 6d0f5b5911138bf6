"""Run directories: round trips, damage, and writers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.storage import read_run, write_run
from fastinfluence.storage import run as run_module
from fastinfluence.storage.atomic import atomic_file

ARRAYS = {
    "user_factors": np.arange(12, dtype=np.float32).reshape(3, 4),
    "checkpoints/0003/user_factors": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20)[::2],
    "ids": np.array(["ä", "bc", ""]),
    "when": np.array(["2016-12-25"], dtype="M8[D]"),
    "mask": np.array([True, False]),
    "bfloat16": np.arange(5, dtype=np.uint16),
    "empty": np.zeros((0, 7), np.float32),
    "scalar": np.float64(3.5),
}
META = {"seed": 7, "rate": 0.1, "nan": float("nan"), "shape": (1, 2), "none": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", kind="mf", meta=META, arrays=ARRAYS)
    return tmp_path / "run"


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(path: Path, mmap: bool) -> None:
    run = read_run(path, kind="mf", mmap=mmap)
    assert run.kind == "mf"
    assert run.path == path
    assert list(run.arrays) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        found = run.arrays[name]
        assert type(found) is np.ndarray
        assert found.dtype == expected.dtype
        assert found.flags.writeable is not mmap
        assert found.flags.aligned
        np.testing.assert_array_equal(found, expected)
    assert run.meta["shape"] == [1, 2]
    assert run.meta["rate"] == 0.1
    assert np.isnan(run.meta["nan"])


def test_files_are_ordinary_npy(path: Path) -> None:
    np.testing.assert_array_equal(np.load(path / "ids.npy"), ARRAYS["ids"])
    loaded = np.load(path / "checkpoints" / "0003" / "user_factors.npy")
    np.testing.assert_array_equal(loaded, ARRAYS["checkpoints/0003/user_factors"])


def test_an_array_of_many_chunks(tmp_path: Path) -> None:
    big = np.arange(3_000_001, dtype=np.float32)
    write_run(tmp_path / "run", kind="mf", meta={}, arrays={"big": big, "wide": big[None]})
    run = read_run(tmp_path / "run")
    np.testing.assert_array_equal(run.arrays["big"], big)
    np.testing.assert_array_equal(run.arrays["wide"], big[None])


def test_only(path: Path) -> None:
    assert list(read_run(path, only=["ids", "checkpoints/*"]).arrays) == [
        "checkpoints/0003/user_factors",
        "ids",
    ]
    with pytest.raises(RunDirectoryError, match=r"no array 'item_factors'; it holds user_factors"):
        read_run(path, only=["item_factors"])


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("position", [1, -1])  # in the header, in the data
def test_flipped_byte(path: Path, position: int, mmap: bool) -> None:
    file = path / "user_factors.npy"
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="array 'user_factors' is damaged"):
        read_run(path, mmap=mmap)
    read_run(path, mmap=mmap, verify=False)
    read_run(path, mmap=mmap, only=["ids"])


def test_truncated_and_missing_file(path: Path) -> None:
    os.truncate(path / "strided.npy", 130)
    with pytest.raises(RunDirectoryError, match="holds 130 bytes where the manifest says"):
        read_run(path, verify=False)
    (path / "strided.npy").unlink()
    with pytest.raises(RunDirectoryError, match="array 'strided' is missing"):
        read_run(path, verify=False)


def test_absent_and_half_written(tmp_path: Path, path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="there is no run directory at"):
        read_run(tmp_path / "nothing")
    (path / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"holds no manifest\.json"):
        read_run(path)


def test_other_version_kind_and_edited_manifest(path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds 'mf' where 'distmult' was expected"):
        read_run(path, kind="distmult")
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["content"]["meta"]["seed"] = 8
    file.write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="does not match its checksum"):
        read_run(path)
    manifest["format_version"] = 99
    file.write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="version 99, this library reads version 1"):
        read_run(path)
    for text in ("[]", "{}", "{", "\xff"):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(RunDirectoryError, match="damaged"):
            read_run(path)


def test_overwrite(path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="exists already"):
        write_run(path, kind="mf", meta={}, arrays={})
    old = read_run(path, mmap=True)
    write_run(path, kind="mf", meta={"new": 1}, arrays={"x": np.ones(2)}, overwrite=True)
    assert list(read_run(path).arrays) == ["x"]
    np.testing.assert_array_equal(old.arrays["user_factors"], ARRAYS["user_factors"])
    assert sorted(os.listdir(path.parent)) == ["run"]


def test_overwrite_where_directories_cannot_be_exchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastinfluence.storage.atomic.ctypes.CDLL", lambda *_, **__: object())
    write_run(path, kind="mf", meta={"new": 1}, arrays={}, overwrite=True)
    assert read_run(path).meta == {"new": 1}
    assert sorted(os.listdir(path.parent)) == ["run"]


def test_overwrite_spares_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        write_run(tmp_path / "thesis", kind="mf", meta={}, arrays={}, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "", "a.npy", "a/"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match="array name"):
        write_run(tmp_path / "run", kind="mf", meta={}, arrays={name: np.ones(1)})


def test_what_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    arrays = {"x": np.ones(3), "y": np.array([{}])}
    with pytest.raises(ParameterError, match="dtype object"):
        write_run(tmp_path / "run", kind="mf", meta={}, arrays=arrays)
    with pytest.raises(ParameterError, match="plain JSON"):
        write_run(tmp_path / "run", kind="mf", meta={"x": np.ones(1)}, arrays={})
    assert os.listdir(tmp_path) == []


def test_a_failed_overwrite_keeps_the_old_run(path: Path) -> None:
    with pytest.raises(ParameterError):
        write_run(path, kind="mf", meta={}, arrays={"y": np.array([{}])}, overwrite=True)
    assert list(read_run(path).arrays) == list(ARRAYS)
    assert sorted(os.listdir(path.parent)) == ["run"]


KILLED_WRITER = """
import os, signal, sys
import numpy as np
from fastinfluence.storage import run

write_npy, write_manifest, renamed = run.write_npy, run.write_manifest, os.rename

def kill(): os.kill(os.getpid(), signal.SIGKILL)
def killing_npy(file, array):
    if sys.argv[2] == "array" and file.stem == "second": kill()
    return write_npy(file, array)
def killing_manifest(*args, **kwargs):
    if sys.argv[2] == "manifest": kill()
    write_manifest(*args, **kwargs)
    if sys.argv[2] == "rename": kill()

run.write_npy, run.write_manifest = killing_npy, killing_manifest
arrays = {"first": np.ones(1000), "second": np.zeros(1000)}
run.write_run(sys.argv[1], kind="mf", meta={"new": True}, arrays=arrays, overwrite=True)
"""


@pytest.mark.parametrize("moment", ["array", "manifest", "rename"])
@pytest.mark.parametrize("old", [False, True])
def test_a_killed_writer_leaves_the_old_state(tmp_path: Path, moment: str, old: bool) -> None:
    path = tmp_path / "run"
    if old:
        write_run(path, kind="mf", meta={"new": False}, arrays={})
    command = [sys.executable, "-c", KILLED_WRITER, str(path), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".run.tmp-*"))) == 1
    if old:
        assert read_run(path).meta == {"new": False}
    else:
        assert not path.exists()
    write_run(path, kind="mf", meta={"new": True}, arrays={}, overwrite=True)
    assert os.listdir(tmp_path) == ["run"]  # what the dead writer left is gone


def test_a_living_writers_temporary_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npy = run_module.write_npy

    def interrupted(file: Path, array: np.ndarray) -> dict[str, object]:
        monkeypatch.setattr(run_module, "write_npy", write_npy)
        write_run(tmp_path / "run", kind="mf", meta={"writer": 2}, arrays={})
        return write_npy(file, array)

    monkeypatch.setattr(run_module, "write_npy", interrupted)
    arrays = {"x": np.ones(2)}
    write_run(tmp_path / "run", kind="mf", meta={"writer": 1}, arrays=arrays, overwrite=True)
    assert read_run(tmp_path / "run").meta == {"writer": 1}


def test_atomic_file_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "why.csv"
    path.write_text("old")
    (tmp_path / ".why.csv.tmp-dead").write_text("left by a dead writer")

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["why.csv"]
