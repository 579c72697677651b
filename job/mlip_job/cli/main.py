"""Entry point: the group of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from mlip_job import __version__
from mlip_job.cli.options import common_options
from mlip_job.errors import ConfigError, DiskError, MlipJobError
from mlip_job.paths import says_full

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIABLE = "MLIP_JOB_TERMINATION_MESSAGE"
"""Names the file: Kubernetes' ``terminationMessagePath``."""

_LONGEST_BYTES = 3000  # Kubernetes keeps 4096 bytes of the JSON, and cuts anywhere


def write_termination_message(exit_code: int, message: str, hint: str | None = None) -> None:
    """Write exit code, message and hint as JSON, if the environment names a file.

    A long message is cut at its end. A file that can't be written does not change how the run ends.
    """
    target = os.environ.get(VARIABLE)
    if not target:
        return
    while len(json.dumps(message)) > _LONGEST_BYTES:
        message = message[: len(message) * 9 // 10] + "…"
    end = {"exit_code": exit_code, "message": message, "hint": hint}
    with suppress(OSError):
        Path(target).write_text(json.dumps(end), encoding="utf-8")


# Help texts are here so that `--help` loads no verb; a test compares them with the verbs' own.
VERBS = {
    "init": "Write a commented mlip-job.yaml for a database.",
    "check": "Check configuration, database, store and trainer.",
    "demo": "Train two generations on made-up copper data.",
    "config": "Show the resolved configuration or its JSON Schema.",
    "export": "Build the dataset of a generation and publish it.",
    "run": "Train a generation and publish it.",
    "submit": "Submit a generation to Slurm, Kubernetes or this machine.",
    "status": "Show the jobs of one generation, or of all.",
    "logs": "Print what the job of a generation printed.",
    "cancel": "Stop all jobs of a generation; each saves a checkpoint first.",
    "list": "List the published generations.",
    "show": "Show one published generation.",
    "report": "Fetch the report of a generation, one HTML file.",
    "compare": "Compare generations: a table here, and one HTML file.",
    "pull": "Download a generation's artefacts and check them.",
    "verify": "Read back a generation and check every hash.",
    "promote": "Make a generation the latest.",
    "select": "Choose candidates for the next generation.",
    "repair": "Repair the effects of a crash; report orphans.",
    "gc": "Remove what no manifest names.",
    "parse": "Report on any pacemaker work directory.",
    "completion": "Install the completion of verbs and options in a shell.",
}

# The module of each verb that is not named after it.
_MODULES = {
    **dict.fromkeys(("init", "check", "demo", "config", "completion"), "setup"),
    "export": "run",
    **dict.fromkeys(("status", "logs", "cancel"), "jobs"),
    **dict.fromkeys(("list", "show", "report", "compare", "promote"), "generations"),
    **dict.fromkeys(("pull", "verify", "repair", "gc"), "files"),
}


class _LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"mlip_job.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 64 configuration or usage, 65 data, 69 store or database "
    "unavailable, 70 training failed, 71 no GPU, 73 generation exists, 75 interrupted: run again.",
)
@click.version_option(__version__, prog_name="mlip-job")
@common_options
def cli() -> None:
    """Train, version and publish ACE interatomic potentials, one generation per job."""


class _Redacted(logging.Formatter):
    """Redact secrets in log records."""

    def format(self, record: logging.LogRecord) -> str:
        return _redact(super().format(record))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Errors are printed without secrets."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Redacted())
    try:
        code = cli.main(args=arguments, prog_name="mlip-job", standalone_mode=False)
    except MlipJobError as error:
        _end(error)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            _end_if_removed(error)
        text = io.StringIO()
        error.show(text)
        click.echo(_redact(text.getvalue()), nl=False, err=True)
        sys.exit(ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader closed the pipe, which is no error. Keep Python from reporting it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not says_full(error):
            _fail(error)
        click.echo(f"error: {error.strerror}: {error.filename or 'standard output'}", err=True)
        sys.exit(DiskError.exit_code)
    except Exception as error:  # noqa: BLE001 - a bug of ours; its traceback may repeat a URL
        _fail(error)
    sys.exit(code if isinstance(code, int) else 0)


def _redact(text: str) -> str:
    from mlip_job.secret_texts import redact

    return redact(text)


def _end(error: MlipJobError) -> NoReturn:
    """Print an error that is meant for the user, without secrets, and exit."""
    click.echo(_redact(f"error: {error}"), err=True)
    hint = _redact(error.hint) if error.hint is not None else None
    write_termination_message(error.exit_code, _redact(error.message), hint)
    sys.exit(error.exit_code)


def _end_if_removed(error: click.NoSuchOption) -> None:
    """Exit with what replaces an option of an earlier version."""
    from mlip_job.config.removed import replacement_of_option

    verb = error.ctx.info_name if error.ctx is not None else None
    instead = replacement_of_option(verb, error.option_name)
    if instead is not None:
        _end(ConfigError(f"mlip-job {verb}: {error.option_name} was removed", hint=instead))


def _fail(error: Exception) -> NoReturn:
    """Print the traceback of a bug without secrets, and exit."""
    if isinstance(error, ImportError) and os.environ.get("PYTHONPATH"):
        _end(
            ConfigError(
                f"a package can't be imported: {error}",
                hint="PYTHONPATH is set, as environment modules do, and its packages come before "
                "those of this environment: unset PYTHONPATH",
            )
        )
    click.echo(_redact(traceback.format_exc()), nl=False, err=True)
    sys.exit(MlipJobError.exit_code)
