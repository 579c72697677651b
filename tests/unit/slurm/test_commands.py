"""Slurm's commands on busy, verbose and minimal sites; substitutes print recorded output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.config import JobConfig
from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.schedulers.base import JobHandle, JobState
from mlip_job.schedulers.records import Ended
from mlip_job.schedulers.slurm import commands
from mlip_job.schedulers.slurm.scheduler import SlurmScheduler
from mlip_job.schedulers.slurm.states import Task, combined, status_by_record, status_of

Install = Callable[[str, str], None]

NAME = "mlip-cu-gen_04-89abcdef-0123abcd"
POLICY = "Job violates accounting/QOS policy (job submit limit, users size and/or time limits)"
SAID = f"sbatch: error: Batch job submission failed: {POLICY}"
BUSY = (
    "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2; exit 1"
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a shell command on PATH, before all others.

    Without one, the queue is empty and there is no accounting.
    """
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(commands, "SUBMIT_RETRY_SECONDS", 5)
    monkeypatch.setattr(commands, "QUERY_RETRY_SECONDS", 3)

    def put(name: str, lines: str) -> None:
        program = bin_dir / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>"$CALLS"\n{lines}\n')
        program.chmod(0o755)

    put("squeue", "exit 0")
    put("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    put("scancel", "exit 0")
    return put


@pytest.mark.parametrize(
    ("printed", "job_id"),
    [
        ("4711", "4711"),
        ("4711;alps", "4711;alps"),
        ("Welcome to ALPS\\n * Your project has 12 node hours left *\\n4711\\n", "4711"),
        ("4711\\n--- 3 jobs in the queue ---\\n", "4711"),
    ],
)
def test_the_id_is_found_in_the_output_of_sbatch(
    install: Install, tmp_path: Path, printed: str, job_id: str
) -> None:
    install("sbatch", f"printf '{printed}'")
    assert commands.submit(tmp_path / "script", NAME) == job_id


def test_a_busy_controller_is_retried(install: Install, tmp_path: Path) -> None:
    install("sbatch", f'[ "$(grep -c sbatch "$CALLS")" -ge 3 ] && {{ echo 12; exit; }}; {BUSY}')
    assert commands.submit(tmp_path / "script", NAME) == "12"
    assert (tmp_path / "calls").read_text().count("sbatch") == 3


def test_a_lost_response_makes_no_second_job(install: Install, tmp_path: Path) -> None:
    """The first submission succeeded, and is found by its name."""
    install("sbatch", f"touch {tmp_path}/got-through; {BUSY}")
    install(
        "squeue",
        f"[ -e {tmp_path}/got-through ] && echo '31|FAILED|None|{NAME}' && "
        f"echo '32|PENDING|Priority|{NAME}' || true",
    )
    assert commands.submit(tmp_path / "script", NAME) == "32"
    assert (tmp_path / "calls").read_text().count("sbatch") == 1


def test_a_controller_that_stays_unavailable(install: Install, tmp_path: Path) -> None:
    install("sbatch", BUSY)
    with pytest.raises(UnavailableError, match="Socket timed out"):
        commands.submit(tmp_path / "script", NAME)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Invalid partition name specified", "check submit.slurm.partition; sinfo"),
        ("Invalid account or account/partition combination specified", "submit.slurm.account"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "submit.slurm.time"),
        ("Invalid feature specification", "submit.slurm.extra: --constraint"),
        ("Requested node configuration is not available", "submit.slurm.gres, mem, cpus"),
        ("Job dependency problem", "--after"),
        (POLICY, "check submit.slurm.cpus, gres, mem, time and the number of your jobs; sacctmgr"),
        (f"QOSMaxCpuPerJobLimit {POLICY}", "submit.slurm.cpus, gres, mem, time"),
    ],
)
def test_a_rejection_names_the_setting(
    install: Install, tmp_path: Path, said: str, hint: str
) -> None:
    """With the message of sbatch; it is not retried."""
    install("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    with pytest.raises(ConfigError) as caught:
        commands.submit(tmp_path / "script", NAME)
    assert caught.value.message == f"Slurm refuses the job: {said}"
    assert hint in (caught.value.hint or "")
    assert (tmp_path / "calls").read_text().count("sbatch") == 1


@pytest.mark.parametrize(
    "limit", ["AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit", "AssocGrpSubmitJobsLimit"]
)
def test_too_many_jobs_is_no_error_of_the_settings(
    install: Install, tmp_path: Path, limit: str
) -> None:
    """It is transient: the same submission is accepted later. Slurm is not retried at once."""
    install("sbatch", f"echo 'sbatch: error: {limit}' >&2; echo '{SAID}' >&2; exit 1")
    with pytest.raises(UnavailableError, match=f"{limit}.*submit limit") as caught:
        commands.submit(tmp_path / "script", NAME)
    assert "submit again when some of your jobs have ended" in (caught.value.hint or "")
    assert "submit.slurm.time" not in (caught.value.hint or "")
    assert (tmp_path / "calls").read_text().count("sbatch") == 1


def test_a_rejection_of_a_job_without_a_gpu_names_its_settings(
    install: Install, tmp_path: Path
) -> None:
    refused = "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2"
    install("sbatch", f"{refused}; exit 1")
    with pytest.raises(ConfigError) as caught:
        commands.submit(tmp_path / "script", NAME, section="submit.slurm.cpu")
    assert "check submit.slurm.cpu.qos" in (caught.value.hint or "")
    waiting = Task("1", "PENDING", "PartitionTimeLimit")
    status = status_of(waiting, None, None, "submit.slurm.cpu")
    assert "submit.slurm.cpu.time" in (status.hint or "")
    status = status_of(Task("1", "OUT_OF_MEMORY"), None, "", "submit.slurm.cpu")
    assert "submit.slurm.cpu.mem" in (status.reason or "")


def test_without_slurm_the_next_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="squeue is not on PATH") as caught:
        commands.my_jobs()
    assert "login node" in (caught.value.hint or "")


def test_an_outer_job_and_the_callers_defaults_change_nothing(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's commands take options from such variables, and jobs inherit SLURM_*."""
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "7")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    install("sbatch", f"env >{tmp_path}/env; echo 1")
    commands.submit(tmp_path / "script", NAME)
    found = (tmp_path / "env").read_text()
    assert "SLURM_CONF=/etc/slurm/slurm.conf" in found
    assert not any(name in found for name in ("SBATCH_PARTITION", "RESTART_COUNT", "SQUEUE_"))


def test_the_queue_is_read_through_noise(install: Install) -> None:
    install(
        "squeue",
        "printf 'CLUSTER: alps\\n1|RUNNING|None|a|b\\n2_[3-4]|PENDING|(null)|x\\n?|?|?|?\\n'",
    )
    assert commands.my_jobs() == [
        Task("1", "RUNNING", None, None, "a|b"),
        Task("2_[3-4]", "PENDING", None, None, "x"),
    ]


def test_the_cluster_is_named_to_every_command(install: Install, tmp_path: Path) -> None:
    commands.queued("7;alps")
    commands.accounted("7;alps")
    commands.cancel("7;alps")
    for line in (tmp_path / "calls").read_text().splitlines():
        assert "--clusters=alps" in line
        assert ";" not in line


@pytest.fixture
def scheduler(tmp_path: Path) -> SlurmScheduler:
    return SlurmScheduler(
        JobConfig.model_validate({"family": "cu", "work_dir": str(tmp_path / "work")})
    )


HANDLE = JobHandle("slurm", "4711", NAME)


def test_a_requeued_job_has_not_ended(install: Install, scheduler: SlurmScheduler) -> None:
    """The accounting still has its end; the queue takes precedence."""
    install("sacct", "echo '4711|PREEMPTED|0:0'")
    install("squeue", f"echo '4711|PENDING|BeginTime|{NAME}'")
    status = scheduler.status(HANDLE)
    assert (status.state, status.native) == (JobState.PENDING, "PENDING")
    assert (status.reason, status.hint) == ("BeginTime", None)


def test_the_accounting_has_jobs_that_the_controller_forgot(
    install: Install, scheduler: SlurmScheduler
) -> None:
    install("sacct", "printf 'noise\\n4711|CANCELLED by 1000|0:15\\n'")
    assert scheduler.status(HANDLE).state is JobState.CANCELLED


@pytest.mark.parametrize("recorded", [True, False])
def test_the_queue_and_the_log_are_used_without_accounting(
    install: Install, scheduler: SlurmScheduler, tmp_path: Path, recorded: bool
) -> None:
    """Only the record of the script has the exit code then."""
    log = tmp_path / "work" / "gen_04" / "slurm-4711.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: bad config\n  training.cutoff: too small\n  hint: read the docs\n")
    if recorded:
        log.with_suffix(".ended").write_text('{"exit_code": 64, "resubmit": false}\n')
    install("squeue", f"echo '4711|FAILED|NonZeroExitCode|{NAME}'")
    status = scheduler.status(HANDLE)
    assert (status.state, status.exit_code) == (JobState.FAILED, 64 if recorded else None)
    assert status.reason == "bad config training.cutoff: too small"
    assert status.hint == "read the docs"


def test_an_unknown_job(install: Install, scheduler: SlurmScheduler) -> None:
    install("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert scheduler.status(HANDLE).state is JobState.UNKNOWN
    assert not scheduler.status(HANDLE).state.ended


@pytest.mark.parametrize(
    ("native", "state", "resubmit"),
    [
        ("CANCELLED+", JobState.CANCELLED, False),  # truncated column
        ("COMPLETED", JobState.SUCCEEDED, False),
        ("CONFIGURING", JobState.PENDING, False),
        ("DEADLINE", JobState.FAILED, False),
        ("NODE_FAIL", JobState.FAILED, True),
        ("OUT_OF_MEMORY", JobState.FAILED, False),
        ("PREEMPTED", JobState.FAILED, True),
        ("REQUEUE_HOLD", JobState.PENDING, False),
        ("SUSPENDED", JobState.RUNNING, False),
        ("TIMEOUT", JobState.FAILED, True),
        ("A_NEW_STATE", JobState.UNKNOWN, False),
    ],
)
def test_states(native: str, state: JobState, resubmit: bool) -> None:
    """An external reason is retried."""
    status = status_of(Task("1", native), None, "")
    assert (status.state, status.native, status.resubmit) == (state, native, resubmit)
    assert state is not JobState.FAILED or status.reason


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("Resources", None),
        ("SomethingNew", None),
        ("QOSGrpGRES", None),
        ("QOSMaxGRESPerUser", None),
        ("AssocMaxJobsLimit", None),
        ("JobHeldUser", "scontrol release starts it"),
        ("launch failed requeued held", "scontrol release starts it"),
        ("PartitionTimeLimit", "change submit.slurm.time and submit it again"),
        ("QOSNotAllowed", "change submit.slurm.qos and submit it again"),
        ("QOSMaxCpuPerJobLimit", "it never starts: cancel it, change submit.slurm and submit"),
        ("QOSMaxCpuPerNode", "it never starts"),
        ("AssocMaxWallDurationPerJobLimit", "it never starts"),
        ("QOSMinCpuNotSatisfied", "it never starts"),
    ],
)
def test_why_a_job_is_pending(reason: str, hint: str | None) -> None:
    """Slurm's own reason, with advice if waiting does not help."""
    status = status_of(Task("1", "PENDING", reason), None, None)
    assert (status.state, status.native, status.reason) == (JobState.PENDING, "PENDING", reason)
    assert (status.hint is None) == (hint is None)
    assert (hint or "") in (status.hint or "")


def test_state_of_all_members() -> None:
    running = status_of(Task("1_1", "RUNNING"), None, "")
    failed = status_of(Task("1_2", "NODE_FAIL"), None, "")
    done = status_of(Task("1_3", "COMPLETED"), None, "")
    status = combined([done, failed, running])
    assert (status.state, status.reason) == (
        JobState.RUNNING,
        "members: 1 running, 1 failed, 1 succeeded",
    )
    status = combined([done, failed])
    assert (status.state, status.resubmit) == (JobState.FAILED, True)
    assert status.reason == "members: 1 failed, 1 succeeded; the node failed"
    assert combined([done, done]).state is JobState.SUCCEEDED


def test_a_forgotten_job_by_its_own_record() -> None:
    status = status_by_record(Ended(exit_code=75, resubmit=True), "mlip-job: said\n")
    assert (status.state, status.resubmit) == (JobState.FAILED, True)
    assert status.reason == "it was stopped, its checkpoint is saved"
    assert status_by_record(Ended(exit_code=0, resubmit=False), None).state is JobState.SUCCEEDED
