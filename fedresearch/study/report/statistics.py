"""Statistics over seeds: intervals and tests, the score of many cells at once, and times to a target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_RESAMPLES = 2_000
# The largest difference that rounding can make between equal numbers, relative to their size.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Paired:
    """Differences of values to those of a baseline on the same seeds.

    Parameters
    ----------
    n : int
        Number of shared seeds.
    mean : float
        Mean difference, value less baseline; NaN without seeds.
    half_width : float
        Half its 95 % interval, as from `t_half_width`.
    t_p, wilcoxon_p : float
        Two-sided p-values of the paired t-test and of the exact signed-rank test. NaN for fewer than two seeds;
        ``t_p`` also where all differences are equal and not zero, since their spread is unknown then.
    """

    n: int
    mean: float
    half_width: float
    t_p: float
    wilcoxon_p: float


@dataclass(frozen=True)
class IQM:
    """An interquartile mean, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Duration:
    """The time that seeds take to a target, which some may never have reached.

    Parameters
    ----------
    median : float
        NaN where half of the seeds or fewer reach the target.
    low, high : float
        Range of the seeds that reach it; NaN without any.
    reached, total : int
        Number of seeds that reach it, and of all seeds.
    censored_at : float
        A lower bound of the median, whenever the other seeds would have reached the target: the ordinary median of all
        times, with the last x of those seeds. NaN without seeds.
    """

    median: float
    low: float
    high: float
    reached: int
    total: int
    censored_at: float


def t_half_widths(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the width of the 95 % Student-t interval of each column's mean; NaN for fewer than two rows.

    Parameters
    ----------
    values : ndarray, (n, columns)
        A row for each seed. A column that holds NaN gives NaN.
    """
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], np.nan)
    half_widths: NDArray[np.float64] = _quantile(n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return half_widths


@cache
def _quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return float(stats.t.ppf(0.975, freedom))


def t_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % Student-t interval of a mean; NaN for fewer than two values."""
    return float(t_half_widths(np.array(values, dtype=float).reshape(-1, 1))[0])


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare values with those of a baseline, seed by seed.

    Parameters
    ----------
    values, baseline : sequence of float
        Finite numbers, one for each seed, in the same order of seeds.
    """
    n = len(values)
    pairs = np.array([*zip(values, baseline, strict=True)], dtype=float).reshape(n, 2)
    rounding = _ROUNDING * np.abs(pairs).max(axis=1)
    differences = pairs[:, 0] - pairs[:, 1]
    differences[np.abs(differences) <= rounding] = 0.0
    mean = float(differences.mean()) if n else math.nan
    if n < 2:
        return Paired(n, mean, math.nan, math.nan, math.nan)
    error = differences.std(ddof=1) / math.sqrt(n)
    if np.ptp(differences) > rounding.max():
        t_p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    else:
        t_p = math.nan if differences.any() else 1.0
    return Paired(n, mean, t_half_width(differences.tolist()), t_p, _signed_rank_p(differences, rounding))


def _signed_rank_p(differences: NDArray[np.float64], rounding: NDArray[np.float64]) -> float:
    """Return the exact two-sided p-value of Wilcoxon's signed-rank test, also with ties and zeros.

    Zeros are left out before ranking (Wilcoxon 1945), which is the default of SciPy and R, so that readers find the
    same value with these. With ties, ranks are averages, and p is taken over all signs of those.
    """
    order = np.argsort(np.abs(differences))
    order = order[differences[order] != 0]
    sizes = np.abs(differences[order])
    # 0.8 - 0.7 and 0.9 - 0.8 are a tie, although they differ in floating point.
    is_larger = np.diff(sizes) > np.maximum(rounding[order][1:], rounding[order][:-1])
    doubled = np.rint(2 * stats.rankdata(np.cumsum(np.append(0, is_larger)[: len(sizes)]))).astype(int)
    positive = doubled[differences[order] > 0].sum()
    distribution = np.ones(1)  # probability that the doubled ranks with a positive sign sum to 0, 1, ...
    for rank in doubled:
        distribution = (np.pad(distribution, (0, rank)) + np.pad(distribution, (rank, 0))) / 2
    return min(1.0, 2 * float(distribution[max(positive, doubled.sum() - positive) :].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by the step-down procedure of Holm (1979).

    NaN stands for a comparison that was not made: it stays NaN, and is not counted.
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for step, (p, index) in enumerate(known):
        adjusted[index] = largest = max(largest, min(1.0, (len(known) - step) * p))
    return adjusted


def iqm(strata: Sequence[Sequence[float]], seed: int = 0) -> IQM | None:
    """Return the mean of the middle half of all scores (Agarwal et al. 2021, arXiv:2108.13264, Section 4).

    Its interval comes from the percentiles of a bootstrap that resamples seeds in each stratum.

    Parameters
    ----------
    strata : sequence of sequence of float
        Finite scores, one for each seed, of each setting that is pooled.
    seed : int
        The bootstrap's seed.

    Returns
    -------
    IQM or None
        None for fewer than four scores, or fewer than two in any stratum.
    """
    if sum(map(len, strata)) < 4 or min(map(len, strata)) < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(stratum, (_RESAMPLES, len(stratum))) for stratum in strata]
    resampled = stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return IQM(float(stats.trim_mean(np.concatenate(strata), 0.25)), float(low), float(high))


def performance_profile(
    strata: Sequence[Sequence[float]], thresholds: NDArray[np.float64], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of scores above each threshold (Agarwal et al. 2021, arXiv:2108.13264, Section 4.2).

    Parameters
    ----------
    strata : sequence of sequence of float
        Finite scores, one for each seed, of each setting that is pooled. Each setting has the same weight.
    thresholds : ndarray
        float64 (thresholds,).
    seed : int
        The bootstrap's seed.

    Returns
    -------
    share, low, high : ndarray
        float64 (thresholds,); the share, and the ends of its 95 % interval at each threshold, as of :func:`iqm`.
    """
    generator = np.random.default_rng(seed)
    shares, resampled = np.zeros(len(thresholds)), np.zeros((_RESAMPLES, len(thresholds)))
    for stratum in strata:
        is_above = np.greater.outer(stratum, thresholds)
        shares += is_above.mean(axis=0)
        counts = generator.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), _RESAMPLES)
        resampled += counts @ is_above / len(stratum)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0) / len(strata)
    return shares / len(strata), low, high


def mean_ranks(values: NDArray[np.float64], *, larger_is_better: bool) -> NDArray[np.float64]:
    """Return each column's mean rank over the rows, float64 (columns,): 1 is the best; equal values share their ranks.

    Parameters
    ----------
    values : ndarray
        Finite numbers, float64 (settings, columns).
    """
    ranks: NDArray[np.float64] = stats.rankdata(-values if larger_is_better else values, axis=1).mean(axis=0)
    return ranks


def critical_difference(num_columns: int, num_settings: int) -> float:
    """Return the difference of mean ranks from which Nemenyi's test finds one at the 5 % level (Demsar 2006, eq. 8).

    Its correction is for all pairs of columns.
    """
    quantile = stats.studentized_range.ppf(0.95, num_columns, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(num_columns * (num_columns + 1) / (6 * num_settings)))


def crossing(x: ArrayLike, y: ArrayLike, target: float, rising: bool = True) -> float:
    """Return where a curve first reaches a target.

    The curve is made monotone by taking the best value so far, and is linear between evaluated points (McMahan et al.
    2017, arXiv:1602.05629, Section 3).

    Parameters
    ----------
    x, y : array_like, (rounds,)
        Points of the curve, sorted by x. Points without a finite y, rounds without evaluation, are left out.
    target : float
        Value to reach.
    rising : bool
        Whether larger is better.

    Returns
    -------
    float
        The first x where the curve starts at the target; NaN where it never reaches it.
    """
    sign = 1 if rising else -1
    known = np.isfinite(y)
    places, goal = np.asarray(x)[known], sign * target
    best = np.maximum.accumulate(sign * np.asarray(y)[known])
    if not (best >= goal).any():
        return math.nan
    after = int(np.argmax(best >= goal))
    if after == 0:
        return float(places[0])
    share = (goal - best[after - 1]) / (best[after] - best[after - 1])
    return float(places[after - 1] + share * (places[after] - places[after - 1]))


def median_duration(times: Sequence[float], censored: Sequence[bool]) -> Duration:
    """Return the median of times, some of which are censored: only known to be longer (Kaplan and Meier 1958).

    It is the first time at which less than half survives. Where exactly half survives between two times, it is their
    midpoint, so that it is the ordinary median where nothing is censored.

    Parameters
    ----------
    times : sequence of float
        The x at which each seed reached the target; for a seed that never did, its last x.
    censored : sequence of bool
        Whether a seed never did.
    """
    reached = sorted(time for time, never in zip(times, censored, strict=True) if not never)
    median, previous, surviving = math.nan, math.nan, Fraction(1)  # a float may not equal one half
    for time in dict.fromkeys(reached):
        at_risk = sum(other >= time for other in times)
        before, surviving = surviving, surviving * (1 - Fraction(reached.count(time), at_risk))
        if surviving < Fraction(1, 2):
            median = (previous + time) / 2 if before == Fraction(1, 2) else time
            break
        previous = time
    low, high = (reached[0], reached[-1]) if reached else (math.nan, math.nan)
    bound = float(np.median(times)) if len(times) else math.nan
    return Duration(float(median), float(low), float(high), len(reached), len(times), bound)


def format_duration(duration: Duration, format_time: Callable[[float], str]) -> str:
    """Return a duration as text, such as ``35 (33–41)``, ``41 (38–45), 4/5 seeds`` or ``>200, 2/5 seeds``.

    Parameters
    ----------
    duration : Duration
        The text has its median, the range of the seeds that reached the target, and their number unless all did.
    format_time : callable
        A time to its text.
    """
    if not duration.total:
        return "–"
    if math.isnan(duration.median):
        text = f">{format_time(duration.censored_at)}" if math.isfinite(duration.censored_at) else "–"
    else:
        text = format_time(duration.median)
        low, high = format_time(duration.low), format_time(duration.high)
        if low != high:
            text += f" ({low}–{high})"
    return text if duration.reached == duration.total else f"{text}, {duration.reached}/{duration.total} seeds"


def speed_up(baseline: Duration, cell: Duration) -> tuple[float, str]:
    """Return by how many times a cell's median is faster than a baseline's, and the same as text.

    Returns
    -------
    ratio : float
        A bound where one median is not reached; NaN where both are not, or the cell needs no time.
    text : str
        Such as ``4.5×``; ``>4.5×`` where the baseline's median is not reached, and ``<0.8×`` where the cell's is not.
        Bounds are rounded to the side on which they hold.
    """
    unreached = [math.isnan(duration.median) for duration in (baseline, cell)]
    slow, fast = (d.censored_at if math.isnan(d.median) else d.median for d in (baseline, cell))
    if all(unreached) or math.isnan(slow) or not fast > 0:
        return math.nan, "–"
    ratio = slow / fast
    match unreached:
        case [True, _]:
            return ratio, f">{math.floor(ratio * 10) / 10:.1f}×"
        case [_, True]:
            return ratio, f"<{math.ceil(ratio * 10) / 10:.1f}×"
    return ratio, f"{ratio:.1f}×"
