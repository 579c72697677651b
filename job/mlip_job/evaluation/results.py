"""The result of an evaluation: models of its part of ``report.json``.

Energies include the reference energies and are comparable with DFT. Forces are single components.
Errors are predicted minus reference. None means unknown.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from mlip_job.models import Errors, Frozen, Three

Verdict = Literal["passed", "failed", "skipped"]

QUANTITIES = (("energy", "meV/atom"), ("force", "meV/Å"), ("stress", "GPa"))
"""Names and units, in this order everywhere."""


class Percentiles(Frozen):
    """Percentiles of absolute errors, or of grades, over a number of values."""

    count: int
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


class ConfigTypeErrors(Errors):
    """Errors of the structures of one config type (``""`` if they have none)."""

    structures: int


class WorstStructure(Frozen):
    """One of the structures with the largest errors."""

    row_id: int
    formula: str
    config_type: str | None
    energy_error_mev_per_atom: float
    max_force_error_mev_per_angstrom: float
    extrapolation_grade: float | None = None


class GradeStatistics(Percentiles):
    """Extrapolation grades of structures (largest over their atoms); above 1 is extrapolation.

    ``above_one`` counts grades above 1.01, the tolerance of the active set. On the training set
    the grades are those of the structures counted by `Conversion`.

    Source: Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).
    """

    max: float
    above_one: int


class SetEvaluation(ConfigTypeErrors):
    """Errors of the published potential on one side of the dataset.

    Stresses are those of periodic structures whose labels have one; None without any, their
    histogram and parity also in reports of older versions. ``per_element`` has errors of forces.
    """

    atoms: int
    per_element: dict[str, Errors]
    per_config_type: dict[str, ConfigTypeErrors]
    energy_percentiles_mev_per_atom: Percentiles
    force_percentiles_mev_per_angstrom: Percentiles
    stress_percentiles_gpa: Percentiles | None = None
    energy_error_histogram_mev_per_atom: Histogram
    force_error_histogram_mev_per_angstrom: Histogram
    stress_error_histogram_gpa: Histogram | None = None
    energy_parity_ev_per_atom: Parity
    force_parity_ev_per_angstrom: Parity
    stress_parity_gpa: Parity | None = None
    worst: tuple[WorstStructure, ...]
    extrapolation_grade: GradeStatistics | None = None

    @property
    def percentiles(self) -> Three[Percentiles | None]:
        """By quantity."""
        return (
            self.energy_percentiles_mev_per_atom,
            self.force_percentiles_mev_per_angstrom,
            self.stress_percentiles_gpa,
        )

    @property
    def histograms(self) -> Three[Histogram | None]:
        """Errors by quantity."""
        return (
            self.energy_error_histogram_mev_per_atom,
            self.force_error_histogram_mev_per_angstrom,
            self.stress_error_histogram_gpa,
        )

    @property
    def parities(self) -> Three[Parity | None]:
        """Labels and predictions by quantity."""
        return (
            self.energy_parity_ev_per_atom,
            self.force_parity_ev_per_angstrom,
            self.stress_parity_gpa,
        )


class Agreement(Frozen):
    """RMSE of the artefact and as reported by the trainer; the job fails if they differ.

    ``train`` excludes the validation part, if there is one. Stresses are None if they are not
    fitted, or a structure of the set has none.
    """

    side: Literal["train", "test", "validation"]
    errors: Errors
    errors_by_trainer: Errors
    relative_tolerance: float


class Conversion(Frozen):
    """Largest differences between ``potential.yace`` and the ``potential.yaml`` it was made from.

    ``structures`` is the number of compared structures: all of the test set, and up to a thousand
    of the training set. The job fails if a difference exceeds rounding errors.
    """

    structures: int
    max_energy_difference_mev_per_atom: float
    max_force_difference_mev_per_angstrom: float


class Change(NamedTuple):
    """A figure of two generations; `relative` is new/old - 1, None for an old one of 0."""

    old: float
    new: float

    @property
    def relative(self) -> float | None:
        """Relative change."""
        return self.new / self.old - 1 if self.old > 0 else None


class ParentComparison(Frozen):
    """Errors of a predecessor and of a generation, measured by this run on common test structures.

    An error is None if the structures have no label of it.
    """

    generation: int
    structures: int
    old: Errors
    new: Errors

    @property
    def rmse(self) -> Three[Change | None]:
        """By quantity."""
        energy, force, stress = (
            None if old is None or new is None else Change(old, new)
            for old, new in zip(self.old.rmse, self.new.rmse, strict=True)
        )
        return energy, force, stress


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
