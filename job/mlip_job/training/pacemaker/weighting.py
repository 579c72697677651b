"""Energy-based weighting: weights of structures, and excluded structures."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlip_job.errors import TrainingError
from mlip_job.runtime.processes import run_in_process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FITTED = {"train": "fitting_data_info.pckl.gzip", "test": "test_data_info.pckl.gzip"}
"""Written by pacemaker, or by a linear fit, for each set after weighting, before the fit."""

_ROW = re.compile(r"row-(\d+)")


def rows_left_out(fitted: Path, frames: Sequence[Path]) -> tuple[int, ...]:
    """Return the row ids that are in the data frames but not in the fit.

    Reads only frames written by this job, and the file `FITTED` derived from them.
    """
    given = {row for frame in frames for row in _row_ids(frame)}
    return tuple(sorted(given - _row_ids(fitted))) if frames else ()


def rows_beyond_policy(
    policy: Mapping[str, Any], fitted: Sequence[Path], frames: Sequence[Path]
) -> tuple[int, ...]:
    """Return the row ids of `frames` that a weighting would leave out of a fit to both.

    The weighting needs all structures at once, so it runs in a separate process.
    """
    died = TrainingError(
        "the process that weighs the test set died", hint="give the job more memory"
    )
    return run_in_process(_beyond_policy, dict(policy), tuple(fitted), tuple(frames), died=died)


def weighted(parts: Sequence[pd.DataFrame], policy: Mapping[str, Any]) -> pd.DataFrame:
    """Return one frame of the structures kept by a weighting, with their weights.

    Pacemaker gives the weighting the training and the test set together
    (`ACEDataset.prepare_datasets`).
    """
    from pyace.preparedata import apply_weights  # noqa: PLC0415 - seconds

    frame = pd.concat(parts, ignore_index=True)
    frame["NUMBER_OF_ATOMS"] = frame["ase_atoms"].map(len)
    frame["pbc"] = frame["ase_atoms"].map(lambda atoms: bool(atoms.pbc.all()))
    frame["energy_corrected_per_atom"] = frame["energy_corrected"] / frame["NUMBER_OF_ATOMS"]
    return apply_weights(frame, dict(policy))


def _beyond_policy(
    policy: Mapping[str, Any], fitted: Sequence[Path], frames: Sequence[Path]
) -> tuple[int, ...]:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        parts = [pd.read_pickle(path, compression="gzip") for path in (*fitted, *frames)]  # noqa: S301
        kept = _rows_in(weighted(parts, policy)["name"])
    except Exception as error:  # noqa: BLE001 - whatever pyace or pandas raise
        raise TrainingError(f"the test set can't be weighed: {error!r}") from None
    given = {row for frame in frames for row in _row_ids(frame)}
    return tuple(sorted(given - kept))


def _row_ids(frame: Path) -> set[int]:
    try:
        names = pd.read_pickle(frame, compression="gzip")["name"]  # noqa: S301 - of this very run
    except (OSError, EOFError, KeyError) as error:
        raise TrainingError(f"{frame} can't be read: {type(error).__name__}") from None
    return _rows_in(names)


def _rows_in(names: Iterable[object]) -> set[int]:
    return {int(match.group(1)) for name in names if (match := _ROW.fullmatch(str(name)))}
