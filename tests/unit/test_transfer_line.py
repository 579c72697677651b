"""Large transfers are shown on a terminal, not small ones, nor in a pipe."""

from __future__ import annotations

import pytest

from mlip_job.cli.output import TransferLine


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("mlip_job.cli.output.time.monotonic", lambda: now[0])
    return now


def move(seconds: list[float], line: TransferLine, step: float) -> None:
    for part in range(1, 11):
        seconds[0] += step
        line("datasets/1234/train.xyz", 10_000_000 * part, 100_000_000)


def test_a_long_transfer_has_a_temporary_line(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a second, a few times per second, with name, fraction and speed."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    move(seconds, TransferLine(quiet=False), 0.5)
    shown = capsys.readouterr().err.split("\r")
    assert shown[1].startswith("train.xyz: 30 % of 100 MB, 30.0 MB/s")
    assert len(shown) == 10
    assert shown[-2:] == [" " * len(shown[-3]), ""]


@pytest.mark.parametrize(
    ("terminal", "quiet", "step"), [(True, False, 0.05), (False, False, 1.0), (True, True, 1.0)]
)
def test_otherwise_nothing_is_shown(
    seconds: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    quiet: bool,
    step: float,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    move(seconds, TransferLine(quiet=quiet), step)
    assert capsys.readouterr().err == ""
