"""The dataset that was decided for a generation before its fit, checked against the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.dataset.connection import describe_url
from mlip_job.dataset.query import query_key
from mlip_job.environment import job_of_this_start
from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name
from mlip_job.registry.decisions import Decision, read_decision

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.registry import AttemptPart, DatasetReference, Registry


def decision_for(
    config: JobConfig, generation: int, dataset: DatasetReference, attempt: AttemptPart
) -> Decision:
    """Return the decision that a generation is trained on a dataset, which an attempt made."""
    return Decision(
        settings=_settings_key(config, generation),
        dataset=dataset,
        job=job_of_this_start(),
        attempt=attempt,
    )


def attempts_before(
    generation: int, registry: Registry, dataset: DatasetReference
) -> tuple[AttemptPart, ...]:
    """Return the attempt that decided a generation's dataset; empty where none is known."""
    decision = read_decision(registry, generation)
    if decision is None or decision.dataset != dataset or decision.attempt is None:
        return ()
    return (decision.attempt,)


def was_decided(
    config: JobConfig, generation: int, registry: Registry, dataset: DatasetReference
) -> bool:
    """Tell whether a dataset was decided for a generation, with these very settings."""
    decision = read_decision(registry, generation)
    wanted = (_settings_key(config, generation), dataset)
    return decision is not None and (decision.settings, decision.dataset) == wanted


def _settings_key(config: JobConfig, generation: int) -> str:
    """Return the hash of the settings that a generation's dataset follows from.

    Its lineage is left out: generations that are published meanwhile change nothing.
    """
    database = config.database.for_generation(generation)
    url = describe_url(database.url)
    return query_key(url, database.select, config.dataset, config.training, parent=None)


def decided_dataset(
    config: JobConfig, generation: int, registry: Registry
) -> DatasetReference | None:
    """Return the dataset that a generation is to be trained on; None where none is decided.

    Raises
    ------
    ConfigError
        If it was decided with other settings.
    """
    decision = read_decision(registry, generation)
    if decision is None:
        return None
    if decision.settings != _settings_key(config, generation):
        raise ConfigError(
            f"the dataset of {generation_name(generation)} was decided with another database or "
            "selection, or with other settings of dataset and training",
            hint="undo that, or start over with --fresh, which takes the database as it is now",
        )
    return decision.dataset
