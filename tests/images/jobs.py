"""Run and stop the job in an image."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlip_job.config import JobConfig
from mlip_job.registry import Manifest
from tests.faults.jobs import iterations_safe, require_complete
from tests.generations import registry_of

# A fit long enough to be stopped midway.
LONG = {"functions_per_element": 8, "max_iter": 15, "linear_start": False}


@dataclass(frozen=True)
class ImageJob:
    """Generation 1 of a small family, with all files in one directory."""

    config: JobConfig
    directory: Path

    def run(self, command: Sequence[str]) -> str:
        process, log = self._start(command)
        assert process.wait(600) == 0, log.read_text()
        return log.read_text()

    def interrupt(
        self, command: Sequence[str], stop: Callable[[subprocess.Popen[bytes]], None]
    ) -> str:
        """Run it until it has stored a checkpoint, stop it, and require exit code 75."""
        process, log = self._start(command)
        for _ in range(6000):
            if process.poll() is not None or iterations_safe(self.config) > 0:
                break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        stop(process)
        assert process.wait(120) == 75, log.read_text()
        assert registry_of(self.config).find(1) is None
        return log.read_text()

    def require_published(self) -> Manifest:
        return require_complete(self.config)

    def _start(self, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.directory / f"log-{time.monotonic_ns()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "-c", str(self.directory / "mlip-job.yaml"), "run", "-g", "1"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return process, log
