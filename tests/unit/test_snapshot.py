"""A running fit is copied only where the copy is whole and its place in the fit is known."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.naming import WorkFiles
from mlip_job.training.checkpoint import POTENTIAL, FitPosition, Snapshot
from mlip_job.training.pacemaker.input import Leg
from mlip_job.training.pacemaker.potential_file import count_functions, read_potential
from mlip_job.training.pacemaker.snapshot import take_snapshot
from mlip_job.training.pacemaker.tables import Offset, read_table

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"
SINGLE = Leg({"potential": {}, "fit": {"maxiter": 8}})
LADDER = Leg({"potential": {}, "fit": {"maxiter": 8, "ladder_step": [5]}})
HALF = Leg({"potential": "start.yaml", "fit": {"maxiter": 8}}, Offset(1, 3), partial=True)


def _potential(step: int) -> bytes:
    return (RUN / f"interim_potential_ladder_step_{step}.yaml").read_bytes()


def _fit_until(directory: Path, step: int, iteration: int, *, steps_done: int = 0) -> WorkFiles:
    """Lay out what pacemaker has written up to a row of its table, and the potential after it."""
    files = WorkFiles(directory)
    header, *rows = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    upto = [row for row in rows if [int(n) for n in row.split()[:3]] <= [step, 0, iteration]]
    files.table("metrics").write_text(header + "".join(upto))
    files.interim_potential().write_bytes(_potential(step))
    for done in range(steps_done):
        files.ladder_potential(done).write_bytes(_potential(done))
    files.target_potential.write_bytes(_potential(2))
    _write_order(files.table("metrics"), files.interim_potential())
    return files


def _write_order(*paths: Path) -> None:
    for number, path in enumerate(paths):
        os.utime(path, ns=(10**18, 10**18 + number * 10**6))


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Snapshot | None]:
    """Return a function that takes a snapshot of a work directory into a new one."""

    def take(files: WorkFiles, leg: Leg) -> Snapshot | None:
        target = Path(tempfile.mkdtemp(dir=tmp_path))
        return take_snapshot(files, leg, ("Cu",), target)

    return take


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return an empty work directory."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_single_shot_fit_is_copied_at_its_last_iteration(work: Path, take: Any) -> None:
    """The potential, and the rows that led to it."""
    files = _fit_until(work, 0, 5)
    snapshot = take(files, SINGLE)
    assert snapshot.position == FitPosition(
        ladder_step=0, iteration=5, step_done=False, last_step=True
    )
    assert snapshot.iterations == 5
    rows = read_table(snapshot.files["metrics/metrics.txt"]).rows
    assert rows == read_table(files.table("metrics")).rows
    assert count_functions(read_potential(snapshot.files[POTENTIAL])) == 5


def test_a_row_that_is_newer_than_the_potential_is_left_out(work: Path, take: Any) -> None:
    """Pacemaker writes the row first: the potential may still be that of the iteration before."""
    files = _fit_until(work, 0, 5)
    _write_order(files.interim_potential(), files.table("metrics"))
    snapshot = take(files, SINGLE)
    assert snapshot.position.iteration == 4
    assert snapshot.iterations == 4
    assert read_table(snapshot.files["metrics/metrics.txt"]).rows[-1].iter_num == 4


@pytest.mark.parametrize("newer", ["row", "potential"])
def test_the_beginning_is_nothing_to_go_on_from(work: Path, take: Any, newer: str) -> None:
    """Neither before the first iteration nor while it may not be complete."""
    assert take(WorkFiles(work), SINGLE) is None
    files = _fit_until(work, 0, 0)
    assert take(files, SINGLE) is None
    files = _fit_until(work, 0, 1)
    if newer == "row":
        _write_order(files.interim_potential(), files.table("metrics"))
        assert take(files, SINGLE) is None
    else:
        assert take(files, SINGLE).position.iteration == 1


def test_several_cycles_are_not_gone_on_from(work: Path, take: Any) -> None:
    """Pacemaker takes the best of them, which a start of its own could not know."""
    cycles = Leg({"potential": {}, "fit": {"maxiter": 8, "fit_cycles": 2}})
    assert take(_fit_until(work, 0, 5), cycles) is None


def test_within_a_step_of_a_ladder(work: Path, take: Any) -> None:
    """The step is not done; it is the last one where all functions are there."""
    snapshot = take(_fit_until(work, 1, 4, steps_done=1), LADDER)
    assert snapshot.position == FitPosition(
        ladder_step=1, iteration=4, step_done=False, last_step=False
    )
    assert snapshot.iterations == 12
    snapshot = take(_fit_until(work, 2, 2, steps_done=2), LADDER)
    assert snapshot.position == FitPosition(
        ladder_step=2, iteration=2, step_done=False, last_step=True
    )


@pytest.mark.parametrize("begun", [False, True])
def test_between_two_steps_of_a_ladder(work: Path, take: Any, begun: bool) -> None:
    """What the last step ended with, also while the graph of the next is built."""
    files = _fit_until(work, 1 if begun else 0, 0 if begun else 8, steps_done=1)
    files.interim_potential().write_bytes(_potential(0))
    snapshot = take(files, LADDER)
    assert snapshot.position == FitPosition(
        ladder_step=0, iteration=8, step_done=True, last_step=False
    )
    assert snapshot.iterations == 8
    assert {row.ladder_step for row in _rows(snapshot)} == {0}


def test_a_leg_continues_the_numbers_of_the_fit(work: Path, take: Any) -> None:
    """Started in iteration 3 of step 1, its iteration 2 is the fifth; earlier rows come first."""
    files = _fit_until(work, 0, 2)
    files.history.mkdir()
    header, *rows = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    (files.history / "metrics.txt").write_text(header + "".join(rows[:13]))
    snapshot = take(files, HALF)
    assert snapshot.position == FitPosition(
        ladder_step=1, iteration=5, step_done=False, last_step=False
    )
    places = [(row.ladder_step, row.iter_num) for row in _rows(snapshot)]
    assert places == [(0, n) for n in range(9)] + [(1, n) for n in range(6)]
    assert snapshot.iterations == 13


def _rows(snapshot: Snapshot) -> Any:
    return read_table(snapshot.files["metrics/metrics.txt"]).rows


@pytest.mark.parametrize("touched", ["metrics", "potential"])
def test_what_changes_while_it_is_copied_does_not_count(
    work: Path, take: Any, monkeypatch: pytest.MonkeyPatch, touched: str
) -> None:
    """Pacemaker does not wait."""
    files = _fit_until(work, 0, 5)
    copyfile = shutil.copyfile

    def copy_slowly(source: Path, target: Path) -> None:
        copyfile(source, target)
        path = files.table("metrics") if touched == "metrics" else files.interim_potential()
        path.write_bytes(path.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy_slowly)
    assert take(files, SINGLE) is None


def test_a_potential_of_another_size_does_not_count(work: Path, take: Any) -> None:
    """It is of another step than the row, or was cut short between two functions."""
    files = _fit_until(work, 0, 5)
    files.interim_potential().write_bytes(_potential(1))
    _write_order(files.table("metrics"), files.interim_potential())
    assert take(files, SINGLE) is None
    files.interim_potential().write_bytes(_potential(0).rpartition(b"      - {")[0])
    assert take(files, SINGLE) is None


def test_a_diverged_fit_is_not_saved(work: Path, take: Any) -> None:
    """The last good checkpoint stays the last."""
    files = _fit_until(work, 0, 5)
    lines = files.table("metrics").read_text().splitlines()
    fields = lines[-1].split()
    fields[3] = "nan"
    files.table("metrics").write_text("\n".join([*lines[:-1], " ".join(fields)]) + "\n")
    _write_order(files.table("metrics"), files.interim_potential())
    assert take(files, SINGLE) is None


_WHOLE = _potential(0)


def _snapshot_of(potential: bytes, metrics: bytes | None = None) -> Snapshot | None:
    """Take a snapshot of a damaged work directory; check that what is taken is whole."""
    with tempfile.TemporaryDirectory() as directory:
        (work := Path(directory, "work")).mkdir()
        (target := Path(directory, "target")).mkdir()
        files = _fit_until(work, 0, 5)
        files.interim_potential().write_bytes(potential)
        if metrics is not None:
            files.table("metrics").write_bytes(metrics)
        _write_order(files.table("metrics"), files.interim_potential())
        snapshot = take_snapshot(files, SINGLE, ("Cu",), target)
        if snapshot is not None:
            content = read_potential(snapshot.files[POTENTIAL])
            assert count_functions(content) == 5
            assert all(block["speciesblock"] == "Cu" for block in content["species"])
            rows = _rows(snapshot)
            assert len(rows) <= snapshot.position.iteration + 1
        return snapshot


@given(st.integers(0, len(_WHOLE)))
def test_a_potential_cut_anywhere_is_whole_or_not_taken(length: int) -> None:
    """A kill, or a copy while it is rewritten, may find any part of it."""
    snapshot = _snapshot_of(_WHOLE[:length])
    assert (snapshot is not None) == (length >= len(_WHOLE.rstrip()))


@given(st.data())
def test_a_damaged_potential_is_no_crash(data: Any) -> None:
    """Garbage within it, lines lost or doubled."""
    lines = _WHOLE.splitlines(keepends=True)
    change = data.draw(st.sampled_from(["bytes", "drop", "double"]))
    place = data.draw(st.integers(0, len(lines) - 1))
    if change == "bytes":
        at = data.draw(st.integers(0, len(_WHOLE)))
        lines = [_WHOLE[:at], data.draw(st.binary(min_size=1, max_size=8)), _WHOLE[at:]]
    elif change == "drop":
        del lines[place : place + data.draw(st.integers(1, 9))]
    else:
        lines.insert(place, lines[place])
    _snapshot_of(b"".join(lines))


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": 1}, [[]], [None], ""], ids=repr)
@pytest.mark.parametrize("key", ["metadata", "global", "species", "speciesblock", "nbody"])
def test_a_potential_of_another_shape_is_no_crash(key: str, value: object) -> None:
    """Valid YAML need not be a potential."""
    content = yaml.safe_load(_WHOLE)
    for part in (content, content["species"][0]):
        if key in part:
            part[key] = value
            break
    _snapshot_of(yaml.safe_dump(content).encode())


_METRICS = b"".join((RUN / "metrics.txt").read_bytes().splitlines(keepends=True)[:7])


@given(st.integers(0, len(_METRICS)), st.binary(max_size=12))
def test_a_damaged_table_is_no_crash(length: int, garbage: bytes) -> None:
    """Cut anywhere, with garbage in the place of what is missing."""
    _snapshot_of(_WHOLE, _METRICS[:length] + garbage)


def test_the_best_potential_so_far_is_copied_too(work: Path, take: Any) -> None:
    """With its record, which names it; the next attempt may find no better one."""
    files = _fit_until(work, 0, 5)
    row = {"iter_num": "4", "loss": "1.0"}
    kept = {"potential": "best_potential_0_0_4.yaml", "ladder_step": 0, "cycle": 0}
    kept |= {"iteration": 4, "loss": 1.0, "train": row, "validation": row}
    files.best.write_text(json.dumps(kept))
    (work / "best_potential_0_0_4.yaml").write_bytes(_potential(0))
    snapshot = take(files, SINGLE)
    assert {"best.json", "best_potential_0_0_4.yaml"} <= set(snapshot.files)
    assert snapshot.files["best_potential_0_0_4.yaml"].read_bytes() == _potential(0)
    assert json.loads(snapshot.files["best.json"].read_text()) == kept
