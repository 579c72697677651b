"""What is wrong with a configuration, one line for each key."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from mlip_job.config.models import JobConfig
from mlip_job.removed import replacement_of_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import ValidationError

    Location = tuple[str | int, ...]

# Keys that take several kinds of values. Pydantic reports why each kind does not fit; a user wants
# to know which kinds there are.
ALTERNATIVES: Mapping[str, str] = {
    "dataset.reference_energies": "auto, 0, or an energy for each element as in {Cu: -3.72}",
    "evaluation.active_set": "true, false, linear or full",
    "training.elements": "auto, or a list of elements as in [Cu, Ni]",
    "training.functions_per_element": "auto or a whole number",
    "training.ladder_step": "null, a whole number, a fraction, or both as in [100, 0.1]",
    "training.start_from": "previous, none, or the number of a generation",
    "training.weighting": "uniform, {energy_based: {…}} or {by_group: {NAME: {energy: 2}}}",
}


def explain(
    error: ValidationError, places: Mapping[tuple[str, ...], str] | None = None
) -> Iterator[str]:
    """Yield a line for everything that is wrong.

    Parameters
    ----------
    error
        What pydantic found.
    places
        Where keys were set, by their path; the line ends with it.
    """
    for location, line in _lines(error):
        place = _place(location, places or {})
        yield f"{line} ({place})" if place is not None else line


def _place(location: Location, places: Mapping[tuple[str, ...], str]) -> str | None:
    """Return where a key, or else the nearest one around it, was set."""
    path = tuple(map(str, location))
    around = (path[:length] for length in range(len(path), 0, -1))
    return next((places[one] for one in around if one in places), None)


def _lines(error: ValidationError) -> Iterator[tuple[Location, str]]:
    by_key: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        key = ".".join(map(str, detail["loc"][:2]))
        by_key.setdefault(key, []).append(detail)
    for key, details in by_key.items():
        if key in ALTERNATIVES:
            yield from _explain_alternatives(key, details)
        else:
            yield from ((detail["loc"], _line(detail["loc"], detail)) for detail in details)


def _explain_alternatives(key: str, details: Sequence[Any]) -> Iterator[tuple[Location, str]]:
    """Tell what is wrong inside the one kind of value that was meant, else name all kinds."""
    depth = max(len(detail["loc"]) for detail in details)
    deepest = [detail for detail in details if len(detail["loc"]) == depth]
    # The third part of a location is pydantic's name of the kind; a value resumes from there.
    kinds = {detail["loc"][2:3] for detail in deepest}
    if len(kinds) > 1 or depth <= len(("section", "key", "kind")):
        own = [d for d in details if d["type"] == "value_error"]
        message = _message(own[0]) if own else f"takes {ALTERNATIVES[key]}"
        yield details[0]["loc"][:2], f"{key}: {message}"
        return
    for detail in deepest:
        section, name, _kind, *inside = detail["loc"]
        location = (section, name, *(part for part in inside if part != "[key]"))
        yield location, _line(location, detail)


def _line(location: Location, detail: Any) -> str:
    where = ".".join(str(part) for part in location) or "configuration"
    if detail["type"] == "extra_forbidden":
        if (instead := replacement_of_key(where)) is not None:
            return f"{where}: this key was removed: {instead}"
        return f"{where}: unknown key{_suggestion(location)}"
    return f"{where}: {_message(detail)}"


def _message(detail: Any) -> str:
    text: str = detail["msg"]
    return text.removeprefix("Value error, ")


def _suggestion(location: Location) -> str:
    """Name the nearest key, wherever in the configuration it is."""
    known = list(_field_paths(JobConfig))
    dotted = ".".join(str(part) for part in location)
    near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.8)
    if not near:
        by_name = {path.rpartition(".")[2]: path for path in known}
        near = [
            by_name[name] for name in difflib.get_close_matches(str(location[-1]), by_name, n=1)
        ]
    return f"; did you mean {near[0]}?" if near else ""


def _field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _field_paths(candidate, f"{prefix}{name}.")
