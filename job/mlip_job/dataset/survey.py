"""Survey a database for `init`: statuses, elements, forces and keys of its rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from pydantic import ValidationError

from mlip_job.config.job import DatabaseConfig
from mlip_job.dataset.database import PAGE, Selected, StructureDatabase
from mlip_job.dataset.rows import SIDES, StructureRow, Structures
from mlip_job.dataset.validation import shape_problem
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Sample:
    """Statistics of a selection, from a sample of its rows.

    `force_components` are those of all rows that do not vanish, estimated from the sample;
    `force_rms_ev` is in eV/Å; `pairs` are the key_value_pairs of complete rows.
    """

    selected: int
    force_components: int = 0
    elements: tuple[str, ...] = ()
    periodic: bool = False
    force_rms_ev: float = 0.0
    pairs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Survey:
    """Rows by status, the ASE selection of the finished rows, a sample of them, and their keys."""

    statuses: Mapping[str, int]
    selection: str
    sample: Sample
    keys: KeyProposal


def survey(url: str) -> Survey:
    """Read statuses, and a sample of the finished rows.

    Raise `ConfigError` or `DatabaseError` if the URL holds a password, or the database can't be
    read.
    """
    try:
        config = DatabaseConfig(url=url, select="")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"the database URL {problem.removeprefix('Value error, ')}") from None
    with StructureDatabase(config) as database:
        statuses = dict(database.count_by_status())
    finished = [s for s in statuses if s.lower() in ("completed", "complete", "done", "finished")]
    selection = f"status={finished[0]}" if finished else ""
    selected = config.model_copy(update={"select": selection})
    sample = _sample(selected)
    keys = propose_keys([_sample(selected, consecutive=True).pairs, sample.pairs])
    return Survey(statuses, selection, sample, keys)


def _sample(config: DatabaseConfig, *, consecutive: bool = False) -> Sample:
    """Read a page of rows, evenly spaced over all that are selected, or the first ones."""
    with StructureDatabase(config) as database:
        selected = database.select()
        step = 1 if consecutive else -(-len(selected.ids) // PAGE) or 1
        some = slice(None, PAGE * step, step)
        page = next(database.pages(Selected(selected.ids[some], selected.mtimes[some])), None)
    if not page:
        return Sample(len(selected.ids))
    rows = [row for row in page if isinstance(row, StructureRow)]
    structures = Structures.of_rows([row for row in rows if shape_problem(row) is None])
    finite = structures.forces[np.isfinite(structures.forces)]
    return Sample(
        selected=len(selected.ids),
        force_components=round(structures.count_force_components() * len(selected.ids) / len(page)),
        elements=tuple(sorted({chemical_symbols[n] for row in rows for n in row.numbers})),
        periodic=any(row.pbc.any() for row in rows),
        force_rms_ev=float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0,
        pairs=structures.pairs.tolist(),
    )


_GROUPS = re.compile(
    r"traj|group|^run|run_?id|parent|relax|md_?id|series|source|system|material|mp_?id"
)
_TYPES = re.compile(r"^config_?type$|^structure_?type$|^type$|^category$|^kind$|^config$")
_FRAMES = re.compile(r"^(frame|image|step|ionic_step|snapshot|timestep|md_step)(_?(id|index|no))?$")
_SPLITS = re.compile(r"split|^set$|subset|side|partition|fold|data_?set")

_MOST_TYPES = 50
_OFTEN = 0.5  # share of the rows that have a key
_REPEATED = 1.5  # rows with the same value


@dataclass(frozen=True)
class KeyProposal:
    """Settings that a database suggests: ``group_by``, ``config_type`` and ``split_key``.

    `values` has only those that were found; `remarks` are reasons, or what the user should check.
    """

    values: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    def propose(self, setting: str, key: str | None, remark: str) -> None:
        """Add a key for a setting, or only a remark."""
        self.remarks[setting] = remark
        if key is not None:
            self.values[setting] = key


def propose_keys(samples: Sequence[Sequence[Mapping[str, Any]]]) -> KeyProposal:
    """Find keys for trajectories, types of structures, or the sides of a split.

    The samples are key_value_pairs of consecutive rows, which show that a value repeats, and of
    others from all over the database, which show that there are several.
    """
    proposal = KeyProposal()
    rows = [pairs for sample in samples for pairs in sample]
    known = Counter(key for pairs in rows for key in pairs)
    keys = [key for key, count in known.most_common() if count >= _OFTEN * len(rows)]
    _find_split(proposal, keys, rows)
    for key in sorted(filter(_TYPES.search, keys), key=lambda key: key != "config_type"):
        found = {pairs[key] for pairs in rows if key in pairs}
        if len(found) <= _MOST_TYPES and all(isinstance(value, str) for value in found):
            proposal.propose("config_type", key, f"Here {_some(found)}.")
            break
    rest = [key for key in keys if key not in proposal.values.values()]
    groups = [key for key in rest if _GROUPS.search(key.lower()) and _repeats(key, samples)]
    frames = [key for key in rest if _FRAMES.search(key.lower())]
    if groups:
        remark = f"Rows share values of {groups[0]}: frames of one trajectory, say."
        proposal.propose("group_by", groups[0], remark)
    elif frames:
        remark = (
            f"Rows have {frames[0]}, so they may be frames of trajectories, but no key names the "
            "trajectory: add one, or the test set has neighbours of what was trained on."
        )
        proposal.propose("group_by", None, remark)
    return proposal


def _find_split(
    proposal: KeyProposal, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    for key in keys:
        found = {str(pairs.get(key, "")) for pairs in rows}
        if found == set(SIDES):
            remark = f"Every row looked at has {key}, train or test: a split by others."
            proposal.propose("split_key", key, remark)
            return
        if _SPLITS.search(key) and not {side.lower() for side in found}.isdisjoint(SIDES):
            remark = (
                f"The key {key} has the values {_some(found)}: where all rows say train or test, "
                "name it here."
            )
            proposal.propose("split_key", None, remark)


def _repeats(key: str, samples: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Return whether some rows share a value, but not all; fractions are quantities."""
    columns = [[pairs[key] for pairs in sample if key in pairs] for sample in samples]
    everywhere = {value for column in columns for value in column}
    fractions = [v for v in everywhere if isinstance(v, float) and v == v and not v.is_integer()]  # noqa: PLR0124 - NaN is a missing value
    shares = [len(column) / max(1, len(set(column))) for column in columns]
    return len(everywhere) > 1 and not fractions and max(shares) >= _REPEATED


def _some(values: Iterable[object], limit: int = 4) -> str:
    texts = sorted(str(value) or "(none)" for value in values)
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
