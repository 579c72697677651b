"""Statistics of streams, compared with numpy on whole arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mlip_job.evaluation.statistics import EXACT_UP_TO, ErrorStream, PairSample, grade_statistics

SIZES = (1, 2, 10, 997, EXACT_UP_TO, EXACT_UP_TO + 1, 200_000)


def _errors(size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    errors = 3 * rng.standard_t(3, size)
    errors[:: max(2, size // 20)] = 0
    if size == 1:
        errors[0] = -4.5
    return errors


def _stream(errors: np.ndarray, batch: int = 333) -> ErrorStream:
    found = ErrorStream()
    for begin in range(0, errors.size, batch):
        found.add(errors[begin : begin + batch])
    return found


@pytest.mark.parametrize("size", SIZES)
def test_figures_are_those_of_the_whole_array(size: int) -> None:
    """RMSE, MAE and maximum are exact; percentiles for small samples, else within 0.1 %.

    They do not depend on the batches, and so not on the number of processes.
    """
    errors = _errors(size)
    found, other = _stream(errors), _stream(errors, size)
    percentiles = found.percentiles()
    assert percentiles == other.percentiles()
    assert (found.rmse, found.mae, found.max) == pytest.approx((other.rmse, other.mae, other.max))
    absolute = np.abs(errors)
    assert percentiles.count == size
    assert found.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
    assert found.mae == pytest.approx(np.mean(absolute), rel=1e-12)
    assert found.max == absolute.max()
    tolerance = 1e-12 if size <= EXACT_UP_TO else 1.001e-3
    expected = np.percentile(absolute, (50, 90, 99), method="inverted_cdf")
    assert (percentiles.p50, percentiles.p90, percentiles.p99) == pytest.approx(
        expected, rel=tolerance
    )


@pytest.mark.parametrize("size", SIZES)
def test_histogram_holds_every_error(size: int) -> None:
    """Bins of equal width around zero; values beyond are in the outermost ones."""
    errors = _errors(size)
    found = _stream(errors).histogram()
    edges = np.array(found.edges)
    assert len(edges) == len(found.counts) + 1
    assert edges[0] == -edges[-1] < 0
    assert sum(found.counts) == size
    expected, _ = np.histogram(np.clip(errors, edges[0], edges[-1]), bins=edges)
    misplaced = np.abs(np.array(found.counts) - expected).sum() / 2
    assert misplaced <= (0 if size <= EXACT_UP_TO else 0.002 * size)
    beyond = (np.abs(errors) > edges[-1]).sum()
    assert beyond <= 0.011 * size


@pytest.mark.parametrize("error", [0.0, 1e-15, 1e-9, 1e11])
def test_extreme_errors_are_counted_too(error: float) -> None:
    """Below and above the range of the bins, and if all errors are the same."""
    found = _stream(np.full(EXACT_UP_TO + 5, error), 4000)
    percentiles = found.percentiles()
    assert found.rmse == pytest.approx(error, rel=1e-9)
    assert percentiles.p50 <= percentiles.p99 <= error
    assert found.max == error
    assert sum(found.histogram().counts) == EXACT_UP_TO + 5


def test_memory_does_not_grow_with_the_stream() -> None:
    """Beyond the exact part only counts in bins are stored, half a megabyte."""
    found = ErrorStream()
    for number in range(300):
        found.add(np.random.default_rng(number).normal(size=1000))
    assert len(pickle.dumps(found)) < 1e6


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 30_000])
def test_sample_holds_pairs_of_the_stream(size: int) -> None:
    """All of them if there are few, in order; else a thousand matching pairs."""
    reference = np.random.default_rng(1).normal(size=size)
    sample = PairSample(1000, seed=7)
    for begin in range(0, size, 77):
        part = reference[begin : begin + 77]
        sample.add(part, 2 * part + 1)
    found = sample.parity()
    assert found.sampled_from == size
    assert len(found.reference) == min(size, 1000)
    np.testing.assert_array_equal(2 * np.array(found.reference) + 1, found.predicted)
    positions = np.searchsorted(np.sort(reference), found.reference)
    assert len(set(positions.tolist())) == min(size, 1000)
    if size <= 1000:
        np.testing.assert_array_equal(found.reference, reference)


def test_sample_depends_on_the_seed_and_on_nothing_else() -> None:
    """The same from other batches; another from another seed; from all parts of the stream."""
    values = np.arange(50_000.0)

    def sample(seed: int, batch: int) -> tuple[float, ...]:
        found = PairSample(1000, seed)
        for begin in range(0, values.size, batch):
            found.add(values[begin : begin + batch], values[begin : begin + batch])
        return found.parity().reference

    first = sample(1, 10_000)
    assert sample(1, 333) == first
    assert sample(2, 10_000) != first
    by_fifth = np.histogram(first, bins=5, range=(0, 50_000))[0]
    assert by_fifth.min() > 140  # 200 are expected, with a standard deviation of 13


def test_grades_are_counted_above_the_tolerance_of_their_making() -> None:
    """Grades of an active set's own structures may reach 1.01."""
    found = grade_statistics(np.array([0.2, 1.0, 1.0099, 1.02, 7.0]))
    assert (found.count, found.above_one, found.max, found.p50) == (5, 2, 7.0, 1.0099)
