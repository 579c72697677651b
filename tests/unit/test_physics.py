"""Physics checks tell potentials apart whose behaviour is known: those that ASE has."""

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
from ase.units import GPa

from mlip_job.dataset.reading import Labelled
from mlip_job.evaluation.cores import Core, clear_of_cores, cores_of
from mlip_job.evaluation.dimers import check_dimers, check_smoothness
from mlip_job.evaluation.dynamics import check_dynamics
from mlip_job.evaluation.energy_volume import _VOLUMES, _fit, check_energy_volume
from mlip_job.evaluation.lowest import LowestStructures, Stable, vacuum_width
from mlip_job.evaluation.potential import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase.calculators.calculator import Calculator


@dataclass
class Known:
    """One of ASE's calculators in the place of a potential from a file."""

    calculator: Calculator
    elements: tuple[str, ...] = ("Cu",)
    cutoff: float = 5.0

    def ask(self, atoms: Atoms, _what: str) -> Answer:
        """Evaluate a structure."""
        copy = atoms.copy()
        copy.calc = self.calculator
        return Answer(copy.get_potential_energy(), copy.get_forces(), None, None)


class Leaking(EMT):
    """EMT with friction against nothing: forces that are no derivative of the energy."""

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Calculate, and leak."""
        super().calculate(*arguments, **options)
        self.results["forces"] = 1.02 * self.results["forces"] + 0.01 * self.atoms.get_velocities()


def _lowest(*structures: tuple[Atoms, float]) -> LowestStructures:
    """Collect structures with energies per atom; reference energies are zero."""
    lowest = LowestStructures()
    for number, (atoms, energy) in enumerate(structures, start=1):
        forces = np.zeros((len(atoms), 3))
        lowest.offer(Labelled(number, None, atoms, energy * len(atoms), forces, None), 0.0)
    return lowest


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
    """A Morse curve turned over: atoms fall into each other."""
    potential = Known(MorsePotential(epsilon=-0.5, r0=2.5, rho0=6, rcut1=6, rcut2=6.5))
    cores = {("Cu", "Cu"): core} if core else {}
    (check,) = check_dimers(potential, {}, cores)
    assert check.verdict == "failed"
    assert check.repulsive_below_angstrom is None
    assert "Cu-Cu is attractive at" in check.message


def test_repulsion_has_to_reach_up_to_the_core() -> None:
    """With a minimum inside of it the core does not do what it is for."""
    potential = Known(LennardJones(sigma=1.6, epsilon=0.4, rc=20))
    (with_core,) = check_dimers(potential, {}, {("Cu", "Cu"): Core(2.1, 2.2)})
    assert with_core.verdict == "failed"
    assert with_core.repulsive_below_angstrom == pytest.approx(1.6 * 2 ** (1 / 6), abs=0.06)
    (without,) = check_dimers(potential, {("Cu", "Cu"): 2.2}, {})
    assert without.verdict == "passed"


def test_every_pair_of_five_elements_has_its_curve() -> None:
    """Fifteen of them, whether the data has the pair or not."""
    elements = ("Ag", "Al", "Au", "Cu", "Ni")
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=20), elements)
    checks = list(check_dimers(potential, {("Ag", "Au"): 2.5}, {}))
    assert len({check.elements for check in checks}) == 15
    assert {c.elements: c.shortest_in_data_angstrom for c in checks}["Ag", "Au"] == 2.5


def test_cores_are_read_from_the_potential() -> None:
    """Of pairs only, in whatever order their blocks name the elements."""
    blocks = [
        {"speciesblock": "Cu", "r_in": 2.3, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Cu Au", "r_in": 2.1, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Au Cu", "r_in": 2.1, "delta_in": 0.1, "inner_cutoff_type": "zbl"},
        {"speciesblock": "Au", "r_in": 0, "delta_in": 0, "inner_cutoff_type": "distance"},
        {"speciesblock": "Cu Au Ni", "inner_cutoff_type": "zbl"},
    ]
    cores = cores_of({"species": blocks})
    assert set(cores) == {("Cu", "Cu"), ("Au", "Cu")}
    assert cores["Au", "Cu"].inner == pytest.approx(2.0)


def test_cores_give_way_to_the_data() -> None:
    """To what comes closer than the training set; both blocks of a pair, and nothing else."""
    zbl = {"delta_in": 0.1, "inner_cutoff_type": "zbl"}
    blocks = [
        {"speciesblock": "Cu", "r_in": 2.3, **zbl},
        {"speciesblock": "Cu Au", "r_in": 2.1, **zbl},
        {"speciesblock": "Au Cu", "r_in": 2.1, **zbl},
        {"speciesblock": "Au", "r_in": 2.4, **zbl, "nbody": []},
    ]
    shortest = {("Au", "Cu"): 1.9, ("Au", "Au"): 2.4, ("Cu", "Cu"): 2.35}
    content, notes = clear_of_cores({"species": blocks, "metadata": {}}, shortest)
    assert [block["r_in"] for block in content["species"]] == [2.3, 1.9 - 1e-6, 1.9 - 1e-6, 2.4]
    assert content["species"][3] is blocks[3]
    assert content["metadata"] == {}
    assert len(notes) == 1
    assert "the ZBL core of Au-Cu begins at 1.900 Å" in notes[0]
    assert "in what was fitted that is 2.100 Å" in notes[0]
    assert clear_of_cores({"species": blocks}, {}) == ({"species": blocks}, ())


# -- smoothness ----------------------------------------------------------------------------------


def test_a_force_that_is_cut_off_is_found() -> None:
    """Lennard-Jones without a smooth end: the jump is the force that was there."""
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
        (check,) = check_energy_volume(Known(EMT()), lowest, {"Cu": energy})
        assert check.verdict == "passed"
        assert check.minimum_angstrom3_per_atom == pytest.approx(3.59**3 / 4, rel=0.01)
        assert check.bulk_modulus_gpa == pytest.approx(134, rel=0.03)
        assert min(check.energies_ev_per_atom) == pytest.approx(energy, abs=0.01)


def test_fit_recovers_the_curve_that_it_was_given() -> None:
    """Birch-Murnaghan in, its parameters out."""
    volumes = 12.0 * _VOLUMES
    energies = birchmurnaghan(volumes, -3.5, 140 * GPa, 4.8, 11.8)
    found = _fit(volumes, energies)
    assert found is not None
    assert found == pytest.approx((11.8, 140), rel=1e-6)


@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_a_curve_without_minimum_fails(slope: float) -> None:
    """It only falls, or only rises."""
    assert _fit(12 * _VOLUMES, slope * _VOLUMES) is None


def test_a_minimum_counts_although_the_curve_falls_far_away() -> None:
    """A structure does not relax over a hill."""
    energies = (_VOLUMES - 1) ** 2 - 40 * np.clip(_VOLUMES - 1.2, 0, None) ** 2
    assert energies.argmin() == len(energies) - 1
    assert _fit(12 * _VOLUMES, energies) is not None


def test_elements_without_a_crystal_are_skipped() -> None:
    """A molecule, a slab and an alloy are none; the reason is given."""
    slab = fcc111("Cu", (1, 1, 3), vacuum=8)
    slab.pbc = True
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Au"
    dimer = Atoms("Ni2", positions=[[0, 0, 0], [0, 0, 2.2]])
    potential = Known(EMT(), ("Au", "Cu", "Ni"))
    lowest = _lowest((slab, -3.0), (alloy, -3.2), (dimer, -2.0))
    checks = list(check_energy_volume(potential, lowest, dict.fromkeys(("Au", "Cu", "Ni"), 0.0)))
    assert _verdicts(checks) == ["skipped"] * 3
    assert [check.message for check in checks] == [
        "the data holds no crystal of Au alone",
        "the most stable structure of Cu, row 1 (Cu3), has a vacuum",
        "the data holds no crystal of Ni alone",
    ]


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
    """Two atoms almost on top of each other: no number of steps is waited for."""
    close = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.9]])
    potential = Known(LennardJones(sigma=2.3, epsilon=0.4, rc=5))
    check = check_dynamics(potential, Stable(1, close, 9.0), steps=100_000)
    assert (check.verdict, check.drift_mev_per_atom_per_ps) == ("failed", None)
    assert "flew apart" in check.message


def test_a_molecule_is_run_as_it_is() -> None:
    """Without supercell, with half the time step for light atoms."""
    check = check_dynamics(Known(EMT()), Stable(1, molecule("CH3OH"), -3.0), steps=20)
    assert (check.atoms, check.timestep_fs) == (6, 0.5)


def test_dynamics_can_be_left_out() -> None:
    """By the configuration, or for want of a structure."""
    start = Stable(1, bulk("Cu"), -3.5)
    assert check_dynamics(Known(EMT()), start, steps=0).verdict == "skipped"
    assert check_dynamics(Known(EMT()), None, steps=10).verdict == "skipped"


# -- which structures ----------------------------------------------------------------------------


def test_the_lowest_of_each_kind_is_kept() -> None:
    """Joined from batches in any order, the same ones are left."""
    cu = bulk("Cu", cubic=True)
    alloy = cu.copy()
    alloy.symbols[0] = "Au"
    pair = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.2]])
    first = _lowest((cu, -3.4), (cu, -3.5), (alloy, -3.3), (pair, -9.0))
    assert first.pure("Cu") is not None
    assert first.pure("Cu").row_id == 2  # type: ignore[union-attr]
    assert first.pure("Au") is None
    assert first.for_dynamics().row_id == 3  # type: ignore[union-attr]
    second = _lowest((cu, -3.6))
    second.join(first)
    assert second.pure("Cu").energy == -3.6  # type: ignore[union-attr]
    assert second.for_dynamics().row_id == 3  # type: ignore[union-attr]
    assert _lowest((pair, -9.0)).for_dynamics().row_id == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("vacuum", "repeat"), [(4.0, 1), (8.0, 2)])
def test_vacuum_is_measured_across_the_cell(vacuum: float, repeat: int) -> None:
    """Wherever the slab lies in its cell; a crystal has only the gaps between its layers."""
    slab = fcc111("Cu", (repeat, repeat, 4), vacuum=vacuum)
    slab.pbc = True
    slab.positions += [0.3, 0.2, 11.0]
    assert vacuum_width(slab) == pytest.approx(2 * vacuum, abs=1e-6)
    assert vacuum_width(bulk("Cu", cubic=True, a=3.6)) == pytest.approx(1.8)
    assert vacuum_width(bulk("Cu", a=3.6)) == pytest.approx(3.6 / 3**0.5)
