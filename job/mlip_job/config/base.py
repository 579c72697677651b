"""What every part of the configuration is built from."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _require_symbol(text: str) -> str:
    if re.fullmatch("[A-Z][a-z]?", text) is None:
        raise ValueError(f"{text!r} is no symbol of an element")
    return text


Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Element = Annotated[
    str, AfterValidator(_require_symbol), Field(json_schema_extra={"pattern": "^[A-Z][a-z]?$"})
]


class Part(BaseModel):
    """Base of every part: frozen, unknown keys refused, values kept out of error texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
