"""An attempt resumes from the furthest checkpoint that is intact and of the same fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlip_job.config import JobConfig
from mlip_job.errors import ConfigError, ConflictError, IntegrityError
from mlip_job.generation.confirm import confirm_config
from mlip_job.generation.context import Run
from mlip_job.generation.data import refer_to
from mlip_job.generation.prepare import fetch_checkpoint
from mlip_job.registry import Checkpoint, DatasetReference, Registry
from mlip_job.store.directory import DirectoryStore
from mlip_job.training.pacemaker import PacemakerFiles
from mlip_job.training.trainer import FitPosition
from tests.datasets import build, poison_frames, read
from tests.manifests import make_checkpoint, make_manifest
from tests.support import rattled, write_database

Fetched = tuple[Any, PacemakerFiles, list[str]]

RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"
TRAINING = {"cutoff": 5.0, "functions_per_element": 15, "max_iter": 100}


class _Heard:
    """An observer that stores messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(DirectoryStore(tmp_path / "store"), "cu")


@pytest.fixture
def dataset(registry: Registry, tmp_path: Path) -> DatasetReference:
    write_database(tmp_path / "cu.db", rattled(6))
    directory = tmp_path / "dataset"
    record = build(tmp_path / "cu.db", directory)
    record = poison_frames(directory, record, tmp_path / "was read")
    return refer_to(record, registry.publish_dataset(directory, record), None)


@pytest.fixture
def save(registry: Registry, dataset: DatasetReference, tmp_path: Path) -> Callable[..., None]:
    def save(
        number: int,
        *,
        finished: bool = False,
        elements: tuple[str, ...] = ("Cu",),
        without: tuple[str, ...] = (),
    ) -> None:
        files = {"potential.yaml": RUN / "interim_potential_ladder_step_1.yaml"}
        files["metrics/metrics.txt"] = RUN / "metrics.txt"
        if finished:
            notes = tmp_path / "notes.json"
            notes.write_text("{}")
            files |= {
                "train.log": RUN / "train.log",
                "resume-1.yaml": notes,
                "left_out_by_weighting.json": notes,
                "numpy.py": notes,
                "dataset/train.pckl.gzip": notes,
            }
            for name in without:
                del files[name]
        place = FitPosition(
            ladder_step=0, iteration=number, step_done=False, last_step=True, finished=finished
        )

        def describe(hashes: dict[str, str]) -> Checkpoint:
            state = make_checkpoint(
                hashes,
                attempt="a1",
                number=number,
                position=place,
                dataset=dataset,
                config=_config(),
            )
            training = state.training.model_copy(update={"elements": elements})
            return state.model_copy(update={"training": training})

        registry.checkpoints(1).save(files, describe)

    return save


def _config(training: dict[str, Any] | None = None, **sections: Any) -> JobConfig:
    values = {"family": "cu", "training": TRAINING | (training or {})}
    return JobConfig.model_validate(values | sections)


@pytest.fixture
def fetch(registry: Registry, tmp_path: Path) -> Iterator[Callable[..., Fetched]]:
    def fetch(config: JobConfig | None = None) -> Fetched:
        config = config or _config()
        heard = _Heard()
        # Settings of the work directory don't affect the fit.
        run = Run(config.model_copy(update={"work_dir": str(tmp_path)}), 1, registry, heard)
        files = PacemakerFiles(run.files.directory)
        files.directory.mkdir(parents=True)
        found = fetch_checkpoint(run)
        if found is None:
            return None, files, heard.messages
        checkpoint, record = found
        assert [*files.dataset.directory.glob("*.pckl.gzip")] != []
        assert record.frames.train == ("train.pckl.gzip",)
        return checkpoint, files, heard.messages

    yield fetch
    assert not (tmp_path / "was read").exists()


def test_the_furthest_is_laid_out_for_pacemaker(fetch: Any, save: Any) -> None:
    """Potential, previous tables, data frames: everything that the next segments need."""
    save(3)
    save(7)
    found, files, messages = fetch()
    assert found.position.iteration == 7
    assert messages == ["resuming from iteration 7 (checkpoint 7 of attempt a1)"]
    assert sorted(p.relative_to(files.directory).as_posix() for p in _files(files)) == [
        "checkpoint_potential.yaml",
        "dataset/test.pckl.gzip",
        "dataset/test.xyz",
        "dataset/train.pckl.gzip",
        "dataset/train.xyz",
        "history/metrics.txt",
    ]
    frame = pd.read_pickle(files.dataset.frame("train"), compression="gzip")  # noqa: S301 - ours
    assert [f"row-{atoms.info['row_id']}" for atoms in read(files.dataset.directory, "train")] == [
        *frame["name"]
    ]


def _files(files: PacemakerFiles) -> list[Path]:
    return [path for path in files.directory.rglob("*") if path.is_file()]


def test_a_finished_fit_is_laid_out_for_publishing(fetch: Any, save: Any) -> None:
    """With pacemaker's names for its final files."""
    save(7)
    save(8, finished=True)
    found, files, messages = fetch()
    assert found.position.finished
    assert messages == ["resuming from the end of the fit (checkpoint 8 of attempt a1)"]
    published = [files.output_potential, files.train_log, files.curves / "metrics.txt"]
    assert all(path.is_file() for path in published)
    assert files.segment_inputs() == [files.segment_input(1)]
    assert files.left_out.is_file()
    assert not (files.directory / "numpy.py").exists()
    assert files.dataset.frame("train").read_bytes() != b"{}"


def test_a_finished_fit_without_its_log_is_ignored(fetch: Any, save: Any) -> None:
    """Whatever its state says: nothing fails later because of a missing file."""
    save(7)
    save(8, finished=True, without=("train.log", "left_out_by_weighting.json"))
    found, _, messages = fetch()
    assert found.number == 7
    assert messages[0] == (
        "warning: checkpoint 8 of attempt a1 has no left_out_by_weighting.json, train.log; "
        "this checkpoint is skipped"
    )


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        (
            {"training": TRAINING | {"functions_per_element": 20, "elements": ["Cu", "Ni"]}},
            [
                "training.elements: 'auto' there, ['Cu', 'Ni'] asked",
                "training.functions_per_element: 15 there, 20 asked",
            ],
        ),
        (
            {
                "training": TRAINING | {"cutoff": 6.0},
                "dataset": {"seed": 7},
                "database": {"select": "status=done,gen<={generation}"},
            },
            [
                "dataset.seed: 42 there, 7 asked",
                "training.cutoff: 5.0 there, 6.0 asked",
                "database.select: 'status=completed' there, 'status=done,gen<=1' asked",
            ],
        ),
    ],
)
def test_a_checkpoint_of_another_fit_is_rejected(
    fetch: Any, save: Any, changes: dict[str, Any], differences: list[str]
) -> None:
    """With every difference, and the remedy."""
    save(3)
    with pytest.raises(ConfigError) as caught:
        fetch(_config(**changes))
    assert caught.value.exit_code == 64
    head, *named = caught.value.message.splitlines()
    assert head.startswith("gen_01 is half trained with another configuration (checkpoint 3 of")
    assert named == [f"  {difference}" for difference in differences]
    assert "--fresh" in str(caught.value.hint)


def test_a_generation_of_an_earlier_version_is_confirmed() -> None:
    """It lacks a setting added since: no difference unless the setting is used."""
    published = make_manifest(1)
    earlier = published.config | {
        "dataset": {k: v for k, v in published.config["dataset"].items() if k != "split_key"}
    }
    manifest = published.model_copy(update={"config": earlier, "config_sha256": "0" * 64})
    confirm_config(manifest, JobConfig(family="cu-ni"))
    asked = JobConfig.model_validate({"family": "cu-ni", "dataset": {"split_key": "side"}})
    with pytest.raises(ConflictError, match=r"dataset.split_key: None published, 'side' asked"):
        confirm_config(manifest, asked)


def test_settings_that_do_not_affect_the_fit_may_change(fetch: Any, save: Any) -> None:
    """A smaller batch after running out of memory, more iterations, another machine."""
    save(3)
    found, _, _ = fetch(
        _config(
            {
                "batch_size": 7,
                "max_iter": 500,
                "require_gpu": True,
                "test_evaluation": "end",
            },
            run={"checkpoint_interval": 1},
            work_dir="elsewhere",
            database={"url": "elsewhere.db"},
        )
    )
    assert found.position.iteration == 3


@pytest.mark.parametrize("damage", ["changed", "missing", "state"])
def test_a_damaged_checkpoint_is_skipped_with_a_message(
    fetch: Any, save: Any, registry: Registry, damage: str
) -> None:
    save(3)
    save(7)
    potential = registry.keys.checkpoint(1, "a1", 7, "potential.yaml")
    state = registry.keys.checkpoint(1, "a1", 7, "state.json")
    if damage == "changed":
        registry.store.put(potential, b"metadata: {}")
        expected = f"checkpoint 7 of attempt a1 is damaged: {potential} has the sha256 "
    elif damage == "missing":
        registry.store.delete(potential)
        expected = f"checkpoint 7 of attempt a1 is damaged: {potential} is missing from "
    else:
        registry.store.put(state, b"{")
        expected = f"{state} can't be read"
    found, files, messages = fetch()
    assert found.position.iteration == 3
    warning, found_message = messages
    assert warning.startswith(f"warning: {expected}")
    assert warning.endswith("; this checkpoint is skipped")
    assert found_message == "resuming from iteration 3 (checkpoint 3 of attempt a1)"
    assert not (files.directory / "checkpoint").exists()


def test_a_potential_of_other_elements_is_skipped(fetch: Any, save: Any) -> None:
    save(3, elements=("Cu", "Ni"))
    found, files, messages = fetch()
    assert found is None
    assert list(files.directory.iterdir()) == []
    assert messages == [
        "warning: checkpoint 3 of attempt a1 describes Cu; this checkpoint is skipped",
        "no checkpoint can be used: starting over",
    ]


def test_a_dataset_that_is_damaged_ends_the_run(
    fetch: Any, save: Any, registry: Registry, dataset: DatasetReference
) -> None:
    """Another dataset would give another generation; a person has to decide."""
    save(3)
    key = registry.keys.dataset(dataset.id, "train.xyz")
    registry.store.put(key, b"damaged")
    with pytest.raises(IntegrityError, match=f"can't resume from checkpoint 3 .*{key}") as caught:
        fetch()
    assert caught.value.exit_code == 65
    assert "--fresh" in str(caught.value.hint)
