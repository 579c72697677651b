"""``index.csv.gz``: which row is on which side; what the next generation inherits."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mlip_job.dataset.entry import FINGERPRINT
from mlip_job.dataset.split import SIDES, Inheritance, Side
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.output import OutputFile
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.split import Split

_COLUMNS = ["row_id", "fingerprint", "group", "side"]
_LINES_AT_ONCE = 500


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
        groups: dict[str, Side] = {}
        same_groups = group_by is not None and group_by == self.record.split.group_by

        def fingerprints() -> Iterator[tuple[str, Side]]:
            rows = read_index(self.index, f"dataset {self.record.id}")
            for _, fingerprint, group, side in rows:
                if same_groups and group:
                    groups[group] = side
                yield fingerprint, side

        return Inheritance.of(fingerprints(), groups)


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
                if len(bytes.fromhex(fingerprint)) != FINGERPRINT.itemsize:
                    raise ValueError(f"{fingerprint!r} is no fingerprint")  # noqa: TRY301
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


def write_index(file: OutputFile, entries: Entries, split: Split) -> str:
    """Write the index, one line per row in the order given; return the sha256 of its text.

    The compressed bytes depend on the version of the compressor, the text does not.
    """
    digest = hashlib.sha256()
    for lines in _lines(entries, split):
        text = lines.encode()
        digest.update(text)
        file.write(text)
    return digest.hexdigest()


def _lines(entries: Entries, split: Split) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    groups = (*entries.groups, "")  # the last place is that of -1, no group
    for first in range(0, len(entries), _LINES_AT_ONCE):
        part = slice(first, first + _LINES_AT_ONCE)
        columns = (
            entries.row_ids[part].tolist(),
            [fingerprint.hex() for fingerprint in entries.fingerprints[part].tolist()],
            [groups[code] for code in entries.group_codes[part].tolist()],
            [SIDES[tested] for tested in split.tested[part].tolist()],
        )
        writer.writerows(zip(*columns, strict=True))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
