"""The manifest of a directory: what it holds, in which format, with checksums.

It is written last, so that a directory with a manifest is complete.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.storage.atomic import atomic_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def plain(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what `meta` becomes in a file: tuples turn into lists, keys into strings."""
    try:
        result: dict[str, Any] = json.loads(json.dumps(meta))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"meta must be plain JSON: {error}") from error
    return result


def write_manifest(path: Path, *, kind: str, content: dict[str, Any]) -> None:
    """Write `content` as the JSON file `path`, whole or not at all."""
    body = plain(content)
    head = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "library_version": _library_version(),
        "checksum": _checksum(body),
    }
    with atomic_file(path) as file:
        file.write(json.dumps({**head, "content": body}, indent=1).encode())


def read_manifest(path: Path, *, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the kind and the content of the manifest file `path`.

    Raises
    ------
    RunDirectoryError
        The directory or the manifest is absent, damaged, of another format version, or,
        where `kind` is given, of another kind.
    """
    folder = path.parent
    if not folder.is_dir():
        raise RunDirectoryError(f"there is no run directory at {folder}")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format_version"]
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{folder} holds no {path.name}: it is not a run directory, or only half of one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise RunDirectoryError(
            f"{folder} is of format version {version}, this library reads version "
            f"{FORMAT_VERSION}: use the release that wrote it "
            f"({manifest.get('library_version', 'unknown')}), or write it again"
        )
    found, content = manifest.get("kind"), manifest.get("content")
    if not isinstance(content, dict) or manifest.get("checksum") != _checksum(content):
        raise RunDirectoryError(f"{path} is damaged: its content does not match its checksum")
    if kind is not None and found != kind:
        raise RunDirectoryError(f"{folder} holds {found!r} where {kind!r} was expected")
    return str(found), content


def _checksum(content: dict[str, Any]) -> str:
    return f"crc32:{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _library_version() -> str:
    from importlib import metadata  # a tenth of what `import fastinfluence` may take

    try:
        return metadata.version("fastinfluence")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
