"""Entry point: the group of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from mlip_job import __version__
from mlip_job.cli.options import common_options
from mlip_job.cli.termination import write_termination_message
from mlip_job.disk import says_full
from mlip_job.errors import ConfigError, DiskError, MlipJobError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Help texts stand here so that `--help` loads no verb; a test holds them against the verbs' own.
VERBS = {
    "init": "Write a commented mlip-job.yaml for a database.",
    "check": "Check configuration, database, store and trainer.",
    "demo": "Train two generations on made-up copper data.",
    "config": "Show the resolved configuration or its JSON Schema.",
    "export": "Build the dataset of a generation and publish it.",
    "run": "Train a generation and publish it.",
    "submit": "Submit a generation to Slurm, Kubernetes or this machine.",
    "status": "Show what becomes of one generation, or of all.",
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
    "repair": "Mend what a crash left half done; report orphans.",
    "gc": "Remove what no manifest names.",
    "parse": "Report on any pacemaker work directory.",
}


class _LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"mlip_job.cli.{cmd_name}").command
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = cli.main(args=arguments, prog_name="mlip-job", standalone_mode=False)
    except MlipJobError as error:
        _end(error)
    except ImportError as error:
        if not os.environ.get("PYTHONPATH"):
            raise
        _end(
            ConfigError(
                f"a package can't be imported: {error}",
                hint="PYTHONPATH is set, as environment modules do, and its packages come before "
                "those of this environment: unset PYTHONPATH",
            )
        )
    except click.UsageError as error:
        error.show()
        sys.exit(ConfigError.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone; that is its right. Keep Python from complaining again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not says_full(error):
            raise
        click.echo(f"error: {error.strerror}: {error.filename or 'standard output'}", err=True)
        sys.exit(DiskError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _end(error: MlipJobError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    write_termination_message(error.exit_code, error.message, error.hint)
    sys.exit(error.exit_code)
