"""Nations, knowledge graphs in folders and archives, MovieLens as a graph; facts of real sets."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from fastinfluence.data import datasets
from fastinfluence.errors import DataError, ParameterError

FILES = {
    "train.txt": "/m/1\t/has/a\t/m/2\n/m/2\t/has/a\t/m/2\n",
    "valid.txt": "/m/2\t/has/a\t/m/1\n",
    "test.txt": "/m/9\t/is\t/m/1\n",
}


def raw(data) -> list[tuple]:
    return list(zip(*(column.tolist() for column in data.columns().values()), strict=True))


def check(data) -> None:
    assert raw(data) == [("/m/1", "/has/a", "/m/2"), ("/m/2", "/has/a", "/m/2")]
    assert raw(data.validation) == [("/m/2", "/has/a", "/m/1")]
    assert raw(data.test) == [("/m/9", "/is", "/m/1")]


def pack_tar(path, mode, prefix="", files=FILES):
    with tarfile.open(path, mode) as packed:
        folder = tarfile.TarInfo(prefix or "other")
        folder.type = tarfile.DIRTYPE
        packed.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content.encode()))


def test_nations():
    data = datasets.nations()
    assert (len(data), len(data.validation), len(data.test)) == (1_592, 199, 201)
    assert (data.n_entities, data.n_relations) == (14, 55)
    assert len(data.unseen_entities) == len(data.unseen_relations) == 0
    assert data.triple_name(0) == "netherlands — militaryalliance → uk"


@pytest.mark.parametrize("inside", ["", "set/"])
def test_folder_zip_and_tar(tmp_path, inside):
    folder = tmp_path / "folder" / inside
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in FILES.items():
            (folder / name).write_text(content)
            packed.writestr(inside + name, content)
    pack_tar(tmp_path / "set.tar.gz", "w:gz", inside)
    pack_tar(tmp_path / "set.tar", "w", f"./{inside}")
    for name in ("folder", "set.zip", "set.tar.gz", "set.tar"):
        check(datasets.knowledge_graph(tmp_path / name))


def test_other_names_of_the_files(tmp_path):
    renamed = {"train.txt": "train.tsv.gz", "valid.txt": "dev.tsv", "test.txt": "test.txt.gz"}
    for name, content in FILES.items():
        packed = gzip.compress(content.encode())
        path = tmp_path / renamed[name]
        path.write_bytes(packed if path.suffix == ".gz" else content.encode())
    check(datasets.knowledge_graph(str(tmp_path)))


def test_training_alone_and_its_duplicates(tmp_path):
    (tmp_path / "train.txt").write_text(FILES["train.txt"] * 2)
    with pytest.raises(DataError, match=r"train.txt: 2 of 4 training triples repeat"):
        datasets.knowledge_graph(tmp_path)
    data = datasets.knowledge_graph(tmp_path, duplicates="first")
    assert (len(data), data.splits) == (2, {})


def test_names_beside_the_archive_or_in_the_folder(tmp_path):
    long = "word " * 100
    names = f"/m/1\tOne, a number\n/m/2\t{long}\n/m/7\tunused\n"
    (tmp_path / "entity2text.txt.gz").write_bytes(gzip.compress(names.encode()))
    pack_tar(tmp_path / "set.tgz", "w:gz")
    data = datasets.knowledge_graph(tmp_path / "set.tgz")
    assert data.entity_name(0) == "One, a number"
    assert data.entity_name(1) == "word " * 11 + "…"
    assert data.test.triple_name(0) == "/m/9 — /is → One, a number"
    assert data.relation_labels is None

    (tmp_path / "relation2text.txt").write_text("/other\tof another set\n")
    assert datasets.knowledge_graph(tmp_path / "set.tgz").relation_labels is None

    pack_tar(
        tmp_path / "own.tar", "w", files={**FILES, "relation2text.txt": "/is\tis the same as\n"}
    )
    named = datasets.knowledge_graph(tmp_path / "own.tar")
    assert named.test.triple_name(0) == "/m/9 — is the same as → One, a number"


def test_what_is_no_knowledge_graph(tmp_path):
    with pytest.raises(DataError, match=r"none: there is no such folder or archive"):
        datasets.knowledge_graph(tmp_path / "none")
    with pytest.raises(DataError, match=r"is no knowledge graph: it holds no train.txt"):
        datasets.knowledge_graph(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataError, match=r"neither a folder nor a readable zip or tar"):
        datasets.knowledge_graph(tmp_path / "x.tar.gz")
    rng = np.random.default_rng(0)
    noise = "".join(f"{a}\tr\t{b}\n" for a, b in rng.integers(0, 10**9, (20_000, 2)))
    pack_tar(tmp_path / "cut.tar.gz", "w:gz", files={"train.txt": noise})
    whole = (tmp_path / "cut.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.tar.gz is neither .* readable zip or tar"):
        datasets.knowledge_graph(tmp_path / "cut.tar.gz")
    pack_tar(tmp_path / "bad.tar", "w", files={**FILES, "test.txt": "a\tb\n"})
    with pytest.raises(DataError, match=r"bad.tar/test.txt: say which of 2 columns"):
        datasets.knowledge_graph(tmp_path / "bad.tar")


# ------------------------------------------------------------------ MovieLens


@pytest.fixture
def ratings(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.permutation(200)[:100]
    content = "".join(f"{n // 10 + 1}\t{n % 10 + 1}\t{n % 5 + 1}\t0\n" for n in rows)
    (tmp_path / "u.data").write_text(content)
    titles = ["Heat (1995)", "Heat (1995)", "", *(f"Film {i}, The" for i in range(3, 10))]
    (tmp_path / "u.item").write_text("".join(f"{i}|{t}|x\n" for i, t in enumerate(titles, 1)))
    return tmp_path


def test_movielens_graph_holds_every_rating_once(ratings):
    data = datasets.movielens_graph(ratings, validation_fraction=0.2, test_fraction=0.1)
    assert [len(part) for part in (data, data.validation, data.test)] == [70, 20, 10]
    source = datasets.movielens(ratings)
    movies = ["Heat (1995) (movie 1)", "Heat (1995) (movie 2)", "movie 3"]
    movies += [f"Film {i}, The" for i in range(3, 10)]
    expected = [
        (f"user {source.user_ids[u]}", movies[i], f"rating {v:g}")
        for u, i, v in zip(source.users, source.items, source.values, strict=True)
    ]
    assert sorted(raw(data) + raw(data.validation) + raw(data.test)) == sorted(expected)
    seen = {name for triple in raw(data) for name in triple[::2]}
    assert set(data.entity_ids[data.unseen_entities].tolist()).isdisjoint(seen)
    assert len(data.unseen_entities) == data.n_entities - len(seen)


def test_movielens_graph_is_drawn_by_the_seed(ratings):
    first, again, other = (raw(datasets.movielens_graph(ratings, rng=rng)) for rng in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0, 0.1), (0.1, 0), (-0.1, 0.1)])
def test_movielens_graph_refuses_an_empty_part(ratings, validation, test):
    with pytest.raises(ParameterError, match="must be positive and leave something to train on"):
        datasets.movielens_graph(ratings, validation_fraction=validation, test_fraction=test)


def test_movielens_graph_of_real_ratings(data_dir):
    path = data_dir / "ml-100k" / "ml-100k.zip"
    if not path.exists():
        pytest.skip(f"no MovieLens 100K at {path}")
    data = datasets.movielens_graph(path)
    assert [len(part) for part in (data, data.validation, data.test)] == [80_000, 10_000, 10_000]
    assert (data.n_entities, data.n_relations) == (943 + 5, 1_682)
    assert ("user 196", "Kolya (1996)", "rating 3") in {
        *raw(data),
        *raw(data.validation),
        *raw(data.test),
    }


# ------------------------------------------------------------------ real knowledge graphs

REAL = {  # triples, validation, test, entities, relations, with unseen entity in each, self loops
    "fb15k-237/FB15k-237.tar.gz": (272_115, 17_535, 20_466, 14_541, 237, 9, 28, 1_625),
    "wn18rr/WN18RR.tar.gz": (86_835, 3_034, 3_134, 40_943, 11, 210, 210, 7),
    "codex/codex-s.zip": (32_888, 1_827, 1_828, 2_034, 42, 0, 0, 0),
    "codex/codex-m.zip": (185_584, 10_310, 10_311, 17_050, 51, 0, 0, 0),
}


@pytest.mark.parametrize("path", REAL)
def test_facts_of_real_sets(data_dir, path):
    if not (data_dir / path).exists():
        pytest.skip(f"{path} is not in {data_dir}")
    data = datasets.knowledge_graph(data_dir / path)
    n, n_validation, n_test, n_entities, n_relations, *strange, loops = REAL[path]
    assert (len(data), len(data.validation), len(data.test)) == (n, n_validation, n_test)
    assert (data.n_entities, data.n_relations) == (n_entities, n_relations)
    assert np.count_nonzero(data.heads == data.tails) == loops
    for split, expected in zip(data.splits.values(), strange, strict=True):
        ends = np.stack([split.heads, split.tails])
        unseen = np.isin(ends, data.unseen_entities).any(0)
        assert np.count_nonzero(unseen) == expected
        assert (data.unseen_entities >= n_entities - len(data.unseen_entities)).all()


def test_names_of_real_sets(data_dir):
    path = data_dir / "fb15k-237" / "FB15k-237.tar.gz"
    if not path.with_name("entity2text.txt.gz").exists():
        pytest.skip(f"no names beside {path}")
    data = datasets.knowledge_graph(path)
    assert data.entity_name(data.entity_index("/m/016ywr")[0]) == "Jeremy Irons"
    assert data.relation_name(data.relation_index("/music/artist/origin")[0]) == (
        "music artist origin"
    )
