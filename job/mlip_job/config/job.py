"""JobConfig and its sections: frozen; unknown keys are rejected. Units: eV, Å, eV/Å.

The description of a field is what ``mlip-job config schema`` and the comments of
``mlip-job init`` show.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mlip_job.config.fields import (
    Address,
    Element,
    Finite,
    NonNegative,
    Part,
    Positive,
    matching,
)
from mlip_job.config.schedulers import SubmitConfig
from mlip_job.config.training import TrainingConfig
from mlip_job.paths import FAMILY_PATTERN


class GateConfig(Part):
    """Limits for accepting a generation; null sets none. See docs/evaluation.md.

    Without limits, a generation is published with the verdict "no gate set".
    """

    max_energy_rmse_mev: Positive | None = Field(
        None, description="meV/atom, on the test set. A larger RMSE rejects the generation."
    )
    max_force_rmse_mev: Positive | None = Field(
        None, description="meV/Å per component, on the test set."
    )
    max_regression: NonNegative | None = Field(
        0.2,
        description="How much larger than its predecessor's an RMSE on their common test set may "
        "be: 0.2 is 20 %.",
    )
    require_physics: bool | Literal["stability"] = Field(
        "stability",
        description="Which failed physics checks reject the generation too: stability (a crystal "
        "that collapses or flies apart, a dimer that attracts at short range), true (all), or "
        "false (none).",
    )

    @property
    def has_limits(self) -> bool:
        """Whether it limits the potential itself, not only its change."""
        limits = (self.max_energy_rmse_mev, self.max_force_rmse_mev)
        return any(limit is not None for limit in limits) or self.require_physics is True


def verdict_word(*, accepted: bool, limits_set: bool | None, unchecked: bool) -> str:
    """Return the verdict on a published generation.

    `limits_set` is `GateConfig.has_limits`, None if an older version did not record it; `unchecked`
    means that a check of stability was not possible.
    """
    if not accepted:
        return "rejected"
    if limits_set is None:
        return "published"
    if not limits_set:
        return "published, no gate set"
    return "accepted, stability not checked" if unchecked else "accepted"


class EvaluationConfig(Part):
    """Evaluation of a potential after its fit."""

    gate: GateConfig = GateConfig()
    active_set: bool | Literal["linear", "full"] = Field(
        True,
        description="Active set for extrapolation grades, published as potential.asi: true or "
        "linear, full (on all densities), or false.",
    )
    dynamics_steps: int = Field(
        200, ge=0, description="Steps of each test run at constant energy; 0 leaves them out."
    )

    @property
    def active_set_kind(self) -> Literal["linear", "full"] | None:
        """Which active set is to be made, or None."""
        if isinstance(self.active_set, bool):
            return "linear" if self.active_set else None
        return self.active_set


class TrackingConfig(Part):
    """A tracking server for the runs of many projects."""

    secrets_belong: ClassVar[str] = (
        "take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, instead"
    )

    mlflow_uri: Address | None = Field(
        None,
        description="MLflow tracking server, as http://host:5000. Credentials come from "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    )

    @field_validator("mlflow_uri")
    @classmethod
    def _server(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise ValueError("is no URL") from None  # its own text repeats a part of it
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("takes the address of a server, as http://host:5000")
        return uri


class DatabaseConfig(Part):
    """Database of the labelled structures."""

    secrets_belong: ClassVar[str] = "take it out and set MLIP_JOB_DATABASE_PASSWORD instead"

    url: str = Field(
        "structures.db",
        min_length=1,
        description="ASE database: an SQLite file, postgresql://user@host:port/name or "
        "mysql://user@host:port/name. The password comes from MLIP_JOB_DATABASE_PASSWORD "
        "(or PGPASSWORD, MYSQL_PWD).",
    )
    select: str = Field(
        "status=completed",
        description="ASE selection string; {generation} in it stands for the number.",
    )

    def for_generation(self, generation: int) -> Self:
        """Return a copy with ``{generation}`` replaced in its selection."""
        select = self.select.replace("{generation}", str(generation))
        return self.model_copy(update={"select": select})


class DatasetConfig(Part):
    """Validation and split of the selected rows."""

    seed: int = Field(
        42, description="Seed of the train/test split; no effect with dataset.split_key."
    )
    group_by: str | None = Field(
        None,
        description="key_value_pair that names a trajectory or parent structure: "
        "a group never straddles the split.",
    )
    split_key: str | None = Field(
        None,
        description="key_value_pair whose values train and test, and no others, decide the side "
        "of each row, as in a published split. dataset.seed and training.test_fraction have no "
        "effect then. A group or equal structures on both sides, and a row that the parent "
        "generation has on the other, are refused.",
    )
    config_type: str = Field(
        "config_type",
        description="key_value_pair that names the type of a structure (bulk, surface, …), "
        "for weights and error tables. Rows without it have none.",
    )
    energy: Literal["free_energy", "energy"] = Field(
        "free_energy",
        description="free_energy is force-consistent; where a row lacks it, its energy is taken "
        "and the dataset's record says so.",
    )
    max_force: Positive | None = Field(
        None, description="eV/Å. A row with a larger force on any atom is rejected and listed."
    )
    reference_energies: Literal["auto", 0] | dict[Element, Finite] = Field(
        "auto",
        description="Energy of one atom of each element, eV, subtracted before the fit. auto: "
        "taken from isolated atoms, else fitted once by the first generation, and inherited.",
    )
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="More rejected rows than this fraction is an error."
    )
    duplicate_tolerance: NonNegative = Field(
        0.001,
        description="eV/atom. Identical structures with energies further apart are an error.",
    )


class StorageConfig(Part):
    """Store of datasets and generations."""

    secrets_belong: ClassVar[str] = (
        "take it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
    )

    url: str = Field("store", min_length=1, description="A directory, or s3://bucket/prefix.")
    endpoint_url: Address | None = Field(None, description="Endpoint of an S3-compatible store.")
    region: str | None = None


class RunConfig(Part):
    """Behaviour of a run on its machine; it does not change the potential."""

    checkpoint_interval: Positive = Field(
        300.0, description="s. Time between checkpoints; at most this much training is lost."
    )
    heartbeat_interval: Positive = Field(
        30.0,
        description="s. Time between heartbeats of a run. After ten missing ones, another run "
        "may take over the generation.",
    )
    stall_timeout: Positive = Field(
        3600.0,
        description="s. A fit without iteration, output and CPU use for this time is ended. "
        "Building graphs for many elements takes minutes without output, but uses the CPU.",
    )
    stop_timeout: Positive = Field(
        20.0,
        description="s. After a stop signal, how long the last checkpoint may take to be stored. "
        "Keep it, and 5 s more, below the scheduler's grace period.",
    )
    retry_timeout: NonNegative = Field(
        300.0, description="s. How long to retry an unavailable store or database."
    )


class JobConfig(Part):
    """The whole configuration of a family."""

    family: Annotated[
        str,
        matching(FAMILY_PATTERN, "takes up to 40 lower-case letters, digits and '-', as in cu-ni"),
    ] = Field(
        description="Name of the potential under development: lower-case letters, digits, '-'.",
        json_schema_extra={"pattern": f"^{FAMILY_PATTERN}$"},
    )
    database: DatabaseConfig = DatabaseConfig()
    dataset: DatasetConfig = DatasetConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    storage: StorageConfig = StorageConfig()
    run: RunConfig = RunConfig()
    submit: SubmitConfig = SubmitConfig()
    tracking: TrackingConfig = TrackingConfig()
    work_dir: str = Field("work", min_length=1, description="Local directory of running attempts.")

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        """Reject limits on errors without a test set."""
        gate = self.evaluation.gate
        limits = [
            f"evaluation.gate.{name}"
            for name, limit in (
                ("max_energy_rmse_mev", gate.max_energy_rmse_mev),
                ("max_force_rmse_mev", gate.max_force_rmse_mev),
            )
            if limit is not None
        ]
        if limits and self.training.test_fraction == 0 and self.dataset.split_key is None:
            raise ValueError(
                f"training.test_fraction: 0 holds nothing out, so {' and '.join(limits)} can't be "
                "judged: set them to null, or hold structures out"
            )
        return self

    def fingerprint(self) -> str:
        """Return the sha256 of the dataset and training settings, which decide the potential.

        It does not depend on the locations of database, store and work directory, nor on
        `require_gpu` or the gate.
        """
        decisive = {
            "dataset": self.dataset.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", exclude={"require_gpu"}),
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
