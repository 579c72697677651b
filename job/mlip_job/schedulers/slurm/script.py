"""The batch script of a request, its options for sbatch, and the files that the job needs."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name, sha256_of
from mlip_job.runtime.environment import THREAD_VARIABLES
from mlip_job.schedulers.base import Code, render
from mlip_job.schedulers.records import SubmitFiles, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.config.schedulers import SlurmConfig
    from mlip_job.schedulers.base import JobRequest

_JOB = re.compile(r"\d+(_\d+)?")
# https://slurm.schedmd.com/sbatch.html#OPT_dependency; Slurm itself checks the kinds.
_DEPENDENCY = r"(singleton|[a-z]+(:\d+(_(\d+|\*))?(\+\d+)?)+)"
_DEPENDENCIES = re.compile(rf"{_DEPENDENCY}(,{_DEPENDENCY})*|{_DEPENDENCY}(\?{_DEPENDENCY})*")
_SPARE_SECONDS = 5  # on top of run.stop_timeout
_SECRETS = ("MLIP_JOB_DATABASE_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "AWS_SECRET_ACCESS_KEY")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=(.*)")
_OTHERS = 0o077
_LARGE_IMAGE = 256 << 20  # bytes, hashed in a second or so

_log = logging.getLogger(__name__)


def batch_script(request: JobRequest, name: str) -> str:
    """Return the batch script of a request.

    Raise a ConfigError if a setting can't be submitted; the message names the key.
    """
    config, slurm = request.config, _settings(request)
    files = SubmitFiles.of(config, request.generation)
    options = list(request.options)
    if slurm.require_gpu and slurm.asks_for_gpu and "--require-gpu" not in options:
        options.append("--require-gpu")
    resubmit = ["mlip-job", "-c", str(files.config), "submit", "-g", str(request.generation)]
    if request.ensemble is not None:
        resubmit += ["--ensemble", str(request.ensemble)]
    singularity = Path(slurm.container).name == "singularity"
    return render(
        "slurm.sbatch.j2",
        # Where a site has the command `module`, a login shell knows it.
        login=Code(" -l" if slurm.modules else ""),
        generation_name=generation_name(request.generation),
        family=config.family,
        directives=[Code(quote_directive(option)) for option in _sbatch_options(request, name)],
        directory=files.directory,
        ensemble=request.ensemble,
        max_requeues=slurm.max_requeues,
        resubmit=shlex.join(resubmit),
        modules=slurm.modules,
        setup=[Code(line) for line in slurm.setup],
        env_file=slurm.env_file,
        image=slurm.image,
        image_record=image_record(config),
        thread_variables=Code(" ".join(THREAD_VARIABLES)),
        variable_prefix=Code("SINGULARITYENV_" if singularity else "APPTAINERENV_"),
        program=list(_program(config, slurm)),
        generation=request.generation,
        run_options=options,
        # Since Slurm 22.05 a step does not inherit the number of CPUs of its job.
        srun_options=Code(f" --cpus-per-task={slurm.cpus}" if slurm.cpus is not None else ""),
    )


def _settings(request: JobRequest) -> SlurmConfig:
    slurm = request.config.submit.slurm
    return slurm if request.needs_gpu else slurm.without_gpu()


def _sbatch_options(request: JobRequest, name: str) -> Iterator[str]:
    slurm, run = _settings(request), request.config.run
    if slurm.warning < run.stop_timeout + _SPARE_SECONDS:
        raise ConfigError(
            f"submit.slurm.warning is {slurm.warning} s, too short for a checkpoint that may take "
            f"run.stop_timeout = {run.stop_timeout:.0f} s",
            hint=f"set it to {run.stop_timeout + _SPARE_SECONDS:.0f} or more",
        )
    directory = str(SubmitFiles.of(request.config, request.generation).directory)
    if "\\" in directory:
        raise ConfigError("work_dir: Slurm accepts no backslash in the name of a log")
    log = f"slurm-{'%A_%a' if request.ensemble is not None else '%j'}.log"
    yield f"--job-name={name}"
    yield f"--output={directory.replace('%', '%%')}/{log}"
    yield f"--chdir={directory}"
    yield from ("--open-mode=append", "--export=NONE", "--requeue")
    yield f"--signal=B:USR1@{slurm.warning}"
    yield from ("--nodes=1", "--ntasks=1")
    settings = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "gres": slurm.gres,
        "time": slurm.time,
        "mem": slurm.mem,
        "cpus-per-task": slurm.cpus,
    }
    yield from (f"--{option}={value}" for option, value in settings.items() if value is not None)
    if request.ensemble is not None:
        yield f"--array=1-{request.ensemble}"
    if request.after is not None:
        yield f"--dependency={_dependency(request.after)}"
        yield "--kill-on-invalid-dep=yes"
    yield from slurm.extra


def _dependency(after: str) -> str:
    """Return the dependency for ``--after``: a job that has to succeed, or what sbatch accepts."""
    number = after.partition(";")[0]  # in a federation, the cluster of a job follows its number
    if _JOB.fullmatch(number) is not None:
        return f"afterok:{number}"
    if _DEPENDENCIES.fullmatch(after) is not None:
        return after
    raise ConfigError(
        f"--after: {after!r} is no job of Slurm's",
        hint="give its number, or a dependency as for sbatch --dependency, like afterany:4711",
    )


def quote_directive(option: str) -> str:
    r"""Return an option as a line ``#SBATCH …`` has to hold it.

    sbatch splits such lines by its own rules: double quotes hold words together, and a backslash
    escapes the next character.
    """
    if not any(character in option for character in " \t\"'\\#"):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _program(config: JobConfig, slurm: SlurmConfig) -> Iterator[str]:
    """Yield the words before the verb ``run``."""
    directories = {"work_dir": config.work_dir}
    if "://" not in config.database.url:
        directories["database.url"] = str(Path(config.database.url).parent)
    if "://" not in config.storage.url:
        directories["storage.url"] = config.storage.url
    for key, path in directories.items():
        if not Path(path).is_absolute():
            raise ConfigError(f"{key}: {path!r} is no absolute path, and a job starts elsewhere")
        if slurm.image is not None and set(path) & set(":,"):
            raise ConfigError(f"{key}: a container can't bind {path!r}: it has a colon or comma")
    if slurm.image is None:
        yield slurm.command
        return
    yield from (slurm.container, "run", *slurm.container_options, "--cleanenv")
    yield from (f"--bind={path}" for path in dict.fromkeys(directories.values()))
    yield slurm.image


# -- files that a job needs ------------------------------------------------------------------------


def check_files(config: JobConfig) -> None:
    """Check the files that a job will need, as far as this machine can see them.

    Raise a ConfigError that names the setting.
    """
    slurm, storage = config.submit.slurm, config.storage.url
    if "://" not in config.database.url and not Path(config.database.url).is_file():
        raise ConfigError(f"database.url: there is no {config.database.url}")
    if slurm.image is not None and "://" not in slurm.image and not Path(slurm.image).exists():
        raise ConfigError(
            f"submit.slurm.image: there is no {slurm.image}",
            hint="build or copy it there, or remove image to run without a container",
        )
    if slurm.image is not None and "://" not in storage:
        try:  # the container does not start without the directories that it binds
            Path(storage).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"storage.url: can't make {storage}: {error.strerror}") from None
    if slurm.env_file is not None:
        _check_env_file(Path(slurm.env_file))
    elif found := [name for name in _SECRETS if name in os.environ]:
        _log.warning(
            "note: a job does not get %s from here; submit.slurm.env_file passes secrets on",
            ", ".join(found),
        )


def _check_env_file(path: Path) -> None:
    """Reject a file that others can read, or with ambiguous lines.

    Values are not printed.
    """
    where = f"submit.slurm.env_file: {path}"
    form = "write NAME=VALUE lines; values are taken literally, without quotes"
    try:
        about = path.stat()
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} can't be read: {error}") from None
    if about.st_mode & _OTHERS or about.st_uid != os.getuid():
        raise ConfigError(f"{where}: others have access to it", hint=f"chmod 600 {path}")
    for number, line in enumerate(lines, start=1):
        if line.endswith("\r"):
            raise ConfigError(
                f"{where}, line {number} has a Windows line ending (CRLF)",
                hint=f"sed -i 's/\\r$//' {path}",
            )
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            raise ConfigError(f"{where}, line {number} is no assignment", hint=form)
        value = match.group(1)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            raise ConfigError(f"{where}, line {number}: the value is quoted", hint=form)


def image_record(config: JobConfig) -> Path:
    """Return the file with hash, size and modification time of the configured image."""
    key = hashlib.sha256(str(config.submit.slurm.image).encode()).hexdigest()[:8]
    return Path(config.work_dir) / f"image-{key}.sha256"


def record_image(config: JobConfig) -> None:
    """Record the hash of the image, so that jobs need not read all of it on their nodes.

    The script compares size and time, and takes the hash itself if they differ or are missing.
    """
    image, record = Path(config.submit.slurm.image or ""), image_record(config)
    with suppress(OSError):
        if not image.is_file():
            return
        before = _about(image)
        if record.is_file() and record.read_text(encoding="ascii").split()[1:] == before.split():
            return
        if image.stat().st_size > _LARGE_IMAGE:
            _log.warning("note: computing the hash of %s, once", image)
        sha256 = sha256_of(image)
        if _about(image) == before:  # it may still be copied there
            write_whole(record, f"{sha256} {before}\n")


def _about(path: Path) -> str:
    """Return size and modification time, as ``stat -c '%s %.9Y'`` does."""
    about = path.stat()
    seconds, nanoseconds = divmod(about.st_mtime_ns, 10**9)
    return f"{about.st_size} {seconds}.{nanoseconds:09d}"
