"""Image of the Dockerfile, run with the rights that Kubernetes grants."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from tests.generations import GRACE
from tests.images.jobs import ImageJob
from tests.servers.containers import Podman

UID = 10001


@pytest.fixture(autouse=True)
def _built(cpu_image: str) -> None:
    """Build the image."""


def in_container(podman: Podman, job: ImageJob, name: str = "") -> list[str]:
    """Return the command that runs a job whose directory belongs to the user of the image."""
    for path in (job.directory, *job.directory.rglob("*")):
        os.chown(path, UID, UID)
    named = [f"--name={name}"] if name else []
    return podman.job(*named, f"--volume={job.directory}:{job.directory}", "--workdir=/tmp")


def shell(podman: Podman, script: str) -> str:
    command = [*podman.job("--entrypoint=sh"), "-c", script]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_metadata_and_help(podman: Podman) -> None:
    """Numeric user, init, entry point, licence of the content; help."""
    (described,) = json.loads(podman("image", "inspect", "localhost/mlip-job:cpu"))
    config = described["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["tini", "--", "mlip-job"]
    assert config["Labels"]["org.opencontainers.image.version"] == "test"
    assert "non-commercial" in config["Labels"]["mlip-job.notice"]
    assert "mlip-job.yaml" in shell(podman, "mlip-job --help")


def test_no_build_files_are_left(podman: Podman) -> None:
    """No pip or its settings, no local certificates, no headers, no package lists."""
    removed = (
        "/mnt/pip.conf /mnt/ca.crt /etc/pip.conf /opt/pip/bin /opt/mlip-job/bin/pip "
        "/package /build /opt/mlip-job/lib/python3.11/site-packages/tensorflow/include"
    )
    script = f"for path in {removed}; do test ! -e $path || echo $path; done; ls /var/lib/apt/lists"
    assert shell(podman, script) == ""
    history = podman("history", "--no-trunc", "--format={{.CreatedBy}}", "localhost/mlip-job:cpu")
    assert "index-url" not in history


def test_it_has_no_privileges(podman: Podman) -> None:
    """It is not root, has no capabilities, and can write to /tmp only."""
    script = (
        "id -u; grep CapBnd /proc/self/status; touch /tmp/x && echo tmp; "
        "for path in / /work /opt/mlip-job; do touch $path/x 2>/dev/null && echo $path; done; :"
    )
    assert shell(podman, script).split() == [str(UID), "CapBnd:", "0000000000000000", "tmp"]


@pytest.mark.pacemaker
def test_self_test(podman: Podman) -> None:
    """TensorFlow computes, the drivers load, two tiny generations are trained."""
    assert shell(podman, "mlip-job-self-test").endswith("self test passed\n")


@pytest.mark.pacemaker
def test_an_interrupted_job_resumes(podman: Podman, make_job: Callable[..., ImageJob]) -> None:
    """The init forwards SIGTERM; the exit code is returned; the next run publishes.

    By gracemaker; the self-test has fits of pacemaker.
    """
    job = make_job(GRACE | {"max_iter": 40})
    name = f"mlip-job-{os.getpid()}"
    text = job.interrupt(
        in_container(podman, job, name), lambda _: podman("stop", "--time=120", name)
    )
    assert "stopped by SIGTERM" in text
    job.run(in_container(podman, job))
    manifest = job.require_published()
    assert len(manifest.attempts) == 2


def test_exit_codes_are_passed_on(podman: Podman) -> None:
    done = subprocess.run(
        [*podman.job(), "run", "-g", "1"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 64
    assert "mlip-job.yaml" in done.stderr
