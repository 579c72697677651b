"""Every command in the documentation is run here, or a comment above it says why not.

A comment before a block of ``sh`` or ``python`` marks it: ``<!-- run -->``, ``<!-- exits with N
-->`` or ``<!-- not run: REASON -->``. At the top of a page ``<!-- blocks of this page are not run:
REASON -->`` marks the others.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.db import connect
from ase.io import read, write

from mlip_job.config import JobConfig
from mlip_job.config.load import validate_config

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(ROOT / folder / "README.md" for folder in ("charts/mlip-job", "requirements")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
RUN_IN_THE_DEMO = (
    "tutorials/laptop",
    "tutorials/active-learning",
    "configuration",
    "energies",
    "evaluation",
    "report",
    "store",
)

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>(?!blocks of)[^\n]+) -->\n\n?)?"
    r" *```(?P<language>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_PAGE_MARK = re.compile(r"^<!-- blocks of this page are not run: .+ -->$", re.MULTILINE)
_MARK = re.compile(r"run|exits with (\d+)|not run: .+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    mark: str | None

    @property
    def exit_code(self) -> int | None:
        if self.mark == "run":
            return 0
        found = _MARK.fullmatch(self.mark or "")
        return int(found[1]) if found and found[1] else None


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found["language"] in languages:
            yield Block(found["language"], found["text"], found["mark"])


def run_blocks(page: Path, cwd: Path, **variables: str) -> int:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    count = 0
    for block in blocks(page, "sh", "python"):
        if block.exit_code is None:
            continue
        shell = ("bash", "-euc") if block.language == "sh" else (sys.executable, "-c")
        done = subprocess.run(
            [*shell, block.text],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == block.exit_code, f"{block.text}\n{done.stdout}\n{done.stderr}"
        count += 1
    return count


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation") / "mlip-demo"
    program = Path(sys.executable).parent / "mlip-job"
    subprocess.run(
        [program, "-q", "demo", "--set", "training.max_iter=0", "-o", folder],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_marked(page: Path) -> None:
    default = "not run: page" if _PAGE_MARK.search(page.read_text(encoding="utf-8")) else ""
    unmarked = [
        block.text
        for block in blocks(page, "sh", "python")
        if not _MARK.fullmatch(block.mark or default)
    ]
    assert unmarked == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_a_known_language(page: Path) -> None:
    """Blocks of commands in another language, or without one, would not be checked."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(fences[::2]) <= {"sh", "python", "yaml", "text"}


@pytest.mark.parametrize("name", RUN_IN_THE_DEMO)
def test_commands_of_a_page_run_in_the_demo(name: str, demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "mlip-demo")
    page = ROOT / "docs" / f"{name}.md"
    assert run_blocks(page, folder, MLIP_JOB__TRAINING__MAX_ITER="0") > 0


def test_commands_of_the_readme_run_on_a_database(demo: Path, tmp_path: Path) -> None:
    shutil.copy(demo / "structures.db", tmp_path)
    assert run_blocks(ROOT / "README.md", tmp_path) > 0


def test_commands_of_a_page_run_in_the_clone(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "mlip-demo")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert run_blocks(ROOT / "docs" / "command-line.md", tmp_path) > 0
    crate = json.loads((tmp_path / "cu-gen-02" / "ro-crate-metadata.json").read_text())
    assert crate["@graph"]


def test_scripts_that_label_rows(demo: Path, tmp_path: Path) -> None:
    """On a database and a file with labels under the names of the page."""
    train = next(demo.glob("store/*/datasets/*/train.xyz"))
    shutil.copy(train, tmp_path)
    frames = read(train, ":3")
    with connect(tmp_path / "structures.db") as database:
        for atoms in frames:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc = None
            database.write(
                atoms, key_value_pairs={"REF_energy": energy}, data={"REF_forces": forces}
            )
            atoms.info = {"REF_energy": energy, "config_type": "bulk"}
            atoms.arrays["REF_forces"] = forces
    write(tmp_path / "structures.xyz", frames, format="extxyz")
    assert run_blocks(ROOT / "docs" / "dataset.md", tmp_path) == 3
    rows = list(connect(tmp_path / "labelled.db").select())
    assert len(rows) == 6
    for row, again in zip(rows[:3], rows[3:], strict=True):
        assert row.energy == again.energy
        np.testing.assert_allclose(row.forces, again.forces, atol=1e-7)


def test_no_other_page_has_blocks_that_seem_to_run() -> None:
    names = (*RUN_IN_THE_DEMO, "command-line", "dataset")
    run = {ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in names)}
    marked = {p for p in PAGES if any(b.exit_code is not None for b in blocks(p, "sh", "python"))}
    assert marked == run


def test_documented_settings_are_valid() -> None:
    """Blocks of YAML with keys of a configuration, completed by the required ones."""
    checked = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            document = yaml.safe_load(block.text.split("\n---\n")[0])
            if not isinstance(document, dict) or not set(document) <= set(JobConfig.model_fields):
                continue
            document.setdefault("family", "documented")
            validate_config(_with_image(document), source=str(page))
            checked += 1
    assert checked >= 10


def test_messages_in_troubleshooting_exist() -> None:
    nodes = [
        node
        for path in (ROOT / "job" / "mlip_job").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"(?<!\*)\*([^*\n|]+)\*(?!\*)", page)
    assert len(quoted) > 8
    assert [message for message in quoted if not any(message in text for text in texts)] == []


def _with_image(document: dict[str, Any]) -> dict[str, Any]:
    kubernetes = document.get("submit", {}).get("kubernetes")
    if kubernetes is not None:
        kubernetes.setdefault("image", "registry.example/mlip-job:0.1.0")
    return document
