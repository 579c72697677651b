"""Run the job as a process that a test may kill, and check its files afterwards."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlip_job.config import JobConfig
from mlip_job.evaluation.potential import import_pyace
from mlip_job.registry import Manifest
from mlip_job.training.pacemaker import PacemakerFiles
from mlip_job.training.pacemaker.tables import read_table
from mlip_job.training.summary import CurvePoint
from tests.generations import registry_of, report_of

MakeConfig = Callable[..., JobConfig]

import_pyace()  # saves each forked job some seconds


@dataclass
class Job:
    """A started job."""

    pid: int
    log: Path
    config: JobConfig
    earlier: frozenset[Path]
    code: int | None = None

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"the job does not end: {self.text()}"
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait_for_iteration(self) -> None:
        for _ in range(6000):
            if self.poll() is not None:
                return
            for path in _tables(self.config) - self.earlier:
                if len(path.read_text().splitlines()) > 2:
                    return
            time.sleep(0.02)
        raise AssertionError(f"pacemaker did not start to fit: {self.text()}")

    def wait_for_file(self, name: str) -> Path:
        """Wait for a file of its attempt: pacemaker writes a potential after the table's row."""
        for _ in range(500):
            for path in Path(self.config.work_dir).glob(f"gen_01/*/{name}"):
                if path.stat().st_size:
                    return path
            time.sleep(0.02)
        raise AssertionError(f"there is no {name}: {self.text()}")

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def start_job(
    config: JobConfig, directory: Path, *arguments: str, fault: Callable[[], None] | None = None
) -> Job:
    """Start ``mlip-job run -g 1`` in a forked process, which has all imports.

    It calls `fault` before the command line, to inject the fault.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "mlip-job.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    log = directory / f"job-{time.monotonic_ns()}.log"
    log.touch()
    earlier = _tables(config)
    pid = os.fork()
    if pid == 0:
        _child(["-c", str(path), "run", "-g", "1", *arguments], log, fault)
    return Job(pid, log, config, earlier)


def run_job(config: JobConfig, directory: Path, *arguments: str, **options: Any) -> Job:
    job = start_job(config, directory, *arguments, **options)
    job.wait()
    return job


def _tables(config: JobConfig) -> frozenset[Path]:
    return frozenset(Path(config.work_dir).glob("gen_01/*/metrics.txt"))


def _child(arguments: list[str], log: Path, fault: Callable[[], None] | None) -> None:
    from mlip_job.cli.main import main

    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        warnings.simplefilter("default")
        logging.getLogger().handlers.clear()  # of pytest: warnings of a job go to its stderr
        if fault is not None:
            fault()
        main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - it goes to the job's log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def iterations_reached(config: JobConfig) -> int:
    """Return the number of iterations of the newest attempt, from its work directory."""
    attempts = sorted(Path(config.work_dir).glob("gen_01/*/"), key=lambda p: p.stat().st_mtime)
    if not attempts:
        return 0
    files = PacemakerFiles(attempts[-1])
    rows = [
        *read_table(files.table("metrics")).rows,
        *read_table(files.history / "metrics.txt").rows,
    ]
    return sum(1 for row in rows if row.iter_num)


def iterations_safe(config: JobConfig) -> int:
    registry = registry_of(config)
    if (manifest := registry.find(1)) is not None:
        return manifest.headline.iterations
    return max((c.iterations for c in registry.checkpoints(1).found()), default=0)


def require_whole_or_nothing(config: JobConfig) -> None:
    registry = registry_of(config)
    manifest = registry.find(1)
    if manifest is None:
        assert registry.store.head(registry.keys.latest) is None
        assert registry.store.head(registry.keys.potential(1, "yace")) is None
        return
    problems = [p for p in registry.verify(manifest) if "/potentials/" not in p]
    assert problems == []


def require_complete(config: JobConfig) -> Manifest:
    """Check the result of a finished job: dataset, manifest, copies, one learning curve."""
    registry = registry_of(config)
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert registry.latest() == 1
    report = report_of(registry, manifest)
    assert b"</html>" in registry.read(manifest, "report.html")
    require_one_curve(report.fit.train_curve)
    # The time of publishing is in the manifest only: the report is published too.
    *before, last = report.attempts
    assert (*before, last.model_copy(update={"timings": manifest.attempts[-1].timings})) == (
        manifest.attempts
    )
    assert sum(part.iterations for part in manifest.attempts) == manifest.headline.iterations
    assert manifest.headline.iterations == sum(1 for p in report.fit.train_curve if p.iteration)
    assert report.errors("train").rmse_energy_mev_per_atom is not None
    return manifest


def require_one_error(job: Job, *words: str) -> None:
    """Check that a job ended with 69 and one error, in a line with these words."""
    assert job.code == 69, job.text()
    errors = [line for line in job.text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, job.text()
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in job.text()


def require_one_curve(curve: tuple[CurvePoint, ...]) -> None:
    steps: dict[int, list[CurvePoint]] = {}
    for point in curve:
        steps.setdefault(point.ladder_step, []).append(point)
    assert list(steps) == list(range(len(steps)))
    for points in steps.values():
        first = points[0].iteration  # pacemaker begins with 0, gracemaker with 1
        assert first in (0, 1)
        assert [point.iteration for point in points] == list(range(first, first + len(points)))
        losses = [point.loss for point in points]
        for before, after in itertools.pairwise(losses):
            assert before is not None
            assert after is not None
            assert after <= before * 1.01


def require_repeatable(config: JobConfig, directory: Path) -> None:
    registry = registry_of(config)
    before = registry.store.get(registry.keys.manifest(1))
    again = run_job(config, directory)
    assert again.code == 0, again.text()
    assert "nothing to do" in again.text()
    assert registry.store.get(registry.keys.manifest(1)) == before
