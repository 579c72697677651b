"""Generations trained by the real pacemaker, from a database to a published potential."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
import pytest
import yaml

from mlip_job.config import JobConfig
from mlip_job.errors import ConflictError, TrainingError
from mlip_job.generation import run_generation
from mlip_job.registry import Manifest, Registry
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from tests.reports import validate_report
from tests.support import rattled, with_emt, write_database

if TYPE_CHECKING:
    from mlip_job.config import StorageConfig
    from mlip_job.training.trainer import Progress
    from tests.servers.databases import DatabaseServer

# The pyace evaluator needs no TensorFlow: such a fit takes seconds.
TINY = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 3,
}


class _Recorder:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.lines: list[str] = []
        self.phases: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, progress: Progress) -> None:
        if progress.phase not in self.phases:
            self.phases.append(progress.phase)


def _config(tmp_path: Path, training: dict[str, Any], **sections: Any) -> JobConfig:
    values = {
        "family": "cu",
        "database": {"url": str(tmp_path / "structures.db")},
        "training": training,
        "storage": {"url": str(tmp_path / "store")},
        "work_dir": str(tmp_path / "work"),
        "evaluation": {"gate": {"require_physics": False}},
    }
    return JobConfig.model_validate(values | sections)


def _run(config: JobConfig, generation: int) -> tuple[Manifest, bool, _Recorder]:
    recorder = _Recorder()
    with StopRequest() as stop:
        outcome = run_generation(
            config, generation, store=open_store(config.storage), observer=recorder, stop=stop
        )
    return outcome.manifest, outcome.created, recorder


def _registry(config: JobConfig) -> Registry:
    return Registry(open_store(config.storage), config.family)


def _report(config: JobConfig, manifest: Manifest) -> TrainingReport:
    text = _registry(config).read(manifest, "report.json")
    validate_report(text)
    return TrainingReport.from_json(text)


def _functions(manifest: Manifest) -> int:
    return int(manifest.basis["functions"]["number_of_functions_per_element"])


@pytest.mark.pacemaker
def test_five_structures_end_to_end(tmp_path: Path) -> None:
    """Exported, trained, published; ASE reads the dataset back with energies and forces."""
    structures = rattled(5)
    write_database(tmp_path / "structures.db", structures)
    config = _config(tmp_path, TINY | {"test_fraction": 0.2, "cutoff": 6.0})
    manifest, created, _ = _run(config, 1)

    assert created
    assert (manifest.dataset.train, manifest.dataset.test) == (4, 1)
    assert _registry(config).verify(manifest) == []
    input_yaml = open_store(config.storage).get(manifest.artefacts["input.yaml"].key)
    assert yaml.safe_load(input_yaml)["potential"]["bonds"]["ALL"]["rcut"] == 6.0

    folder = tmp_path / "store" / "cu" / "datasets" / manifest.dataset.id
    read = ase.io.read(folder / "train.xyz", ":") + ase.io.read(folder / "test.xyz", ":")
    assert len(read) == 5
    for atoms in read:
        original = structures[atoms.info["row_id"] - 1]
        assert atoms.get_potential_energy() == pytest.approx(
            original.get_potential_energy(), abs=1e-7
        )
        np.testing.assert_allclose(atoms.get_forces(), original.get_forces(), atol=1e-7)


@pytest.mark.pacemaker
def test_the_basis_follows_from_the_data_and_is_inherited(tmp_path: Path) -> None:
    """The number is in manifest and report; the next generation has its parent's."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(6), generation=1)
    write_database(database, rattled(1, seed=1), generation=2)
    select = {"url": str(database), "select": "status=completed,generation<={generation}"}
    first, _, recorder = _run(_config(tmp_path, {}, database=select), 1)
    size = _functions(first)
    said = f"{size} functions per element, automatic: 5 energies and "
    assert any(message.startswith(said) for message in recorder.messages)
    assert first.config["training"]["functions_per_element"] == "auto"
    report = _report(_config(tmp_path, {}), first)
    assert report.basis is not None
    assert (report.basis.functions_per_element, report.basis.chosen) == (size, "automatic")
    assert report.fit.functions == size

    refined = {"evaluator": "pyace", "max_iter": 1}
    second, _, _ = _run(_config(tmp_path, refined, database=select), 2)
    assert second.parent is not None
    assert second.parent.mode == "continue"
    assert _functions(second) == size
    inherited = _report(_config(tmp_path, refined), second).basis
    assert inherited is not None
    assert inherited.chosen == "inherited"


@pytest.mark.pacemaker
def test_a_basis_that_the_data_can_not_determine_is_a_warning(tmp_path: Path) -> None:
    """It is made as asked; run and report name the number that fits."""
    write_database(tmp_path / "structures.db", rattled(6))
    config = _config(tmp_path, {"functions_per_element": 60})
    manifest, _, recorder = _run(config, 1)
    assert _functions(manifest) == 60
    warning = "training.functions_per_element is 60: more than 5 energies and "
    assert any(f"warning: {warning}" in message for message in recorder.messages)
    assert any(text.startswith(warning) for text in _report(config, manifest).warnings)


@pytest.mark.pacemaker
def test_energies_are_recovered_from_the_potential(tmp_path: Path) -> None:
    """E_DFT = E_potential + Σ n·e0: with the published figures the report's RMSE comes out."""
    from pyace import PyACECalculator

    structures = rattled(12, symbols=("Cu", "Au"))
    write_database(tmp_path / "structures.db", structures)
    config = _config(tmp_path, TINY | {"test_fraction": 0.25})
    manifest, _, _ = _run(config, 1)
    calculator = PyACECalculator(str(tmp_path / "store" / "cu" / "potentials" / "gen_01.yace"))
    folder = tmp_path / "store" / "cu" / "datasets" / manifest.dataset.id
    errors = []
    for labelled in ase.io.read(folder / "train.xyz", ":"):
        atoms = labelled.copy()
        atoms.calc = calculator
        energy = atoms.get_potential_energy() + sum(
            manifest.reference_energies[symbol] for symbol in atoms.symbols
        )
        errors.append((energy - labelled.get_potential_energy()) / len(atoms))
    rmse_mev = 1000 * float(np.sqrt(np.mean(np.square(errors))))
    assert rmse_mev == pytest.approx(manifest.headline.train.rmse_energy_mev_per_atom, rel=1e-4)


@pytest.mark.pacemaker
def test_tensorflow_fit_continued_and_grown(tmp_path: Path) -> None:
    """Single-shot, then the same basis on more data, then a larger one by a ladder."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(12), generation=1)
    write_database(database, rattled(6, seed=1), generation=2)
    select = {"url": str(database), "select": "status=completed,generation<={generation}"}
    training = {
        "functions_per_element": 6,
        "linear_start": False,
        "ladder_step": None,
        "max_iter": 8,
        "overrides": {"backend": {"display_step": 4}},
        "energy_weight": 1,
        "force_weight": 4,
        "validation_fraction": 0,
        "test_evaluation": "pacemaker",
    }
    config = _config(tmp_path, training, database=select)

    first, _, recorder = _run(config, 1)
    assert "building_graph" in recorder.phases
    assert any("Loading input.yaml" in line for line in recorder.lines)
    report = _report(config, first)
    assert report.loss.kappa == pytest.approx(0.8)
    assert not report.loss.stress_fitted
    assert report.fit.test is not None
    assert report.fit.train is not None
    assert len(report.fit.train_curve) == 9
    assert report.evaluation is not None
    for agreement in report.evaluation.agreement:
        assert agreement.energy_mev_per_atom == pytest.approx(
            agreement.energy_by_pacemaker_mev_per_atom, rel=1e-5
        )
        assert agreement.force_mev_per_angstrom == pytest.approx(
            agreement.force_by_pacemaker_mev_per_angstrom, rel=1e-5
        )
    assert [agreement.side for agreement in report.evaluation.agreement] == ["train", "test"]
    log = open_store(config.storage).get(first.artefacts["train.log"].key).decode()
    assert "Hostname: (not published)" in log
    assert "Username: mlip-job" in log

    second, _, _ = _run(config, 2)
    content = yaml.safe_load(open_store(config.storage).get(second.artefacts["input.yaml"].key))
    assert content["potential"] == "parent_potential.yaml"
    assert second.parent is not None
    assert (second.parent.generation, second.parent.mode) == (1, "continue")
    assert second.reference_energies == first.reference_energies
    curve = _report(config, second).fit.train_curve
    assert curve[0].loss < 0.5 * report.fit.train_curve[0].loss

    larger = _config(
        tmp_path,
        training | {"functions_per_element": 12, "ladder_step": [3, 0.1], "max_iter": 4},
        database=select,
    )
    third, _, _ = _run(larger, 3)
    assert third.parent is not None
    assert (third.parent.generation, third.parent.mode) == (2, "extend")
    page = _registry(config).read(third, "report.html").decode()
    assert "gen_03" in page
    assert "2 ladder steps" in page
    steps = _report(larger, third).fit.cycles
    assert [step.functions for step in steps] == [9, 12]
    assert third.headline.functions == 12
    assert _registry(config).numbers() == [1, 2, 3]
    for manifest in _registry(config).manifests():
        assert _registry(config).verify(manifest) == []


@pytest.mark.pacemaker
def test_running_again_changes_nothing(tmp_path: Path) -> None:
    """Same configuration and data: confirmed. Another cutoff or more data: refused by name."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(10))
    config = _config(tmp_path, TINY)
    first, _, _ = _run(config, 1)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "store").rglob("gen_01*"))

    again, created, recorder = _run(config, 1)
    assert not created
    assert again == first
    assert "nothing to do" in recorder.messages[-1]
    assert before == sorted(
        (p, p.stat().st_mtime_ns) for p in (tmp_path / "store").rglob("gen_01*")
    )

    with pytest.raises(ConflictError, match=r"training\.cutoff: 5\.5 published, 6\.0 asked"):
        _run(_config(tmp_path, TINY | {"cutoff": 6.0}), 1)
    write_database(database, rattled(1, seed=9))
    with pytest.raises(ConflictError, match=r"another dataset: .*\(9 train, 1 test\); .*"):
        _run(config, 1)


@pytest.mark.pacemaker
def test_from_postgresql_to_s3(
    tmp_path: Path,
    postgresql: DatabaseServer,
    s3_bucket: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The platform's set-up: a server with a password, a bucket, and no secret left anywhere."""
    name = postgresql.new_database()
    write_database(postgresql.url_with_password(name), rattled(6))
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", postgresql.password)
    config = _config(
        tmp_path,
        TINY,
        database={"url": postgresql.url(name)},
        storage=s3_bucket.model_dump(),
    )
    manifest, created, recorder = _run(config, 1)
    assert created
    assert _registry(config).verify(manifest) == []
    assert _registry(config).latest() == 1
    store = open_store(config.storage)
    texts = [store.get(info.key) for info in store.list("cu/")] + [
        path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()
    ]
    texts.append("\n".join(recorder.messages).encode())
    for secret in (postgresql.password, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret.encode() in text for text in texts)


@pytest.mark.pacemaker
def test_energy_based_weighting_names_what_it_leaves_out(tmp_path: Path) -> None:
    """A row high above the convex hull is in the dataset, but not in the fit."""
    structures = rattled(11)
    high = structures[-1].copy()
    high.positions[0] += 1.0
    structures[-1] = with_emt(high)
    write_database(tmp_path / "structures.db", structures)
    weighting = {"energy_based": {"DElow": 0.2, "DEup": 0.9}}
    config = _config(tmp_path, TINY | {"weighting": weighting})
    manifest, _, _ = _run(config, 1)
    report = _report(config, manifest)
    left_out = [row for rows in report.left_out_by_weighting.values() for row in rows]
    assert left_out == [11]
    evaluation = report.evaluation
    assert evaluation is not None
    assert evaluation.train.structures + evaluation.test.structures == 10
    assert 11 not in {w.row_id for side in (evaluation.train, evaluation.test) for w in side.worst}
    assert any("the weighting removed 1 of" in warning for warning in report.warnings)


@pytest.mark.pacemaker
def test_failed_fit_publishes_nothing_and_says_why(tmp_path: Path) -> None:
    """The cause in words, the end of the log, and a work directory to look into."""
    write_database(tmp_path / "structures.db", rattled(6))
    overrides = {"fit": {"optimizer": "steepest-guess"}}
    config = _config(tmp_path, TINY | {"overrides": overrides})
    with pytest.raises(TrainingError, match="pacemaker failed") as caught:
        _run(config, 1)
    assert "steepest-guess" in str(caught.value)
    assert "last lines of" in str(caught.value)
    assert _registry(config).numbers() == []
    assert list((tmp_path / "work" / "gen_01").glob("*/train.log"))


@pytest.mark.pacemaker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_ends_pacemaker_and_asks_to_be_run_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Exit code 75, nothing published, no process left behind; the next run succeeds."""
    job, pacemaker = _start_long_fit(tmp_path)
    job.send_signal(number)
    _, messages = job.communicate(timeout=60)
    assert job.returncode == 75
    assert f"stopped by {number.name}" in messages
    assert "Traceback" not in messages
    assert not Path(f"/proc/{pacemaker}").exists()
    config = _config(tmp_path, TINY)
    assert _registry(config).numbers() == []
    assert _run(config, 1)[1]


@pytest.mark.pacemaker
def test_pacemaker_does_not_outlive_a_killed_job(tmp_path: Path) -> None:
    """What no signal handler can do, the kernel does: no GPU is left busy for nobody."""
    job, pacemaker = _start_long_fit(tmp_path)
    job.kill()
    job.communicate(timeout=60)
    for _ in range(100):
        if not Path(f"/proc/{pacemaker}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("pacemaker is still running")
    assert _run(_config(tmp_path, TINY), 1)[1]


def _start_long_fit(tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a job that would fit for hours; return it and the process id of its pacemaker."""
    write_database(tmp_path / "structures.db", rattled(6))
    long = TINY | {"max_iter": 100_000, "functions_per_element": 20}
    path = tmp_path / "mlip-job.yaml"
    path.write_text(json.dumps(_config(tmp_path, long).model_dump(mode="json")))
    command = [sys.executable, "-c", "from mlip_job.cli.main import main; main()"]
    job = subprocess.Popen(
        [*command, "-c", str(path), "run", "-g", "1"], stderr=subprocess.PIPE, text=True
    )
    return job, _wait_for_pacemaker(tmp_path)


def _wait_for_pacemaker(tmp_path: Path) -> int:
    """Return the process id of the pacemaker that works below `tmp_path`, once it fits."""
    for _ in range(1800):
        tables = list(tmp_path.glob("work/gen_01/*/metrics.txt"))
        if tables and len(tables[0].read_text().splitlines()) > 1:
            break
        time.sleep(0.1)
    else:
        pytest.fail("pacemaker did not start to fit")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            directory = (process / "cwd").readlink()
        except OSError:
            continue
        if tables[0].parent == directory:
            return int(process.name)
    pytest.fail("no process works in the attempt's directory")
