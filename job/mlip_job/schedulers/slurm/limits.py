"""Limits of accounts and QOS, by the words in which Slurm names them.

They are built by rule (``QOSMaxCpuPerUserLimit``, ``AssocGrpGRESMinutes``), and there are more than
a hundred: https://slurm.schedmd.com/job_reason_codes.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORD = re.compile(
    "(?P<owner>QOS|Assoc)(?P<bound>Grp|Max|Min)"
    "(?P<what>C[pP][uU]|GRES|Mem(ory)?|Node|SubmitJob|Job|Wall(Duration)?|Billing)s?"
    "(?P<time>RunMinutes|Minutes)?(Per(?P<per>Job|Node|User|Account))?(Limit|NotSatisfied)?"
)
# What is limited, and the setting that asks for it.
_AMOUNTS: Mapping[str, tuple[str, str | None]] = {
    "cpu": ("CPUs", "cpus"),
    "gres": ("GPUs", "gres"),
    "mem": ("memory", "mem"),
    "memory": ("memory", "mem"),
    "wall": ("time", "time"),
    "wallduration": ("time", "time"),
    "billing": ("resources, as they are billed", None),
}
_ASK_FOR_MORE = "ask for a higher limit; sacctmgr show associations and sacctmgr show qos list them"


@dataclass(frozen=True)
class Limit:
    """A limit that keeps a job from starting, or from being submitted.

    Attributes
    ----------
    reason
        In words.
    hint
        What to do about it.
    never
        Whether no waiting helps: the job itself asks for too much or too little.
    of_submitted_jobs
        Whether it is on the number of jobs that wait or run.
    """

    reason: str
    hint: str
    never: bool = False
    of_submitted_jobs: bool = False


def limit_named(word: str) -> Limit | None:
    """Return the limit that a word of Slurm's names; None where it names none."""
    match = _WORD.fullmatch(word)
    if match is None:
        return None
    owner = {"QOS": "the QOS", "Assoc": "the account"}[match["owner"]]
    what, time = match["what"].lower(), match["time"]
    if what.endswith("job"):
        return _of_jobs(match, owner, submitted=what == "submitjob")
    amount, setting = _AMOUNTS.get(what, ("nodes", None))
    asks = f" (submit.slurm.{setting})" if setting is not None else ""
    own_job = match["bound"] == "Max" and match["per"] not in ("User", "Account")
    if match["bound"] == "Min" or own_job:
        return _of_one_job(match, owner, amount, asks)
    if what.startswith("wall") or time is not None:
        return _of_a_budget(owner, "time" if time is None else f"time × {amount}", time)
    return _of_what_is_in_use(match, owner, amount, asks)


def _of_jobs(match: re.Match[str], owner: str, *, submitted: bool) -> Limit:
    does = "wait or run" if submitted else "run"
    # A maximum of an account's is for each of its users.
    whose = "the account's" if match["per"] == "Account" else "your"
    jobs = f"as many of {whose} jobs {does} as {owner} allows"
    if match["bound"] == "Grp":
        jobs = f"as many jobs of {owner} {does} as may"
    hint = f"wait for some of them to end, or {_ASK_FOR_MORE}"
    return Limit(jobs, hint, of_submitted_jobs=submitted)


def _of_one_job(match: re.Match[str], owner: str, amount: str, asks: str) -> Limit:
    reason = f"more {amount} than {owner} allows{asks}"
    if match["time"] is not None:
        reason = f"more time × {amount} than {owner} allows (submit.slurm.time)"
    if match["bound"] == "Min":
        reason = f"less than the least {amount} that {owner} takes{asks}"
    return Limit(f"it asks for {reason}", "cancel it, change that and submit it again", never=True)


def _of_a_budget(owner: str, budget: str, time: str | None) -> Limit:
    if time == "RunMinutes":
        return Limit(
            f"the jobs of {owner} that run may take all of the {budget} that it has at once",
            f"wait for them to end, ask for less time, or {_ASK_FOR_MORE}",
        )
    return Limit(
        f"{owner} has used up its {budget}",
        f"use another account or QOS, wait until it is renewed, or {_ASK_FOR_MORE}",
    )


def _of_what_is_in_use(match: re.Match[str], owner: str, amount: str, asks: str) -> Limit:
    users = {"User": "your jobs", "Account": "the account's jobs"}
    allowed = f"as {owner} allows" if match["per"] is not None else "as they may"
    many = "much" if amount == "memory" else "many"
    return Limit(
        f"{users.get(match['per'], f'the jobs of {owner}')} use as {many} {amount} {allowed}",
        f"wait for others to end; if none of them runs, ask for less{asks}, or {_ASK_FOR_MORE}",
    )
