"""The published JSON Schema of ``report.json`` is up to date and rejects invalid reports."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from mlip_job.report.model import TrainingReport, schema_file_name, schema_text
from tests.evaluations import make_evaluation
from tests.reports import make_report, validate_report

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
    """And are read back unchanged."""
    text = report.to_json()
    validate_report(text)
    assert TrainingReport.from_json(text) == report


def test_a_report_without_evaluation_matches_the_schema() -> None:
    """It lacks the key."""
    document = json.loads(make_report(1, evaluation=None).to_json())
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
