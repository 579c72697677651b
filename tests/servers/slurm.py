"""A private Slurm cluster: a controller, a node with fake GPUs, its own munge, free ports."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.databases import DatabaseServer
from tests.servers.processes import PATH, free_port, run, wait_until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_NULL_DEVICE = os.makedev(1, 3)
NODE = "node1"

_SLURM_CONF = """\
ClusterName=testcluster
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# The delay before a requeued job starts again is the life of a credential, and a bit.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=10000
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=20
MessageTimeout=3
MinJobAge=300
ReturnToService=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
MpiDefault=none
DebugFlags=NO_CONF_HASH
{accounting}
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus}
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP PriorityTier=2
PartitionName=short Nodes={node} MaxTime=10 State=UP PriorityTier=2
PartitionName=spare Nodes={node} State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes={node} State=UP PriorityTier=9
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={directory}/munge.socket
AccountingStorageEnforce=associations,limits,qos
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={directory}/slurmdbd.pid
LogFile={directory}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser={database_user}
StoragePass={database_password}
StorageLoc={database}
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster of one node, with more cores than the machine: no job waits for another."""

    directory: Path
    cpus: int = 16
    gpus: int = 4

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def run(self, *command: object) -> str:
        return run(command, self.environment)

    def state(self, job_id: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T").strip()

    def wait_for(self, job_id: str, *states: str, timeout: float = 120) -> str:
        end = time.monotonic() + timeout
        while (state := self.state(job_id)) not in states:
            assert time.monotonic() < end, f"job {job_id} stays {state}, not {states}"
            time.sleep(0.1)
        return state

    def end_jobs(self) -> None:
        self.run("scancel", "--full", "--signal=KILL", "--user", _user())
        self.run("scancel", "--user", _user())
        wait_until(lambda: not self.run("squeue", "-h", "-o", "%i").strip(), "end of the jobs")

    def start_controller(self, *, forgetting: bool) -> None:
        run(("slurmctld", *(["-c"] if forgetting else [])), self.environment)
        wait_until(lambda: _answers(self, "scontrol", "ping"), "slurmctld")

    def stop_controller(self) -> None:
        _end(self.directory / "slurmctld.pid")

    def kill_node(self) -> None:
        """Simulate a power failure of the node: kill its daemons and all processes of its jobs."""
        for pid in (*self.daemons_of_node(), *self.processes_of_jobs()):
            _kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={NODE}", "state=down", "reason=power")

    def start_node(self) -> None:
        run(("slurmd", "-N", NODE), self.environment)
        self.run("scontrol", "update", f"nodename={NODE}", "state=resume")
        wait_until(self.node_is_up, "slurmd")

    def node_is_up(self) -> bool:
        return self.run("sinfo", "-h", "-p", "main", "-o", "%T").strip() in (
            "idle",
            "mixed",
            "allocated",
        )

    def daemons_of_node(self) -> Iterator[int]:
        yield int((self.directory / "slurmd.pid").read_text())
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "comm").read_text().startswith("slurmstepd"):
                    files = [file.readlink() for file in (entry / "fd").iterdir()]
                    if any(file.is_relative_to(self.directory) for file in files):
                        yield int(entry.name)

    def processes_of_jobs(self, job_id: str = "") -> Iterator[int]:
        """Yield the processes of all jobs or of one, found by variables of cluster and job."""
        conf = f"SLURM_CONF={self.directory / 'slurm.conf'}".encode()
        job = f"SLURM_JOB_ID={job_id}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if conf in variables and any(v.startswith(job) for v in variables):
                    yield int(entry.name)

    def kill_processes(self, job_id: str) -> None:
        for pid in list(self.processes_of_jobs(job_id)):
            _kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    with _cluster(accounting="") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_cluster_with_accounting(mariadb: DatabaseServer) -> Iterator[SlurmCluster]:
    """Run a cluster with slurmdbd, so that sacct works and accounts are enforced."""
    with _cluster(accounting=_ACCOUNTING, database=mariadb) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    yield from _used(slurm_cluster, monkeypatch)


@pytest.fixture
def slurm_with_accounting(
    slurm_cluster_with_accounting: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    yield from _used(slurm_cluster_with_accounting, monkeypatch)


def _used(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.end_jobs()


@contextmanager
def _cluster(accounting: str, database: DatabaseServer | None = None) -> Iterator[SlurmCluster]:
    programs = (*_PROGRAMS, *(("slurmdbd", "sacctmgr") if accounting else ()))
    if any(shutil.which(name, path=PATH) is None for name in programs):
        pytest.skip("Slurm is not installed: make servers installs it")
    with tempfile.TemporaryDirectory(prefix="mlip-job-slurm-") as name:
        cluster = SlurmCluster(Path(name))
        _configure(cluster, accounting, database)
        try:
            _start(cluster, with_accounting=bool(accounting))
            yield cluster
        finally:
            _stop(cluster)


def _configure(cluster: SlurmCluster, accounting: str, database: DatabaseServer | None) -> None:
    directory = cluster.directory
    directory.chmod(0o755)
    controller_port, node_port, accounting_port = (free_port() for _ in range(3))
    values = {"directory": directory, "user": _user(), "port": accounting_port, "node": NODE}
    conf = _SLURM_CONF.format(
        host=socket.gethostname().partition(".")[0],
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        controller_port=controller_port,
        node_port=node_port,
        accounting=accounting.format(**values),
        **values,
    )
    (directory / "slurm.conf").write_text(conf)
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (directory / "gres.conf").write_text(
        f"NodeName={NODE} Name=gpu File={_fake_gpus(cluster)} Flags=nvidia_gpu_env\n"
    )
    for folder in ("state", "spool"):
        (directory / folder).mkdir()
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    if database is not None:
        user, _, password = database.writer.partition(":")
        text = _SLURMDBD_CONF.format(
            database=database.new_database(),
            database_port=database.port,
            database_user=user,
            database_password=password,
            **values,
        )
        (directory / "slurmdbd.conf").write_text(text)
        (directory / "slurmdbd.conf").chmod(0o600)


def _fake_gpus(cluster: SlurmCluster) -> str:
    if os.getuid() != 0:
        return "/dev/tty[0-3]"
    for number in range(cluster.gpus):
        os.mknod(cluster.directory / f"nvidia{number}", stat.S_IFCHR | 0o666, _NULL_DEVICE)
    return f"{cluster.directory}/nvidia[0-{cluster.gpus - 1}]"


def _start(cluster: SlurmCluster, *, with_accounting: bool) -> None:
    directory, environment = cluster.directory, cluster.environment
    run(
        (
            *("munged", f"--key-file={directory / 'munge.key'}", "--num-threads=2"),
            *(f"--socket={directory / 'munge.socket'}", f"--pid-file={directory / 'munged.pid'}"),
            *(f"--seed-file={directory / 'munge.seed'}", f"--log-file={directory / 'munged.log'}"),
            "--force",
        ),
        environment,
    )
    if with_accounting:
        run(("slurmdbd",), environment)
        wait_until(lambda: _answers(cluster, "sacctmgr", "-n", "show", "cluster"), "slurmdbd")
        for addition in (
            "cluster testcluster",
            "account science",
            f"user {_user()} account=science",
        ):
            cluster.run("sacctmgr", "-i", "-Q", "add", *addition.split())
    cluster.start_controller(forgetting=True)
    run(("slurmd", "-N", NODE), environment)
    wait_until(cluster.node_is_up, "slurmd")


def _stop(cluster: SlurmCluster) -> None:
    """End the started processes only: by the process ids that the daemons wrote."""
    with suppress(FileNotFoundError):
        for pid in (*cluster.daemons_of_node(), *cluster.processes_of_jobs()):
            _kill(pid, signal.SIGKILL)
    for daemon in ("slurmctld", "slurmdbd", "munged"):
        _end(cluster.directory / f"{daemon}.pid")


def _end(pid_file: Path) -> None:
    if pid_file.exists():
        pid = int(pid_file.read_text())
        _kill(pid, signal.SIGTERM)
        wait_until(lambda: _is_gone(pid), f"the end of {pid_file.stem}")


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _answers(cluster: SlurmCluster, *command: str) -> bool:
    try:
        cluster.run(*command)
    except RuntimeError:
        return False
    return True


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
