"""Reading knowledge graphs: every format, headers, names as written, and every bad file."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import fastinfluence as fi
from fastinfluence.data import text
from fastinfluence.errors import DataError, ParameterError

ROWS = [
    ("New York, N.Y.", "part of: state/province", "usa"),
    ('the "Big Apple"', "is", "New York, N.Y."),
    ("中国", "trades with", "usa"),
]


def lines(rows, sep="\t") -> str:
    return "".join(sep.join(row) + "\n" for row in rows)


def raw(data) -> list[tuple]:
    return list(zip(*(column.tolist() for column in data.columns().values()), strict=True))


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "graph.tsv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize("block", [20, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_are_read_as_they_are_written(write, monkeypatch, block, packed, end):
    monkeypatch.setattr(text, "BLOCK", block)
    content = lines(ROWS).replace("\n", end).encode()
    path = write(gzip.compress(content) if packed else content)
    assert raw(fi.read_triples(path)) == ROWS


def test_many_blocks_agree_with_one(write, monkeypatch):
    rows = [(f"e{i * 7 % 41}", f"r{i % 3}", f"ë{i}" if i % 10 == 9 else f"e{i}") for i in range(90)]
    path = write(lines(rows))
    whole = fi.read_triples(path)
    monkeypatch.setattr(text, "BLOCK", 64)
    assert raw(fi.read_triples(path)) == raw(whole) == rows


def test_numbers_stay_the_strings_they_were(write):
    rows = [("00260881", "1", "260881"), ("3.50", "nan", "inf")]
    data = fi.read_triples(write(lines(rows)))
    assert raw(data) == rows
    with pytest.raises(fi.errors.UnknownIdError, match=r"'260881' \(a string, not an integer\)"):
        data.entity_index(260881)


@pytest.mark.parametrize(
    ("content", "sep", "row"),
    [
        ("a r c\n", " ", ("a", "r", "c")),
        ('"a, b",r,"say ""c"""\n', None, ("a, b", "r", 'say "c"')),
        ("a::x::c:\n", None, ("a", "x", "c:")),
        ("http://a/b\tr\ta::b, c\n", None, ("http://a/b", "r", "a::b, c")),
    ],
)
def test_separators_and_quotes(write, content, sep, row):
    assert raw(fi.read_triples(write(content, "graph.txt"), sep=sep)) == [row]


# ------------------------------------------------------------------ columns and headers


@pytest.mark.parametrize("first", ["head\trelation\ttail\n", "Subject\tPredicate\tObject\n"])
def test_a_line_of_known_words_is_a_header(write, first):
    path = write(first + lines(ROWS))
    assert raw(fi.read_triples(path)) == ROWS
    assert len(fi.read_triples(path, header=False)) == 4


def test_any_other_first_line_is_a_triple_unless_told(write):
    path = write("von\twie\tnach\n" + lines(ROWS))
    assert len(fi.read_triples(path)) == 4
    assert raw(fi.read_triples(path, header=True)) == ROWS
    assert raw(fi.read_triples(path, head="von", relation="wie", tail="nach")) == ROWS


def test_any_order_by_name_or_position(write):
    path = write("year,tail,head,rel\n1,b,a,r\n2,a,c,s\n", "x.csv")
    expected = [("a", "r", "b"), ("c", "s", "a")]
    assert raw(fi.read_triples(path, head="head", relation="rel", tail="tail")) == expected
    assert raw(fi.read_triples(path, head=2, relation=3, tail=1, header=True)) == expected
    with pytest.raises(DataError, match=r"x.csv: there is no column 'relation'; .*'year', 'tail'"):
        fi.read_triples(path, head="head", relation="relation", tail="tail")


@pytest.mark.parametrize("n", [2, 4])
def test_two_or_four_columns_must_be_told(write, n):
    path = write("\t".join("abcd"[:n]) + "\n")
    with pytest.raises(DataError, match=rf"graph.tsv: say which of {n} columns hold heads"):
        fi.read_triples(path)


# ------------------------------------------------------------------ splits


def test_splits_of_the_same_columns(write):
    options = {"head": 1, "relation": 0, "tail": 2}
    data = fi.read_triples(
        write("r\ta\tb\n", "train.tsv"),
        validation=write("s\tb\tz\n", "valid.tsv"),
        test=write(gzip.compress(b"r\ty\tb\n"), "test.tsv.gz"),
        **options,
    )
    assert (raw(data.validation), raw(data.test)) == ([("b", "s", "z")], [("y", "r", "b")])
    assert data.entity_ids.tolist() == ["a", "b", "y", "z"]
    assert "2 entities occur only in validation or test" in repr(data)


def test_empty_splits(write):
    train = write(lines(ROWS))
    with pytest.raises(DataError, match=r"^\S+/valid.tsv: the file is empty"):
        fi.read_triples(train, validation=write("", "valid.tsv"))
    with pytest.raises(DataError, match="test is empty: give it a triple, or leave it out"):
        fi.read_triples(train, test=write("head\trelation\ttail\n", "test.tsv"))


# ------------------------------------------------------------------ other formats


def test_parquet(tmp_path):
    heads, relations, tails = zip(*ROWS, strict=True)
    table = pa.table({"o": tails, "s": heads, "p": pa.array(relations).dictionary_encode()})
    parquet.write_table(table, tmp_path / "g.parquet")
    assert raw(fi.read_triples(tmp_path / "g.parquet", head="s", relation="p", tail="o")) == ROWS
    missing = pa.table({"h": ["a", None], "r": ["r", "r"], "t": ["b", "b"]})
    parquet.write_table(missing, tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m.parquet: heads\[1\] = '' is missing"):
        fi.read_triples(tmp_path / "m.parquet")


def test_integers_of_a_typed_file_stay_integers(tmp_path):
    np.savez(tmp_path / "x.npz", h=[7, 1], r=["r", "s"], t=[1, 3])
    assert raw(fi.read_triples(tmp_path / "x.npz")) == [(7, "r", 1), (1, "s", 3)]


def test_npz_of_our_own_round_trips(tmp_path):
    test = [("c", "r", "c")]
    data = fi.Triples.from_arrays(["b"], ["r"], ["a"], test=test, entity_labels={"c": "C"})
    data.to_npz(tmp_path / "data.npz")
    again = fi.read_triples(tmp_path / "data.npz")
    assert again.arrays().keys() == data.arrays().keys()
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    with pytest.raises(ParameterError, match=r"data.bin must end in .npz"):
        data.to_npz(tmp_path / "data.bin")


def test_inside_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("in/train.tsv", lines(ROWS))
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        assert raw(fi.read_triples(zipfile.Path(packed, "in/train.tsv"))) == ROWS


# ------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lines(ROWS) + "a\tb\tr\tc\n",
            "graph.tsv: line 4 has 4 columns where the first line has 3",
        ),
        ("a\tr\tb\n\nc\tr\n", "line 3 has 2 columns"),
        ("a\tr\tb\n\tr\tc\n", r"graph.tsv: heads\[1\] = '' is missing: an id cannot be empty"),
        ("a\tr\tb\nc\t \tb\n", r"relations\[1\] = '' is missing"),
        ("", "graph.tsv: the file is empty"),
        ("head\trelation\ttail\n", "graph.tsv: there are no triples"),
        ("a\tr\tb\na\tr\tb\n", r"1 of 2 training triples .*\('a', 'r', 'b'\) in row 1"),
        ("a\tr\tb\n".encode("utf-16"), "NUL bytes|not utf-8"),
        (b"a\tr\tb\nc\tr\t\xe9\n", "graph.tsv: not utf-8 text"),
        (gzip.compress(lines(ROWS).encode())[:-9], "graph.tsv: truncated or damaged"),
    ],
)
def test_bad_files_are_named(write, content, message):
    with pytest.raises(DataError, match=message):
        fi.read_triples(write(content))


def test_files_that_are_not_there(write, tmp_path):
    with pytest.raises(DataError, match=r"none.tsv: there is no such file"):
        fi.read_triples(tmp_path / "none.tsv")
    with pytest.raises(DataError, match=r"none.tsv: there is no such file"):
        fi.read_triples(write(lines(ROWS)), test=tmp_path / "none.tsv")


def test_duplicates_policy_reaches_the_rows(write):
    path = write("a\tr\tb\na\tr\tb\n")
    assert len(fi.read_triples(path, duplicates="first")) == 1
    with pytest.raises(ParameterError, match="none of error"):
        fi.read_triples(path, duplicates="sum")
