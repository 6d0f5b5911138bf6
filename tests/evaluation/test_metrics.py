"""The metrics against their definitions, spelt out, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.sparse import csr_array

from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation import (
    auc,
    bootstrap_interval,
    linear_datamodeling_score,
    noise_ceiling,
    pearson,
    per_query,
    probability_drop,
    relative_error,
    scale,
    spearman,
    top1_change,
    top1_ratio,
)

METRICS = [spearman, pearson, scale, relative_error, top1_ratio]

few = st.integers(-3, 3).map(float)  # many ties


@st.composite
def two_arrays(draw, elements=few, least=2):
    n = draw(st.integers(least, 30))
    return tuple(draw(hnp.arrays(np.float64, n, elements=elements)) for _ in range(2))


def naive_ranks(values):
    """1 + how many are smaller + half of how many others are equal."""
    return np.array(
        [1 + sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]
    )


def naive_pearson(a, d):
    a, d = a - a.mean(), d - d.mean()
    return (a * d).sum() / np.sqrt((a**2).sum() * (d**2).sum())


def constant(values):
    return (values == values[0]).all()


@settings(deadline=None)
@given(two_arrays())
def test_spearman_with_ties(arrays):
    a, d = arrays
    if constant(a) or constant(d):
        assert np.isnan(spearman(a, d))
    else:
        expected = naive_pearson(naive_ranks(a), naive_ranks(d))
        assert spearman(a, d) == pytest.approx(expected, abs=1e-12)
        assert spearman(a, d) == pytest.approx(stats.spearmanr(a, d)[0], abs=1e-12)


def test_correlations_of_noise():
    a, d = np.random.default_rng(0).standard_normal((2, 50))
    assert pearson(a, d) == pytest.approx(stats.pearsonr(a, d)[0], abs=1e-14)
    assert pearson(a, a) == 1
    assert pearson(a, 3 - 2e-9 * a) == pytest.approx(-1)
    assert spearman(a, np.exp(a)) == 1
    assert isinstance(spearman(a, d), float)


@settings(deadline=None)
@given(two_arrays(), st.floats(1e-100, 1e100))
def test_pearson_has_no_unit(arrays, unit):
    a, d = arrays
    expected, found = pearson(a, d), pearson(unit * a, d)
    if np.isnan(expected):
        assert np.isnan(found)
    else:
        assert -1 <= expected <= 1
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_constant_has_no_correlation():
    third = np.full(7, 1 / 3)  # its mean is not a third
    for metric in (pearson, spearman):
        assert np.isnan(metric(third, np.arange(7)))
        assert np.isnan(metric(np.arange(7), third))
        assert np.isnan(metric([1.0], [2.0]))


@given(two_arrays(least=1))
def test_scale_and_error(arrays):
    a, d = arrays
    squares, size = (a**2).sum(), np.abs(d).mean()
    if squares:
        assert scale(a, d) == pytest.approx((a * d).sum() / squares, abs=1e-12)
        assert scale(1e-200 * a, 1e-200 * d) == pytest.approx(scale(a, d), abs=1e-9)
    else:
        assert np.isnan(scale(a, d))
    if size:
        assert relative_error(a, d) == pytest.approx(np.abs(a - d).mean() / size)
    else:
        assert np.isnan(relative_error(a, d))


def test_scale_says_what_to_multiply_by():
    truth = np.random.default_rng(0).standard_normal(20)
    assert scale(20 * truth, truth) == pytest.approx(0.05)
    assert relative_error(np.zeros(20), truth) == 1


def test_top1_ratio():
    truth = np.array([1.0, 4.0, 2.0, -9.0])
    assert top1_ratio([0, 1, 0, 0], truth) == 1
    assert top1_ratio([3, 1, 3, 0], truth) == 0.25  # the first of those that tie
    assert top1_ratio([0, 0, 0, 1], truth) == -2.25
    assert np.isnan(top1_ratio([1, 2], [-1, 0]))


@given(two_arrays(), st.data())
def test_auc(arrays, data):
    scores = arrays[0]
    positive = data.draw(hnp.arrays(bool, len(scores)))
    wins = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    if wins:
        assert auc(scores, positive) == pytest.approx(np.mean(wins))
    else:
        assert np.isnan(auc(scores, positive))


def test_auc_needs_bools():
    with pytest.raises(DataError, match="array of bool, not int64"):
        auc([1.0, 2.0], np.array([0, 1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([1, 2], [1, 2, 3], r"\(2,\) and \(3,\)"),
        ([[1, 2]], [[1, 2]], "1-D"),
        ([1, np.nan], [1, 2], "NaN"),
        ([1, 2], [1, np.inf], "infinity"),
    ],
)
def test_what_cannot_be_compared(metric, scores, truth, message):
    with pytest.raises(DataError, match=message):
        metric(scores, truth)


# ---------------------------------------------------------------- over queries


def test_per_query():
    rng = np.random.default_rng(0)
    a, d = rng.standard_normal((2, 4, 9))
    where = rng.random((4, 9)) < 0.7
    where[2] = False
    where[2, :3] = True
    found = per_query(spearman, a, d, where, at_least=4)
    assert found.shape == (4,)
    for q in range(4):
        if q == 2:
            assert np.isnan(found[q])
        else:
            assert found[q] == spearman(a[q, where[q]], d[q, where[q]])
    np.testing.assert_array_equal(
        per_query(scale, a, d), [scale(*rows) for rows in zip(a, d, strict=True)]
    )
    with pytest.raises(DataError, match="one shape"):
        per_query(scale, a, d[:3])
    with pytest.raises(DataError, match="one shape"):
        per_query(scale, a, d, where[:, :3])


@pytest.mark.parametrize("kind", [np.asarray, csr_array])
def test_linear_datamodeling_score(kind):
    rng = np.random.default_rng(0)
    influence = rng.standard_normal((3, 40)) * (rng.random((3, 40)) < 0.5)
    removals = [rng.choice(40, 12, replace=False) for _ in range(15)]
    changes = rng.standard_normal((3, 15))
    sums = [[sum(influence[q, j] for j in removed) for removed in removals] for q in range(3)]
    expected = [stats.spearmanr(sums[q], changes[q])[0] for q in range(3)]
    found = linear_datamodeling_score(kind(influence), removals, changes)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(linear_datamodeling_score(kind(influence), removals, sums), 1)


def test_bad_subsets():
    influence = np.ones((2, 5))
    with pytest.raises(DataError, match=r"need \(2, 1\)"):
        linear_datamodeling_score(influence, [[0]], np.ones((2, 2)))
    with pytest.raises(DataError, match=r"removals\[1\] holds 5"):
        linear_datamodeling_score(influence, [[0], [5]], np.ones((2, 2)))


@pytest.mark.parametrize("n_seeds", [2, 6, 7])
def test_noise_ceiling(n_seeds):
    """Equal parts of signal and noise: a mean over n seeds has reliability n / (n + 1)."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2, 4000))
    truths = signal + rng.standard_normal((n_seeds, 2, 4000))
    expected = np.sqrt(n_seeds / (n_seeds + 1))
    np.testing.assert_allclose(noise_ceiling(truths), expected, atol=0.03)
    reached = per_query(pearson, signal, truths.mean(0))
    np.testing.assert_allclose(reached, expected, atol=0.03)


def test_noise_ceiling_of_two_seeds_is_the_formula():
    truths = np.random.default_rng(1).standard_normal((2, 3, 6))
    truths[1, 0] += 3 * truths[0, 0]
    r = np.maximum(per_query(pearson, *truths), 0)
    np.testing.assert_allclose(noise_ceiling(truths), np.sqrt(2 * r / (1 + r)))
    assert noise_ceiling(np.stack([truths[0], -truths[0]])).tolist() == [0, 0, 0]
    where = np.zeros((3, 6), bool)
    where[1:, :4] = True
    assert np.isnan(noise_ceiling(truths, where, at_least=2)).tolist() == [True, False, False]


@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 5), (0, 2, 3)])
def test_noise_ceiling_needs_two_seeds(shape):
    with pytest.raises(DataError, match="two seeds or more"):
        noise_ceiling(np.ones(shape))


def test_bootstrap_interval():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval([*values, np.nan]) == (low, high)
    assert bootstrap_interval(values, rng=1) != (low, high)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    in_order = np.sort(values)
    middle = bootstrap_interval(values, statistic=np.median)
    assert in_order[175] < middle[0] < middle[1] < in_order[225]
    assert bootstrap_interval([3.0]) == (3, 3)
    assert np.isnan(bootstrap_interval([np.nan])).all()


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0}, {"n_resamples": 0}])
def test_bad_bootstrap(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        bootstrap_interval([1.0, 2.0], **wrong)


# ---------------------------------------------------------------- explanations deleted


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 2, 3, 4], [0.5, 2, 3.5, 3], 50),  # equal is no fall
        ([1.0], [np.nextafter(1, 0)], 100),  # unrounded
        ([0.0, -1], [0.0, -1], 0),
        ([], [], np.nan),
    ],
)
def test_probability_drop(before, after, expected):
    assert probability_drop(before, after) == pytest.approx(expected, nan_ok=True)
    grow = [1 / (1 + np.exp(-np.array(values))) for values in (before, after)]
    if len(before) > 1:  # scores or probabilities: the same
        assert probability_drop(*grow) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [([3, 4, -1], [3, 5, -1], 100 / 3), (["a", "b"], ["a", "b"], 0), ([], [], np.nan)],
)
def test_top1_change(before, after, expected):
    assert top1_change(before, after) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("metric", [probability_drop, top1_change])
def test_deletions_of_other_shapes(metric):
    with pytest.raises(DataError, match="1-D arrays of one length"):
        metric([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="1-D"):
        metric([[1.0]], [[1.0]])
