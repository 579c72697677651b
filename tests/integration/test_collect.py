"""Rows judged many at once are judged as `examine` judges them one by one."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from mlip_job.config import DatabaseConfig, DatasetConfig
from mlip_job.dataset.collect import Collected, collect_rows
from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.entries import Spool
from mlip_job.dataset.rows import StructureRow
from mlip_job.dataset.twins import fingerprint
from mlip_job.dataset.validation import Rejection, RowRules, examine
from tests.reference import read_rows
from tests.support import labelled, rattled, with_emt, write_database

if TYPE_CHECKING:
    from pathlib import Path


def mixed(rng: np.random.Generator) -> list[Atoms]:
    """Return structures that are fit, and others that have every fault there is."""
    strong = rattled(1, seed=7)[0]
    strong.calc.results["forces"][:] = 40.0
    close = bulk("Cu", cubic=True)
    close.positions[1] = close.positions[0] + 1e-4
    near = with_emt(Atoms("Cu2", [(0, 0, 0), (0, 0, 1.5)]))
    flat = Atoms("Cu2", [(0, 0, 0), (2, 0, 0)], cell=[4, 4, 0], pbc=True)
    zeros = np.zeros((2, 3))
    structures = [
        *rattled(40, symbols=("Cu", "Ni")),
        *(with_emt(Atoms("CO", [(0, 0, 0), (0, 0, d)])) for d in (1.1, 1.15, 1.2)),
        *(with_emt(bulk("Cu", a=a)) for a in (3.5, 3.6, 3.7)),
        strong,
        near,
        labelled(close, energy=-1.0, forces=np.zeros((4, 3))),
        labelled(flat, energy=-1.0, forces=zeros),
        labelled(Atoms("Cu2", [(0, 0, 0), (9, 0, 0)]), energy=-1.0, forces=zeros),
        labelled(Atoms("XCu", [(0, 0, 0), (2, 0, 0)]), energy=-1.0, forces=zeros),
        labelled(Atoms("Cu2", np.full((2, 3), np.inf)), energy=-1.0, forces=zeros),
        labelled(Atoms("Cu"), energy=-0.1),
        labelled(Atoms("Cu", cell=[20] * 3, pbc=True), energy=-0.1, forces=np.zeros((1, 3))),
        labelled(bulk("Cu"), energy=-1.0),
        labelled(rattled(1)[0], forces=np.zeros((4, 3))),
        labelled(rattled(1)[0], energy=np.inf, forces=np.zeros((4, 3))),
        labelled(rattled(1)[0], energy=-1.0, forces=np.full((4, 3), np.inf)),
        labelled(rattled(1)[0], energy=-1.0, forces=np.zeros((4, 2))),
        labelled(rattled(1)[0], free_energy=-1.0, forces=np.zeros((4, 3))),
        with_emt(fcc111("Cu", (1, 1, 3), vacuum=8)),
        Atoms(),
    ]
    return [structures[index] for index in rng.permutation(len(structures))]


def take(config: DatabaseConfig, dataset: DatasetConfig, path: Path) -> tuple[Collected, list[int]]:
    """Take a database in, and return also the ids of the structures that were spooled."""
    with StructureDatabase(config) as source, Spool(path) as spool:
        collected = collect_rows(
            source,
            source.select(),
            dataset,
            select=config.select,
            cutoff=5.0,
            spool=spool,
            progress=lambda _: None,
        )
        pages = list(spool.read())
        return collected, [id_ for structures, _ in pages for id_ in structures.ids.tolist()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_force": 30.0}, {"energy": "energy"}],
    ids=["defaults", "limited force", "energy"],
)
@pytest.mark.parametrize("page", [4, 500])
def test_each_row_is_judged_as_if_it_were_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], page: int
) -> None:
    """Accepted, rejected with the reason, or a reference; energies, extremes, fingerprints."""
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", page)
    dataset = DatasetConfig(**settings)
    config = DatabaseConfig(url=str(tmp_path / "structures.db"))
    write_database(tmp_path / "structures.db", mixed(np.random.default_rng(page)))
    collected, spooled = take(config, dataset, tmp_path / "spool")
    rules = RowRules(
        cutoff=5.0,
        prefer_free_energy=dataset.energy == "free_energy",
        max_force=dataset.max_force,
    )
    rejected: defaultdict[Rejection, list[int]] = defaultdict(list)
    references, accepted = [], []
    for row in read_rows(config):
        if not isinstance(row, StructureRow):
            rejected[Rejection.UNREADABLE].append(row.id)
            continue
        finding = examine(row, rules)
        if finding.rejection is not None:
            rejected[finding.rejection].append(row.id)
        elif finding.is_reference:
            references.append(row.id)
        else:
            accepted.append((row, finding))
    assert collected.rejected == rejected
    assert len(rejected) >= 10
    assert [entry.row_id for entry in collected.references] == references
    assert len(references) == 2
    assert spooled == collected.entries.row_ids.tolist() == [row.id for row, _ in accepted]
    assert collected.entries.energies.tolist() == [finding.energy for _, finding in accepted]
    assert collected.free_energies == sum(finding.is_free_energy for _, finding in accepted)
    vanishing = [np.abs(row.forces) <= 1e-3 for row, _ in accepted if row.forces is not None]
    assert collected.force_components == sum(int((~few).sum()) for few in vanishing)
    assert collected.max_force == max(finding.max_force for _, finding in accepted)
    assert collected.min_distance == min(finding.min_distance for _, finding in accepted)
    fingerprints = [fingerprint(row) for row, _ in accepted]
    assert [entry.hex() for entry in collected.entries.fingerprints.tolist()] == fingerprints
    for code, (row, _) in zip(collected.entries.composition_codes.tolist(), accepted, strict=True):
        numbers, counts = np.unique(row.numbers, return_counts=True)
        expected = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
        assert collected.entries.compositions[code] == expected


def test_few_rows_need_a_neighbour_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that may hold the smallest distance so far: it is recorded."""
    calls: list[int] = []

    def counting(row: StructureRow, rules: RowRules) -> Any:
        calls.append(row.id)
        return examine(row, rules)

    monkeypatch.setattr("mlip_job.dataset.collect.examine", counting)
    write_database(tmp_path / "structures.db", rattled(300, symbols=("Cu", "Ni")))
    config = DatabaseConfig(url=str(tmp_path / "structures.db"))
    collected, _ = take(config, DatasetConfig(), tmp_path / "spool")
    assert len(collected.entries) == 300
    assert len(calls) < 10
