"""The members of an ensemble: each trained separately under its generation.

::

    generations/gen_04/
      ensemble.json                what all members have in common, decided by the first one
      members/member_02/           claim.json  attempts/  manifest.json
      manifest.json                of the generation, once all members are there
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from mlip_job.errors import (
    ConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UnavailableError,
)
from mlip_job.models import Record
from mlip_job.paths import MEMBERS, FamilyKeys, generation_name
from mlip_job.registry.claim import is_live, read_claim
from mlip_job.registry.manifest import DatasetReference
from mlip_job.registry.registry import Registry
from mlip_job.store.base import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlip_job.registry.manifest import Manifest
    from mlip_job.store.base import ObjectStore

_MEMBER = re.compile(r"member_(\d{2,})")
AGREEMENT = "ensemble.json"


class Agreement(Record):
    """Content of ``ensemble.json``: what all members have in common.

    ``config_sha256`` is `JobConfig.fingerprint` of the configuration without the members' own
    seeds.
    """

    schema_version: Literal[1] = 1
    members: int
    config_sha256: str
    dataset: DatasetReference


class MemberRegistry(Registry):
    """The place in the store where one member, counted from 1, is trained.

    `of` and `config_sha256` describe the ensemble; they are needed to train, not to read.
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

        Raise `ConflictError` if the generation is an ensemble of another size or configuration.
        """
        agreement = read_agreement(self, generation)
        if agreement is None:
            return None
        name = generation_name(generation)
        if (agreement.members, agreement.config_sha256) != (self._of, self._config_sha256):
            other_size = agreement.members != self._of
            raise ConflictError(
                f"{name} is being trained as an ensemble of {agreement.members} members"
                + (f", not {self._of}" if other_size else " with another configuration"),
                hint="submit it as it was, or train it as another generation",
            )
        return agreement.dataset

    def agree_on_dataset(self, generation: int, dataset: DatasetReference) -> None:
        """Decide on the dataset, unless another member was faster.

        Raise `UnavailableError` if another one was, with another dataset: the next run takes that.
        """
        agreement = Agreement(members=self._of, config_sha256=self._config_sha256, dataset=dataset)
        key = self.keys.generation(generation, AGREEMENT)
        try:
            self.store.put_if_absent(key, agreement.to_json())
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
    """Raise `ConflictError` for a single fit if an ensemble is partly trained, and vice versa.

    `members` is the size of the ensemble that is to be trained, None for a single fit. A run that
    starts over (`fresh`) conflicts only with a run of the other kind that is alive.
    """
    single = Registry(registry.store, registry.family)
    if fresh:
        others = members_of(registry, generation).values() if members is None else (single,)
        for other in others:
            _require_idle(other, generation)
    elif single.checkpoints(generation).found() or single.checkpoints(generation).unreadable():
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
    folders = registry.store.list_prefixes(registry.keys.generation(generation, MEMBERS))
    return members_in(registry, folders)


def members_in(registry: Registry, folders: Iterable[str]) -> dict[int, MemberRegistry]:
    """Return the members with these folders, by their numbers, ascending."""
    matches = (_MEMBER.fullmatch(name) for name in folders)
    numbers = sorted(int(match.group(1)) for match in matches if match is not None)
    return {n: MemberRegistry(registry.store, registry.family, n) for n in numbers}
