"""The shell script of a job on this machine, as text."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from mlip_job.naming import generation_name
from mlip_job.schedulers.base import Code, render
from mlip_job.schedulers.records import SubmitFiles

if TYPE_CHECKING:
    from mlip_job.schedulers.base import JobRequest


def local_script(request: JobRequest) -> str:
    """Return the script of a request."""
    files = SubmitFiles.of(request.config, request.generation)
    words = [
        *(sys.executable, "-m", "mlip_job", "run", "--generation", str(request.generation)),
        *("--config", str(files.config), *request.options),
    ]
    members = range(1, (request.ensemble or 0) + 1)
    return render(
        "submit.sh.j2",
        generation_name=generation_name(request.generation),
        family=request.config.family,
        directory=files.directory,
        work_dir=request.config.work_dir,
        after=request.after,
        ensemble=request.ensemble,
        members=Code("".join(f" {member}" for member in members)),
        program=Code(shlex.join(words)),
    )
