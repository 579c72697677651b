"""What is read from the key_value_pairs of a row."""

from __future__ import annotations

import math

import pytest

from mlip_job.dataset.labels import names_method
from mlip_job.dataset.rows import stated_charge


@pytest.mark.parametrize(
    ("value", "charge"),
    [
        (1, 1.0), (-2.0, -2.0), (0, 0.0), (math.nan, 0.0), (math.inf, 0.0), ("1+", 1.0),
        ("2-", -2.0), ("+", 1.0),
        ("-1", -1.0), ("0", 0.0), ("", 0.0), ("neutral", 0.0), (None, 0.0),
    ],
)  # fmt: skip
def test_stated_charge(value: object, charge: float) -> None:
    """Numbers and what chemists write; NaN is none."""
    assert stated_charge(value) == charge


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("xc", True), ("xc_functional", True), ("dft_functional", True), ("Functional", True),
        ("level_of_theory", True), ("level", True), ("code", True), ("barcode", False),
        ("energy_level", False), ("calc_id", False), ("exchange", False),
    ],
)  # fmt: skip
def test_keys_that_name_a_method(key: str, named: bool) -> None:
    """By whole words."""
    assert names_method(key) is named
