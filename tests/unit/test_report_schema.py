"""The published JSON Schema of ``report.json`` is up to date and rejects invalid reports."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlip_job.errors import IntegrityError
from mlip_job.evaluation.results import SetEvaluation
from mlip_job.registry import Checkpoint, Manifest
from mlip_job.report.model import TrainingReport, schema_file_name, schema_text
from tests.evaluations import make_evaluation
from tests.reports import make_report, validate_report

_OLD_STORE = Path(__file__).parents[1] / "data" / "stores" / "2026-11.tar.xz"
_PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


def test_the_published_schema_is_that_of_the_models() -> None:
    """`make schemas` generates it."""
    assert (_PUBLISHED / schema_file_name()).read_text() == schema_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize(
    "report",
    [
        make_report(1),
        make_report(2, evaluation=None),
        make_report(3, evaluation=make_evaluation(3, accepted=False)),
    ],
    ids=["first", "not evaluated", "rejected"],
)
def test_reports_match_the_schema(report: TrainingReport) -> None:
    """And are read back unchanged; without evaluation the key may be missing."""
    text = report.to_json()
    validate_report(text)
    assert TrainingReport.from_json(text) == report
    document = json.loads(text)
    if report.evaluation is None:
        del document["evaluation"]
        validate_report(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        {"generation": "four"},
        {"fit": None},
        {"unheard_of": 1},
        {"evaluation": {"accepted": True}},
        {"timings_s": {"fit": "long"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_invalid_report_is_rejected(change: dict[str, object]) -> None:
    """Wrong types, missing parts, unknown keys."""
    document = json.loads(make_report(1).to_json()) | change
    with pytest.raises(jsonschema.ValidationError):
        validate_report(json.dumps(document))


# -- versions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old() -> dict[str, bytes]:
    """Return the documents of a store that version 0.1.0 wrote, by their keys."""
    with tarfile.open(_OLD_STORE) as archive:
        return {
            name: file.read()
            for name in archive.getnames()
            if name.endswith(("report.json", "manifest.json", "state.json"))
            and (file := archive.extractfile(name)) is not None
        }


def test_reports_of_version_1_are_read(old: dict[str, bytes]) -> None:
    """All of their figures that version 2 has; errors by quantity become `Errors`."""
    reports = {name: data for name, data in old.items() if name.endswith("report.json")}
    assert len(reports) == 5
    for data in reports.values():
        document = json.loads(data)
        jsonschema.validate(document, json.loads((_PUBLISHED / "report-1.schema.json").read_text()))
        report = TrainingReport.from_json(data)
        validate_report(report.to_json())
        assert TrainingReport.from_json(report.to_json()) == report
        assert report.evaluation is not None
        before = document["evaluation"]
        for side, found in (("train", report.evaluation.train), ("test", report.evaluation.test)):
            _require_figures(found, before[side])
        starts = [part["timings"]["to_pacemaker_s"] for part in document["attempts"]]
        assert [part.timings.to_trainer_s for part in report.attempts] == starts
        assert report.loss.kappa == document["loss"]["kappa"]
        for agreed, one in zip(report.evaluation.agreement, before["agreement"], strict=True):
            assert agreed.errors.rmse_energy_mev_per_atom == one["energy_mev_per_atom"]
            by_trainer = agreed.errors_by_trainer.rmse_force_mev_per_angstrom
            assert by_trainer == one["force_by_pacemaker_mev_per_angstrom"]
        if (compared := report.evaluation.parent) is not None:
            energy = compared.rmse[0]
            assert energy is not None
            pair = before["parent"]["energy_mev_per_atom"]
            assert (*energy, energy.relative) == pytest.approx(tuple(pair.values()))


def _require_figures(found: SetEvaluation | None, before: dict[str, Any]) -> None:
    assert found is not None
    for number, name in enumerate(("energy_mev_per_atom", "force_mev_per_angstrom", "stress_gpa")):
        figures, percentiles = before[name], found.percentiles[number]
        assert percentiles is not None
        assert [found.rmse[number], found.mae[number], found.max[number]] == [
            figures[kind] for kind in ("rmse", "mae", "max")
        ]
        assert percentiles.model_dump() == {
            kind: figures[kind] for kind in ("count", "p50", "p90", "p99")
        }
        for kind, of_type in before["per_config_type"].items():
            assert found.per_config_type[kind].rmse[number] == of_type.get(name, {}).get("rmse")
    for element, figures in before["force_per_element_mev_per_angstrom"].items():
        assert found.per_element[element].max_force_mev_per_angstrom == figures["max"]


def test_manifests_and_checkpoints_of_version_1_are_read(old: dict[str, bytes]) -> None:
    """They are written as version 2."""
    read = {"manifest.json": partial(Manifest.from_json, key="k")}
    read["state.json"] = Checkpoint.model_validate_json
    for name, data in old.items():
        if (parse := read.get(Path(name).name)) is None:
            continue
        record = parse(data)
        assert record.schema_version == 2
        assert parse(record.to_json()) == record
        assert b"pacemaker_s" not in record.to_json()


@pytest.mark.parametrize(
    "read",
    [
        TrainingReport.from_json,
        partial(Manifest.from_json, key="manifest.json"),
    ],
    ids=["report", "manifest"],
)
def test_a_later_version_is_refused(read: Callable[[str], object]) -> None:
    """With a message that says what to do."""
    with pytest.raises(IntegrityError, match=r"schema version 3, .* reads 1 and 2: upgrade mlip"):
        read('{"schema_version": 3}')


@pytest.mark.parametrize("rest", ["", ', "loss": 1', ', "loss": {}, "evaluation": {"train": 1}'])
def test_a_damaged_report_of_version_1_is_refused(rest: str) -> None:
    """Without a traceback."""
    with pytest.raises(IntegrityError, match="a report can't be read"):
        TrainingReport.from_json(f'{{"schema_version": 1{rest}}}')
