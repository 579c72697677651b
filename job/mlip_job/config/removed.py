"""Options and keys of earlier versions, and their replacements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXPORT = "call mlip-job export -g N first, and the run finds the dataset in the store"

OPTIONS: Mapping[str, str] = {
    "run --until": f"a run goes from the database to a published generation; {_EXPORT}",
    "pull --crate": "examples/ro_crate.py writes the metadata into a pulled generation",
    "run --then-resume": "a submission is one Job",
    "submit --split-export": _EXPORT,
    "submit --split-evaluation": "the job that fits evaluates and publishes too",
    "submit --from": "submit makes the Job from submit.kubernetes of mlip-job.yaml",
}
"""By verb and option."""

_FIT = "training.overrides sets pacemaker's own key: overrides: {fit: "
_LOSS = _FIT + "{loss: "
_WEIGHTING = _FIT + "{weighting: "
_EXTRA = "give sbatch's own option in submit.slurm.extra, as in "
_CPU = "submit.slurm.cpu.extra takes the options of jobs without GPU, as in "

KEYS: Mapping[str, str] = {
    "training.ladder_type": _FIT + "{ladder_type: power_order}}",
    "training.l1_coeffs": _LOSS + "{L1_coeffs: 1e-8}}}",
    "training.l2_coeffs": _LOSS + "{L2_coeffs: 1e-8}}}",
    **{
        f"training.{name}": f"{_LOSS}{{{name}: 1e-8}}}}}}"
        for name in ("w0_rad", "w1_rad", "w2_rad")
    },
    "training.display_step": "training.overrides sets pacemaker's own key: "
    "overrides: {backend: {display_step: 10}}",
    "training.min_relative_test_loss_per_iter": "any smaller validation loss counts; "
    "training.early_stopping_patience is the number of iterations without one",
    "training.min_relative_train_loss_per_iter": _FIT
    + "{min_relative_train_loss_per_iter: 1e-5}}, where null turns it off",
    **{
        f"training.weighting.energy_based.{name}": f"{_WEIGHTING}{{{name}: …}}}}}}"
        for name in ("DFup", "DE", "DF", "wlow", "reftype", "energy")
    },
    "dataset.frame_shard_size": "a data frame has at most 5000 structures",
    "storage.addressing_style": "it is path with storage.endpoint_url, and boto3's choice without",
    "storage.multipart_threshold_mib": "objects above 8 MiB move in parts",
    "storage.request_checksum_calculation": "set the environment variables "
    "AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION to when_required",
    "tracking.experiment": "it is the family's name; the environment variable "
    "MLFLOW_EXPERIMENT_NAME sets another",
    "submit.max_resubmits": "submit --wait submits a job again up to 20 times",
    "submit.slurm.gpus_per_node": _EXTRA + "--gpus-per-node=a100:1",
    "submit.slurm.constraint": _EXTRA + "--constraint=a100",
    "submit.slurm.exclude": _EXTRA + "--exclude=node7",
    "submit.slurm.reservation": _EXTRA + "--reservation=NAME",
    "submit.slurm.mail_user": _EXTRA + "--mail-user=me@example.org",
    "submit.slurm.mail_type": _EXTRA + "--mail-type=END,FAIL",
    "submit.slurm.binds": "submit.slurm.container_options takes them, as in "
    "['--nv', '--bind=/data']",
    "submit.slurm.cpu.account": "these jobs use submit.slurm.account",
    "submit.slurm.cpu.gres": "these jobs get what submit.slurm.gres has besides GPUs",
    "submit.slurm.cpu.constraint": _CPU + "--constraint=skylake",
    "submit.slurm.cpu.exclude": _CPU + "--exclude=node7",
    "submit.slurm.cpu.reservation": _CPU + "--reservation=NAME",
    "submit.kubernetes.image_pull_policy": "it is IfNotPresent: name the image by its digest, or "
    "give every build a tag",
    "submit.kubernetes.architecture": "it is amd64; submit.kubernetes.node_selector takes "
    "another, as in {kubernetes.io/arch: arm64}",
    "submit.kubernetes.memory_limit": "submit.kubernetes.memory is reserved, and the limit too",
    "submit.kubernetes.tmp_size": "the volume of temporary files has 1 GiB; use "
    "submit.kubernetes.volumes for more",
    "submit.kubernetes.shm_size": "shared memory has 1 GiB, more than the trainer uses",
    "submit.kubernetes.topology_spread_constraints": "a Job of one pod has nothing to spread; "
    "choose its node with node_selector or affinity",
    "submit.kubernetes.grace_period_seconds": "it follows from run.stop_timeout",
    "submit.kubernetes.claims.sub_path": "use submit.kubernetes.volumes and volume_mounts with "
    "subPath",
    "submit.kubernetes.without_gpu.affinity": "without_gpu.node_selector chooses the nodes",
    "submit.kubernetes.without_gpu.tolerations": "add them to submit.kubernetes.tolerations",
    "submit.kubernetes.without_gpu.priority_class": "these jobs use "
    "submit.kubernetes.priority_class",
    "submit.kubernetes.resume_service_account": "a submission is one Job, which starts no other",
}
"""By path. A part that was removed answers for the keys in it."""


DEFAULTS: Mapping[str, object] = {
    "dataset.frame_shard_size": 5000,
    "training.ladder_type": "body_order",
    **{f"training.{name}_coeffs": 1e-10 for name in ("l1", "l2")},
    **{f"training.w{order}_rad": 1e-10 for order in range(3)},
    "training.display_step": 20,
    "training.min_relative_test_loss_per_iter": None,
    "training.min_relative_train_loss_per_iter": 1e-5,
    "training.weighting.energy_based.DFup": None,
    "training.weighting.energy_based.DE": 1.0,
    "training.weighting.energy_based.DF": 1.0,
    "training.weighting.energy_based.wlow": 0.75,
    "training.weighting.energy_based.reftype": "all",
    "training.weighting.energy_based.energy": "convex_hull",
}
"""Of removed keys that manifests record: what a run does now that they can't be set."""


VALUES: Mapping[tuple[str, str], str] = {
    ("training.test_evaluation", "beside"): "end measures the published file, and pacemaker, with "
    "training.validation_fraction: 0, measures the test set during the fit",
}
"""By path of the key, and value."""


def replacement_of_option(verb: str | None, option: str) -> str | None:
    """Return what replaces an option of a verb; None for one that never existed."""
    return OPTIONS.get(f"{verb} {option}")


def replacement_of_key(path: str) -> str | None:
    """Return what replaces a key; None for one that never existed."""
    return KEYS.get(".".join(part for part in path.split(".") if not part.isdigit()))


def without_defaults(settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of an earlier version without removed keys that had their default."""
    return {
        key: without_defaults(value, f"{path}.{key}") if isinstance(value, dict) else value
        for key, value in settings.items()
        if f"{path}.{key}" not in DEFAULTS or DEFAULTS[f"{path}.{key}"] != value
    }


def refuse_removed(path: str, value: object) -> None:
    """Raise a ValueError that says what replaces a value of a key, if it was removed."""
    instead = VALUES.get((path, value)) if isinstance(value, str) else None
    if instead is not None:
        raise ValueError(f"{value} was removed: {instead}")
