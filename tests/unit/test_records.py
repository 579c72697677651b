"""Job ids of a scheduler or a file become names of files in the work directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.records import SubmitFiles

BAD_IDS = ["../../etc/passwd", "7/../../x", "7\n", "7_\x1b[2J", "7\\8", "", "x" * 300]


@pytest.mark.parametrize("job_id", ["4711", "4711_3", "4711_[1-3%2]", "7;alps", "812-99.25"])
def test_ids_of_schedulers_name_files(tmp_path: Path, job_id: str) -> None:
    """Those of Slurm, of its arrays and federations, and of local processes."""
    files = SubmitFiles(tmp_path)
    assert files.of_id("log", "slurm", job_id) == tmp_path / f"slurm-{job_id}.log"


@pytest.mark.parametrize("job_id", BAD_IDS[:-2] + BAD_IDS[-1:], ids=ascii)
def test_no_id_escapes_the_work_directory(tmp_path: Path, job_id: str) -> None:
    files = SubmitFiles(tmp_path)
    with pytest.raises(UnavailableError, match="is no id of a job of slurm") as caught:
        files.of_id("log", "slurm", job_id)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("job_id", [*BAD_IDS, "0-1", "-1", "*"], ids=ascii)
def test_a_record_with_an_unsafe_id_is_ignored(tmp_path: Path, job_id: str) -> None:
    """Nothing is read, signalled or cancelled by it; 0 would be this process's own group."""
    job = {"id": job_id, "name": "mlip-cu-gen-01-1a2b3c4d", "submitted": "2026-01-01T00:00:00Z"}
    (tmp_path / "submission.json").write_text(
        json.dumps({"schema_version": 2, "scheduler": "local", "jobs": [job]})
    )
    assert SubmitFiles(tmp_path).submission() is None
    job["id"] = "4711"
    (tmp_path / "submission.json").write_text(
        json.dumps({"schema_version": 2, "scheduler": "local", "jobs": [job]})
    )
    assert SubmitFiles(tmp_path).submission() is not None
