"""Validation of rows gives the same result in pages and one by one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from mlip_job.config import DatabaseConfig, DatasetConfig
from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.rows import Spool
from mlip_job.dataset.twins import fingerprints
from mlip_job.dataset.validation import Collected, Rejection, Validator, collect_rows
from tests.reference import read_rows
from tests.support import labelled, rattled, with_emt, write_database


def mixed(rng: np.random.Generator) -> list[Atoms]:
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
        pages = list(spool)
        return collected, [id_ for structures, _ in pages for id_ in structures.ids.tolist()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_force": 30.0}, {"energy": "energy"}],
    ids=["defaults", "limited force", "energy"],
)
@pytest.mark.parametrize("page", [4, 500])
def test_rows_are_validated_independently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], page: int
) -> None:
    """Accepted, rejected with the reason, or a reference; energies, extremes, fingerprints."""
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", page)
    dataset = DatasetConfig(**settings)
    config = DatabaseConfig(url=str(tmp_path / "structures.db"))
    write_database(tmp_path / "structures.db", mixed(np.random.default_rng(page)))
    collected, spooled = take(config, dataset, tmp_path / "spool")
    rejected: defaultdict[Rejection, list[int]] = defaultdict(list)
    references, accepted, distances, free_energies = [], [], [], 0
    for row in read_rows(config):
        alone = Validator(
            5.0, prefer_free_energy=dataset.energy == "free_energy", max_force=dataset.max_force
        )
        found = alone.examine([row])
        for id_, reason in found.rejected.items():
            rejected[reason].append(id_)
        references += [reference.id for reference in found.references]
        if found.accepted:
            accepted.append(found.structures)
            distances.append(alone.min_distance)
            free = dataset.energy == "free_energy"
            free_energies += int(free and found.accepted[0].free_energy is not None)
    assert collected.rejected == rejected
    assert len(rejected) >= 10
    assert [atom.row_id for atom in collected.references] == references
    assert len(references) == 2
    entries = collected.entries
    assert spooled == entries.row_ids.tolist() == [int(one.ids[0]) for one in accepted]
    assert entries.energies.tolist() == [float(one.energies[0]) for one in accepted]
    assert collected.free_energies == free_energies
    components = sum(int((np.abs(one.forces) > 1e-3).sum()) for one in accepted)
    assert collected.force_components == components
    largest = max(np.linalg.norm(one.forces, axis=1).max() for one in accepted)
    assert collected.max_force == pytest.approx(largest, rel=1e-14)
    assert collected.min_distance == pytest.approx(min(distances), abs=1e-5)
    assert entries.fingerprints.tobytes() == b"".join(map(fingerprints, accepted))
    for code, one in zip(entries.composition_codes.tolist(), accepted, strict=True):
        numbers, counts = np.unique(one.numbers, return_counts=True)
        expected = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
        assert entries.compositions[code] == expected
