"""TrainingConfig: settings of the trainer, and overrides of its input. Units: eV, Å, eV/Å."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mlip_job.config.fields import Element, NonNegative, Part, Positive
from mlip_job.config.removed import refuse_removed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Trainer = Literal["pacemaker", "grace-fs"]

# What the job itself guarantees; an override would break the guarantee.
OWNED_KEYS: Mapping[str, str] = {
    "cutoff": "training.cutoff",
    "potential.elements": "training.elements",
    "potential.bonds.ALL.rcut": "training.cutoff",
    "potential.initial_potential": "training.start_from",
    "potential.filename": "training.start_from",
    "potential.functions.number_of_functions_per_element": "training.functions_per_element",
    "data.filename": "the database selection",
    "data.test_filename": "training.validation_fraction and training.test_evaluation",
    "data.test_size": "training.test_fraction",
    "data.reference_energy": "dataset.reference_energies",
    "backend.evaluator": "training.evaluator",
    # Pacemaker's own rule can end a fit with an exception, see `input_yaml`.
    "fit.min_relative_test_loss_per_iter": "training.early_stopping_patience",
    "fit.early_stopping_patience": "training.early_stopping_patience",
}

# The same for gracemaker.
GRACE_OWNED_KEYS: Mapping[str, str] = {
    "seed": "training.seed",
    "cutoff": "training.cutoff",
    "data.filename": "the database selection",
    "data.test_filename": "training.validation_fraction",
    "data.reference_energy": "dataset.reference_energies",
    "potential.preset": "training.trainer",
    "potential.filename": "training.start_from",
    "potential.checkpoint_name": "training.start_from",
    "potential.finetune_foundation_model": "training.start_from",
    "fit.maxiter": "training.max_iter",
    "fit.target_total_updates": "training.max_iter",
    "fit.checkpoint_freq": "run.checkpoint_interval",
    "fit.reset_epoch_and_step": "training.start_from",
    "fit.reset_optimizer": "training.start_from",
}

# Keys of the other trainer, which would be ignored silently.
FOREIGN_KEYS: Mapping[Trainer, tuple[str, ...]] = {
    "pacemaker": (
        "potential.preset", "potential.kwargs", "potential.scale", "potential.float_dtype",
        "potential.param_dtype", "fit.loss.energy", "fit.loss.forces", "fit.loss.stress",
        "fit.loss.virial", "fit.loss.switch", "fit.opt_params", "fit.batch_size",
        "fit.checkpoint_freq", "fit.jit_compile",
    ),
    "grace-fs": (
        "potential.functions", "potential.bonds", "potential.embeddings",
        "potential.deltaSplineBins", "fit.loss.kappa", "fit.loss.L1_coeffs",
        "fit.loss.L2_coeffs", "fit.loss.w0_rad", "fit.loss.w1_rad", "fit.loss.w2_rad",
        "fit.ladder_step", "fit.ladder_type", "fit.trainable_parameters", "fit.repulsion",
        "fit.weighting", "backend",
    ),
}  # fmt: skip

GRACE_DEFAULTS: Mapping[str, object] = {
    "energy_weight": 1000.0,
    "max_iter": 200,
    "batch_size": 8,
    "zbl": False,
    "linear_start": False,
}
"""Defaults with ``trainer: grace-fs`` that differ from those of pacemaker."""

_ONLY_PACEMAKER = (
    "nradmax_by_orders", "lmax_by_orders", "ndensity", "ladder_step", "evaluator",
    "test_evaluation", "early_stopping_patience", "start_noise",
)  # fmt: skip

_NOT_GRACE: Mapping[str, tuple[object, str]] = {
    "max_iter": (0, "grace-fs makes no linear fit: set a number of iterations, such as 200"),
    "linear_start": (True, "grace-fs starts from no linear fit: remove it"),
    "zbl": (
        True,
        "the FS preset of gracemaker has no ZBL core, so nothing repels atoms that are closer than "
        "in the data: remove it, and add dimers at short distances to the data, or a "
        "pair_style hybrid/overlay with zbl in LAMMPS",
    ),
}
"""By key: a value, and why it does not go with grace-fs."""

# With these the first density may not be linear, or not all of its coefficients are free.
NOT_LINEAR = ("potential.embeddings", "fit.trainable_parameters")


def check_overrides(overrides: Mapping[str, Any], trainer: Trainer) -> None:
    """Reject overrides of keys that follow from other settings, or are of another trainer.

    Raises
    ------
    ValueError
        Naming the key and the setting that it follows from.
    """
    owned_keys = OWNED_KEYS if trainer == "pacemaker" else GRACE_OWNED_KEYS
    for key in _dotted(overrides):
        for owned, setting in owned_keys.items():
            if _is_in(key, owned) or _is_in(owned, key):
                raise ValueError(f"sets {key}, which follows from {setting}: change that instead")
        if any(_is_in(key, foreign) for foreign in FOREIGN_KEYS[trainer]):
            raise ValueError(f"sets {key}, which training.trainer {trainer} does not know")


def check_linear(overrides: Mapping[str, Any]) -> None:
    """Reject overrides that change the loss minimised by a linear start.

    Raises
    ------
    ValueError
        Naming the key.
    """
    for key in _dotted(overrides):
        if any(_is_in(key, part) for part in NOT_LINEAR):
            raise ValueError(
                f"overrides.{key} changes what a linear fit solves for: set linear_start: false"
            )
    kappa = overrides.get("fit", {}).get("loss", {}).get("kappa", 0.0)
    if kappa == "auto":
        raise ValueError(
            "a linear fit needs a number as overrides.fit.loss.kappa: or set linear_start: false"
        )


def deep_merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` merged in; mappings merge, all else replaces."""
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _is_in(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


Orders = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=6)]

Arity = Literal["UNARY", "BINARY", "TERNARY", "QUATERNARY", "QUINARY", "ALL"]


REGULARISATION: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(("L1_coeffs", "L2_coeffs", "w0_rad", "w1_rad", "w2_rad"), 1e-10)
)
"""Defaults of ``fit.loss``: of the coefficients, and of the smoothness of the radial functions."""


class EnergyBasedWeighting(Part):
    """Pacemaker's EnergyBasedWeightingPolicy: low-energy structures weigh more.

    It drops structures above `DEup` from the fit; the report says which. `training.overrides`
    sets the other parameters, under ``fit.weighting``.
    """

    DElow: Positive = Field(1.0, description="eV/atom. Structures below it form the low tier.")
    DEup: Positive = Field(10.0, description="eV/atom. Structures above it are dropped.")


class GroupWeights(Part):
    """Relative weights of the structures of one config type; 1 is neutral."""

    energy: Positive = 1.0
    forces: NonNegative = 1.0


class EnergyBased(Part):
    """``weighting: {energy_based: {…}}``."""

    energy_based: EnergyBasedWeighting


class ByGroup(Part):
    """``weighting: {by_group: {surface: {energy: 2, forces: 1}}}``, by ``dataset.config_type``."""

    by_group: dict[str, GroupWeights] = Field(min_length=1)


class TrainingConfig(Part):
    """Settings of the fit; see docs/configuration.md for the mapping to the trainers' keys."""

    trainer: Trainer = Field(
        "pacemaker",
        description="pacemaker (ACE), or grace-fs (GRACE/FS by gracemaker), which fits stress too; "
        "its defaults are energy_weight 1000, max_iter 200, batch_size 8, zbl and linear_start "
        "false.",
    )
    cutoff: Positive = Field(
        5.5, le=20, description="Å. Outer cutoff of the potential; 4 is better for molecules."
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="round(n · fraction) structures are test, or the nearest count that groups "
        "allow; of later generations that share of the new rows. 0 holds nothing out. No effect "
        "with dataset.split_key.",
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Of the training structures, kept out of the fit to choose the best iteration "
        "and to end a fit that overfits; 0 is none.",
    )
    elements: Literal["auto"] | tuple[Element, ...] = Field(
        "auto", description="auto, or a list that must equal the elements of the data."
    )
    functions_per_element: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Size of the basis; shared among all combinations of elements. auto: what the "
        "data can determine.",
    )
    nradmax_by_orders: dict[Arity, Orders] | None = Field(
        None, description="Radial basis functions per order and number of elements in a block."
    )
    lmax_by_orders: dict[Arity, Orders] | None = Field(
        None, description="Largest angular momentum per order and number of elements in a block."
    )
    ndensity: int = Field(
        2,
        ge=1,
        le=8,
        description="Atomic densities in the embedding: 1 is linear, 2 Finnis-Sinclair-like.",
    )
    energy_weight: NonNegative = Field(10_000.0, description="a in a·MSE(E/atom) + b·mean|ΔF|².")
    force_weight: NonNegative = Field(100.0, description="b in a·MSE(E/atom) + b·mean|ΔF|².")
    stress_weight: NonNegative = Field(
        0.0,
        description="c in a·MSE(E/atom) + b·mean|ΔF|² + c·MSE(stress component), stress in eV/Å³; "
        "grace-fs only, 0 fits no stress. Its errors are reported in any case.",
    )
    max_iter: int = Field(
        0,
        ge=0,
        description="Iterations of the trainer after the linear fit, in a ladder those of each "
        "step; 0 publishes the linear fit, made in minutes without GPU.",
    )
    ladder_step: int | float | tuple[float, ...] | None = Field(
        None,
        description="Functions added per ladder step: [n, fraction] is max(n, fraction·current). "
        "null fits the whole basis at once.",
    )
    zbl: bool = Field(
        True, description="Delta learning at short range: V = V_ZBL + V_ACE, ZBL inside the data."
    )
    start_from: Literal["previous", "none"] | Annotated[int, Field(ge=1)] = Field(
        "previous", description="previous (none for generation 1), none, or a generation."
    )
    linear_start: bool = Field(
        True,
        description="Begin a fit from nothing with a linear least-squares fit to all training "
        "structures, and without ladder; false begins with zero.",
    )
    evaluator: Literal["tensorpot", "pyace"] = Field(
        "tensorpot", description="pyace needs no TensorFlow but is only for tiny fits."
    )
    weighting: Literal["uniform"] | EnergyBased | ByGroup = "uniform"
    batch_size: int = Field(100, ge=1, description="Structures per batch.")
    test_evaluation: Literal["pacemaker", "end"] = Field(
        "end",
        description="end: the test set is not measured during the fit. pacemaker, without a "
        "validation part: it is, with another graph in every ladder step.",
    )
    early_stopping_patience: int = Field(
        100,
        ge=1,
        description="Early stopping: iterations without a smaller validation loss before a fit "
        "ends.",
    )
    seed: int = Field(42, ge=0, description="Seed of the fit.")
    start_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Relative noise on the coefficients that a fit starts from, drawn by the seed.",
    )
    require_gpu: bool = Field(
        False,
        description="Fail (71) where TensorFlow sees no GPU; without effect on a linear fit.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Merged deeply into input.yaml, last."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_trainer(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("trainer") == "grace-fs":
            return {**GRACE_DEFAULTS, **values}
        return values

    @field_validator("stress_weight")
    @classmethod
    def _stress_weight(cls, weight: float, info: ValidationInfo) -> float:
        if weight > 0 and info.data.get("trainer") == "pacemaker":
            raise ValueError(
                "pacemaker fits no stress: set it to 0 or remove it, or set training.trainer: "
                "grace-fs; the errors of the stress are measured and reported in any case"
            )
        return weight

    @field_validator("overrides")
    @classmethod
    def _overrides(cls, overrides: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        check_overrides(overrides, info.data.get("trainer", "pacemaker"))
        return overrides

    @field_validator(*_ONLY_PACEMAKER, "weighting", *GRACE_DEFAULTS)
    @classmethod
    def _fits_grace(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        if info.data.get("trainer") != "grace-fs":
            return value
        if name in _ONLY_PACEMAKER and value != cls.model_fields[name].default:
            raise ValueError("is a setting of pacemaker: remove it with training.trainer: grace-fs")
        if name in _NOT_GRACE and value == _NOT_GRACE[name][0]:
            raise ValueError(_NOT_GRACE[name][1])
        if isinstance(value, EnergyBased):
            raise ValueError(  # noqa: TRY004 - pydantic's own
                "energy_based is a policy of pacemaker: with grace-fs use by_group"
            )
        return value

    @field_validator("test_evaluation", mode="before")
    @classmethod
    def _test_evaluation(cls, value: object) -> object:
        refuse_removed("training.test_evaluation", value)
        return value

    @field_validator("ladder_step")
    @classmethod
    def _ladder_step(cls, step: float | tuple[float, ...] | None) -> object:
        """Check the forms pacemaker takes: n, a fraction, or both (`get_actual_ladder_step`)."""
        steps = step if isinstance(step, tuple) else () if step is None else (step,)
        counts = [s for s in steps if s >= 1 and s == int(s)]
        fractions = [s for s in steps if 0 < s < 1]
        if len(counts) + len(fractions) != len(steps) or max(len(counts), len(fractions), 0) > 1:
            raise ValueError(
                "takes a whole number ≥ 1, a fraction between 0 and 1, or [n, fraction]"
            )
        return step

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.energy_weight + self.force_weight == 0:
            raise ValueError("energy_weight and force_weight are both 0: nothing would be fitted")
        if isinstance(self.elements, tuple) and len(set(self.elements)) != len(self.elements):
            raise ValueError("elements names an element twice")
        nradmax, lmax = self.nradmax_by_orders, self.lmax_by_orders
        if (nradmax is None) != (lmax is None):
            raise ValueError("nradmax_by_orders and lmax_by_orders go together")
        if _orders(nradmax) != _orders(lmax):
            raise ValueError(
                "nradmax_by_orders and lmax_by_orders need the same keys and as many orders each"
            )
        if self.validation_fraction > 0 and self.test_evaluation != "end":
            raise ValueError(
                f"test_evaluation: {self.test_evaluation} measures the test set during the fit, "
                "and the validation part is measured there: set validation_fraction: 0, or leave "
                "test_evaluation out"
            )
        if self.linear_start:
            check_linear(self.overrides)
        if self.is_linear:
            self._check_linear_fit()
        return self

    def override(self, *keys: str, default: Any = None) -> Any:
        """Return what the overrides set of a key of ``fit``, else `default`."""
        found: Any = self.overrides.get("fit")
        for key in keys:
            if not isinstance(found, dict) or key not in found:
                return default
            found = found[key]
        return found

    @property
    def is_linear(self) -> bool:
        """Whether the linear fit is the generation: no iteration follows, so no TensorFlow."""
        return self.max_iter == 0

    def _check_linear_fit(self) -> None:
        if not self.linear_start:
            raise ValueError("max_iter is 0, which publishes the linear fit: it needs linear_start")
        if self.start_from not in ("previous", "none"):
            raise ValueError(
                f"max_iter is 0, so nothing is fitted that could start from generation "
                f"{self.start_from}: a linear fit is made anew, with start_from previous or none"
            )
        if "maxiter" in (self.overrides.get("fit") or {}):
            raise ValueError("max_iter is 0, but overrides.fit.maxiter asks for iterations")


def _orders(by_arity: Mapping[Arity, tuple[int, ...]] | None) -> dict[Arity, int]:
    return {arity: len(orders) for arity, orders in (by_arity or {}).items()}
