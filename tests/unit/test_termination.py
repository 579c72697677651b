"""A supervised run writes its result for its supervisor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.cli.main import VARIABLE, write_termination_message
from tests.cli import Ended


def test_an_error_is_written_with_its_exit_code(
    cli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "termination-log"
    monkeypatch.setenv(VARIABLE, str(target))
    ended = cli("-c", tmp_path / "absent.yaml", "run", "-g", "1")
    written = json.loads(target.read_text())
    assert written["exit_code"] == ended.code == 64
    assert written["message"] in ended.err
    assert written["hint"] in ended.err


@pytest.mark.parametrize("character", ["x", "µ", '"', "\n", "🙂"])
def test_it_fits_into_kubernetes_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    """4096 bytes, and still JSON."""
    target = tmp_path / "termination-log"
    monkeypatch.setenv(VARIABLE, str(target))
    write_termination_message(70, "cause " + character * 10000, "a hint")
    assert target.stat().st_size < 4096
    written = json.loads(target.read_text())
    assert written["message"].startswith(f"cause {character}")
    assert written["hint"] == "a hint"


def test_without_a_path_or_with_an_unwritable_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_termination_message(70, "cause")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent" / "termination-log"))
    write_termination_message(70, "cause")
    assert list(tmp_path.iterdir()) == []
