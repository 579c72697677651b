"""A run executes nothing that another process put into the store, and passes on no secret."""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING

import pytest
import yaml

from mlip_job.generation import export_generation
from tests.datasets import poison_frames
from tests.generations import Silent
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mlip_job.config import JobConfig
    from tests.cli import Ended
    from tests.generations import Family

pytestmark = pytest.mark.pacemaker


def _poison(family: Family, config: JobConfig, generation: int) -> tuple[Path, str]:
    """Export a dataset, and plant frames that leave a mark when they are read; every hash fits.

    Returns
    -------
    Path
        The mark.
    str
        Hash of the record.
    """
    registry = family.registry
    record = export_generation(config, generation, store=registry.store, observer=Silent())
    folder = family.store / registry.keys.dataset(record.id)
    before = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    poison_frames(folder, record, family.root / "was read")
    after = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    named_in = (family.store / registry.keys.queries).iterdir()
    for path in (family.store / registry.keys.manifest(1), *named_in):
        path.write_text(path.read_text().replace(before, after))
    return family.root / "was read", after


def test_frames_in_the_store_are_never_read(family: Family) -> None:
    """Linear start, fit, active set and evaluation of a generation on a dataset of the store."""
    training = family.config.training.model_copy(
        update={"start_from": "none", "linear_start": True}
    )
    config = family.config.model_copy(update={"training": training})
    mark, sha256 = _poison(family, config, 2)
    second = family.run(2, training=training)
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


def test_secrets_of_the_environment_stay_there(
    tmp_path: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file that a run writes holds one, no script, no manifest, and nothing that is printed."""
    for name in VARIABLES:
        monkeypatch.setenv(name, PLANTED)
    write_database(tmp_path / "structures.db", rattled(8))
    config = tmp_path / "mlip-job.yaml"
    values = {
        "family": "cu",
        "database": {"url": str(tmp_path / "structures.db")},
        "storage": {"url": str(tmp_path / "store")},
        "training": {"max_iter": 0, "functions_per_element": 5},
        "evaluation": {"gate": {"require_physics": False}},
        "work_dir": str(tmp_path / "work"),
    }
    config.write_text(yaml.safe_dump(values))
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
