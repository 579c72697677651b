"""Bad input ends in one readable error and its exit code, with nothing written."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule

from mlip_job.config import load_config
from mlip_job.generation.data import preview
from tests.support import labelled, open_for_writing, rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from mlip_job.config import StorageConfig
    from tests.cli import Ended
    from tests.servers.databases import DatabaseServer
    from tests.servers.s3 import S3Server

    Cli = Callable[..., Ended]

TINY = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 2,
}


@dataclass(frozen=True)
class Project:
    """A directory with a configuration and a database, as a user has them."""

    directory: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.directory / "mlip-job.yaml"

    @property
    def database(self) -> Path:
        """The database."""
        return self.directory / "structures.db"

    @property
    def store(self) -> Path:
        """The store."""
        return self.directory / "store"

    def configure(self, **sections: Any) -> None:
        """Write the configuration; sections replace the defaults of the tests."""
        values = {"family": "cu", "training": TINY} | sections
        self.config.write_text(json.dumps(values))

    def content(self) -> dict[str, int]:
        """Return all that was ever written, but for the store's own lock and released claims.

        A claim can't be removed safely: another attempt may have taken it over meanwhile.
        """
        return {
            str(path.relative_to(self.directory)): path.stat().st_mtime_ns
            for path in self.directory.rglob("*")
            if path.is_file() and path.name != ".lock" and not _is_released_claim(path)
        }


def _is_released_claim(path: Path) -> bool:
    return path.name == "claim.json" and json.loads(path.read_text())["released"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project with ten good structures."""
    project = Project(tmp_path)
    project.configure()
    write_database(project.database, rattled(10))
    return project


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one generation; tests work on copies of it."""
    from mlip_job.cli.main import main

    project = Project(tmp_path_factory.mktemp("published"))
    project.configure()
    write_database(project.database, rattled(10))
    with pytest.raises(SystemExit) as ended:
        main(["-q", "-c", str(project.config), "run", "-g", "1"])
    assert ended.value.code == 0
    return project.directory


@pytest.fixture
def with_generation(published: Path, tmp_path: Path) -> Project:
    """Return a project of which generation 1 is published."""
    shutil.copytree(published, tmp_path / "project")
    return Project(tmp_path / "project")


def _refused(cli: Cli, project: Project, code: int, *arguments: object) -> str:
    """Run, and check that it ends as bad input has to; return the message."""
    before = project.content()
    ended = cli("-c", project.config, *arguments)
    assert ended.code == code, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert project.content() == before
    return ended.err


def _add(project: Project, atoms: Atoms, **keys: Any) -> int:
    return write_database(project.database, [atoms], **keys)[0]


# -- the selection --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "export"])
def test_no_row_selected(cli: Cli, project: Project, verb: str) -> None:
    """Says which statuses there are, and how many of each."""
    write_database(project.database, rattled(2), status="failed")
    project.configure(database={"select": "status=done"})
    message = _refused(cli, project, 65, verb, "-g", "1")
    assert "no row is selected by 'status=done'" in message
    assert "completed: 10" in message
    assert "failed: 2" in message


def test_bad_selection_string(cli: Cli, project: Project) -> None:
    """A usage error that names the key."""
    project.configure(database={"select": "energy<<3"})
    assert "database.select" in _refused(cli, project, 64, "run", "-g", "1")


# -- the database ---------------------------------------------------------------------------------


def test_absent_database(cli: Cli, project: Project) -> None:
    """ASE would make an empty one of that name."""
    project.configure(database={"url": "absent.db"})
    assert "absent.db" in _refused(cli, project, 69, "run", "-g", "1")
    assert not (project.directory / "absent.db").exists()


def test_unreadable_database(cli: Cli, project: Project) -> None:
    """A file that is no database."""
    (project.directory / "notes.db").write_text("not a database, but long enough to be one" * 9)
    project.configure(database={"url": "notes.db"})
    assert "notes.db" in _refused(cli, project, 69, "run", "-g", "1")


def test_wrong_password(
    cli: Cli, project: Project, postgresql: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said so, without the password."""
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", "hunter2-is-wrong")
    project.configure(database={"url": postgresql.url(postgresql.new_database())})
    message = _refused(cli, project, 69, "run", "-g", "1")
    assert "password" in message
    assert "hunter2" not in message


# -- the rows -------------------------------------------------------------------------------------


def _without(name: str) -> Atoms:
    good = rattled(1, seed=5)[0]
    results = {k: v for k, v in good.calc.results.items() if k not in (name, "free_energy")}
    return labelled(good, **results)


def _with(name: str, value: object) -> Atoms:
    good = rattled(1, seed=6)[0]
    results = {k: v for k, v in good.calc.results.items() if k != "free_energy"} | {name: value}
    return labelled(good, **results)


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (_without("energy"), "missing energy"),
        (_without("forces"), "missing forces"),
        (_with("energy", np.nan), "energy"),
        (_with("energy", np.inf), "energy"),
        (_with("forces", np.full((4, 3), np.nan)), "forces"),
        (_with("forces", np.full((4, 3), np.inf)), "forces"),
    ],
    ids=["no energy", "no forces", "nan energy", "inf energy", "nan forces", "inf forces"],
)
def test_rows_that_can_not_be_trained_on(
    cli: Cli, project: Project, atoms: Atoms, reason: str
) -> None:
    """Counted, listed by id, and too many of them are an error."""
    row = _add(project, atoms)
    project.configure(dataset={"max_rejected_fraction": 0.0})
    message = _refused(cli, project, 65, "export", "-g", "1").replace("_", " ")
    assert reason.rsplit(maxsplit=1)[-1] in message
    assert str(row) in message


def test_slab_without_area(cli: Cli, project: Project) -> None:
    """Its periodic vectors have to span a plane."""
    atoms = rattled(1, seed=7)[0]
    results = atoms.calc.results
    atoms.pbc = (True, True, False)
    atoms.cell[1] = atoms.cell[0]
    row = _add(project, labelled(atoms, energy=results["energy"], forces=results["forces"]))
    project.configure(dataset={"max_rejected_fraction": 0.0})
    message = _refused(cli, project, 65, "run", "-g", "1").replace("_", " ")
    assert "without area" in message
    assert str(row) in message


def test_same_structure_with_other_energy(cli: Cli, project: Project) -> None:
    """One of the two calculations is wrong; both rows are named."""
    original = rattled(10)[3]
    results = dict(original.calc.results, energy=original.get_potential_energy() + 1.0)
    results["free_energy"] = results["energy"]
    row = _add(project, labelled(original, **results))
    message = _refused(cli, project, 65, "run", "-g", "1")
    assert "4" in message
    assert str(row) in message


def test_element_that_the_configuration_lacks(cli: Cli, project: Project) -> None:
    """A potential without it would be fitted to its atoms all the same."""
    row = _add(project, rattled(1, symbols=("Cu", "Ni"), seed=8)[0])
    project.configure(training=TINY | {"elements": ["Cu"]})
    message = _refused(cli, project, 65, "run", "-g", "1")
    assert "Ni" in message
    assert str(row) in message


def test_element_that_the_data_lack(cli: Cli, project: Project) -> None:
    """It would shift the pairs of pacemaker's ZBL."""
    project.configure(training=TINY | {"elements": ["Cu", "Ni"]})
    assert "Ni" in _refused(cli, project, 65, "run", "-g", "1")


@pytest.mark.parametrize(("fraction", "empty"), [(0.01, "test"), (0.99, "train")])
def test_fraction_that_leaves_a_side_empty(
    cli: Cli, project: Project, fraction: float, empty: str
) -> None:
    """With the numbers, so that a user sees which fraction would do."""
    project.configure(training=TINY | {"test_fraction": fraction})
    message = _refused(cli, project, 65, "run", "-g", "1")
    assert empty in message
    assert "test_fraction" in message


def test_basis_too_small_for_the_elements(cli: Cli, tmp_path: Path) -> None:
    """Refused before the fit, with the smallest that works."""
    project = Project(tmp_path)
    project.configure(training=TINY | {"functions_per_element": 3})
    write_database(project.database, rattled(12, symbols=("Al", "Cu", "Ni")))
    message = _refused(cli, project, 64, "run", "-g", "1")
    assert "the smallest that works is 4" in message


# -- the configuration ----------------------------------------------------------------------------


def test_misspelt_key(cli: Cli, project: Project) -> None:
    """With the key that was meant."""
    project.configure(training=TINY | {"cut_off": 6})
    message = _refused(cli, project, 64, "run", "-g", "1")
    assert "training.cut_off: unknown key; did you mean training.cutoff?" in message


def test_pacemaker_not_installed(
    cli: Cli, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Known before the export is made."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pacemaker is not installed" in _refused(cli, project, 64, "run", "-g", "1")


def test_generation_to_start_from_is_absent(cli: Cli, project: Project) -> None:
    """With those that could be taken instead."""
    message = _refused(cli, project, 64, "run", "-g", "2")
    assert "gen_01, which is not published" in message


# -- the store ------------------------------------------------------------------------------------


def test_store_that_can_not_be_written(cli: Cli, project: Project) -> None:
    """A path below a file, which even root can't make a directory of."""
    project.configure(storage={"url": "structures.db/store"})
    assert "structures.db/store" in _refused(cli, project, 69, "run", "-g", "1")


def test_absent_bucket(
    cli: Cli, project: Project, s3_server: S3Server, s3_credentials: None
) -> None:
    """By its name."""
    project.configure(
        storage={"url": "s3://no-such-bucket/p", "endpoint_url": s3_server.endpoint_url}
    )
    message = _refused(cli, project, 69, "run", "-g", "1")
    assert "the bucket no-such-bucket does not exist" in message


def test_missing_credentials(
    cli: Cli, project: Project, s3_bucket: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables that hold them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    project.configure(storage=s3_bucket.model_dump())
    assert "AWS_ACCESS_KEY_ID" in _refused(cli, project, 69, "run", "-g", "1")


# -- a generation that exists ---------------------------------------------------------------------


@pytest.mark.pacemaker
def test_generation_exists_with_another_cutoff(cli: Cli, with_generation: Project) -> None:
    """The difference is named."""
    message = _refused(cli, with_generation, 73, "run", "-g", "1", "--set", "training.cutoff=6.0")
    assert "training.cutoff: 5.5 published, 6.0 asked" in message


@pytest.mark.pacemaker
def test_generation_exists_with_this_configuration(cli: Cli, with_generation: Project) -> None:
    """Nothing to do, and so no error: a retried pod succeeds."""
    before = _without_hints(with_generation.content())
    ended = cli("-c", with_generation.config, "run", "-g", "1", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["created"] is False
    assert "nothing to do" in ended.err
    assert _without_hints(with_generation.content()) == before


def _without_hints(content: dict[str, int]) -> dict[str, int]:
    """Leave out what helps to find a dataset again: the database is a copy in another place."""
    return {key: value for key, value in content.items() if "/queries/" not in key}


@pytest.mark.pacemaker
@pytest.mark.parametrize("verb", [["verify", "-g", "1"], ["pull", "-g", "1"], ["run", "-g", "2"]])
def test_stored_object_whose_hash_is_wrong(
    cli: Cli, with_generation: Project, verb: list[str]
) -> None:
    """Neither handed out nor trained from; its key is named."""
    (potential,) = with_generation.store.glob("cu/generations/gen_01/attempts/*/potential.yaml")
    potential.write_text(potential.read_text() + "# changed\n")
    arguments = verb + (["-o", with_generation.directory / "pulled"] if "pull" in verb else [])
    if "verify" in verb:
        ended = cli("-c", with_generation.config, *arguments)
        assert ended.code == 65
        message = ended.err
    else:
        message = _refused(cli, with_generation, 65, *arguments)
    assert "potential.yaml has the sha256" in message


@pytest.mark.pacemaker
def test_pull_keeps_what_is_in_the_way(cli: Cli, with_generation: Project) -> None:
    """A file of the same name that is another one."""
    target = with_generation.directory / "here"
    target.mkdir()
    (target / "gen_01.yace").write_text("mine")
    message = _refused(cli, with_generation, 73, "pull", "-g", "1", "-o", target)
    assert "gen_01.yace exists with other content" in message


@pytest.mark.pacemaker
def test_pull_with_dataset_and_verify(cli: Cli, with_generation: Project) -> None:
    """All of it, checked; what was downloaded equals what was published."""
    target = with_generation.directory / "here"
    ended = cli("-c", with_generation.config, "pull", "-g", "latest", "-o", target, "--dataset")
    assert ended.code == 0
    names = {Path(line).relative_to(target).as_posix() for line in ended.out.splitlines()}
    assert {"gen_01.yace", "gen_01.yaml", "report.json", "manifest.json"} <= names
    assert {"dataset/train.xyz", "dataset/test.xyz", "dataset/dataset.json"} <= names
    published = with_generation.store / "cu" / "potentials" / "gen_01.yace"
    assert (target / "gen_01.yace").read_bytes() == published.read_bytes()
    document = json.loads(cli("-c", with_generation.config, "verify", "-g", "1", "--json").out)
    assert document == {"generation": 1, "intact": True, "problems": []}


@pytest.mark.pacemaker
def test_list_and_show(cli: Cli, with_generation: Project) -> None:
    """As text for people, as one JSON document for programs."""
    listed = cli("-c", with_generation.config, "list")
    assert "gen_01 *" in listed.out
    document = json.loads(cli("-c", with_generation.config, "list", "--json").out)
    assert document["latest"] == 1
    assert document["generations"][0]["dataset"]["train"] == 9
    shown = json.loads(cli("--json", "-c", with_generation.config, "show", "-g", "1").out)
    assert shown["reference_energies"].keys() == {"Cu"}
    assert shown["environment"]["versions"]["python-ace"] == "0.4.0rc1"
    assert "9 train, 1 test" in cli("-c", with_generation.config, "show", "-g", "1").out


# -- init and check -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "COMPLETED"])
def test_init_writes_what_check_accepts(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """From a database to a configuration that works, whatever finished rows are called."""
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
    again = cli("init", "s.db")
    assert again.code == 64
    assert (tmp_path / "mlip-job.yaml").read_text() == text


def test_init_proposes_the_keys_of_the_rows(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trajectories stay together, and check says so as run would do."""
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
def test_check_finds_what_would_end_a_run(
    cli: Cli, project: Project, dataset: dict[str, Any], code: int, text: str
) -> None:
    """It selects, validates and splits; it had looked at 500 rows for the basis alone."""
    project.configure(dataset=dataset)
    checked = cli("-c", project.config, "check")
    assert checked.code == code
    assert "FAIL  dataset" in checked.out
    assert text in checked.out


def test_check_looks_at_a_sample_of_many_rows(project: Project) -> None:
    """The basis is that of all of them, estimated."""
    write_database(project.database, rattled(30, seed=9))
    project.configure(training={})
    config = load_config(project.config, environment={})
    whole, some = preview(config, None), preview(config, None, most=20)
    assert (whole.selected, whole.record.counts.selected) == (40, 40)
    assert (some.selected, some.record.counts.selected) == (40, 20)
    assert "a sample of 20 of 40 rows" in str(some)
    ratio = some.size.functions_per_element / whole.size.functions_per_element
    assert 0.7 < ratio < 1.4


def test_init_writes_a_short_cutoff_for_molecules(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them periodic; one crystal among them needs the longer one."""
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


def test_check_warns_of_a_basis_that_the_data_can_not_determine(cli: Cli, project: Project) -> None:
    """With the number that fits, before anything is computed."""
    project.configure(training=TINY | {"functions_per_element": 3000})
    checked = cli("-c", project.config, "check")
    assert checked.code == 0
    assert "training.functions_per_element is 3000: more than" in checked.out
    assert "would fit" in checked.out


def test_check_notes_rows_of_several_calculators(cli: Cli, project: Project) -> None:
    """With how many rows each has, before a fit mixes them."""
    one, other = rattled(2, seed=9)
    one.calc.name = "vasp"
    _add(project, one)
    noted = "the rows were not all computed in the same way"
    # The others were stored without a calculator, which tells nothing.
    assert noted not in cli("-c", project.config, "check").out
    other.calc.name = "aims"
    _add(project, other)
    checked = cli("-c", project.config, "check")
    assert noted in checked.out
    assert "vasp (1 row)" in checked.out
    assert "aims (1 row)" in checked.out


def test_init_keeps_passwords_out(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the file nor in the error."""
    monkeypatch.chdir(tmp_path)
    ended = cli("init", "postgresql://me:hunter2@host:5432/db")
    assert ended.code == 64
    assert "MLIP_JOB_DATABASE_PASSWORD" in ended.err
    assert "hunter2" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_check_names_every_problem_with_its_remedy(
    cli: Cli, project: Project, s3_server: S3Server, s3_credentials: None
) -> None:
    """All of them in one go; the exit code is the first one's."""
    project.configure(
        database={"url": "absent.db"},
        storage={"url": "s3://no-such-bucket", "endpoint_url": s3_server.endpoint_url},
    )
    ended = cli("-c", project.config, "check")
    assert ended.code == 69
    assert ended.out.count("FAIL") == 2
    assert "absent.db" in ended.out
    assert "hint: create it, or correct storage.url" in ended.out
    document = json.loads(cli("-c", project.config, "check", "--json").out)
    assert [entry["ok"] for entry in document] == [True, False, False, True]


def test_misshapen_forces_in_the_database(cli: Cli, project: Project) -> None:
    """Forces of another number of atoms, as a broken parser upstream may write them."""
    with open_for_writing(project.database) as database:
        atoms = bulk("Cu", cubic=True)
        row = database.write(
            labelled(atoms, energy=1.0, forces=np.zeros((3, 3))), status="completed"
        )
    project.configure(dataset={"max_rejected_fraction": 0.0})
    message = _refused(cli, project, 65, "export", "-g", "1")
    assert "forces" in message
    assert str(row) in message
