"""From a store's URL to an ASE calculator with DFT's energies, in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError

from mlip_job import load_potential
from mlip_job.config import StorageConfig
from mlip_job.errors import ConfigError, DataError, IntegrityError
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.open import open_store
from tests.generations import Family
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.pacemaker


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "mlip-job"


def test_energies_are_those_of_dft(family: Family) -> None:
    """Potential plus reference energies of the atoms; forces and stress are unchanged."""
    from pyace import PyACECalculator

    calculator = load_potential(family.store, generation=1)
    plain = PyACECalculator(str(family.artefact("potential.yace")))
    reference = family.registry.get(1).reference_energies["Cu"]
    assert abs(reference) > 0.01
    for train in ase.io.read(next(family.store.glob("cu/datasets/*/train.xyz")), ":"):
        ours, theirs = train.copy(), train.copy()
        ours.calc, theirs.calc = calculator, plain
        expected = theirs.get_potential_energy() + len(train) * reference
        assert ours.get_potential_energy() == pytest.approx(expected, abs=1e-9)
        assert ours.get_potential_energy(force_consistent=True) == ours.get_potential_energy()
        assert ours.get_potential_energies().sum() == pytest.approx(expected, abs=1e-9)
        np.testing.assert_array_equal(ours.get_forces(), theirs.get_forces())
        np.testing.assert_array_equal(ours.get_stress(), theirs.get_stress())
        # Three iterations make no good potential, but its energies are near DFT's, not off by the
        # reference energies.
        assert ours.get_potential_energy() == pytest.approx(train.get_potential_energy(), abs=4)


def test_extrapolation_grades_on_request(family: Family) -> None:
    """Of each atom; interpolation near the training data, extrapolation far from it."""
    near = ase.io.read(next(family.store.glob("cu/datasets/*/train.xyz")), 0)
    far = bulk("Cu", cubic=True, a=2.9)
    far.rattle(0.1, seed=1)
    graded = load_potential(family.store, extrapolation=True)
    plain = load_potential(family.store)
    grades = {}
    for name, atoms in (("near", near), ("far", far)):
        ours, other = atoms.copy(), atoms.copy()
        ours.calc, other.calc = graded, plain
        assert ours.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-8)
        assert "gamma" not in plain.results
        assert graded.results["gamma"].shape == (len(atoms),)
        grades[name] = graded.results["gamma"].max()
    assert grades["near"] < 2
    assert grades["far"] > 10


def test_cache_is_used_and_checked(family: Family, cache: Path) -> None:
    """A copy comes from the cache, a damaged one is fetched again, a damaged artefact rejected."""
    load_potential(family.store)
    (copy,) = cache.iterdir()
    whole = copy.read_bytes()
    artefact = family.artefact("potential.yace")
    artefact.rename(artefact.with_suffix(".away"))
    load_potential(family.store, generation=1)

    copy.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match="missing"):
        load_potential(family.store)
    artefact.with_suffix(".away").rename(artefact)
    load_potential(family.store)
    assert copy.read_bytes() == whole

    copy.unlink()
    artefact.write_bytes(whole[:-1] + b"?")
    with pytest.raises(IntegrityError, match="sha256"):
        load_potential(family.store)
    assert list(cache.iterdir()) == []


def test_cache_location_can_be_set(family: Family, tmp_path: Path) -> None:
    load_potential(family.store, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        load_potential(family.store, cache=tmp_path / "file" / "cache")


def test_the_url_may_name_the_family(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store, a family's folder, file:// and relative paths; ambiguous ones are errors."""
    for url in (family.store, family.store / "cu", f"{family.store}/cu/", f"file://{family.store}"):
        load_potential(url, generation=1)
    monkeypatch.chdir(family.store)
    load_potential("cu")
    load_potential(".", family="cu")

    other = family.store / "cu-ni" / "generations" / "gen_01"
    other.mkdir(parents=True)
    with pytest.raises(ConfigError, match="several families: cu, cu-ni"):
        load_potential(family.store)
    load_potential(family.store, family="cu")
    load_potential(family.store / "cu")
    with pytest.raises(ConfigError, match="no generation of cu-ni is published"):
        load_potential(family.store / "cu-ni")
    with pytest.raises(ConfigError, match="holds no generations of any family"):
        load_potential(tmp_path / "nothing")


def test_missing_objects_are_named(family: Family) -> None:
    with pytest.raises(ConfigError, match=r"gen_07 of cu is not published.*published: gen_01"):
        load_potential(family.store, generation=7)
    with pytest.raises(ConfigError, match=r"no generation of ag is published in "):
        load_potential(family.store, family="ag")
    with pytest.raises(ConfigError, match="holds a secret"):
        load_potential("s3://key:secret@bucket/prefix")
    calculator = load_potential(family.store)
    with pytest.raises(DataError, match="cu gen_01 knows Cu; the structure has Ni"):
        bulk_energy(calculator, bulk("Ni"))
    dimer = Atoms("Cu2", positions=[(0, 0, 0), (0, 0, 2.4)])
    boxed = dimer.copy()
    boxed.center(vacuum=10.0)
    boxed.pbc = True
    assert bulk_energy(calculator, dimer) == pytest.approx(bulk_energy(calculator, boxed), abs=1e-9)

    left = Atoms("Cu", cell=[[0, 3.6, 0], [3.6, 0, 0], [0, 0, 3.6]], pbc=True)
    left.calc = calculator
    right = Atoms("Cu", cell=3.6 * np.eye(3), pbc=True)
    right.calc = load_potential(family.store)
    assert left.get_potential_energy() == pytest.approx(right.get_potential_energy(), abs=1e-9)
    assert left.get_stress() == pytest.approx(right.get_stress(), abs=1e-9)

    path = family.store / family.registry.keys.manifest(1)
    path.write_text(path.read_text().replace('"potential.asi"', '"other.asi"'))
    with pytest.raises(ConfigError, match=r"published without potential\.asi"):
        load_potential(family.store, extrapolation=True)


@pytest.mark.parametrize(
    "pbc", [(True, True, False), (False, True, True), (True, False, False), (False, False, True)]
)
@pytest.mark.parametrize("stored", ["as it is", "without vectors", "tilted"])
def test_slabs_and_wires_are_those_of_their_periodicity(
    family: Family, pbc: tuple[bool, bool, bool], stored: str
) -> None:
    """Energies and forces are those in the middle of many copies, for any non-periodic vectors."""
    calculator = load_potential(family.store)
    atoms = bulk("Cu", cubic=True, a=3.62)
    atoms.rattle(0.05, seed=1)
    atoms.pbc = pbc
    copies = tuple(7 if periodic else 1 for periodic in pbc)
    cluster = atoms.repeat(copies)
    cluster.pbc = False
    idle = [k for k in range(3) if not pbc[k]]
    if stored == "without vectors":
        atoms.cell[idle] = 0
    elif stored == "tilted":
        atoms.cell[idle] = atoms.cell[idle] + 0.5
    cluster.calc = atoms.calc = calculator
    first = len(cluster) // 2 // len(atoms) * len(atoms)
    middle = slice(first, first + len(atoms))
    energies, forces = cluster.get_potential_energies()[middle], cluster.get_forces()[middle]
    assert atoms.get_potential_energy() == pytest.approx(energies.sum(), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    assert calculator.atoms == atoms
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def bulk_energy(calculator: object, atoms: Atoms) -> float:
    copy = atoms.copy()
    copy.calc = calculator
    return float(copy.get_potential_energy())


def test_from_a_bucket(
    family: Family, s3_bucket: StorageConfig, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, local = open_store(s3_bucket), DirectoryStore(family.store)
    for found in local.list(""):
        bucket.upload(family.store / found.key, found.key)
    expected = bulk_energy(load_potential(family.store), bulk("Cu"))
    url, endpoint = s3_bucket.url, s3_server.endpoint_url
    for calculator in (
        load_potential(url, generation=1, endpoint_url=endpoint),
        load_potential(f"{url}/cu", endpoint_url=endpoint, extrapolation=True),
    ):
        assert bulk_energy(calculator, bulk("Cu")) == pytest.approx(expected, abs=1e-8)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    load_potential(url, family="cu")


def test_the_package_stays_light() -> None:
    """Importing it loads none of the libraries that potentials need."""
    code = (
        "import sys, mlip_job\n"
        "heavy = {'numpy', 'ase', 'boto3', 'pyace', 'pydantic', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'load_potential' in mlip_job.__all__\n"
        "import mlip_job.nothing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'mlip_job.nothing'" in done.stderr


def test_without_python_ace(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlip_job.potentials.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="python-ace is not installed"):
        load_potential(family.store)
