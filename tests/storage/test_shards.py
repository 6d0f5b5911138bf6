"""Tables in shards: row ranges, resuming, failing disks, and writers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.storage import ShardWriter, open_shards, read_run, shards

SIZES = [3, 1, 0, 5]
META = {"method": "gradient-rollback", "k": 2}


def block(start: int, size: int) -> dict[str, np.ndarray]:
    rows = np.arange(start, start + size)
    return {
        "train_index": np.stack([rows, -rows], axis=1).astype(np.int32),
        "prediction": rows.astype(np.float32),
    }


def write(path: Path) -> None:
    with ShardWriter(path, meta=META) as writer:
        for start, size in zip(np.cumsum([0, *SIZES]), SIZES, strict=False):
            writer.append(block(int(start), size))


@pytest.mark.parametrize("mmap", [True, False])
def test_row_ranges(tmp_path: Path, mmap: bool) -> None:
    write(tmp_path / "why")
    reader = open_shards(tmp_path / "why", mmap=mmap)
    whole = block(0, sum(SIZES))
    assert len(reader) == sum(SIZES)
    assert reader.n_shards == len(SIZES)
    assert reader.columns == list(whole)
    assert reader.meta == META
    assert [len(shard["prediction"]) for shard in reader] == SIZES
    for start in range(-2, 11):
        for stop in range(-2, 11):
            found = reader[start:stop]
            for name, column in whole.items():
                np.testing.assert_array_equal(found[name], column[start:stop])
                assert found[name].dtype == column.dtype
    reader.verify()


def test_a_range_inside_one_shard_is_a_view_of_the_open_mapping(tmp_path: Path) -> None:
    write(tmp_path / "why")
    reader = open_shards(tmp_path / "why")
    first, again = reader[4:6]["prediction"], reader[4:6]["prediction"]
    assert np.shares_memory(first, again)
    assert not first.flags.writeable


@pytest.mark.parametrize("rows", [3, slice(0, 4, 2)])
def test_other_ways_to_index_are_refused(tmp_path: Path, rows: object) -> None:
    write(tmp_path / "why")
    with pytest.raises(ParameterError, match="by range"):
        open_shards(tmp_path / "why")[rows]  # type: ignore[index]


def test_an_empty_table(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "why", meta={}).close()
    reader = open_shards(tmp_path / "why")
    assert len(reader) == 0
    assert list(reader) == []
    assert reader[:5] == {}


def test_resume_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path / "why", meta=META) as writer:
            writer.append(block(0, 3))
            writer.append(block(3, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(RunDirectoryError, match="not finished"):
        open_shards(tmp_path / "why")
    with pytest.raises(RunDirectoryError, match="resume=True"):
        ShardWriter(tmp_path / "why", meta=META)
    with ShardWriter(tmp_path / "why", meta=META, resume=True) as writer:
        assert (writer.done, writer.rows_done) == (2, 7)
        with pytest.raises(ParameterError, match="where the first one had"):
            writer.append({"prediction": np.ones(2, np.float32)})
        writer.append(block(7, 2))
    reader = open_shards(tmp_path / "why")
    np.testing.assert_array_equal(reader[:]["prediction"], np.arange(9))
    with ShardWriter(tmp_path / "why", meta=META, resume=True) as writer:  # all was done
        assert writer.done == 3
    assert len(open_shards(tmp_path / "why")) == 9


def test_resume_needs_the_same_meta(tmp_path: Path) -> None:
    write(tmp_path / "why")
    with pytest.raises(RunDirectoryError, match=r"another meta .*\(k: 2, now 3\)"):
        ShardWriter(tmp_path / "why", meta={**META, "k": 3}, resume=True)


def test_resume_refuses_a_foreign_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        ShardWriter(tmp_path, meta=META, resume=True)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "why", meta=META),
        pytest.raises(RunDirectoryError, match="another writer"),
    ):
        ShardWriter(tmp_path / "why", meta=META, resume=True)
    ShardWriter(tmp_path / "why", meta=META, resume=True).close()


def test_bad_blocks(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "why", meta=META) as writer:
        for columns in ({}, {"x": np.ones(2), "y": np.ones(3)}, {"x": np.float64(1)}):
            with pytest.raises(ParameterError, match="of one length"):
                writer.append(columns)
        with pytest.raises(ParameterError, match="identifiers"):
            writer.append({"../x": np.ones(2)})
        writer.append(block(0, 2))
        with pytest.raises(ParameterError, match="where the first one had"):
            writer.append({**block(2, 2), "prediction": np.ones(2, np.float64)})
    with pytest.raises(ParameterError, match="closed"):
        writer.append(block(2, 2))
    assert len(open_shards(tmp_path / "why")) == 2


def test_errors_of_the_writer_thread_surface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npy = shards.write_npy

    def full(file: Path, array: np.ndarray) -> dict[str, object]:
        if array.flat[0] == 2:
            raise OSError(28, "No space left on device")
        return write_npy(file, array)

    monkeypatch.setattr(shards, "write_npy", full)
    writer = ShardWriter(tmp_path / "why", meta=META)

    def append_many() -> None:
        for start in range(0, 20, 2):  # an append may be two blocks ahead of the disk
            writer.append(block(start, 2))

    with pytest.raises(RunDirectoryError, match=r"shard 1 .* No space left"):
        append_many()
    with pytest.raises(RunDirectoryError, match="No space left"):
        writer.close()
    monkeypatch.undo()
    with ShardWriter(tmp_path / "why", meta=META, resume=True) as writer:
        assert writer.done == 1
        writer.append(block(2, 2))
    np.testing.assert_array_equal(open_shards(tmp_path / "why")[:]["prediction"], np.arange(4))


def test_damage_is_found(tmp_path: Path) -> None:
    write(tmp_path / "why")
    with pytest.raises(RunDirectoryError, match="holds 'shards' where 'mf' was expected"):
        read_run(tmp_path / "why", kind="mf")
    file = tmp_path / "why" / "000003" / "prediction.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(RunDirectoryError, match=r"array 'prediction' is damaged.*000003"):
        open_shards(tmp_path / "why").verify()
    file.write_bytes(content[:-1])
    with pytest.raises(RunDirectoryError, match="where the manifest says"):
        open_shards(tmp_path / "why")


KILLED_WRITER = """
import os, signal, sys
import numpy as np
from fastinfluence.storage import shards

write_npy = shards.write_npy
def killing(file, array):
    if array[0] == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_npy(file, array)

shards.write_npy = killing
with shards.ShardWriter(sys.argv[1], meta={"k": 1}) as writer:
    for start in range(0, 100, 10):
        rows = np.arange(start, start + 10)
        writer.append({"query": rows - 100, "item": rows})
"""


def test_a_killed_writer_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "why"
    command = [sys.executable, "-c", KILLED_WRITER, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (path / "part" / "query.npy").is_file()  # the broken tail
    with pytest.raises(RunDirectoryError, match="not finished"):
        open_shards(path)
    with ShardWriter(path, meta={"k": 1}, resume=True) as writer:
        assert (writer.done, writer.rows_done) == (3, 30)
        for start in range(writer.rows_done, 100, 10):
            rows = np.arange(start, start + 10)
            writer.append({"query": rows - 100, "item": rows})
    np.testing.assert_array_equal(open_shards(path)[:]["item"], np.arange(100))
    assert "part" not in os.listdir(path)
