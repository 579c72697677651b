"""Shell scripts from templates, in which no value can become code."""

from __future__ import annotations

import shlex
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


class Code(str):
    """Text that stands in a script as it is: code that the user wrote, or a quoted value."""

    __slots__ = ()


def render(template: str, **values: object) -> str:
    """Fill a template; whatever is inserted and is no `Code` gets quoted for the shell."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(  # noqa: S701 - quoted for a shell, not for HTML
        loader=PackageLoader("mlip_job.schedulers"),
        finalize=_quote,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _quote(value: object) -> str:
    return value if isinstance(value, Code) else shlex.quote(str(value))
