"""The manifest: the record whose existence makes a generation exist."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from mlip_job.config.job import GateConfig, verdict_word
from mlip_job.config.training import Trainer
from mlip_job.models import Errors, Frozen, VersionedRecord, is_unknown
from mlip_job.runtime.environment import RunEnvironment
from mlip_job.store.base import Sha256, StoredName, StoredPath, unreadable
from mlip_job.training.summary import LinearStart, LossShares


class Artefact(Frozen):
    """One published file: its key in the store, the hash of its content, its size in bytes."""

    key: StoredPath
    sha256: Sha256
    size: int


class Parent(Frozen):
    """The generation that the fit started from.

    ``continue`` keeps its basis, ``extend`` enlarges it. The hash is that of its potential.
    """

    generation: int
    mode: Literal["continue", "extend"]
    potential_sha256: str


class DatasetReference(Frozen):
    """The dataset that the generation was trained on.

    ``id`` is its content address, the name of its folder in the store; ``record_sha256`` is the
    hash of its ``dataset.json``, which names and hashes every other file. ``database`` and
    ``selection`` say where the rows came from, without secrets. ``inherited_from`` is the
    generation whose split and reference energies it continues, if any.
    """

    id: StoredName
    record_sha256: Sha256
    train: int
    test: int
    database: str
    selection: str
    inherited_from: int | None


class Timings(Frozen):
    """Where the time of one attempt went, s of wall time; docs/report.md names the stages.

    ``to_trainer_s`` is from the start of the job's process to the trainer's, None where there was
    nothing to fit. ``phases_s`` are the trainer's within the stage ``fit``, over all its starts.
    """

    to_trainer_s: float | None = None
    stages_s: dict[str, float] = Field(default_factory=dict)
    phases_s: dict[str, float] = Field(default_factory=dict)


class AttemptPart(Frozen):
    """What one attempt contributed to a fit.

    Its log and tables lie in the store under its name; ``iterations`` counts those of the learning
    curve that are its own.
    """

    attempt: StoredName
    started: datetime
    iterations: int
    timings: Timings = Timings()


class PredecessorChange(Frozen):
    """How test errors changed since another generation, both measured on the same structures.

    ``structures`` counts those that are test for both; ``energy``, ``force`` and ``stress`` are
    new RMSE / old RMSE - 1, None where the old one is 0, or no stress was measured.
    """

    generation: int
    structures: int
    energy: float | None
    force: float | None
    stress: float | None = Field(None, exclude_if=is_unknown)


class Headline(Frozen):
    """What a table of generations shows; the report has the rest.

    ``latest.json`` moves only to ``accepted`` ones. ``loss_shares`` are of the loss that the fit
    ended with. ``evaluator_us_per_atom`` is CPU time on one core, µs, a measurement of that
    machine. ``best_iteration`` is there where the published potential is not the last one.
    ``limits_set`` says whether the gate had limits; None where an older version published it.
    ``failed_checks`` are physics checks, not all of which reject; ``unchecked`` says which checks
    of stability were not possible, and why. Reasons and checks are one sentence each.
    """

    train: Errors
    test: Errors
    iterations: int
    functions: int | None
    accepted: bool
    rejected_because: tuple[str, ...] = ()
    loss_shares: LossShares | None = None
    evaluator_us_per_atom: float | None = None
    warnings: tuple[str, ...] = ()
    best_iteration: int | None = None
    limits_set: bool | None = None
    change: PredecessorChange | None = None
    failed_checks: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What is said of it: accepted, rejected, or that no gate was set."""
        return verdict_word(
            accepted=self.accepted, limits_set=self.limits_set, unchecked=bool(self.unchecked)
        )


class CommitteeMember(Frozen):
    """One member of an ensemble, from 1; ``manifest`` is its own.

    ``test_loss`` is a·MSE(E/atom) + b·mean|ΔF|² + c·MSE(stress) on the test set, with the weights
    of the fit; eV, eV/Å and eV/Å³.
    """

    number: int
    seed: int
    attempt: StoredName
    manifest: Artefact
    test_loss: float
    headline: Headline


class Spread(Frozen):
    """How far the members' predictions for the test set are apart: standard deviations.

    Of ``energies`` energies and ``forces`` force components, the mean and the largest one.
    """

    energies: int
    forces: int
    mean_energy_mev_per_atom: float
    max_energy_mev_per_atom: float
    mean_force_mev_per_angstrom: float
    max_force_mev_per_angstrom: float


class Committee(Frozen):
    """The members of an ensemble; the generation's potential is that of the ``best``."""

    members: tuple[CommitteeMember, ...]
    best: int
    spread: Spread | None


class Manifest(VersionedRecord):
    """All that is known of a published generation.

    ``config`` is the configuration in full and ``config_sha256`` the hash of its decisive part
    (`JobConfig.fingerprint`). ``trainer`` decides the kind of the potential: ``.yace`` and
    ``.yaml`` of pacemaker, or ``.yaml`` of GRACE/FS. ``basis`` is the ``potential`` section of its
    input: what a later generation compares its own with. ``reference_energies`` (eV per atom) are
    what the potential's energies lack: E_DFT = E_potential + Σ n·e0. ``attempts`` are all that the
    fit went through, the publishing one last. ``ensemble`` is there where the potential is the best
    of several, and ``linear_start`` where the fit began with a linear one.
    """

    family: str
    generation: int
    attempt: StoredName
    attempts: tuple[AttemptPart, ...]
    started: datetime
    ended: datetime
    config: dict[str, Any]
    config_sha256: str
    trainer: Trainer = "pacemaker"
    elements: tuple[str, ...]
    basis: dict[str, Any]
    parent: Parent | None
    dataset: DatasetReference
    reference_energies: dict[str, float]
    split_seed: int
    fit_seed: int
    environment: RunEnvironment
    headline: Headline
    artefacts: dict[StoredPath, Artefact]
    ensemble: Committee | None = None
    linear_start: LinearStart | None = None

    @classmethod
    def from_json(cls, data: bytes, *, key: str) -> Manifest:
        """Parse a stored manifest; raise `IntegrityError` naming `key` if it is none."""
        try:
            return _with_limits(cls.model_validate_json(data))
        except ValidationError as error:
            raise unreadable(f"{key} is no manifest that this version reads", error) from None


def _with_limits(manifest: Manifest) -> Manifest:
    """Fill in what older versions did not record: whether the gate had limits."""
    if manifest.headline.limits_set is not None:
        return manifest
    evaluation = manifest.config.get("evaluation")
    gate = evaluation.get("gate") if isinstance(evaluation, dict) else None
    try:
        limits_set = GateConfig.model_validate(gate).has_limits
    except ValidationError:
        return manifest  # a gate with keys that this version does not know, or none
    headline = manifest.headline.model_copy(update={"limits_set": limits_set})
    return manifest.model_copy(update={"headline": headline})


class GenerationSummary(Frozen):
    """One row of a list of generations; the fields are those of its `Manifest`.

    ``yace_sha256`` is the hash of the potential that LAMMPS reads, where there is one.
    """

    family: str
    generation: int
    attempt: StoredName
    started: datetime
    ended: datetime
    elements: tuple[str, ...]
    parent: Parent | None
    dataset: DatasetReference
    headline: Headline
    yace_sha256: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> GenerationSummary:
        """Return the summary of a manifest."""
        yace = manifest.artefacts.get("potential.yace")
        shared = cls.model_fields.keys() & type(manifest).model_fields.keys()
        return cls(
            **{name: getattr(manifest, name) for name in shared},
            yace_sha256=yace.sha256 if yace is not None else None,
        )
