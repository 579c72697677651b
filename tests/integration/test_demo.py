"""The demo works as described in the README, with the real pacemaker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ase.db import connect

from tests.cli import Cli

FIT = ("--set", "training.max_iter=3")


@pytest.mark.pacemaker
def test_demo_publishes_two_generations(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are intact, the second starts from the first, and repeating changes nothing."""
    from ase.build import bulk
    from pyace import PyACECalculator

    demo = tmp_path / "a demo"
    ended = cli("demo", "-o", demo, *FIT)
    assert ended.code == 0, ended.err
    assert "gen_01 " in ended.out
    assert "gen_02 *" in ended.out
    assert f"cd '{demo}'" in ended.out
    assert "[" in ended.err
    assert "building graph" in ended.err

    monkeypatch.chdir(demo)
    for generation, asked in ((1, ("--set", "training.max_iter=0")), (2, FIT)):
        assert cli("verify", "-g", generation).out == f"gen_0{generation} is intact\n"
        again = cli("run", "-g", generation, *asked)
        assert again.code == 0
        assert "nothing to do" in again.err
    assert cli("run", "-g", 2, *FIT, "--set", "training.cutoff=6.0").code == 73

    (input_yaml,) = Path("store").glob("demo-cu/generations/gen_02/attempts/*/input.yaml")
    assert yaml.safe_load(input_yaml.read_text())["potential"] == "parent_potential.yaml"
    manifest = json.loads(cli("show", "-g", "latest", "--json").out)
    assert manifest["parent"]["generation"] == 1
    assert manifest["reference_energies"]["Cu"] == pytest.approx(3.51)
    assert manifest["headline"]["test"]["rmse_force_mev_per_angstrom"] < 1000

    for ended in (cli("report", "-g", 2), cli("compare", 1, 2)):
        assert ended.code == 0
        page = Path(ended.out.splitlines()[-1]).read_text()
        assert "gen_02" in page
        assert page.count("<svg ") >= 2

    assert cli("pull", "-g", 2).code == 0
    atoms = bulk("Cu")
    atoms.calc = PyACECalculator("gen_02/gen_02.yace")
    assert atoms.get_potential_energy() < 0
    assert cli("demo", "-o", demo, *FIT).code == 0


def test_demo_database_has_rows_of_all_kinds(tmp_path: Path) -> None:
    from mlip_job.demo import write_demo_database

    write_demo_database(tmp_path / "s.db", ["Cu", "Au"])
    database = connect(tmp_path / "s.db")
    first = list(database.select("status=completed,generation=1"))
    assert {row.config_type for row in first} == {
        "isolated_atom",
        "strained",
        "rattled",
        "vacancy",
        "surface",
        "bulk",
    }
    assert {symbol for row in first for symbol in row.symbols} == {"Cu", "Au"}
    assert any(row.constraints for row in first)
    assert sum("forces" not in row for row in first) == 1
    assert database.count("status=failed") == 3
    assert database.count("generation=2") > 20


@pytest.mark.parametrize(("elements", "named"), [("Cu,Fe", "Fe"), ("H2O", "H2O"), ("", "")])
def test_demo_rejects_other_elements(cli: Cli, tmp_path: Path, elements: str, named: str) -> None:
    ended = cli("demo", "-o", tmp_path / "demo", "--elements", elements)
    assert ended.code == 64
    assert f"EMT has no parameters for {named}" in ended.err
    assert "Al, Cu, Ag, Au, Ni, Pd, Pt" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_existing_files(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "structures.db").write_text("mine")
    assert cli("demo", "-o", tmp_path).code == 64
    assert (tmp_path / "structures.db").read_text() == "mine"
