"""Load a JobConfig from YAML, environment and ``--set`` (the last wins), and explain its errors."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from mlip_job.config.job import JobConfig
from mlip_job.config.removed import replacement_of_key
from mlip_job.errors import ConfigError
from mlip_job.secret_texts import problem_in, redact
from mlip_job.yaml_text import DEEPEST, YamlError, load_yaml, load_yaml_with_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Location = tuple[str | int, ...]

# Keys that take several kinds of values. Pydantic reports why each kind does not fit; the error
# names the kinds instead.
ALTERNATIVES: Mapping[str, str] = {
    "dataset.reference_energies": "auto, 0, or an energy for each element as in {Cu: -3.72}",
    "evaluation.active_set": "true, false, linear or full",
    "training.elements": "auto, or a list of elements as in [Cu, Ni]",
    "training.functions_per_element": "auto or a whole number",
    "training.ladder_step": "null, a whole number, a fraction, or both as in [100, 0.1]",
    "training.start_from": "previous, none, or the number of a generation",
    "training.weighting": "uniform, {energy_based: {…}} or {by_group: {NAME: {energy: 2}}}",
}


def _explain(error: ValidationError, places: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    """Yield a line for each error, which ends with the place where the key was set."""
    for location, line in _lines(error):
        path = tuple(map(str, location))
        around = (path[:length] for length in range(len(path), 0, -1))
        place = next((places[one] for one in around if one in places), None)
        yield f"{line} ({place})" if place is not None else line


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
    """Explain the error in the kind of value that was meant, else name all kinds."""
    depth = max(len(detail["loc"]) for detail in details)
    deepest = [detail for detail in details if len(detail["loc"]) == depth]
    # The third part of a location is pydantic's name of the kind; a value may be nested below it.
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


ENVIRONMENT_PREFIX = "MLIP_JOB__"

_LARGEST_BYTES = 1 << 20
_LARGEST_NODES = 100_000  # values, with those that aliases stand for

# Where each key was set, by its path: "line 3", "--set", "MLIP_JOB__STORAGE__URL".
_Places = dict[tuple[str, ...], str]


def load_config(
    path: Path, *, assignments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> JobConfig:
    """Read and validate a configuration.

    Relative paths in it (database file, directory store, work directory, …) are relative to the
    directory of the file. `assignments` are the ``key.sub=value`` texts of ``--set``; in the
    environment, by default that of the process, ``MLIP_JOB__STORAGE__URL`` sets ``storage.url``.
    Values of both are YAML.

    Raises
    ------
    ConfigError
        With one line for every key that is wrong.
    """
    values, places = _read_yaml(path)
    for keys, value in _from_environment(os.environ if environment is None else environment):
        _assign(values, keys, value, places, f"{ENVIRONMENT_PREFIX}{'__'.join(keys).upper()}")
    for number, assignment in enumerate(assignments, start=1):
        keys, value = _parse_assignment(assignment, number)
        _assign(values, keys, value, places, "--set")
    config = validate_config(values, source=str(path), places=places)
    return _anchor(config, path.resolve().parent)


def validate_config(
    values: Mapping[str, Any],
    *,
    source: str,
    places: Mapping[tuple[str, ...], str] | None = None,
) -> JobConfig:
    """Validate plain values; errors name the source and the places where keys were set."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _explain(error, places or {}))
        raise ConfigError(
            redact(f"{source}: the configuration is not valid\n{problems}"),
            hint="mlip-job config schema lists every key with its meaning",
        ) from None


def _read_yaml(path: Path) -> tuple[dict[str, Any], _Places]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
        if len(data) > _LARGEST_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB: it is no configuration")
        values, lines = load_yaml_with_lines(data.decode(), largest=_LARGEST_NODES)
    except FileNotFoundError:
        raise ConfigError(
            f"no configuration at {path}", hint="mlip-job init writes one, or name it with -c FILE"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} can't be read: byte {error.start} is not UTF-8") from None
    except YamlError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    return values, {keys: f"line {line}" for keys, line in lines.items()}


def _from_environment(environment: Mapping[str, str]) -> Iterable[tuple[list[str], Any]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            yield keys, _parse_value(environment[name], name, keys)


def _parse_assignment(assignment: str, number: int) -> tuple[list[str], Any]:
    key, separator, value = assignment.partition("=")
    if not separator or not all(key.split(".")):
        # It is not repeated: without its "=" it may be anything, a URL with a password too.
        raise ConfigError(
            f"--set number {number} is not key=value", hint="e.g. --set training.cutoff=6.0"
        )
    keys = key.strip().split(".")
    return keys, _parse_value(value, redact(f"--set {key}")[:200], keys)


def _parse_value(text: str, source: str, keys: Sequence[str]) -> Any:
    if len(keys) > DEEPEST:
        raise ConfigError(f"{source[:100]}…: keys are nested more than {DEEPEST} levels deep")
    try:
        return load_yaml(text, largest=_LARGEST_NODES)
    except YamlError as error:
        raise ConfigError(
            f"{source}: the value is not valid YAML: {error}", hint="quote it"
        ) from None


def _assign(
    values: dict[str, Any], keys: Sequence[str], value: object, places: _Places, place: str
) -> None:
    for path in [path for path in places if path[: len(keys)] == tuple(keys)]:
        del places[path]
    places[tuple(keys)] = place
    *parents, last = keys
    for key in parents:
        child = values.get(key)
        if not isinstance(child, dict):
            child = values[key] = {}
        values = child
    values[last] = value


def _anchor(config: JobConfig, base: Path) -> JobConfig:
    """Make the relative paths of a configuration absolute."""

    def anchored(path: str, key: str) -> str:
        try:
            full = path if "://" in path else str(base / Path(path).expanduser())
        except RuntimeError:
            raise ConfigError(f"{key}: no user has the home directory that ~ stands for") from None
        if (problem := problem_in(full)) is not None:
            raise ConfigError(
                f"{key}: its path {problem}", hint="rename the directory of the configuration"
            )
        return full

    url = anchored(config.database.url, "database.url")
    database = config.database.model_copy(update={"url": url})
    url = anchored(config.storage.url, "storage.url")
    storage = config.storage.model_copy(update={"url": url})
    slurm = config.submit.slurm
    files = {"env_file": slurm.env_file, "image": slurm.image}
    files |= {"command": slurm.command} if "/" in slurm.command else {}
    paths = {
        key: anchored(path, f"submit.slurm.{key}")
        for key, path in files.items()
        if path is not None
    }
    submit = config.submit.model_copy(update={"slurm": slurm.model_copy(update=paths)})
    return config.model_copy(
        update={
            "database": database,
            "storage": storage,
            "submit": submit,
            "work_dir": anchored(config.work_dir, "work_dir"),
        }
    )
