"""Candidates for the next generation: graded by the real potential, selected, written, marked."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db import connect

from mlip_job.config import DatabaseConfig
from mlip_job.dataset.database import mark_rows
from mlip_job.dataset.validation import Rejection
from mlip_job.errors import ConfigError, ConflictError, DatabaseError, IntegrityError
from tests.cli import Cli
from tests.generations import Family
from tests.servers.databases import DatabaseServer
from tests.support import open_for_writing, rattled

pytestmark = pytest.mark.pacemaker

PASSWORD = "MLIP_JOB_DATABASE_PASSWORD"  # noqa: S105 - the name of the variable


@pytest.fixture
def select(cli: Cli, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that calls the command in a separate directory, without its output."""
    work = tmp_path / "here"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # With ten functions, grades of ordinary structures are large.
    given = ("-c", family.config_path, "-g", 1, "--max-grade", "inf")
    return lambda *arguments: cli("select", *given, *arguments)


def outliers() -> list[Atoms]:
    rng = np.random.default_rng(3)
    compressed = [bulk("Cu", cubic=True, a=a) for a in (3.35, 3.25)]
    defective = bulk("Cu", cubic=True, a=3.65).repeat((2, 2, 1))
    del defective[[0, 1, 2, 5]]
    for atoms in (*compressed, defective):
        atoms.rattle(0.05, rng=rng)
    return [*compressed, defective]


def candidates() -> tuple[list[Atoms], set[int]]:
    """Return unlabelled structures, most like the training data, and the indices of outliers."""
    near = rattled(30, seed=5)
    for atoms in near:
        atoms.calc = None
    mixed = [*near, *outliers()]
    order = np.random.default_rng(8).permutation(len(mixed))
    return [mixed[k] for k in order], {int(np.where(order == k)[0][0]) for k in (30, 31, 32)}


def add_rows(family: Family, structures: list[Atoms], **pairs: Any) -> list[int]:
    with open_for_writing(family.database) as database:
        return [database.write(atoms, **pairs) for atoms in structures]


def statuses(database: Path) -> dict[int, str]:
    return {row.id: row.status for row in connect(database).select()}


def test_selection_is_better_than_random(select: Cli, tmp_path: Path, family: Family) -> None:
    """Every outlier is selected, with grades far above those of a thousand random selections."""
    from pyace import PyACECalculator

    structures, strange = candidates()
    ase.io.write(tmp_path / "candidates.xyz", structures)
    ended = select(tmp_path / "candidates.xyz", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    ranked = found["candidates"]
    chosen = {c["id"] for c in ranked if c["chosen"]}
    assert strange <= chosen
    assert len(chosen) < len(structures) / 2
    grades = {c["id"]: c["extrapolation_grade"] for c in ranked}
    assert list(grades.values()) == sorted(grades.values(), reverse=True)
    assert all(grades[id_] > 1 for id_ in chosen)
    rng = np.random.default_rng(0)
    own = np.mean([grades[id_] for id_ in chosen])
    chance = [
        np.mean([grades[int(k)] for k in rng.choice(len(structures), len(chosen), replace=False)])
        for _ in range(1000)
    ]
    assert own >= max(chance)
    assert own > 5 * np.mean(chance)

    written = ase.io.read(found["file"], ":")
    assert [a.info["candidate"] for a in written] == [c["id"] for c in ranked if c["chosen"]]
    calculator = PyACECalculator(str(family.artefact("potential.yaml")))
    calculator.set_active_set(str(family.artefact("potential.asi")))
    for atoms in written:
        original = structures[atoms.info["candidate"]]
        np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-7)
        assert atoms.info["generation"] == "gen_01"
        original.calc = calculator
        original.get_potential_energy()
        grade = calculator.results["gamma"].max()
        assert atoms.info["extrapolation_grade"] == pytest.approx(grade, rel=1e-5)


def test_nothing_left_out_extrapolates_once_the_choice_is_in(family: Family) -> None:
    """As D-optimality requires, whether candidates compete at once or batch by batch."""
    from mlip_job.selection import ActiveSetExtension, Grader

    grader = Grader(family.artefact("potential.yaml"), family.artefact("potential.asi"))
    structures, strange = candidates()
    atoms = grader.grade(structures)[0]
    assert atoms.grades.max() > 10
    for size, tolerance in ((len(structures), 1.011), (5, 1.2)):
        extension = ActiveSetExtension(grader.inverse, buffer_bytes=0)
        for start in range(0, len(structures), size):
            batch = (atoms.owners >= start) & (atoms.owners < start + size)
            extension.add(0, atoms.projections[batch], atoms.owners[batch])
            extension.settle()
        assert strange <= set(extension.places())
        grades = np.abs(atoms.projections @ np.linalg.pinv(extension._rows[0])).max(axis=1)
        assert grades.max() < tolerance


def test_broken_structures_are_excluded_by_default(
    cli: Cli, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be selected first; their number is printed, and how to include them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = bulk("Cu", cubic=True, a=1.9)
    broken.rattle(0.05, seed=1)
    ase.io.write(tmp_path / "c.xyz", [broken, *rattled(3, seed=5)])
    arguments = ("select", "-c", family.config_path, "-g", 1, tmp_path / "c.xyz")
    ended = cli(*arguments, "--json")
    found = json.loads(ended.out)
    assert found["criteria"]["max_grade"] == 25
    assert 0 not in {c["id"] for c in found["candidates"] if c["chosen"]}
    assert "left out 1 with a grade above 25" in ended.err
    every = json.loads(cli(*arguments, "--max-grade", "inf", "-o", "all.xyz", "--json").out)
    assert 0 in {c["id"] for c in every["candidates"] if c["chosen"]}


def test_the_same_structure_twice_is_chosen_once(select: Cli, tmp_path: Path) -> None:
    strange = outliers()[0]
    ase.io.write(tmp_path / "twice.xyz", [strange, strange, *rattled(3, seed=5)])
    ranked = json.loads(select(tmp_path / "twice.xyz", "--json").out)["candidates"]
    assert {c["id"] for c in ranked[:2]} == {0, 1}
    places = [c["new_environments"] for c in ranked[:2]]
    assert sum(places) >= 1
    assert sum(c["chosen"] for c in ranked[:2]) == sum(place > 0 for place in places)
    assert sum(places) <= len(strange)


def test_count_and_grades_limit_the_choice(select: Cli, tmp_path: Path) -> None:
    structures, _ = candidates()
    ase.io.write(tmp_path / "c.xyz", structures)
    every = json.loads(select(tmp_path / "c.xyz", "--json", "-o", "all.xyz").out)["candidates"]
    top = [c["id"] for c in every if c["chosen"]][:2]
    ended = select(tmp_path / "c.xyz", "-n", 2)
    assert "2 chosen: selected_gen_01.xyz" in ended.err
    assert [a.info["candidate"] for a in ase.io.read("selected_gen_01.xyz", ":")] == top
    shown = [line.split() for line in ended.out.splitlines() if line.rstrip().endswith("*")]
    assert [row[1] for row in shown] == [str(id_) for id_ in top]

    below = every[0]["extrapolation_grade"] - 0.01
    ended = select(tmp_path / "c.xyz", "--max-grade", below, "-o", "below.xyz", "--json")
    assert every[0]["id"] not in {
        c["id"] for c in json.loads(ended.out)["candidates"] if c["chosen"]
    }
    ended = select(tmp_path / "c.xyz", "--min-grade", 1e6, "-o", "none.xyz", "--json")
    assert ended.code == 0
    assert "none adds to the active set, nothing is written" in ended.err
    assert json.loads(ended.out)["file"] is None


def test_rows_of_the_database_are_chosen_and_marked(select: Cli, family: Family) -> None:
    structures, strange = candidates()
    ids = add_rows(family, structures, status="candidate", origin="md")
    before = statuses(family.database)
    assert select("-o", "unmarked.xyz").code == 0
    assert statuses(family.database) == before

    ended = select("--mark", "status=to_label", "--mark", "priority=2", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    chosen = [c["id"] for c in found["candidates"] if c["chosen"]]
    assert {ids[k] for k in strange} <= set(chosen)
    assert found["marked"] == {"status": "to_label", "priority": 2}
    after = statuses(family.database)
    assert after == before | dict.fromkeys(chosen, "to_label")
    row = connect(family.database).get(id=chosen[0])
    assert row.key_value_pairs == {"status": "to_label", "origin": "md", "priority": 2}
    assert [a.info["row_id"] for a in ase.io.read(found["file"], ":")] == chosen

    again = json.loads(select("-o", "again.xyz", "--json").out)["candidates"]
    assert {c["id"] for c in again} == set(ids) - set(chosen)


def test_a_failing_database_marks_nothing_and_leaves_no_file(select: Cli, family: Family) -> None:
    structures, _ = candidates()
    ids = add_rows(family, structures, status="candidate")
    with closing(sqlite3.connect(family.database)) as database:
        ended = select("--json", "-o", "probe.xyz")
        chosen = [c["id"] for c in json.loads(ended.out)["candidates"] if c["chosen"]]
        assert len(chosen) > 1
        database.execute(
            f"CREATE TRIGGER no BEFORE UPDATE ON systems WHEN old.id = {chosen[-1]} "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
        database.commit()
    ended = select("--mark", "status=to_label")
    assert ended.code == 69
    assert "can't be written to: not this one" in ended.err
    assert {statuses(family.database)[id_] for id_ in ids} == {"candidate"}
    assert not Path("selected_gen_01.xyz").exists()


def test_a_concurrently_changed_row_marks_nothing(family: Family) -> None:
    ids = add_rows(family, rattled(3), status="candidate")
    with open_for_writing(family.database) as database:
        database.update(ids[1], status="running")
    config = DatabaseConfig(url=str(family.database), select="status=candidate")
    with pytest.raises(ConflictError, match=f"row {ids[1]} .* no row was marked"):
        mark_rows(config, ids, {"status": "to_label"})
    assert [statuses(family.database)[id_] for id_ in ids] == ["candidate", "running", "candidate"]


@pytest.mark.filterwarnings("ignore:'(db|passwd)' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_servers_mark_all_rows_or_none(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: DatabaseServer = request.getfixturevalue(kind)
    monkeypatch.setenv(PASSWORD, server.password)
    name = server.new_database()
    with open_for_writing(server.url_with_password(name)) as database:
        ids = [database.write(atoms, status="candidate") for atoms in rattled(4)]
        database.update(ids[3], status="running")
    config = DatabaseConfig(url=server.url(name), select="status=candidate")
    with pytest.raises(ConflictError):
        mark_rows(config, ids, {"status": "to_label"})
    assert _statuses_on(server, name) == ["candidate", "candidate", "candidate", "running"]
    mark_rows(config, ids[:2], {"status": "to_label"})
    assert _statuses_on(server, name) == ["to_label", "to_label", "candidate", "running"]
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(DatabaseError) as failed:
        mark_rows(config, ids[2:3], {"status": "to_label"})
    assert server.password not in str(failed.value)


def _statuses_on(server: DatabaseServer, name: str) -> list[str]:
    with open_for_writing(server.url_with_password(name)) as database:
        return [row.status for row in database.select(sort="id")]


def test_candidates_without_grade_are_listed(select: Cli, tmp_path: Path) -> None:
    lonely = bulk("Cu", cubic=True, a=3.6)
    lonely.set_cell([20, 20, 20])
    flat = Atoms("Cu2", [(0, 0, 0), (2, 0, 0)], cell=[4, 0, 0], pbc=(True, True, False))
    structures = [rattled(1)[0], bulk("Ni", cubic=True), lonely[:1], flat, *outliers()]
    for atoms in structures:
        atoms.calc = None
    ase.io.write(tmp_path / "c.xyz", structures)
    ended = select(tmp_path / "c.xyz", "--json")
    assert json.loads(ended.out)["skipped"] == {
        "atom without a neighbour within the cutoff": [2],
        "element that the potential lacks: Ni": [1],
        Rejection.FLAT_CELL.value: [3],
    }
    assert "skipped 1: element that the potential lacks: Ni" in ended.err
    assert ended.code == 0

    ase.io.write(tmp_path / "ni.xyz", [bulk("Ni", cubic=True)] * 3)
    ended = select(tmp_path / "ni.xyz", "-o", "other.xyz")
    assert ended.code == 65
    assert "no candidate can be ranked: 3 × element that the potential lacks: Ni" in ended.err


def test_slabs_are_graded_without_vacuum(select: Cli, tmp_path: Path, family: Family) -> None:
    """Graded like the same slab with vacuum, written with their own cell and periodicity."""
    slab = bulk("Cu", cubic=True, a=3.3).repeat((1, 1, 2))
    slab.rattle(0.05, seed=1)
    padded = slab.copy()
    padded.cell[2, 2] += 30
    slab.pbc = (True, True, False)
    ase.io.write(tmp_path / "c.xyz", [slab, padded, *candidates()[0][:3]])
    ended = select(tmp_path / "c.xyz", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    grades = {c["id"]: c["extrapolation_grade"] for c in found["candidates"]}
    assert not found["skipped"]
    assert grades[0] == pytest.approx(grades[1], rel=1e-6)
    written = {a.info["candidate"]: a for a in ase.io.read(found["file"], ":")}
    if 0 in written:
        assert written[0].pbc.tolist() == [True, True, False]
        np.testing.assert_allclose(written[0].cell.array, slab.cell.array)


def test_unreadable_files_are_rejected(select: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "text.dat").write_text("these are no structures\n")
    ase.io.write(tmp_path / "cut.xyz", rattled(3))
    whole = (tmp_path / "cut.xyz").read_text()
    (tmp_path / "cut.xyz").write_text(whole[:-30])
    for name, text in {
        "empty.xyz": "can't be read: Empty file",
        "absent.xyz": "is no file of candidates",
        "text.dat": "can't be read",
        "cut.xyz": "can't be read after 2 structures",
    }.items():
        ended = select(tmp_path / name)
        assert (ended.code, text in ended.err) == (65, True), ended.err
    ended = select()
    assert ended.code == 65
    assert "'status=candidate' has no candidates" in ended.err
    assert not Path("selected_gen_01.xyz").exists()


def test_other_formats_are_read(select: Cli, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "c.traj", [*rattled(2, seed=5), *outliers()])
    ended = select(tmp_path / "c.traj", "--json")
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["candidates"]) == 5


def test_wrong_usage_is_rejected_before_reading(
    select: Cli, tmp_path: Path, family: Family, cli: Cli
) -> None:
    ase.io.write(tmp_path / "c.xyz", rattled(1))
    for arguments, text in (
        ((tmp_path / "c.xyz", "--select", "status=candidate"), "not both"),
        ((tmp_path / "c.xyz", "--mark", "status=x"), "not for a FILE"),
        (("--mark", "status"), "is not key=value"),
        (("--mark", "energy=1"), "no key_value_pair"),
        (("--mark", "Cu=1"), "no key_value_pair"),
        (("--max-grade", 0.5), "not above"),
        (("-n", 0), "-n"),
        (("--select", "a=1=2<"), "is not an ASE selection"),
    ):
        ended = select(*arguments)
        assert (ended.code, text in ended.err) == (64, True), ended.err
    (tmp_path / "there.xyz").write_text("mine")
    ended = select(tmp_path / "c.xyz", "-o", tmp_path / "there.xyz")
    assert (ended.code, "there.xyz exists" in ended.err) == (64, True)
    assert (tmp_path / "there.xyz").read_text() == "mine"

    path = family.store / family.registry.keys.manifest(1)
    path.write_text(path.read_text().replace('"potential.asi"', '"other.asi"'))
    ended = select(tmp_path / "c.xyz")
    assert (ended.code, "without an active set" in ended.err) == (64, True)
    ended = select(tmp_path / "c.xyz", "--max-grade", "inf", "--by", "committee")
    assert (ended.code, "has no effect" in ended.err) == (64, True)
    ended = cli(
        "select", "-c", family.config_path, tmp_path / "c.xyz", "-g", 1, "--by", "committee"
    )
    assert ended.code == 64
    assert "gen_01 of cu is no ensemble: a committee needs" in ended.err
    assert "mlip-job submit -g N --ensemble 4" in ended.err
    ended = select(tmp_path / "c.xyz", "-g", 9)
    assert (ended.code, "gen_09 of cu is not published" in ended.err) == (64, True)


def test_active_sets_of_another_kind_are_rejected(family: Family, tmp_path: Path) -> None:
    from mlip_job.selection import Grader

    potential = family.artefact("potential.yaml")
    for matrices, error, text in (
        ({"Ni": np.eye(10)}, IntegrityError, "one of Ni, the potential one of Cu"),
        ({"Cu": np.eye(20)}, ConfigError, "this one is full"),
    ):
        with (tmp_path / "other.asi").open("wb") as file:
            np.savez(file, **matrices)
        with pytest.raises(error, match=text):
            Grader(potential, tmp_path / "other.asi")


def test_candidates_above_the_largest_grade_are_counted() -> None:
    from mlip_job.selection import Criteria, RankedCandidate, Selection

    grades = (4000.0, 25.1, 25.0, 3.0, 0.9)
    selection = Selection(
        family="cu",
        generation=1,
        source="candidates.xyz",
        criteria=Criteria(max_grade=25.0),
        skipped={},
        candidates=tuple(
            RankedCandidate(id=number, formula="Cu", atoms=1, extrapolation_grade=grade)
            for number, grade in enumerate(grades)
        ),
    )
    assert (selection.above, selection.admitted) == (2, 2)
    every = selection.model_copy(update={"criteria": Criteria()})
    assert (every.above, every.admitted) == (0, 4)
