"""``training.overrides``: merged deeply, except where they would break what the job guarantees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What the job itself guarantees; an override would break the guarantee behind its back.
OWNED_KEYS: Mapping[str, str] = {
    "cutoff": "training.cutoff",
    "potential.elements": "training.elements",
    "potential.bonds.ALL.rcut": "training.cutoff",
    "potential.initial_potential": "training.start_from",
    "potential.filename": "training.start_from",
    "potential.functions.number_of_functions_per_element": "training.functions_per_element",
    "data.filename": "the database selection",
    "data.test_filename": "training.validation_fraction and training.test_evaluation",
    "data.test_size": "training.test_fraction",
    "data.reference_energy": "dataset.reference_energies",
    "backend.evaluator": "training.evaluator",
    # Pacemaker's own rule can end a fit with an exception, see `input_yaml`.
    "fit.min_relative_test_loss_per_iter": "training.min_relative_test_loss_per_iter",
    "fit.early_stopping_patience": "training.early_stopping_patience",
}

# With these the first density may not be linear, or not all of its coefficients are free.
NOT_LINEAR = ("potential.embeddings", "fit.trainable_parameters")


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of keys that follow from other settings.

    Raises
    ------
    ValueError
        Naming the key and the setting that it follows from.
    """
    for key in _dotted(overrides):
        for owned, setting in OWNED_KEYS.items():
            if key == owned or key.startswith(f"{owned}.") or owned.startswith(f"{key}."):
                raise ValueError(f"sets {key}, which follows from {setting}: change that instead")


def check_linear(overrides: Mapping[str, Any]) -> None:
    """Refuse overrides with which the loss is not what a linear start minimises.

    Raises
    ------
    ValueError
        Naming the key.
    """
    for key in _dotted(overrides):
        if any(key == part or key.startswith(f"{part}.") for part in NOT_LINEAR):
            raise ValueError(
                f"overrides.{key} changes what a linear fit solves for: set linear_start: false"
            )
    kappa = overrides.get("fit", {}).get("loss", {}).get("kappa", 0.0)
    if kappa == "auto":
        raise ValueError(
            "a linear fit needs a number as overrides.fit.loss.kappa: or set linear_start: false"
        )


def deep_merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` merged in; mappings merge, all else replaces."""
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
