"""Real data: two bundled sets, MovieLens and knowledge graphs from wherever the user keeps them.

What may not be redistributed is read from a path.
"""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Coded, IdMap
from fastinfluence.data.interactions import Interactions
from fastinfluence.data.readers import naming, read_table
from fastinfluence.data.tables import Column
from fastinfluence.data.triple_readers import read_triples
from fastinfluence.data.triples import TripleDuplicates, Triples
from fastinfluence.errors import DataError, ParameterError

__all__ = ["knowledge_graph", "movielens", "movielens_graph", "nations", "npm"]

Folder: TypeAlias = Path | zipfile.Path

LABEL_WIDTH = 60  # of names taken from entity2text, where WordNet puts whole definitions

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


def nations() -> Triples:
    """What 14 countries do to each other, in 55 relations.

    1,592 triples to train on, 199 for validation, 201 for testing, as PyKEEN 1.11.1 distributes
    them (MIT licence); see NOTICE.
    """
    return knowledge_graph(_FILES / "nations.zip")


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
        Folder or archive, as GroupLens distributes it: latest-small and its larger kin
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


def movielens_graph(
    path: str | os.PathLike[str],
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    rng: int | np.random.Generator | None = 0,
) -> Triples:
    """Read a MovieLens set as a knowledge graph: ("user 196", movie title, "rating 3").

    Parameters
    ----------
    path : path
        As in `movielens`. Movies are relations; those that share a title get their id behind
        it.
    validation_fraction, test_fraction : float
        Shares of all ratings that are held out.
    rng : int, Generator or None
        Draws the ratings held out.

    Raises
    ------
    DataError
        As in `movielens`.
    ParameterError
        A fraction that leaves a part empty.
    """
    ratings = movielens(path)
    if not 0 < validation_fraction < 1 - test_fraction < 1:
        raise ParameterError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} must be "
            "positive and leave something to train on"
        )
    rng = np.random.default_rng(rng)
    rest, test = ratings.split(test_fraction, rng)
    train, validation = rest.split(validation_fraction / (1 - test_fraction), rng)
    movies = _movie_names(ratings)
    heads, relations, tails = _rating_triples(train, movies)
    return Triples.from_arrays(
        heads,
        relations,
        tails,
        validation=_rating_triples(validation, movies),
        test=_rating_triples(test, movies),
    )


def _movie_names(ratings: Interactions) -> list[str]:
    """A name for each movie, no two alike."""
    labels = ratings.item_labels
    ids = [f"movie {raw}" for raw in ratings.item_ids.tolist()]
    names = ids if labels is None else [t or i for t, i in zip(labels.tolist(), ids, strict=True)]
    counts = Counter(names)
    return [t if counts[t] == 1 else f"{t} ({i})" for t, i in zip(names, ids, strict=True)]


def _rating_triples(ratings: Interactions, movies: list[str]) -> tuple[Coded, Coded, Coded]:
    values, levels = np.unique(ratings.values, return_inverse=True)
    return (
        Coded.of(ratings.users, [f"user {raw}" for raw in ratings.user_ids.tolist()]),
        Coded.of(ratings.items, movies),
        Coded.of(levels, [f"rating {value:g}" for value in values.tolist()]),
    )


def knowledge_graph(
    path: str | os.PathLike[str], *, duplicates: TripleDuplicates = "error"
) -> Triples:
    """Read a knowledge graph as such sets are passed on: FB15k-237, WN18RR, CoDEx, ...

    Parameters
    ----------
    path : path
        Folder, zip or tar (compressed or not) with a file ``train`` and perhaps ``valid`` (or
        ``validation``, ``dev``) and ``test``, each ``.txt`` or ``.tsv``, gzipped or not, of
        (head, relation, tail) rows. Names for people are taken from ``entity2text.txt`` and
        ``relation2text.txt`` (raw id, tab, name), in the set or beside its archive, where they
        exist; long ones are shortened.
    duplicates : {"error", "first", "keep"}
        See `Triples.from_arrays`.

    Raises
    ------
    DataError
        There is no such path, it holds no training triples, or a file in it is damaged.
    """
    root = Path(path)
    for folder in _folders(root):
        if (train := _find(folder, "train")) is None:
            continue
        data = read_triples(
            train,
            validation=_find(folder, "valid", "validation", "dev"),
            test=_find(folder, "test"),
            duplicates=duplicates,
        )
        beside = folder if root.is_dir() else root.parent
        return data.with_labels(
            _labels(data.entity_map, _find(folder, "entity2text") or _find(beside, "entity2text")),
            _labels(
                data.relation_map, _find(folder, "relation2text") or _find(beside, "relation2text")
            ),
        )
    raise DataError(f"{root} is no knowledge graph: it holds no train.txt or train.tsv")


def _find(folder: Folder, *stems: str) -> Folder | None:
    endings = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
    candidates = (folder / f"{stem}{ending}" for stem in stems for ending in endings)
    return next((file for file in candidates if file.is_file()), None)


def _labels(id_map: IdMap, file: Folder | None) -> dict[str, str] | None:
    """Names of the ids of a map, out of lines of id, tab, name; None where there are none."""
    if file is None:
        return None
    known = set(id_map.ids.tolist())
    labels = {}
    with naming(file), cast(Any, file.open("rb")) as raw:
        packed = file.suffix == ".gz"
        for line in gzip.GzipFile(fileobj=raw) if packed else raw:
            raw_id, _, label = line.decode().rstrip("\r\n").partition("\t")
            if raw_id in known:
                long = len(label) > LABEL_WIDTH
                labels[raw_id] = shorten(label, LABEL_WIDTH, placeholder=" …") if long else label
    return labels or None


def _folders(root: Path) -> Iterator[Folder]:
    """The folder or archive itself, then the folders directly in it."""
    if not root.exists():
        raise DataError(f"{root}: there is no such folder or archive")
    top = root if root.is_dir() else _open_archive(root)
    yield top
    yield from sorted((entry for entry in top.iterdir() if entry.is_dir()), key=str)


def _open_archive(path: Path) -> zipfile.Path:
    try:
        if tarfile.is_tarfile(path):
            return _tar_as_zip(path)
        return zipfile.Path(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path} is neither a folder nor a readable zip or tar ({error})"
        ) from error


def _tar_as_zip(path: Path) -> zipfile.Path:
    """A tar's files as a zip in memory: a compressed tar has no way straight to one of them."""
    buffer = io.BytesIO()
    with tarfile.open(path) as packed, zipfile.ZipFile(buffer, "w") as archive:
        for member in packed:
            if (file := packed.extractfile(member)) is not None:
                archive.writestr(posixpath.normpath(member.name), file.read())
    opened = zipfile.ZipFile(buffer)
    opened.filename = str(path)  # for error messages
    return zipfile.Path(opened)
