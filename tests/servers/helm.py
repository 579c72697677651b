"""Run the real helm with our chart."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.kubernetes import find_programs

CHART = Path(__file__).parents[2] / "charts" / "mlip-job"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))


@dataclass(frozen=True)
class Helm:
    """The program, with settings and caches in a private home."""

    program: Path
    home: Path

    def run(
        self, *arguments: object, values: Mapping[str, Any] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        options = ["--values", "-"] if values is not None else []
        return subprocess.run(
            [self.program, *map(str, arguments), *options],
            input=_as_yaml(values) if values is not None else "",
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def template(
        self, values: Mapping[str, Any] | Path, *, minor: str = "1.37", release: str = "release"
    ) -> list[dict[str, Any]]:
        command = ["template", release, CHART, "--kube-version", minor, "--namespace", "alloys"]
        if isinstance(values, Path):
            done = self.run(*command, "--values", values)
        else:
            done = self.run(*command, values=values)
        assert not done.returncode, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    programs = find_programs()
    if programs is None or not (programs / "helm").exists():
        pytest.skip("helm is not there: make servers builds it, with Go")
    return Helm(programs / "helm", tmp_path_factory.mktemp("helm"))


def one_of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (one for one in documents if one["kind"] == kind)
    return found


def _as_yaml(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False)
    return re.sub(
        "[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", text
    )
