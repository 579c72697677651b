"""Pulled generations as RO-Crates, read back by the library and judged by a validator."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rocrate.rocrate import ROCrate

from tests.generations import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli import Ended

pytestmark = pytest.mark.pacemaker


@pytest.fixture(scope="module")
def second(trained: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Return the family with a second generation, trained from the first."""
    root = tmp_path_factory.mktemp("second") / "family"
    shutil.copytree(trained.root, root)
    family = Family(root)
    family.run(2)
    return family


@pytest.fixture
def crate(second: Family, cli: Callable[..., Ended], tmp_path: Path) -> Path:
    """Return the pulled second generation with its dataset."""
    directory = tmp_path / "crate"
    ended = cli("pull", "-c", second.config_path, "-g", 2, "--crate", "--dataset", "-o", directory)
    assert ended.code == 0, ended.err
    assert str(directory / "ro-crate-metadata.json") in ended.out.splitlines()
    return directory


def test_library_reads_back_what_matters(crate: Path, second: Family) -> None:
    """Files, dataset, training, software, parameters with units, lineage, licence."""
    read = ROCrate(crate)
    manifest = second.registry.get(2)
    root = read.root_dataset
    assert root["name"] == "Interatomic potential cu, gen_02"
    assert "academic, non-commercial" in root["license"]["description"]
    assert root["isBasedOn"]["name"] == "Interatomic potential cu, gen_01"
    assert manifest.parent is not None
    assert manifest.parent.potential_sha256 in root["isBasedOn"]["identifier"]
    assert read.mainEntity.id == "gen_02.yace"

    present = {p.relative_to(crate).as_posix() for p in crate.rglob("*") if p.is_file()}
    described = {entity.id for entity in read.get_by_type("File")}
    assert described == present - {"ro-crate-metadata.json"}
    for entity in read.get_by_type("File"):
        content = (crate / entity.id).read_bytes()
        assert entity["sha256"] == hashlib.sha256(content).hexdigest()
        assert entity["contentSize"] == str(len(content))
    parts = {part.id for part in read.dereference("dataset/")["hasPart"]}
    assert {"dataset/train.xyz", "dataset/test.xyz", "dataset/dataset.json"} <= parts

    training = read.dereference("#training")
    assert root["mentions"] == training
    assert training["startTime"] < training["endTime"]
    software = {tool["name"]: tool["version"] for tool in training["instrument"]}
    assert software["python-ace"] == manifest.environment.versions["python-ace"]
    used = {entity.id for entity in training["object"]}
    assert {"input.yaml", "dataset/", "#gen_01"} <= used
    assert {"gen_02.yace", "gen_02.yaml", "report.json"} <= {e.id for e in training["result"]}
    assert not used & {e.id for e in training["result"]}

    values = {e["name"]: e.properties() for e in read.get_by_type("PropertyValue")}
    assert values["training.cutoff"]["value"] == 5.5
    assert values["training.cutoff"]["unitText"] == "Å"
    assert values["training.functions_per_element"]["value"] == 10
    energy = manifest.headline.train.rmse_energy_mev_per_atom
    assert _measured(root)["RMSE energy train"] == (energy, "meV/atom")
    assert _measured(root)["reference energy Cu"] == (manifest.reference_energies["Cu"], "eV/atom")


def _measured(root: Any) -> dict[str, tuple[float, str]]:
    return {e["name"]: (e["value"], e["unitText"]) for e in root["variableMeasured"]}


def test_validator_finds_nothing_that_is_required(crate: Path, tmp_path: Path) -> None:
    """Of what it recommends only the two things that the publisher alone can say are open."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlip-job-tests"
    python = cache / "roc-validator" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no roc-validator at {python}; install it with: make servers")
    script = Path(__file__).parents[1] / "validate_crate.py"
    context = files("rocrate") / "data" / "ro-crate.jsonld"

    def validate() -> list[str]:
        done = subprocess.run(
            [python, script, crate, str(context), tmp_path / "http"],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
        assert done.returncode == 0, done.stderr
        *issues, end = done.stdout.splitlines()
        assert end == "validated"
        return issues

    assert [issue.partition(" The Root")[0].split(" A License")[0] for issue in validate()] == [
        "RECOMMENDED ro-crate-1.2_56.1",
        "RECOMMENDED ro-crate-1.2_85.0",
    ]
    (crate / "gen_02.yace").unlink()
    assert any("gen_02.yace" in issue for issue in validate() if issue.startswith("REQUIRED"))


def test_pulling_again_changes_nothing(
    crate: Path, second: Family, cli: Callable[..., Ended]
) -> None:
    """The same generation gives the same text; other content is not overwritten."""
    metadata = crate / "ro-crate-metadata.json"
    before = metadata.read_bytes()
    again = ("pull", "-c", second.config_path, "-g", 2, "--crate", "--dataset", "-o", crate)
    assert cli(*again).code == 0
    assert metadata.read_bytes() == before
    metadata.write_text("{}")
    assert cli(*again).code == 73
    assert metadata.read_text() == "{}"


def test_without_the_dataset(family: Family, cli: Callable[..., Ended], tmp_path: Path) -> None:
    """It is described all the same, and a first generation has no parent."""
    ended = cli(
        "pull", "-c", family.config_path, "-g", 1, "--crate", "-o", tmp_path / "c", "--json"
    )
    assert str(tmp_path / "c" / "ro-crate-metadata.json") in json.loads(ended.out)["files"]
    read = ROCrate(tmp_path / "c")
    dataset = read.dereference(f"#dataset-{family.registry.get(1).dataset.id}")
    assert dataset in read.dereference("#training")["object"]
    assert "isBasedOn" not in read.root_dataset


def test_without_the_library(
    family: Family, cli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pulled, and the error says what to install."""
    monkeypatch.setattr("mlip_job.crate.write.find_spec", lambda _name: None)
    ended = cli("pull", "-c", family.config_path, "-g", 1, "--crate", "-o", tmp_path / "c")
    assert ended.code == 64
    assert "pip install 'mlip-job[crate]'" in ended.err
    assert not (tmp_path / "c").exists()
