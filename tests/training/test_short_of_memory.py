"""Walks back where a device has less memory than the log of an epoch takes."""

from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.training import Program
from fastinfluence.training.backward import backward


@pytest.fixture
def trajectory(monkeypatch):
    monkeypatch.setattr("fastinfluence.training.schedule.group_count", lambda *_: 4)
    rng = np.random.default_rng(0)
    pairs = rng.permutation(40 * 30)[:300]
    data = fi.Interactions.from_arrays(*np.divmod(pairs, 30), rng.integers(1, 6, 300))
    return fi.MatrixFactorization(n_factors=3, n_epochs=2, rng=0).fit(data).trajectory_


def device_with_room_for(patch, most):
    """A device on which the log of more steps than `most` finds no room."""
    make, asked = Program.new_log, []

    def new_log(self, n_visits):
        asked.append(n_visits)
        if n_visits > most:
            raise DeviceMemoryError("out of device memory: 1,000 bytes")
        return make(self, n_visits)

    patch.setattr(Program, "new_log", new_log)
    return asked


def logged(trajectory):
    """What all steps saw, by epoch and visit."""
    found = {}
    for stage in backward(trajectory, memory_budget=2**30):
        for t in range(stage.start, stage.stop):
            found[stage.epoch, t] = stage.log.numbers[stage.slots[t]].copy()
    return found


def test_the_log_is_cut_until_it_fits(trajectory, monkeypatch):
    whole = logged(trajectory)
    asked = device_with_room_for(monkeypatch, 100)
    in_pieces = logged(trajectory)
    assert asked[1] == 300  # the first is log_bytes' own
    assert 1 < asked[-1] <= 100
    assert in_pieces.keys() == whole.keys()
    assert len(whole) == 2 * 300
    assert all((in_pieces[key] == whole[key]).all() for key in whole)


def test_a_log_that_cannot_be_cut_further(trajectory, monkeypatch):
    device_with_room_for(monkeypatch, 5)
    with pytest.raises(DeviceMemoryError, match=r"the log of \d+ steps takes .* use device='cpu'"):
        logged(trajectory)
