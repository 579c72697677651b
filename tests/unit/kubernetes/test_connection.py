"""The cluster is found like kubectl does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlip_job.config.schedulers import KubernetesConfig
from mlip_job.errors import ConfigError
from mlip_job.schedulers.kubernetes import client
from mlip_job.schedulers.kubernetes.client import connect


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the clusters of the user who runs the tests."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def write_kubeconfig(path: Path, contexts: dict[str, str | None], current: str) -> Path:
    values: dict[str, Any] = {
        "clusters": [
            {"name": name, "cluster": {"server": f"https://{name}.example"}} for name in contexts
        ],
        "users": [{"name": "me", "user": {"token": "hunter2"}}],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": "me", "namespace": namespace}}
            for name, namespace in contexts.items()
        ],
        "current-context": current,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_context_and_namespace_are_kubectls(tmp_path: Path) -> None:
    """The current context and its namespace, unless the settings name others."""
    write_kubeconfig(tmp_path / ".kube/config", {"one": "alloys", "two": None}, "one")

    def found(**settings: str) -> tuple[str, str]:
        reached = connect(KubernetesConfig(**settings))
        return reached.client.configuration.host, reached.namespace

    assert found() == ("https://one.example", "alloys")
    assert found(context="two") == ("https://two.example", "default")
    assert found(namespace="oxides") == ("https://one.example", "oxides")
    assert found(context="two", namespace="oxides") == ("https://two.example", "oxides")


def test_several_kubeconfigs_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$KUBECONFIG may list several, some of which are absent."""
    one = write_kubeconfig(tmp_path / "one.yaml", {"one": None}, "one")
    two = write_kubeconfig(tmp_path / "two.yaml", {"two": "alloys"}, "two")
    monkeypatch.setenv("KUBECONFIG", f"{one}:{tmp_path / 'absent'}:{two}")
    assert connect(KubernetesConfig(context="two")).namespace == "alloys"


@pytest.mark.parametrize(
    "text",
    ["", "{", "- a", "current-context: absent\ncontexts: []\nclusters: []\nusers: []\n"],
)
def test_a_broken_kubeconfig_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".kube/config"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="can't be used") as broken:
        connect(KubernetesConfig())
    assert str(path) in broken.value.message


def test_an_unknown_context_is_an_error(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / ".kube/config", {"one": None}, "one")
    with pytest.raises(ConfigError, match="three") as unknown:
        connect(KubernetesConfig(context="three"))
    assert "get-contexts" in str(unknown.value.hint)
    assert "hunter2" not in str(unknown.value)


def test_no_kubeconfig_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no kubeconfig"):
        connect(KubernetesConfig())


def test_a_pod_reaches_its_own_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its service account and namespace, if there is no kubeconfig."""
    from kubernetes.config import incluster_config

    files = {"token": "hunter2", "ca.crt": "certificate", "namespace": "alloys\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(client, "SERVICE_ACCOUNT", tmp_path / "absent")
    with pytest.raises(ConfigError, match="mount its token"):
        connect(KubernetesConfig())
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(client, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    reached = connect(KubernetesConfig())
    assert (reached.client.configuration.host, reached.namespace) == (
        "https://10.0.0.1:443",
        "alloys",
    )


def test_no_proxy_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kubeconfig(tmp_path / ".kube/config", {"one": None}, "one")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "one.example")
    configuration = connect(KubernetesConfig()).client.configuration
    assert (configuration.proxy, configuration.no_proxy) == (
        "http://proxy.example:3128",
        "one.example",
    )
