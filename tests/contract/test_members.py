"""A generation is a single fit or an ensemble; a partly trained one keeps its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlip_job.errors import ConflictError
from mlip_job.registry import MemberRegistry, Registry
from mlip_job.registry.members import discard_single_fit, require_one_kind
from tests.contract.test_checkpoints import DATASET, at, save


def begin_ensemble(registry: Registry, members: int) -> MemberRegistry:
    """Let the first member store what all members have in common."""
    first = MemberRegistry(registry.store, "cu-ni", 1, of=members, config_sha256="0" * 64)
    first.agree_on_dataset(3, DATASET)
    return first


def test_a_started_ensemble_is_no_single_fit(registry: Registry) -> None:
    """The error says what exists; members resume, and --fresh allows either kind."""
    begin_ensemble(registry, 3)
    with pytest.raises(ConflictError, match="an ensemble of 3, not as a single fit") as refused:
        require_one_kind(registry, 3, None, fresh=False)
    assert refused.value.message.endswith("none trained, members 1, 2, 3 missing")
    hint = str(refused.value.hint)
    assert "mlip-job run -g 3 --member 1 --of 3" in hint
    assert "mlip-job submit -g 3 --ensemble 3" in hint
    assert "--fresh" in hint
    require_one_kind(registry, 3, 3, fresh=False)
    require_one_kind(registry, 3, None, fresh=True)
    require_one_kind(registry, 4, None, fresh=False)


def test_a_partly_trained_single_fit_is_no_ensemble(registry: Registry, tmp_path: Path) -> None:
    begin_ensemble(registry, 2)
    save(registry.checkpoints(3), tmp_path, "a1", 1, at(7))
    with pytest.raises(ConflictError, match="half trained as a single fit") as refused:
        require_one_kind(registry, 3, 2, fresh=False)
    assert "mlip-job run -g 3 resumes it" in str(refused.value.hint)
    require_one_kind(registry, 3, None, fresh=False)  # --fresh replaced the ensemble
    require_one_kind(registry, 3, 2, fresh=True)
    discard_single_fit(registry, 3)
    require_one_kind(registry, 3, 2, fresh=False)
    with pytest.raises(ConflictError, match="an ensemble of 2"):
        require_one_kind(registry, 3, None, fresh=False)


@pytest.mark.parametrize("alive", ["member", "single fit"])
def test_live_attempts_are_not_discarded(registry: Registry, alive: str) -> None:
    """A run of the other kind would publish the same generation."""
    member = begin_ensemble(registry, 2)
    place, asked = (member, None) if alive == "member" else (registry, 2)
    claim = place.claim(3, "a1", stale_after_s=600)
    with pytest.raises(ConflictError, match="is being trained by attempt a1"):
        require_one_kind(registry, 3, asked, fresh=True)
    claim.release()
    require_one_kind(registry, 3, asked, fresh=True)
