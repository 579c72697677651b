"""Gracemaker's ``input.yaml`` from a TrainingConfig."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mlip_job.config.training import deep_merge
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.training.trainer import FitData

CHECKPOINT_ITERATIONS = 10
"""Iterations between checkpoints; a resumed fit repeats at most as many. Without a second set,
one is stored after every iteration, because gracemaker stores none at the end of a fit by Adam."""

ADAM = "Adam"
_ADAM: Mapping[str, Any] = MappingProxyType(
    {
        "opt_params": {"learning_rate": 0.01, "amsgrad": True},
        "scheduler": "cosine_decay",
        "scheduler_params": {
            "minimum_learning_rate": 1e-4,
            "cold_learning_rate": 1e-3,
            "warmup_epochs": 2,
        },
    }
)
"""The learning rate falls from the second iteration to the last one of ``max_iter``."""
_COMPONENTS = 3
_FEWEST_RADIAL = 8
_ANGULAR: Mapping[str, Any] = MappingProxyType(
    {
        "max_order": 3,
        "lmax": [4, 4, 3],
        "Lmax": [None, 3, 0],
        "max_sum_l": [None, None, 6],
        "lmax_hist": [None, None, None],
        "embedding_size": 16,
    }
)
"""Of the FS preset: smaller than its own defaults, whose fits take hours without a GPU."""
_FUNCTIONS = (1, 5, 7)
"""Functions of each body order for one radial function, with this ``lmax``."""
_RADIAL = (1, 3 / 4, 1 / 2)
"""Radial functions of each body order, as fractions of the first: those of the FS preset."""
LARGEST = 100
"""Most functions per element that are chosen from the data: (13, 9, 6) radial functions."""
SMALLEST = sum(_FUNCTIONS)
"""Functions per element of the smallest basis."""


def radial_functions(functions_per_element: int) -> tuple[int, ...]:
    """Return ``n_rad_max`` of the largest basis with at most so many functions per element.

    The ratios between the body orders are those of tensorpotential's FS preset.
    """
    first = 1
    while count_functions(_orders(first + 1)) <= functions_per_element:
        first += 1
    return _orders(first)


def _orders(first: int) -> tuple[int, ...]:
    return tuple(max(1, int(first * share)) for share in _RADIAL)


def count_functions(n_rad_max: Sequence[int]) -> int:
    """Return the number of functions per element of a basis."""
    return sum(n * count for n, count in zip(n_rad_max, _FUNCTIONS, strict=True))


def loss_weights(training: TrainingConfig) -> dict[str, float]:
    r"""Return gracemaker's weights for those of a·MSE(E/atom) + b·mean(\|ΔF\|²) + c·MSE(stress).

    Gracemaker minimises the sum of weighted means (`tensorpotential.loss`: ``WeightedSSE…Loss``),
    of forces over components, hence 3b for the mean squared length. The stress (eV/Å³) is a mean
    over the six components.
    """
    return {
        "energy": training.energy_weight,
        "forces": _COMPONENTS * training.force_weight,
        "stress": training.stress_weight,
    }


def build_input(
    training: TrainingConfig,
    data: FitData,
    *,
    done: int = 0,
    model: str | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Return the content of ``input.yaml``.

    `done` is the number of iterations before this start: ``maxiter`` of Adam includes them, that of
    L-BFGS-B does not. At least one is left, because gracemaker needs one. Without a second set the
    last iteration is the result. `model` is the architecture of a parent or of the fit that
    resumes, `checkpoint` the parent's coefficients.
    """
    weights = loss_weights(training)
    overrides = {k: v for k, v in training.overrides.items() if k != "potential"}
    optimizer = optimizer_of(training)
    defaults = dict(_ADAM) if optimizer == ADAM else {}
    if "learning_rate_reduction" in overrides.get("fit", {}):  # an older name of a scheduler
        defaults = {"opt_params": _ADAM["opt_params"]}
    left = max(1, training.max_iter - done)
    content: dict[str, Any] = {
        "seed": training.seed,
        "cutoff": training.cutoff,
        # No reference_energy: with one gracemaker ignores the column energy_corrected.
        "data": data.files,
        "potential": potential_section(training),
        "fit": {
            "loss": {
                name: {"type": "square", "weight": weight}
                for name, weight in weights.items()
                if weight > 0
            },
            "optimizer": optimizer,
            "maxiter": done + left if optimizer == ADAM else left,
            "batch_size": training.batch_size,
            "test_batch_size": training.batch_size,
            "checkpoint_freq": CHECKPOINT_ITERATIONS if data.second else 1,
            "jit_compile": True,
            "progressbar": False,
            **defaults,
        },
    }
    # The potential section already has its overrides.
    content = deep_merge(content, overrides)
    if model is not None:
        content["potential"]["filename"] = model
    if checkpoint is not None:
        content["potential"]["checkpoint_name"] = checkpoint
        content["fit"]["reset_epoch_and_step"] = True
        content["fit"]["reset_optimizer"] = True  # the moments are those of the parent's fit
    return content


def optimizer_of(training: TrainingConfig) -> str:
    """Return gracemaker's name of the optimiser."""
    return str(training.overrides.get("fit", {}).get("optimizer", ADAM))


def potential_section(training: TrainingConfig) -> dict[str, Any]:
    """Return the ``potential`` section, with overrides.

    Raise a ValueError if the size of the basis is not chosen yet.
    """
    size = training.functions_per_element
    if size == "auto":
        raise ValueError("functions_per_element is not chosen yet")
    n_rad_max = list(radial_functions(size))
    radial = {"n_rad_max": n_rad_max, "n_rad_base": max(_FEWEST_RADIAL, n_rad_max[0])}
    section = {
        "preset": "FS",
        "kwargs": {**_ANGULAR, **radial},
        "scale": True,
        "param_dtype": "float64",  # with float32 L-BFGS-B stops after a few iterations
    }
    return deep_merge(section, training.overrides.get("potential", {}))


def require_same_basis(
    training: TrainingConfig, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
) -> None:
    """Require the basis of a parent: gracemaker can't enlarge one.

    Raise a ConfigError that names each difference.
    """
    own = describe_basis(training, elements)
    found = [
        f"  {name} {parent_basis.get(name)!r} there, {own.get(name)!r} here"
        for name in sorted({*own, *parent_basis} - {"functions"})
        if own.get(name) != parent_basis.get(name)
    ]
    if found:
        raise ConfigError(
            f"a fit by gracemaker can't start from {parent}, which has another basis:\n"
            + "\n".join(found),
            hint="set training.start_from: none, or restore these settings",
        )


def describe_basis(training: TrainingConfig, elements: Sequence[str]) -> dict[str, Any]:
    """Return what a later generation compares its own basis with."""
    size = training.functions_per_element
    return {
        "elements": sorted(elements),
        "cutoff": training.cutoff,
        "functions": {"number_of_functions_per_element": size},
        **potential_section(training),
    }
