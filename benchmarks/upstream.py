"""Upstream's inputs for pacemaker, for the kinds of data that they are written for.

From python-ace 0.4: the template of ``pacemaker -t`` with its default answers, and the inputs of
``examples/``: their basis, cutoff, loss, weighting, ladder and batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.record import DatasetRecord

_FEW = 300  # number of structures; the example Cu-I has 105, Cu-II a thousand

_SMOOTH = {"L1_coeffs": 1e-8, "L2_coeffs": 1e-8, "w0_rad": 1e-8, "w1_rad": 1e-8, "w2_rad": 1e-8}
_UNREGULARISED = dict.fromkeys(_SMOOTH, 0)
_SMALL_BASIS = {"nradmax_by_orders": [15, 3, 2, 2, 1], "lmax_by_orders": [0, 2, 2, 1, 1]}


def examples_for(record: DatasetRecord, *, periodic: bool) -> tuple[str, ...]:
    """Return the template and the example closest to a dataset."""
    if not periodic:
        return "template", "Ethanol"
    if len(record.elements) > 1:
        return "template", "HEA"
    return "template", "Cu-I" if record.counts.train <= _FEW else "Cu-II"


def upstream_input(
    name: str, elements: Sequence[str], frames: Sequence[str], reference_energies: dict[str, float]
) -> dict[str, Any]:
    """Return the ``input.yaml`` of one of `INPUTS` for other data.

    Parameters
    ----------
    reference_energies
        eV.
    frames
        Files of pacemaker's data frames.
    """
    bond, functions, fit, backend = INPUTS[name]
    return {
        "cutoff": bond["rcut"],
        "seed": 42,
        "potential": {
            "deltaSplineBins": 0.001,
            "elements": list(elements),
            "embeddings": {
                "ALL": {
                    "npot": "FinnisSinclairShiftedScaled",
                    "fs_parameters": [1, 1, 1, 0.5],
                    "ndensity": 2,
                }
            },
            "bonds": {
                "ALL": {
                    "radparameters": [5.25],
                    "dcut": 0.01,
                    "NameOfCutoffFunction": "cos",
                    **bond,
                }
            },
            "functions": functions,
        },
        "data": {"filename": list(frames), "reference_energy": reference_energies},
        "fit": {"optimizer": "BFGS", **fit},
        "backend": {"evaluator": "tensorpot", "display_step": 50, **backend},
    }


INPUTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "template": (
        {"radbase": "SBessel", "rcut": 7.0},
        {
            "number_of_functions_per_element": 700,
            "UNARY": {
                "nradmax_by_orders": [15, 6, 4, 3, 2, 2],
                "lmax_by_orders": [0, 3, 3, 2, 2, 1],
            },
            "BINARY": {
                "nradmax_by_orders": [15, 6, 3, 2, 2, 1],
                "lmax_by_orders": [0, 3, 2, 1, 1, 0],
            },
            "TERNARY": {
                "nradmax_by_orders": [15, 3, 3, 2, 1],
                "lmax_by_orders": [0, 2, 2, 1, 1],
            },
            "ALL": {"nradmax_by_orders": [15, 3, 2, 1, 1], "lmax_by_orders": [0, 2, 2, 1, 1]},
        },
        {
            "loss": {"kappa": 0.3, "L1_coeffs": 1e-8, "L2_coeffs": 1e-8},
            "maxiter": 2000,
            "repulsion": "auto",
        },
        {"batch_size": 100},
    ),
    "Cu-I": (
        {"radbase": "ChebExpCos", "rcut": 7.0},
        {"UNARY": _SMALL_BASIS},
        {
            "loss": {"kappa": 0.35, **_SMOOTH},
            "maxiter": 1000,
            "ladder_step": 15,
            "ladder_type": "body_order",
        },
        {"batch_size": 100},
    ),
    "Cu-II": (
        {"radbase": "SBessel", "rcut": 7.5},
        {
            "UNARY": {
                "nradmax_by_orders": [15, 6, 4, 3, 2, 1],
                "lmax_by_orders": [0, 3, 3, 2, 2, 1],
            }
        },
        {
            "loss": {"kappa": "auto", **_SMOOTH},
            "maxiter": 1000,
            "repulsion": "auto",
            "ladder_step": 200,
            "ladder_type": "power_order",
        },
        {"batch_size": 100},
    ),
    "Ethanol": (
        {"radbase": "ChebExpCos", "rcut": 4.0, "core-repulsion": [0.0, 5.0]},
        {"ALL": _SMALL_BASIS},
        {
            "loss": {"kappa": 0.99, **_UNREGULARISED},
            "maxiter": 2000,
            "fit_cycles": 2,
            "ladder_step": 15,
            "ladder_type": "body_order",
        },
        {"batch_size": 1000},
    ),
    "HEA": (
        {"radbase": "ChebExpCos", "rcut": 7.0},
        {
            "ALL": {"nradmax_by_orders": [15, 3, 3, 2, 1], "lmax_by_orders": [0, 2, 2, 1, 1]},
            **{
                block: {"nradmax_by_orders": [15, 3, 2, 1, 1], "lmax_by_orders": [0, 2, 2, 1, 1]}
                for block in ("QUATERNARY", "QUINARY")
            },
        },
        {
            "loss": {"kappa": 0.95, **_UNREGULARISED},
            # Without its nfit: 200, which would omit training data.
            "weighting": {
                "type": "EnergyBasedWeightingPolicy",
                "DElow": 1.0,
                "DEup": 10.0,
                "DE": 1e6,
                "DF": 1e6,
                "energy": "convex_hull",
                "seed": 42,
            },
            "maxiter": 1500,
            "fit_cycles": 1,
            "ladder_step": 5,
            "ladder_type": "body_order",
        },
        {"batch_size": 20},
    ),
}
"""Of each: bonds, functions, fit and backend settings."""
