"""Pages of the site that are generated during the build, so that they are always up to date.

``reference/keys.md`` comes from the models of the configuration, ``reference/cli.md`` from the help
of the commands, ``reference/chart.md`` from the chart's README. Links from pages to files outside
of ``docs`` are written as paths.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mkdocs.structure.files import File, Files

from mlip_job.cli.main import cli
from mlip_job.config import JobConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[1]
KEYS = """# Configuration keys

All keys of `mlip-job.yaml`, generated from the models that validate it. `mlip-job config schema`
prints the same as a JSON Schema. [Configuration](../configuration.md) explains how they interact.
"""
OPTIONS = """# All options

The help of every verb, as printed by `mlip-job VERB --help`. [Command line](../command-line.md)
explains exit codes, JSON output and pages.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    chart = (ROOT / "charts" / "mlip-job" / "README.md").read_text(encoding="utf-8")
    for path, text in (
        ("reference/keys.md", configuration_keys()),
        ("reference/cli.md", "\n".join((OPTIONS, *_help(cli, "mlip-job")))),
        ("reference/chart.md", chart.replace("# mlip-job", "# The Helm chart", 1)),
    ):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write links to files of the repository that are no pages, such as examples, as paths."""
    return re.sub(
        r"\[[^]]*\]\((?:\.\./)+((?:examples|job|charts|README)[^)#]*)\)", r"`\1`", markdown
    )


def _help(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[str]:
    """Yield the help of a command and of its subcommands."""
    context = click.Context(
        command, parent, info_name=path.rpartition(" ")[2], max_content_width=96
    )
    yield f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            if verb is not None:
                yield from _help(verb, f"{path} {name}", context)


def configuration_keys() -> str:
    """Return a table of keys for each section of the configuration."""
    schema = JobConfig.model_json_schema()
    sections = list(_sections(schema, schema["$defs"], ""))
    return "\n".join((KEYS, *sections))


def _sections(model: dict[str, Any], models: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the table of a model, then those of its nested models."""
    rows, nested = [], []
    for name, field in model["properties"].items():
        key = f"{prefix}{name}"
        reference = field.get("$ref", "").rpartition("/")[2]
        if reference and "properties" in models[reference]:
            nested.append((key, models[reference]))
            continue
        default = (
            "required" if name in model.get("required", ()) else f"`{_yaml(field.get('default'))}`"
        )
        text = " ".join(field.get("description", "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_type(field, models)} | {default} | {text} |")
    if prefix:
        yield f"## {prefix[:-1]}\n"
        yield f"{model.get('description', '')}\n"
    if rows:
        yield "\n".join(("| key | type | default | |", "|---|---|---|---|", *rows, ""))
    for key, inner in nested:
        yield from _sections(inner, models, f"{key}.")


def _type(field: dict[str, Any], models: dict[str, Any]) -> str:
    """Return the type of a field with its limits, as text."""
    if "anyOf" in field:
        return " or ".join(_type(one, models) for one in field["anyOf"])
    if "$ref" in field:
        return _type(models[field["$ref"].rpartition("/")[2]], models)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{_yaml(field['const'])}`"
    limits = [
        f"{sign} {field[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in field
    ]
    kind = field.get("type", "mapping")
    if kind == "array":
        inner = _type(field["items"], models) if "items" in field else "values"
        return f"list of {inner}"
    kind = "mapping" if kind == "object" else kind
    return f"{kind} {', '.join(limits)}".strip()


def _yaml(value: Any) -> str:
    """Return a value as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
