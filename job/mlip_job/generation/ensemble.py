"""An ensemble: members differ in the seed of their fit, and the best one is published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa

from mlip_job.errors import ConfigError, ConflictError, IntegrityError
from mlip_job.paths import generation_name, member_folder
from mlip_job.registry import Artefact, Committee, CommitteeMember, MemberRegistry, Spread
from mlip_job.report.model import TrainingReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.results import Parity
    from mlip_job.generation.context import Run
    from mlip_job.registry import Headline, Manifest, Registry

_START_NOISE = 0.1
"""Relative noise on the initial coefficients of all members but the first."""


@dataclass(frozen=True)
class Member:
    """The member of an ensemble that a run trains: ``number`` (from 1) of ``of``."""

    number: int
    of: int


def config_of(config: JobConfig, number: int) -> JobConfig:
    """Return the configuration of a member.

    The first one is the fit without an ensemble. The others start from other coefficients. Those of
    gracemaker are drawn by the seed. The seed alone does not change a fit of pacemaker, whose
    coefficients start at zero or from the parent.
    """
    if number == 1:
        return config
    training = config.training
    changed: dict[str, object] = {"seed": training.seed + number - 1}
    if training.trainer == "pacemaker":
        changed["start_noise"] = training.start_noise or _START_NOISE
    training = training.model_copy(update=changed)
    return config.model_copy(update={"training": training})


def require_different_members(config: JobConfig, generation: int) -> None:
    """Raise a ConfigError if all members would start from the coefficients of a parent.

    Gracemaker can't add noise to them, so the members would be equal.
    """
    training = config.training
    from_parent = training.start_from != "none" and (
        generation > 1 or training.start_from != "previous"
    )
    if training.trainer == "grace-fs" and from_parent:
        raise ConfigError(
            "all members of an ensemble of grace-fs would start from the same coefficients, and be "
            "equal",
            hint="set training.start_from: none; split and reference energies are inherited",
        )


def registry_of(registry: Registry, config: JobConfig, member: Member) -> MemberRegistry:
    """Return the registry that a member is published to."""
    return MemberRegistry(
        registry.store,
        registry.family,
        member.number,
        of=member.of,
        config_sha256=config.fingerprint(),
    )


def require_ensemble(published: Manifest, of: int) -> None:
    """Raise a ConflictError if a generation is not an ensemble of this size."""
    found = len(published.ensemble.members) if published.ensemble is not None else 1
    if found != of:
        name = generation_name(published.generation)
        raise ConflictError(
            f"{name} of {published.family} is published with {found} of the {of} members asked for",
            hint="train it as a new generation (--generation next)",
        )


def publish_best(run: Run, of: int) -> tuple[Manifest | None, tuple[int, ...]]:
    """Publish the generation once all members are published; any run may do so.

    Returns
    -------
    Manifest or None
        The manifest of the generation; None if members are missing.
    tuple of int
        The missing members.
    """
    registry, generation, config = run.registry, run.generation, run.config
    found = {
        number: MemberRegistry(registry.store, registry.family, number).find_own(generation)
        for number in range(1, of + 1)
    }
    missing = tuple(number for number, manifest in found.items() if manifest is None)
    if missing:
        return None, missing
    members = {number: manifest for number, manifest in found.items() if manifest is not None}
    _require_same(config, members)
    committee = _committee(config, registry, members)
    manifest = _best_of(config, committee, members)
    try:
        registry.commit(manifest)
    except ConflictError:
        # Two members that end concurrently compute the same result.
        published = registry.get(generation)
        if published.ensemble != manifest.ensemble:
            raise
        return published, ()
    best = f"member {committee.best} of {of}, which has the lowest test loss"
    run.observer.message(f"published {generation_name(generation)} in {registry.store.url}: {best}")
    return manifest, ()


def _committee(config: JobConfig, registry: Registry, members: Mapping[int, Manifest]) -> Committee:
    reports = [
        TrainingReport.from_json(registry.read(manifest, "report.json"))
        for manifest in members.values()
    ]
    return Committee(
        members=tuple(_member(registry, n, m, config.training) for n, m in members.items()),
        best=min(members, key=lambda n: loss_on_test(members[n].headline, config.training)),
        spread=_spread(reports),
    )


def _best_of(config: JobConfig, committee: Committee, members: Mapping[int, Manifest]) -> Manifest:
    """Make the generation's manifest from its best member's."""
    best = members[committee.best]
    artefacts = dict(best.artefacts)
    for member in committee.members:
        folder = member_folder(member.number)
        own = members[member.number].artefacts
        artefacts |= {
            f"{folder}/{name}": artefact
            for name, artefact in own.items()
            if name.startswith("potential.") or name == "report.json"
        }
        artefacts[f"{folder}/manifest.json"] = member.manifest
    return best.model_copy(
        update={
            "started": min(manifest.started for manifest in members.values()),
            "ended": max(manifest.ended for manifest in members.values()),
            "config": config.model_dump(mode="json"),
            "config_sha256": config.fingerprint(),
            "artefacts": artefacts,
            "ensemble": committee,
        }
    )


def _member(
    registry: Registry, number: int, manifest: Manifest, training: TrainingConfig
) -> CommitteeMember:
    key = MemberRegistry(registry.store, registry.family, number).own.manifest(manifest.generation)
    data = registry.store.get(key)
    return CommitteeMember(
        number=number,
        seed=manifest.fit_seed,
        attempt=manifest.attempt,
        manifest=Artefact(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        test_loss=loss_on_test(manifest.headline, training),
        headline=manifest.headline,
    )


def loss_on_test(headline: Headline, training: TrainingConfig) -> float:
    """Return the loss on the test set, without regularisation.

    If nothing is held out, the training set is used.
    """
    tested = headline.test.rmse_energy_mev_per_atom is not None
    errors = headline.test if tested else headline.train
    energy, force = errors.rmse_energy_mev_per_atom, errors.rmse_force_mev_per_angstrom
    if energy is None or force is None:
        raise IntegrityError("a member has no errors")
    components = 3  # mean|ΔF|² refers to force vectors, the RMSE to components
    return (
        training.energy_weight * (energy / 1000) ** 2
        + training.force_weight * components * (force / 1000) ** 2
        + training.stress_weight * (GPa * (errors.rmse_stress_gpa or 0.0)) ** 2
    )


def _spread(reports: Sequence[TrainingReport]) -> Spread | None:
    """Return the spread of the predictions, from the parity samples of the reports."""
    evaluations = (report.evaluation for report in reports)
    tests = [each.test for each in evaluations if each is not None and each.test is not None]
    if len(tests) < len(reports):
        return None
    energies = _deviations([test.energy_parity_ev_per_atom for test in tests])
    forces = _deviations([test.force_parity_ev_per_angstrom for test in tests])
    if energies is None or forces is None:
        return None
    return Spread(
        energies=len(energies),
        forces=len(forces),
        mean_energy_mev_per_atom=float(energies.mean()),
        max_energy_mev_per_atom=float(energies.max()),
        mean_force_mev_per_angstrom=float(forces.mean()),
        max_force_mev_per_angstrom=float(forces.max()),
    )


def _deviations(samples: Sequence[Parity]) -> FloatArray | None:
    """Return the standard deviation over the members of each predicted value, in meV.

    The samples hold the same values, because dataset and sampling seed are the same.
    """
    if len({sample.reference for sample in samples}) > 1:
        return None
    predicted = np.array([sample.predicted for sample in samples])
    deviations: FloatArray = 1000 * predicted.std(axis=0, ddof=1)
    return deviations


def _require_same(config: JobConfig, members: Mapping[int, Manifest]) -> None:
    for number, manifest in members.items():
        if manifest.config_sha256 != config_of(config, number).fingerprint():
            raise ConflictError(
                f"member {number} of {generation_name(manifest.generation)} was trained with "
                "another configuration",
                hint="submit it as it was, or train it as another generation",
            )
    if len({manifest.dataset.id for manifest in members.values()}) > 1:
        raise IntegrityError("the members were trained on several datasets")
