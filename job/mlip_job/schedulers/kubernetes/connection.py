"""Find the cluster as kubectl does: $KUBECONFIG, ~/.kube/config, a context; else from within."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from mlip_job.config.kubernetes import KubernetesConfig

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Connection:
    """A cluster, and the namespace that is meant where none is named.

    Attributes
    ----------
    client
        The official client's ``ApiClient``.
    namespace
        From the settings, else from the context, else ``default``.
    """

    client: Any
    namespace: str


def connect(settings: KubernetesConfig) -> Connection:
    """Read the kubeconfig; no request is made.

    Raises
    ------
    ConfigError
        If there is none, it can't be read, or has no such context.
    """
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    present = [name for name in files.split(os.pathsep) if name and Path(name).is_file()]
    if not present and settings.context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _from_within(settings)
    if not present:
        raise ConfigError(
            f"no kubeconfig at {files}, and this is no pod: which cluster?",
            hint="set KUBECONFIG, or have kubectl get pods work first",
        )
    return _from_kubeconfig(files, settings)


def _from_kubeconfig(files: str, settings: KubernetesConfig) -> Connection:
    from kubernetes import client, config  # noqa: PLC0415 - takes a second

    configuration = client.Configuration()
    try:
        contexts, active = config.list_kube_config_contexts(config_file=files)
        config.load_kube_config(
            config_file=files, context=settings.context, client_configuration=configuration
        )
    except (config.ConfigException, yaml.YAMLError, OSError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"kubeconfig {files} can't be used: {text}",
            hint="kubectl config get-contexts shows the contexts; choose one with "
            "submit.kubernetes.context",
        ) from None
    chosen = settings.context or active["name"]
    context = next(entry["context"] for entry in contexts if entry["name"] == chosen)
    return Connection(
        _api_client(configuration),
        settings.namespace or context.get("namespace") or "default",
    )


def _from_within(settings: KubernetesConfig) -> Connection:
    from kubernetes import client, config  # noqa: PLC0415 - takes a second

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        own = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"this pod can't reach its cluster: {error}",
            hint="give the pod that submits a service account and mount its token",
        ) from None
    return Connection(_api_client(configuration), settings.namespace or own)


def _api_client(configuration: Any) -> Any:
    from kubernetes import client  # noqa: PLC0415 - takes a second

    # The client reads NO_PROXY and then forgets it (kubernetes-client/python#2460).
    configuration.no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    # What may be repeated is repeated by us, with a word about it.
    configuration.retries = False
    return client.ApiClient(configuration)
