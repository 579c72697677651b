"""The potential of a running fit is copied only where it is whole and its iteration is known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlip_job.naming import WorkFiles
from mlip_job.training.newest import copy_newest

if TYPE_CHECKING:
    from mlip_job.training.tables import MetricsRow

RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"


@pytest.fixture
def files(tmp_path: Path) -> WorkFiles:
    """Return a work directory as it is after iteration 5 of the second step."""
    files = WorkFiles(tmp_path)
    lines = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    files.table("metrics").write_text("".join(lines[: 1 + 9 + 6]))
    files.interim_potential().write_bytes(_potential(1))
    _set_times(files, row=0, potential=1)
    return files


def _potential(step: int) -> bytes:
    return (RUN / f"interim_potential_ladder_step_{step}.yaml").read_bytes()


def _set_times(files: WorkFiles, *, row: int, potential: int) -> None:
    for path, second in ((files.table("metrics"), row), (files.interim_potential(), potential)):
        os.utime(path, (10**9 + second, 10**9 + second))


def _newest(files: WorkFiles, *, wanted: bool = True) -> MetricsRow | None:
    return copy_newest(files, ("Cu",), files.measured_potential, lambda _: wanted)


def test_it_is_that_of_the_newest_row(files: WorkFiles) -> None:
    """The potential is written after the row."""
    row = _newest(files)
    assert row is not None
    assert (row.ladder_step, row.iter_num, row.nfuncs) == (1, 5, 10)
    assert files.measured_potential.read_bytes() == _potential(1)


def test_between_row_and_potential_it_is_that_of_the_row_before(files: WorkFiles) -> None:
    """As pacemaker is about to write the next one."""
    _set_times(files, row=1, potential=0)
    row = _newest(files)
    assert row is not None
    assert row.iter_num == 4


def test_in_a_step_that_has_just_begun_there_is_none(files: WorkFiles) -> None:
    """What lies there is the last one of the step before."""
    lines = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    files.table("metrics").write_text("".join(lines[: 1 + 9 + 1]))
    files.interim_potential().write_bytes(_potential(0))
    _set_times(files, row=1, potential=0)
    assert _newest(files) is None


def test_after_a_restart_of_pacemakers_iterations_count_on(files: WorkFiles) -> None:
    """Out of memory, it began anew after iteration 5."""
    lines = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    table = files.table("metrics")
    table.write_text(table.read_text() + "".join(lines[10:13]))
    _set_times(files, row=0, potential=1)
    row = _newest(files)
    assert row is not None
    assert row.iter_num == 7


@pytest.mark.parametrize("damage", ["cut", "another basis", "absent"])
def test_what_is_not_whole_is_left_alone(files: WorkFiles, damage: str) -> None:
    """Pacemaker writes it in place."""
    path = files.interim_potential()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(_potential(1)[:-40] if damage == "cut" else _potential(0))
        _set_times(files, row=0, potential=1)
    assert _newest(files) is None


def test_what_is_not_wanted_is_not_copied(files: WorkFiles) -> None:
    """Most iterations are not."""
    assert _newest(files, wanted=False) is None
    assert not files.measured_potential.exists()


def test_one_that_is_overtaken_is_left_alone(files: WorkFiles) -> None:
    """A row and a potential more, between two looks: whose it is can't be told."""
    lines = (RUN / "metrics.txt").read_text().splitlines(keepends=True)

    def overtaken(_: MetricsRow) -> bool:
        with files.table("metrics").open("a") as table:
            table.write(lines[1 + 9 + 6])
        _set_times(files, row=0, potential=1)
        return True

    assert copy_newest(files, ("Cu",), files.measured_potential, overtaken) is None
