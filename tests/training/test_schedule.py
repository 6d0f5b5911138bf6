"""The order of visits: each example once, strata without shared rows, fixed by the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ratings

from fastinfluence import Interactions
from fastinfluence.training import Schedule
from fastinfluence.training.schedule import group_count


@pytest.mark.parametrize(
    ("n", "groups"),
    [(1, 1), (3_999, 1), (4_000, 2), (15_999, 2), (16_000, 4), (100_000, 8), (10**6, 16)],
)
def test_groups_grow_with_the_data(n, groups):
    assert group_count(n, 10**5, 10**5) == groups


def test_groups_have_bounds():
    assert group_count(10**12, 10**6, 10**6) == 64
    assert group_count(10**6, 5, 10**6) == 4
    assert group_count(10**6, 10**6, 1) == 1
    # a block holds a thousand examples or more
    assert all(group_count(n, n, n) ** 2 * 1000 <= max(n, 1000) for n in range(1, 10**6, 997))


@pytest.fixture(scope="module")
def data():
    return ratings(300, 200, 17_000)


def blocks(schedule, data):
    """User group, item group and training indices of every block."""
    n_groups = schedule.n_groups
    for number in range(n_groups**2):
        stratum, user_group = divmod(number, n_groups)
        rows = schedule.order[schedule.pointers[number] : schedule.pointers[number + 1]]
        yield stratum, user_group, (user_group + stratum) % n_groups, rows


def test_every_example_once(data):
    schedule = Schedule.build(data, 0)
    assert schedule.n_groups == 4
    assert schedule.pointers[0] == 0
    assert schedule.pointers[-1] == len(data)
    assert (np.diff(schedule.pointers) >= 0).all()
    np.testing.assert_array_equal(np.sort(schedule.order), np.arange(len(data)))


def test_blocks_of_a_stratum_share_no_row(data):
    schedule = Schedule.build(data, 0)
    users, items = {}, {}
    for stratum, _, _, rows in blocks(schedule, data):
        for seen, codes in ((users, data.users[rows]), (items, data.items[rows])):
            found = set(codes.tolist())
            assert not found & seen.setdefault(stratum, set())
            seen[stratum] |= found


def test_pools_are_the_items_of_the_blocks(data):
    schedule = Schedule.build(data, 0)
    np.testing.assert_array_equal(np.sort(schedule.pool), np.arange(data.n_items))
    for _, _, item_group, rows in blocks(schedule, data):
        bounds = schedule.pool_pointers[item_group : item_group + 2]
        pool = schedule.pool[slice(*bounds)]
        assert np.isin(data.items[rows], pool).all()


def test_groups_carry_equal_loads():
    """Users of very different activity, dealt so that no group works much longer."""
    users, items = np.nonzero(np.arange(200)[:, None] > np.arange(200))
    data = Interactions.from_arrays(users, items)
    schedule = Schedule.build(data, 0)
    loads = np.zeros(schedule.n_groups)
    for _, user_group, _, rows in blocks(schedule, data):
        loads[user_group] += len(rows)
    assert len(loads) == 4
    assert loads.max() <= 1.01 * loads.mean()


def test_order_inside_a_block_is_random_and_follows_the_seed(data):
    first, again, other = (Schedule.build(data, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.pointers, other.pointers)
    assert (first.order != other.order).mean() > 0.9
    block = first.order[: first.pointers[1]]
    assert not (np.diff(block) > 0).all()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(0, 2**80),
)
def test_small_data_of_any_shape(rows, seed):
    users, items = zip(*rows, strict=True)
    data = Interactions.from_arrays(users, items, duplicates="keep")
    schedule = Schedule.build(data, seed)
    np.testing.assert_array_equal(np.sort(schedule.order), np.arange(len(data)))
    np.testing.assert_array_equal(schedule.pool_pointers, [0, data.n_items])
