from __future__ import annotations

import pytest
from backends import Kernels
from influence_cases import STORES, make_case
from readout_cases import assert_like_oracle

BACKENDS = [Kernels("cpu", "readout"), Kernels("cuda", "readout")]
parametrize_backends = pytest.mark.parametrize("kernels", BACKENDS, ids=repr)


@parametrize_backends
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["whole", "real"])
def test_reads_the_best(kernels, store, kind):
    case = make_case(n_users=2, n_items=3, n_train=30, n_queries=6, k=9, store=store, kind=kind)
    assert_like_oracle(kernels, case, 5, -1, exact=kind == "whole")
