"""Settings of a Kubernetes Job."""

from __future__ import annotations

from mlip_job.config.base import Part


class KubernetesConfig(Part):
    """What the Job asks of Kubernetes."""
