"""A published generation with a small potential and its active set, trained once per session."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml

from mlip_job.config import load_config
from mlip_job.pipeline import run_generation
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from mlip_job.training.programs import find_program
from mlip_job.training.signals import StopRequest
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest
    from mlip_job.training.process import Progress

_CONFIG = {
    "family": "cu",
    "database": {"url": "structures.db"},
    "storage": {"url": "store"},
    # The pyace evaluator needs no TensorFlow: such a fit takes seconds.
    "training": {
        "evaluator": "pyace",
        "functions_per_element": 10,
        "ladder_step": None,
        "max_iter": 3,
        "stress_weight": 0,
    },
}


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        """Keep it."""
        self.messages.append(text)

    def progress(self, progress: Progress) -> None:
        """Ignore it."""

    def trainer_line(self, line: str) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Family:
    """A family in a directory of its own: configuration, database, store, one generation.

    Attributes
    ----------
    root
        The directory.
    """

    root: Path

    @property
    def config_path(self) -> Path:
        """The configuration; its paths are relative."""
        return self.root / "mlip-job.yaml"

    @property
    def config(self) -> JobConfig:
        """The configuration, loaded."""
        return load_config(self.config_path)

    @property
    def database(self) -> Path:
        """The database."""
        return self.root / "structures.db"

    @property
    def store(self) -> Path:
        """The root of the store."""
        return self.root / "store"

    @property
    def registry(self) -> Registry:
        """The registry."""
        return Registry(open_store(self.config.storage), "cu")

    def artefact(self, name: str) -> Path:
        """Return the file of an artefact in the store."""
        return self.store / self.registry.get(1).artefacts[name].key

    def run(self, generation: int, **sections: object) -> Manifest:
        """Train a generation."""
        config = self.config.model_copy(update=sections)
        with StopRequest() as stop:
            store = open_store(config.storage)
            return run_generation(
                config, generation, store=store, observer=Silent(), stop=stop
            ).manifest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Train generation 1; tests take a copy of it (`family`)."""
    family = Family(tmp_path_factory.mktemp("family"))
    write_database(family.database, rattled(16))
    family.config_path.write_text(yaml.safe_dump(_CONFIG), encoding="utf-8")
    family.run(1)
    add_active_set(family)
    shutil.rmtree(family.root / "work")
    return family


@pytest.fixture
def family(trained: Family, tmp_path: Path) -> Family:
    """Return a copy of the family for one test."""
    root = tmp_path / "family"
    shutil.copytree(trained.root, root)
    return Family(root)


def add_active_set(family: Family) -> None:
    """Publish an active set with generation 1, where the run did not."""
    path = family.store / family.registry.keys.manifest(1)
    manifest = json.loads(path.read_text())
    if "potential.asi" in manifest["artefacts"]:
        return
    potential = family.artefact("potential.yaml")
    work = family.root / "active_set"
    work.mkdir()
    shutil.copy(potential, work / "potential.yaml")
    frames = sorted(family.store.glob("cu/datasets/*/train*.pckl.gzip"))
    datasets = [argument for frame in frames for argument in ("-d", str(frame))]
    subprocess.run(
        [str(find_program("pace_activeset")), *datasets, "potential.yaml"],
        cwd=work,
        check=True,
        capture_output=True,
    )
    content = (work / "potential.asi").read_bytes()
    shutil.rmtree(work)
    potential.with_suffix(".asi").write_bytes(content)
    manifest["artefacts"]["potential.asi"] = {
        "key": potential.with_suffix(".asi").relative_to(family.store).as_posix(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    path.write_text(json.dumps(manifest))
