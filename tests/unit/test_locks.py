"""The lock files pin every package with hashes and agree; a bill of materials lists them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [
    path
    for path in sorted((ROOT / "requirements").glob("*.txt"))
    if path.name != "cpu-overrides.txt"  # an input of the compilation
]
_PINNED = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+) \\$")


def lock(name: str) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    package = ""
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("    --hash=sha256:"):
            version, hashes = found[package]
            found[package] = version, hashes + 1
        else:
            pinned = _PINNED.match(line)
            assert pinned, f"{name}: {line}"
            package = pinned[1].lower()
            found[package] = pinned[2], 0
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_has_hashes(path: Path) -> None:
    """Otherwise pip can't install the file with --require-hashes."""
    packages = lock(path.name)
    assert packages
    assert [name for name, (_, hashes) in packages.items() if hashes == 0] == []


@pytest.mark.parametrize(
    ("name", "other"), [("core", "trainer-cpu"), ("dev", "trainer-cpu"), ("build", "dev")]
)
def test_locks_of_one_environment_agree(name: str, other: str) -> None:
    ours, theirs = lock(f"{name}.txt"), lock(f"{other}.txt")
    shared = ours.keys() & theirs
    assert shared
    assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}


def test_declared_dependencies_are_locked() -> None:
    """Those of mlip-job in the lock without a trainer; the backend in that of the build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {re.split(r"[<>=~]", one)[0].lower() for one in project["project"]["dependencies"]}
    assert declared <= set(lock("core.txt"))
    backend = {re.split(r"[<>=~]", one)[0].lower() for one in project["build-system"]["requires"]}
    assert backend <= set(lock("build.txt"))


def test_bill_of_materials_lists_every_package(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "cyclonedx-py"
    output = tmp_path / "trainer-cpu.cdx.json"
    subprocess.run(
        [
            *(program, "requirements", "--pyproject", ROOT / "pyproject.toml"),
            *("--mc-type", "application", "--output-file", output),
            ROOT / "requirements" / "trainer-cpu.txt",
        ],
        check=True,
        capture_output=True,
    )
    components = json.loads(output.read_text(encoding="utf-8"))["components"]
    listed = {
        one["name"].lower(): (
            one["version"],
            sum(len(reference.get("hashes", ())) for reference in one["externalReferences"]),
        )
        for one in components
    }
    assert listed == lock("trainer-cpu.txt")
