"""Types and the base class of every part of the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from mlip_job.secret_texts import problem_in


def _require_symbol(text: str) -> str:
    if re.fullmatch("[A-Z][a-z]?", text) is None:
        raise ValueError(f"{text!r} is no symbol of an element")
    return text


def _refuse_query(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("takes an address without a query (?) and without a fragment (#)")
    return url


Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Element = Annotated[
    str, AfterValidator(_require_symbol), Field(json_schema_extra={"pattern": "^[A-Z][a-z]?$"})
]

Address = Annotated[str, AfterValidator(_refuse_query)]
"""URL of a server. What a query or a fragment would hold is a secret, by any name. The chart's
schema has no pattern for it, since helm prints a value that does not match."""


class Part(BaseModel):
    """Base of every part: frozen, unknown keys rejected, values omitted from error texts.

    No text in it holds a secret or a control character: it may become a line of a script, of a log
    or of a published manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    secrets_belong: ClassVar[str] = "take it out; a run finds secrets in its environment"
    """What to do with a secret that stands in this part."""

    @field_validator("*", mode="before")
    @classmethod
    def _texts_are_plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject secrets and control characters; a nested part checks its own texts."""
        annotation = cls.model_fields[f"{info.field_name}"].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Part)):
            problem = problem_in(value)
            if problem is not None:
                advice = f"; {cls.secrets_belong}" if "secret" in problem else ""
                raise ValueError(problem + advice)
        return value
