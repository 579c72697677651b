"""A manifest says what a run ran on, and not whose machine it was."""

from __future__ import annotations

import getpass
import socket
from importlib import metadata
from typing import TYPE_CHECKING

from mlip_job.environment import RunEnvironment

if TYPE_CHECKING:
    import pytest


def test_versions_are_those_that_are_installed() -> None:
    """Of everything that decides the numbers."""
    versions = RunEnvironment.current().versions
    assert versions["python-ace"] == metadata.version("python-ace")
    assert versions["tensorflow"] == metadata.version("tensorflow-cpu")
    assert versions["mlip-job"] == metadata.version("mlip-job")


def test_scheduler_and_image_come_from_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None where there is none."""
    assert RunEnvironment.current().scheduler is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("MLIP_JOB_IMAGE", "example/mlip-job@sha256:0123")
    environment = RunEnvironment.current()
    assert environment.scheduler is not None
    assert (environment.scheduler.kind, environment.scheduler.id) == ("slurm", "4711")
    assert environment.image == "example/mlip-job@sha256:0123"


def test_names_of_host_and_user_are_left_out() -> None:
    """Manifests are published."""
    text = RunEnvironment.current().model_dump_json()
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{getpass.getuser()}"' not in text
