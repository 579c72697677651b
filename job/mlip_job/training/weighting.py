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
"""What pacemaker, or a linear fit, saves of each set after weighting, before the fit."""

_ROW = re.compile(r"row-(\d+)")


def rows_left_out(fitted: Path, frames: Sequence[Path]) -> tuple[int, ...]:
    """Return the row ids that are in the data frames but not in the fit.

    Reads only frames that this job wrote and what the pacemaker it started made of them.

    Parameters
    ----------
    fitted
        What pacemaker made of them.
    frames
        Of the training set, or of the second set; there may be none.
    """
    given = {row for frame in frames for row in _row_ids(frame)}
    return tuple(sorted(given - _row_ids(fitted))) if frames else ()


def _row_ids(frame: Path) -> set[int]:
    try:
        names = pd.read_pickle(frame, compression="gzip")["name"]  # noqa: S301 - of this very run
    except (OSError, EOFError, KeyError) as error:
        raise TrainingError(f"{frame} can't be read: {type(error).__name__}") from None
    return {int(match.group(1)) for name in names if (match := _ROW.fullmatch(str(name)))}
