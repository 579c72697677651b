"""Bad input ends with one readable error and its exit code; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule

from mlip_job.generation.data import preview
from tests.cli import Cli
from tests.generations import Family
from tests.servers.s3 import S3Server
from tests.support import labelled, rattled, write_database


def _content(project: Family) -> dict[str, int]:
    """Return all files, except the store's lock and released claims.

    A claim can't be removed safely: another attempt may take it over at the same time.
    """
    return {
        str(path.relative_to(project.root)): path.stat().st_mtime_ns
        for path in project.root.rglob("*")
        if path.is_file() and path.name != ".lock" and not _is_released_claim(path)
    }


def _is_released_claim(path: Path) -> bool:
    return path.name == "claim.json" and json.loads(path.read_text())["released"]


@pytest.fixture
def project(tmp_path: Path) -> Family:
    project = Family(tmp_path)
    project.configure()
    write_database(project.database, rattled(10))
    return project


def _rejected(cli: Cli, project: Family, code: int, *arguments: object) -> str:
    """Run a command and check that it fails with one error; return the message."""
    before = _content(project)
    ended = cli("-c", project.config_path, *arguments)
    assert ended.code == code, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert _content(project) == before
    return ended.err


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"database": {"select": "energy<<3"}}, 64, ["database.select"]),
        ({"database": {"url": "absent.db"}}, 69, ["absent.db"]),
        ({"database": {"url": "notes.db"}}, 69, ["notes.db"]),
        ({"training": {"elements": ["Cu", "Ni"]}}, 65, ["Ni"]),
        ({"training": {"test_fraction": 0.01}}, 65, ["test", "test_fraction"]),
        ({"training": {"test_fraction": 0.99}}, 65, ["train", "test_fraction"]),
        (
            {"training": {"cut_off": 6}},
            64,
            ["training.cut_off: unknown key; did you mean training.cutoff?"],
        ),
        # Even root can't make a directory below a file.
        ({"storage": {"url": "structures.db/store"}}, 69, ["structures.db/store"]),
    ],
    ids=str,
)
def test_settings(
    cli: Cli, project: Family, sections: dict[str, Any], code: int, words: list[str]
) -> None:
    (project.root / "notes.db").write_text("not a database, but long enough to be one" * 9)
    project.configure(**sections)
    message = _rejected(cli, project, code, "run", "-g", "1")
    for word in words:
        assert word in message


def _with(name: str, value: object) -> Atoms:
    good = rattled(1, seed=6)[0]
    results = {k: v for k, v in good.calc.results.items() if k != "free_energy"} | {name: value}
    return labelled(good, **results)


def _flat() -> Atoms:
    atoms = rattled(1, seed=7)[0]
    results = atoms.calc.results
    atoms.pbc = (True, True, False)
    atoms.cell[1] = atoms.cell[0]
    return labelled(atoms, energy=results["energy"], forces=results["forces"])


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (_with("energy", np.nan), "energy"),
        (_with("forces", np.zeros((3, 3))), "forces"),
        (_flat(), "without area"),
    ],
    ids=["nan energy", "misshapen forces", "slab without area"],
)
def test_unusable_rows(cli: Cli, project: Family, atoms: Atoms, reason: str) -> None:
    (row,) = write_database(project.database, [atoms])
    project.configure(dataset={"max_rejected_fraction": 0.0})
    message = _rejected(cli, project, 65, "export", "-g", "1").replace("_", " ")
    assert reason in message
    assert str(row) in message


def test_basis_too_small_for_the_elements(cli: Cli, tmp_path: Path) -> None:
    project = Family(tmp_path)
    project.configure()
    write_database(project.database, rattled(12, symbols=("Al", "Cu", "Ni")))
    message = _rejected(cli, project, 64, "run", "-g", "1")
    assert "the smallest that works is 4" in message


def test_pacemaker_not_installed(
    cli: Cli, project: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pacemaker is not installed" in _rejected(cli, project, 64, "run", "-g", "1")


def test_generation_to_start_from_is_absent(cli: Cli, project: Family) -> None:
    message = _rejected(cli, project, 64, "run", "-g", "2")
    assert "gen_01, which is not published" in message


# -- an existing generation ------------------------------------------------------------------------


@pytest.mark.pacemaker
@pytest.mark.parametrize("verb", [["verify", "-g", "1"], ["pull", "-g", "1"], ["run", "-g", "2"]])
def test_stored_object_whose_hash_is_wrong(cli: Cli, family: Family, verb: list[str]) -> None:
    """It is neither delivered nor trained from; the message has its key."""
    (potential,) = family.store.glob("cu/generations/gen_01/attempts/*/potential.yaml")
    potential.write_text(potential.read_text() + "# changed\n")
    arguments = verb + (["-o", family.root / "pulled"] if "pull" in verb else [])
    if "verify" in verb:
        ended = cli("-c", family.config_path, *arguments)
        assert ended.code == 65
        message = ended.err
    else:
        message = _rejected(cli, family, 65, *arguments)
    assert "potential.yaml has the sha256" in message


@pytest.mark.pacemaker
def test_pull_keeps_existing_files(cli: Cli, family: Family) -> None:
    target = family.root / "here"
    target.mkdir()
    (target / "gen_01.yace").write_text("mine")
    message = _rejected(cli, family, 73, "pull", "-g", "1", "-o", target)
    assert "gen_01.yace exists with other content" in message


# -- init and check -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "COMPLETED"])
def test_init_writes_what_check_accepts(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """From a database to a working configuration, for any status of finished rows."""
    monkeypatch.chdir(tmp_path)
    write_database(tmp_path / "s.db", rattled(20, symbols=("Cu", "Au")), status=status)
    write_database(tmp_path / "s.db", rattled(1, seed=4), status="failed")
    written = cli("init", "s.db")
    assert written.code == 0
    assert f"20 {status}" in written.out
    text = (tmp_path / "mlip-job.yaml").read_text()
    assert "family: au-cu\n" in text
    assert f"select: status={status}\n" in text
    size = " functions per element, automatic: 18 energies and "
    assert f"{size}21" in text.replace("\n  # ", " ")
    assert len(text.splitlines()) <= 60
    assert "group_by: null" in text
    gate = yaml.safe_load(text)["evaluation"]["gate"]
    assert gate["max_energy_rmse_mev"] == 10
    assert 20 <= gate["max_force_rmse_mev"] < 2000
    assert "\n  functions_per_element: auto\n" in text
    assert "  # Here, for periodic structures.\n  cutoff: 5.5\n" in text
    checked = cli("check")
    assert checked.code == 0, checked.out
    assert checked.out.count("ok  ") == 6
    assert "gen_01 of 20 rows: 18 train, 2 test" in checked.out
    assert size in checked.out
    assert cli("init", "s.db", "--trainer", "grace-fs", "-o", "grace.yaml").code == 0
    training = yaml.safe_load((tmp_path / "grace.yaml").read_text())["training"]
    assert (training["trainer"], training["max_iter"], training["zbl"]) == ("grace-fs", 200, False)
    assert "ok    configuration" in cli("check", "-c", "grace.yaml").out
    again = cli("init", "s.db")
    assert again.code == 64
    assert (tmp_path / "mlip-job.yaml").read_text() == text


def test_init_proposes_the_keys_of_the_rows(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trajectories stay together; check and run report the same split."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        frames = rattled(4, seed=number)
        write_database(tmp_path / "s.db", frames, traj=f"md{number}", kind="bulk")
    assert cli("init", "s.db").code == 0
    text = (tmp_path / "mlip-job.yaml").read_text()
    assert "  group_by: traj\n" in text
    assert "  config_type: kind\n" in text
    checked = cli("check")
    assert checked.code == 0, checked.out
    assert "36 train, 4 test; grouped by traj" in checked.out


@pytest.mark.parametrize(
    ("dataset", "code", "text"),
    [
        ({"group_by": "trajektory"}, 65, "no row has the key_value_pair 'trajektory'"),
        ({"split_key": "side"}, 65, "side"),
        ({"max_force": 1e-6}, 65, "10 of 10 rows can't be trained on"),
    ],
)
def test_check_finds_errors_of_the_dataset(
    cli: Cli, project: Family, dataset: dict[str, Any], code: int, text: str
) -> None:
    project.configure(dataset=dataset)
    checked = cli("-c", project.config_path, "check")
    assert checked.code == code
    assert "FAIL  dataset" in checked.out
    assert text in checked.out


def test_check_looks_at_a_sample_of_many_rows(project: Family) -> None:
    write_database(project.database, rattled(30, seed=9))
    project.configure({"functions_per_element": "auto"})
    config = project.config
    whole, some = preview(config, None), preview(config, None, most=20)
    assert (whole.selected, whole.record.counts.selected) == (40, 40)
    assert (some.selected, some.record.counts.selected) == (40, 20)
    assert "a sample of 20 of 40 rows" in str(some)
    ratio = some.size.functions_per_element / whole.size.functions_per_element
    assert 0.7 < ratio < 1.4


def test_init_writes_a_short_cutoff_for_molecules(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is periodic; a single crystal among them needs the longer one."""
    monkeypatch.chdir(tmp_path)
    molecules = [labelled(molecule("CH3CH2OH"), energy=-1.0, forces=np.full((9, 3), 0.1))] * 3
    write_database(tmp_path / "s.db", molecules)
    assert cli("init", "s.db").code == 0
    text = (tmp_path / "mlip-job.yaml").read_text()
    assert "# Here, for molecules: no structure is periodic.\n  cutoff: 4.0\n" in text
    assert "3 energies and 73 force components of 3" in text
    write_database(tmp_path / "s.db", rattled(1))
    assert cli("init", "s.db", "-o", "other.yaml").code == 0
    assert "  cutoff: 5.5\n" in (tmp_path / "other.yaml").read_text()


def test_check_warns_of_a_basis_that_the_data_can_not_determine(cli: Cli, project: Family) -> None:
    project.configure({"functions_per_element": 3000})
    checked = cli("-c", project.config_path, "check")
    assert checked.code == 0
    assert "training.functions_per_element is 3000: more than" in checked.out
    assert "would fit" in checked.out


def test_check_notes_rows_of_several_calculators(cli: Cli, project: Family) -> None:
    one, other = rattled(2, seed=9)
    one.calc.name = "vasp"
    write_database(project.database, [one])
    noted = "the rows were not all computed in the same way"
    # The other rows were stored without a calculator, which proves nothing.
    assert noted not in cli("-c", project.config_path, "check").out
    other.calc.name = "aims"
    write_database(project.database, [other])
    checked = cli("-c", project.config_path, "check")
    assert noted in checked.out
    assert "vasp (1 row)" in checked.out
    assert "aims (1 row)" in checked.out


def test_init_keeps_passwords_out(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("init", "postgresql://me:hunter2@host:5432/db")
    assert ended.code == 64
    assert "MLIP_JOB_DATABASE_PASSWORD" in ended.err
    assert "hunter2" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_check_names_every_problem_with_its_remedy(
    cli: Cli, project: Family, s3_server: S3Server, s3_credentials: None
) -> None:
    project.configure(
        database={"url": "absent.db"},
        storage={"url": "s3://no-such-bucket", "endpoint_url": s3_server.endpoint_url},
    )
    ended = cli("-c", project.config_path, "check")
    assert ended.code == 69
    assert ended.out.count("FAIL") == 2
    assert "absent.db" in ended.out
    assert "hint: create it, or correct storage.url" in ended.out
    document = json.loads(cli("-c", project.config_path, "check", "--json").out)
    assert [entry["ok"] for entry in document] == [True, False, False, True]
