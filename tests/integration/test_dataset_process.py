"""A large training set has its text written by a process of its own, which changes nothing else."""

from __future__ import annotations

import errno
import multiprocessing
import resource
import signal
from typing import TYPE_CHECKING, Any, Self

import pytest

from mlip_job.dataset import texts, writing
from mlip_job.errors import TrainingError
from mlip_job.runtime.processes import Beside
from tests.cli import run_cli
from tests.datasets import build, read, refused
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.dataset.output import OutputFile


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a database of several pages."""
    monkeypatch.setattr("mlip_job.dataset.pages.PAGE", 7)
    path = tmp_path / "structures.db"
    for number in range(4):
        write_database(path, rattled(5, seed=number), config_type="bulk", run=f"run {number}")
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a process worth its start for any training set; return the files of those started."""
    files: list[str] = []

    class Noted(Beside[Any]):
        def __enter__(self) -> Self:
            files.append(self._task[1][0].name)
            super().__enter__()
            return self

    monkeypatch.setattr(texts, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(texts, "Beside", Noted)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    return files


@pytest.fixture
def no_larger_files() -> Iterator[None]:
    """Put the limit of the size of files back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_files_are_the_same(db: Path, tmp_path: Path, started: list[str]) -> None:
    """Byte by byte; the test set is left to this process."""
    settings: dict[str, Any] = {"group_by": "run", "training": {"test_fraction": 0.25}}
    beside = build(db, tmp_path / "beside", **settings)
    assert started == ["train.xyz"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_WORTH_A_PROCESS", 1000)
        alone = build(db, tmp_path / "alone", **settings)
    assert started == ["train.xyz"]
    assert (beside.id, list(beside.files.items())) == (alone.id, list(alone.files.items()))
    for name in ("train.xyz", "test.xyz"):
        assert (tmp_path / "beside" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert len(read(tmp_path / "beside", "train")) == 15


def test_on_one_core_there_is_none(
    db: Path, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would only take turns with this one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    build(db, tmp_path / "out")
    assert started == []


@pytest.mark.usefixtures("no_larger_files")
def test_its_disk_fills_up(db: Path, tmp_path: Path, started: list[str]) -> None:
    """What the system says there is said here, and nothing is left."""
    size = build(db, tmp_path / "whole").files["train.xyz"].size
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, most))
    with pytest.raises(OSError, match="File too large") as caught:
        build(db, tmp_path / "out")
    assert caught.value.errno == errno.EFBIG
    assert started == ["train.xyz"] * 2
    assert not (tmp_path / "out").exists()


def test_it_is_killed(
    db: Path, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a kernel that is out of memory."""
    monkeypatch.setattr(texts, "write_text", _write_nothing_or_die)
    said = refused(TrainingError, db, tmp_path / "out")
    assert "the process that wrote train.xyz died, most likely out of memory" in said
    assert started == ["train.xyz"]


def _write_nothing_or_die(path: Path, *_: object) -> None:
    if path.name == "train.xyz":
        signal.raise_signal(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_an_export_is_stopped(
    db: Path,
    tmp_path: Path,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    """In one line; no process and no half of a dataset is left."""
    inside: list[Path] = []
    write_index = writing.write_index

    def stop(file: OutputFile, *others: Any) -> str:
        inside.append(file.path.parent)
        signal.raise_signal(number)
        return write_index(file, *others)

    monkeypatch.setattr(writing, "write_index", stop)
    config = tmp_path / "mlip-job.yaml"
    config.write_text(
        f"family: cu\ndatabase: {{url: {db}}}\nstorage: {{url: {tmp_path / 'store'}}}\n"
    )
    ended = run_cli(capsys, "export", "-c", config, "-g", 1, "-o", tmp_path / "out")
    assert ended.code == 75, ended.err
    assert f"stopped by {number.name}" in ended.err.strip().splitlines()[-2]
    assert "Traceback" not in ended.err
    assert started == ["train.xyz"]
    assert multiprocessing.active_children() == []
    assert len(inside) == 1
    assert not inside[0].exists()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "store").rglob("dataset.json"))
