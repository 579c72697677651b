"""Ends of jobs as seen by the batch script and ``status``; a substitute runs as the program."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from tests.integration.slurm.conftest import Family

StandIn = Callable[[str], None]

# Ends with 75 on a signal, like a run.
STOPPABLE = """
trap 'echo stopped; exit 75' USR1
trap '' TERM # Slurm sends it too; the script passes on USR1
echo started ${SLURM_RESTART_COUNT:-0}
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]]; then exit 0; fi
for _ in {1..600}; do sleep 0.1; done
"""
BY_GENERATION = """
codes=(0 64 65 70 71 73 1 127 137)
echo "error: no luck with $3"
echo "  hint: try ${codes[$3]}"
exit ${codes[$3]}
"""


def test_a_permanent_error_is_not_requeued(family: Family, stand_in: StandIn) -> None:
    """The exit code is returned, the message and the hint of the run are shown."""
    stand_in(BY_GENERATION)
    codes = {1: 64, 2: 65, 3: 70, 4: 71, 5: 73, 6: 1, 7: 127, 8: 137}
    jobs = {g: family.submit("-g", g, "--set", "training.start_from=none") for g in codes}
    for generation, code in codes.items():
        found = family.wait_for("failed", generation=generation)
        assert (found["native_state"], found["exit_code"]) == ("FAILED", code)
        assert found["reason"] == f"no luck with {generation}"
        assert found["remedy"] == f"try {code}; then mlip-job submit -g {generation}"
        about = family.cluster.run("scontrol", "show", "job", "-o", jobs[generation])
        assert " Restarts=0 " in about


def test_requeues_are_counted(family: Family, stand_in: StandIn) -> None:
    stand_in("echo start; exit 69")
    family.configure(max_requeues=1)
    job = family.submit()
    found = family.wait_for("failed")
    assert found["exit_code"] == 69
    assert found["remedy"] == "mlip-job submit -g 1"
    log = family.log()
    assert log.count("start\n") == 2
    assert "it started 2 times, and submit.slurm.max_requeues allows no more" in log
    record = json.loads((family.work() / f"slurm-{job}.ended").read_text())
    assert record == {"exit_code": 69, "resubmit": False}


def test_preempted_where_slurm_only_cancels(family: Family, stand_in: StandIn) -> None:
    stand_in(STOPPABLE)
    family.configure(partition="spare", extra=["--exclusive"])
    job = family.submit()
    family.wait_for_log("started 0")
    family.preempt()
    family.wait_for_log("it is requeued, and resumes from its checkpoint")
    assert family.cluster.wait_for(job, "COMPLETED") == "COMPLETED"
    assert family.log().count("started") == 2
    assert json.loads((family.work() / f"slurm-{job}.ended").read_text())["exit_code"] == 0


def test_time_is_up_before_the_warning(family: Family, stand_in: StandIn) -> None:
    """As after a shortened time limit: a run that stops in time is requeued all the same."""
    stand_in(STOPPABLE)
    job = family.submit()
    stand_in("trap '' USR1 TERM; echo started; while :; do sleep 1; done")
    deaf = family.submit("-g", 2, "--set", "training.start_from=none")
    family.wait_for_log("started", generation=2)
    family.wait_for_log("started 0")
    for one in (job, deaf):
        family.cluster.run("scontrol", "update", f"jobid={one}", "endtime=now")
    family.wait_for_log("it is requeued, and resumes from its checkpoint")
    family.cluster.wait_for(job, "COMPLETED")

    family.cluster.wait_for(deaf, "COMPLETING", "TIMEOUT")
    family.cluster.kill_processes(deaf)
    found = family.wait_for("failed", generation=2)
    assert found["native_state"] == "TIMEOUT"
    assert found["reason"] == "the time limit came before its checkpoint was saved"
    assert found["remedy"] == "mlip-job submit -g 2"


def test_a_node_fails_under_a_job_that_is_not_requeued(family: Family, stand_in: StandIn) -> None:
    stand_in(STOPPABLE)
    job = family.submit()
    family.wait_for_log("started 0")
    family.cluster.run("scontrol", "update", f"jobid={job}", "requeue=0")
    family.cluster.kill_node()
    try:
        found = family.wait_for("failed")
    finally:
        family.cluster.start_node()
    assert (found["native_state"], found["reason"]) == ("NODE_FAIL", "the node failed")


def test_jobs_that_depend_on_a_failed_one_are_cancelled(family: Family, stand_in: StandIn) -> None:
    """The rest of a chain is cancelled, and status names the cause."""
    stand_in("exit 70")
    ended = family.run("submit", "-g", "1..2")
    assert ended.code == 0
    family.wait_for("failed")
    found = family.wait_for("cancelled", generation=2)
    assert "DependencyNeverSatisfied" in found["reason"]


def test_a_stop_before_the_run_has_signal_handlers(family: Family, stand_in: StandIn) -> None:
    """The signal ends a run that has just started; it counts as stopped."""
    stand_in("echo started; kill -STOP $$; sleep 60")
    job = family.submit()
    family.wait_for_log("started")
    family.cluster.run("scancel", "--batch", "--signal=USR1", job)
    family.cluster.run("scancel", "--signal=CONT", job)
    family.wait_for_log("it is requeued")


def test_a_work_directory_missing_on_the_node(family: Family, stand_in: StandIn) -> None:
    stand_in("exit 0")
    blocker = family.cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 3")
    job = family.submit("-g", 1, "--after", blocker.strip())
    elsewhere = family.work().rename(family.directory / "elsewhere")
    family.cluster.wait_for(job, "FAILED")
    elsewhere.rename(family.work())  # the login node has it all the time
    found = family.wait_for("failed")
    assert found["reason"] == "it left no log: work_dir can't be written on the node"
    assert "that login node and compute nodes share" in found["remedy"]


def test_a_program_missing_on_the_node(family: Family) -> None:
    """For example if the virtual environment is on a disk of the login node."""
    family.configure(command="/no/such/mlip-job")
    family.submit()
    found = family.wait_for("failed")
    assert found["exit_code"] in (2, 127)
    assert "No such file or directory" in family.log()


def test_a_configuration_missing_on_the_node(family: Family) -> None:
    blocker = family.cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 2")
    family.submit("-g", 1, "--after", blocker.strip())
    (family.work() / "mlip-job.yaml").unlink()
    found = family.wait_for("failed")
    assert found["exit_code"] == 64
    assert found["reason"] == f"no configuration at {family.work() / 'mlip-job.yaml'}"


def test_a_job_unknown_to_slurm(family: Family, stand_in: StandIn) -> None:
    """Its own record has its end; while the controller is unavailable, only the store is read.

    A submission waits for the controller.
    """
    stand_in("echo 'error: bad luck'; exit 70")
    family.submit()
    family.wait_for("failed")
    family.cluster.stop_controller()
    ended = family.run("status", "-g", 1)
    assert "note: the scheduler can't be read" in ended.err
    assert "bad luck" in family.run("logs", "-g", 1).out
    restart = threading.Timer(3, family.cluster.start_controller, kwargs={"forgetting": True})
    restart.start()
    family.submit("-g", 2, "--set", "training.start_from=none")
    restart.join()
    found = family.wait_for("failed")
    assert (found["native_state"], found["exit_code"]) == ("", 70)
    assert found["reason"] == "bad luck"
    (family.work() / f"slurm-{found['job']['id']}.ended").unlink()
    assert family.status()["state"] == "unknown"
