"""Which structures an energy-based weighting left out of a fit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from mlip_job.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FITTED = {"train": "fitting_data_info.pckl.gzip", "test": "test_data_info.pckl.gzip"}
"""What pacemaker, or a linear fit, saves of each side after weighting, before the fit."""

_ROW = re.compile(r"row-(\d+)")


def rows_left_out(directory: Path, frames: dict[str, Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return the row ids, per side, that are in the data frames but not in the fit.

    Reads only frames that this job wrote and what the pacemaker it started made of them.

    Parameters
    ----------
    directory
        Work directory of the fit.
    frames
        Names of the data frames of each side, in that directory.
    """
    left_out = {}
    for side, names in frames.items():
        given = {row for name in names for row in _row_ids(directory / name)}
        left_out[side] = tuple(sorted(given - _row_ids(directory / FITTED[side])))
    return left_out


def _row_ids(frame: Path) -> set[int]:
    try:
        names = pd.read_pickle(frame, compression="gzip")["name"]  # noqa: S301 - of this very run
    except (OSError, EOFError, KeyError) as error:
        raise TrainingError(f"{frame} can't be read: {type(error).__name__}") from None
    return {int(match.group(1)) for name in names if (match := _ROW.fullmatch(str(name)))}
