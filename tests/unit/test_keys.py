"""Settings proposed from the key_value_pairs of a database."""

from __future__ import annotations

from typing import Any

import pytest

from mlip_job.dataset.survey import propose_keys

Rows = list[dict[str, Any]]


def _trajectories(key: str, frames: int = 5) -> tuple[Rows, Rows]:
    rows = [{key: f"t{n // frames}", "frame": n % frames, "t": 0.5 * n} for n in range(400)]
    return rows[:40], rows[::10]


@pytest.mark.parametrize("key", ["trajectory", "traj_id", "run_id", "relaxation", "mp_id"])
def test_trajectories_are_grouped(key: str) -> None:
    found = propose_keys(_trajectories(key))
    assert found.values == {"group_by": key}
    assert key in found.remarks["group_by"]


def test_a_missing_number_is_no_trajectory() -> None:
    rows = [{"traj": float("nan") if n == 7 else float(n // 4)} for n in range(40)]
    assert propose_keys([rows]).values == {"group_by": "traj"}


def test_one_trajectory_among_consecutive_rows() -> None:
    assert propose_keys(_trajectories("traj", frames=100)).values == {"group_by": "traj"}


@pytest.mark.parametrize(
    "rows",
    [
        [{"run_id": n} for n in range(40)],  # no two rows share one
        [{"source": "vasp"} for _ in range(40)],  # all do
        [{"traj": 0.5 * (n // 4)} for n in range(40)],  # a quantity, not a name
        [{"temperature": 300 + n // 10} for n in range(40)],
        [{"traj": n // 4} if n < 4 else {} for n in range(40)],  # few rows have it
        [],
    ],
)
def test_nothing_is_proposed_without_a_reason(rows: Rows) -> None:
    """A wrong group would make the split worse."""
    assert propose_keys([rows, rows]).values == {}


def test_frames_without_a_trajectory_are_pointed_out() -> None:
    """Nothing can be proposed, but the test errors will be too small."""
    rows = [{"step": n % 10} for n in range(40)]
    found = propose_keys([rows, rows])
    assert found.values == {}
    assert "Rows have step" in found.remarks["group_by"]


def test_types_and_sides_are_found() -> None:
    rows = [
        {"kind": ("bulk", "surface")[n % 2], "dataset": "test" if n % 5 == 0 else "train"}
        for n in range(40)
    ]
    found = propose_keys([rows, rows])
    assert found.values == {"config_type": "kind", "split_key": "dataset"}
    assert found.remarks["config_type"] == "Here bulk, surface."


def test_a_split_with_other_values_is_pointed_out() -> None:
    rows = [{"split": ("train", "valid", "test")[n % 3]} for n in range(40)]
    found = propose_keys([rows, rows])
    assert "split_key" not in found.values
    assert "test, train, valid" in found.remarks["split_key"]
