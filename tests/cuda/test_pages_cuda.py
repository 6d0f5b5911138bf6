from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import pages
from fastinfluence.attribution.placed_rows import placed
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.kernels.cuda import memory
from fastinfluence.kernels.cuda import pages as uploads
from fastinfluence.kernels.structures import Side

SIZES = [3, 0, 5, 2, 0, 40, 1]
WIDTH = 4


@pytest.fixture
def side():
    pointers = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    n = int(pointers[-1])
    return Side(np.arange(n * WIDTH, dtype=np.float32), pointers, np.arange(n)[::-1].copy())


def asking(*groups):
    counts = np.zeros(len(SIZES), np.int64)
    counts[list(groups)] = 2
    return np.concatenate([[0], np.cumsum(counts)])


def room_for(monkeypatch, n_rows):
    """Leave memory for pages of so many rows."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 4 * n_rows * (4 * WIDTH + 8))


def assert_pages_of(side, found):
    """Pages hold what the side has there."""
    for page in found:
        bounds = side.pointers[page.first : page.last + 1]
        rows, pointers, order = memory.fetch(page.side)
        assert page.place == bounds[0]
        np.testing.assert_array_equal(pointers, bounds - bounds[0])
        np.testing.assert_array_equal(rows, side.rows[bounds[0] * WIDTH : bounds[-1] * WIDTH])
        np.testing.assert_array_equal(order, side.order[bounds[0] : bounds[-1]])


def test_one_page_where_all_fits(side):
    (page,) = pages.pages(side, asking(2), "cuda")
    assert (page.first, page.last, page.place) == (0, len(SIZES), 0)
    assert pages.is_placed(page.side, "cuda")
    (again,) = pages.pages(page.side, asking(2), "cuda")
    assert again.side.rows is page.side.rows


def test_groups_that_fit_together_and_are_asked_for(side, monkeypatch):
    room_for(monkeypatch, 8)
    found = list(pages.pages(side, asking(0, 2, 3, 5), "cuda"))
    assert [(page.first, page.last) for page in found] == [(0, 3), (3, 4), (5, 6)]
    assert_pages_of(side, found)


def test_nobody_asks(side, monkeypatch):
    room_for(monkeypatch, 8)
    assert list(pages.pages(side, asking(1), "cuda")) == []


def out_of_memory_above(monkeypatch, n_rows):
    """Refuse larger arrays than those of so many rows."""
    put = memory.put

    def refusing(given):
        if isinstance(given, Side) and len(given.order) > n_rows:
            raise DeviceMemoryError("out of device memory")
        return put(given)

    monkeypatch.setattr(memory, "put", refusing)


def test_smaller_pages_where_memory_runs_out(side, monkeypatch):
    out_of_memory_above(monkeypatch, 40)
    room_for(monkeypatch, 50)
    found = list(pages.pages(side, asking(*range(7)), "cuda"))
    assert [(page.first, page.last) for page in found] == [(0, 4), (5, 6), (6, 7)]
    assert_pages_of(side, found)


def test_a_group_that_does_not_fit(side, monkeypatch):
    out_of_memory_above(monkeypatch, 39)
    room_for(monkeypatch, 10)
    found = pages.pages(side, asking(2, 5), "cuda")
    assert next(found).first == 2
    with pytest.raises(DeviceMemoryError, match=r"40 examples.*0\.0 MiB.*are free on cuda"):
        next(found)


@pytest.mark.parametrize("shape", [(10,), (3, 5)])
def test_through_pinned_buffers(shape, monkeypatch):
    monkeypatch.setattr(uploads, "_BUFFER", 16)
    monkeypatch.setattr(uploads, "LARGE", 8)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array.flags.writeable = False
    there = memory.put(array)
    assert not isinstance(there, np.ndarray)
    np.testing.assert_array_equal(memory.fetch(there), array)


def test_explains_page_by_page(monkeypatch):
    rng = np.random.default_rng(1)
    pairs = rng.permutation(12)[:9]
    data = fi.Interactions.from_arrays(pairs // 4, pairs % 4, rng.normal(size=9))
    model = fi.MatrixFactorization(n_factors=WIDTH - 1, n_epochs=1, rng=0).fit(data)
    queries = [(pairs[0] // 4, pairs[0] % 4), (1, 2)]
    mine = fi.GradientRollback(model, device="cpu").explain(queries, k=3)
    room_for(monkeypatch, 2)
    method = fi.GradientRollback(model, device="cuda")
    its = method.explain(queries, k=3)
    assert not placed(method.rows, "cuda").whole("cuda")
    np.testing.assert_array_equal(its.train_index, mine.train_index)
    for part in ("influence", "total_influence"):
        np.testing.assert_allclose(getattr(its, part), getattr(mine, part), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(
        method.self_influence(), fi.GradientRollback(model, device="cpu").self_influence()
    )
