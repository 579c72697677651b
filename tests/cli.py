"""Run the command line in this process, as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mlip_job.cli.main import main


@dataclass(frozen=True)
class Ended:
    """Result of a command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Call the entry point and return exit code and output."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    code = ended.value.code
    return Ended(code if isinstance(code, int) else 0, out, err)
