"""A store that version 0.1.0 wrote in November 2026 is read and continued.

``tests/data/stores/2026-11.tar.xz``: the family ``cu``, made of ``rattled`` structures by

1. a linear fit of 16 structures (``max_iter: 0``), accepted;
2. three iterations of pacemaker from it, with 8 more structures;
3. a linear fit that its gate rejects;
4. an ensemble of two, from 3;
5. a fit from 4 that SIGTERM stopped at iteration 2.
"""

from __future__ import annotations

import difflib
import json
import os
import tarfile
from pathlib import Path

import pytest
from ase.build import bulk

from mlip_job import load_potential
from tests.cli import Cli
from tests.generations import Family

pytestmark = pytest.mark.pacemaker

DATA = Path(__file__).parents[1] / "data" / "stores"
ACCEPT = os.environ.get("MLIP_JOB_TEST_ACCEPT")
PUBLISHED = (1, 2, 3, 4)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Family:
    with tarfile.open(DATA / "2026-11.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Family(tmp_path)


@pytest.mark.parametrize(
    ("golden", "arguments"),
    [("list", ["list"]), *((f"show-{number}", ["show", "-g", str(number)]) for number in (2, 4))],
)
@pytest.mark.usefixtures("old")
def test_json_output_is_stable(golden: str, arguments: list[str], cli: Cli) -> None:
    """Compare with the reviewed files; MLIP_JOB_TEST_ACCEPT=1 accepts a change."""
    text = cli(*arguments, "--json").out
    path = DATA / "2026-11" / f"{golden}.json"
    if ACCEPT:
        path.write_text(text, encoding="utf-8")
    difference = "\n".join(
        difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), lineterm="")
    )
    assert not difference, f"{path} (MLIP_JOB_TEST_ACCEPT=1 accepts this):\n{difference}"


def test_published_generations_are_read(old: Family, cli: Cli) -> None:
    """Verify, pull with the dataset, report, load: generations of all kinds."""
    for number in PUBLISHED:
        assert cli("verify", "-g", number).code == 0
        pulled = old.root / f"pulled_{number}"
        assert cli("pull", "-g", number, "-o", pulled, "--dataset").code == 0
        assert (pulled / f"gen_{number:02d}.yace").exists()
        assert (pulled / "dataset" / "train.xyz").exists()
        page = old.root / f"{number}.html"
        assert cli("report", "-g", number, "-o", page).code == 0
        assert "<html" in page.read_text()
        manifest = json.loads((pulled / "manifest.json").read_text())
        copper = bulk("Cu", cubic=True)
        copper.calc = load_potential(old.store, generation=number)
        free = manifest["reference_energies"]["Cu"] * len(copper)
        assert abs(copper.get_potential_energy() - free) < 1, "EMT's copper has E = 0"
    assert cli("compare", "1", "2").code == 0
    repaired = json.loads(cli("repair", "--json").out)
    assert not repaired["damaged"]
    assert old.registry.latest() == 4


def test_the_unfinished_fit_resumes_and_the_next_generation_inherits(old: Family, cli: Cli) -> None:
    """From the checkpoint on the same dataset; then a linear fit that inherits the split."""
    datasets = sorted((old.store / "cu" / "datasets").iterdir())
    position = old.registry.checkpoints(5).found()[0].position
    assert position.iteration == 2
    resumed = cli("run", "-g", 5, "--set", "training.max_iter=3")
    assert resumed.code == 0, resumed.err
    manifest = old.registry.get(5)
    assert [part.iterations for part in manifest.attempts] == [2, 1]
    assert manifest.parent is not None
    assert manifest.parent.generation == 4

    following = cli("run", "-g", 6, "--set", "training.max_iter=0")
    assert following.code == 0, following.err
    assert old.registry.get(6).dataset.inherited_from == 5
    compared = json.loads(cli("compare", "4", "6", "--json").out)["generations"]
    assert all(found["rmse_test_energy_mev_per_atom"] > 0 for found in compared)
    schemas = {json.loads(cli("show", "-g", n, "--json").out)["schema_version"] for n in (4, 6)}
    assert schemas == {2}, "version 1 is shown as version 2"
    assert sorted((old.store / "cu" / "datasets").iterdir()) == datasets
