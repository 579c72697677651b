"""The result of an evaluation: models of its part of ``report.json``.

Energies include the reference energies and are comparable with DFT. Forces are single components.
Errors are predicted minus reference. None means unknown.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from mlip_job.models import Frozen, FullErrors

Verdict = Literal["passed", "failed", "skipped"]

T = TypeVar("T")
Three = tuple[T, T, T | None]
"""Something of energies, forces and stresses; None if no stress was measured."""

QUANTITIES = (("energy", "meV/atom"), ("force", "meV/Å"), ("stress", "GPa"))
"""Names and units, in this order everywhere."""


class ErrorStatistics(Frozen):
    """Errors of one quantity, in the unit named by the key of the statistics.

    `count` is the number of values: structures, force components or stress components. `p50`,
    `p90` and `p99` are percentiles of the absolute error.
    """

    count: int
    rmse: float
    mae: float
    max: float
    p50: float
    p90: float
    p99: float


class Histogram(Frozen):
    """Counts between n+1 edges; the outer bins include all values beyond them."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Parity(Frozen):
    """Pairs of values for a plot: all of them, or a sample determined by the seed."""

    reference: tuple[float, ...]
    predicted: tuple[float, ...]
    sampled_from: int


class ConfigTypeErrors(Frozen):
    """Errors of the structures of one config type (``""`` if they have none)."""

    structures: int
    energy_mev_per_atom: ErrorStatistics
    force_mev_per_angstrom: ErrorStatistics
    stress_gpa: ErrorStatistics | None = None

    @property
    def statistics(self) -> Three[ErrorStatistics]:
        """By quantity."""
        return self.energy_mev_per_atom, self.force_mev_per_angstrom, self.stress_gpa


class WorstStructure(Frozen):
    """One of the structures with the largest errors."""

    row_id: int
    formula: str
    config_type: str | None
    energy_error_mev_per_atom: float
    max_force_error_mev_per_angstrom: float
    extrapolation_grade: float | None = None


class GradeStatistics(Frozen):
    """Extrapolation grades of structures (largest over their atoms); above 1 is extrapolation.

    ``above_one`` counts grades above 1.01, the tolerance of the active set. On the training set
    the grades are those of the structures counted by `Conversion`.

    Source: Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).
    """

    count: int
    max: float
    p50: float
    p90: float
    p99: float
    above_one: int


class SetEvaluation(ConfigTypeErrors):
    """Errors of the published potential on one side of the dataset.

    Stresses are those of periodic structures whose labels have one; None without any, their
    histogram and parity also in reports of older versions.
    """

    atoms: int
    force_per_element_mev_per_angstrom: dict[str, ErrorStatistics]
    per_config_type: dict[str, ConfigTypeErrors]
    energy_error_histogram_mev_per_atom: Histogram
    force_error_histogram_mev_per_angstrom: Histogram
    stress_error_histogram_gpa: Histogram | None = None
    energy_parity_ev_per_atom: Parity
    force_parity_ev_per_angstrom: Parity
    stress_parity_gpa: Parity | None = None
    worst: tuple[WorstStructure, ...]
    extrapolation_grade: GradeStatistics | None = None

    @property
    def histograms(self) -> Three[Histogram]:
        """Errors by quantity."""
        return (
            self.energy_error_histogram_mev_per_atom,
            self.force_error_histogram_mev_per_angstrom,
            self.stress_error_histogram_gpa,
        )

    @property
    def parities(self) -> Three[Parity]:
        """Labels and predictions by quantity."""
        return (
            self.energy_parity_ev_per_atom,
            self.force_parity_ev_per_angstrom,
            self.stress_parity_gpa,
        )

    @property
    def errors(self) -> FullErrors:
        """The errors without percentiles."""
        energy, force, stress = self.statistics
        return FullErrors(
            rmse_energy_mev_per_atom=energy.rmse,
            rmse_force_mev_per_angstrom=force.rmse,
            rmse_stress_gpa=stress.rmse if stress else None,
            mae_energy_mev_per_atom=energy.mae,
            mae_force_mev_per_angstrom=force.mae,
            mae_stress_gpa=stress.mae if stress else None,
            max_energy_mev_per_atom=energy.max,
            max_force_mev_per_angstrom=force.max,
            max_stress_gpa=stress.max if stress else None,
        )


class Agreement(Frozen):
    """RMSE of the artefact and as reported by the trainer; the job fails if they differ.

    ``train`` excludes the validation part, if there is one. Keys with ``by_pacemaker`` are of any
    trainer. Stresses are None if they are not fitted, or a structure of the set has none.
    """

    side: Literal["train", "test", "validation"]
    energy_mev_per_atom: float
    energy_by_pacemaker_mev_per_atom: float
    force_mev_per_angstrom: float
    force_by_pacemaker_mev_per_angstrom: float
    stress_gpa: float | None = None
    stress_by_trainer_gpa: float | None = None
    relative_tolerance: float

    @property
    def values(self) -> tuple[float | None, ...]:
        """Both RMSEs of each quantity."""
        return (
            self.energy_mev_per_atom,
            self.energy_by_pacemaker_mev_per_atom,
            self.force_mev_per_angstrom,
            self.force_by_pacemaker_mev_per_angstrom,
            self.stress_gpa,
            self.stress_by_trainer_gpa,
        )


class Conversion(Frozen):
    """Largest differences between ``potential.yace`` and the ``potential.yaml`` it was made from.

    ``structures`` is the number of compared structures: all of the test set, and up to a thousand
    of the training set. The job fails if a difference exceeds rounding errors.
    """

    structures: int
    max_energy_difference_mev_per_atom: float
    max_force_difference_mev_per_angstrom: float


class ErrorPair(Frozen):
    """RMSE of two generations on the same structures; ``change`` is new/old - 1."""

    old: float
    new: float
    change: float | None


class ParentComparison(Frozen):
    """A generation and its predecessor, both evaluated by this run on common test structures."""

    generation: int
    structures: int
    energy_mev_per_atom: ErrorPair
    force_mev_per_angstrom: ErrorPair
    stress_gpa: ErrorPair | None = None

    @property
    def pairs(self) -> Three[ErrorPair]:
        """By quantity."""
        return self.energy_mev_per_atom, self.force_mev_per_angstrom, self.stress_gpa


class _Check(Frozen):
    """Verdict of a check; `unstable` marks a failure that makes the potential useless."""

    verdict: Verdict
    message: str
    unstable: bool = False


class DimerCheck(_Check):
    """Energy of two atoms over their distance; it must be repulsive at short range.

    Energies are relative to two free atoms. Below ``repulsive_below_angstrom`` the energy rises
    monotonically as the distance decreases.
    """

    kind: Literal["dimer"] = "dimer"
    elements: tuple[str, str]
    distances_angstrom: tuple[float, ...]
    energies_ev: tuple[float, ...]
    shortest_in_data_angstrom: float | None
    repulsive_below_angstrom: float | None


class EnergyVolumeCheck(_Check):
    """Energy over volume of a reference structure from the data, scaled isotropically.

    ``minimum_angstrom3_per_atom`` and ``bulk_modulus_gpa`` result from a Birch-Murnaghan fit; those
    with the prefix ``data_`` from a fit to the crystal's energies in the data, if they suffice.
    """

    kind: Literal["energy_volume"] = "energy_volume"
    element: str
    structure: str = ""
    volumes_angstrom3_per_atom: tuple[float, ...] = ()
    energies_ev_per_atom: tuple[float, ...] = ()
    minimum_angstrom3_per_atom: float | None = None
    bulk_modulus_gpa: float | None = None
    data_minimum_angstrom3_per_atom: float | None = None
    data_bulk_modulus_gpa: float | None = None


class DynamicsCheck(_Check):
    """A short NVE run (velocity Verlet); its total energy must not drift."""

    kind: Literal["dynamics"] = "dynamics"
    structure: str = ""
    atoms: int = 0
    steps: int = 0
    timestep_fs: float = 0.0
    temperature_k: float
    drift_mev_per_atom_per_ps: float | None = None


class SmoothnessCheck(_Check):
    """Largest jump of the dimer's force where the cutoff or the ZBL core switches off.

    ``place`` names which of them; the jump is measured between two points 1e-4 Å apart.
    """

    kind: Literal["smoothness"] = "smoothness"
    elements: tuple[str, str]
    place: Literal["cutoff", "zbl_switch"]
    distance_angstrom: float | None
    jump_mev_per_angstrom: float | None


PhysicsCheck = Annotated[
    DimerCheck | EnergyVolumeCheck | DynamicsCheck | SmoothnessCheck, Field(discriminator="kind")
]


class Speed(Frozen):
    """Cost of energies and forces of the published potential on one core; not part of the gate.

    ``evaluator_us_per_atom`` is the CPU time of the C++ evaluator without neighbour lists, the
    median of the repeats; each evaluates these numbers of structures and atoms.
    """

    evaluator_us_per_atom: float
    structures: int
    atoms: int
    repeats: int
    cpu: str


class GateVerdict(Frozen):
    """Whether the generation is accepted; ``reasons`` for a rejection are one sentence each.

    ``limits_set`` tells whether the gate had limits; null in reports of older versions.
    ``unchecked`` names each stability check that was not possible and why, one sentence each.
    """

    accepted: bool
    reasons: tuple[str, ...]
    limits_set: bool | None = None
    unchecked: tuple[str, ...] = ()


class Evaluation(Frozen):
    """The evaluation of a potential after its fit.

    ``test`` is None if nothing was held out. ``notes`` name each measurement that was not possible
    and why. ``warnings`` describe contradictions between predictions and data.
    """

    train: SetEvaluation
    test: SetEvaluation | None
    agreement: tuple[Agreement, ...]
    parent: ParentComparison | None
    physics: tuple[PhysicsCheck, ...]
    active_set: Literal["linear", "full"] | None
    gate: GateVerdict
    conversion: Conversion | None = None
    speed: Speed | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
