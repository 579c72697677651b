"""Pages that verbs write, and show in a browser where that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

open_option = click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")


def write_page(path: Path, page: bytes) -> None:
    """Write a page; one of that name is replaced."""
    try:
        path.write_bytes(page)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror or error}", hint="choose another -o FILE"
        ) from None


def show_page(path: Path, *, open_it: bool) -> None:
    """Open a page in the user's browser, where there is one."""
    if open_it and click.launch(str(path.resolve())) != 0:
        click.echo(f"no browser could be started; open {path} in one", err=True)
