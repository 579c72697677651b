"""A run executes no data of the store, and does not disclose secrets."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from mlip_job.config import JobConfig
from mlip_job.generation import export_generation
from tests.cli import Cli
from tests.datasets import poison_frames
from tests.generations import Family, Silent, make_config
from tests.support import rattled, write_database

pytestmark = pytest.mark.pacemaker


def _poison(family: Family, config: JobConfig, generation: int) -> tuple[Path, str]:
    """Export a dataset whose frames create a file when unpickled; return it and the record's hash.

    All hashes match.
    """
    registry = family.registry
    record = export_generation(config, generation, store=registry.store, observer=Silent())
    folder = family.store / registry.keys.dataset(record.id)
    before = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    poison_frames(folder, record, family.root / "unpickled")
    after = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    named_in = (family.store / registry.keys.queries).iterdir()
    for path in (family.store / registry.keys.manifest(1), *named_in):
        path.write_text(path.read_text().replace(before, after))
    return family.root / "unpickled", after


def test_frames_in_the_store_are_never_unpickled(family: Family) -> None:
    training = {"start_from": "none", "linear_start": True, "max_iter": 1}
    family.configure(training, evaluation={"gate": {"require_physics": False}})
    mark, sha256 = _poison(family, family.config, 2)
    second = family.run(2)
    assert second.dataset.record_sha256 == sha256
    assert second.linear_start is not None
    assert "potential.asi" in second.artefacts
    assert not mark.exists()


PLANTED = "planted8f3a"
VARIABLES = (
    "MLIP_JOB_DATABASE_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
SLURM = ("submit.scheduler=slurm",)
KUBERNETES = (
    "submit.scheduler=kubernetes",
    "submit.kubernetes.image=registry.example/mlip-job:1",
    "database.url=postgresql://ase@db.example/ase",
    "storage.url=s3://mlip/potentials",
)


def _set(settings: Iterable[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_secrets_of_the_environment_are_not_written(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to any file of a run, to a script, a manifest nor the output."""
    for name in VARIABLES:
        monkeypatch.setenv(name, PLANTED)
    write_database(tmp_path / "structures.db", rattled(8))
    config = tmp_path / "mlip-job.yaml"
    values = make_config(tmp_path, {"max_iter": 0, "functions_per_element": 5})
    config.write_text(yaml.safe_dump(values.model_dump(mode="json")))
    options = ("-c", config)
    commands = [
        ("run", "-g", 1),
        ("show", "-g", 1, "--json"),
        ("config", "show"),
        *((*_set(settings), "submit", "-g", 2, "--dry-run") for settings in (SLURM, KUBERNETES)),
    ]
    for command in commands:
        ended = cli(*options, *command)
        assert ended.code == 0, ended.err
        assert PLANTED not in ended.out + ended.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in files)
    for path in files:
        content = path.read_bytes()
        if path.suffix in (".gz", ".gzip"):
            content = gzip.decompress(content)
        assert PLANTED.encode() not in content, path
