"""Run directories, tables in shards, atomic writes, and tables for other libraries."""

from fastinfluence.storage.run import Run, read_run, write_run
from fastinfluence.storage.shards import ShardReader, ShardWriter, open_shards

__all__ = ["Run", "ShardReader", "ShardWriter", "open_shards", "read_run", "write_run"]
