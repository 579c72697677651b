"""Options that every verb takes, before or after its name, and options of several verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.config import JobConfig
    from mlip_job.registry import Registry
    from mlip_job.store.base import Meter

DEFAULT_CONFIG = "mlip-job.yaml"

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass
class Settings:
    """Values of the common options; `assignments` are the texts of ``--set``, in order."""

    config_path: Path = Path(DEFAULT_CONFIG)
    assignments: list[str] = field(default_factory=list)
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def config(self) -> JobConfig:
        """Load the configuration."""
        from mlip_job.config import load_config

        return load_config(self.config_path, assignments=self.assignments)

    def registry(
        self,
        config: JobConfig | None = None,
        *,
        patient: bool = False,
        meter: Meter | None = None,
    ) -> Registry:
        """Open the registry of the configured family; a patient one retries while unavailable.

        On a terminal, large transfers are shown there, or by `meter`.
        """
        from mlip_job.cli.output import TransferLine
        from mlip_job.registry import Registry
        from mlip_job.store.open import open_store

        config = config or self.config()
        store = open_store(
            config.storage,
            patience=config.run.retry_timeout if patient else 0,
            meter=meter or TransferLine(quiet=self.quiet),
        )
        return Registry(store, config.family)


def common_options(function: F) -> F:
    """Add the options that every verb takes, and that may also stand before the verb."""
    options = (
        click.option(
            "-c",
            "--config",
            metavar="FILE",
            envvar="MLIP_JOB_CONFIG",
            type=click.Path(dir_okay=False, path_type=Path),
            help=f"Configuration. [default: {DEFAULT_CONFIG}]",
            callback=_keep("config_path"),
            expose_value=False,
        ),
        click.option(
            "--set",
            metavar="KEY=VALUE",
            multiple=True,
            help="Override one key, e.g. training.cutoff=6.0. Repeatable.",
            callback=_extend,
            expose_value=False,
        ),
        _flag("--json", attribute="as_json", text="Print one JSON document on stdout."),
        _flag("-q", "--quiet", attribute="quiet", text="No messages and no progress."),
        _flag("-v", "--verbose", attribute="verbose", text="Show what pacemaker prints."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def generation_option(*words: str, required: bool = True) -> Callable[..., Any]:
    """Return the ``-g/--generation`` option; `words` stand for numbers, e.g. ``next``."""
    return click.option(
        "-g",
        "--generation",
        required=required,
        metavar="|".join(("N", *words)),
        type=GenerationType(words),
        help="Number of the generation" + "".join(f", or {word}" for word in words) + ".",
    )


def output_option(text: str, *, directory: bool = False) -> Callable[..., Any]:
    """Return the ``-o/--output`` option: a file or a directory to write."""
    return click.option(
        "-o",
        "--output",
        metavar="DIR" if directory else "FILE",
        type=click.Path(dir_okay=directory, file_okay=not directory, path_type=Path),
        help=text,
    )


scheduler_option = click.option(
    "--scheduler",
    type=click.Choice(("kubernetes", "slurm", "local")),
    help="Instead of submit.scheduler.",
)


def resolve_generation(generation: int | str, registry: Registry) -> int:
    """Return the number that ``next`` or ``latest`` stands for now."""
    if isinstance(generation, int):
        return generation
    if generation == "next":
        return max(registry.numbers(), default=0) + 1
    latest = registry.latest()
    if latest is None and registry.numbers():
        raise ConfigError(
            f"all published generations of {registry.family} were rejected by their gates",
            hint="mlip-job list shows them; mlip-job promote -g N --force takes one all the same",
        )
    if latest is None:
        raise ConfigError(f"no generation of {registry.family} is published yet")
    return latest


class GenerationType(click.ParamType):  # type: ignore[type-arg]
    """A generation's number, or one of the words that stand for numbers."""

    name = "generation"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number, or the word unchanged."""
        if isinstance(value, str) and value in self._words:
            return value
        try:
            number = int(value)
        except ValueError:
            choices = ", ".join(("a whole number", *self._words))
            raise ConfigError(f"generation {value!r} is none of {choices}") from None
        generation_name(number)
        return number


def _flag(*names: str, attribute: str, text: str) -> Callable[..., Any]:
    return click.option(
        *names,
        f"_{attribute}",
        is_flag=True,
        help=text,
        callback=_keep(attribute),
        expose_value=False,
    )


def _keep(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: object) -> None:
        settings = ctx.find_root().ensure_object(Settings)
        if value:
            setattr(settings, attribute, value)

    return callback


def _extend(ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> None:
    ctx.find_root().ensure_object(Settings).assignments.extend(values)
