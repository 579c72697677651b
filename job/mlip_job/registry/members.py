"""The members of an ensemble: each trained separately under its generation.

::

    generations/gen_04/
      ensemble.json                what all members have in common, decided by the first
      members/member_02/           claim.json  attempts/  manifest.json
      manifest.json                of the generation, once all members are there
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.errors import (
    ConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UnavailableError,
)
from mlip_job.paths import MEMBERS, FamilyKeys, generation_name
from mlip_job.registry.claim import is_live, read_claim
from mlip_job.registry.manifest import DatasetReference
from mlip_job.registry.registry import Registry
from mlip_job.store.base import unreadable

if TYPE_CHECKING:
    from mlip_job.registry.manifest import Manifest
    from mlip_job.store.base import ObjectStore

_MEMBER = re.compile(r"member_(\d{2,})")
AGREEMENT = "ensemble.json"


class Agreement(BaseModel):
    """Content of ``ensemble.json``.

    Attributes
    ----------
    members
        How many there are.
    config_sha256
        `JobConfig.fingerprint` of the configuration without the members' own seeds.
    dataset
        What all train on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    members: int
    config_sha256: str
    dataset: DatasetReference


class MemberRegistry(Registry):
    """Where one member is trained: what it writes is its own, all else its family's.

    Parameters
    ----------
    store, family
        See `Registry`.
    number
        Which member, from 1.
    of, config_sha256
        Of the ensemble; needed by who trains, not by who looks.
    """

    def __init__(
        self, store: ObjectStore, family: str, number: int, *, of: int = 0, config_sha256: str = ""
    ) -> None:
        super().__init__(store, family)
        self.own = FamilyKeys(family, number)
        self._of = of
        self._config_sha256 = config_sha256

    def agreed_dataset(self, generation: int) -> DatasetReference | None:
        """Return the dataset that the first member decided on, or None for that one.

        Raises
        ------
        ConflictError
            If the generation is an ensemble of another size or configuration.
        """
        agreement = read_agreement(self, generation)
        if agreement is None:
            return None
        name = generation_name(generation)
        if (agreement.members, agreement.config_sha256) != (self._of, self._config_sha256):
            raise ConflictError(
                f"{name} is being trained as an ensemble of {agreement.members} members"
                + (
                    f", not {self._of}"
                    if agreement.members != self._of
                    else " with another configuration"
                ),
                hint="submit it as it was, or train it as another generation",
            )
        return agreement.dataset

    def agree_on_dataset(self, generation: int, dataset: DatasetReference) -> None:
        """Decide on the dataset, unless another member was faster.

        Raises
        ------
        UnavailableError
            If another one was, with another dataset: the next run takes that.
        """
        agreement = Agreement(members=self._of, config_sha256=self._config_sha256, dataset=dataset)
        key = self.keys.generation(generation, AGREEMENT)
        try:
            self.store.put_if_absent(key, agreement.model_dump_json(indent=2).encode())
        except ObjectExistsError:
            agreed = self.agreed_dataset(generation)
            if agreed is not None and agreed.id != dataset.id:
                raise UnavailableError(
                    f"the database changed while the members of {generation_name(generation)} "
                    "began, and another member was first",
                    hint="start this one again: it takes the same dataset",
                ) from None

    def roll_forward(self, manifest: Manifest) -> None:
        """Do nothing: only a generation has copies and a pointer."""


def read_agreement(registry: Registry, generation: int) -> Agreement | None:
    """Return what the members of a generation have in common; None where it has none."""
    key = registry.keys.generation(generation, AGREEMENT)
    try:
        return Agreement.model_validate_json(registry.store.get(key))
    except ObjectNotFoundError:
        return None
    except ValidationError as error:
        hint = "delete it, and train again"
        raise unreadable(f"{key} can't be read", error, hint=hint) from None


def require_one_kind(
    registry: Registry, generation: int, members: int | None, *, fresh: bool
) -> None:
    """Reject a single fit if an ensemble is partly trained, and vice versa.

    Parameters
    ----------
    registry
        Of the family.
    generation
        What is to be trained.
    members
        As an ensemble of so many; None for a single fit.
    fresh
        Whether it starts over. Then only a run of the other kind that is alive is in the way.

    Raises
    ------
    ConflictError
        Naming what there is, and the commands to resume it.
    """
    single = Registry(registry.store, registry.family)
    if fresh:
        others = members_of(registry, generation).values() if members is None else (single,)
        for other in others:
            _require_idle(other, generation)
    elif _is_single_fit(single, generation):
        if members is not None:
            raise ConflictError(
                f"{generation_name(generation)} is half trained as a single fit, not as an "
                "ensemble",
                hint=f"mlip-job run -g {generation} resumes it; --fresh starts over with members",
            )
    elif members is None and (agreement := read_agreement(registry, generation)) is not None:
        raise _half_trained(registry, generation, agreement.members)


def discard_single_fit(registry: Registry, generation: int) -> None:
    """Remove the checkpoints of a single fit, which members that start over take the place of."""
    Registry(registry.store, registry.family).checkpoints(generation).discard()


def _is_single_fit(single: Registry, generation: int) -> bool:
    checkpoints = single.checkpoints(generation)
    return bool(checkpoints.found() or checkpoints.unreadable())


def _require_idle(other: Registry, generation: int) -> None:
    key = other.own.claim(generation)
    claim = read_claim(other.store, key)
    with suppress(StoreError):  # without write access this is unknown; the run will check
        if claim is not None and is_live(other.store, key, claim):
            raise ConflictError(
                f"{other.own.folder(generation)} is being trained by attempt {claim.attempt}",
                hint="stop it first; it counts as abandoned after "
                f"{claim.stale_after_s:.0f} s without a sign of life",
            )


def _half_trained(registry: Registry, generation: int, size: int) -> ConflictError:
    of = {n: MemberRegistry(registry.store, registry.family, n) for n in range(1, size + 1)}
    missing = [n for n, member in of.items() if member.find_own(generation) is None]
    trained = [n for n in of if n not in missing]
    run = f"mlip-job run -g {generation} --member {(missing or [size])[0]} --of {size}"
    return ConflictError(
        f"{generation_name(generation)} is half trained as an ensemble of {size}, not as a "
        f"single fit: {_numbers('trained', trained)}, {_numbers('missing', missing)}",
        hint=f"{run} resumes it, as does mlip-job submit -g {generation} --ensemble {size}; "
        "--fresh starts over with a single fit",
    )


def _numbers(word: str, members: list[int]) -> str:
    if not members:
        return f"none {word}"
    return f"member{'s' if len(members) > 1 else ''} {', '.join(map(str, members))} {word}"


def members_of(registry: Registry, generation: int) -> dict[int, MemberRegistry]:
    """Return the members that have left anything in the store, by their numbers."""
    names = registry.store.list_prefixes(registry.keys.generation(generation, MEMBERS))
    numbers = sorted(int(match.group(1)) for name in names if (match := _MEMBER.fullmatch(name)))
    return {n: MemberRegistry(registry.store, registry.family, n) for n in numbers}
