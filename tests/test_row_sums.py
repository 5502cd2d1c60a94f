"""Sums over rows by compiled code have the bits of NumPy's, whatever is added at once."""

import numpy as np
import pytest

from fedresearch.federation import row_sums


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return the compiled functions, which the processes of the suite compile once."""
    functions = row_sums._functions(tmp_path_factory.getbasetemp().parent / "kernel")
    assert functions
    return functions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("num", "num_columns"), [(1, 1), (3, 31), (2, 32), (4, 100), (7, 5000), (200, 70)])
def test_sums(monkeypatch, compiled, dtype, num, num_columns):
    rng = np.random.default_rng(0)
    block = rng.normal(size=(num, num_columns + 3)).astype(dtype)
    rows, origin = block[:, :num_columns], rng.normal(size=num_columns).astype(dtype)  # as before buffers
    vector, factors = rng.normal(size=num_columns), rng.random((2, num))
    if num > 1:
        rows[-1, 0], factors[:, -1] = np.inf, 0  # a client that diverged
    moved = rows.astype(np.float64) - origin

    def sums():
        totals = np.zeros((2, num_columns))
        row_sums.add_moved(rows, origin, factors, totals)
        row_sums.add_moved(rows, origin, factors, totals)
        mean = row_sums.add_weighted(None, block, factors[0])
        mean = row_sums.add_weighted(mean, block, factors[1])
        return row_sums.products(rows, origin), row_sums.products(rows, origin, vector), totals, mean

    found = []
    for functions, at_once in (({}, 1), ({}, 2**17), (compiled, 1)):
        monkeypatch.setattr(row_sums, "_compiled", functions)
        monkeypatch.setattr(row_sums, "_AT_ONCE", at_once)
        with np.errstate(invalid="ignore"):  # infinity times 0 in the mean
            found.append(sums())
    for one, other in zip(found[0] * 2, found[1] + found[2], strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    squares, along, totals, mean = found[0]
    np.testing.assert_allclose(squares, (moved * moved).sum(1), rtol=1e-12)
    np.testing.assert_allclose(along, moved @ vector, rtol=1e-9)
    moved[-1] = moved[-1] if num == 1 else 0
    np.testing.assert_allclose(totals, 2 * factors @ moved, rtol=1e-9)
    expected = factors.sum(0) @ block[:, 1:].astype(np.float64)
    np.testing.assert_allclose(mean[1:], expected, rtol=1e-4, atol=1e-5)
