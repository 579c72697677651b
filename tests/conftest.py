"""Fixtures for all tests, and a mode in which a skipped test fails."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

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


# One worker runs the tests of a group, else of a file, so that a server starts once. The longest
# groups are first, so that all workers end at the same time.
_GROUPS = {
    "kubelet": r"integration/kubernetes/test_(kubelet|kueue|soak)\.py",
    "slurm": r"integration/slurm/|test_schedulers\.py.*\[slurm",
    "images": r"tests/images/",
    "kubernetes": r"integration/kubernetes/|test_schedulers\.py.*\[kubernetes",
}


def _group(nodeid: str) -> str:
    found = (name for name, pattern in _GROUPS.items() if re.search(pattern, nodeid))
    return next(found, nodeid.partition("::")[0])


class _GroupScheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # The marks of `--dist loadgroup` have no effect with pytest 9.2 and pytest-xdist 3.8.
    return _GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = [*_GROUPS, "pacemaker"]

    def place(item: pytest.Item) -> int:
        kind = "pacemaker" if item.get_closest_marker("pacemaker") else ""
        names = (_group(item.nodeid), kind)
        return min((order.index(name) for name in names if name in order), default=len(order))

    items.sort(key=place)


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
