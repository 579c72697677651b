"""Fits that begin with a linear least-squares fit, by the real pyace and pacemaker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mlip_job.config import JobConfig, TrainingConfig
from mlip_job.errors import ConfigError, TrainingError
from mlip_job.evaluation.potential import cores_of, shorter, shortest_distances
from mlip_job.generation import export_generation, run_generation
from mlip_job.paths import WorkFiles
from mlip_job.registry import Registry
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from mlip_job.training import programs
from mlip_job.training.pacemaker.linear_fit import LinearTask, run_linear_fit, undetermined
from mlip_job.training.pacemaker.potential_file import read_potential
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.trainer import FitData
from tests.generations import stopped_before_publication
from tests.support import rattled, with_emt, write_database

if TYPE_CHECKING:
    from mlip_job.evaluation.potential import Pair
    from mlip_job.registry import Manifest
    from mlip_job.training.trainer import Progress

pytestmark = pytest.mark.pacemaker

# The pyace evaluator needs no TensorFlow: such a fit takes seconds.
TINY = {
    "evaluator": "pyace",
    "functions_per_element": 6,
    "max_iter": 2,
    "test_fraction": 0.2,
}


class _Recorder:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        """Forget it."""

    def progress(self, progress: Progress) -> None:
        """Forget it."""


def _config(tmp_path: Path, training: dict[str, Any], **sections: Any) -> JobConfig:
    values = {
        "family": "cu",
        "database": {"url": str(tmp_path / "structures.db")},
        "training": training,
        "storage": {"url": str(tmp_path / "store")},
        "work_dir": str(tmp_path / "work"),
        "evaluation": {"active_set": False, "gate": {"require_physics": False}},
    }
    return JobConfig.model_validate(values | sections)


def _run(config: JobConfig, generation: int = 1) -> tuple[Manifest, list[str]]:
    recorder = _Recorder()
    with StopRequest() as stop:
        store = open_store(config.storage)
        outcome = run_generation(config, generation, store=store, observer=recorder, stop=stop)
    return outcome.manifest, recorder.messages


def _read(config: JobConfig, manifest: Manifest, name: str) -> bytes:
    return Registry(open_store(config.storage), "cu").read(manifest, name)


def _first_row(config: JobConfig, manifest: Manifest) -> dict[str, float]:
    """Return what pacemaker makes of the start."""
    header, row, *_ = _read(config, manifest, "metrics/metrics.txt").decode().splitlines()
    return dict(zip(header.split(), map(float, row.split()), strict=True))


def _first_loss(config: JobConfig, manifest: Manifest) -> float:
    """Return its loss without regularisation."""
    row = _first_row(config, manifest)
    return row["e_loss_contrib"] + row["f_loss_contrib"]


@pytest.mark.parametrize(
    ("evaluator", "ndensity", "weighting"),
    [
        ("tensorpot", 5, "uniform"),
        ("pyace", 2, {"energy_based": {"DElow": 0.05, "DEup": 10.0}}),
        ("pyace", 2, {"by_group": {"even": {"energy": 5, "forces": 0.2}}}),
    ],
)
def test_pacemaker_finds_the_loss_that_the_linear_fit_left(
    tmp_path: Path, evaluator: str, ndensity: int, weighting: object
) -> None:
    """Same basis, same order of its functions, same weights; two elements, several blocks."""
    database = tmp_path / "structures.db"
    structures = rattled(10, symbols=("Cu", "Au", "Cu"))
    write_database(database, structures[::2], config_type="even")
    write_database(database, structures[1::2], config_type="odd")
    # Pacemaker is given the test set, too: an energy-based weighting looks at both.
    both = {"validation_fraction": 0, "test_evaluation": "pacemaker"}
    # With more weight on energies pyace's finite differences find no way down from there.
    changes = {"evaluator": evaluator, "ndensity": ndensity, "weighting": weighting}
    changes |= {"energy_weight": 1, **both}
    config = _config(tmp_path, TINY | changes, dataset={"config_type": "config_type"})
    manifest, messages = _run(config)

    made = manifest.linear_start
    assert made is not None
    assert (made.structures, made.atoms, made.functions) == (8, 32, 12)
    assert _first_loss(config, manifest) == pytest.approx(made.loss, rel=1e-6)
    row, shares = _first_row(config, manifest), made.loss_shares
    assert shares is not None
    total = sum(row[f"{term}_contrib"] for term in ("e_loss", "f_loss", "l1_reg", "l2_reg"))
    assert shares.energy == pytest.approx(row["e_loss_contrib"] / total, rel=1e-6)
    assert shares.forces == pytest.approx(row["f_loss_contrib"] / total, rel=1e-6)
    for name in ("l1", "l2"):
        expected = row[f"{name}_reg_contrib"] / total
        assert shares.regularisers[f"{name}_coeffs"] == pytest.approx(expected, rel=1e-6)
    assert "linear fit to 8 structures" in messages
    said = f"linear fit of 12 coefficients to 8 structures: loss {made.loss:.3g}"
    assert said in messages


@pytest.mark.parametrize(("evaluator", "parts"), [("pyace", 1), ("tensorpot", 2)])
def test_a_linear_fit_that_nothing_improves_is_published(
    tmp_path: Path, evaluator: str, parts: int
) -> None:
    """One coefficient, of which it finds the best value; the report says that this was all.

    So it is where another job publishes what was fitted.
    """
    write_database(tmp_path / "structures.db", rattled(10))
    one = {"ndensity": 1, "functions_per_element": 1, "max_iter": 50, "evaluator": evaluator}
    config = _config(tmp_path, TINY | one)
    if parts > 1:
        with stopped_before_publication():
            _run(config)
    manifest, _ = _run(config)
    assert manifest.headline.iterations == 0
    assert [part.iterations for part in manifest.attempts] == [0] * parts
    report = TrainingReport.from_json(_read(config, manifest, "report.json"))
    assert sum("nothing to improve" in note for note in report.warnings) == 1
    assert "nothing to improve" in _read(config, manifest, "report.html").decode()
    assert Registry(open_store(config.storage), "cu").latest() == 1


def test_a_linear_fit_is_a_generation_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated, judged, published, confirmed, compared, continued; without TensorFlow or GPU."""
    _block_tensorflow(tmp_path, monkeypatch)
    database = tmp_path / "structures.db"
    write_database(database, rattled(20, symbols=("Cu", "Au")))
    linear = TINY | {"max_iter": 0, "evaluator": "tensorpot", "require_gpu": True}
    config = _config(tmp_path, linear, evaluation={})
    manifest, messages = _run(config)
    assert "linear fit to 16 structures" in messages
    assert manifest.headline.iterations == 0
    assert "potential.asi" in manifest.artefacts
    assert _read(config, manifest, "train.log").startswith(b"linear fit of 12 coefficients")
    report = TrainingReport.from_json(_read(config, manifest, "report.json"))
    assert report.fit.status == "succeeded"
    assert report.fit.train_curve == ()
    assert report.linear_start is not None
    assert _loss(report, config) == pytest.approx(report.linear_start.loss, rel=1e-5)
    _require_zbl_cores_at_shortest_distances(config, manifest, tmp_path)
    again, messages = _run(config)
    assert again == manifest
    assert any("published already" in message for message in messages)

    write_database(database, rattled(4, symbols=("Cu", "Au"), seed=1))
    second, messages = _run(config, 2)
    assert any("repeated on all data, and does not start from gen_01" in m for m in messages)
    assert second.parent is None
    assert second.linear_start is not None
    report = TrainingReport.from_json(_read(config, second, "report.json"))
    assert report.evaluation is not None
    assert report.evaluation.parent is not None
    assert report.evaluation.parent.generation == 1

    other_weights = TINY | {"energy_weight": 1}  # of which it is no minimum
    third, _ = _run(_config(tmp_path, other_weights), 3)
    assert third.parent is not None
    assert third.parent.generation == 2
    assert third.headline.iterations > 0


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    """Slabs and crystals, all of them for training: no test errors in manifest, report and page."""
    slabs = rattled(4, seed=3)
    for atoms in slabs:
        atoms.pbc = (True, True, False)
    write_database(tmp_path / "structures.db", rattled(10))
    write_database(tmp_path / "structures.db", [with_emt(atoms) for atoms in slabs])
    config = _config(tmp_path, TINY | {"max_iter": 0, "test_fraction": 0})
    manifest, _ = _run(config)
    assert manifest.headline.test.rmse_energy_mev_per_atom is None
    assert manifest.headline.train.rmse_energy_mev_per_atom is not None
    report = TrainingReport.from_json(_read(config, manifest, "report.json"))
    assert (report.dataset.train, report.dataset.test) == (14, 0)
    assert report.evaluation is not None
    assert report.evaluation.test is None
    assert report.evaluation.speed is not None
    assert any("nothing was held out" in warning for warning in report.warnings)
    assert any("4 rows are periodic in one or two" in note for note in report.dataset.notes)
    assert b"nothing was held out" in _read(config, manifest, "report.html")


def test_a_linear_fit_that_only_has_to_be_published_is_not_made_again(tmp_path: Path) -> None:
    """A checkpoint of it is complete; it is none for a fit with iterations, nor the reverse."""
    write_database(tmp_path / "structures.db", rattled(10))
    config = _config(tmp_path, TINY | {"max_iter": 0})
    with stopped_before_publication():
        _run(config)
    with pytest.raises(ConfigError, match=r"training\.max_iter: 0 there, 2 asked"):
        _run(_config(tmp_path, TINY))
    manifest, messages = _run(config)
    assert not any(message.startswith("linear fit") for message in messages)
    assert len(manifest.attempts) == 2
    assert manifest.linear_start is not None


def test_a_run_finds_the_dataset_that_was_exported_before(tmp_path: Path) -> None:
    """An export may be a job of its own, without a GPU."""
    write_database(tmp_path / "structures.db", rattled(10))
    config = _config(tmp_path, TINY | {"max_iter": 0})
    record = export_generation(config, 1, store=open_store(config.storage), observer=_Recorder())
    manifest, messages = _run(config)
    assert manifest.dataset.id == record.id
    (found,) = (text for text in messages if text.startswith(f"dataset {record.id} of"))
    assert "is in the store; no row was written since" in found


def test_what_a_weighting_leaves_out_of_a_linear_fit_is_reported(tmp_path: Path) -> None:
    """As of a fit by pacemaker: an energy-based one drops the structures above DEup."""
    write_database(tmp_path / "structures.db", rattled(12))
    weighting = {"energy_based": {"DElow": 0.05, "DEup": 0.07}}
    config = _config(tmp_path, TINY | {"max_iter": 0, "weighting": weighting})
    manifest, _ = _run(config)
    report = TrainingReport.from_json(_read(config, manifest, "report.json"))
    made, left_out = manifest.linear_start, report.left_out_by_weighting["train"]
    assert made is not None
    assert left_out
    assert made.structures == manifest.dataset.train - len(left_out)


def _block_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process that a run starts fail where it imports TensorFlow."""
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
    """Return the loss of what was evaluated."""
    assert report.evaluation is not None
    train, training = report.evaluation.train, config.training
    energy = (train.energy_mev_per_atom.rmse / 1000) ** 2
    force = 3 * (train.force_mev_per_angstrom.rmse / 1000) ** 2
    weights = training.energy_weight, training.force_weight
    return (weights[0] * energy + weights[1] * force) / sum(weights)


def _require_zbl_cores_at_shortest_distances(
    config: JobConfig, manifest: Manifest, tmp_path: Path
) -> None:
    """As pacemaker puts them on, and clear of the test set."""
    registry = Registry(open_store(config.storage), "cu")
    record = registry.dataset_record(manifest.dataset)
    shortest: dict[Pair, float] = {}
    for name in ("train.xyz", "test.xyz"):
        registry.fetch_dataset_file(record, name, tmp_path / name)
        shortest = shorter(shortest, shortest_distances(tmp_path / name, 4.0))
    potential = tmp_path / "published.yaml"
    registry.fetch(manifest, "potential.yaml", potential)
    cores = cores_of(potential)
    assert {p: core.outer for p, core in cores.items()} == pytest.approx(shortest, abs=1e-5)


def test_it_replaces_the_ladder_but_no_parent(tmp_path: Path) -> None:
    """It is the default; the next generation starts from this one, without another."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(10))
    config = _config(tmp_path, TINY | {"ladder_step": 100})
    manifest, _ = _run(config)
    content = yaml.safe_load(_read(config, manifest, "input.yaml"))
    assert content["potential"] == "linear_start.yaml"
    assert "ladder_step" not in content["fit"]
    assert config.training.ladder_step is not None
    report = TrainingReport.from_json(_read(config, manifest, "report.json"))
    assert report.linear_start == manifest.linear_start
    assert report.timings_s["linear_start"] > 0
    assert "a linear fit of 6 coefficients" in _read(config, manifest, "report.html").decode()

    write_database(database, rattled(2, seed=1))
    second, messages = _run(config, 2)
    assert second.parent is not None
    assert second.linear_start is None
    assert not any("linear fit" in message for message in messages)


def test_an_interrupted_fit_goes_on_as_any_other(tmp_path: Path) -> None:
    """From the checkpoint, without another linear fit; the manifest still says how it began."""
    write_database(tmp_path / "structures.db", rattled(6))
    config = _config(tmp_path, TINY | {"max_iter": 100_000})
    job = _start(tmp_path, config)
    table = _wait(lambda: next(tmp_path.glob("work/gen_01/*/metrics.txt"), None))
    _wait(lambda: len(table.read_text().splitlines()) > 3 or None)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 75, said
    assert "linear fit of 6 coefficients" in said

    ending = _config(tmp_path, TINY | {"max_iter": 3})
    manifest, messages = _run(ending)
    assert len(manifest.attempts) == 2
    assert manifest.linear_start is not None
    assert not any("linear fit" in message for message in messages)


def test_a_linear_fit_that_took_long_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pacemaker fails before its first iteration; the next attempt begins where it began."""
    from mlip_job.generation import fit

    monkeypatch.setattr(fit, "SECONDS_WORTH_A_CHECKPOINT", 0.0)
    write_database(tmp_path / "structures.db", rattled(10))
    config = _config(tmp_path, TINY)
    with monkeypatch.context() as context:
        context.setattr(PacemakerWrapper, "fit", _fail)
        with pytest.raises(TrainingError, match="the checkpoint of the linear fit is in"):
            _run(config)
    manifest, messages = _run(config)
    assert any("resuming from the linear fit" in message for message in messages)
    assert not any(message.startswith("linear fit") for message in messages)
    assert len(manifest.attempts) == 2
    made = manifest.linear_start
    assert made is not None
    assert _first_loss(config, manifest) == pytest.approx(made.loss, rel=1e-6)


@pytest.mark.parametrize(("number", "whom", "code"), [("TERM", "job", 75), ("KILL", "fit", 70)])
def test_whatever_ends_the_linear_fit_ends_the_job_in_words(
    tmp_path: Path, number: str, whom: str, code: int
) -> None:
    """A stop signal at once; and no fit from nothing where the linear one died, as of memory."""
    write_database(tmp_path / "structures.db", rattled(6))
    job = _start(tmp_path, _config(tmp_path, TINY))
    fit = _wait(lambda: _child(job.pid))
    os.kill(job.pid if whom == "job" else fit, signal.Signals[f"SIG{number}"])
    _, said = job.communicate(timeout=60)
    assert job.returncode == code, said
    assert ("stopped by SIGTERM" if whom == "job" else "linear start died") in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{fit}").exists()
    assert not list(tmp_path.glob("work/gen_01/*/metrics.txt"))
    assert Registry(open_store(_config(tmp_path, TINY).storage), "cu").numbers() == []


def test_an_error_of_the_linear_fit_has_its_cause(tmp_path: Path) -> None:
    """What pandas, pyace or numpy say is passed on from the other process."""
    with pytest.raises(TrainingError, match=r"linear start failed: FileNotFoundError: .*none\.gz"):
        run_linear_fit(_task(tmp_path, ("none.gz",)), print)


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_pyaces_own_linear_fit(tmp_path: Path, shards: int) -> None:
    """Summed up over batches, it is what `LinearACEFit` finds in one piece.

    Whatever files the structures are in; each has its weight in the whole set.
    """
    from pyace.basis import BBasisConfiguration
    from pyace.linearacefit import LinearACEDataset, LinearACEFit
    from sklearn.linear_model import Ridge

    from mlip_job.training.pacemaker import linear_fit

    task = _exported(tmp_path, shards)
    assert len(task.data.train) == shards
    told: list[Any] = []
    made = linear_fit.fit_linear(told.append, task)
    assert told[-1] == (made.structures, made.atoms) == (20, 80)

    train = pd.concat([linear_fit._read(task, name) for name in task.data.train], ignore_index=True)
    data = LinearACEDataset(linear_fit._basis(task), train)
    weights = np.repeat([(1 - task.kappa) / 20, 3 * task.kappa / 240], (20, 240))
    own = LinearACEFit(Ridge(alpha=task.l2, fit_intercept=False), data)
    expected = own.fit(sample_weight=weights).coef_
    potential = BBasisConfiguration(str(tmp_path / "linear_start.yaml"))
    found = linear_fit._basis(task).__class__(potential).basis_coeffs
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one bit: what they find is summed in the order of the batches."""
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
    """The one with the smallest loss on them; a fit that is finished is made to them, too."""
    from mlip_job.training.pacemaker import linear_fit

    whole = _exported(tmp_path)
    # Those of the validation part are in the training set, or in files of their own.
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
    """A block without structures is 0, and said; equations of nothing have no solution."""
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
    nothing = linear_fit.Equations(np.zeros((size, size)), np.zeros(size), 0.0, 1.0)
    expected = rf"block Cu Pt \(rank 0 of {len(blocks['Cu Pt'])} functions\)"
    with pytest.raises(TrainingError, match=expected):
        linear_fit._require_solvable(nothing, blocks)
    infinite = nothing._replace(matrix=np.full((size, size), np.inf))
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
    """By the weights of the structures, where start_noise asks for that."""
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
        dataset = {"frame_shard_size": -(-20 // shards)}
        export_generation(
            _config(tmp_path, TINY, dataset=dataset), 1,
            store=open_store(_config(tmp_path, TINY).storage), observer=_Recorder(),
            output=directory,
        )  # fmt: skip
    train, test = (
        WorkFiles.in_dataset(sorted(path.name for path in directory.glob(f"{side}*.pckl.gzip")))
        for side in ("train", "test")
    )
    return _task(tmp_path, train, test, **changes)


def _start(tmp_path: Path, config: JobConfig) -> subprocess.Popen[str]:
    path = tmp_path / "mlip-job.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    program = "if __name__ == '__main__': from mlip_job.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "-c", str(path), "run", "-g", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(look: Any) -> Any:
    for _ in range(1800):
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    pytest.fail("it did not happen")


def _child(parent: int) -> int | None:
    """Return the process that a process has spawned by multiprocessing, if there is one."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None
