"""The only builder of names: generations, store keys, files of a run's work directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FAMILY_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
"""A family's name is part of store keys and of Kubernetes object names (RFC 1123 labels)."""

MEMBERS = "members/"
"""Folder of an ensemble's members in their generation's."""

_GENERATION = re.compile(r"gen_(\d{2,})")


def generation_name(generation: int) -> str:
    """Return ``gen_04`` for 4, ``gen_100`` for 100.

    Raises
    ------
    ConfigError
        If `generation` is below 1.
    """
    if generation < 1:
        raise ConfigError(
            f"generation {generation} is not possible", hint="generations count from 1"
        )
    return f"gen_{generation:02d}"


def member_folder(member: int) -> str:
    """Return the folder of a member of an ensemble in its generation's, ``members/member_02``."""
    return f"{MEMBERS}member_{member:02d}"


def parse_generation_name(name: str) -> int | None:
    """Return the number in ``gen_04``, or None where `name` is no generation's name."""
    match = _GENERATION.fullmatch(name)
    if match is None:
        return None
    number = int(match.group(1))
    return number if number >= 1 and generation_name(number) == name else None


# RFC 1123 allows 63; a member of an ensemble has "-" and its number after it.
_LONGEST_KUBERNETES_NAME = 58


def kubernetes_job_name(family: str, generation: int, digest: str) -> str:
    """Return the name of a Kubernetes Job and its ConfigMap, ``mlip-cu-ni-gen-04-1a2b3c4d``.

    Where it would be too long, the end of the family's name is left out; the digest, which is also
    of the family's name, keeps such names apart.
    """
    end = f"-{generation_name(generation).replace('_', '-')}-{digest[:8]}"
    start = f"mlip-{family}"[: _LONGEST_KUBERNETES_NAME - len(end)]
    return start.rstrip("-") + end


@dataclass(frozen=True)
class FamilyKeys:
    """Every key of one family in the store.

    Attributes
    ----------
    family
        The family's name; all keys start with it.
    member
        A member of an ensemble: then the keys of a generation are this member's own.
    """

    family: str
    member: int | None = None

    MANIFEST = "manifest.json"

    @property
    def latest(self) -> str:
        """Key of the movable pointer to the newest accepted generation."""
        return f"{self.family}/latest.json"

    @property
    def generations(self) -> str:
        """Prefix under which every generation lies."""
        return f"{self.family}/generations/"

    @property
    def datasets(self) -> str:
        """Prefix under which every dataset lies."""
        return f"{self.family}/datasets/"

    def dataset(self, dataset_id: str, file: str = "") -> str:
        """Key of one file of a dataset, or its prefix where no file is named."""
        return f"{self.datasets}{dataset_id}/{file}"

    @property
    def queries(self) -> str:
        """Prefix of the records that map a query to its dataset."""
        return f"{self.family}/queries/"

    def query(self, key: str) -> str:
        """Key of the record of one query."""
        return f"{self.queries}{key}.json"

    def generation(self, generation: int, file: str = "") -> str:
        """Key of one file of a generation, or its prefix where no file is named."""
        return f"{self.generations}{self.folder(generation)}/{file}"

    def folder(self, generation: int) -> str:
        """Folder of a generation, or of the member's part of it."""
        name = generation_name(generation)
        return name if self.member is None else f"{name}/{member_folder(self.member)}"

    def manifest(self, generation: int) -> str:
        """Key whose existence makes the generation exist."""
        return self.generation(generation, self.MANIFEST)

    def claim(self, generation: int) -> str:
        """Key of the claim: which attempt is training the generation now."""
        return self.generation(generation, "claim.json")

    def attempt(self, generation: int, attempt: str, file: str = "") -> str:
        """Key of one file of an attempt, or its prefix where no file is named."""
        return self.generation(generation, f"attempts/{attempt}/{file}")

    def checkpoint(self, generation: int, attempt: str, number: int, file: str = "") -> str:
        """Key of one file of a checkpoint, or its prefix where no file is named."""
        return self.attempt(generation, attempt, f"checkpoints/{number:06d}/{file}")

    @property
    def potentials(self) -> str:
        """Prefix under which the potentials of all generations lie."""
        return f"{self.family}/potentials/"

    def potential(self, generation: int, suffix: str) -> str:
        """Key of the potential in one format, e.g. ``cu-ni/potentials/gen_04.yace``."""
        return f"{self.potentials}{generation_name(generation)}.{suffix}"


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one dataset in a local directory; the same names are used in the store."""

    directory: Path

    RECORD = "dataset.json"
    INDEX = "index.csv.gz"

    @property
    def record(self) -> Path:
        """The dataset's record: hashes, counts, split, rejections."""
        return self.directory / self.RECORD

    @property
    def index(self) -> Path:
        """Row id, fingerprint, group and side of every structure."""
        return self.directory / self.INDEX

    def xyz(self, side: str) -> Path:
        """Return the extended XYZ file of one side, ``train`` or ``test``."""
        return self.directory / f"{side}.xyz"

    def frame(self, side: str, shard: int = 0) -> Path:
        """Return pacemaker's data frame of one side; the first shard has no number."""
        number = f"-{shard:04d}" if shard else ""
        return self.directory / f"{side}{number}.pckl.gzip"


@dataclass(frozen=True)
class WorkFiles:
    """The files of one attempt in its local work directory, under pacemaker's own names."""

    directory: Path

    DATASET = "dataset"
    TABLES = ("metrics", "test_metrics", "cycle_metrics", "test_cycle_metrics")

    @property
    def dataset(self) -> DatasetFiles:
        """The dataset that the attempt trains on."""
        return DatasetFiles(self.directory / self.DATASET)

    @classmethod
    def in_dataset(cls, names: Iterable[str]) -> tuple[str, ...]:
        """Return paths relative to the attempt: what is published names no directory of a host."""
        return tuple(f"{cls.DATASET}/{name}" for name in names)

    def table(self, name: str) -> Path:
        """Return a metrics table as pacemaker writes it: of the fit that runs now."""
        return self.directory / f"{name}.txt"

    @property
    def curves(self) -> Path:
        """Folder of the metrics tables of the whole fit, over all attempts."""
        return self.directory / "metrics"

    @property
    def history(self) -> Path:
        """Folder of the metrics tables of what was fitted before pacemaker's latest start."""
        return self.directory / "history"

    @property
    def input_yaml(self) -> Path:
        """Pacemaker's input file."""
        return self.directory / "input.yaml"

    @property
    def parent_potential(self) -> Path:
        """The potential that the fit starts from."""
        return self.directory / "parent_potential.yaml"

    @property
    def linear_start(self) -> Path:
        """The potential of the linear fit that pacemaker starts from, where there is one."""
        return self.directory / "linear_start.yaml"

    @property
    def checkpoint_potential(self) -> Path:
        """The potential that an interrupted fit resumes from."""
        return self.directory / "checkpoint_potential.yaml"

    def segment_input(self, number: int) -> Path:
        """Return the input file of the n-th segment of a fit that resumes from a checkpoint."""
        return self.directory / f"resume-{number}.yaml"

    def segment_inputs(self) -> list[Path]:
        """Return those input files that are there."""
        return sorted(self.directory.glob("resume-*.yaml"))

    def of_fit(self) -> list[Path]:
        """Return the files that describe a fit, apart from its potential, log and tables."""
        named = (path for path in (self.left_out, self.early_stopping, self.best) if path.exists())
        return [
            *named,
            *self.segment_inputs(),
            *sorted(self.directory.glob("best_potential_*.yaml")),
        ]

    @property
    def train_log(self) -> Path:
        """Output of pacemaker, in order."""
        return self.directory / "train.log"

    @property
    def output_potential(self) -> Path:
        """The potential that pacemaker writes at the end of the fit."""
        return self.directory / "output_potential.yaml"

    @property
    def early_stopping(self) -> Path:
        """Settings of the early-stopping callback within pacemaker."""
        return self.directory / "early_stopping.json"

    @property
    def best(self) -> Path:
        """Which potential is the best one so far, and the name of its file."""
        return self.directory / "best.json"

    @property
    def left_out(self) -> Path:
        """The rows that the weighting excluded from the fit; known once it has ended."""
        return self.directory / "left_out_by_weighting.json"

    @property
    def yace(self) -> Path:
        """The potential in the format that LAMMPS reads."""
        return self.directory / "potential.yace"

    @property
    def active_set(self) -> Path:
        """The active set of the potential, where one was made."""
        return self.directory / "potential.asi"

    @property
    def predecessor(self) -> Path:
        """The published potential that this one is compared with."""
        return self.directory / "predecessor.yace"

    @property
    def predecessor_index(self) -> Path:
        """The index of the dataset that it was trained on."""
        return self.directory / "predecessor-index.csv.gz"

    @property
    def report(self) -> Path:
        """The report of the attempt."""
        return self.directory / "report.json"

    @property
    def report_page(self) -> Path:
        """The report as a page for people."""
        return self.directory / "report.html"

    def artefacts(self) -> dict[str, Path]:
        """Return the files that are published, by the name that they are published under."""
        published = {
            "input.yaml": self.input_yaml,
            "train.log": self.train_log,
            "potential.yaml": self.output_potential,
            "potential.yace": self.yace,
            "report.json": self.report,
            "report.html": self.report_page,
        }
        if self.active_set.exists():
            published[self.active_set.name] = self.active_set
        return published | {path.name: path for path in self.segment_inputs()} | self.tables()

    def tables(self) -> dict[str, Path]:
        """Return the metrics tables of the whole fit, by the name that they are published under."""
        return {f"metrics/{path.name}": path for path in sorted(self.curves.glob("*.txt"))}
