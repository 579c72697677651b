"""Gracemaker's input, metrics and potential, from the output of a real fit, killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_stress
from ase.units import GPa
from pydantic import ValidationError

from mlip_job import load_potential
from mlip_job.config import TrainingConfig
from mlip_job.errors import ConfigError, IntegrityError, InterruptedRunError, TrainingError
from mlip_job.evaluation.potential import Potential, cores_of
from mlip_job.generation.data import refer_to
from mlip_job.registry import Registry
from mlip_job.store.directory import DirectoryStore
from mlip_job.training import programs
from mlip_job.training.grace import GraceFiles
from mlip_job.training.grace.input import (
    LARGEST,
    SMALLEST,
    build_input,
    count_functions,
    describe_basis,
    potential_section,
    radial_functions,
    require_same_basis,
)
from mlip_job.training.grace.metrics import MetricsFollower, best_row, read_curve
from mlip_job.training.grace.potential_file import (
    elements_of,
    is_grace,
    read_potential,
    require_architecture,
)
from mlip_job.training.grace.process import GraceLog, GraceWrapper
from mlip_job.training.trainer import FitData, FitPosition, Monitor, Snapshot, dump_input
from tests.datasets import build
from tests.manifests import make_manifest
from tests.support import rattled, write_database

# 30 copper structures; killed in iteration 14, resumed from the checkpoint of iteration 10.
RUN = Path(__file__).parents[1] / "data" / "grace"
DATA = FitData(("Cu",), {"Cu": -3.7}, 30, 120, ("dataset/fit.gz",), ("dataset/validation.gz",))


# -- metrics ---------------------------------------------------------------------------------------


def test_a_resumed_fit_has_one_curve() -> None:
    """Iterations after the checkpoint have the values of the second start."""
    rows, dropped = read_curve(RUN / "train_metrics.yaml", "train")
    assert dropped == 0
    assert [row.iteration for row in rows] == list(range(1, 21))
    assert rows[9].loss == pytest.approx(5.393, abs=5e-4)
    assert rows[10].loss == pytest.approx(5.313, abs=5e-4)
    errors = rows[-1].errors
    assert errors.rmse_energy_mev_per_atom == pytest.approx(161.9, abs=0.1)
    assert errors.rmse_force_mev_per_angstrom == pytest.approx(333.9, abs=0.1)
    assert rows[-1].point.iteration == 20
    # The log of the run has the stress in GPa, and the loss as 16, 32 and 32 times the means.
    assert errors.rmse_stress_gpa == pytest.approx(5.916, abs=5e-4)
    assert errors.mae_stress_gpa == pytest.approx(3.390, abs=5e-4)
    assert rows[-1].point.rmse_stress_gpa == errors.rmse_stress_gpa
    shares, row = rows[-1].loss_shares, rows[-1]
    assert shares is not None
    assert row.loss is not None
    assert errors.rmse_energy_mev_per_atom is not None
    energy, stress = errors.rmse_energy_mev_per_atom / 1000, errors.rmse_stress_gpa * GPa
    assert shares.energy == pytest.approx(16 * energy**2 / row.loss)
    assert shares.stress == pytest.approx(32 * stress**2 / row.loss)
    assert shares.energy + shares.forces + shares.stress == pytest.approx(1)


def test_the_result_is_the_iteration_with_the_best_second_loss() -> None:
    """Since the last start: a restart forgets earlier minima."""
    train, _ = read_curve(RUN / "train_metrics.yaml", "train")
    second, _ = read_curve(RUN / "test_metrics.yaml", "test")
    best, best_of_all = best_row(train, second, resumed_from=10), best_row(train, second)
    assert best is not None
    assert best.iteration == 16  # as in the log of the run
    assert best_of_all is not None
    assert best_of_all.iteration == 3
    last = best_row(train, ())
    assert last is not None
    assert last.iteration == 20
    assert best_row((), ()) is None


def test_lines_are_followed_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    follower = MetricsFollower(path, "train")
    assert list(follower.poll()) == []
    lines = (RUN / "train_metrics.yaml").read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:50])
    assert [row.iteration for row in follower.poll()] == [1]
    with path.open("a") as file:
        file.write(lines[1][50:] + "- {broken\n" + lines[2])
    assert [row.iteration for row in follower.poll()] == [2, 3]
    assert follower.dropped == 1


def test_a_loss_that_is_not_finite_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    values = {"total_loss/train": float("nan"), "rmse/depa": float("inf"), "epoch": 3}
    path.write_text(f"- {json.dumps(values)}\n")
    ((row,), _) = read_curve(path, "train")
    assert row.point.loss is None
    assert row.errors.rmse_energy_mev_per_atom is None
    assert row.errors.rmse_stress_gpa is None
    assert row.loss_shares is None


# -- input -----------------------------------------------------------------------------------------


def _training(**settings: Any) -> TrainingConfig:
    sized = {"trainer": "grace-fs", "functions_per_element": 20} | settings
    return TrainingConfig.model_validate(sized)


def _input(data: FitData = DATA, **settings: Any) -> dict[str, Any]:
    content = build_input(_training(**{"max_iter": 50, **settings}), data)
    read: dict[str, Any] = yaml.safe_load(dump_input(content))
    return read


def test_weights_are_those_of_our_loss() -> None:
    """Gracemaker's mean of forces is over components: b·mean|ΔF|² is three times as much."""
    fit = _input(energy_weight=10, force_weight=2, stress_weight=5)["fit"]
    assert fit["loss"] == {
        "energy": {"type": "square", "weight": 10},
        "forces": {"type": "square", "weight": 6},
        "stress": {"type": "square", "weight": 5},
    }
    assert "stress" not in _input()["fit"]["loss"]
    assert set(_input(energy_weight=0)["fit"]["loss"]) == {"forces"}


def test_input_names_the_data_and_no_reference_energy() -> None:
    """Otherwise gracemaker would fit another column than energy_corrected."""
    content = _input(seed=3, cutoff=4.5)
    assert content["data"] == {
        "filename": "dataset/fit.gz",
        "test_filename": "dataset/validation.gz",
    }
    assert (content["seed"], content["cutoff"], content["fit"]["maxiter"]) == (3, 4.5, 50)
    assert content["fit"]["checkpoint_freq"] == 10
    alone = FitData(("Cu",), {}, 1, 1, ("a.gz", "b.gz"))
    assert _input(data=alone)["fit"]["checkpoint_freq"] == 1
    assert _input(data=alone)["data"] == {"filename": ["a.gz", "b.gz"]}


def test_overrides_reach_the_preset_but_no_reserved_key() -> None:
    """As for pacemaker, they are merged last."""
    overrides = {"potential": {"kwargs": {"lmax": [2, 1]}}, "fit": {"optimizer": "BFGS"}}
    content = _input(overrides=overrides)
    kwargs = content["potential"]["kwargs"]
    assert (kwargs["n_rad_max"], kwargs["lmax"]) == ([3, 2, 1], [2, 1])
    assert content["potential"]["preset"] == "FS"
    assert content["fit"]["optimizer"] == "BFGS"
    assert content["fit"]["maxiter"] == 50


def test_iterations_of_a_resumed_fit() -> None:
    """Adam counts those before, as its learning rate depends on them; L-BFGS-B does not."""

    def iterations(done: int, **fit: Any) -> int:
        training = _training(max_iter=50, overrides={"fit": fit} if fit else {})
        found: int = build_input(training, DATA, done=done)["fit"]["maxiter"]
        return found

    assert [iterations(done) for done in (0, 20, 50)] == [50, 50, 51]
    assert [iterations(done, optimizer="L-BFGS-B") for done in (0, 20, 50)] == [50, 30, 1]
    assert "scheduler" in _input()["fit"]
    for fit in ({"optimizer": "BFGS"}, {"learning_rate_reduction": {"patience": 5}}):
        assert "scheduler" not in _input(overrides={"fit": fit})["fit"]


def test_the_basis_has_at_most_the_functions_asked_for() -> None:
    assert radial_functions(LARGEST) == (13, 9, 6)
    assert radial_functions(1) == (1, 1, 1)
    for functions in range(SMALLEST, 400, 7):
        assert count_functions(radial_functions(functions)) <= functions
    kwargs = potential_section(_training(functions_per_element=300))["kwargs"]
    assert (kwargs["n_rad_max"], kwargs["n_rad_base"]) == ([37, 27, 18], 37)


def test_a_parent_has_the_same_basis() -> None:
    """Gracemaker adds neither elements nor functions; the message names each difference."""
    basis = describe_basis(_training(), ["Cu"])
    require_same_basis(_training(max_iter=7), ["Cu"], basis, "gen_01")
    with pytest.raises(ConfigError) as caught:
        require_same_basis(_training(cutoff=6), ["Cu", "Ni"], basis, "gen_01")
    assert "can't start from gen_01" in caught.value.message
    assert "cutoff 5.5 there, 6.0 here" in caught.value.message
    assert "elements ['Cu'] there, ['Cu', 'Ni'] here" in caught.value.message
    content = build_input(_training(), DATA, model="start_model.yaml", checkpoint="parent.index")
    assert content["potential"]["filename"] == "start_model.yaml"
    assert content["potential"]["checkpoint_name"] == "parent.index"
    assert content["fit"]["reset_epoch_and_step"] is True
    assert content["fit"]["reset_optimizer"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_iter": 0}, "grace-fs makes no linear fit"),
        ({"linear_start": True}, "starts from no linear fit"),
        ({"zbl": True}, "has no ZBL core"),
        ({"ladder_step": 10}, "is a setting of pacemaker"),
        ({"nradmax_by_orders": {"ALL": [3]}}, "is a setting of pacemaker"),
        ({"start_noise": 0.1}, "is a setting of pacemaker"),
        ({"evaluator": "pyace"}, "is a setting of pacemaker"),
        ({"weighting": {"energy_based": {}}}, "is a policy of pacemaker"),
        ({"overrides": {"fit": {"loss": {"kappa": 0.1}}}}, "grace-fs does not know"),
        ({"overrides": {"potential": {"preset": "GRACE_1LAYER"}}}, r"training\.trainer: change"),
        ({"overrides": {"fit": {"maxiter": 9}}}, r"training\.max_iter: change"),
    ],
)
def test_settings_of_pacemaker_are_rejected(settings: dict[str, Any], message: str) -> None:
    """Gracemaker would ignore them silently."""
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate({"trainer": "grace-fs", **settings})


def test_settings_of_gracemaker_are_rejected_for_pacemaker() -> None:
    with pytest.raises(ValidationError, match="pacemaker fits no stress"):
        TrainingConfig(stress_weight=1)
    with pytest.raises(ValidationError, match="pacemaker does not know"):
        TrainingConfig(overrides={"potential": {"kwargs": {"lmax": 2}}})


# -- potential -------------------------------------------------------------------------------------


def test_a_potential_is_read(tmp_path: Path) -> None:
    """A truncated one is rejected, although it is valid YAML."""
    path = RUN / "FS_model.yaml"
    assert elements_of(read_potential(path)) == ("Cu",)
    text = path.read_text()
    short = tmp_path / "FS_model.yaml"
    short.write_text(text[: text.index("functions:")])
    with pytest.raises(TrainingError, match=r"FS_model\.yaml is incomplete: it has no functions"):
        read_potential(short)
    short.write_text("species: []\n")
    with pytest.raises(TrainingError, match="is no GRACE/FS potential"):
        read_potential(short)


def test_the_evaluation_loads_it_as_its_kind(tmp_path: Path) -> None:
    """Stress is the derivative of the energy, and there are no ZBL cores."""
    potential = Potential(RUN / "FS_model.yaml")
    # Without preparation the evaluator crashes at a dimer that it gets first.
    assert potential.predict(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]]), "a dimer").energy < 0
    assert (potential.elements, potential.cutoff) == (("Cu",), 4.5)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    found = potential.predict(atoms, "a structure")
    assert found.stress is not None
    assert found.grade is None
    np.testing.assert_allclose(found.forces.sum(axis=0), 0, atol=1e-10)
    (shortest,) = potential.shortest_distances().items()
    assert shortest[0] == ("Cu", "Cu")
    assert shortest[1] == pytest.approx(atoms.get_all_distances(mic=True)[0, 1:].min(), abs=0.2)
    assert potential.evaluator_seconds(atoms) > 0
    atoms.calc = potential.calculator
    np.testing.assert_allclose(found.stress, calculate_numerical_stress(atoms), atol=1e-6)
    assert potential.predict(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]]), "a dimer").stress is None

    assert cores_of(RUN / "FS_model.yaml") is None
    assert is_grace(RUN / "FS_model.yaml")
    other = RUN.parent / "pacemaker" / "c_ladder" / "output_potential.yaml"
    assert not is_grace(other)
    assert not is_grace(tmp_path / "none.yaml")
    broken = tmp_path / "potential.yaml"
    broken.write_text("elements: [Cu]\n")
    with pytest.raises(TrainingError, match=r"potential\.yaml can't be loaded"):
        Potential(broken)


def test_a_published_one_is_loaded_from_a_store(tmp_path: Path) -> None:
    """Like pacemaker's, with the reference energies added; its manifest has no .yace."""
    write_database(tmp_path / "cu.db", rattled(6))
    record = build(tmp_path / "cu.db", tmp_path / "dataset")
    registry = Registry(DirectoryStore(tmp_path / "store"), "cu-ni")
    dataset = refer_to(record, registry.publish_dataset(tmp_path / "dataset", record), None)
    registry.publish(
        1,
        "a1",
        {"potential.yaml": RUN / "FS_model.yaml"},
        lambda artefacts: make_manifest(1, attempt="a1", artefacts=artefacts, dataset=dataset),
    )
    store = tmp_path / "store"
    calculator = load_potential(store, family="cu-ni", generation=1, cache=tmp_path / "cache")
    atoms = bulk("Cu", cubic=True)
    expected = Potential(RUN / "FS_model.yaml").predict(atoms, "a structure").energy
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(expected - 4 * 3.72, abs=1e-9)
    with pytest.raises(ConfigError, match=r"was published without potential\.asi"):
        load_potential(store, family="cu-ni", generation=1, extrapolation=True)


# -- the process -----------------------------------------------------------------------------------


def test_log_of_a_start() -> None:
    """Phases, checkpoints with their iterations, and the end of the optimiser."""
    log = GraceLog()
    for line in (RUN / "train.log").read_text().splitlines():
        log.feed(line)
    state = log.state
    assert [phase for phase, _ in state.phases] == [
        "starting",
        "loading_data",
        "building_graph",
        "fitting",
        "exporting",
        "finished",
    ]
    assert [iteration for iteration, _ in state.checkpoints] == [15, 20]
    assert state.resumed_from == 10
    assert state.optimiser_message == "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT"
    seconds = state.phase_seconds()
    assert seconds["building_graph"] > seconds["loading_data"] > 0
    assert state.exception is None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    wrapper = GraceWrapper(_training(seed=42, max_iter=20), tmp_path)
    wrapper.begin(DATA, None)
    program = tmp_path / "gracemaker"
    monkeypatch.setattr(programs, "find_program", lambda _: program)

    def run(script: str) -> None:
        program.write_text(f"#!/bin/sh\nmkdir -p seed/42\n{script}\n")
        program.chmod(0o755)
        wrapper.fit(Monitor(lambda _: None, lambda _: None, lambda: None, stall_timeout=60))

    return run


def test_another_active_set_is_rejected(tmp_path: Path) -> None:
    """Gracemaker has no full one; a linear one under that name would mislead `select`."""
    wrapper = GraceWrapper(_training(seed=42), tmp_path)
    with pytest.raises(TrainingError, match="linear active sets only"):
        wrapper.write_active_set((), "full")


COPY = f"cp {RUN}/FS_model.yaml {RUN}/train_metrics.yaml seed/42/"


def test_a_fit_with_all_files_is_a_success(run: Callable[[str], None]) -> None:
    """Exit code 0, iterations with finite losses and a complete potential."""
    run(COPY)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("exit 0", r"\(exit code 0\): the optimiser did not make one iteration"),
        (f"{COPY}; rm seed/42/FS_model.yaml", "FS_model.yaml is no readable potential"),
        (f"{COPY}; sed -i 's/^elements: .*/elements: [Au]/' seed/42/FS_model.yaml", "describes Au"),
        (f"{COPY}; sed -i '3s/loss.train\": [^,]*/loss\\/train\": NaN/' seed/42/train_metrics.yaml",
         "diverged"),
        ("echo 'ValueError: a column is missing'; exit 1", "ValueError: a column is missing"),
        ("echo 'tensorflow.errors.ResourceExhaustedError: OOM'; exit 1", "out of memory: give"),
        ("kill -KILL $$", "killed by SIGKILL"),
        (f"cat {RUN}/train.log; exit 1", "it ended while finished"),
    ],
)  # fmt: skip
def test_failures_are_explained(run: Callable[[str], None], script: str, cause: str) -> None:
    """Exit code 0 is not sufficient; the end of the log follows."""
    with pytest.raises(TrainingError, match=cause) as caught:
        run(script)
    assert "gracemaker failed" in caught.value.message


def test_a_damaged_checkpoint_is_rejected_before_files_are_moved(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    (staging / "metrics").mkdir(parents=True)
    (staging / "metrics" / "train_metrics.yaml").write_text("")
    wrapper = GraceWrapper(_training(seed=42), tmp_path / "work")
    position = FitPosition(ladder_step=0, iteration=10, step_done=False, last_step=True)
    finished = position.model_copy(update={"finished": True})
    (staging / "checkpoints").mkdir()
    names = [f"checkpoints/{name}" for name in GraceFiles.CHECKPOINT]
    for name in ("train.log", *names):
        (staging / name).write_text("")
    (staging / "model.yaml").write_bytes((RUN / "model.yaml").read_bytes())
    (staging / "potential.yaml").write_bytes((RUN / "FS_model.yaml").read_bytes())
    with pytest.raises(IntegrityError, match=r"^one describes Cu"):
        wrapper.restore(staging, "one", finished, ("Au",))
    assert not (tmp_path / "work").exists()
    wrapper.restore(staging, "one", finished, ("Cu",))
    assert wrapper.files.potential.is_file()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "tensorpotential.instructions.compute.tf",
        "tensorpotential.instructions.base.load_instructions",
        "x import y; import os; os.system('true') #.z",
        7,
    ],
)
def test_an_architecture_that_names_other_code_is_rejected(tmp_path: Path, name: object) -> None:
    """Gracemaker would import it: a writer of the store could run code in a job."""
    require_architecture(RUN / "model.yaml")
    content = yaml.safe_load((RUN / "model.yaml").read_text())
    content["instructions"]["A"]["nested"] = [{"__cls__": name}]
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(IntegrityError, match="no architecture of a GRACE/FS potential"):
        require_architecture(path)


# -- the best iteration before an interruption ----------------------------------------------------

_PRELUDE = """mkdir -p seed/42/checkpoints && cd seed/42
say() { echo "$(date '+%Y/%m/%d %H:%M:%S') I - $1"; }
row() { echo "- {\\"epoch\\": $2, \\"total_loss/$1\\": $3}" >>"$1_metrics.yaml"; }
say '            Start GRACEmaker'
"""
# Iteration 2 has the smallest loss on the second set, and the checkpoint is that of iteration 3.
_FIRST = f"""{_PRELUDE}cp {RUN}/model.yaml .
for n in 1 2 3; do row train $n 1; row test $n $(((n - 2) * (n - 2) + 1)); done
echo of 2 | tee checkpoints/checkpoint.best_test_loss.index \\
    >checkpoints/checkpoint.best_test_loss.data-00000-of-00001
say 'Iteration #3/6'
say 'Regular checkpointing'
echo of 3 | tee checkpoints/checkpoint.index >checkpoints/checkpoint.data-00000-of-00001
sleep 600
"""
_SECOND = f"""again="$*"; {_PRELUDE}case $again in
*-rs*) (cat {RUN}/FS_model.yaml && echo '# of 2') >saved_model.yaml ;;
*) cp {RUN}/FS_model.yaml .; for n in 4 5 6; do row train $n 1; row test $n $((n + LOSS)); done
   echo of 4 | tee checkpoints/checkpoint.best_test_loss.index \\
       >checkpoints/checkpoint.best_test_loss.data-00000-of-00001 ;;
esac
"""


@pytest.mark.parametrize(("loss", "best"), [(0, 2), (-4, 4)])
def test_the_best_iteration_before_an_interruption_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: int, best: int
) -> None:
    """Gracemaker forgets it at a restart; it is exported again unless a later one is better."""
    program = tmp_path / "gracemaker"
    monkeypatch.setattr(programs, "find_program", lambda _: program)

    def gracemaker(script: str) -> None:
        program.write_text(f"#!/bin/bash\n{script}")
        program.chmod(0o755)

    def wrapper(name: str) -> GraceWrapper:
        (tmp_path / name).mkdir()
        return GraceWrapper(_training(seed=42, max_iter=6), tmp_path / name)

    first, taken = wrapper("first"), tmp_path / "taken"
    first.begin(DATA, None)
    gracemaker(_FIRST)
    found: list[Snapshot] = []

    def observe(_: object) -> None:
        taken.mkdir(exist_ok=True)
        if not found and (snapshot := first.snapshot(taken)) is not None:
            found.append(snapshot)

    def interruption() -> InterruptedRunError | None:
        return InterruptedRunError("stopped") if found else None

    with pytest.raises(InterruptedRunError):
        first.fit(Monitor(observe, lambda _: None, interruption, stall_timeout=60))
    (snapshot,) = found
    assert snapshot.position.iteration == 3
    for name, path in snapshot.files.items():
        (tmp_path / "staging" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "staging" / name).write_bytes(path.read_bytes())

    second = wrapper("second")
    second.restore(tmp_path / "staging", "one", snapshot.position, ("Cu",))
    second.resume(DATA, None, snapshot.position)
    gracemaker(_SECOND.replace("LOSS", str(loss)))
    second.fit(Monitor(lambda _: None, lambda _: None, lambda: None, stall_timeout=60))
    second.finish()
    assert second.potential.read_text().endswith("# of 2\n") == (best == 2)
    assert second.artefacts()["checkpoint.index"].read_text() == f"of {best}\n"
    chosen = second.summary(None).best
    assert chosen is not None
    assert chosen.iteration == best
