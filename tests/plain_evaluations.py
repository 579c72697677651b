"""Evaluations for tests that measure nothing."""

from __future__ import annotations

from mlip_job.evaluation.results import (
    ErrorStatistics,
    Evaluation,
    GateVerdict,
    Histogram,
    Parity,
    SetEvaluation,
)


def make_evaluation(*reasons: str, rmse: float = 5.0) -> Evaluation:
    """Return the evaluation of a potential that was accepted, or rejected for `reasons`."""
    return Evaluation(
        train=make_side(rmse),
        test=make_side(rmse),
        agreement=(),
        parent=None,
        physics=(),
        active_set=None,
        gate=GateVerdict(accepted=not reasons, reasons=reasons),
    )


def make_side(rmse: float) -> SetEvaluation:
    """Return errors that are all alike: of energies as given, of forces ten times that."""
    return SetEvaluation(
        structures=1,
        atoms=1,
        energy_mev_per_atom=_alike(rmse),
        force_mev_per_angstrom=_alike(10 * rmse),
        stress_gpa=None,
        force_per_element_mev_per_angstrom={},
        per_config_type={},
        energy_error_histogram_mev_per_atom=Histogram(edges=(-rmse, rmse), counts=(1,)),
        force_error_histogram_mev_per_angstrom=Histogram(edges=(-rmse, rmse), counts=(1,)),
        energy_parity_ev_per_atom=Parity(reference=(), predicted=(), sampled_from=0),
        force_parity_ev_per_angstrom=Parity(reference=(), predicted=(), sampled_from=0),
        worst=(),
    )


def _alike(error: float) -> ErrorStatistics:
    return ErrorStatistics(
        count=1, rmse=error, mae=error, max=error, p50=error, p90=error, p99=error
    )
