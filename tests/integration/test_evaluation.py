"""Real potentials, evaluated by the job that trained them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.fd import calculate_numerical_stress
from ase.units import GPa

from mlip_job.dataset.xyz import parse, read_blocks
from mlip_job.errors import InterruptedRunError, TrainingError
from mlip_job.evaluation import measure
from mlip_job.evaluation.measure import Models, Task, measuring
from mlip_job.evaluation.potential import Potential, cores_of
from mlip_job.evaluation.results import Evaluation, PhysicsCheck
from mlip_job.generation import publish
from mlip_job.models import Errors
from mlip_job.report.model import TrainingReport
from mlip_job.training.pacemaker import process
from mlip_job.training.pacemaker.potential_file import read_potential, write_potential
from tests.cli import Cli
from tests.datasets import FIVE, build, rows_of
from tests.generations import TINY, Family, Trained, report_of, train
from tests.support import rattled, with_emt, write_database

pytestmark = pytest.mark.pacemaker

SMALL = TINY | {"functions_per_element": 4, "test_fraction": 0.25}


LINEAR = {"max_iter": 0, "linear_start": True}


class Project(Family):
    """A family whose generations have all figures of the evaluation."""

    def write(self, structures: list[Atoms], training: dict[str, Any], **sections: Any) -> None:
        if structures:
            write_database(self.database, structures)
        self.configure(SMALL | training, **{"evaluation": {}} | sections)

    def train(self, generation: int) -> Trained:
        return train(self.config, generation)

    def report(self, generation: int) -> TrainingReport:
        return report_of(self.registry, self.registry.get(generation))

    def evaluation(self, generation: int) -> Evaluation:
        evaluation = self.report(generation).evaluation
        assert evaluation is not None
        return evaluation

    def structures(self, generation: int, side: str) -> Path:
        dataset = self.registry.get(generation).dataset.id
        return self.store / "cu" / "datasets" / dataset / f"{side}.xyz"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Train two generations, the second on more data; tests must not change them."""
    project = Project(tmp_path_factory.mktemp("evaluated"))
    database = project.root / "structures.db"
    symbols = ("Cu", "Au")
    write_database(database, rattled(16, symbols=symbols), generation=1, config_type="mixed")
    write_database(database, rattled(6, symbols=("Cu",), seed=1), generation=1, config_type="pure")
    write_database(database, rattled(10, symbols=symbols, seed=2), generation=2)
    select = "status=completed,generation<={generation}"
    project.write([], {}, database={"url": "structures.db", "select": select})
    for generation in (1, 2):
        project.train(generation)
    shutil.rmtree(project.root / "work")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def _predictions(project: Project, generation: int, side: str) -> list[dict[str, Any]]:
    """Evaluate a published potential without mlip-job, one structure after the other."""
    from pyace import PyACECalculator

    manifest = project.registry.get(generation)
    references = manifest.reference_energies
    calculator = PyACECalculator(str(project.store / manifest.artefacts["potential.yace"].key))
    found = []
    for known in ase.io.read(project.structures(generation, side), ":"):
        atoms = known.copy()
        atoms.calc = calculator
        energy = atoms.get_potential_energy() + sum(references[s] for s in atoms.symbols)
        found.append(
            {
                "row_id": known.info["row_id"],
                "type": known.info.get("config_type", ""),
                "symbols": np.array(atoms.symbols),
                "energies": (known.get_potential_energy() / len(atoms), energy / len(atoms)),
                "forces": (known.get_forces(), atoms.get_forces()),
                "stress": (atoms.get_stress() - known.get_stress()) / GPa,
            }
        )
    return found


def _require_figures(found: Errors, quantity: int, errors: np.ndarray) -> None:
    """Compare errors with numpy on the full array."""
    figures = (found.rmse[quantity], found.mae[quantity], found.max[quantity])
    absolute = np.abs(errors)
    expected = (np.sqrt(np.mean(np.square(errors))), absolute.mean(), absolute.max())
    assert figures == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("side", ["train", "test"])
def test_figures_are_those_of_the_published_potential(trained: Project, side: str) -> None:
    """Energies, forces, stresses; all, per element, per config type; on DFT's energy scale."""
    found = getattr(trained.evaluation(1), side)
    known = _predictions(trained, 1, side)
    energies = 1000 * np.array([k["energies"][1] - k["energies"][0] for k in known])
    forces = [1000 * (k["forces"][1] - k["forces"][0]) for k in known]
    assert (found.structures, found.atoms) == (len(known), 4 * len(known))
    stresses = np.concatenate([k["stress"] for k in known])
    for quantity, errors in enumerate((energies, np.concatenate(forces), stresses)):
        _require_figures(found, quantity, errors)
        percentiles = found.percentiles[quantity]
        assert percentiles.count == errors.size
        expected = np.percentile(np.abs(errors), (50, 90, 99), method="inverted_cdf")
        found_here = (percentiles.p50, percentiles.p90, percentiles.p99)
        assert found_here == pytest.approx(expected, rel=1e-9)
    assert set(found.per_element) == {"Au", "Cu"}
    for element, figures in found.per_element.items():
        of_element = [f[k["symbols"] == element] for f, k in zip(forces, known, strict=True)]
        _require_figures(figures, 1, np.concatenate(of_element))
    assert sum(t.structures for t in found.per_config_type.values()) == len(known)
    for name, of_type in found.per_config_type.items():
        mask = np.array([k["type"] == name for k in known])
        assert of_type.structures == mask.sum()
        _require_figures(of_type, 0, energies[mask])
    np.testing.assert_allclose(
        found.energy_parity_ev_per_atom.reference, [k["energies"][0] for k in known], atol=1e-12
    )
    np.testing.assert_allclose(
        found.energy_parity_ev_per_atom.predicted, [k["energies"][1] for k in known], atol=1e-12
    )
    assert found.force_parity_ev_per_angstrom.sampled_from == 12 * len(known)
    assert sum(found.energy_error_histogram_mev_per_atom.counts) == len(known)


def test_cost_of_the_published_potential_is_measured(trained: Project, cli: Any) -> None:
    """In report, manifest and `show`, with the machine of the measurement."""
    speed = trained.evaluation(1).speed
    assert speed is not None
    assert speed.evaluator_us_per_atom > 0
    assert 0 < speed.structures <= trained.evaluation(1).test.structures
    assert trained.registry.get(1).headline.evaluator_us_per_atom == speed.evaluator_us_per_atom
    shown = cli("-c", trained.config_path, "show", "-g", "1").out
    assert f"µs per atom on one core ({speed.cpu})" in shown


def test_the_worst_structures_are_named(trained: Project) -> None:
    known = _predictions(trained, 1, "train")
    by_energy = max(known, key=lambda k: abs(k["energies"][1] - k["energies"][0]))
    by_force = max(known, key=lambda k: np.abs(k["forces"][1] - k["forces"][0]).max())
    worst = trained.evaluation(1).train.worst
    assert len({w.row_id for w in worst}) == 10
    assert worst[0].row_id == by_energy["row_id"]
    assert worst[0].energy_error_mev_per_atom == pytest.approx(
        1000 * (by_energy["energies"][1] - by_energy["energies"][0])
    )
    assert by_force["row_id"] in {w.row_id for w in worst[:2]}
    assert {w.config_type for w in worst} <= {"mixed", "pure"}


def test_headline_has_the_errors_of_the_artefact(trained: Project) -> None:
    """Including the test set, which pacemaker's pyace evaluator does not measure."""
    for generation in (1, 2):
        headline = trained.registry.get(generation).headline
        evaluation = trained.evaluation(generation)
        assert trained.report(generation).fit.test is None
        for side in ("train", "test"):
            errors, figures = getattr(evaluation, side), getattr(headline, side)
            assert (figures.rmse, figures.mae, figures.max) == (errors.rmse, errors.mae, errors.max)
        assert headline.accepted == evaluation.gate.accepted


def test_pacemaker_agrees(trained: Project) -> None:
    for generation in (1, 2):
        evaluation = trained.evaluation(generation)
        (agreement,) = evaluation.agreement
        assert agreement.side == "train"
        ours, theirs = agreement.errors.rmse, agreement.errors_by_trainer.rmse
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)
        conversion = evaluation.conversion
        assert conversion is not None
        assert conversion.structures == evaluation.train.structures + evaluation.test.structures
        assert conversion.max_force_difference_mev_per_angstrom < 1e-8


def test_generations_are_compared_on_common_test_structures(trained: Project) -> None:
    """The second has more test structures; both are evaluated on those of the first."""
    assert trained.evaluation(1).parent is None
    parent = trained.evaluation(2).parent
    assert parent is not None
    assert parent.generation == 1
    common = {k["row_id"] for k in _predictions(trained, 1, "test")}
    assert len(common) < trained.evaluation(2).test.structures
    old = [k for k in _predictions(trained, 1, "test") if k["row_id"] in common]
    new = [k for k in _predictions(trained, 2, "test") if k["row_id"] in common]
    assert parent.structures == len(old) == len(new)
    for known, energy, force in ((old, *parent.old.rmse[:2]), (new, *parent.new.rmse[:2])):
        errors = np.array([k["energies"][1] - k["energies"][0] for k in known])
        forces = np.concatenate([k["forces"][1] - k["forces"][0] for k in known])
        assert energy == pytest.approx(1000 * np.sqrt(np.mean(errors**2)), rel=1e-9)
        assert force == pytest.approx(1000 * np.sqrt(np.mean(forces**2)), rel=1e-9)
    change = parent.rmse[0]
    assert change is not None
    assert change.relative == pytest.approx(change.new / change.old - 1)


def test_physics_is_checked_with_pacemakers_core(trained: Project) -> None:
    """Three dimers, smooth at the cutoff and at the ZBL switch; a copper crystal; dynamics."""
    physics: dict[str, list[PhysicsCheck]] = {}
    for check in trained.evaluation(1).physics:
        physics.setdefault(check.kind, []).append(check)
    assert [check.elements for check in physics["dimer"]] == [
        ("Au", "Au"),
        ("Au", "Cu"),
        ("Cu", "Cu"),
    ]
    shortest = _shortest_distances(trained.structures(1, "train"))
    for check in physics["dimer"]:
        assert check.verdict == "passed", check.message
        assert check.shortest_in_data_angstrom == pytest.approx(shortest[check.elements], abs=1e-6)
        assert check.repulsive_below_angstrom >= check.shortest_in_data_angstrom - 1e-9
        assert check.energies_ev[0] > 50
    assert len(physics["smoothness"]) == 6
    assert {c.verdict for c in physics["smoothness"]} == {"passed"}
    gold, copper, compound = physics["energy_volume"]
    assert gold.verdict == "skipped"
    assert copper.element == "Cu"
    assert compound.verdict != "skipped"
    assert "Au" in compound.structure
    assert len(copper.volumes_angstrom3_per_atom) == len(copper.energies_ev_per_atom) > 20
    for dynamics in physics["dynamics"]:
        assert (dynamics.steps, dynamics.atoms) == (200, 32)
        assert dynamics.verdict != "skipped"
    assert [dynamics.temperature_k >= 1000 for dynamics in physics["dynamics"]] == [False, True]


def _shortest_distances(path: Path) -> dict[tuple[str, str], float]:
    from ase.neighborlist import neighbor_list

    shortest: dict[tuple[str, str], float] = {}
    for atoms in ase.io.read(path, ":"):
        for i, j, distance in zip(*neighbor_list("ijd", atoms, 4.0), strict=True):
            first, second = sorted((atoms.symbols[i], atoms.symbols[j]))
            pair = (first, second)
            shortest[pair] = min(distance, shortest.get(pair, 9.0))
    return shortest


def test_active_set_grades_known_and_unknown_structures(trained: Project) -> None:
    """Published with the potential; 1 for its own structures, more for an unusual one."""
    evaluation = trained.evaluation(1)
    assert evaluation.active_set == "linear"
    assert evaluation.train.extrapolation_grade is not None
    assert evaluation.train.extrapolation_grade.max <= 1.02
    assert evaluation.test.extrapolation_grade is not None
    assert evaluation.test.extrapolation_grade.count == evaluation.test.structures
    assert all(w.extrapolation_grade is not None for w in evaluation.test.worst)
    manifest = trained.registry.get(1)
    assert trained.registry.verify(manifest) == []
    copy = trained.registry.store.get(trained.registry.keys.potential(1, "asi"))
    assert copy == trained.artefact("potential.asi").read_bytes()
    graded = Potential(trained.artefact("potential.yaml"), trained.artefact("potential.asi"))
    squeezed = ase.io.read(trained.structures(1, "train"), 0)
    squeezed.set_cell(0.7 * squeezed.cell, scale_atoms=True)
    grade = graded.predict(squeezed, "a strange structure").grade
    assert grade is not None
    assert grade > 5


def test_stress_is_the_derivative_of_the_energy(trained: Project) -> None:
    potential = Potential(trained.artefact("potential.yace"))
    (atoms, *_) = ase.io.read(trained.structures(1, "train"), ":")
    stress = potential.predict(atoms, "a structure").stress
    atoms.calc = potential.calculator
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms), atol=1e-6)


# -- over several processes ----------------------------------------------------------------------


@pytest.fixture
def models(trained: Project) -> Models:
    return Models(
        artefact=trained.artefact("potential.yace"),
        reference_energies=trained.registry.get(1).reference_energies,
        basis=trained.artefact("potential.yaml"),
        active_set=trained.artefact("potential.asi"),
    )


def _tasks(trained: Project, repeat: int = 1) -> list[Task]:
    blocks = list(read_blocks(trained.structures(1, "train")))
    return [Task(block, with_basis=True) for block in repeat * blocks]


def test_many_processes_find_the_same_in_the_same_order(
    trained: Project, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = _tasks(trained, 3)
    with measuring(models, atoms=1000, cores=64) as alone:
        expected = [m for batch in alone(tasks) for m in batch.measured]
    assert not multiprocessing.active_children()
    monkeypatch.setattr(measure, "_BATCH_ATOMS", 20)
    with measuring(models, atoms=1_000_000, cores=2) as parallel:
        found = [m for batch in parallel(tasks) for m in batch.measured]
        assert len(multiprocessing.active_children()) == 2
        again = [m for batch in parallel(tasks[:1]) for m in batch.measured]
    assert [m.row_id for m in found] == [m.row_id for m in expected]
    assert [m.row_id for m in again] == [expected[0].row_id]
    for one, other in zip(found, expected, strict=True):
        assert one.energy_predicted == other.energy_predicted
        assert one.grade == other.grade
        np.testing.assert_array_equal(one.forces_predicted, other.forces_predicted)


def test_errors_of_a_worker_process_are_raised(trained: Project, models: Models) -> None:
    """A file that is no potential: the error has the cause, not that a pool is broken."""
    broken = Models(trained.artefact("report.json"), models.reference_energies)
    with (
        measuring(broken, atoms=1_000_000, cores=2) as parallel,
        pytest.raises(TrainingError, match=r"report\.json can't be loaded"),
    ):
        list(parallel(_tasks(trained)))


_MEASURE = """
import sys
from pathlib import Path
from mlip_job.evaluation.measure import Models, Task, measuring
from mlip_job.dataset.xyz import read_blocks
from mlip_job.runtime.processes import StopRequest
from mlip_job.errors import MlipJobError

if __name__ == "__main__":
    yace, xyz = map(Path, sys.argv[1:])
    blocks = list(read_blocks(xyz))
    models = Models(yace, {"Au": 0.0, "Cu": 0.0})
    try:
        with StopRequest(), measuring(models, atoms=10**6, cores=2) as measure:
            tasks = (Task(blocks[n % len(blocks)]) for n in range(10**7))
            for batch in measure(tasks):
                print("measured", flush=True)
    except MlipJobError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_no_process_outlives_the_job(
    trained: Project, tmp_path: Path, number: signal.Signals, *, to_all: bool
) -> None:
    """However it ends, and whether the signal goes to the job alone or to all its processes."""
    script = tmp_path / "measure.py"
    script.write_text(_MEASURE)
    job = subprocess.Popen(
        [
            sys.executable,
            str(script),
            str(trained.artefact("potential.yace")),
            str(trained.structures(1, "train")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "measured\n"
    started = _children(job.pid)
    assert len(started) >= 2
    (os.killpg if to_all else os.kill)(job.pid, number)
    _, messages = job.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert job.returncode == 75, messages
        assert f"stopped by {number.name}" in messages
    assert "Traceback" not in messages
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in started):
            return
        time.sleep(0.1)
    pytest.fail("processes are left")


def _children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


# -- potentials that must not be published -------------------------------------------------------


def _spoil(change: Callable[[str], str]) -> Callable[..., None]:
    convert = process.convert_to_yace

    def spoiling(potential: Path, yace: Path) -> None:
        convert(potential, yace)
        yace.write_text(change(yace.read_text()))

    return spoiling


def _with_first_coefficient(text: str, change: Callable[[str], str]) -> str:
    return re.sub(r"(?<=ctildes: \[)[^,\]]+", lambda match: change(match.group()), text, count=1)


def _a_little_more(number: str) -> str:
    return repr(float(number) * 1.0001)


def test_a_damaged_potential_is_rejected(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One coefficient, NaN, half a file: each is reported, none is published, the fit is kept."""
    settings = {"active_set": False, "gate": {"require_physics": False}}
    project.write(rattled(12, symbols=("Cu", "Au")), {}, evaluation=settings)
    for change, message in (
        (
            lambda text: _with_first_coefficient(text, _a_little_more),
            r"potential\.yace differs from potential\.yaml: on",
        ),
        (lambda text: text[: len(text) // 2], r"potential\.yace can't be loaded: .*yaml-cpp"),
        (
            lambda text: _with_first_coefficient(text, lambda _: ".nan"),
            "that are not finite, for row",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(process, "convert_to_yace", _spoil(change))
            with pytest.raises(TrainingError, match=message) as caught:
                project.train(1)
        assert caught.value.exit_code == 70
        assert caught.value.hint is not None
        assert project.registry.numbers() == []
        assert project.registry.latest() is None
    run = project.train(1)
    assert any("resuming from the end of the fit" in message for message in run.messages)
    assert project.registry.latest() == 1
    assert len(list((project.root / "work" / "gen_01").glob("*/metrics.txt"))) == 1


def test_a_stop_signal_that_an_extension_module_replaces_stops_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like matplotlib if the signal comes while it converts arguments: a TypeError."""
    settings = {"active_set": False, "gate": {"require_physics": False}}
    project.write(rattled(12), LINEAR, evaluation=settings)

    def replacing(*_: object) -> str:
        with suppress(InterruptedRunError):
            os.kill(os.getpid(), signal.SIGTERM)
        raise TypeError("incompatible function arguments")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "render_report", replacing)
        with pytest.raises(InterruptedRunError, match="stopped by SIGTERM; the checkpoint of"):
            project.train(1)
    assert project.registry.numbers() == []
    assert project.train(1).created


def test_a_potential_that_was_not_fitted_is_rejected(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed before conversion: only pacemaker's own figures reveal it."""
    settings = {"active_set": False, "gate": {"require_physics": False}}
    project.write(rattled(12), {}, evaluation=settings)
    convert = process.convert_to_yace

    def changing(potential: Path, yace: Path) -> None:
        content = yaml.safe_load(potential.read_text())
        for block in content["species"]:
            for function in block["nbody"]:
                function["c"] = [float(c) * 1.05 for c in function["c"]]
        potential.write_text(yaml.safe_dump(content))
        convert(potential, yace)

    monkeypatch.setattr(process, "convert_to_yace", changing)
    with pytest.raises(TrainingError, match=r"RMSE on the train set is .*, the trainer says") as e:
        project.train(1)
    assert "is not the one that was fitted" in e.value.message
    assert project.registry.numbers() == []


# -- the gate ------------------------------------------------------------------------------------


def test_a_rejected_generation_is_published_and_can_be_promoted(project: Project, cli: Cli) -> None:
    """It ends with 0 and says so; list, show and JSON show it; promoting it needs a reason."""
    gate = {"gate": {"max_energy_rmse_mev": 1e-3, "max_force_rmse_mev": 1e9}, "active_set": False}
    project.write(rattled(8), LINEAR, evaluation=gate)
    options = ("-c", project.config_path)
    ended = cli(*options, "--json", "run", "-g", "1")
    assert ended.code == 0, ended.err
    assert "warning: gen_01 is published, but rejected" in ended.err
    assert "more than the 0.001 that the gate allows" in ended.err
    assert json.loads(ended.out)["accepted"] is False
    assert project.registry.numbers() == [1]
    assert "✗ rejected" in cli(*options, "list").out
    shown = cli(*options, "show", "-g", "1").out
    assert "rejected: the energy RMSE on the test set is" in shown
    latest = cli(*options, "show", "-g", "latest")
    assert latest.code == 64
    assert "all published generations of cu were rejected by their gates" in latest.err
    refused = cli(*options, "promote", "-g", "1", "--reason", "for a test")
    assert refused.code == 64
    assert "more than the 0.001" in refused.err
    assert cli(*options, "promote", "-g", "1", "--force").code == 64
    forced = cli(*options, "promote", "-g", "1", "--force", "--reason", "for a test")
    assert forced.out == "gen_01 is the latest of cu\n"
    assert "forced: for a test" in cli(*options, "show", "-g", "latest").out
    again = cli(*options, "--set", "evaluation.gate.max_energy_rmse_mev=null", "run", "-g", "1")
    assert again.code == 0
    assert "nothing to do" in again.err
    assert not project.registry.get(1).headline.accepted


# -- other kinds of data ---------------------------------------------------------------------------


def test_molecules_and_a_test_set_of_one(project: Project) -> None:
    """No stress, no crystal; dynamics of the molecule; checks that need no cell are done."""
    rng = np.random.default_rng(3)
    structures = []
    for _ in range(9):
        atoms = molecule("CH3OH")
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        structures.append(with_emt(atoms))
    project.write(structures, {"test_fraction": 0.12, "functions_per_element": 8})
    run = project.train(1)
    evaluation = project.evaluation(1)
    assert run.manifest.dataset.test == evaluation.test.structures == 1
    test = evaluation.test
    assert test.rmse_stress_gpa is None
    only = test.energy_percentiles_mev_per_atom
    assert only.count == 1
    assert only.p50 == only.p99 == test.rmse[0] == test.mae[0] == test.max[0]
    (curve,) = (check for check in evaluation.physics if check.kind == "energy_volume")
    assert curve.verdict != "passed"
    assert curve.bulk_modulus_gpa is None
    assert "energy over volume not possible: no bulk structure in the data" in curve.message
    dynamics = [check for check in evaluation.physics if check.kind == "dynamics"]
    assert [(one.atoms, one.timestep_fs) for one in dynamics] == [(6, 0.5), (6, 0.25)]
    assert len([c for c in evaluation.physics if c.kind == "dimer"]) == 6


def test_without_bulk_the_verdict_names_missing_checks(project: Project, cli: Cli) -> None:
    """Only slabs: `run`, `show`, `list` and the report give the reason and a weaker verdict."""
    rng = np.random.default_rng(3)
    structures = []
    for _ in range(10):
        slab = fcc111("Cu", (1, 1, 3), vacuum=6)
        slab.positions += rng.normal(scale=0.05, size=slab.positions.shape)
        structures.append(with_emt(slab))
    gate = {"max_energy_rmse_mev": 1e9, "max_force_rmse_mev": 1e9, "require_physics": False}
    project.write(structures, {}, evaluation={"gate": gate, "active_set": False})
    run = project.train(1)
    (curve,) = (c for c in project.evaluation(1).physics if c.kind == "energy_volume")
    assert curve.verdict == "skipped"
    assert "not possible: no bulk structure in the data, only row" in curve.message
    assert run.manifest.headline.verdict == "accepted, stability not checked"
    assert run.manifest.headline.unchecked == (curve.message,)
    assert f"warning: physics check {curve.message}" in run.messages
    for verb in (["show", "-g", "1"], ["list"]):
        assert curve.message in cli("-c", project.config_path, *verb).out


def test_five_elements_too_few_for_an_active_set(project: Project) -> None:
    """Fifteen pairs; published without one, with the reason in the report."""
    small = {
        "functions_per_element": 5,
        "nradmax_by_orders": {"UNARY": [2, 1], "BINARY": [2, 1]},
        "lmax_by_orders": {"UNARY": [0, 0], "BINARY": [0, 0]},
        "ndensity": 1,
        "cutoff": 4.0,
        "max_iter": 1,
    }
    project.write(rattled(8, symbols=FIVE), small)
    run = project.train(1)
    evaluation = project.evaluation(1)
    assert len([c for c in evaluation.physics if c.kind == "dimer"]) == 15
    assert set(evaluation.train.per_element) == set(FIVE)
    assert evaluation.active_set is None
    assert "potential.asi" not in run.manifest.artefacts
    (reason,) = (note for note in evaluation.notes if "no active set" in note)
    assert "Insufficient atomic environments" in reason
    assert reason in project.report(1).warnings
    assert f"note: {reason}" in run.messages
    assert evaluation.test.extrapolation_grade is None


def test_a_singular_active_set_is_not_published(project: Project) -> None:
    """Made by python-ace 0.4.0rc1 with --full: its own structures would be extrapolations."""
    project.write(rattled(10), LINEAR, evaluation={"active_set": "full", "dynamics_steps": 0})
    run = project.train(1)
    evaluation = project.evaluation(1)
    if evaluation.active_set is None:
        assert any("made a singular active set: row" in note for note in evaluation.notes)
        assert "potential.asi" not in run.manifest.artefacts
    else:
        assert evaluation.train.extrapolation_grade is not None
        assert evaluation.train.extrapolation_grade.max < 1.1


def test_a_core_is_moved_below_the_distances_of_the_test_set(project: Project) -> None:
    """Pacemaker puts it at the shortest distance of the training set; a note reports the change."""
    structures = rattled(11)
    close = structures[0].copy()
    close.positions[1] += 0.3 * (close.positions[0] - close.positions[1])
    structures.append(with_emt(close))
    project.write(structures, {}, evaluation={"active_set": False, "dynamics_steps": 0})
    training = {"test_fraction": SMALL["test_fraction"]}
    for seed in range(50):
        built = project.root / "built" / str(seed)
        build(project.root / "structures.db", built, training=training, seed=seed)
        if 12 in rows_of(built, "test"):
            break
    project.write(
        [], {}, dataset={"seed": seed}, evaluation={"active_set": False, "dynamics_steps": 0}
    )
    project.train(1)
    evaluation = project.evaluation(1)
    assert "the ZBL core of Cu-Cu begins at" in evaluation.notes[0]
    cores = cores_of(project.artefact("potential.yaml"))
    by_side = {side: project.structures(1, side) for side in ("train", "test")}
    shortest = {side: _shortest_distances(path)["Cu", "Cu"] for side, path in by_side.items()}
    assert shortest["test"] < shortest["train"] - 0.3
    assert cores["Cu", "Cu"].outer == pytest.approx(shortest["test"], abs=1e-5)
    (dimer,) = (check for check in evaluation.physics if check.kind == "dimer")
    assert dimer.shortest_in_data_angstrom == pytest.approx(shortest["test"], abs=1e-6)
    _require_core_mattered(project, shortest["train"])


def _require_core_mattered(project: Project, distance: float) -> None:
    """Check that a core at the shortest distance of the training set has errors of eVs."""
    published = project.artefact("potential.yaml")
    content = read_potential(published)
    for block in content["species"]:
        block["r_in"] = float(distance)
    moved = project.root / "moved.yaml"
    write_potential(content, moved)
    (close,) = (
        structure.atoms
        for structure in map(parse, read_blocks(project.structures(1, "test")))
        if structure.row_id == 12
    )
    energies = [Potential(path).predict(close, "row 12").energy for path in (published, moved)]
    assert energies[1] > energies[0] + 5
