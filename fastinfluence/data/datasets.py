"""Real data: two bundled sets, and MovieLens from wherever the user keeps it.

MovieLens may not be redistributed, so it is read from a path.
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt

from fastinfluence.data.interactions import Interactions
from fastinfluence.data.readers import read_table
from fastinfluence.data.tables import Column
from fastinfluence.errors import DataError

__all__ = ["movielens", "nations_path", "npm"]

Folder: TypeAlias = Path | zipfile.Path

_FILES = Path(__file__).parent / "files"


def npm() -> Interactions:
    """Packages of the npm registry (users) and the packages they depend on (items).

    169,582 pairs of 9,723 packages and 1,417 dependencies, without values: a snapshot of
    2016-12-25, reduced to packages with at least 10 dependencies and dependencies with at least
    20 packages. From dependent-packages 2.2.2 by Zeke Sikelianos, MIT licence; see NOTICE.
    """
    packages: list[str] = []
    dependencies: list[str] = []
    with gzip.open(_FILES / "npm-deps-small.grouped.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)  # the header
        for line in lines:
            package, _, depends_on = line.rstrip("\n").partition("\t")
            needed = depends_on.split(" ")
            packages += [package] * len(needed)
            dependencies += needed
    return Interactions.from_arrays(packages, dependencies)


def nations_path() -> Path:
    """The bundled zip of the Nations knowledge graph: train.txt, valid.txt and test.txt.

    1,592 + 199 + 201 tab-separated (head, relation, tail) triples over 14 countries and 55
    relations, as PyKEEN 1.11.1 distributes it (MIT licence); see NOTICE.
    """
    return _FILES / "nations.zip"


class _File(NamedTuple):
    """One file of a MovieLens set, and the columns wanted from it."""

    name: str
    columns: tuple[Column, ...]
    sep: str
    header: bool
    encoding: str = "utf-8"

    def find(self, folder: Folder) -> Folder | None:
        candidates = (folder / self.name, folder / f"{self.name}.gz")
        return next((file for file in candidates if file.is_file()), None)

    def read(self, file: Folder) -> list[npt.NDArray[Any]]:
        table = read_table(
            file, self.columns, sep=self.sep, header=self.header, encoding=self.encoding
        )
        return list(table.values())


# (ratings, movies) of every form in which MovieLens comes
_FORMS = (
    (
        _File("ratings.csv", ("userId", "movieId", "rating"), ",", True),
        _File("movies.csv", ("movieId", "title"), ",", True),
    ),
    (
        _File("u.data", (0, 1, 2), "\t", False),
        _File("u.item", (0, 1), "|", False, "latin-1"),
    ),
    (
        _File("ratings.dat", (0, 1, 2), "::", False),
        _File("movies.dat", (0, 1), "::", False, "latin-1"),
    ),
    (
        _File("ml-1m.train.rating", (0, 1, 2), "\t", False),
        _File("items.tsv", ("item", "title"), "\t", True),
    ),
)


def movielens(path: str | os.PathLike[str]) -> Interactions:
    """Read a MovieLens set, with the movies' titles as `item_labels`.

    Parameters
    ----------
    path : path
        Folder or zip, as GroupLens distributes it: latest-small and its larger kin
        (ratings.csv), 100K (u.data), 1M (ratings.dat); or the train part of the 1M set as
        recommender benchmarks pass it on (ml-1m.train.rating, ids from 0, titles in
        items.tsv). Files may be gzipped; a movies file that is absent leaves out the titles.

    Raises
    ------
    DataError
        There is no such path, it holds none of these forms, or a file in it is damaged.
    """
    root = Path(path)
    for folder in _folders(root):
        for ratings, movies in _FORMS:
            if (file := ratings.find(folder)) is not None:
                rows = ratings.read(file)
                return Interactions.from_arrays(*rows, item_labels=_titles(movies, folder))
    known = ", ".join(ratings.name for ratings, _ in _FORMS)
    raise DataError(f"{root} is no MovieLens set: it holds none of {known}")


def _titles(movies: _File, folder: Folder) -> dict[object, str] | None:
    file = movies.find(folder)
    if file is None:
        return None
    ids, titles = movies.read(file)
    return dict(zip(ids.tolist(), titles.tolist(), strict=True))


def _folders(root: Path) -> Iterator[Folder]:
    """The folder or zip itself, then the folders directly in it."""
    top: Folder = root
    if not root.exists():
        raise DataError(f"{root}: there is no such folder or zip")
    if not root.is_dir():
        try:
            top = zipfile.Path(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{root} is neither a folder nor a readable zip ({error})") from error
    yield top
    yield from sorted((entry for entry in top.iterdir() if entry.is_dir()), key=str)
