"""``mlip-job config``: the resolved configuration and its schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.group("config")
def command() -> None:
    """Show the resolved configuration or its JSON Schema."""


@command.command("show")
@common_options
@click.pass_obj
def show(settings: Settings) -> None:
    """Print the configuration after file, environment and --set, in that order.

    It holds no secrets: those stay in the environment.
    """
    import yaml

    values = settings.config().model_dump(mode="json")
    if settings.as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


@command.command("schema")
@common_options
def schema() -> None:
    """Print the JSON Schema of mlip-job.yaml, for editors."""
    from mlip_job.config import JobConfig

    click.echo(json.dumps(JobConfig.model_json_schema(), indent=2))
