"""Ensembles with the real pacemaker: members, the best of them, and shared data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from pyace import PyACECalculator

from mlip_job.config import JobConfig
from mlip_job.errors import ConflictError
from mlip_job.generation import Member, Outcome, run_generation
from mlip_job.generation.context import Run
from mlip_job.generation.ensemble import publish_best
from mlip_job.registry import MemberRegistry
from mlip_job.registry.maintenance import collect_garbage, find_orphans, parse_age
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from tests.cli import Cli
from tests.generations import Family, Silent, build_once, report_of
from tests.support import rattled, write_database

pytestmark = pytest.mark.pacemaker

NOW = parse_age("0s")


def _train(family: Family, number: int, of: int = 2, config: JobConfig | None = None) -> Outcome:
    config = config or family.config
    store, member = open_store(config.storage), Member(number, of)
    with StopRequest() as stop:
        return run_generation(config, 1, store=store, observer=Silent(), stop=stop, member=member)


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory: pytest.TempPathFactory) -> Family:
    def build(directory: Path) -> None:
        family = Family(directory)
        write_database(family.database, rattled(12))
        family.configure({"max_iter": 2})
        outcome = _train(family, 1)
        assert (outcome.created, outcome.missing) == (True, (2,))
        write_database(family.database, rattled(4, seed=7))

    return Family(build_once(tmp_path_factory, "half-trained-ensemble", build))


@pytest.fixture(scope="module")
def fully_trained(half_trained: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    def build(directory: Path) -> None:
        shutil.copytree(half_trained.root, directory, dirs_exist_ok=True)
        outcome = _train(Family(directory), 2)
        assert (outcome.created, outcome.missing) == (True, ())

    return Family(build_once(tmp_path_factory, "complete-ensemble", build))


@pytest.fixture
def complete(fully_trained: Family, tmp_path: Path) -> Family:
    directory = tmp_path / "complete"
    shutil.copytree(fully_trained.root, directory)
    return Family(directory)


@pytest.fixture
def half(half_trained: Family, tmp_path: Path) -> Family:
    directory = tmp_path / "family"
    shutil.copytree(half_trained.root, directory)
    return Family(directory)


def test_the_best_member_becomes_the_generation(complete: Family) -> None:
    """By test loss; with its seed, its report, its potential, and the errors of both."""
    manifest = complete.registry.get(1)
    committee = manifest.ensemble
    assert committee is not None
    assert [(m.number, m.seed) for m in committee.members] == [(1, 42), (2, 43)]
    losses = {member.number: member.test_loss for member in committee.members}
    assert committee.best == min(losses, key=lambda number: losses[number])
    assert losses[1] != losses[2]
    own = MemberRegistry(complete.registry.store, "cu", committee.best).find_own(1)
    assert own is not None
    assert manifest.artefacts["potential.yace"] == own.artefacts["potential.yace"]
    assert (manifest.fit_seed, manifest.attempt) == (own.fit_seed, own.attempt)
    assert manifest.config["training"]["seed"] == 42
    report = report_of(complete.registry, manifest)
    assert report.headline() == manifest.headline
    test = manifest.headline.test
    assert test.rmse_energy_mev_per_atom is not None
    assert test.rmse_force_mev_per_angstrom is not None
    expected = (
        10_000 * (test.rmse_energy_mev_per_atom / 1000) ** 2
        + 100 * 3 * (test.rmse_force_mev_per_angstrom / 1000) ** 2
    )
    assert losses[committee.best] == pytest.approx(expected)


def test_members_train_on_the_dataset_of_the_first(complete: Family) -> None:
    """Rows added after the first member belong to the next generation."""
    manifest = complete.registry.get(1)
    assert manifest.dataset.train + manifest.dataset.test == 12


def test_spread_of_the_predictions(complete: Family) -> None:
    """The standard deviation of two members is their distance over the square root of two."""
    registry = complete.registry
    manifest = registry.get(1)
    assert manifest.ensemble is not None
    spread = manifest.ensemble.spread
    assert spread is not None
    predicted = []
    for number in (1, 2):
        text = registry.read(manifest, f"members/member_0{number}/report.json")
        evaluation = TrainingReport.from_json(text).evaluation
        assert evaluation is not None
        predicted.append(evaluation.test.energy_parity_ev_per_atom.predicted)
    distances = [abs(a - b) / 2**0.5 for a, b in zip(*predicted, strict=True)]
    assert spread.energies == len(distances) == manifest.dataset.test
    assert spread.forces == 3 * 4 * manifest.dataset.test
    mean = 1000 * sum(distances) / len(distances)
    assert spread.mean_energy_mev_per_atom == pytest.approx(mean)
    assert spread.max_energy_mev_per_atom == pytest.approx(1000 * max(distances))
    assert 0 < spread.mean_force_mev_per_angstrom <= spread.max_force_mev_per_angstrom


def test_candidates_are_selected_by_the_spread_of_the_members(
    complete: Family, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member's published potential is loaded; the largest spreads are written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    structures = rattled(8, seed=11)
    structures[3].set_cell(0.93 * structures[3].cell, scale_atoms=True)
    for atoms in structures:
        atoms.calc = None
    ase.io.write(tmp_path / "c.xyz", structures)
    options = ("-c", complete.config_path, "select", tmp_path / "c.xyz", "-g", 1)
    committee = (*options, "--by", "committee", "--max-spread", "inf")
    output = tmp_path / "chosen.xyz"
    ended = cli(*committee, "--min-spread", 0, "-n", 2, "-o", output, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["candidates"]
    spreads = [candidate["force_spread_mev_per_angstrom"] for candidate in found]
    assert spreads == sorted(spreads, reverse=True)
    assert [candidate["chosen"] for candidate in found] == [True, True, *6 * [False]]

    store, artefacts = complete.root / "store", complete.registry.get(1).artefacts
    files = (store / artefacts[f"members/member_0{n}/potential.yace"].key for n in (1, 2))
    calculators = [
        PyACECalculator(str(shutil.copy(f, tmp_path / f"{n}.yace"))) for n, f in enumerate(files)
    ]
    for candidate in found:
        forces, energies = [], []
        for calculator in calculators:
            atoms = structures[candidate["id"]]
            atoms.calc = calculator
            forces.append(atoms.get_forces())
            energies.append(atoms.get_potential_energy() / len(atoms))
        # The standard deviation of two values is half of their distance.
        distance = np.linalg.norm(forces[0] - forces[1], axis=1).max()
        assert candidate["force_spread_mev_per_angstrom"] == pytest.approx(500 * distance)
        energy = 500 * abs(energies[0] - energies[1])
        assert candidate["energy_spread_mev_per_atom"] == pytest.approx(energy)
    written = ase.io.read(output, ":")
    assert [atoms.info["candidate"] for atoms in written] == [c["id"] for c in found[:2]]
    for atoms, spread in zip(written, spreads, strict=False):
        assert atoms.info["force_spread_mev_per_angstrom"] == pytest.approx(spread, abs=1e-6)

    ended = cli(*committee, "--min-spread", 1e6)
    assert "0 of 8 candidates have a spread above 1e+06 meV/Å; nothing is written" in ended.err
    assert "F spread" in ended.out
    for arguments, text in (
        (("--by", "committee", "--min-grade", 2), "--min-grade has no effect with --by committee"),
        (("--max-spread", 2), "--max-spread has no effect with --by grade"),
    ):
        ended = cli(*options, *arguments)
        assert (ended.code, text in ended.err) == (64, True), ended.err


def test_an_ensemble_is_verified_listed_and_pulled(
    complete: Family, cli: Cli, tmp_path: Path
) -> None:
    options = ("-c", complete.config_path)
    assert cli(*options, "verify", "-g", 1).out == "gen_01 is intact\n"
    listed = cli(*options, "list").out.splitlines()
    assert sum(line.lstrip().startswith("gen_01 *") for line in listed) == 1
    shown = cli(*options, "show", "-g", 1).out
    assert shown.count("(the best)") == 1
    assert "member 2       seed 43, test loss " in shown
    assert "mean standard deviation of the members' predictions" in shown
    assert cli(*options, "pull", "-g", 1, "-o", tmp_path / "pulled").code == 0
    for number in (1, 2):
        assert (
            (tmp_path / "pulled" / "members" / f"member_0{number}" / "gen_01.yace").stat().st_size
        )
    manifest = complete.registry.get(1)
    damaged = manifest.artefacts["members/member_01/potential.yace"].key
    path = complete.root / "store" / damaged
    path.write_bytes(path.read_bytes() + b" ")
    assert cli(*options, "verify", "-g", 1).code == 65


def test_running_again_changes_nothing(complete: Family, cli: Cli) -> None:
    """Neither a member nor the ensemble; another number of members is another generation."""
    values = yaml.safe_load(complete.config_path.read_text())
    values["database"]["select"] = "status=completed,id<=12"  # rows at that time
    path = complete.root / "earlier.yaml"
    path.write_text(yaml.safe_dump(values))
    before = {p: p.stat().st_mtime_ns for p in (complete.root / "store").rglob("gen_01*")}
    for options in ([], ["--member", 2, "--of", 2]):
        ended = cli("-c", path, "run", "-g", 1, *options)
        assert ended.code == 0, ended.err
        assert "nothing to do" in ended.err
    assert before == {p: p.stat().st_mtime_ns for p in (complete.root / "store").rglob("gen_01*")}
    ended = cli("-c", path, "run", "-g", 1, "--member", 2, "--of", 3)
    assert ended.code == 73
    assert "is published with 2 of the 3 members asked for" in ended.err


def test_gc_keeps_an_ensemble(complete: Family, half: Family) -> None:
    """Only checkpoints are; an unfinished ensemble is removed once it is old enough."""
    orphans = list(find_orphans(complete.registry, NOW))
    assert {orphan.what for orphan in orphans} == {"checkpoints of gen_01, which is published"}
    assert all("/members/member_0" in orphan.prefix for orphan in orphans)

    registry = half.registry
    assert list(find_orphans(registry, parse_age("1d"))) == []
    removed = {orphan.what for orphan in collect_garbage(registry, NOW)}
    assert "an ensemble for gen_01, which is not published" in removed
    assert not list(registry.store.list("cu/datasets/"))
    assert not list(registry.store.list("cu/generations/gen_01/members/"))
    assert registry.store.head("cu/generations/gen_01/ensemble.json") is None


def test_members_of_another_ensemble_are_rejected(half: Family, cli: Cli) -> None:
    """Another size or another configuration, before anything is trained."""
    with pytest.raises(ConflictError, match="as an ensemble of 2 members, not 3"):
        _train(half, 2, of=3)
    config = half.config
    training = config.training.model_copy(update={"cutoff": 6.0})
    with pytest.raises(ConflictError, match="with another configuration"):
        _train(half, 2, config=config.model_copy(update={"training": training}))
    assert half.registry.numbers() == []
    found = cli("-c", half.config_path, "status", "-g", 1, "--json", "--scheduler", "local").out
    assert '"members_trained": [\n    1\n  ]' in found
    assert '"state": "stopped"' in found


def test_a_partly_trained_ensemble_is_no_single_fit(half: Family, cli: Cli) -> None:
    """Neither by hand nor as a job; the error says what exists, and nothing is published."""
    for command in (["run", "-g", 1], ["submit", "-g", 1, "--scheduler", "local"]):
        ended = cli("-c", half.config_path, *command)
        assert ended.code == 73
        assert "an ensemble of 2, not as a single fit: member 1 trained, member 2 miss" in ended.err
        assert "mlip-job run -g 1 --member 2 --of 2 resumes it" in ended.err
    assert half.registry.numbers() == []


def test_any_member_publishes_after_a_crash(complete: Family) -> None:
    """The last run crashed between its own manifest and the generation's."""
    manifest = complete.registry.get(1)
    store = complete.registry.store
    store.delete("cu/generations/gen_01/manifest.json")
    store.delete("cu/latest.json")
    for suffix in ("yace", "yaml"):
        store.delete(f"cu/potentials/gen_01.{suffix}")
    outcome = _train(complete, 1)
    assert outcome.created
    paths = {"config"}  # a copy at another path
    assert outcome.manifest.model_dump(exclude=paths) == manifest.model_dump(exclude=paths)
    assert complete.registry.get(1) == outcome.manifest
    assert complete.registry.latest() == 1
    assert complete.registry.verify(manifest) == []


def test_concurrent_last_members_publish_once(fully_trained: Family) -> None:
    """Both saw that nothing was published; the slower one changes nothing."""
    before, path = fully_trained.registry.get(1), fully_trained.root / "store/cu/generations/gen_01"
    written = (path / "manifest.json").stat()
    run = Run(fully_trained.config, 1, fully_trained.registry, Silent())
    assert publish_best(run, 2) == (before, ())
    now = (path / "manifest.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert fully_trained.registry.verify(before) == []


@pytest.mark.parametrize(
    "options", [["--member", 1], ["--member", 3, "--of", 2], ["--of", 2], ["--of", 1]]
)
def test_invalid_members(half: Family, cli: Cli, options: list[object]) -> None:
    assert cli("-c", half.config_path, "run", "-g", 1, *options).code == 64


@pytest.mark.parametrize(
    ("variable", "value"), [("SLURM_ARRAY_TASK_ID", "2"), ("JOB_COMPLETION_INDEX", "1")]
)
def test_an_array_numbers_its_members(
    half: Family, cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Slurm from 1, Kubernetes from 0; the error for the wrong size proves that it was read."""
    monkeypatch.setenv(variable, value)
    ended = cli("-c", half.config_path, "run", "-g", 1, "--of", 3)
    assert (ended.code, "as an ensemble of 2 members, not 3" in ended.err) == (73, True)
