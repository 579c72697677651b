"""``index.csv.gz``: which row is on which side; what the next generation inherits."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mlip_job.dataset.split import Inheritance, Side, SplitItem
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from mlip_job.dataset.record import DatasetRecord

_COLUMNS = ["row_id", "fingerprint", "group", "side"]


@dataclass(frozen=True)
class ParentDataset:
    """The dataset of the generation that this one follows.

    Attributes
    ----------
    record
        Its ``dataset.json``.
    index
        Local copy of its ``index.csv.gz``.
    """

    record: DatasetRecord
    index: Path

    def inheritance(self, group_by: str | None) -> Inheritance:
        """Return the sides that are settled; those of groups only while `group_by` is the same.

        Raises
        ------
        IntegrityError
            If the index can't be read.
        """
        fingerprints: dict[str, Side] = {}
        groups: dict[str, Side] = {}
        same_groups = group_by is not None and group_by == self.record.split.group_by
        for _, fingerprint, group, side in read_index(self.index, f"dataset {self.record.id}"):
            fingerprints[fingerprint] = side
            if same_groups and group:
                groups[group] = side
        return Inheritance(fingerprints, groups)


def read_index(path: Path, dataset: str = "a dataset") -> Iterator[tuple[int, str, str, Side]]:
    """Yield row id, fingerprint, group (``""`` for none) and side of every row.

    Parameters
    ----------
    path
        Of the index.
    dataset
        Whose it is, for messages.

    Raises
    ------
    IntegrityError
        If the index can't be read.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _COLUMNS:
                raise ValueError("its columns are others")  # noqa: TRY301 - one way out
            for row_id, fingerprint, group, side in reader:
                if side not in ("train", "test"):
                    raise ValueError(f"{side!r} is no side")  # noqa: TRY301
                yield int(row_id), fingerprint, group, cast("Side", side)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise IntegrityError(f"{path}: the index of {dataset} can't be read: {error}") from None


def common_test_rows(index: Path, other: Path) -> frozenset[int]:
    """Return the rows of an index that are test rows, and whose structures are in `other` too."""
    tested = {print_ for _, print_, _, side in read_index(other) if side == "test"}
    return frozenset(
        row_id
        for row_id, fingerprint, _, side in read_index(index)
        if side == "test" and fingerprint in tested
    )


def index_text(items: Iterable[SplitItem], sides: Iterable[Side]) -> bytes:
    """Return the index as CSV, one line per row in the order given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for item, side in zip(items, sides, strict=True):
        writer.writerow((item.row_id, item.fingerprint, item.group or "", side))
    return text.getvalue().encode()


def write_index(path: Path, text: bytes) -> None:
    """Write the index; the same text gives the same bytes."""
    path.write_bytes(gzip.compress(text, mtime=0))
