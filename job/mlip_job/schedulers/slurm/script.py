"""The batch script, as text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name
from mlip_job.runtime.environment import THREAD_VARIABLES
from mlip_job.schedulers.base import Code, render
from mlip_job.schedulers.records import SubmitFiles
from mlip_job.schedulers.slurm.image import image_record
from mlip_job.schedulers.slurm.options import quote_directive, sbatch_options, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.config.slurm import SlurmConfig
    from mlip_job.schedulers.base import JobRequest


def batch_script(request: JobRequest, name: str) -> str:
    """Return the batch script of a request.

    Raises
    ------
    ConfigError
        If a setting can't be submitted; the message names the key.
    """
    config, slurm = request.config, settings_of(request)
    files = SubmitFiles.of(config, request.generation)
    directives = [Code(quote_directive(option)) for option in sbatch_options(request, name)]
    options = list(request.options)
    if slurm.require_gpu and slurm.asks_for_gpu and "--require-gpu" not in options:
        options.append("--require-gpu")
    singularity = Path(slurm.container).name == "singularity"
    return render(
        "submit.sbatch.j2",
        # A login shell knows the command `module` where a site has it.
        login=Code(" -l" if slurm.modules else ""),
        generation_name=generation_name(request.generation),
        family=config.family,
        directives=directives,
        directory=files.directory,
        ensemble=request.ensemble,
        max_requeues=slurm.max_requeues,
        resubmit=shlex.join(_resubmit(request, files)),
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
        # Since 22.05 a step does not take the number of CPUs over from its job.
        srun_options=Code(f" --cpus-per-task={slurm.cpus}" if slurm.cpus is not None else ""),
    )


def _local_directories(config: JobConfig) -> dict[str, str]:
    """Return the directories of this file system that a run needs, by the setting they come from.

    Raises
    ------
    ConfigError
        If one is no absolute path: a node would take it from elsewhere.
    """
    found = {"work_dir": config.work_dir}
    if "://" not in config.database.url:
        found["database.url"] = str(Path(config.database.url).parent)
    if "://" not in config.storage.url:
        found["storage.url"] = config.storage.url
    for key, path in found.items():
        if not Path(path).is_absolute():
            raise ConfigError(f"{key}: {path!r} is no absolute path, and a job starts elsewhere")
    return found


def _program(config: JobConfig, slurm: SlurmConfig) -> Iterator[str]:
    """Yield the words that stand before the verb ``run``."""
    directories = _local_directories(config)
    if slurm.image is None:
        yield slurm.command
        return
    yield from (slurm.container, "run", *slurm.container_options, "--cleanenv")
    for key, path in directories.items():
        if set(path) & set(":,"):
            raise ConfigError(
                f"{key}: a container can't show {path!r}, because of its colon or comma"
            )
    for bind in dict.fromkeys((*directories.values(), *slurm.binds)):
        yield f"--bind={bind}"
    yield slurm.image


def _resubmit(request: JobRequest, files: SubmitFiles) -> Iterator[str]:
    yield from ("mlip-job", "-c", str(files.config), "submit", "-g", str(request.generation))
    if request.ensemble is not None:
        yield from ("--ensemble", str(request.ensemble))
