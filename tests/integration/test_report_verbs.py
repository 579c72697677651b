"""Commands that show and compare reports, on generations in a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlip_job.registry import Artefact, Manifest, Registry
from mlip_job.report.model import TrainingReport
from mlip_job.report.page import render_report
from mlip_job.store.directory import DirectoryStore
from tests.cli import Cli
from tests.evaluations import make_evaluation
from tests.reports import make_facts, make_report

FAMILY = "cu-au"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlip-job.yaml").write_text(f"family: {FAMILY}\n")
    return Registry(DirectoryStore(tmp_path / "store"), FAMILY)


def _publish(
    registry: Registry, tmp_path: Path, report: TrainingReport, *, page: str | None = None
) -> Manifest:
    """Publish a report like a run, without a potential; optionally with its page."""
    facts = make_facts(report)
    directory = tmp_path / f"work-{report.generation}"
    directory.mkdir()
    (directory / "dataset.json").write_text(facts.dataset.to_json())
    sha256 = registry.publish_dataset(directory, facts.dataset)
    files = {"report.json": directory / "report.json"}
    files["report.json"].write_bytes(report.to_json())
    if page is not None:
        files["report.html"] = directory / "report.html"
        files["report.html"].write_text(page)

    def describe(artefacts: dict[str, Artefact]) -> Manifest:
        dataset = facts.manifest.dataset.model_copy(update={"record_sha256": sha256})
        changes = {"artefacts": artefacts, "dataset": dataset, "headline": report.headline()}
        return facts.manifest.model_copy(update=changes)

    return registry.publish(report.generation, "a1", files, describe)


def test_a_published_page_is_fetched_unchanged(
    cli: Cli, registry: Registry, tmp_path: Path
) -> None:
    """Under its default name, or the given one; a second call replaces it."""
    _publish(registry, tmp_path, make_report(2), page="<p>as published</p>")
    ended = cli("report", "-g", 2)
    assert (ended.code, ended.out) == (0, "cu-au-gen_02.html\n")
    assert (tmp_path / "cu-au-gen_02.html").read_text() == "<p>as published</p>"
    document = json.loads(cli("report", "-g", "latest", "-o", "r.html", "--json").out)
    assert document == {"generation": 2, "file": "r.html"}
    assert cli("report", "-g", 2, "-o", "r.html").code == 0
    assert (tmp_path / "r.html").read_text() == "<p>as published</p>"


def test_a_missing_page_is_generated(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """From published data, with the parent's figures if the parent can be read."""
    old = make_report(1, evaluation=None)
    report = make_report(2, evaluation=None)
    parent = _publish(registry, tmp_path, old)
    manifest = _publish(registry, tmp_path, report)
    assert cli("report", "-g", 2).code == 0
    page = (tmp_path / "cu-au-gen_02.html").read_text()
    assert page == render_report(replace(make_facts(report), manifest=manifest), old)
    assert "on its own test set" in page

    registry.store.put(parent.artefacts["report.json"].key, b"tampered")
    assert cli("report", "-g", 2).code == 0
    assert "on its own test set" not in (tmp_path / "cu-au-gen_02.html").read_text()
    ended = cli("report", "-g", 1)
    assert ended.code == 65
    assert "report.json has the sha256" in ended.err


def test_a_report_of_another_version_is_named(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    report = make_report(1)
    facts = make_facts(report)
    (tmp_path / "dataset.json").write_text(facts.dataset.to_json())
    sha256 = registry.publish_dataset(tmp_path, facts.dataset)
    (tmp_path / "report.json").write_text('{"schema_version": 3}')

    def describe(artefacts: dict[str, Artefact]) -> Manifest:
        dataset = facts.manifest.dataset.model_copy(update={"record_sha256": sha256})
        return facts.manifest.model_copy(update={"artefacts": artefacts, "dataset": dataset})

    registry.publish(1, "a1", {"report.json": tmp_path / "report.json"}, describe)
    ended = cli("report", "-g", 1)
    assert ended.code == 65
    assert "a1/report.json: a report can't be read" in ended.err
    assert "schema version 3, but this version of mlip-job reads 1 and 2" in ended.err


def test_pages_are_opened_in_the_browser(registry: Registry, tmp_path: Path) -> None:
    _publish(registry, tmp_path, make_report(1), page="<p>")
    programs, opened = tmp_path / "bin", tmp_path / "opened"
    programs.mkdir()
    os.mkfifo(opened)
    (programs / "xdg-open").write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    (programs / "xdg-open").chmod(0o755)
    code, _ = _in_own_process(tmp_path, f"{programs}:{os.environ['PATH']}")
    assert code == 0
    assert opened.read_text() == f"{tmp_path / 'cu-au-gen_01.html'}\n"
    code, messages = _in_own_process(tmp_path, str(tmp_path))
    assert code == 0
    assert messages == "no browser could be started; open cu-au-gen_01.html in one\n"


def _in_own_process(tmp_path: Path, search: str) -> tuple[int, str]:
    program = "from mlip_job.cli.main import main; main()"
    errors = tmp_path / "errors"
    with errors.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-c", program, "report", "-g", "1", "--open"],
            check=False,
            env=os.environ | {"PATH": search},
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    return done.returncode, errors.read_text()


def test_a_place_that_cannot_be_written_is_a_usage_error(
    cli: Cli, registry: Registry, tmp_path: Path
) -> None:
    _publish(registry, tmp_path, make_report(1), page="<p>")
    ended = cli("report", "-g", 1, "-o", "missing/page.html")
    assert ended.code == 64
    assert "can't write missing/page.html" in ended.err
    assert "choose another -o FILE" in ended.err


def test_generations_are_compared(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """A table, a page, and JSON; with JSON a page only if one is named."""
    for number in (1, 2, 3):
        _publish(registry, tmp_path, make_report(number))
    ended = cli("compare", 1, 3, "latest")
    assert ended.code == 64
    assert "a generation is named twice" in ended.err
    ended = cli("compare", 1, 2, "latest")
    assert ended.code == 0
    assert "gen_01 → gen_02" in ended.out
    assert "RMSE F test (meV/Å)" in ended.out
    assert ended.out.endswith("\ncu-au-gen_01-gen_02-gen_03.html\n")
    page = tmp_path / "cu-au-gen_01-gen_02-gen_03.html"
    assert page.read_text().count("<figure>") > 8
    page.unlink()
    document = json.loads(cli("compare", 2, 3, "--json").out)
    assert [found["generation"] for found in document["generations"]] == [2, 3]
    assert document["file"] is None
    assert list(tmp_path.glob("*.html")) == []
    document = json.loads(cli("compare", 3, 1, "--json", "-o", "c.html").out)
    assert document["file"] == "c.html"
    assert (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        ((1,), "1 given: compare takes from 2 to 6 generations"),
        ((1, 2, 3, 4, 5, 6, 7), "7 given"),
        ((1, 2), "gen_02 of cu-au is not published"),
        ((1, "x"), "generation 'x' is none of a whole number, latest"),
    ],
)
def test_impossible_comparisons_are_rejected(
    cli: Cli, registry: Registry, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    _publish(registry, tmp_path, make_report(1))
    ended = cli("compare", *arguments)
    assert ended.code == 64
    assert message in ended.err
    assert list(tmp_path.glob("*.html")) == []


def test_the_list_compares_on_common_structures_only(
    cli: Cli, registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2):
        _publish(registry, tmp_path, make_report(number, evaluation=make_evaluation(number)))
    _publish(registry, tmp_path, make_report(3, evaluation=None))
    lines = cli("list").out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("gen_")}
    assert rows["gen_01"].endswith("–")
    assert rows["gen_02"].endswith("↓ 49%, ↓ 49%")  # 6.8 to 3.45 meV/atom, 74 to 38 meV/Å
    assert rows["gen_03"].endswith("–")
    assert max(map(len, lines)) <= 80
