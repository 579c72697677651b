"""Physics checks distinguish potentials with known behaviour: those of ASE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from ase.eos import birchmurnaghan
from ase.neighborlist import neighbor_list
from ase.units import GPa

from mlip_job.dataset.xyz import Labelled
from mlip_job.evaluation.energy_volume import (
    AtRest,
    ReferenceStructures,
    Stable,
    check_energy_volume,
    instability,
    minimum_of,
    minimum_of_data,
    vacuum_width,
)
from mlip_job.evaluation.physics import check_dimers, check_dynamics, check_smoothness, hotter_than
from mlip_job.evaluation.potential import Core, Prediction, cores_of, move_cores
from mlip_job.training.pacemaker.potential_file import read_potential, write_potential

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase.calculators.calculator import Calculator

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.results import EnergyVolumeCheck

VOLUMES = np.linspace(0.76, 1.36, 31)


@dataclass
class Known:
    """One of ASE's calculators in place of a potential from a file."""

    calculator: Calculator
    elements: tuple[str, ...] = ("Cu",)
    cutoff: float = 5.0

    def predict(self, atoms: Atoms, _what: str) -> Prediction:
        """Evaluate a structure."""
        copy = atoms.copy()
        copy.calc = self.calculator
        return Prediction(copy.get_potential_energy(), copy.get_forces(), None, None)


class Leaking(EMT):
    """EMT with friction: forces that are no derivative of the energy."""

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Calculate, and dissipate."""
        super().calculate(*arguments, **options)
        self.results["forces"] = 1.02 * self.results["forces"] + 0.01 * self.atoms.get_velocities()


class Hollow(EMT):
    """EMT with a well in which atoms collapse: Gaussian, at a distance."""

    def __init__(self, at: float = 2.3, width: float = 0.05) -> None:
        super().__init__()
        self.at, self.width = at, width

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Calculate, and add the wells to the energy, not to the forces."""
        super().calculate(*arguments, **options)
        distances = neighbor_list("d", self.atoms, 4.0)
        wells = np.exp(-(((distances - self.at) / self.width) ** 2)).sum()
        for name in ("energy", "free_energy"):
            self.results[name] -= 0.3 * wells


def _lowest(*structures: tuple[Atoms, float]) -> ReferenceStructures:
    """Collect structures with energies per atom; reference energies are zero."""
    lowest = ReferenceStructures(cutoff=5.0)
    for number, (atoms, energy) in enumerate(structures, start=1):
        forces = np.zeros((len(atoms), 3))
        labelled = Labelled(number, None, atoms, energy * len(atoms), forces, None)
        lowest.add(labelled, 0.0, _shortest(atoms))
    return lowest


def _shortest(atoms: Atoms) -> float | None:
    return min(neighbor_list("d", atoms, 5.0), default=None)


def _curve(
    potential: Known, lowest: ReferenceStructures, cores: dict[tuple[str, str], Core] | None = None
) -> list[EnergyVolumeCheck]:
    """Return the checks of curves; distances of the data end at 2.2 Å."""
    references = dict.fromkeys(potential.elements, 0.0)
    shortest = {("Cu", "Cu"): 2.2}
    return list(check_energy_volume(potential, lowest, references, shortest, cores or {}))


def _verdicts(checks: Sequence[Any]) -> list[str]:
    return [check.verdict for check in checks]


# -- dimers --------------------------------------------------------------------------------------


def test_a_repulsive_dimer_passes() -> None:
    """Lennard-Jones falls monotonically up to its minimum at 2^(1/6) sigma."""
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=20, smooth=False))
    (check,) = check_dimers(potential, {("Cu", "Cu"): 2.2}, {("Cu", "Cu"): Core(2.1, 2.2)})
    assert check.verdict == "passed"
    assert check.elements == ("Cu", "Cu")
    assert check.shortest_in_data_angstrom == 2.2
    assert check.repulsive_below_angstrom == pytest.approx(2.3 * 2 ** (1 / 6), abs=0.06)
    assert check.distances_angstrom[0] == pytest.approx(0.4 * 2.2)
    assert check.distances_angstrom[-1] == 5.0
    for distance, energy in zip(check.distances_angstrom, check.energies_ev, strict=True):
        ratio = (2.3 / distance) ** 6
        assert energy == pytest.approx(
            4 * 0.4 * (ratio**2 - ratio), abs=1e-5, rel=1e-6
        )  # shifted at rc


@pytest.mark.parametrize("core", [None, Core(2.1, 2.2)])
def test_an_attractive_core_fails(core: Core | None) -> None:
    """An inverted Morse curve: atoms collapse."""
    potential = Known(MorsePotential(epsilon=-0.5, r0=2.5, rho0=6, rcut1=6, rcut2=6.5))
    cores = {("Cu", "Cu"): core} if core else {}
    (check,) = check_dimers(potential, {}, cores)
    assert check.verdict == "failed"
    assert check.unstable
    assert check.repulsive_below_angstrom is None
    assert "Cu-Cu is attractive at" in check.message
    assert ("training.zbl: true" in check.message) == (core is None)


def test_repulsion_has_to_reach_up_to_the_core() -> None:
    """With a minimum inside it the core has no effect."""
    potential = Known(LennardJones(sigma=1.6, epsilon=0.4, rc=20))
    (with_core,) = check_dimers(potential, {}, {("Cu", "Cu"): Core(2.1, 2.2)})
    assert (with_core.verdict, with_core.unstable) == ("failed", False)
    assert with_core.repulsive_below_angstrom == pytest.approx(1.6 * 2 ** (1 / 6), abs=0.06)
    (without,) = check_dimers(potential, {("Cu", "Cu"): 2.2}, {})
    assert without.verdict == "passed"


class Holed(LennardJones):
    """Lennard-Jones with a Gaussian hole in its repulsive part."""

    def __init__(self, depth: float, at: float, width: float) -> None:
        super().__init__(sigma=2.0, epsilon=0.4, rc=20)
        self.hole = depth, at, width

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Calculate, and add the hole."""
        super().calculate(*arguments, **options)
        depth, at, width = self.hole
        for distance in np.unique(neighbor_list("d", self.atoms, 4.0)):
            self.results["energy"] -= depth * np.exp(-(((distance - at) / width) ** 2))


@pytest.mark.parametrize(("at", "width"), [(1.6, 0.1), (1.9, 0.4)])
def test_a_hole_at_short_range_fails(at: float, width: float) -> None:
    """Behind a barrier or deeper than any bond, even if repulsive at the shortest distance."""
    (check,) = check_dimers(Known(Holed(40.0, at, width)), {("Cu", "Cu"): 2.6}, {})
    assert (check.verdict, check.unstable) == ("failed", True)
    assert "has a hole at" in check.message


def test_every_pair_of_five_elements_has_its_curve() -> None:
    """Fifteen of them, whether the data have the pair or not."""
    elements = ("Ag", "Al", "Au", "Cu", "Ni")
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=20), elements)
    checks = list(check_dimers(potential, {("Ag", "Au"): 2.5}, {}))
    assert len({check.elements for check in checks}) == 15
    assert {c.elements: c.shortest_in_data_angstrom for c in checks}["Ag", "Au"] == 2.5


def test_cores_are_read_from_the_potential(tmp_path: Path) -> None:
    """Of pairs only, for any order of elements in the names of their blocks."""
    blocks = [
        {"speciesblock": "Cu", "r_in": 2.3, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Cu Au", "r_in": 2.1, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Au Cu", "r_in": 2.1, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Au", "r_in": 0, "delta_in": 0, "inner_cutoff_type": "distance"},
        {"speciesblock": "Cu Au Ni", "inner_cutoff_type": "zbl"},
    ]
    write_potential({"species": blocks}, tmp_path / "potential.yaml")
    cores = cores_of(tmp_path / "potential.yaml")
    assert set(cores) == {("Cu", "Cu"), ("Au", "Cu")}
    assert cores["Au", "Cu"].inner == pytest.approx(2.0)


def test_cores_are_moved_below_the_data(tmp_path: Path) -> None:
    """If distances are shorter than in the training set; both blocks of a pair, nothing else."""
    zbl = {"delta_in": 0.1, "inner_cutoff_type": "zbl"}
    blocks: list[dict[str, Any]] = [
        {"speciesblock": "Cu", "r_in": 2.3, **zbl},
        {"speciesblock": "Cu Au", "r_in": 2.1, **zbl},
        {"speciesblock": "Au Cu", "r_in": 2.1, **zbl},
        {"speciesblock": "Au", "r_in": 2.4, **zbl, "nbody": []},
    ]
    path = tmp_path / "potential.yaml"
    write_potential({"species": blocks, "metadata": {}}, path)
    written = path.read_bytes()
    assert move_cores(path, {}) == ()
    assert path.read_bytes() == written
    (note,) = move_cores(path, {("Au", "Cu"): 1.9, ("Au", "Au"): 2.4, ("Cu", "Cu"): 2.35})
    assert "the ZBL core of Au-Cu begins at 1.900 Å" in note
    assert "in the fitted structures that is 2.100 Å" in note
    content = read_potential(path)
    assert [block["r_in"] for block in content["species"]] == [2.3, 1.9 - 1e-6, 1.9 - 1e-6, 2.4]
    assert content["species"][3] == blocks[3]
    assert content["metadata"] == {}


# -- smoothness ----------------------------------------------------------------------------------


def test_a_force_that_is_cut_off_is_found() -> None:
    """Lennard-Jones without smoothing: the jump is the truncated force."""
    sigma, epsilon, cutoff = 2.3, 0.4, 5.0
    potential = Known(LennardJones(sigma=sigma, epsilon=epsilon, rc=cutoff, smooth=False))
    (check,) = check_smoothness(potential, {})
    ratio = (sigma / cutoff) ** 6
    force = 1000 * 24 * epsilon / cutoff * (2 * ratio**2 - ratio)
    assert (check.verdict, check.place) == ("failed", "cutoff")
    assert check.jump_mev_per_angstrom == pytest.approx(abs(force), rel=1e-3)


def test_a_steep_but_smooth_force_passes() -> None:
    """Slope and curvature are no jump, at the cutoff or deep in a repulsive core."""
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=5, smooth=True, ro=3.5))
    checks = list(check_smoothness(potential, {("Cu", "Cu"): Core(1.2, 1.3)}))
    assert [check.place for check in checks] == ["cutoff", "zbl_switch"]
    assert _verdicts(checks) == ["passed", "passed"]
    assert checks[1].distance_angstrom in (1.2, 1.3)


# -- energy and volume ---------------------------------------------------------------------------


def test_copper_has_its_volume_and_bulk_modulus() -> None:
    """EMT gives 3.59 Å and 134 GPa; a strained start changes nothing."""
    energy = 1.25  # a reference energy is added to the curve
    for a in (3.50, 3.59, 3.70):
        lowest = _lowest((bulk("Cu", cubic=True, a=a), -3.0))
        (check,) = check_energy_volume(Known(EMT()), lowest, {"Cu": energy}, {}, {})
        assert check.verdict == "passed"
        assert check.minimum_angstrom3_per_atom == pytest.approx(3.59**3 / 4, rel=0.01)
        assert check.bulk_modulus_gpa == pytest.approx(134, rel=0.03)
        assert min(check.energies_ev_per_atom) == pytest.approx(energy, abs=0.01)


def test_fit_recovers_the_curve_that_it_was_given() -> None:
    """Birch-Murnaghan curve in, its parameters out."""
    volumes = 12.0 * VOLUMES
    energies = birchmurnaghan(volumes, -3.5, 140 * GPa, 4.8, 11.8)
    found = minimum_of(volumes, energies, 12)
    assert found is not None
    assert (found.volume, found.modulus) == pytest.approx((11.8, 140), rel=1e-6)
    assert instability(VOLUMES, energies) is None


@pytest.mark.parametrize(
    ("energies", "problem"),
    [
        (-VOLUMES, "no minimum up to"),
        (VOLUMES, "it collapses"),
        ((VOLUMES - 1) ** 2 - 40 * np.clip(VOLUMES - 1.2, 0, None) ** 2, "flies apart"),
        ((VOLUMES - 1) ** 2 - 40 * np.clip(0.9 - VOLUMES, 0, None) ** 2, "collap"),
    ],
)
def test_a_minimum_has_to_be_the_lowest_point(energies: FloatArray, problem: str) -> None:
    """No minimum, or a small barrier between it and much lower energies."""
    has_minimum = energies[12] == energies[11:14].min()
    assert (minimum_of(12 * VOLUMES, energies, 12) is not None) == has_minimum
    assert problem in str(instability(VOLUMES, energies))


@pytest.mark.parametrize("height", [1, 100])
def test_a_curve_has_to_rise_however_high_the_barrier(height: float) -> None:
    """A bad start crosses any barrier: the minimum is named, and the check fails."""
    turned = birchmurnaghan(12 * VOLUMES, 0.0, 140 * GPa, 4.8, 12.0)
    turned = np.where(VOLUMES < 0.83, 2 * turned[4] - turned[::-1][26 - np.arange(31)], turned)
    assert turned[:5].min() > turned.min()
    problem = str(instability(VOLUMES, height * turned))
    assert "it collapses under compression: from " in problem
    peak = height * turned[:12].max()
    assert f"behind a barrier of {peak:.2g} eV per atom" in problem


def test_a_crystal_that_collapses_fails_as_unstable() -> None:
    """A hole in the pair potential at 2.2 Å; the volume at zero pressure is still right."""
    crystal = (bulk("Cu", cubic=True, a=3.59), -3.5)
    good, bad = Known(EMT()), Known(Hollow())
    assert [(c.verdict, c.unstable) for c in _curve(good, _lowest(crystal))] == [("passed", False)]
    (check,) = _curve(bad, _lowest(crystal))
    assert check.minimum_angstrom3_per_atom == pytest.approx(3.59**3 / 4, rel=0.01)
    assert (check.verdict, check.unstable) == ("failed", True)
    assert "collapses" in check.message


def test_with_a_core_the_curve_is_scanned_up_to_it() -> None:
    """A hole between the usual volumes and the core is found; without a core none is searched."""
    crystal = (bulk("Cu", cubic=True, a=3.59), -3.5)
    deep = Known(Hollow(at=2.1, width=0.04))
    (without,) = _curve(deep, _lowest(crystal))
    assert without.verdict == "passed"
    (with_core,) = _curve(deep, _lowest(crystal), {("Cu", "Cu"): Core(1.9, 2.0)})
    assert (with_core.verdict, with_core.unstable) == ("failed", True)
    volumes = np.array(with_core.volumes_angstrom3_per_atom)
    assert volumes[0] == pytest.approx((1.9 * 2**0.5) ** 3 / 4, rel=0.05)
    assert np.all(np.diff(volumes) > 0)


def _strained(energy_of: Calculator, scale: float = 1.0) -> list[tuple[Atoms, float]]:
    """Return crystals from 88 to 112 % of EMT's volume, with energies."""
    crystals = []
    for relative in np.linspace(0.88, 1.12, 9):
        atoms = bulk("Cu", cubic=True, a=3.59 * relative ** (1 / 3))
        atoms.calc = energy_of
        crystals.append((atoms, scale * atoms.get_potential_energy() / 4))
        atoms.calc = None
    return crystals


def test_volume_and_modulus_are_compared_with_the_data() -> None:
    """The curve of the data, also of primitive cells, is the reference."""
    lowest = _lowest(*_strained(EMT()))
    (check,) = _curve(Known(EMT()), lowest)
    assert (check.verdict, check.unstable) == ("passed", False)
    assert check.data_minimum_angstrom3_per_atom == pytest.approx(3.59**3 / 4, rel=0.005)
    assert check.data_bulk_modulus_gpa == pytest.approx(134, rel=0.05)
    (check,) = _curve(Known(EMT()), _lowest(*_strained(EMT(), scale=2.0)))
    assert (check.verdict, check.unstable) == ("failed", False)
    assert "bulk modulus differs by -50 % from the data's" in check.message
    (check,) = _curve(Known(LennardJones(sigma=2.5, epsilon=0.4, rc=5)), lowest)
    assert "the volume differs by" in check.message


def test_the_data_need_a_curve_to_be_compared_with() -> None:
    """Five volumes around a minimum, without scatter."""
    points = [AtRest(1.12, 12 * v, 4 * (v - 1) ** 2) for v in VOLUMES]
    assert minimum_of_data(points) is not None
    assert minimum_of_data(points[12:15]) is None
    assert minimum_of_data(points[13:]) is None
    scattered = [p._replace(energy=p.energy + 0.02 * (-1) ** i) for i, p in enumerate(points)]
    assert minimum_of_data(scattered) is None
    assert minimum_of_data([]) is None


def test_a_second_structure_is_checked_too() -> None:
    """Of one element the one with another packing; of several the one with most elements."""
    fcc, bcc = bulk("Cu", cubic=True, a=3.59), bulk("Cu", "bcc", a=2.87, cubic=True)
    strained = bulk("Cu", cubic=True, a=3.65)
    checks = _curve(Known(EMT()), _lowest((fcc, -3.5), (strained, -3.49), (bcc, -3.46)))
    assert [check.structure for check in checks] == ["row 1 (Cu4)", "row 3 (Cu2)"]
    alloy = bulk("Cu", cubic=True, a=3.8)
    alloy.symbols[0] = "Au"
    checks = _curve(Known(EMT(), ("Au", "Cu")), _lowest((fcc, -3.5), (bcc, -3.46), (alloy, -3.4)))
    assert [(check.element, check.verdict) for check in checks] == [
        ("Au", "skipped"),
        ("Cu", "passed"),
        ("Au-Cu", "passed"),
    ]


def test_elements_without_bulk_are_skipped() -> None:
    """A molecule, a slab and an alloy are no bulk of an element; the alloy is checked."""
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Au"
    dimer = Atoms("Ni2", positions=[[0, 0, 0], [0, 0, 2.2]])
    potential = Known(EMT(), ("Au", "Cu", "Ni"))
    lowest = _lowest((_slab(), -3.0), (alloy, -3.2), (dimer, -2.0))
    checks = _curve(potential, lowest)
    assert _verdicts(checks) == ["skipped"] * 3 + ["passed"]
    assert [check.message for check in checks[:3]] == [
        f"energy over volume not possible: no bulk structure of {element} alone in the data"
        for element in ("Au", "Cu", "Ni")
    ]


def _slab() -> Atoms:
    slab = fcc111("Cu", (1, 1, 3), vacuum=8)
    slab.pbc = True
    return slab


WIRE = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]], cell=[16, 16, 4.8], pbc=True)
CLUSTER = Atoms("Cu4", positions=1.7 * np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]))


@pytest.mark.parametrize("structure", [_slab(), WIRE, CLUSTER])
def test_without_bulk_nothing_passes(structure: Atoms) -> None:
    """A scaled slab, wire or cluster shows a collapse, but no volume and no modulus."""
    lowest = _lowest((structure, -3.0))
    (check,) = _curve(Known(EMT()), lowest)
    assert (check.verdict, check.bulk_modulus_gpa) == ("skipped", None)
    assert check.message.startswith(
        "energy over volume not possible: no bulk structure in the data, only row 1 (Cu"
    )
    shortest = _shortest(structure)
    assert shortest is not None
    (check,) = _curve(Known(Hollow(at=0.92 * shortest, width=0.02)), lowest)
    assert check.verdict == "failed"
    assert "scaled with its vacuum: it" in check.message


def test_a_crystal_keeps_its_volume_without_a_curve_in_the_data() -> None:
    """It relaxes into a well that is no collapse, but away from the volume of the crystal."""
    potential = Known(Hollow(at=2.3, width=0.25))
    (check,) = _curve(potential, _lowest((bulk("Cu", cubic=True, a=3.59), -3.5)))
    assert (check.verdict, check.unstable) == ("failed", False)
    assert "of the volume that it has in the data" in check.message


def test_a_slab_of_lower_energy_does_not_hide_the_bulk() -> None:
    """The strained crystal of a dataset of surfaces is checked all the same."""
    (check,) = _curve(Known(EMT()), _lowest((_slab(), -3.6), (bulk("Cu", a=3.7), -3.5)))
    assert (check.structure, check.verdict) == ("row 2 (Cu)", "passed")


# -- dynamics ------------------------------------------------------------------------------------


def test_energy_is_conserved_by_a_derivative() -> None:
    """A supercell of at least 32 atoms, its drift far below the limit."""
    start = Stable(5, bulk("Cu"), -3.5)
    check = check_dynamics(Known(EMT()), start, steps=100)
    assert check.verdict == "passed"
    assert (check.atoms, check.steps, check.timestep_fs) == (32, 100, 1.0)
    assert check.drift_mev_per_atom_per_ps is not None
    assert abs(check.drift_mev_per_atom_per_ps) < 0.2
    assert "row 5 (Cu)" in check.message


def test_energy_that_leaks_is_found() -> None:
    """Forces that are no derivative of the energy."""
    check = check_dynamics(Known(Leaking()), Stable(1, bulk("Cu"), -3.5), steps=100)
    assert check.verdict == "failed"
    assert check.drift_mev_per_atom_per_ps is not None
    assert abs(check.drift_mev_per_atom_per_ps) > 2


def test_a_structure_that_flies_apart_is_found_at_once() -> None:
    """Two atoms almost on top of each other: the run stops early."""
    close = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.9]])
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=5))
    check = check_dynamics(potential, Stable(1, close, 9.0), steps=100_000)
    assert (check.verdict, check.drift_mev_per_atom_per_ps) == ("failed", None)
    assert check.unstable
    assert "flew apart" in check.message


class Collapsing(EMT):
    """EMT with a constant force on one atom."""

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Calculate, and add the force."""
        super().calculate(*arguments, **options)
        self.results["forces"][0, 2] += 20.0


def test_dynamics_begin_hotter_than_the_data() -> None:
    """By the data's energies above the lowest; a collapse is not reported as drift."""
    crystals = [(bulk("Cu", cubic=True), -3.5 + 0.0258 * (i % 10 + 1)) for i in range(40)]
    lowest = _lowest((bulk("Cu", cubic=True), -3.5), *crystals)
    start = lowest.for_dynamics()
    assert start is not None
    assert lowest.temperature_k(start) == pytest.approx(1800, rel=0.08)
    assert [hotter_than(data) for data in (0.0, 800.0, 9e9)] == [1000, 2000, 3000]
    check = check_dynamics(Known(EMT()), start, steps=60, temperature_k=2000.0)
    assert (check.verdict, check.temperature_k, check.timestep_fs) == ("passed", 2000.0, 0.5)
    assert "from 2000 K" in check.message
    check = check_dynamics(Known(Collapsing()), start, steps=400)
    assert (check.verdict, check.unstable) == ("failed", True)


def test_a_molecule_is_run_without_supercell() -> None:
    """Without supercell, with half the time step for light atoms."""
    check = check_dynamics(Known(EMT()), Stable(1, molecule("CH3OH"), -3.0), steps=20)
    assert (check.atoms, check.timestep_fs) == (6, 0.5)


def test_dynamics_can_be_left_out() -> None:
    """By the configuration, or if there is no structure."""
    start = Stable(1, bulk("Cu"), -3.5)
    assert check_dynamics(Known(EMT()), start, steps=0).verdict == "skipped"
    assert check_dynamics(Known(EMT()), None, steps=10).verdict == "skipped"


# -- which structures ----------------------------------------------------------------------------


def test_the_lowest_of_each_kind_is_kept() -> None:
    """Joined from batches in any order, the same ones remain."""
    cu = bulk("Cu", cubic=True)
    alloy = cu.copy()
    alloy.symbols[0] = "Au"
    pair = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.2]])
    first = _lowest((cu, -3.4), (cu, -3.5), (alloy, -3.3), (pair, -9.0))
    assert first.bulk("Cu") is not None
    assert first.bulk("Cu").row_id == 2  # type: ignore[union-attr]
    assert first.bulk("Au") is None
    assert first.for_dynamics().row_id == 3  # type: ignore[union-attr]
    second = _lowest((cu, -3.6))
    second.join(first)
    assert second.bulk("Cu").energy == -3.6  # type: ignore[union-attr]
    assert second.for_dynamics().row_id == 3  # type: ignore[union-attr]
    assert _lowest((pair, -9.0)).for_dynamics().row_id == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("vacuum", "repeat"), [(4.0, 1), (8.0, 2)])
def test_vacuum_is_measured_across_the_cell(vacuum: float, repeat: int) -> None:
    """For any position of the slab in its cell; a crystal has only the gaps between its layers."""
    slab = fcc111("Cu", (repeat, repeat, 4), vacuum=vacuum)
    slab.pbc = True
    slab.positions += [0.3, 0.2, 11.0]
    assert vacuum_width(slab) == pytest.approx(2 * vacuum, abs=1e-6)
    assert vacuum_width(bulk("Cu", cubic=True, a=3.6)) == pytest.approx(1.8)
    assert vacuum_width(bulk("Cu", a=3.6)) == pytest.approx(3.6 / 3**0.5)
