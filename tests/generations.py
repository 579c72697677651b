"""Small generations by the real pacemaker: configurations, runs, and one trained per session."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from mlip_job.config import JobConfig, load_config
from mlip_job.errors import InterruptedRunError
from mlip_job.generation import run, run_generation
from mlip_job.registry import Manifest, Registry
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from mlip_job.training.trainer import Progress
from tests.reports import validate_report
from tests.support import rattled, write_database

# The pyace evaluator needs no TensorFlow: such a fit takes seconds.
TINY: dict[str, Any] = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 3,
}
# A basis of GRACE/FS that TensorFlow traces in seconds.
GRACE: dict[str, Any] = {
    "trainer": "grace-fs",
    "cutoff": 4.5,
    "functions_per_element": 20,
    "energy_weight": 100,
    "force_weight": 10,
    "stress_weight": 1000,
    "overrides": {
        "potential": {
            "kwargs": {
                "n_rad_base": 4,
                "embedding_size": 2,
                "max_order": 2,
                "n_rad_max": [3, 2],
                "lmax": [2, 1],
                "Lmax": [None, 0],
                "max_sum_l": [None, None],
                "lmax_hist": [None, None],
            }
        },
        "fit": {"jit_compile": False},
    },
}
# A potential of few functions fails the physics checks; most tests don't need the others.
QUICK: dict[str, Any] = {
    "active_set": False,
    "dynamics_steps": 10,
    "gate": {"require_physics": False},
}


class Silent:
    """An observer that stores messages, output lines and progress."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.lines: list[str] = []
        self.reported: list[Progress] = []

    def message(self, text: str) -> None:
        """Store a message."""
        self.messages.append(text)

    def progress(self, progress: Progress) -> None:
        """Store the progress."""
        self.reported.append(progress)

    def trainer_line(self, line: str) -> None:
        """Store a line of the trainer's output."""
        self.lines.append(line)


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    config: JobConfig
    manifest: Manifest
    created: bool
    observer: Silent

    @property
    def messages(self) -> list[str]:
        """The run's messages."""
        return self.observer.messages

    @property
    def report(self) -> TrainingReport:
        """The published report, validated against its schema."""
        return report_of(registry_of(self.config), self.manifest)

    def read(self, name: str) -> bytes:
        """Return the content of an artefact."""
        return registry_of(self.config).read(self.manifest, name)


def make_config(directory: Path, training: dict[str, Any], **sections: Any) -> JobConfig:
    """Return a configuration with database, store and work directory in one directory."""
    values = {
        "family": "cu",
        "database": {"url": str(directory / "structures.db")},
        "training": training,
        "evaluation": QUICK,
        "storage": {"url": str(directory / "store")},
        "work_dir": str(directory / "work"),
    }
    return JobConfig.model_validate(values | sections)


def train(
    config: JobConfig, generation: int = 1, observer: Silent | None = None, **options: Any
) -> Trained:
    """Run a generation in this process."""
    observer = observer or Silent()
    with StopRequest() as stop:
        store = open_store(config.storage)
        outcome = run_generation(
            config, generation, store=store, observer=observer, stop=stop, **options
        )
    return Trained(config, outcome.manifest, outcome.created, observer)


def registry_of(config: JobConfig) -> Registry:
    """Return the registry of a configuration."""
    return Registry(open_store(config.storage), config.family)


def report_of(registry: Registry, manifest: Manifest) -> TrainingReport:
    """Return a published report, validated against its schema."""
    text = registry.read(manifest, "report.json")
    validate_report(text)
    return TrainingReport.from_json(text)


def start_run(config: JobConfig, directory: Path) -> subprocess.Popen[str]:
    """Start ``mlip-job run -g 1`` as a process; its messages are on ``stderr``."""
    path = directory / "mlip-job.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    program = "if __name__ == '__main__': from mlip_job.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "-c", str(path), "run", "-g", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(look: Callable[[], Any], timeout: float = 120) -> Any:
    """Return the first result that is true."""
    end = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


@contextmanager
def stopped_before_publication() -> Iterator[None]:
    """Stop a run at the end of its fit, so that the next one only publishes."""

    def stop(*_: object) -> None:
        raise InterruptedRunError("stopped")

    with pytest.MonkeyPatch.context() as patch, suppress(InterruptedRunError):
        patch.setattr(run, "publish", stop)
        yield
        raise AssertionError("the run did not stop")


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return a directory that one pytest-xdist worker builds for all of them."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory, built = root / name, root / f"{name}.built"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            build(directory)
            built.touch()
    return directory


@dataclass(frozen=True)
class Family:
    """A family in a directory: configuration, database and store, with relative paths."""

    root: Path

    def configure(
        self, training: Mapping[str, Any] = MappingProxyType({}), **sections: Any
    ) -> None:
        """Write the configuration."""
        values = {
            "family": "cu",
            "database": {"url": "structures.db"},
            "storage": {"url": "store"},
            "evaluation": QUICK,
            "training": {**TINY, **training},
        }
        self.config_path.write_text(yaml.safe_dump(values | sections), encoding="utf-8")

    def set_training(self, **training: Any) -> None:
        """Change settings of the training."""
        values = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        values["training"] |= training
        self.config_path.write_text(yaml.safe_dump(values), encoding="utf-8")

    @property
    def config_path(self) -> Path:
        """The configuration; its paths are relative."""
        return self.root / "mlip-job.yaml"

    @property
    def config(self) -> JobConfig:
        """The loaded configuration."""
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
        return registry_of(self.config)

    def artefact(self, name: str) -> Path:
        """Return the file of an artefact in the store."""
        return self.store / self.registry.get(1).artefacts[name].key

    def run(self, generation: int, **sections: object) -> Manifest:
        """Train a generation, with changes to other sections of the configuration."""
        return train(self.config.model_copy(update=sections), generation).manifest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Train generation 1, with its active set; tests take a copy of it (`family`)."""

    def build(directory: Path) -> None:
        family = Family(directory)
        write_database(family.database, rattled(16))
        family.configure(
            {"functions_per_element": 10}, evaluation={"gate": {"require_physics": False}}
        )
        family.run(1)
        shutil.rmtree(directory / "work")

    return Family(build_once(tmp_path_factory, "trained-family", build))


@pytest.fixture
def family(trained: Family, tmp_path: Path) -> Family:
    """Return a copy of the family for one test."""
    root = tmp_path / "family"
    shutil.copytree(trained.root, root)
    return Family(root)
