"""The JSON Schema of ``report.json``, which is published with the documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mlip_job.report.model import TrainingReport


def schema_file_name() -> str:
    """Return the name of the schema's file: its version is the report's."""
    return f"report-{TrainingReport.model_fields['schema_version'].default}.schema.json"


def report_schema() -> dict[str, Any]:
    """Return the schema that every ``report.json`` of this version keeps to."""
    schema = TrainingReport.model_json_schema(mode="serialization")
    # It has a default, and so would not be asked for; but a reader looks at it first.
    schema["required"] = ["schema_version", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """Return the text of the schema's file."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) / schema_file_name()).write_text(schema_text(), encoding="utf-8")
