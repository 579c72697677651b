"""A published generation with a small potential and its active set, trained once per session."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml

from mlip_job.config import load_config
from mlip_job.errors import InterruptedRunError
from mlip_job.generation import run, run_generation
from mlip_job.registry import Registry
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest
    from mlip_job.training.trainer import Progress

_CONFIG = {
    "family": "cu",
    "database": {"url": "structures.db"},
    "storage": {"url": "store"},
    "evaluation": {"gate": {"require_physics": False}},  # of ten functions
    # The pyace evaluator needs no TensorFlow: such a fit takes seconds.
    "training": {
        "linear_start": False,
        "evaluator": "pyace",
        "functions_per_element": 10,
        "ladder_step": None,
        "max_iter": 3,
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


@contextmanager
def stopped_before_publication() -> Iterator[None]:
    """Have a run stop when its fit has ended, so that the next one only publishes."""

    def stop(*_: object) -> None:
        raise InterruptedRunError("stopped")

    with pytest.MonkeyPatch.context() as patch, suppress(InterruptedRunError):
        patch.setattr(run, "publish", stop)
        yield
        raise AssertionError("the run did not stop")


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
    shutil.rmtree(family.root / "work")
    return family


@pytest.fixture
def family(trained: Family, tmp_path: Path) -> Family:
    """Return a copy of the family for one test."""
    root = tmp_path / "family"
    shutil.copytree(trained.root, root)
    return Family(root)
