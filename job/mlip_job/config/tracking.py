"""Where a published generation is logged besides; nothing here changes the potential."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mlip_job.config.base import Address, Part


class TrackingConfig(Part):
    """A server that shows the runs of many projects side by side."""

    secrets_belong: ClassVar[str] = (
        "take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, instead"
    )

    mlflow_uri: Address | None = Field(
        None,
        description="MLflow tracking server, as http://host:5000. Credentials come from "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    )
    experiment: str | None = Field(
        None, min_length=1, description="Name of the experiment. null: the family's name."
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
