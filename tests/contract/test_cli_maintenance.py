"""Commands for maintenance of a store, as used by people and scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import StorageConfig
from mlip_job.registry import Registry
from mlip_job.store.base import ObjectStore
from mlip_job.training.summary import LossShares
from tests.cli import Ended
from tests.manifests import make_manifest, publish, put_dataset


@pytest.fixture
def registry(store: ObjectStore, tmp_path: Path) -> Registry:
    registry = Registry(store, "cu-ni")
    publish(registry, tmp_path, 1)
    store.put(registry.keys.attempt(2, "killed", "train.log"), b"log")
    return registry


@pytest.fixture
def run(storage: StorageConfig, tmp_path: Path, cli: Any) -> Callable[..., Ended]:
    path = tmp_path / "mlip-job.yaml"
    values = {"family": "cu-ni", "storage": storage.model_dump()}
    path.write_text(json.dumps(values))
    return lambda *arguments: cli("-c", path, *arguments)


def test_show_prints_the_terms_of_the_final_loss(
    store: ObjectStore, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    """With the warnings of the report; a generation of an earlier version has neither."""
    registry = Registry(store, "cu-ni")
    dataset = put_dataset(registry, tmp_path / "dataset", "one")
    for number, changes in (
        (1, {}),
        (
            2,
            {
                "loss_shares": LossShares(
                    energy=0.01, forces=0.49, regularisers={"l2_coeffs": 0.5}
                ),
                "warnings": ("regularisation makes up half",),
            },
        ),
    ):
        manifest = make_manifest(number, attempt="a", dataset=dataset)
        headline = manifest.headline.model_copy(update=changes)
        described = manifest.model_copy(update={"headline": headline})
        registry.publish(number, "a", {}, lambda _, it=described: it)
    shown = run("show", "-g", "2").out
    assert "final loss     energy 1 %, forces 49 %, l2_coeffs 50 %\n" in shown
    assert "warning        regularisation makes up half\n" in shown
    earlier = run("show", "-g", "1").out
    assert "final loss" not in earlier
    assert "warning" not in earlier


def test_repair_prints_its_actions(registry: Registry, run: Callable[..., Ended]) -> None:
    """One line for each repair, then a list of what gc would remove."""
    registry.store.delete(registry.keys.potential(1, "yace"))
    ended = run("repair")
    assert ended.code == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert lines[0] == "wrote cu-ni/potentials/gen_01.yace"
    assert "named by no manifest (mlip-job gc removes them):" in lines
    assert "cu-ni/generations/gen_02/attempts/killed/" in ended.out
    assert registry.store.get(registry.keys.potential(1, "yace")) == b"potential.yace of a1\n"
    again = run("repair")
    assert again.out.splitlines()[0] == "nothing had to be repaired"


def test_repair_in_json(registry: Registry, run: Callable[..., Ended]) -> None:
    registry.store.delete(registry.keys.latest)
    assert json.loads(run("--json", "repair").out) == {
        "mended": ["wrote cu-ni/latest.json"],
        "damaged": [],
        "orphans": [
            {
                "prefix": "cu-ni/generations/gen_02/attempts/killed/",
                "what": "an attempt at gen_02, which is not published",
                "bytes": 3,
            }
        ],
    }


def test_damage_ends_with_its_own_exit_code(registry: Registry, run: Callable[..., Ended]) -> None:
    """Everything repairable is repaired; remaining damage is named."""
    original = registry.get(1).artefacts["potential.yace"].key
    registry.store.put(original, b"damaged")
    registry.store.delete(registry.keys.potential(1, "yace"))
    registry.store.delete(registry.keys.latest)
    ended = run("repair")
    assert ended.code == 65
    assert ended.out.splitlines()[0] == "wrote cu-ni/latest.json"
    assert f"  {original} has the sha256" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("options", "code", "last"),
    [
        (["--keep", "0s"], 0, "nothing was removed: add --delete"),
        (["--delete"], 0, "nothing to remove that is older than 7d"),
        (["--keep", "week", "--delete"], 64, ""),
    ],
)
def test_gc_removes_nothing_young_or_unasked(
    registry: Registry, run: Callable[..., Ended], options: list[str], code: int, last: str
) -> None:
    ended = run("gc", *options)
    assert (ended.code, "".join(ended.out.splitlines()[-1:])) == (code, last)
    assert ("generations/gen_02/attempts/killed/" in ended.out) == ("add --delete" in last)
    assert ("'week' is no age" in ended.err) == (code == 64)
    assert registry.store.head(registry.keys.attempt(2, "killed", "train.log")) is not None


def test_gc_removes_on_demand(registry: Registry, run: Callable[..., Ended]) -> None:
    document = json.loads(run("--json", "gc", "--keep", "0s", "--delete").out)
    assert document == {
        "deleted": True,
        "orphans": [
            {
                "prefix": "cu-ni/generations/gen_02/attempts/killed/",
                "what": "an attempt at gen_02, which is not published",
                "bytes": 3,
            }
        ],
    }
    assert registry.store.head(registry.keys.attempt(2, "killed", "train.log")) is None
    assert registry.verify(registry.get(1)) == []
    assert json.loads(run("--json", "gc", "--keep", "0s").out)["orphans"] == []


@pytest.mark.parametrize("verb", ["pull", "verify", "show", "report", "repair"])
def test_an_unsafe_name_ends_with_65(
    registry: Registry, run: Callable[..., Ended], tmp_path: Path, verb: str
) -> None:
    """One line names object and name; nothing is written or lost."""
    key = registry.keys.manifest(1)
    data = json.loads(registry.store.get(key))
    data["artefacts"]["../../escaped"] = data["artefacts"]["potential.yace"] | {"sha256": "0" * 64}
    registry.store.put(key, json.dumps(data).encode())
    mine = tmp_path / "escaped"
    mine.write_text("mine")
    options = ["-o", tmp_path / "a" / "b"] if verb == "pull" else []
    ended = run(verb, *([] if verb == "repair" else ["-g", 1]), *options)
    said = f"{key} is no manifest that this version reads: artefacts: '../../escaped' is no"
    assert ended.code == 65
    assert ended.err.startswith(f"error: {said} relative path")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("trainer", "style", "suffix"),
    [("pacemaker", "pace", "yace"), ("grace-fs", "grace/fs", "yaml")],
)
def test_pull_prints_the_lines_for_lammps(
    registry: Registry,
    run: Callable[..., Ended],
    tmp_path: Path,
    trainer: str,
    style: str,
    suffix: str,
) -> None:
    """On stderr: stdout has the files alone. A path with a space is quoted."""
    key = registry.keys.manifest(1)
    data = json.loads(registry.store.get(key)) | {"trainer": trainer}
    registry.store.put(key, json.dumps(data).encode())
    target = tmp_path / "my potentials"
    ended = run("pull", "-g", 1, "-o", target)
    elements = " ".join(data["elements"])
    assert ended.err.splitlines()[-2:] == [
        f"  pair_style {style}",
        f'  pair_coeff * * "{target}/gen_01.{suffix}" {elements}',
    ]
    assert "pair_" not in ended.out
    lines = json.loads(run("--json", "pull", "-g", 1, "-o", tmp_path / "again").out)["lammps"]
    assert lines[0] == f"pair_style {style}"


def test_a_list_has_the_newest_hundred(store: ObjectStore, run: Callable[..., Ended]) -> None:
    """Each costs a request, which is slow for many; JSON has all."""
    registry = Registry(store, "cu-ni")
    for number in range(1, 102):
        store.put(registry.keys.manifest(number), make_manifest(number).to_json())
    short, long = run("list"), run("list", "--all")
    assert "gen_01 " not in short.out
    assert "gen_02 " in short.out
    assert short.out.endswith("Only the newest 100 are listed; --all lists all\n")
    assert "gen_01 " in long.out
    assert "--all" not in long.out
    assert len(json.loads(run("--json", "list").out)["generations"]) == 101
