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


def matching(pattern: str, problem: str) -> AfterValidator:
    """Return a validator of texts that match a pattern; `problem` may contain ``{text!r}``."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(problem.format(text=text))
        return text

    return AfterValidator(check)


def _refuse_query(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("takes an address without a query (?) and without a fragment (#)")
    return url


Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Element = Annotated[
    str,
    matching("[A-Z][a-z]?", "{text!r} is no symbol of an element"),
    Field(json_schema_extra={"pattern": "^[A-Z][a-z]?$"}),
]

Address = Annotated[str, AfterValidator(_refuse_query)]
"""URL of a server, without query and fragment, which may hold secrets. The chart's schema has no
pattern for it, since helm prints a value that does not match."""


class Part(BaseModel):
    """Base of every part: frozen, unknown keys rejected, values omitted from error texts.

    No text in it holds a secret or a control character: it may become a line of a script, of a log
    or of a published manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    secrets_belong: ClassVar[str] = "take it out; a run finds secrets in its environment"
    """Advice for a secret in this part."""

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
