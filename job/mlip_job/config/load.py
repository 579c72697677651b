"""Load a JobConfig from a YAML file, the environment and ``--set``; later wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from mlip_job.config.explain import explain
from mlip_job.config.models import JobConfig
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENVIRONMENT_PREFIX = "MLIP_JOB__"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML would take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


def load_config(
    path: Path, *, assignments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> JobConfig:
    """Read and validate a configuration.

    Relative paths in it (database file, directory store, work directory, …) are taken from the
    directory of the file, so that the same file means the same wherever it is called from.

    Parameters
    ----------
    path
        The YAML file.
    assignments
        ``key.sub=value`` texts, as given to ``--set``; values are YAML.
    environment
        Defaults to the process's. ``MLIP_JOB__STORAGE__URL`` sets ``storage.url``.

    Raises
    ------
    ConfigError
        With one line for every key that is wrong.
    """
    values = _read_yaml(path)
    for keys, value in _from_environment(os.environ if environment is None else environment):
        _assign(values, keys, value)
    for assignment in assignments:
        keys, value = _parse_assignment(assignment)
        _assign(values, keys, value)
    return _anchor(validate_config(values, source=str(path)), path.resolve().parent)


def validate_config(values: Mapping[str, Any], *, source: str) -> JobConfig:
    """Validate plain values; `source` is named in the error."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in explain(error))
        raise ConfigError(
            f"{source}: the configuration is not valid\n{problems}",
            hint="mlip-job config schema lists every key with its meaning",
        ) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(
            f"no configuration at {path}", hint="mlip-job init writes one, or name it with -c FILE"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{path} is not valid YAML: {text}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    return values


def _from_environment(environment: Mapping[str, str]) -> Iterable[tuple[list[str], Any]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            yield keys, _parse_value(environment[name], name)


def _parse_assignment(assignment: str) -> tuple[list[str], Any]:
    key, separator, value = assignment.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(
            f"--set {assignment!r} is not key=value", hint="e.g. --set training.cutoff=6.0"
        )
    return key.strip().split("."), _parse_value(value, f"--set {key}")


def _parse_value(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{source}: the value is not valid YAML", hint="quote it") from None


def _assign(values: dict[str, Any], keys: Sequence[str], value: object) -> None:
    *parents, last = keys
    for key in parents:
        child = values.get(key)
        if not isinstance(child, dict):
            child = values[key] = {}
        values = child
    values[last] = value


def _anchor(config: JobConfig, base: Path) -> JobConfig:
    """Make the relative paths of a configuration absolute."""

    def anchored(path: str) -> str:
        return path if "://" in path else str(base / Path(path).expanduser())

    database = config.database.model_copy(update={"url": anchored(config.database.url)})
    storage = config.storage.model_copy(update={"url": anchored(config.storage.url)})
    slurm = config.submit.slurm
    files = {"env_file": slurm.env_file, "image": slurm.image}
    files |= {"command": slurm.command} if "/" in slurm.command else {}
    paths = {key: anchored(path) for key, path in files.items() if path is not None}
    submit = config.submit.model_copy(update={"slurm": slurm.model_copy(update=paths)})
    return config.model_copy(
        update={
            "database": database,
            "storage": storage,
            "submit": submit,
            "work_dir": anchored(config.work_dir),
        }
    )
