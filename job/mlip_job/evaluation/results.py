"""What an evaluation found: the models of its part of ``report.json``.

Energies are those of the potential with the reference energies added back, so they compare with
DFT's. Forces are single components. Errors are predicted minus reference. None is not known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlip_job.models import Frozen, FullErrors

Verdict = Literal["passed", "failed", "skipped"]


class ErrorStatistics(Frozen):
    """Errors of one quantity, in the unit that the key of the statistics names.

    Attributes
    ----------
    count
        Number of values: structures, force components, stress components.
    rmse, mae, max
        Root mean square, mean absolute and largest absolute error.
    p50, p90, p99
        Percentiles of the absolute error.
    """

    count: int
    rmse: float
    mae: float
    max: float
    p50: float
    p90: float
    p99: float


class Histogram(Frozen):
    """Counts between edges, of which there is one more; the outer bins hold what lies beyond."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Parity(Frozen):
    """Pairs of values for a plot: all of them, or a sample that the seed decides."""

    reference: tuple[float, ...]
    predicted: tuple[float, ...]
    sampled_from: int


class ConfigTypeErrors(Frozen):
    """Errors of the structures of one config type (``""`` for those without)."""

    structures: int
    energy_mev_per_atom: ErrorStatistics
    force_mev_per_angstrom: ErrorStatistics


class WorstStructure(Frozen):
    """A structure that the potential describes worst."""

    row_id: int
    formula: str
    config_type: str | None
    energy_error_mev_per_atom: float
    max_force_error_mev_per_angstrom: float
    extrapolation_grade: float | None = None


class GradeStatistics(Frozen):
    """Extrapolation grades of structures (largest over their atoms); above 1 is extrapolation.

    ``above_one`` counts those above 1.01, the tolerance with which an active set is made. On the
    training set they are of the structures that `Conversion` speaks of.

    Source: Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).
    """

    count: int
    max: float
    p50: float
    p90: float
    p99: float
    above_one: int


class SetEvaluation(Frozen):
    """Errors of the published potential on one side of the dataset."""

    structures: int
    atoms: int
    energy_mev_per_atom: ErrorStatistics
    force_mev_per_angstrom: ErrorStatistics
    stress_gpa: ErrorStatistics | None
    force_per_element_mev_per_angstrom: dict[str, ErrorStatistics]
    per_config_type: dict[str, ConfigTypeErrors]
    energy_error_histogram_mev_per_atom: Histogram
    force_error_histogram_mev_per_angstrom: Histogram
    energy_parity_ev_per_atom: Parity
    force_parity_ev_per_angstrom: Parity
    worst: tuple[WorstStructure, ...]
    extrapolation_grade: GradeStatistics | None = None

    @property
    def errors(self) -> FullErrors:
        """Of energies and forces."""
        energy, force = self.energy_mev_per_atom, self.force_mev_per_angstrom
        return FullErrors(
            rmse_energy_mev_per_atom=energy.rmse,
            rmse_force_mev_per_angstrom=force.rmse,
            mae_energy_mev_per_atom=energy.mae,
            mae_force_mev_per_angstrom=force.mae,
            max_energy_mev_per_atom=energy.max,
            max_force_mev_per_angstrom=force.max,
        )


class Agreement(Frozen):
    """The artefact's errors held against pacemaker's own, RMSE; the job fails where they differ.

    ``train`` is without the validation part, where there is one.
    """

    side: Literal["train", "test", "validation"]
    energy_mev_per_atom: float
    energy_by_pacemaker_mev_per_atom: float
    force_mev_per_angstrom: float
    force_by_pacemaker_mev_per_angstrom: float
    relative_tolerance: float


class Conversion(Frozen):
    """Largest differences between ``potential.yace`` and the ``potential.yaml`` it was made from.

    ``structures`` is for how many they were looked for: all of the test set, and up to a thousand
    of the training set. The job fails where there are any beyond rounding.
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
    """A generation and its predecessor on the same structures, both evaluated now.

    Attributes
    ----------
    generation
        The predecessor.
    structures
        Test structures that are test for both and whose elements both know.
    """

    generation: int
    structures: int
    energy_mev_per_atom: ErrorPair
    force_mev_per_angstrom: ErrorPair


class _Check(Frozen):
    """`unstable` is true of a failure that makes a potential useless for any simulation."""

    verdict: Verdict
    message: str
    unstable: bool = False


class DimerCheck(_Check):
    """Energy of two atoms over their distance, which has to be repulsive at short range.

    Attributes
    ----------
    elements
        The pair.
    distances_angstrom, energies_ev
        The curve; energies less those of the two free atoms.
    shortest_in_data_angstrom
        Shortest distance of the pair in the data, train and test, where it occurs.
    repulsive_below_angstrom
        Below it the curve rises monotonically towards shorter distances.
    """

    kind: Literal["dimer"] = "dimer"
    elements: tuple[str, str]
    distances_angstrom: tuple[float, ...]
    energies_ev: tuple[float, ...]
    shortest_in_data_angstrom: float | None
    repulsive_below_angstrom: float | None


class EnergyVolumeCheck(_Check):
    """Energy over volume of a reference structure from the data, scaled isotropically.

    ``minimum_angstrom3_per_atom`` and ``bulk_modulus_gpa`` are of a Birch-Murnaghan fit; those that
    begin with ``data_`` of one to the same crystal's energies in the data, where there are enough.
    """

    kind: Literal["energy_volume"] = "energy_volume"
    element: str
    structure: str
    volumes_angstrom3_per_atom: tuple[float, ...]
    energies_ev_per_atom: tuple[float, ...]
    minimum_angstrom3_per_atom: float | None
    bulk_modulus_gpa: float | None
    data_minimum_angstrom3_per_atom: float | None = None
    data_bulk_modulus_gpa: float | None = None


class DynamicsCheck(_Check):
    """A short run at constant energy (NVE, velocity Verlet), whose total energy may not drift."""

    kind: Literal["dynamics"] = "dynamics"
    structure: str
    atoms: int
    steps: int
    timestep_fs: float
    temperature_k: float
    drift_mev_per_atom_per_ps: float | None


class SmoothnessCheck(_Check):
    """Largest jump of the dimer's force where the cutoff or the ZBL core switches something off.

    ``place`` says which; the jump is what is left of it between two points 1e-4 Å apart.
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
    """What energies and forces of the published potential cost on one core: a measurement, no gate.

    Attributes
    ----------
    evaluator_us_per_atom
        CPU time of the C++ evaluator, µs, without neighbour lists; median of the repeats.
    structures, atoms
        Of the test set, which were evaluated in each repeat.
    repeats
        How many there were.
    cpu
        Model name of the processor.
    """

    evaluator_us_per_atom: float
    structures: int
    atoms: int
    repeats: int
    cpu: str


class GateVerdict(Frozen):
    """Whether the generation is accepted; ``reasons`` are why not, one sentence each.

    ``limits_set`` says whether the gate had limits; null where an older version wrote it.
    ``unchecked`` says which checks of stability were not possible, and why, one sentence each.
    """

    accepted: bool
    reasons: tuple[str, ...]
    limits_set: bool | None = None
    unchecked: tuple[str, ...] = ()


class Evaluation(Frozen):
    """All that was found out about a potential after its fit.

    ``test`` is None where nothing was held out. ``notes`` say what could not be found out, and why,
    in sentences. ``warnings`` say where predictions contradict the data.
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
