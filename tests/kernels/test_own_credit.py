"""Credit of examples along their own scores, without a panel."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import row_blocks as oracle
from row_blocks_cases import EXACT, make_case

from fastinfluence.kernels.cpu.hessian import own_credit
from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED

LOSS = st.sampled_from([SQUARED, LOGISTIC, BPR])


@settings(max_examples=40, deadline=None)
@given(LOSS, st.integers(0, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_gradients_of_loss_and_score_meet(loss, n, k, seed):
    case = make_case(loss, n=n, k=k, seed=seed)
    found = np.full(n, np.nan)
    for start, stop in ((0, n // 3), (n // 3, n)):
        own_credit(
            case.parameters, case.rows, case.edges, case.users, case.items, case.gradients,
            case.l2, start, stop, found,
        )  # fmt: skip
    for j, example in enumerate(case.examples):
        by_user, by_item = oracle.own_gradients(example, case.user_rows, case.item_rows)
        p, q = case.user_rows[example.user], case.item_rows[example.candidates[0]]
        expected = -by_user @ oracle.score_row(q) - by_item @ oracle.score_row(p)
        np.testing.assert_allclose(found[case.edges.examples[j]], expected, **EXACT)
