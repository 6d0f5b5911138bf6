"""The bundled sets, and MovieLens in all its forms."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest

from fastinfluence.data import datasets
from fastinfluence.errors import DataError

FORMS = {
    "latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\r\n1,20,4.5,9\r\n2,10,3.0,9\r\n",
        "movies.csv": 'movieId,title,genres\r\n10,"Été, The (1995)",x\r\n20,Heat (1995),x\r\n',
    },
    "100k": {
        "u.data": "1\t20\t4.5\t9\n2\t10\t3\t9\n",
        "u.item": "10|Été, The (1995)|01-Jan-1995||x|0\n20|Heat (1995)|01-Jan-1995||x|1\n",
    },
    "1m": {
        "ratings.dat": "1::20::4.5::9\n2::10::3::9\n",
        "movies.dat": "10::Été, The (1995)::Drama\n20::Heat (1995)::Crime\n",
    },
    "benchmark 1m": {
        "ml-1m.train.rating": "1\t20\t4.5\t9\n2\t10\t3\t9\n",
        "items.tsv": "item\tmovie_id\ttitle\n10\t1\tÉté, The (1995)\n20\t2\tHeat (1995)\n",
    },
}


def contents(form: str) -> dict[str, bytes]:
    latin = {"u.item", "movies.dat"}
    return {
        name: content.encode("latin-1" if name in latin else "utf-8")
        for name, content in FORMS[form].items()
    }


def check(data) -> None:
    assert data.user_ids[data.users].tolist() == [1, 2]
    assert data.item_ids[data.items].tolist() == [20, 10]
    assert data.values.tolist() == [4.5, 3.0]
    assert data.item_labels.tolist() == ["Été, The (1995)", "Heat (1995)"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", ["", "ml-set"])
def test_movielens_folder_and_zip(tmp_path, form, inside):
    folder = tmp_path / "folder"
    (folder / inside).mkdir(parents=True)
    (folder / "another").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in contents(form).items():
            (folder / inside / name).write_bytes(content)
            packed.writestr(f"{inside}/{name}" if inside else name, content)
    check(datasets.movielens(folder))
    check(datasets.movielens(str(tmp_path / "set.zip")))


@pytest.mark.parametrize("form", FORMS)
def test_movielens_gzipped_files(tmp_path, form):
    for name, content in contents(form).items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    check(datasets.movielens(tmp_path))


def test_movielens_without_movies_has_no_titles(tmp_path):
    (tmp_path / "u.data").write_bytes(contents("100k")["u.data"])
    assert datasets.movielens(tmp_path).item_labels is None


def test_movielens_refuses_what_it_is_not(tmp_path):
    with pytest.raises(DataError, match=r"none\.zip: there is no such folder or archive"):
        datasets.movielens(tmp_path / "none.zip")
    with pytest.raises(DataError, match=r"is no MovieLens set: .* none of ratings\.csv, u\.data"):
        datasets.movielens(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 not really")
    with pytest.raises(DataError, match="neither a folder nor a readable zip"):
        datasets.movielens(tmp_path / "bad.zip")


def test_movielens_damaged_member(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("u.data", contents("100k")["u.data"])
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(b"1\t20")] ^= 8
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"u\.data: truncated or damaged"):
        datasets.movielens(path)


def test_npm():
    data = datasets.npm()
    assert (len(data), data.n_users, data.n_items) == (169_582, 9_723, 1_417)
    assert not data.has_values
    express = data.items[data.users == data.user_index("0n")[0]]
    assert "express" in data.item_ids[express]
    assert np.bincount(data.users).min() == 10
    assert np.bincount(data.items).min() == 20


REAL = {
    "ml-latest-small/ml-latest-small.zip": (100_836, 610, 9_724, 1, "Toy Story (1995)"),
    "ml-latest-small-2016/ml-latest-small-2016.zip": (100_004, 671, 9_066, 1, "Toy Story (1995)"),
    "ml-100k/ml-100k.zip": (100_000, 943, 1_682, 1, "Toy Story (1995)"),
    "ml-1m": (994_169, 6_040, 3_704, 1, "James and the Giant Peach (1996)"),
}


@pytest.mark.parametrize("path", REAL)
def test_real_movielens(data_dir, path):
    if not (data_dir / path).exists():
        pytest.skip(f"{path} is not in {data_dir}")
    n, n_users, n_items, item, title = REAL[path]
    data = datasets.movielens(data_dir / path)
    assert (len(data), data.n_users, data.n_items) == (n, n_users, n_items)
    assert data.item_name(data.item_index(item)[0]) == title
