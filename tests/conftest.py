"""Fixtures for all tests, and a mode in which a skipped test fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.cli import Cli, run_cli
from tests.servers.kernel import FORBIDDEN

# No deadline: the machine may be training potentials at the same time.
settings.register_profile("mlip-job", deadline=None)
settings.load_profile("mlip-job")

pytest_plugins = [
    "tests.faults.tally",
    "tests.generations",
    "tests.servers.browser",
    "tests.servers.containers",
    "tests.servers.databases",
    "tests.servers.kubernetes",
    # These import the one before.
    "tests.servers.helm",
    "tests.servers.kubelet",
    "tests.servers.kueue",
    "tests.servers.mlflow",
    "tests.servers.node",
    "tests.servers.s3",
    "tests.servers.s3_faults",
    "tests.servers.slurm",
]

_NO_SKIPS = "MLIP_JOB_TEST_NO_SKIPS"


# Fixtures of the groups, the longest group first: all workers end at the same time.
_GROUPS = {
    "kubelet": {"real_node"},
    "slurm": {"slurm", "slurm_cluster", "slurm_cluster_with_accounting"},
    "images": {"podman", "cpu_image", "sif"},
    "kubernetes": {"kubernetes", "control_plane"},
}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist appends the groups to the names in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a cluster, else those of a file, in one worker: each starts it once."""
    order = [*_GROUPS, "pacemaker", ""]
    places: dict[pytest.Item, int] = {}
    for item in items:
        cluster = _cluster(item)
        item.add_marker(pytest.mark.xdist_group(cluster or str(item.path)))
        kind = cluster or ("pacemaker" if item.get_closest_marker("pacemaker") else "")
        places[item] = order.index(kind)
    items.sort(key=places.__getitem__)


def _cluster(item: pytest.Item) -> str | None:
    if not isinstance(item, pytest.Function):
        return None
    names = set(item.fixturenames)
    if hasattr(item, "callspec"):  # a scheduler whose fixture is requested by name
        names.add(str(item.callspec.params.get("site", "")).partition(" ")[0])
    return next((group for group, servers in _GROUPS.items() if names & servers), None)


@pytest.fixture(autouse=True)
def _logging_enabled() -> Iterator[None]:
    """Enable logging again: a linear fit disables it in its process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skip a failure where CI has installed all that the tests need."""
    report = yield
    wanted = os.environ.get(_NO_SKIPS) and FORBIDDEN not in str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and wanted:
        report.outcome = "failed"
        report.longrepr = f"{_NO_SKIPS} is set, but the test was skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate tests from the user's settings."""
    for name in list(os.environ):
        if name.startswith(("MLIP_JOB_", "AWS_", "SLURM_", "PG", "MLFLOW_")) and name not in (
            _NO_SKIPS,
            "AWS_CA_BUNDLE",
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs the command line with its arguments."""
    return lambda *arguments: run_cli(capsys, *arguments)
