"""Benchmarks fail clearly if the machine lacks their requirements."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_gpu_benchmark_looks_for_a_gpu(tmp_path: Path) -> None:
    """Without nvidia-smi it ends with one line, before anything is trained."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: nvidia-smi finds no GPU; --allow-cpu measures the rest on a CPU\n"
    )


def test_the_comparison_of_trainers_asks_for_sets() -> None:
    """There is no default set: the demo's copper is too small for it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "trainers"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr == "trainers compares on the sets of --sets FILE\n"
