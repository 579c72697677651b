"""The batch script: golden file, shellcheck, and values that try to become code."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlip_job.config import JobConfig
from mlip_job.config.schedulers import OWNED_OPTIONS, SlurmConfig
from mlip_job.errors import ConfigError
from mlip_job.schedulers.base import JobName, JobRequest
from mlip_job.schedulers.slurm.scheduler import SlurmScheduler
from mlip_job.schedulers.slurm.script import image_record, record_image

ON_GPUS = {
    "account": "alloys",
    "partition": "gpu",
    "qos": "long",
    "gres": "gpu:a100:1,lscratch:100",
    "time": "24:00:00",
    "mem": "32G",
    "cpus": 8,
    "extra": [
        "--constraint=nvlink",
        "--reservation=course",
        "--exclude=node7",
        "--mem-per-gpu=40G",
        "--nice=5",
    ],
    "image": "/sw/images/mlip-job.sif",
}
GOLDEN = Path(__file__).parents[2] / "data" / "slurm"
ACCEPT = os.environ.get("MLIP_JOB_TEST_ACCEPT")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"partition": "cpu", "time": "1-12:00:00"}, {}),
    "container": (
        {
            "account": "alloys",
            "partition": "gpu",
            "time": "24:00:00",
            "mem": "32G",
            "cpus": 8,
            "extra": [
                "--gpus-per-node=a100:1",
                "--mail-user=me@example.org",
                "--mail-type=END,FAIL",
                "--licenses=scratch:1",
            ],
            "env_file": "/home/me/mlip.env",
            "image": "/sw/images/mlip-job.sif",
            "container_options": ["--nv", "--bind=/data:/data:ro"],
            "modules": ["apptainer/1.3"],
            "setup": ["ulimit -c 0"],
        },
        {"after": "4711;alps", "run_options": ("--fresh",)},
    ),
    "ensemble": ({"gres": "gpu:1"}, {"ensemble": 4}),
    "linear": (
        ON_GPUS | {"cpu": {"partition": "cpu", "time": "02:00:00", "cpus": 2}},
        {"training": {"max_iter": 0}, "run_options": ("--fresh",), "ensemble": 4, "after": "4711"},
    ),
    "gpu": (ON_GPUS, {"after": "afterany:4711:4712+30,singleton"}),
}
HOSTILE = {
    "spaces": "two  words",
    "quotes": 'it\'s "quoted"',
    "substitution": "$(touch $OWNED)`touch $OWNED`",
    "commands": "; touch $OWNED; && touch $OWNED | touch $OWNED",
    "unicode": "Ångström → 温度",
    "backslash": "\\\\' \\$HOME",
    "option": "--wrap=touch $OWNED",
    "glob": "* ? [a-z] {a,b} ~ !$ # %j",
}


def script(
    slurm: dict[str, Any],
    work_dir: str = "/scratch/me/work",
    training: dict[str, Any] | None = None,
    **request: Any,
) -> str:
    config = JobConfig.model_validate(
        {
            "family": "cu-ni",
            "database": {"url": "/scratch/me/structures.db"},
            "storage": {"url": "/scratch/me/store"},
            "training": training or {"max_iter": 100},  # a linear fit would request no GPU
            "work_dir": work_dir,
            "submit": {"slurm": slurm},
        }
    )
    asked = JobRequest(config, 4, Path("/scratch/me"), **request)
    return SlurmScheduler(config).plan(asked).text


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_as_reviewed(case: str) -> None:
    """Compare with the reviewed file; MLIP_JOB_TEST_ACCEPT=1 accepts a change."""
    slurm, request = CASES[case]
    # The hashes in the job's name are of the whole configuration.
    text = re.sub(r"gen_04-[0-9a-f-]{17}", "gen_04-HASHES", script(slurm, **request))
    path = GOLDEN / f"{case}.sbatch"
    if ACCEPT:
        path.write_text(text)
    lines = difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), n=3)
    difference = "\n".join(lines)
    assert not difference, f"{path} (MLIP_JOB_TEST_ACCEPT=1 accepts this):\n{difference}"


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_clean(case: str, tmp_path: Path) -> None:
    """For bash and for shellcheck with all checks except style."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: make servers installs it")
    path = tmp_path / "submit.sbatch"
    slurm, request = CASES[case]
    path.write_text(script(slurm, **request))
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that runs a script like Slurm, but with programs that only print.

    It returns the words and variables of the run. A value that becomes code would create the file
    ``owned``.
    """
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    record = 'printf "%s\\0" "$@" >"$RECEIVED"; env -0 >"$RECEIVED_ENV"; exit 0\n'
    for name in ("mlip-job", "apptainer"):
        (bin_dir / name).write_text(f"#!/bin/bash\n{record}")
    (bin_dir / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (bin_dir / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    for program in bin_dir.iterdir():
        program.chmod(0o755)

    def run(text: str, **variables: str) -> list[str]:
        path = tmp_path / "script"
        path.write_text(text)
        environment = {
            "PATH": f"{bin_dir}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "RECEIVED": str(tmp_path / "received"),
            "RECEIVED_ENV": str(tmp_path / "received-env"),
            "OWNED": str(tmp_path / "owned"),
            "SLURM_JOB_ID": "17",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["bash", path],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "owned").exists()
        (tmp_path / "script.log").write_text(done.stderr)
        return (tmp_path / "received").read_text().split("\0")[:-1]

    return run


def variables(directory: Path) -> dict[str, str]:
    found = (directory / "received-env").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in found if line)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_setting_becomes_code(
    tmp_path: Path, run_script: Callable[..., list[str]], value: str
) -> None:
    """Each reaches the program unchanged, as one word, through a real shell."""
    options = ("account", "partition", "qos", "gres")
    slurm = dict.fromkeys(options, value)
    slurm |= {"image": value, "env_file": None, "extra": [f"--comment={value}"]}
    slurm |= {"container": "apptainer", "container_options": [value]}
    slurm["modules"] = [value]
    text = "module() { :; }\n" + script(slurm, run_options=(value,)).replace(" -l\n", "\n", 1)
    work = tmp_path / "scratch"
    text = text.replace("/scratch/me/work", str(work))
    (work / "gen_04").mkdir(parents=True)
    words = run_script(text)
    assert words[:3] == ["run", value, "--cleanenv"]
    image = words.index("run", 1) - 1
    assert words[image] == value
    assert words[image + 1 : image + 4] == ["run", "--generation", "4"]
    assert value in words[image + 4 :]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_work_directory_of_any_name(
    tmp_path: Path, run_script: Callable[..., list[str]], value: str
) -> None:
    """Command, configuration and records are found in it; Slurm can't log to a backslash."""
    work = tmp_path / value / "work"
    if "\\" in value:
        with pytest.raises(ConfigError, match="work_dir: Slurm accepts no backslash"):
            script({}, str(work))
        return
    (work / "gen_04").mkdir(parents=True)
    words = run_script(script({"command": "mlip-job"}, str(work)))
    assert words == ["run", "--generation", "4", "--config", f"{work}/gen_04/mlip-job.yaml"]
    assert (work / "gen_04" / "slurm-17.ended").read_text().startswith('{"exit_code": 0,')


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_secrets_reach_the_container_by_name_and_nothing_else(
    tmp_path: Path, run_script: Callable[..., list[str]], value: str
) -> None:
    """Values are unchanged; none is an argument of a command, or in the script."""
    env_file = tmp_path / "secrets.env"
    env_file.write_text(f"# keys\n\nAWS_SECRET_ACCESS_KEY={value}\nEMPTY=\nLAST=1")
    env_file.chmod(0o600)
    (tmp_path / "work" / "gen_04").mkdir(parents=True)
    text = script({"image": "docker://x", "env_file": str(env_file)}, str(tmp_path / "work"))
    assert value not in text
    words = run_script(text, CUDA_VISIBLE_DEVICES="3", MLIP_JOB__TRAINING__CUTOFF="1")
    assert value not in " ".join(words)
    found = variables(tmp_path)
    assert found["APPTAINERENV_AWS_SECRET_ACCESS_KEY"] == value
    assert found["APPTAINERENV_EMPTY"] == ""
    assert found["APPTAINERENV_LAST"] == "1"
    assert found["APPTAINERENV_SLURM_JOB_ID"] == "17"
    assert found["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "3"
    assert "MLIP_JOB__TRAINING__CUTOFF" not in found


def test_the_image_is_read_at_submission_and_not_by_the_job(
    tmp_path: Path, run_script: Callable[..., list[str]]
) -> None:
    image, work = tmp_path / "mlip job.sif", tmp_path / "work"
    image.write_bytes(b"an image")
    (work / "gen_04").mkdir(parents=True)
    slurm = {"image": str(image)}
    config = JobConfig.model_validate(
        {"family": "cu", "work_dir": str(work), "submit": {"slurm": slurm}}
    )
    record_image(config)
    reader = tmp_path / "bin" / "sha256sum"
    reader.write_text(f'#!/bin/bash\necho >>{tmp_path}/read; exec /usr/bin/sha256sum "$@"\n')
    reader.chmod(0o755)

    def name_in_job(content: bytes) -> str:
        run_script(script(slurm, str(work)))
        found = variables(tmp_path)["APPTAINERENV_MLIP_JOB_IMAGE"]
        assert found == f"mlip job.sif@sha256:{hashlib.sha256(content).hexdigest()}"
        return (tmp_path / "script.log").read_text()

    assert "taking its hash" not in name_in_job(b"an image")
    assert not (tmp_path / "read").exists()
    record = image_record(config).stat().st_mtime_ns
    record_image(config)
    assert image_record(config).stat().st_mtime_ns == record

    image.write_bytes(b"no image")  # same size, newer
    assert "changed since the submission: computing its" in name_in_job(b"no image")
    assert (tmp_path / "read").read_text() == "\n"
    record_image(config)
    assert "taking its hash" not in name_in_job(b"no image")
    for other in ("docker://x", str(tmp_path), str(tmp_path / "absent")):  # read by the job
        values = {"family": "cu", "work_dir": str(tmp_path / "other")}
        config = JobConfig.model_validate(values | {"submit": {"slurm": {"image": other}}})
        record_image(config)
        assert not image_record(config).exists()


def test_a_container_has_the_cores_and_threads_of_its_job(
    tmp_path: Path, run_script: Callable[..., list[str]]
) -> None:
    """Cores of Slurm and threads of the user's own lines reach its clean environment."""
    (tmp_path / "work" / "gen_04").mkdir(parents=True)
    slurm = {"image": "docker://x", "setup": ["export OMP_NUM_THREADS=3"], "cpus": 8}
    run_script(script(slurm, str(tmp_path / "work")), SLURM_CPUS_PER_TASK="8")
    found = variables(tmp_path)
    assert found["APPTAINERENV_SLURM_CPUS_PER_TASK"] == "8"
    assert found["APPTAINERENV_OMP_NUM_THREADS"] == "3"
    assert "APPTAINERENV_MKL_NUM_THREADS" not in found


def test_a_requeued_job_gets_fresh_and_the_requeue_flag(
    tmp_path: Path, run_script: Callable[..., list[str]]
) -> None:
    """Its first start may have died before removing state; the run knows the job's own attempts."""
    (tmp_path / "work" / "gen_04").mkdir(parents=True)
    for slurm in ({}, {"image": "docker://x"}):
        text = script(slurm, str(tmp_path / "work"), run_options=("--fresh",))
        assert run_script(text)[-1] == "--fresh"
        assert "APPTAINERENV_SLURM_RESTART_COUNT" not in variables(tmp_path)
        assert run_script(text, SLURM_RESTART_COUNT="1")[-1] == "--fresh"
    assert variables(tmp_path)["APPTAINERENV_SLURM_RESTART_COUNT"] == "1"


def test_a_requested_gpu_is_required() -> None:
    """Unless the configuration says otherwise."""
    assert "--require-gpu" in script({"gres": "gpu:a100:1"})
    assert "--require-gpu" in script({"extra": ["--gpus-per-node=1"]})
    assert "--require-gpu" not in script({})
    assert "--require-gpu" not in script({"gres": "gpu:1", "require_gpu": False})


def test_a_linear_fit_requests_no_gpu() -> None:
    slurm = ON_GPUS | {"partition": "main", "cpu": {"partition": "small", "cpus": 64}}
    text = script(slurm, training={"max_iter": 0})
    gpu_only = ("gpu", "--nv", "--constraint", "--reservation")
    assert not [word for word in gpu_only if word in text]
    assert all(word in script(slurm) for word in gpu_only)
    own = ("--partition=small", "--cpus-per-task=64", "--gres=lscratch:100")
    inherited = ("--account=alloys", "--mem=32G", "--exclude=node7", "--nice=5")
    assert all(f"#SBATCH {option}\n" in text for option in (*own, *inherited))
    own_extra = slurm | {"cpu": {"qos": "short", "extra": ["--constraint=skylake"]}}
    text = script(own_extra, training={"max_iter": 0})
    assert "#SBATCH --qos=short\n#" in text
    assert "#SBATCH --constraint=skylake\n" in text
    assert "--nice" not in text


def test_the_name_of_a_job_is_read_back() -> None:
    """A job of another program, or of a version that split a run, is ignored."""
    config = JobConfig.model_validate({"family": "cu", "work_dir": "/w", "storage": {"url": "/s"}})
    name = JobName.of(JobRequest(config, 4, Path("/w")))
    assert JobName.parse(str(name)) == name
    assert JobName.parse(f"{name}-dataset") is None


@pytest.mark.parametrize(
    ("after", "option"),
    [
        ("4711", "afterok:4711"),
        ("4711_3", "afterok:4711_3"),
        ("4711;alps", "afterok:4711"),
        ("afterany:4711", "afterany:4711"),
        ("afterok:1:2,after:3+60", "afterok:1:2,after:3+60"),
        ("aftercorr:1?singleton", "aftercorr:1?singleton"),
    ],
)
def test_a_dependency_is_passed_on(after: str, option: str) -> None:
    """A plain job id means that this job has to succeed first."""
    text = script({}, after=after)
    assert f"#SBATCH --dependency={option}\n" in text
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in text


@pytest.mark.parametrize("after", ["", "job", "12x", "1:2", "afterok:", "1 2", "afterok:1 -a"])
def test_an_invalid_dependency_is_rejected(after: str) -> None:
    with pytest.raises(ConfigError, match=f"--after: '{after}' is no job of Slurm's"):
        script({}, after=after)


def test_a_resubmitted_job_resumes() -> None:
    """State removed by its first submission is not there any more."""
    over = {"run_options": ("--fresh",)}
    assert "--fresh" in script({}, **over)
    assert "--fresh" not in script({}, **over, again=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu": {"time": 30}}, "needs quotes"),
        ({"cpu": {"partition": "cpu\n#SBATCH --wrap=x"}}, "one line of printable characters"),
        ({"cpu": {"extra": ["--job-name=x"]}}, "sets --job-name"),
        ({"cpu": {"image": "x"}}, "Extra inputs are not permitted"),
        ({"time": "1:00:00:00"}, "minutes, hours:minutes:seconds or days-hours"),
        ({"time": "12:75:00"}, "minutes, hours:minutes:seconds or days-hours"),
        ({"time": "0"}, "minutes, hours:minutes:seconds or days-hours"),
        ({"time": 86400}, "needs quotes, as in '24:00:00': YAML reads it as a number"),
        ({"mem": "32 GB"}, "a whole number with K, M, G or T"),
        ({"account": ""}, "one line of printable characters"),
        ({"setup": ["a\nb"]}, "one line of printable characters"),
        ({"extra": ["-J name"]}, "is no option in the form --name or --name=value"),
        ({"extra": ["--jo=x"]}, "sets --job-name"),
        ({"extra": ["--part=x"]}, "sets --partition, which follows from submit.slurm.partition"),
        ({"extra": ["--no-requeue"]}, "sets --no-requeue"),
        ({"max_requeues": -1}, "greater than or equal to 0"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SlurmConfig.model_validate(settings)


def test_every_reserved_option_is_rejected() -> None:
    for option in OWNED_OPTIONS:
        with pytest.raises(ValidationError, match="sets --"):
            SlurmConfig.model_validate({"extra": [f"--{option}=1"]})
    allowed = ("--mem-per-gpu=1G", "--exclusive", "--nice=5", "--comment=a b", "--licenses=x")
    assert SlurmConfig.model_validate({"extra": allowed}).extra == allowed


@pytest.mark.parametrize(
    ("settings", "work_dir", "message"),
    [
        (
            {"warning": 20},
            "/work",
            r"submit\.slurm\.warning is 20 s, too short",
        ),
        ({}, "work", r"work_dir: '.*' is no absolute path"),
        # Apptainer splits them there, and has no escape.
        ({"image": "/x.sif"}, "/a:b", "work_dir: a container can't bind"),
        ({"image": "/x.sif"}, "/a,b", "work_dir: a container can't bind"),
    ],
)
def test_impossible_plans(settings: dict[str, Any], work_dir: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        script(settings, work_dir)
