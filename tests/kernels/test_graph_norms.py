from __future__ import annotations

import numpy as np
from graph_problems import backward, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_norms as oracle
from oracles.graph_sgd import run

from fastinfluence.kernels.cpu.graph_norms import graph_norms


@settings(deadline=None, max_examples=60)
@given(problems(), st.booleans())
def test_greatest_norms_of_the_naive_run(problem, cut):
    norms = np.zeros(7)
    for _, start, stop, log in backward(problem, [problem.n // 2] if cut and problem.n > 1 else []):
        graph_norms(norms, problem.graph, problem.examples, log, problem.hyper.sides, start, stop)
    steps = run(*problem.naive).steps
    rtol = 1e-3 if problem.dtype == np.float32 else 1e-10
    np.testing.assert_allclose(norms, oracle.graph_norms(problem.setting, steps), rtol=rtol)


@settings(deadline=None, max_examples=10)
@given(problems())
def test_visits_that_are_not_logged_do_not_count(problem):
    norms = np.zeros(7)
    _, start, stop, log = next(backward(problem))
    log.slots[:] = -1
    graph_norms(norms, problem.graph, problem.examples, log, problem.hyper.sides, start, stop)
    assert not norms.any()
