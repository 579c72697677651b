"""The image of apptainer.def, built and run without root."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.config import load_config
from tests.cli import Cli
from tests.faults.jobs import require_complete
from tests.generations import TINY
from tests.images.jobs import LONG, ImageJob
from tests.integration.slurm.conftest import make_family
from tests.servers.containers import ROOT, Apptainer, build_options
from tests.servers.slurm import SlurmCluster


def in_image(apptainer: Apptainer, sif: Path, job: ImageJob) -> list[str]:
    """Return the command that runs a job as a batch script would; without a GPU --nv only warns."""
    options = ("--nv", "--cleanenv", "--bind", str(job.directory))
    return [*apptainer.command, "run", *options, str(sif)]


def test_labels_and_help(apptainer: Apptainer, sif: Path) -> None:
    described = json.loads(apptainer("inspect", "--json", "--labels", sif))
    labels = described["data"]["attributes"]["labels"]
    assert labels["org.opencontainers.image.version"] == "test"
    assert labels["mlip-job.variant"] == "cpu"
    assert "non-commercial" in labels["mlip-job.notice"]
    assert "run --generation 4" in apptainer("run-help", sif)
    assert "mlip-job-self-test" in apptainer("inspect", "--test", sif)


def test_no_build_files_are_left(apptainer: Apptainer, sif: Path) -> None:
    removed = "/mnt/* /etc/pip.conf /opt/pip /opt/mlip-job/bin/pip /opt/build/source"
    script = f"for path in {removed}; do test ! -e $path || echo $path; done"
    assert apptainer("exec", "--containall", sif, "sh", "-c", script) == ""


@pytest.mark.pacemaker
def test_a_stop_signal_reaches_the_job(
    apptainer: Apptainer, sif: Path, make_job: Callable[..., ImageJob]
) -> None:
    """SIGTERM to `apptainer run`; the job stores a checkpoint and ends with exit code 75."""
    job = make_job(TINY | LONG)
    text = job.interrupt(in_image(apptainer, sif, job), subprocess.Popen.terminate)
    assert "stopped by SIGTERM" in text


@pytest.mark.pacemaker
def test_a_batch_job_in_the_image(
    apptainer: Apptainer, sif: Path, slurm: SlurmCluster, cli: Cli, tmp_path: Path
) -> None:
    """Under Slurm, with --nv: stopped as before a time limit, requeued, and published.

    The signal may end the FUSE mount first, as docs/slurm.md says; the job is requeued all the
    same.
    """
    container = tmp_path / "apptainer"
    container.write_text(f'#!/bin/sh\nexec {shlex.join(apptainer.command)} "$@"\n')
    container.chmod(0o755)
    family = make_family(tmp_path, slurm, cli)
    settings = {"gres": "gpu:1", "require_gpu": False, "setup": []}  # the GPU is simulated
    endless = LONG | {"max_iter": 100_000}
    family.configure(training=endless, container=str(container), image=str(sif), **settings)
    job = family.submit()
    family.wait_for_checkpoint()
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    family.wait_for_log("it is requeued, and resumes from its checkpoint")
    slurm.wait_for(job, "PENDING")
    family.resume_briefly(job)
    family.wait_for("published")
    log = family.log()
    assert "stopped by SIGUSR1; the checkpoint of" in log or "Bus error" in log
    assert "Traceback" not in log
    manifest = require_complete(load_config(family.path, environment={}))
    assert len(manifest.attempts) == 2
    assert (manifest.environment.image or "").startswith(f"{sif.name}@sha256:")
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.id == job


def test_unknown_variants_are_rejected(
    apptainer: Apptainer, base_files: Path, pip_settings: Path, tmp_path: Path
) -> None:
    options = build_options(base_files, pip_settings)
    command = [*apptainer.command, *options, "--build-arg", "variant=rocm", tmp_path / "x.sif"]
    done = subprocess.run(
        [*map(str, command), "apptainer.def"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "variant=rocm: there are cpu and cuda" in done.stderr
