"""What a fit does with a GPU: seconds to the first iteration, per iteration, and idle time.

``make bench-gpu`` runs it on a node with an NVIDIA GPU, in an environment with the lock
``requirements/trainer-gpu.txt``. With ``--allow-cpu`` all but the figures of the GPU is measured on
a CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, get_args

import yaml

from benchmarks.costs import PROGRAM, read_report
from benchmarks.tables import say, table
from mlip_job.config.training import Trainer
from mlip_job.demo import write_demo_database
from mlip_job.errors import GpuRequiredError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SELF_TEST = Path(__file__).parents[1] / "tools" / "image" / "mlip-job-self-test"
_SAMPLE_MS = 500
_IDLE = 1
"""Percent of utilisation below which the GPU counts as idle."""

_BEFORE_FITTING = ("starting", "loading_data", "building_graph", "building_test_graph")


@dataclass
class _Samples:
    """Samples of nvidia-smi: utilisation in percent, memory in MiB."""

    utilisation: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def read(self, text: str) -> None:
        """Add lines ``utilisation, memory``; incomplete ones are ignored."""
        for line in text.splitlines():
            try:
                percent, mib = map(float, line.split(","))
            except ValueError:
                continue
            self.utilisation.append(percent)
            self.memory_mib.append(mib)

    def cells(self) -> tuple[str, str, str]:
        """Return mean utilisation, share of idle samples, and peak memory."""
        if not self.utilisation:
            return "", "", ""
        idle = mean(percent < _IDLE for percent in self.utilisation)
        return f"{mean(self.utilisation):.0f}", f"{100 * idle:.1f}", f"{max(self.memory_mib):.0f}"


def main() -> None:
    """Measure with a temporary directory for all files."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("--database", help="URL of labelled structures [copper of the demo]")
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--allow-cpu", action="store_true", help="continue without a GPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
        measure_gpu(
            Path(directory),
            options.database,
            options.functions,
            options.iterations,
            allow_cpu=options.allow_cpu,
        )


def measure_gpu(
    directory: Path, database: str | None, functions: int, iterations: int, *, allow_cpu: bool
) -> None:
    """Run the self-test, runs that must refuse to start without a GPU, and a fit by each trainer.

    Parameters
    ----------
    directory
        For all files.
    database
        URL of labelled structures; the copper of the demo if None.
    functions, iterations
        Size and length of the fits.
    allow_cpu
        Whether to continue without a GPU.

    Raises
    ------
    SystemExit
        If there is no GPU, or if something ended otherwise than it should.
    """
    gpu = _find_gpu()
    if gpu is None and not allow_cpu:
        raise SystemExit("error: nvidia-smi finds no GPU; --allow-cpu measures the rest on a CPU")
    say(f"<!-- GPU: {gpu or 'none'} -->")
    if database is None:
        write_demo_database(directory / "structures.db", ["Cu"])
        database = str(directory / "structures.db")
    _self_test()
    for trainer in get_args(Trainer):
        folder = directory / trainer
        folder.mkdir()
        training = {
            "trainer": trainer, "functions_per_element": functions, "max_iter": iterations,
        }  # fmt: skip
        code, _ = _run(folder, database, training | {"require_gpu": True}, hidden=True)
        if code != GpuRequiredError.exit_code:
            raise SystemExit(f"error: a run that requires a GPU and has none ended with {code}")
        samples = _Samples()
        with _sampling(folder / "nvidia-smi.csv", samples, wanted=gpu is not None):
            training["require_gpu"] = gpu is not None
            code, wall_s = _run(folder, database, training, hidden=False)
        if code != 0:
            raise SystemExit(f"error: the run ended with {code}: see {folder / 'console.log'}")
        _show(trainer, folder, wall_s, samples)


def _find_gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, check=False, capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def _self_test() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", str(_SELF_TEST)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    if done.returncode != 0:
        raise SystemExit(f"error: the self-test failed: {done.stdout}{done.stderr}")
    say(f"<!-- {'; '.join(done.stdout.splitlines()[-2:])} -->")


def _run(
    directory: Path, database: str, training: Mapping[str, Any], *, hidden: bool
) -> tuple[int, float]:
    """Return the exit code and the wall time (s) of a run."""
    values = {
        "family": "gpu",
        "database": {"url": database},
        "storage": {"url": "store"},
        "training": dict(training),
    }
    (directory / "mlip-job.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    environment = dict(os.environ)
    if hidden:
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    started = time.monotonic()
    with (directory / "console.log").open("wb") as log:
        done = subprocess.run(
            [PROGRAM, "-c", "mlip-job.yaml", "run", "-g", "1"],
            check=False,
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=log,
        )
    return done.returncode, time.monotonic() - started


@contextmanager
def _sampling(path: Path, samples: _Samples, *, wanted: bool) -> Iterator[None]:
    """Sample the GPU's utilisation until the block ends."""
    if not wanted:
        yield
        return
    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
        f"-lms={_SAMPLE_MS}",
    ]
    with path.open("wb") as file, subprocess.Popen(query, stdout=file) as sampler:
        try:
            yield
        finally:
            sampler.terminate()
    samples.read(path.read_text(encoding="utf-8"))


def _show(trainer: str, directory: Path, wall_s: float, samples: _Samples) -> None:
    report = read_report(directory / "store")
    phases, stages = report["phases_s"], report["timings_s"]
    iterations = report["fit"]["iterations"] or 0
    fitting_s = phases.pop("fitting", 0.0)
    before_s = report["attempts"][-1]["timings"]["to_trainer_s"] or 0.0
    first_s = before_s + sum(phases.get(name, 0.0) for name in _BEFORE_FITTING)
    table(
        f"{trainer}: {report['fit']['functions']} functions, {iterations} iterations",
        (
            "job, s", "to the first iteration, s", "per iteration, s", "GPU utilisation, %",
            "GPU idle, % of the job", "GPU memory, MiB",
        ),
        [
            (
                f"{wall_s:.1f}",
                f"{first_s:.1f}",
                f"{fitting_s / iterations:.3f}" if iterations else "",
                *samples.cells(),
            )
        ],
    )  # fmt: skip
    shares = {
        **{name: seconds for name, seconds in stages.items() if name != "fit"},
        **{f"{trainer}: {name}": seconds for name, seconds in phases.items()},
        f"{trainer}: fitting": fitting_s,
    }
    table(
        "Share of the job by stage",
        ("stage", "s", "%"),
        [(name, f"{s:.1f}", f"{100 * s / wall_s:.1f}") for name, s in shares.items()],
    )


if __name__ == "__main__":
    main()
