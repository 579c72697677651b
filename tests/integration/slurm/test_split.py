"""Runs that are split into jobs: only the fit has a GPU, and all are one submission."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.schedulers.base import Stage
from mlip_job.schedulers.records import SubmitFiles
from mlip_job.schedulers.stage_words import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.slurm.conftest import Family

    StandIn = Callable[[str], None]

SPLIT = ("--split-export", "--split-evaluation")
STAGES = ("dataset", "fit", "publish")
# Tells what it does; ends with the code in the file fail-STAGE, after the file hold-STAGE is gone.
PART = """
stage=publish
if [[ "$*" =~ --until\\ (dataset|fit) ]]; then stage=${BASH_REMATCH[1]}; fi
echo "$stage${SLURM_ARRAY_TASK_ID:+ of $SLURM_ARRAY_TASK_ID}: GPU ${CUDA_VISIBLE_DEVICES-none}"
trap 'exit 75' USR1
trap '' TERM
while [[ -e DIRECTORY/hold-$stage ]]; do sleep 0.1; done
for file in fail-$stage fail-$stage-${SLURM_ARRAY_TASK_ID-}; do
    if [[ -e DIRECTORY/$file ]]; then echo "error: no luck"; exit "$(<DIRECTORY/$file)"; fi
done
REST
"""


class Parts:
    """A family whose jobs run a stand-in that can be held and made to fail."""

    def __init__(self, family: Family, stand_in: StandIn, rest: str = "exit 0") -> None:
        self.family = family
        program = PART.replace("REST", rest)
        stand_in(program.replace("DIRECTORY", str(family.directory)))
        family.configure(gres="gpu:1", require_gpu=False)

    def submit(self, *options: object) -> dict[str, str]:
        """Submit the first generation in three jobs; return their ids."""
        return {job["stage"]: job["id"] for job in self.documents("-g", 1, *options)}

    def documents(self, *options: object) -> list[dict[str, Any]]:
        """Submit generations in three jobs each; return what is said of the jobs."""
        ended = self.family.run("submit", *SPLIT, *options, "--json")
        assert ended.code == 0, ended.err
        documents: list[dict[str, Any]] = json.loads(ended.out)["jobs"]
        return documents

    def hold(self, stage: str) -> Path:
        """Have a stage go on until the file is removed."""
        path = self.family.directory / f"hold-{stage}"
        path.touch()
        return path

    def fail(self, stage: str, code: int) -> Path:
        """Have a stage end with a code until the file is removed."""
        path = self.family.directory / f"fail-{stage}"
        path.write_text(str(code))
        return path

    def dependency(self, job: str) -> str:
        """Return what a job waits for."""
        return self.family.cluster.run("squeue", "-h", "-j", job, "-o", "%E").strip()

    def gpus_in_use(self) -> int:
        """Return how many GPUs of the node jobs have, by the controller's account."""
        about = self.family.cluster.run("scontrol", "--details", "show", "node", "-o")
        used = re.search(r" GresUsed=gpu:(?:\(null\):)?(\d+)", about)
        assert used is not None, about
        return int(used[1])

    def recorded(self) -> dict[str, str]:
        """Return the ids of the jobs that ``submission.json`` names."""
        submission = SubmitFiles(self.family.work()).submission()
        jobs = submission.jobs if submission is not None else ()
        return {job.name.rpartition("-")[2]: job.id for job in jobs}


@pytest.fixture
def parts(family: Family, stand_in: StandIn) -> Parts:
    """Return a family of jobs that do nothing by themselves."""
    return Parts(family, stand_in)


def test_only_the_fit_has_a_gpu(parts: Parts) -> None:
    """By the node's own account, while each of the jobs runs."""
    family, cluster = parts.family, parts.family.cluster
    family.configure(cpu={"partition": "short", "time": "5", "mem": "1G"})
    held = {stage: parts.hold(stage) for stage in STAGES}
    jobs = parts.submit()
    assert list(jobs) == list(STAGES)
    assert parts.recorded() == jobs
    assert parts.submit() == jobs
    for stage, before in zip(STAGES[1:], STAGES, strict=False):
        assert parts.dependency(jobs[stage]).startswith(f"afterok:{jobs[before]}")
    for stage, partition in zip(STAGES, ("short", "main", "short"), strict=True):
        cluster.wait_for(jobs[stage], "RUNNING")
        family.wait_for_log(f"{stage}: GPU")
        assert parts.gpus_in_use() == (1 if stage == "fit" else 0)
        assert f" Partition={partition} " in cluster.run(
            "scontrol", "show", "job", "-o", jobs[stage]
        )
        found = family.status()
        assert (found["state"], found["job"]["id"]) == ("running", jobs[stage])
        assert found["job"]["stage"] == stage
        if stage == "dataset":
            assert found["reason"] == "it makes the dataset"
            shown = family.run("status", "-g", 1).out
            assert f"gen_01 running (slurm job {jobs[stage]} (the dataset))" in shown
        again = family.run("submit", "-g", 1, *SPLIT)
        assert f"waits or runs already as slurm job {jobs[stage]}" in again.err
        assert "submitted as" not in again.err
        held[stage].unlink()
    cluster.wait_for(jobs["publish"], "COMPLETED")
    lines = family.run("logs", "-g", 1, "-f").out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(STAGES)
    assert ["GPU none" in line for line in lines] == [True, False, True]


def test_the_dry_run_shows_the_scripts_that_are_submitted(parts: Parts) -> None:
    """One after the other, to the letter; what they wait for is told on the command line."""
    shown = parts.family.run("submit", "-g", 1, *SPLIT, "--dry-run").out
    jobs = parts.submit()
    scripts = [(parts.family.work() / f"submit-{s}.sbatch").read_text() for s in STAGES]
    assert shown == "".join(scripts)
    for stage, text in zip(STAGES, scripts, strict=True):
        job = jobs[stage]
        kept = parts.family.cluster.run("scontrol", "write", "batch_script", job, "-")
        assert kept.strip() == text.strip()


def test_what_fails_is_named_and_only_what_is_missing_runs_again(parts: Parts) -> None:
    """In turn the dataset, the fit and publishing; Slurm may have forgotten what was done."""
    family, cluster = parts.family, parts.family.cluster
    jobs: dict[str, str] = {}
    for number, stage in enumerate(STAGES):
        said = WORDS[Stage(stage)].failed
        failing = parts.fail(stage, 65)
        before, jobs = jobs, parts.submit()
        done = STAGES[: max(0, number - 1)]
        assert all(jobs[part] == before[part] for part in done)
        assert all(jobs[part] != before.get(part) for part in STAGES[len(done) :])
        assert parts.recorded() == jobs
        found = family.wait_for("failed")
        assert (found["job"]["id"], found["exit_code"]) == (jobs[stage], 65)
        assert found["reason"] == f"{said}: no luck"
        assert found["remedy"] == "mlip-job submit -g 1"
        for later in STAGES[number + 1 :]:
            cluster.wait_for(jobs[later], "CANCELLED")
        assert family.status()["reason"] == f"{said}: no luck"
        assert family.run("logs", "-g", 1, "-f").out.count("error: no luck") == 1
        failing.unlink()
        if stage == "fit":
            cluster.stop_controller()
            cluster.start_controller(forgetting=True)
    ended = family.run("submit", "-g", 1, *SPLIT)
    assert f"gen_01 (the fit) is done, by slurm job {jobs['fit']}" in ended.err
    assert "gen_01 (evaluation and publishing) submitted as" in ended.err


def test_a_ladder_is_spoken_of_where_a_fit_is_submitted(parts: Parts) -> None:
    """Once, not in a dry run, nor where the fit is there already; with --json too."""
    parts.family.configure(training={"ladder_step": 1})
    said = "note: gen_01 is fitted by a ladder of up to 3 steps"
    parts.hold("dataset")
    dry, first, again = (
        parts.family.run("submit", "-g", "1..2", *SPLIT, *options)
        for options in (("-g", 1, "--dry-run"), ("--json",), ())
    )
    assert "a ladder of" not in dry.out + dry.err + again.err + first.out
    assert (first.code, first.err.count("ladder of"), said in first.err) == (0, 1, True)
    for generation in (1, 2):
        assert parts.family.run("cancel", "-g", generation).code == 0


def test_all_jobs_are_cancelled(parts: Parts) -> None:
    """Those that wait too, whichever runs; nothing goes on behind one's back."""
    parts.hold("fit")
    jobs = parts.submit()
    parts.family.cluster.wait_for(jobs["fit"], "RUNNING")
    parts.family.wait_for_log("fit: GPU")
    ended = parts.family.run("cancel", "-g", 1)
    ids = [jobs[stage] for stage in ("fit", "publish")]
    assert ended.out == "".join(f"slurm job {job} of gen_01 is cancelled\n" for job in ids)
    assert parts.family.cluster.state(jobs["publish"]) == "CANCELLED"
    assert parts.family.cluster.state(jobs["dataset"]) == "COMPLETED"
    assert parts.family.status()["state"] == "cancelled"
    other = parts.family.run("submit", "-g", 1)  # as a single job
    assert other.code == 0, other.err


def test_what_waits_goes_on_waiting_for_a_requeued_job(parts: Parts) -> None:
    """It keeps its id; with others' settings, the submission is another one."""
    failing = parts.fail("dataset", 69)
    jobs = parts.submit()
    parts.family.wait_for_log("it is requeued, and goes on")
    failing.unlink()
    other = parts.family.run("submit", "-g", 1, "--split-export")
    assert other.code == 73
    assert "waits or runs, of another configuration or with other options" in other.err
    parts.family.cluster.wait_for(jobs["publish"], "COMPLETED")
    assert parts.family.log().count("dataset: GPU none") == 2


def test_a_refused_job_takes_those_before_it_along(parts: Parts) -> None:
    """A dataset alone would keep the next submission from being made."""
    parts.family.configure(gres="gpu:99")
    ended = parts.family.run("submit", "-g", 1, *SPLIT)
    assert ended.code == 64
    assert "node configuration is not available" in ended.err
    assert parts.family.run("status", "-g", 1).out.startswith("gen_01 cancelled")
    parts.family.configure(gres="gpu:1", cpu={"partition": "nosuch"})
    ended = parts.family.run("submit", "-g", 1, *SPLIT)
    assert "set submit.slurm.cpu.partition to one of: main" in ended.err


def test_generations_of_three_jobs_follow_each_other(parts: Parts) -> None:
    """The first job of one after the last of the one before; --after is for the very first."""
    cluster = parts.family.cluster
    blocker = cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 60").strip()
    ids = [job["id"] for job in parts.documents("-g", "1..2", "--after", blocker)]
    for job, before in zip(ids, (blocker, *ids), strict=False):
        assert parts.dependency(job).startswith(f"afterok:{before}")
    for generation in (1, 2):
        assert parts.family.run("cancel", "-g", generation).code == 0
    assert all(cluster.state(job) == "CANCELLED" for job in ids)


def test_each_member_is_published_after_its_own_fit(parts: Parts) -> None:
    """One that fails keeps none of the others back; a dataset is made once for all."""
    family, cluster = parts.family, parts.family.cluster
    parts.fail("fit-2", 70)
    jobs = parts.submit("--ensemble", 3)
    found = family.wait_for("failed")
    assert found["job"]["id"] == jobs["fit"]
    assert found["reason"].startswith("the fit failed: members: 1 failed, 2 succeeded; no luck")
    states = [
        cluster.wait_for(f"{jobs['publish']}_{n}", "COMPLETED", "CANCELLED") for n in (1, 2, 3)
    ]
    assert states == ["COMPLETED", "CANCELLED", "COMPLETED"]
    log = family.log()
    assert (log.count("dataset: GPU"), log.count("fit of "), log.count("publish of ")) == (1, 3, 2)
    assert "[1] publish of 1: GPU none" in family.run("logs", "-g", 1).out
    refused = family.run("submit", "-g", 1, *SPLIT, "--ensemble", 3, "--fresh")
    assert (refused.code, "leave out --split-export" in refused.err) == (64, True)


@pytest.mark.pacemaker
def test_members_share_the_dataset_of_a_job_of_its_own(family: Family) -> None:
    """Real ones: the array of publishing jobs makes the generation of the best."""
    family.configure(gres="gpu:1", require_gpu=False)
    ended = family.run("submit", "-g", 1, *SPLIT, "--ensemble", 2)
    assert ended.code == 0, ended.err
    family.wait_for("published")
    registry = family.registry()
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert manifest.ensemble is not None
    assert [member.number for member in manifest.ensemble.members] == [1, 2]
    logs = family.run("logs", "-g", 1, "-f").out
    assert logs.count("gen_01 is to be trained on dataset") == 1
    # Two that end at one moment make the same generation of what they find, and both say so.
    assert "published gen_01 in " in logs


@pytest.mark.pacemaker
def test_wait_sees_all_jobs_to_their_end(family: Family, stand_in: StandIn) -> None:
    """The fit is lost where the site does not requeue, and submitted again with what follows."""
    command, setup = (family.values["submit"]["slurm"][key] for key in ("command", "setup"))
    parts = Parts(family, stand_in, rest=f'{setup[0]}; exec "{command}" "$@"')
    held = parts.hold("dataset")
    losing = parts.fail("fit", 75)
    waiting = family.start("submit", "-g", 1, *SPLIT, "--wait", "--fresh")
    end = time.monotonic() + 120
    while len(first := parts.recorded()) < len(STAGES):
        assert time.monotonic() < end, waiting.poll()
        time.sleep(0.3)
    family.cluster.run("scontrol", "update", f"jobid={first['fit']}", "requeue=0")
    held.unlink()
    family.wait_for_log("Slurm does not requeue it; this goes on from its checkpoint:")
    losing.unlink()
    assert "mlip-job.yaml submit -g 1 --split-export --split-evaluation\n" in family.log()
    out, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, err
    again = parts.recorded()
    assert again["dataset"] == first["dataset"]
    jobs = f"slurm job {again['fit']}, slurm job {again['publish']}"
    assert f"gen_01: submitted again as {jobs}, to go on from its checkpoint" in err
    assert "gen_01: running, it makes the dataset" in err
    assert "generation     gen_01 of cu" in out
    assert family.registry().verify(family.registry().get(1)) == []
    assert family.log().count("is to be trained on dataset") == 1
