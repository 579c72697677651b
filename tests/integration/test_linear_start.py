"""Fits that start with a linear least-squares fit, by the real pyace and pacemaker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mlip_job.config import JobConfig, TrainingConfig
from mlip_job.errors import ConfigError, TrainingError
from mlip_job.evaluation.potential import Pair, cores_of, shorter, shortest_distances
from mlip_job.generation import export_generation
from mlip_job.paths import WorkFiles
from mlip_job.report.model import TrainingReport
from mlip_job.store.open import open_store
from mlip_job.training import programs
from mlip_job.training.pacemaker.linear_fit import LinearTask, run_linear_fit
from mlip_job.training.pacemaker.outcome import undetermined
from mlip_job.training.pacemaker.potential_file import read_potential
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.trainer import FitData
from tests.generations import (
    Silent,
    Trained,
    make_config,
    registry_of,
    start_run,
    stopped_before_publication,
    train,
    wait_for,
)
from tests.support import rattled, with_emt, write_database

pytestmark = pytest.mark.pacemaker

# The pyace evaluator needs no TensorFlow: such a fit takes seconds.
TINY = {"evaluator": "pyace", "functions_per_element": 6, "max_iter": 2, "test_fraction": 0.2}


def _first_row(run: Trained) -> dict[str, float]:
    header, row, *_ = run.read("metrics/metrics.txt").decode().splitlines()
    return dict(zip(header.split(), map(float, row.split()), strict=True))


def test_pacemaker_starts_at_the_loss_of_the_linear_fit(tmp_path: Path) -> None:
    """Same basis, same order of functions, same weights; two elements, several blocks."""
    structures = rattled(10, symbols=("Cu", "Au", "Cu"))
    write_database(tmp_path / "structures.db", structures[::2], config_type="even")
    write_database(tmp_path / "structures.db", structures[1::2], config_type="odd")
    changes = {
        "ndensity": 2,
        "weighting": {"energy_based": {"DElow": 0.05, "DEup": 10.0}},
        # Pacemaker is given the test set too: an energy-based weighting considers both.
        "validation_fraction": 0,
        "test_evaluation": "pacemaker",
        # With more weight on energies, pyace's finite differences find no descent from there.
        "energy_weight": 1,
    }
    config = make_config(tmp_path, TINY | changes, dataset={"config_type": "config_type"})
    run = train(config)

    made = run.manifest.linear_start
    assert made is not None
    assert (made.structures, made.atoms, made.functions) == (8, 32, 12)
    row, shares = _first_row(run), made.loss_shares
    assert row["e_loss_contrib"] + row["f_loss_contrib"] == pytest.approx(made.loss, rel=1e-6)
    assert shares is not None
    total = sum(row[f"{term}_contrib"] for term in ("e_loss", "f_loss", "l1_reg", "l2_reg"))
    assert shares.energy == pytest.approx(row["e_loss_contrib"] / total, rel=1e-6)
    assert shares.forces == pytest.approx(row["f_loss_contrib"] / total, rel=1e-6)
    for name in ("l1", "l2"):
        expected = row[f"{name}_reg_contrib"] / total
        assert shares.regularisers[f"{name}_coeffs"] == pytest.approx(expected, rel=1e-6)
    assert "linear fit to 8 structures" in run.messages
    assert f"linear fit of 12 coefficients to 8 structures: loss {made.loss:.3g}" in run.messages


def test_a_linear_fit_that_nothing_improves_is_published(tmp_path: Path) -> None:
    """One coefficient, at its optimum; another attempt publishes it the same way."""
    write_database(tmp_path / "structures.db", rattled(10))
    one = {"ndensity": 1, "functions_per_element": 1, "max_iter": 50}
    config = make_config(tmp_path, TINY | one | {"evaluator": "tensorpot"})
    with stopped_before_publication():
        train(config)
    run = train(config)
    assert run.manifest.headline.iterations == 0
    assert [part.iterations for part in run.manifest.attempts] == [0, 0]
    assert sum("nothing to improve" in note for note in run.report.warnings) == 1
    assert "nothing to improve" in run.read("report.html").decode()
    assert registry_of(config).latest() == 1


def test_a_linear_fit_is_a_generation_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated, judged, published, confirmed, compared, continued; without TensorFlow or GPU."""
    _block_tensorflow(tmp_path, monkeypatch)
    database = tmp_path / "structures.db"
    write_database(database, rattled(20, symbols=("Cu", "Au")))
    linear = TINY | {"max_iter": 0, "evaluator": "tensorpot", "require_gpu": True}
    config = make_config(tmp_path, linear, evaluation={})
    run = train(config)
    assert "linear fit to 16 structures" in run.messages
    assert run.manifest.headline.iterations == 0
    assert "potential.asi" in run.manifest.artefacts
    assert run.read("train.log").startswith(b"linear fit of 12 coefficients")
    report = run.report
    assert report.fit.status == "succeeded"
    assert report.fit.train_curve == ()
    assert report.linear_start is not None
    assert _loss(report, config) == pytest.approx(report.linear_start.loss, rel=1e-5)
    _require_zbl_cores_at_shortest_distances(run, tmp_path)
    again = train(config)
    assert again.manifest == run.manifest
    assert any("published already" in message for message in again.messages)

    write_database(database, rattled(4, symbols=("Cu", "Au"), seed=1))
    second = train(config, 2)
    expected = "repeated on all data, and does not start from gen_01"
    assert any(expected in message for message in second.messages)
    assert second.manifest.parent is None
    assert second.manifest.linear_start is not None
    evaluation = second.report.evaluation
    assert evaluation is not None
    assert evaluation.parent is not None
    assert evaluation.parent.generation == 1

    other_weights = TINY | {"energy_weight": 1}  # with its minimum elsewhere
    third = train(make_config(tmp_path, other_weights), 3)
    assert third.manifest.parent is not None
    assert third.manifest.parent.generation == 2
    assert third.manifest.linear_start is None
    assert not any("linear fit" in message for message in third.messages)
    assert third.manifest.headline.iterations > 0


def test_a_run_without_test_set_on_an_exported_dataset(tmp_path: Path) -> None:
    """Manifest, report and page have no test errors; the export is found in the store."""
    slabs = rattled(4, seed=3)
    for atoms in slabs:
        atoms.pbc = (True, True, False)
    write_database(tmp_path / "structures.db", rattled(10))
    write_database(tmp_path / "structures.db", [with_emt(atoms) for atoms in slabs])
    training = TINY | {"max_iter": 0, "test_fraction": 0, "functions_per_element": 150}
    config = make_config(tmp_path, training)
    record = export_generation(config, 1, store=open_store(config.storage), observer=Silent())
    run = train(config)
    assert run.manifest.dataset.id == record.id
    (found,) = (text for text in run.messages if text.startswith(f"dataset {record.id} of"))
    assert "is in the store; no row was written since" in found

    assert run.manifest.headline.test.rmse_energy_mev_per_atom is None
    assert run.manifest.headline.train.rmse_energy_mev_per_atom is not None
    report = run.report
    assert (report.dataset.train, report.dataset.test) == (14, 0)
    assert report.evaluation is not None
    assert report.evaluation.test is None
    assert report.evaluation.speed is not None
    assert any("nothing was held out" in warning for warning in report.warnings)
    assert any("4 rows are periodic in one or two" in note for note in report.dataset.notes)
    assert b"nothing was held out" in run.read("report.html")

    warning = "training.functions_per_element is 150: more than 14 energies and "
    assert any(f"warning: {warning}" in message for message in run.messages)
    assert any(text.startswith(warning) for text in report.warnings)


def test_a_linear_fit_that_only_has_to_be_published_is_not_repeated(tmp_path: Path) -> None:
    """Its checkpoint is complete; a fit with iterations does not start from it, nor vice versa.

    The report lists the structures above DEup that an energy-based weighting omits.
    """
    write_database(tmp_path / "structures.db", rattled(12))
    weighting = {"energy_based": {"DElow": 0.05, "DEup": 0.07}}
    training = TINY | {"weighting": weighting}
    config = make_config(tmp_path, training | {"max_iter": 0})
    with stopped_before_publication():
        train(config)
    with pytest.raises(ConfigError, match=r"training\.max_iter: 0 there, 2 asked"):
        train(make_config(tmp_path, training))
    run = train(config)
    assert not any(message.startswith("linear fit") for message in run.messages)
    assert len(run.manifest.attempts) == 2
    made, omitted = run.manifest.linear_start, run.report.left_out_by_weighting["train"]
    assert made is not None
    assert omitted
    assert made.structures == run.manifest.dataset.train - len(omitted)


def _block_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "blocker"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('tensorflow', 'tensorpotential', 'tf_keras')))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(programs, "_PASSED_NAMES", programs._PASSED_NAMES | {"PYTHONPATH"})
    blocked = "import sys; sys.exit('tensorflow' not in sys.modules)"
    subprocess.run([sys.executable, "-c", blocked], check=True)


def _loss(report: TrainingReport, config: JobConfig) -> float:
    assert report.evaluation is not None
    train, training = report.evaluation.train, config.training
    assert train.rmse_energy_mev_per_atom is not None
    assert train.rmse_force_mev_per_angstrom is not None
    energy = (train.rmse_energy_mev_per_atom / 1000) ** 2
    force = 3 * (train.rmse_force_mev_per_angstrom / 1000) ** 2
    weights = training.energy_weight, training.force_weight
    return (weights[0] * energy + weights[1] * force) / sum(weights)


def _require_zbl_cores_at_shortest_distances(run: Trained, tmp_path: Path) -> None:
    """Require the cores that pacemaker adds, and that none reaches the test set."""
    registry = registry_of(run.config)
    record = registry.dataset_record(run.manifest.dataset)
    shortest: dict[Pair, float] = {}
    for name in ("train.xyz", "test.xyz"):
        registry.fetch_dataset_file(record, name, tmp_path / name)
        shortest = shorter(shortest, shortest_distances(tmp_path / name, 4.0))
    potential = tmp_path / "published.yaml"
    registry.fetch(run.manifest, "potential.yaml", potential)
    cores = cores_of(potential)
    assert {p: core.outer for p, core in cores.items()} == pytest.approx(shortest, abs=1e-5)


def test_an_interrupted_fit_resumes_without_another_linear_fit(tmp_path: Path) -> None:
    """The linear fit replaces the ladder; manifest and report name it after resuming."""
    write_database(tmp_path / "structures.db", rattled(6))
    config = make_config(tmp_path, TINY | {"max_iter": 100_000, "ladder_step": 100})
    assert config.training.ladder_step is not None
    job = start_run(config, tmp_path)
    table = wait_for(lambda: next(tmp_path.glob("work/gen_01/*/metrics.txt"), None))
    wait_for(lambda: len(table.read_text().splitlines()) > 3)
    content = yaml.safe_load(table.with_name("input.yaml").read_text())
    assert content["potential"] == "linear_start.yaml"
    assert "ladder_step" not in content["fit"]
    job.send_signal(signal.SIGTERM)
    _, messages = job.communicate(timeout=60)
    assert job.returncode == 75, messages
    assert "linear fit of 6 coefficients" in messages

    run = train(make_config(tmp_path, TINY | {"max_iter": 3, "ladder_step": 100}))
    assert len(run.manifest.attempts) == 2
    assert not any("linear fit" in message for message in run.messages)
    assert run.manifest.linear_start is not None
    assert run.report.linear_start == run.manifest.linear_start
    assert run.report.timings_s["linear_start"] > 0
    assert "a linear fit of 6 coefficients" in run.read("report.html").decode()


def test_a_linear_fit_that_took_long_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pacemaker fails before its first iteration; the next attempt starts from the linear fit."""
    from mlip_job.generation import fit

    monkeypatch.setattr(fit, "SECONDS_WORTH_A_CHECKPOINT", 0.0)
    write_database(tmp_path / "structures.db", rattled(10))
    config = make_config(tmp_path, TINY)
    with monkeypatch.context() as context:
        context.setattr(PacemakerWrapper, "fit", _fail)
        with pytest.raises(TrainingError, match="the checkpoint of the linear fit is in"):
            train(config)
    run = train(config)
    assert any("resuming from the linear fit" in message for message in run.messages)
    assert not any(message.startswith("linear fit") for message in run.messages)
    assert len(run.manifest.attempts) == 2
    made = run.manifest.linear_start
    assert made is not None
    row = _first_row(run)
    assert row["e_loss_contrib"] + row["f_loss_contrib"] == pytest.approx(made.loss, rel=1e-6)


@pytest.mark.parametrize(("number", "whom", "code"), [("TERM", "job", 75), ("KILL", "fit", 70)])
def test_a_signal_to_the_linear_fit_ends_the_job(
    tmp_path: Path, number: str, whom: str, code: int
) -> None:
    """A signal stops it immediately; a killed linear fit is not replaced by a fit from scratch."""
    write_database(tmp_path / "structures.db", rattled(6))
    config = make_config(tmp_path, TINY)
    job = start_run(config, tmp_path)
    fit = wait_for(lambda: _child(job.pid))
    os.kill(job.pid if whom == "job" else fit, signal.Signals[f"SIG{number}"])
    _, messages = job.communicate(timeout=60)
    assert job.returncode == code, messages
    assert ("stopped by SIGTERM" if whom == "job" else "linear start died") in messages
    assert "Traceback" not in messages
    assert not Path(f"/proc/{fit}").exists()
    assert not list(tmp_path.glob("work/gen_01/*/metrics.txt"))
    assert registry_of(config).numbers() == []


def test_an_error_of_the_linear_fit_has_its_cause(tmp_path: Path) -> None:
    """Errors of pandas, pyace or numpy are passed on from the other process."""
    with pytest.raises(TrainingError, match=r"linear start failed: FileNotFoundError: .*none\.gz"):
        run_linear_fit(_task(tmp_path, ("none.gz",)), print)


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_pyaces_own_linear_fit(tmp_path: Path, shards: int) -> None:
    """Summed over batches, it equals `LinearACEFit` on all data at once.

    Independent of the files that hold the structures; each has its weight in the whole set.
    """
    from pyace.basis import BBasisConfiguration
    from pyace.linearacefit import LinearACEDataset, LinearACEFit
    from sklearn.linear_model import Ridge

    from mlip_job.training.pacemaker import linear_fit

    task = _exported(tmp_path, shards)
    assert len(task.data.train) == shards
    reports: list[Any] = []
    made = linear_fit.fit_linear(reports.append, task)
    assert reports[-1] == (made.structures, made.atoms) == (20, 80)

    train = pd.concat([linear_fit._read(task, name) for name in task.data.train], ignore_index=True)
    data = LinearACEDataset(linear_fit._basis(task), train)
    weights = np.repeat([(1 - task.kappa) / 20, 3 * task.kappa / 240], (20, 240))
    own = LinearACEFit(Ridge(alpha=task.l2, fit_intercept=False), data)
    expected = own.fit(sample_weight=weights).coef_
    potential = BBasisConfiguration(str(tmp_path / "linear_start.yaml"))
    found = linear_fit._basis(task).__class__(potential).basis_coeffs
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlip_job.training.pacemaker import linear_fit

    monkeypatch.setattr(linear_fit, "_BATCH_ATOMS", 16)
    task = _exported(tmp_path)
    texts = []
    for worth in (16, 1000):
        monkeypatch.setattr(linear_fit, "_ATOMS_WORTH_A_PROCESS", worth)
        linear_fit.fit_linear(lambda _: None, task)
        texts.append((tmp_path / "linear_start.yaml").read_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("finished", [False, True])
def test_held_out_structures_choose_the_ridge(tmp_path: Path, *, finished: bool) -> None:
    """The one with the smallest loss on them; the final fit includes them."""
    from mlip_job.training.pacemaker import linear_fit

    whole = _exported(tmp_path)
    # The validation part is in the training set, or in separate files.
    given = pd.concat(
        [linear_fit._read(whole, n) for n in (whole.data.train if finished else whole.data.second)]
    )
    rows = frozenset(int(name.removeprefix("row-")) for name in given["name"][:5])
    task = _exported(tmp_path, held_out=rows, max_iter=0 if finished else 1)
    made = linear_fit.fit_linear(lambda _: None, task)
    assert made.structures == 20

    sums = linear_fit.sum_batches(_saved(tmp_path, task), 10, task, lambda _: None)
    assert sums[False].structures == (15 if finished else 20)
    assert sums[True].structures == 5
    equations, unseen = (sums[part].of_loss(task.kappa) for part in (False, True))
    assert made.ridge is not None
    losses = [
        unseen.squared_error(linear_fit.solve(equations, made.ridge * factor))
        for factor in (1, 10, 100, 1000)
    ]
    assert losses[0] == min(losses)
    assert made.ridge >= task.l2


def test_what_the_data_do_not_determine_is_named(tmp_path: Path) -> None:
    """A block without structures is 0 and noted; an empty system has no solution."""
    from mlip_job.training.pacemaker import linear_fit

    apart = _exported(tmp_path, elements=("Cu", "Pt"))
    made = linear_fit.fit_linear(lambda _: None, apart)
    assert set(made.undetermined) == {"Cu Pt", "Pt", "Pt Cu"}
    assert "an atom of Pt with Cu as neighbour within the cutoff" in "".join(undetermined(made))

    basis = linear_fit._basis(apart)
    blocks = linear_fit._blocks(basis)
    names = [block["speciesblock"] for block in _saved_blocks(tmp_path)]
    assert set(blocks) == set(names)
    size = sum(map(len, blocks.values()))
    nothing = linear_fit.Equations(np.zeros((size + 1, size + 1)), 1.0)
    expected = rf"block Cu Pt \(rank 0 of {len(blocks['Cu Pt'])} functions\)"
    with pytest.raises(TrainingError, match=expected):
        linear_fit._require_solvable(nothing, blocks)
    infinite = nothing._replace(gram=np.full((size + 1, size + 1), np.inf))
    with pytest.raises(TrainingError, match=r"block Pt \(not finite of"):
        linear_fit._require_solvable(infinite, blocks)


def _saved(tmp_path: Path, task: LinearTask) -> str:
    from mlip_job.training.pacemaker import linear_fit

    path = tmp_path / "basis.yaml"
    linear_fit._basis(task).to_BBasisConfiguration().save(str(path))
    return str(path)


def _saved_blocks(tmp_path: Path) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = read_potential(tmp_path / "linear_start.yaml")["species"]
    return blocks


def test_members_of_an_ensemble_differ_by_their_seed(tmp_path: Path) -> None:
    """By the weights of the structures, if start_noise requests it."""
    from mlip_job.training.pacemaker import linear_fit

    texts = []
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"seed": 1},
        {"start_noise": 0.1},
        {"start_noise": 0.1, "seed": 1},
    )
    for changes in kinds:
        task = _exported(tmp_path, **changes)
        linear_fit.fit_linear(lambda _: None, task)
        texts.append((tmp_path / "linear_start.yaml").read_text())
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def _fail(*_: object) -> None:
    raise TrainingError("it failed")


def _task(
    tmp_path: Path,
    train: tuple[str, ...],
    second: tuple[str, ...] = (),
    *,
    elements: tuple[str, ...] = ("Cu",),
    held_out: frozenset[int] = frozenset(),
    **training: Any,
) -> LinearTask:
    values: dict[str, Any] = {
        "functions_per_element": 10,
        "ndensity": 1,
        "energy_weight": 1,
        "force_weight": 9,
        "max_iter": 1,
        "zbl": False,
        "overrides": {"fit": {"loss": {"L1_coeffs": 0.0, "L2_coeffs": 1e-6}}},
    }
    data = FitData(
        elements=elements,
        reference_energies={},
        structures=20,
        atoms=80,
        train=train,
        second=second,
        held_out=held_out,
    )
    return LinearTask(TrainingConfig(**values | training), data, str(tmp_path), cores=2)


def _exported(tmp_path: Path, shards: int = 1, **changes: Any) -> LinearTask:
    """Return a task for the frames of 25 structures, of which 20 are for training."""
    directory = tmp_path / WorkFiles.DATASET
    if not directory.exists():
        write_database(tmp_path / "structures.db", rattled(25))
        config = make_config(tmp_path, TINY)
        store = open_store(config.storage)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", -(-20 // shards))
            export_generation(config, 1, store=store, observer=Silent(), output=directory)
    train, test = (
        WorkFiles.in_dataset(sorted(path.name for path in directory.glob(f"{side}*.pckl.gzip")))
        for side in ("train", "test")
    )
    return _task(tmp_path, train, test, **changes)


def _child(parent: int) -> int | None:
    """Return the process that a process has spawned by multiprocessing, once it has its work."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        spawned = b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        if spawned and "numpy" in Path(f"/proc/{child}/maps").read_text():
            return int(child)
    return None
