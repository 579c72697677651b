"""The library that evaluates potentials: python-ace, which not every environment has."""

from __future__ import annotations

from importlib.util import find_spec

from mlip_job.errors import ConfigError


def require_pyace() -> None:
    """Check that python-ace is installed, without importing it, which takes seconds.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if find_spec("pyace") is None:
        raise ConfigError(
            "python-ace is not installed: this environment can't evaluate potentials",
            hint="pip install --no-deps -r requirements/trainer-cpu.txt",
        )
