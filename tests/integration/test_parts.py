"""A run in parts: the dataset, the fit and publishing in three jobs, with the real pacemaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mlip_job.errors import ConfigError, GpuRequiredError
from mlip_job.pipeline import Member, Outcome, Reached, Until, run_generation, run_part
from mlip_job.registry import members_of
from mlip_job.registry.decisions import read_decision
from mlip_job.registry.maintenance import collect_garbage, parse_age
from mlip_job.registry.training_now import unfitted_members
from mlip_job.store.open import open_store
from mlip_job.training.signals import StopRequest
from tests.generations import Family, Silent, family, trained
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli import Ended

    Cli = Callable[..., Ended]

__all__ = ["family", "trained"]
pytestmark = pytest.mark.pacemaker


def run(family: Family, until: Until | None, **options: Any) -> Reached | Outcome | None:
    """Run generation 2, or a part of it."""
    config = family.config
    with StopRequest() as stop:
        how = {"store": open_store(config.storage), "observer": Silent(), "stop": stop, **options}
        if until is not None:
            return run_part(config, 2, until, **how)
        return run_generation(config, 2, **how)


def configure(family: Family, **training: Any) -> None:
    """Change settings of the training."""
    values = yaml.safe_load(family.config_path.read_text())
    values["training"] |= training
    family.config_path.write_text(yaml.safe_dump(values))


def test_three_jobs_publish_what_the_first_one_decided(family: Family) -> None:
    """Rows that are written after the first are for the next generation, and none is read."""
    reached = run(family, Until.DATASET)
    assert isinstance(reached, Reached)
    family.database.unlink()
    fitted = run(family, Until.FIT)
    assert isinstance(fitted, Reached)
    assert family.registry.find(2) is None
    (checkpoint, *_) = family.registry.checkpoints(2).found()
    assert checkpoint.position.finished
    outcome = run(family, None)
    assert isinstance(outcome, Outcome)
    assert outcome.manifest.dataset == reached.dataset == fitted.dataset
    parts = outcome.manifest.attempts
    assert [part.iterations for part in parts] == [0, outcome.manifest.headline.iterations, 0]
    # A pod that is started once more finds all done, and needs no database either.
    for until in (*Until, None):
        again = run(family, until)
        assert again is None if until else isinstance(again, Outcome) and not again.created


def test_a_database_that_moved_changes_nothing_published(family: Family) -> None:
    """What was decided names another place then; the rows themselves are looked at instead."""
    run(family, Until.DATASET)
    run(family, None)
    values = yaml.safe_load(family.config_path.read_text())
    family.database.rename(family.root / "moved.db")
    family.config_path.write_text(yaml.safe_dump(values | {"database": {"url": "moved.db"}}))
    again = run(family, None)
    assert isinstance(again, Outcome)
    assert not again.created


def test_parts_are_idempotent(family: Family) -> None:
    """Each again changes nothing: the same dataset, the same fit."""
    first = run(family, Until.DATASET)
    decision = read_decision(family.registry, 2)
    write_database(family.database, rattled(4, seed=5))
    assert run(family, Until.DATASET) == first
    assert read_decision(family.registry, 2) == decision
    fitted = run(family, Until.FIT)
    (before, *_) = family.registry.checkpoints(2).found()
    assert run(family, Until.FIT) == fitted
    assert run(family, Until.DATASET) == first
    (after, *_) = family.registry.checkpoints(2).found()
    assert (before.attempt, before.files) == (after.attempt, after.files)


def test_fresh_decides_anew(family: Family) -> None:
    """By the database as it is now."""
    first = run(family, Until.DATASET)
    write_database(family.database, rattled(4, seed=5))
    second = run(family, Until.DATASET, fresh=True)
    assert isinstance(first, Reached)
    assert isinstance(second, Reached)
    assert first.dataset != second.dataset
    decision = read_decision(family.registry, 2)
    assert decision is not None
    assert decision.dataset == second.dataset


def test_fresh_keeps_what_the_job_itself_decided(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started once more, it does not decide again; whoever decides the same leaves it the job's."""
    write_database(family.database, rattled(2, seed=4))
    other = run(family, Until.DATASET)
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB_UID", "0b7c")
    write_database(family.database, rattled(4, seed=5))
    first = run(family, Until.DATASET, fresh=True)
    write_database(family.database, rattled(4, seed=6))
    assert run(family, Until.DATASET, fresh=True) == first != other
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB_UID", "fit")
    assert run(family, Until.DATASET) == first
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB_UID", "0b7c")
    assert run(family, Until.DATASET, fresh=True) == first
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB_UID", "d41d")
    assert run(family, Until.DATASET, fresh=True) != first


def test_other_settings_are_refused(family: Family) -> None:
    """A dataset of one cutoff is not silently trained on with another."""
    run(family, Until.DATASET)
    configure(family, cutoff=6.0)
    with pytest.raises(ConfigError, match="decided with"):
        run(family, Until.FIT)


def test_only_the_fit_needs_a_gpu(family: Family) -> None:
    """None is here, so a fit that requires one fails; making the dataset and publishing do not."""
    configure(family, require_gpu=True)
    run(family, Until.DATASET)
    with pytest.raises(GpuRequiredError):
        run(family, Until.FIT)
    configure(family, require_gpu=False)
    run(family, Until.FIT)
    configure(family, require_gpu=True)
    assert isinstance(run(family, None), Outcome)


def test_members_train_on_what_was_decided(family: Family) -> None:
    """One job makes the dataset of all; the fits and publishing may be jobs of their own too."""
    reached = run(family, Until.DATASET)
    assert isinstance(reached, Reached)
    family.database.unlink()
    for number, left in ((1, [2]), (2, [])):
        assert isinstance(run(family, Until.FIT, member=Member(number, 2)), Reached)
        assert unfitted_members(family.registry, 2, 2) == left
    assert [*members_of(family.registry, 2)] == [1, 2]
    first = run(family, None, member=Member(1, 2))
    last = run(family, None, member=Member(2, 2))
    assert isinstance(first, Outcome)
    assert isinstance(last, Outcome)
    assert (first.missing, last.missing) == ((2,), ())
    decision = read_decision(family.registry, 2)
    assert decision is not None
    for member in members_of(family.registry, 2).values():
        manifest = member.find_own(2)
        assert manifest is not None
        assert manifest.attempts[0] == decision.attempt
    assert family.registry.get(2).dataset == reached.dataset


def test_garbage_collection_knows_what_is_decided(family: Family) -> None:
    """The dataset stays as long as the decision does."""
    write_database(family.database, rattled(4, seed=5))
    reached = run(family, Until.DATASET)
    assert isinstance(reached, Reached)
    key = family.registry.keys.dataset(reached.dataset.id, "dataset.json")
    collect_garbage(family.registry, parse_age("1h"))
    assert family.registry.store.head(key) is not None
    collect_garbage(family.registry, parse_age("0s"))
    assert family.registry.store.head(key) is None
    assert read_decision(family.registry, 2) is None


def test_the_command_says_what_it_reached(family: Family, cli: Cli) -> None:
    """In one line, or as JSON; members have one dataset, which is made for all of them."""
    options = ("-c", family.config_path, "-g", "2")
    ended = cli("run", *options, "--until", "dataset", "--json")
    assert ended.code == 0
    reached = yaml.safe_load(ended.out)
    assert reached == {"until": "dataset", "dataset": read_decision(family.registry, 2).dataset.id}
    ended = cli("run", *options, "--until", "fit")
    assert (ended.code, ended.out) == (0, "")
    assert "gen_02 is fitted; evaluation and publishing are left" in ended.err
    ended = cli("run", *options, "--until", "dataset", "--of", "2", "--member", "1")
    assert ended.code == 64
    assert "--until dataset takes no --of" in ended.err
