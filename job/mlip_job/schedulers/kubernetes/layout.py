"""What the Job, its pods and those who look for them have agreed on: labels, paths, variables."""

from __future__ import annotations

from mlip_job import __version__
from mlip_job.naming import generation_name

CONTAINER = "mlip-job"
WORK_DIR = "/work"
CONFIG_DIR = "/etc/mlip-job"
CONFIG_FILE = "mlip-job.yaml"
TERMINATION_MESSAGE = "/dev/termination-log"

# Set by the Job controller; on Jobs and pods since Kubernetes 1.27.
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ARCHITECTURE_LABEL = "kubernetes.io/arch"
"""Set by the kubelet on its node."""

HOPELESS = (64, 65, 70, 71, 73, 126, 127, 128, 255)
"""Exit codes with which a Job fails at once.

A person must look: see `mlip_job.errors`. The others are those of a program that can't be executed:
the shell's 126 and 127, containerd's 128 (StartError), runc's 255 (exec format error).
"""

FAMILY_LABEL = "mlip-job/family"
GENERATION_LABEL = "mlip-job/generation"
HELM_RELEASE = "meta.helm.sh/release-name"
"""Annotation that helm adds to what it installs."""

SPEC_HASH = "mlip-job/spec-hash"
"""Annotation of the Job: the same value, the same submission."""


def identifying_labels(family: str, generation: int) -> dict[str, str]:
    """Return the labels by which the jobs of a generation are found."""
    return {FAMILY_LABEL: family, GENERATION_LABEL: generation_name(generation)}


def recommended_labels(family: str, generation: int) -> dict[str, str]:
    """Return Kubernetes' recommended labels, and ours."""
    return {
        "app.kubernetes.io/name": "mlip-job",
        "app.kubernetes.io/instance": f"{family}-{generation_name(generation)}",
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/part-of": family,
        "app.kubernetes.io/managed-by": "mlip-job",
        **identifying_labels(family, generation),
    }
