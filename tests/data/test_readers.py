"""Reading files: every format, what is guessed, and every way a file can be bad."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fastinfluence.data import text
from fastinfluence.data.interactions import Interactions
from fastinfluence.data.readers import read_interactions, read_table
from fastinfluence.errors import DataError, MissingExtraError, ParameterError

CSV = "userId,movieId,rating,timestamp\n1,31,2.5,100\n1,29,3.0,101\n7,31,4.0,102\n"


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "data.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def listed(table):
    return {name: column.tolist() for name, column in table.items()}


def read_text(content: bytes, columns=None, **options):
    options = {"by_name": False, "sep": None, "header": None, "encoding": "utf-8", **options}
    choose = (lambda names: list(range(len(names)))) if columns is None else (lambda _: columns)
    return text.read_text(io.BufferedReader(io.BytesIO(content)), choose, **options)


# ------------------------------------------------------------------ interactions


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_by_name(write, packed, end):
    content = CSV.replace("\n", end).encode()
    path = write(gzip.compress(content) if packed else content)
    data = read_interactions(path, user="userId", item="movieId", value="rating")
    assert data.user_ids[data.users].tolist() == [1, 1, 7]
    assert data.item_ids[data.items].tolist() == [31, 29, 31]
    assert data.values.tolist() == [2.5, 3.0, 4.0]


@pytest.mark.parametrize("sep", ["\t", "::", ",", ";", "|"])
def test_separator_is_found(write, sep):
    path = write(sep.join("ab3") + "\n" + sep.join("cd4"), "data.txt")
    data = read_interactions(path)
    assert data.user_ids.tolist() == ["a", "c"]
    assert data.values.tolist() == [3, 4]


def test_told_separator(write):
    data = read_interactions(write("1 2 5\n2 2 4\n"), sep=" ")
    assert data.values.tolist() == [5, 4]


def test_by_position_skips_a_header(write):
    data = read_interactions(write(CSV), user=0, item=1)
    assert len(data) == 3
    assert not data.has_values


def test_duplicates_policy_reaches_the_rows(write):
    path = write("1,1,2\n1,1,3\n")
    with pytest.raises(DataError, match=r"data.csv: 1 of 2 rows repeat"):
        read_interactions(path)
    assert read_interactions(path, duplicates="sum").values.tolist() == [5]
    with pytest.raises(ParameterError, match="none of error"):
        read_interactions(path, duplicates="mean")


def test_npz_of_our_own_round_trips(tmp_path):
    data = Interactions.from_arrays(
        ["b", "a"], [2, 1], [1, 2], user_labels={"a": "Ann"}, item_labels={1: "One"}
    )
    data.to_npz(tmp_path / "data.npz")
    again = read_interactions(tmp_path / "data.npz")
    assert again.arrays().keys() == data.arrays().keys()
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.npz"]


def test_to_npz_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Interactions.from_arrays([1], [1]).to_npz(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_to_npz_wants_its_suffix(tmp_path):
    with pytest.raises(ParameterError, match=r"data.bin must end in .npz"):
        Interactions.from_arrays([1], [1]).to_npz(tmp_path / "data.bin")


def test_npz_of_others(tmp_path):
    np.savez(tmp_path / "x.npz", u=np.array([3, 4]), i=np.array(["x", "y"]), r=np.float16([1, 2]))
    data = read_interactions(tmp_path / "x.npz", user="u", item="i", value="r")
    assert data.user_ids.tolist() == [3, 4]
    with pytest.raises(DataError, match=r"x.npz: there is no column 'q'; .* 'u', 'i', 'r'"):
        read_interactions(tmp_path / "x.npz", user="q", item="i")


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"t": [None, b"x"], "i": ["x", "y"], "u": pa.array([3, 4], pa.uint32())})
    parquet.write_table(table, path)
    data = read_interactions(path, user="u", item="i")
    assert data.user_ids.tolist() == [3, 4]
    assert data.item_ids.tolist() == ["x", "y"]
    assert listed(read_table(path, [2, 0])) == {"u": [3, 4], "t": ["", "x"]}
    with pytest.raises(DataError, match=r"x.parquet: there is no column 'v'; .* 't', 'i', 'u'"):
        read_interactions(path, user="u", item="i", value="v")


def test_parquet_null_id(tmp_path):
    parquet.write_table(pa.table({"u": ["a", None], "i": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: users\[1\] = '' is missing"):
        read_interactions(tmp_path / "x.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="reading Parquet needs pyarrow"):
        read_interactions(tmp_path / "x.parquet")


# ------------------------------------------------------------------ columns and their types


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["999999999999999999", "1"], [999999999999999999, 1]),
        (["1", "2.5"], [1.0, 2.5]),
        (["-0.5", "+3", "1e-3"], [-0.5, 3.0, 0.001]),
        (["007", "12"], ["007", "12"]),
        (["-01", "12"], ["-01", "12"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["1", "x"], ["1", "x"]),
        (["1", ""], ["1", ""]),
        (["1_0", "2"], ["1_0", "2"]),
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["-", "1"], ["-", "1"]),
        (["--1", "1"], ["--1", "1"]),
        (["1", "é"], ["1", "é"]),
        (["@a/b.c", "d:e"], ["@a/b.c", "d:e"]),
        ([" 5", "6 "], [5, 6]),
    ],
)
@pytest.mark.parametrize("sep", [",", "\t", "::"])
def test_types(cells, expected, sep):
    content = "".join(f"0{sep}{cell}{sep}z\n" for cell in cells).encode()
    column = read_text(content, [1], sep=sep, header=False)["1"]
    assert column.tolist() == expected
    assert column.dtype.kind == {int: "i", float: "f", str: "U"}[type(expected[0])]


def test_nan_is_a_number_and_then_refused(write):
    path = write("1,1,nan\n1,2,3\n")
    assert np.isnan(read_table(path)["2"][0])
    with pytest.raises(DataError, match=r"data.csv: values\[0\] = nan is not a finite"):
        read_interactions(path)


def test_a_late_string_makes_the_whole_column_text(monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 16)
    content = b"".join(b"%d,%d\n" % (i, i) for i in range(50)) + b"x,50\n"
    table = read_text(content)
    assert table["0"].tolist() == [str(i) for i in range(50)] + ["x"]
    assert table["1"].tolist() == list(range(51))


cell = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=12),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_what_csv_writes_is_read_back(rows, block):
    """Quotes, line ends inside quotes, commas, any character, blocks cut anywhere."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        patch.setattr(text, "_typed", lambda parts: np.concatenate([p.astype(str) for p in parts]))
        table = read_text(file.getvalue().encode(), sep=",", header=True)
    assert list(zip(*listed(table).values(), strict=True)) == [
        (first.strip(), second.strip()) for first, second in rows
    ]


plain = st.text("abz019.-+", max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(plain, plain, plain), min_size=1, max_size=12),
    sep=st.sampled_from([",", "\t", "::"]),
)
def test_the_fast_way_splits_like_the_slow_way(rows, sep):
    block = "".join(sep.join(row) + "\n" for row in rows).encode()
    form = text._Format(sep, "utf-8", 3)
    assert text._plain_ends(block, form) is not None
    arrays = text._split_to_arrays(block, form, [2, 0], 1)
    lists = text._split_to_lists(block, form, [2, 0], 1)
    slow = text._split_any(block, form, [2, 0], 1)
    for column, a, b, c in zip([2, 0], arrays, lists, slow, strict=True):
        expected = [row[column] for row in rows]
        assert c == expected
        assert a.tolist() == b == [cell.encode() for cell in expected]


def test_half_a_separator_may_end_a_line():
    form = text._Format("::", "utf-8", 2)
    assert text._split_to_lists(b"a::x:\nb::y\n", form, [0, 1], 1) == [[b"a", b"b"], [b"x:", b"y"]]


def test_quotes_are_plain_characters_between_tabs(write):
    path = write('id\tname\n1\t5" pipe\n2\tsay "hi"\n', "x.tsv")
    assert read_table(path)["name"].tolist() == ['5" pipe', 'say "hi"']


def test_byte_order_mark_blank_lines_and_missing_last_newline(write):
    path = write(b"\xef\xbb\xbf\n a ,b\n\n1,2\n\n3,4")
    assert listed(read_table(path, ["b", "a"])) == {"b": [2, 4], "a": [1, 3]}


def test_encoding(write):
    path = write("1|Café\n".encode("latin-1"))
    assert read_table(path, encoding="latin-1")["1"].tolist() == ["Café"]


def test_one_column_and_header_only(write):
    assert listed(read_table(write("user\n5\n6\n"))) == {"user": [5, 6]}
    empty = read_table(write("user,item\n"), ["user", "item"])
    assert listed(empty) == {"user": [], "item": []}
    with pytest.raises(DataError, match=r"data.csv: there are no interactions"):
        read_interactions(write("user,item\n"), user="user", item="item")


def test_header_told(write):
    path = write("a\tb\nc\td\n")
    assert listed(read_table(path, header=False)) == {"0": ["a", "c"], "1": ["b", "d"]}
    assert listed(read_table(path, header=True)) == {"a": ["c"], "b": ["d"]}
    with pytest.raises(DataError, match="pass header=True or header=False"):
        read_table(path)
    with pytest.raises(DataError, match="only be asked for by position"):
        read_table(path, ["a"], header=False)


def test_import_is_light():
    code = (
        "import sys, fastinfluence.data; "
        "print([m for m in ('numba', 'scipy', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"u,i\n1,2\n1,2,3\n", "line 3 has 3 columns where the first line has 2"),
        (b"u\ti\n\n1\t2\n1\n", "line 4 has 1 columns where the first line has 2"),
        (b"u,i\n1,\xff\n", "not utf-8 text"),
        (b"u,i\n1,\0\n", "NUL bytes"),
        (b'u,i\n1,2\n3,"4\n5,6\n', "line 4: unexpected end of data"),
        (b'u,i\n1,2\n3,"4"x\n', "line 3: ',' expected after '\"'"),
        (gzip.compress(CSV.encode() * 99)[:-20], "truncated or damaged"),
        (gzip.compress(CSV.encode())[:12], "truncated or damaged"),
        (gzip.compress(CSV.encode())[:-8] + b"12345678", "truncated or damaged"),
    ],
)
def test_bad_text(write, content, message):
    path = write(content)
    with pytest.raises(DataError, match=f"data.csv: .*{message}"):
        read_interactions(path, user=0, item=1)


def test_ragged_line_is_numbered_across_blocks(monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 32)
    content = b"u,i\n" + b"1,2\n" * 50 + b"1\n" + b"1,2\n" * 50
    with pytest.raises(DataError, match="line 52 has 1 columns"):
        read_text(content)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.npz"])
def test_absent_file(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: there is no such file"):
        read_interactions(tmp_path / name, user="u", item="i")


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_table(tmp_path)


@pytest.mark.parametrize("keep", [3, 100, -30])
def test_damaged_parquet_and_npz(tmp_path, keep):
    parquet.write_table(
        pa.table({"u": list(range(99)), "i": list(range(99))}), tmp_path / "x.parquet"
    )
    Interactions.from_arrays(np.arange(99), np.arange(99)).to_npz(tmp_path / "x.npz")
    for name in ("x.parquet", "x.npz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=rf"{name}: (truncated or damaged|not an NPZ)"):
            read_interactions(path)


def test_npz_of_objects_and_single_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", u=np.array([{}], object), i=np.array([1]))
    with pytest.raises(DataError, match="array 'u' cannot be read"):
        read_interactions(tmp_path / "x.npz", user="u", item="i")
    np.save(tmp_path / "y.npy", np.arange(3))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with pytest.raises(DataError, match="a single array"):
        read_interactions(tmp_path / "y.npz")


def test_missing_column_in_text(write):
    with pytest.raises(
        DataError, match=r"data.csv: .*'stars'; the columns are 'userId', 'movieId'"
    ):
        read_interactions(write(CSV), user="userId", item="movieId", value="stars")
    with pytest.raises(DataError, match="say which columns"):
        read_interactions(write(CSV))


def test_same_name_twice_in_a_header(write):
    path = write("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read_table(path)
    assert listed(read_table(path, ["b", 0])) == {"b": [2], "a": [1]}


def test_bad_rows_name_the_file(write):
    with pytest.raises(DataError, match=r"data.csv: users\[1\] = -1 is negative"):
        read_interactions(write("0,1\n-1,2\n"))
    with pytest.raises(DataError, match=r"data.csv: values\[1\] = '' is not a number"):
        read_interactions(write("0,1,2.5\n1,2,\n"))
    with pytest.raises(DataError, match=r"data.csv: items\[1\] = '' is missing"):
        read_interactions(write("0,1,2.5\n1,,2\n"))
