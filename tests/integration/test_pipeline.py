"""Generations trained by the real pacemaker, from a database to a published potential."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml

from mlip_job.config import StorageConfig
from mlip_job.errors import ConflictError, TrainingError
from mlip_job.registry import Manifest
from mlip_job.store.open import open_store
from tests.generations import (
    TINY,
    Family,
    make_config,
    registry_of,
    report_of,
    start_run,
    train,
    wait_for,
)
from tests.servers.databases import DatabaseServer
from tests.support import rattled, with_emt, write_database

pytestmark = pytest.mark.pacemaker

UP_TO_GENERATION = "status=completed,generation<={generation}"


def _functions(manifest: Manifest) -> int:
    return int(manifest.basis["functions"]["number_of_functions_per_element"])


def test_five_structures_from_postgresql_to_s3(
    tmp_path: Path,
    postgresql: DatabaseServer,
    s3_bucket: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ASE reads the dataset with its labels; E_DFT = E_potential + Σ n·e0 gives the RMSE.

    No secret is in any file or message.
    """
    from pyace import PyACECalculator

    structures = rattled(5, symbols=("Cu", "Au"))
    name = postgresql.new_database()
    write_database(postgresql.url_with_password(name), structures)
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", postgresql.password)
    config = make_config(
        tmp_path,
        TINY | {"test_fraction": 0.2, "cutoff": 6.0},
        database={"url": postgresql.url(name)},
        storage=s3_bucket.model_dump(),
    )
    run = train(config)
    manifest, registry = run.manifest, registry_of(config)
    assert run.created
    assert (manifest.dataset.train, manifest.dataset.test) == (4, 1)
    assert registry.verify(manifest) == []
    assert registry.latest() == 1
    assert yaml.safe_load(run.read("input.yaml"))["potential"]["bonds"]["ALL"]["rcut"] == 6.0

    record = registry.dataset_record(manifest.dataset)
    sides = {}
    for side in ("train", "test"):
        registry.fetch_dataset_file(record, f"{side}.xyz", tmp_path / f"{side}.xyz")
        sides[side] = ase.io.read(tmp_path / f"{side}.xyz", ":")
    dataset = sides["train"] + sides["test"]
    assert len(dataset) == 5
    for atoms in dataset:
        original = structures[atoms.info["row_id"] - 1]
        assert atoms.get_potential_energy() == pytest.approx(
            original.get_potential_energy(), abs=1e-7
        )
        np.testing.assert_allclose(atoms.get_forces(), original.get_forces(), atol=1e-7)

    registry.fetch(manifest, "potential.yace", tmp_path / "gen_01.yace")
    calculator = PyACECalculator(str(tmp_path / "gen_01.yace"))
    errors = []
    for labelled in sides["train"]:
        atoms = labelled.copy()
        atoms.calc = calculator
        references = sum(manifest.reference_energies[symbol] for symbol in atoms.symbols)
        energy = atoms.get_potential_energy() + references
        errors.append((energy - labelled.get_potential_energy()) / len(atoms))
    rmse_mev = 1000 * float(np.sqrt(np.mean(np.square(errors))))
    assert rmse_mev == pytest.approx(manifest.headline.train.rmse_energy_mev_per_atom, rel=1e-4)

    store = open_store(config.storage)
    texts = [store.get(info.key) for info in store.list("cu/")]
    texts += [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    texts.append("\n".join(run.messages).encode())
    for secret in (postgresql.password, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret.encode() in text for text in texts)


def test_the_basis_follows_from_the_data_and_is_inherited(tmp_path: Path) -> None:
    """The number is in manifest and report; the next generation has its parent's."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(6), generation=1)
    write_database(database, rattled(1, seed=1), generation=2)
    select = {"url": str(database), "select": UP_TO_GENERATION}
    first = train(make_config(tmp_path, {}, database=select))
    size = _functions(first.manifest)
    expected = f"{size} functions per element, automatic: 5 energies and "
    assert any(message.startswith(expected) for message in first.messages)
    assert first.manifest.config["training"]["functions_per_element"] == "auto"
    report = first.report
    assert report.basis is not None
    assert (report.basis.functions_per_element, report.basis.chosen) == (size, "automatic")
    assert report.fit.functions == size

    refined = {"evaluator": "pyace", "max_iter": 1}
    second = train(make_config(tmp_path, refined, database=select), 2)
    assert second.manifest.parent is not None
    assert second.manifest.parent.mode == "continue"
    assert _functions(second.manifest) == size
    inherited = second.report.basis
    assert inherited is not None
    assert inherited.chosen == "inherited"


def test_generations_are_continued_and_extended(family: Family) -> None:
    """On more data, first with the same basis, then with a larger one by a ladder."""
    first, registry = family.registry.get(1), family.registry
    write_database(family.database, rattled(6, seed=1))
    family.configure({"functions_per_element": 10, "max_iter": 2})
    second = train(family.config, 2)
    assert yaml.safe_load(second.read("input.yaml"))["potential"] == "parent_potential.yaml"
    assert second.manifest.parent is not None
    assert (second.manifest.parent.generation, second.manifest.parent.mode) == (1, "continue")
    assert second.manifest.reference_energies == first.reference_energies
    curves = [report_of(registry, registry.get(n)).fit.train_curve for n in (1, 2)]
    assert curves[1][0].loss < 0.8 * curves[0][0].loss

    family.configure({"functions_per_element": 14, "ladder_step": [2, 0.1], "max_iter": 2})
    third = train(family.config, 3)
    assert third.manifest.parent is not None
    assert (third.manifest.parent.generation, third.manifest.parent.mode) == (2, "extend")
    page = third.read("report.html").decode()
    assert "gen_03" in page
    assert "2 ladder steps" in page
    assert [step.functions for step in third.report.fit.cycles] == [12, 14]
    assert third.manifest.headline.functions == 14
    assert registry.numbers() == [1, 2, 3]
    for manifest in registry.manifests():
        assert registry.verify(manifest) == []


def test_running_again_changes_nothing(family: Family) -> None:
    """The same configuration and data are confirmed; another cutoff or more data are an error."""
    first = family.registry.get(1)
    before = sorted((p, p.stat().st_mtime_ns) for p in family.store.rglob("gen_01*"))
    again = train(family.config)
    assert not again.created
    assert again.manifest == first
    assert "nothing to do" in again.messages[-1]
    assert before == sorted((p, p.stat().st_mtime_ns) for p in family.store.rglob("gen_01*"))

    write_database(family.database, rattled(1, seed=9))
    with pytest.raises(ConflictError, match=r"another dataset: .*\(14 train, 2 test\); .*"):
        train(family.config)
    family.set_training(cutoff=6.0)
    with pytest.raises(ConflictError, match=r"training\.cutoff: 5\.5 published, 6\.0 asked"):
        train(family.config)


def test_energy_based_weighting_lists_the_rows_it_omits(tmp_path: Path) -> None:
    """A row far above the convex hull is in the dataset, but not in the fit.

    Without TensorFlow the test set has no curve; its errors are those of the published file.
    """
    structures = rattled(11)
    high = structures[-1].copy()
    high.positions[0] += 1.0
    structures[-1] = with_emt(high)
    write_database(tmp_path / "structures.db", structures)
    weighting = {"energy_based": {"DElow": 0.2, "DEup": 0.9}}
    training = TINY | {"weighting": weighting, "validation_fraction": 0, "test_evaluation": "end"}
    report = train(make_config(tmp_path, training)).report
    omitted = [row for rows in report.left_out_by_weighting.values() for row in rows]
    assert omitted == [11]
    evaluation = report.evaluation
    assert evaluation is not None
    assert evaluation.train.structures + evaluation.test.structures == 10
    assert 11 not in {w.row_id for side in (evaluation.train, evaluation.test) for w in side.worst}
    assert any("the weighting removed 1 of" in warning for warning in report.warnings)
    assert report.fit.test_curve == ()
    assert not any("validation part" in text for text in report.warnings)


def test_a_failed_fit_publishes_nothing(tmp_path: Path) -> None:
    """The error has the cause and the end of the log; the work directory is kept."""
    write_database(tmp_path / "structures.db", rattled(6))
    overrides = {"fit": {"optimizer": "steepest-guess"}}
    config = make_config(tmp_path, TINY | {"overrides": overrides})
    with pytest.raises(TrainingError, match="pacemaker failed") as caught:
        train(config)
    assert "steepest-guess" in str(caught.value)
    assert "last lines of" in str(caught.value)
    assert registry_of(config).numbers() == []
    assert list((tmp_path / "work" / "gen_01").glob("*/train.log"))


def test_signals_end_pacemaker_and_the_next_run_resumes(tmp_path: Path) -> None:
    """No process is left and nothing is published; exit code 75 if a handler can set it."""
    write_database(tmp_path / "structures.db", rattled(6))
    training = TINY | {"functions_per_element": 8}
    endless = make_config(tmp_path, training | {"max_iter": 100_000})
    for number in (signal.SIGKILL, signal.SIGINT):
        before = set(tmp_path.glob("work/gen_01/*"))
        job = start_run(endless, tmp_path)
        pacemaker = _wait_for_pacemaker(job, tmp_path / "work" / "gen_01", before)
        job.send_signal(number)
        _, messages = job.communicate(timeout=60)
        wait_for(lambda process=pacemaker: not Path(f"/proc/{process}").exists())
        assert registry_of(endless).numbers() == []
        if number is not signal.SIGKILL:
            assert job.returncode == 75
            assert f"stopped by {number.name}" in messages
            assert "Traceback" not in messages
    done = registry_of(endless).checkpoints(1).found()[0].iterations
    published = train(make_config(tmp_path, training | {"max_iter": done + 2}))
    assert published.created
    assert len(published.manifest.attempts) >= 2


def _wait_for_pacemaker(job: subprocess.Popen[str], work: Path, before: set[Path]) -> int:
    """Return the process id of a new attempt's pacemaker after some iterations."""

    def fitting() -> Path | None:
        assert job.poll() is None
        for attempt in set(work.glob("*")) - before:
            table = attempt / "metrics.txt"
            if table.exists() and len(table.read_text().splitlines()) > 3:
                return attempt
        return None

    attempt = wait_for(fitting)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            directory = (process / "cwd").readlink()
        except OSError:
            continue
        if attempt == directory:
            return int(process.name)
    pytest.fail("no process works in the attempt's directory")
