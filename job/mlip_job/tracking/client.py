"""Log one run to an MLflow server: a program of its own, ``python -m mlip_job.tracking.client``.

It reads a `LoggingRequest` from stdin and writes one line: what it did, or on stderr why it could
not. So the job's own process loads no MLflow, and can end this one where it takes too long.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlip_job.tracking.record import ATTEMPT_TAG, LoggedRun, LoggingRequest

if TYPE_CHECKING:
    from mlflow.entities import Run

_METRICS_PER_REQUEST = 1000  # MLflow's limits
_ENTRIES_PER_REQUEST = 100


def main() -> int:
    """Log what stdin describes; return the exit code."""
    request = LoggingRequest.model_validate_json(sys.stdin.read())
    try:
        created = log_run(MlflowClient(tracking_uri=request.uri), request.run)
    except (MlflowException, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    done = "logged" if created else "is logged already"
    sys.stdout.write(f"{done} in experiment {request.run.experiment!r}\n")
    return 0


def log_run(client: MlflowClient, run: LoggedRun) -> bool:
    """Log a run unless that was done; return whether it had to be.

    A run that an earlier call left unfinished is completed.
    """
    experiment = _experiment(client, run.experiment)
    found = _find(client, experiment, run)
    if found is not None and found.info.status == "FINISHED":
        return False
    if found is None:
        own = {ATTEMPT_TAG: run.tags[ATTEMPT_TAG]}
        found = client.create_run(
            experiment, start_time=run.started_ms, run_name=run.name, tags=own
        )
    run_id = found.info.run_id
    # The same stamp each time: MLflow takes the same value at the same time for one value.
    metrics = [Metric(m.name, m.value, run.ended_ms, m.step) for m in run.metrics]
    parameters = [Param(key, value) for key, value in run.parameters.items()]
    tags = [RunTag(key, value) for key, value in run.tags.items()]
    for start in range(0, len(parameters), _ENTRIES_PER_REQUEST):
        client.log_batch(run_id, params=parameters[start : start + _ENTRIES_PER_REQUEST])
    for start in range(0, len(tags), _ENTRIES_PER_REQUEST):
        client.log_batch(run_id, tags=tags[start : start + _ENTRIES_PER_REQUEST])
    for start in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])
    for path in run.files.values():
        client.log_artifact(run_id, path)
    client.set_terminated(run_id, end_time=run.ended_ms)
    return True


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made where it is not there."""
    for _ in range(2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another job made it meanwhile.
    raise MlflowException(f"experiment {name!r} can be neither found nor made")


def _find(client: MlflowClient, experiment: str, run: LoggedRun) -> Run | None:
    condition = f"tags.`{ATTEMPT_TAG}` = '{run.tags[ATTEMPT_TAG]}'"
    found = client.search_runs([experiment], filter_string=condition, max_results=1)
    return found[0] if found else None


if __name__ == "__main__":
    sys.exit(main())
