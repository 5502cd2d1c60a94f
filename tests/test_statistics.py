"""The statistics of a report against SciPy, definitions and small cases by hand."""

import math
from fractions import Fraction
from functools import partial
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedresearch.study.report.statistics import (
    IQM,
    Duration,
    critical_difference,
    crossing,
    format_duration,
    holm,
    iqm,
    mean_ranks,
    median_duration,
    paired,
    performance_profile,
    speed_up,
    t_half_width,
)

few = settings(max_examples=60, deadline=None)


def test_an_interval_is_students():
    # Mean 3, deviation sqrt(10 / 4), so sqrt(0.5) for the mean; the table's t is 2.776 at 4 degrees of freedom.
    assert t_half_width([1, 2, 3, 4, 5]) == pytest.approx(2.776 * math.sqrt(0.5), rel=1e-3)
    low, high = stats.t.interval(0.95, 2, loc=4, scale=stats.sem([1, 4, 7]))
    assert t_half_width([1, 4, 7]) == pytest.approx((high - low) / 2)
    assert t_half_width([2, 2]) == 0
    assert math.isnan(t_half_width([1]))
    assert math.isnan(t_half_width([]))


def test_an_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(7, 3, (2_000, 4))
    covered = np.mean([abs(np.mean(values) - 7) <= t_half_width(values) for values in draws])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2_000))


def permuted_p(differences):
    """Return the signed-rank test's p by its definition: over all signs of the average ranks of nonzero differences."""
    ranks = stats.rankdata([abs(difference) for difference in differences if difference])
    centre = ranks.sum() / 2
    found = abs(sum(rank for rank, d in zip(ranks, filter(None, differences), strict=True) if d > 0) - centre)
    sums = [sum(kept) for kept in product(*((0, rank) for rank in ranks))]
    return np.mean([abs(total - centre) >= found for total in sums])


def test_values_are_compared_seed_by_seed():
    values, baseline = [3.0, 5.5, 4.0, 9.0], [2.0, 5.0, 4.25, 6.0]
    found = paired(values, baseline)
    assert (found.n, found.mean) == (4, (1 + 0.5 - 0.25 + 3) / 4)
    interval = stats.ttest_rel(values, baseline).confidence_interval()
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert found.t_p == pytest.approx(stats.ttest_rel(values, baseline).pvalue)
    # Ranks 3, 2, 1, 4, of which 1 is negative: 2 of 16 signs leave out a sum of at most 1; both sides are 4 of 16.
    assert found.wilcoxon_p == 4 / 16
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("differences", "signs"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # all of one sign: one of the signs, and its opposite
        ([-1, -2, -3, -4, -5], 2 / 32),
        ([-1, 1, 2, 3], 6 / 16),  # ranks 1.5, 1.5, 3, 4: sums up to 1.5: empty, either 1.5; two sides
        ([0, -1, -2, 3, 4], 10 / 16),  # without the 0, ranks 1 to 4: sums up to 3: empty, 1, 2, 3, 1 + 2; two sides
        ([1, -1], 1),
        ([0, 0, 5], 1),
        ([0, 0, 0], 1),
    ],
)
def test_signed_ranks_by_hand(differences, signs):
    assert paired(differences, [0] * len(differences)).wilcoxon_p == signs


def test_differences_that_are_equal_in_decimals_are_ties():
    # In floating point 0.8 - 0.7 is larger than 0.9 - 0.8, which without a tie would be 4 of 16 signs.
    assert paired([0.8, 0.8, 0.4, 0.5], [0.7, 0.9, 0.2, 0.2]).wilcoxon_p == 6 / 16
    assert paired([800, 800, 400, 500], [700, 900, 200, 200]).wilcoxon_p == 6 / 16
    # 0.1 + 0.2 is 0.3 in decimals, so that two seeds are left, of one sign.
    assert paired([0.1 + 0.2, 0.5, 0.6], [0.3, 0.4, 0.4]).wilcoxon_p == 2 / 4
    assert paired([3e-20, 2e-20], [1e-20, 1e-20]).wilcoxon_p == 2 / 4


@few
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_signed_ranks_with_ties_match_the_definition(differences):
    assert paired(differences, [0] * len(differences)).wilcoxon_p == pytest.approx(permuted_p(differences))


@few
@given(st.permutations(range(1, 13)), st.lists(st.sampled_from([-1, 1]), min_size=12, max_size=12))
def test_signed_ranks_without_ties_are_scipys(sizes, signs):
    differences = np.multiply(sizes, signs)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert paired(differences, [0] * 12).wilcoxon_p == pytest.approx(expected)


@few
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=8).flatmap(st.permutations))
def test_the_order_of_seeds_does_not_matter_and_sides_are_symmetric(pairs):
    first = paired(*zip(*pairs, strict=True))
    again = paired(*zip(*sorted(pairs), strict=True))
    swapped = paired(*reversed(list(zip(*pairs, strict=True))))
    for name in ("mean", "half_width", "t_p", "wilcoxon_p"):
        assert getattr(again, name) == pytest.approx(getattr(first, name), abs=1e-12, nan_ok=True)
    assert (swapped.mean, swapped.half_width) == (-first.mean, first.half_width)
    assert (swapped.t_p, swapped.wilcoxon_p) == pytest.approx((first.t_p, first.wilcoxon_p), rel=1e-15, nan_ok=True)


def test_a_pair_of_huge_values_does_not_make_ties_of_others():
    values, baseline = [1.5, 1.25, 1.0, 1.125, 1.75, 1e14], [2.25, 2.5, 2.0, 2.0, 2.875, 2.5]
    expected = stats.wilcoxon(values, baseline, method="exact").pvalue
    assert paired(values, baseline).wilcoxon_p == pytest.approx(expected)
    small = [(value / 1e3, other / 1e3) for value, other in zip(values, baseline, strict=True)]
    assert paired(*zip(*[*small, (1e9, 1e9)], strict=True)).wilcoxon_p == pytest.approx(expected)


def test_ties_depend_on_both_values_of_a_pair():
    assert paired([0.0, 3e9], [1e-5, 3e9 + 1e-5]).wilcoxon_p == 1.0
    assert paired([0.8, 0.9, 0.5], [0.7, 0.8, 0.7]).wilcoxon_p == permuted_p([1, 1, -2])


def test_seeds_without_spread_and_too_few():
    same = paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.half_width, same.t_p, same.wilcoxon_p) == (0, 0, 1, 1)
    constant = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (constant.mean, constant.half_width, constant.wilcoxon_p) == (1, 0, 2 / 8)
    assert np.isnan(constant.t_p)  # equal differences have an unknown spread
    rounded = paired([0.1 + 0.2] * 2, [0.3] * 2)
    assert (rounded.mean, rounded.t_p, rounded.wilcoxon_p) == (0, 1, 1)
    one = paired([3.0], [1.0])
    assert (one.n, one.mean) == (1, 2)
    assert np.isnan([one.half_width, one.t_p, one.wilcoxon_p]).all()
    none = paired([], [])
    assert none.n == 0
    assert np.isnan([none.mean, none.half_width, none.t_p, none.wilcoxon_p]).all()


def test_holm_by_hand():
    # In order 0.01, 0.03, 0.04, 0.3 times 4, 3, 2, 1 is 0.04, 0.09, 0.08, 0.3, and 0.08 is raised to 0.09.
    assert holm([0.04, 0.01, 0.3, 0.03]) == pytest.approx([0.09, 0.04, 0.3, 0.09])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([math.nan, 0.02, math.nan, 0.04]) == pytest.approx([math.nan, 0.04, math.nan, 0.04], nan_ok=True)
    assert holm([]) == []


@few
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.2, 0.6, 1.0]), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    # A hypothesis falls if Bonferroni rejects every set that it is in (Marcus, Peritz and Gabriel 1976).
    numbers = range(len(p_values))
    sets = list(chain.from_iterable(combinations(numbers, size + 1) for size in numbers))
    closed = [max(min(1, len(s) * min(p_values[k] for k in s)) for s in sets if number in s) for number in numbers]
    found = holm(p_values)
    assert found == pytest.approx(closed)
    assert [found[k] for k in np.argsort(p_values)] == sorted(found)


def test_an_interquartile_mean_by_hand():
    # Of -10, 1, 3, ..., 8 the middle half is 3 ... 6; of five scores a quarter is one on each side, rounded down.
    assert iqm([[8, 1, 7], [-10, 6, 3, 5, 4]]).value == (3 + 4 + 5 + 6) / 4
    assert iqm([[100, 1, 2, 3, -50]]).value == 2


def test_too_few_scores_have_no_interquartile_mean():
    assert iqm([]) is None
    assert iqm([[1, 2, 3]]) is None
    assert iqm([[1, 2, 3, 4], [5]]) is None
    assert iqm([[1, 2, 3, 4], []]) is None
    assert iqm([[1, 1], [1, 1]]) == IQM(1, 1, 1)


def test_the_bootstrap_draws_within_strata():
    assert iqm([[0, 0, 0], [10, 10, 10]]) == IQM(
        5, 5, 5
    )  # drawn from all six at once, some samples would have one value
    # The middle two are max(0 or 1 twice) and min(10 or 20 twice): 5 and 10.5 in 3 of 16 draws each, the extremes.
    assert iqm([[0, 1], [10, 20]]) == IQM((1 + 10) / 2, (0 + 10) / 2, (1 + 20) / 2)


def test_the_interval_is_the_bootstraps():
    scores = np.random.default_rng(1).normal(size=60)
    expected = stats.bootstrap(
        [scores], partial(stats.trim_mean, proportiontocut=0.25), n_resamples=9_999, method="percentile", rng=2
    ).confidence_interval
    found = iqm([scores])
    # A percentile of 2,000 draws is off by 0.06 deviations of the mean, of which the interval is 3.9 wide.
    allowed = 4 * 0.06 * (expected.high - expected.low) / 3.92
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=allowed)
    assert iqm([scores]) == found
    assert iqm([scores], seed=1).low != found.low


def test_a_curve_crosses_between_evaluated_points():
    # From 0.4 at 2 to 0.8 at 6: a half of the way is 4.
    assert crossing([1, 2, 6], [0.2, 0.4, 0.8], 0.6) == pytest.approx(4)
    nan = math.nan
    assert crossing([1, 2, 3, 4, 6, 7], [0.2, 0.4, nan, nan, 0.8, nan], 0.6) == pytest.approx(4)
    assert crossing([1, 2, 6], [3.0, 2.0, 1.0], 1.25, rising=False) == pytest.approx(2 + 0.75 * 4)


def test_a_curve_is_made_monotone_first():
    # 0.5, 0.5, 0.7 from 0.5, 0.3, 0.7, so that 0.6 is half way between the last two, not at three quarters.
    assert crossing([1, 2, 3], [0.5, 0.3, 0.7], 0.6) == pytest.approx(2.5)
    assert crossing([1, 2, 3], [0.5, 0.7, 0.3], 0.4, rising=False) == pytest.approx(2.5)
    assert crossing([1, 2, 3, 4], [0.0, 1.0, 0.0, 1.0], 0.5) == pytest.approx(1.5)  # the first of two crossings


def test_a_target_reached_at_the_start_or_never():
    assert crossing([5, 6], [0.7, 0.9], 0.7) == 5
    assert crossing([5, 6, 7], [math.nan, 0.7, 0.9], 0.6) == 6
    assert crossing([5, 6], [0.5, 0.9], 0.9) == 6
    assert crossing([5, 6], [math.inf, 0.5], 0.6, rising=False) == 6  # an infinite loss
    assert math.isnan(crossing([5, 6], [0.7, 0.9], 0.91))
    assert math.isnan(crossing([5, 6], [0.7, 0.9], 0.69, rising=False))
    assert math.isnan(crossing([5, 6], [math.nan, math.nan], 0.5))
    assert math.isnan(crossing([], [], 0.5))


@few
@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.integers(0, 50), st.booleans())
def test_the_monotone_curve_equals_the_target_at_the_crossing(y, target, rising):
    x = np.arange(len(y)) * 3.0
    best = (np.maximum if rising else np.minimum).accumulate(y)
    found = crossing(x, y, target, rising)
    if math.isnan(found):
        assert best[-1] < target if rising else best[-1] > target
    elif found == 0:
        assert best[0] >= target if rising else best[0] <= target
    else:
        assert np.interp(found, x, best) == pytest.approx(target)
        assert np.interp(found - 0.01, x, best) != pytest.approx(target)


@pytest.mark.parametrize(
    ("times", "censored", "median"),
    [
        ([9], [False], 9),
        ([3, 1, 2], [False] * 3, 2),
        ([4, 1, 2, 7], [False] * 4, 3),  # a half survives from 2 to 4
        ([1, 2, 2, 3], [False] * 4, 2),  # 3/4, then 1/4
        (list(range(1, 25)), [False] * 24, 12.5),  # 23/24 · 22/23 · ... is 0.5000000000000001 in floating point
        ([30, 40, 50, 200, 200], [False, False, False, True, True], 50),  # 4/5, 3/5, 2/5
        ([30, 40, 200, 200, 200], [False, False, True, True, True], math.nan),
        ([30, 40, 200, 200], [False, False, True, True], math.nan),  # just a half survives, for ever
        ([10, 20, 30, 40], [True, False, False, False], 30),  # of three from 20 on: 2/3, 1/3
        ([10, 20, 20, 30], [False, True, False, False], 25),  # 3/4, of the three at 20 a third goes: 1/2; then 0
        ([10, 20, 30], [True, True, False], 30),
        ([200], [True], math.nan),
        ([], [], math.nan),
    ],
)
def test_a_median_of_censored_times_by_hand(times, censored, median):
    found = median_duration(times, censored)
    assert found.median == pytest.approx(median, nan_ok=True)
    assert (found.reached, found.total) == (censored.count(False), len(times))


def test_a_duration_has_a_range_and_a_bound():
    nan = math.nan
    assert median_duration([50, 30, 200, 40, 200], [False, False, True, False, True]) == Duration(50, 30, 50, 3, 5, 50)
    found = median_duration([30, 200, 200], [False, True, True])
    assert (found.low, found.high, found.censored_at) == (30, 30, 200)
    # Had the others come right after 200, the median would be half way between 40 and 200.
    assert median_duration([30, 40, 200, 200], [False, False, True, True]).censored_at == (40 + 200) / 2
    assert median_duration([10, 200, 300], [True, True, True]).censored_at == 200  # two are above 200
    none = median_duration([10, 20], [True, True])
    assert [none.low, none.high] == pytest.approx([nan, nan], nan_ok=True)


seeds = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=10)


@few
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_without_censoring_a_median_is_the_ordinary_one(times):
    found = median_duration(times, [False] * len(times))
    assert (found.median, found.censored_at) == (np.median(times), np.median(times))
    assert (found.low, found.high) == (min(times), max(times))


@few
@given(seeds)
def test_survival_matches_scipys_around_the_median(pairs):
    times, censored = zip(*pairs, strict=True)
    found = median_duration(times, censored).median
    if all(censored):
        assert math.isnan(found)
        return
    survival = stats.ecdf(stats.CensoredData.right_censored(times, censored)).sf
    exact = [Fraction(float(p)).limit_denominator(math.factorial(10)) for p in survival.probabilities]  # of ten seeds
    below = [time for time, p in zip(survival.quantiles, exact, strict=True) if 2 * p < 1]
    half = [time for time, p in zip(survival.quantiles, exact, strict=True) if 2 * p == 1]
    if not below:
        assert math.isnan(found)
    else:
        assert found == (half[0] + below[0]) / 2 if half else found == below[0]


@few
@given(seeds, st.data())
def test_a_bound_holds_whatever_the_censored_seeds_would_have_done(pairs, data):
    times, censored = zip(*pairs, strict=True)
    later = [time + data.draw(st.integers(0, 9)) if never else time for time, never in pairs]
    found = median_duration(times, censored)
    assert found.censored_at <= np.median(later)
    assert math.isnan(found.median) or found.censored_at <= found.median
    assert median_duration(*zip(*sorted(pairs), strict=True)).median == pytest.approx(found.median, nan_ok=True)


def duration(*times):
    """Return the duration for seeds that are censored at 200."""
    return median_duration([min(time, 200) for time in times], [time > 200 for time in times])


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ((35,), "35"),
        ((35, 33, 41), "35 (33–41)"),
        ((38, 45, 40, 42, 999), "42 (38–45), 4/5 seeds"),
        ((30, 40, 999, 999, 999), ">200, 2/5 seeds"),
        ((30, 40, 999, 999), ">120, 2/4 seeds"),
        ((999,), ">200, 0/1 seeds"),
        ((), "–"),
    ],
)
def test_a_duration_has_a_text(times, text):
    assert format_duration(duration(*times), lambda time: f"{time:.0f}") == text


def test_one_seed_of_several_has_no_range():
    assert format_duration(median_duration([1, 2, 8], [True, True, False]), str) == "8.0, 1/3 seeds"


@pytest.mark.parametrize(
    ("baseline", "cell", "ratio", "text"),
    [
        ((90,), (20,), 4.5, "4.5×"),
        ((20,), (90,), 20 / 90, "0.2×"),
        ((199,), (40,), 199 / 40, "5.0×"),
        ((999,), (40,), 200 / 40, ">5.0×"),
        ((999,), (34,), 200 / 34, ">5.8×"),  # 5.88: above 5.9 is unknown
        ((999, 999, 50), (40,), 200 / 40, ">5.0×"),
        ((30, 40, 999, 999), (40,), 120 / 40, ">3.0×"),
        ((144,), (999,), 144 / 200, "<0.8×"),  # 0.72: below 0.7 is unknown
        ((160,), (999,), 160 / 200, "<0.8×"),
        ((999,), (999,), math.nan, "–"),
        ((), (40,), math.nan, "–"),
        ((40,), (), math.nan, "–"),
        ((40,), (0,), math.nan, "–"),
    ],
)
def test_a_speed_up_is_a_ratio_or_a_bound(baseline, cell, ratio, text):
    found, found_text = speed_up(duration(*baseline), duration(*cell))
    assert found == pytest.approx(ratio, nan_ok=True)
    assert found_text == text


def test_a_profile_is_the_share_of_scores_above_a_threshold_in_settings_of_equal_weight():
    share, low, high = performance_profile([[0.1, 0.2], [0.3] * 6], np.array([0, 0.15, 0.25, 0.3]))
    np.testing.assert_allclose(share, [1, 0.75, 0.5, 0])
    np.testing.assert_allclose(low, [1, 0.5, 0.5, 0])  # of two resampled seeds, none or both may be above 0.15
    np.testing.assert_allclose(high, [1, 1, 0.5, 0])


def test_ranks_are_means_over_settings_with_1_as_the_best():
    values = np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.1]])
    np.testing.assert_allclose(mean_ranks(values, larger_is_better=True), [1.5, 1.75, 2.75])
    np.testing.assert_allclose(mean_ranks(values, larger_is_better=False), [2.5, 2.25, 1.25])


def test_the_critical_difference_is_that_of_the_example_of_demsar():
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)  # Section 3.2.2
