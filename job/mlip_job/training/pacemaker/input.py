"""Pacemaker's ``input.yaml`` from a TrainingConfig, its ACE basis, and inputs that resume a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb
from typing import TYPE_CHECKING, Any

from mlip_job.config.training import REGULARISATION, EnergyBased, deep_merge
from mlip_job.errors import ConfigError
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import CALLBACK
from mlip_job.training.pacemaker.tables import Offset
from mlip_job.training.summary import kappa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.training.trainer import FitData, FitPosition, StartMode


@dataclass(frozen=True)
class StartPotential:
    """Name of the start potential in the work directory.

    Its basis is the one that is fitted, or a part of it.
    """

    file: str
    same_basis: bool


DISPLAY_STEP = 20
"""Iterations between evaluations of the validation part."""


def build_input(
    training: TrainingConfig, data: FitData, start: StartPotential | None = None
) -> dict[str, Any]:
    """Return the content of ``input.yaml``.

    Raise a ConfigError if the basis is too small for the number of elements.
    """
    content: dict[str, Any] = {
        # Pacemaker 0.4 ignores it and derives it from the bonds; older versions use it.
        "cutoff": training.cutoff,
        "seed": training.seed,
        "metadata": {"origin": "mlip-job"},
        "potential": _potential(training, data.elements, start),
        "data": {**data.files, "reference_energy": dict(data.reference_energies)},
        "fit": _fit(training, start),
        "backend": {
            "evaluator": training.evaluator,
            "batch_size": training.batch_size,
            "display_step": DISPLAY_STEP,
        },
    }
    # The potential section already has its overrides, or comes from the start potential.
    merged = deep_merge(content, {k: v for k, v in training.overrides.items() if k != "potential"})
    if merged["fit"].get(_TRAIN_LIMIT) is None:
        merged["fit"].pop(_TRAIN_LIMIT, None)  # pacemaker takes no null for "none"
    if data.validation:
        merged["fit"]["callbacks"] = [*merged["fit"].get("callbacks", ()), CALLBACK]
    return merged


_WEIGHTING = {
    "DFup": None,  # eV/Å: no structure is dropped for its forces
    "DE": 1.0,  # eV/atom, offset in the energy weights
    "DF": 1.0,  # (eV/Å)², offset in the force weights
    "wlow": 0.75,  # total weight of the low tier
    "reftype": "all",
    "energy": "convex_hull",
}
"""The other parameters of the policy."""


def weighting_policy(training: TrainingConfig) -> dict[str, Any] | None:
    """Return pacemaker's ``fit.weighting``; None if the weights are in the data frames."""
    if not isinstance(training.weighting, EnergyBased):
        return None
    policy = {
        "type": "EnergyBasedWeightingPolicy",
        "seed": training.seed,
        **training.weighting.energy_based.model_dump(),
        **_WEIGHTING,
    }
    return deep_merge(policy, training.override("weighting", default={}))


def _potential(
    training: TrainingConfig, elements: Sequence[str], start: StartPotential | None
) -> dict[str, Any] | str:
    section = potential_section(training, elements)
    if training.start_noise:
        section["functions"] = {
            # Their coefficients are zero otherwise, and no fit would depend on its seed.
            key: {**block, "coefs_init": "random"} if isinstance(block, dict) else block
            for key, block in section["functions"].items()
        }
    if start is None:
        return section
    if start.same_basis:
        # As `initial_potential` it would add no function, and pacemaker would stop before the
        # first iteration.
        return start.file
    return {**section, "initial_potential": start.file}


def _fit(training: TrainingConfig, start: StartPotential | None) -> dict[str, Any]:
    fit: dict[str, Any] = {
        "loss": {"kappa": kappa(training.energy_weight, training.force_weight), **REGULARISATION},
        "optimizer": "BFGS",
        "maxiter": training.max_iter,
    }
    # A ladder on top of a potential of the same basis would begin again from an empty one.
    if training.ladder_step is not None and not (start is not None and start.same_basis):
        fit["ladder_step"] = _plain_step(training.ladder_step)
        fit["ladder_type"] = "body_order"
    if training.zbl:
        fit["repulsion"] = "auto"
    if (policy := weighting_policy(training)) is not None:
        fit["weighting"] = policy
    return fit | _early_stopping(training)


_TRAIN_LIMIT = "min_relative_train_loss_per_iter"


def _early_stopping(training: TrainingConfig) -> dict[str, Any]:
    """Return the settings for early stopping by training loss.

    The callback stops it by the validation loss: pacemaker would raise, and lose the fit, if that
    has not fallen in its last evaluation, after the end of the minimiser
    (`tensorpotential.compat.pace.fit`).
    """
    limit = training.override(_TRAIN_LIMIT, default=1e-5)
    if limit is None:
        return {}
    return {_TRAIN_LIMIT: limit, "early_stopping_patience": training.early_stopping_patience}


def _plain_step(step: float | tuple[float, ...]) -> Any:
    """Return whole numbers as int: pacemaker rejects 100.0 both as a count and as a fraction."""
    if isinstance(step, tuple):
        return [_plain_step(part) for part in step]
    return int(step) if step >= 1 else step


_LADDER = ("ladder_step", "ladder_type")


@dataclass(frozen=True)
class Segment:
    """One start of pacemaker: its input, and its position in the whole fit.

    An uninterrupted fit has one. A fit that resumes within a step of a ladder has two, since
    pacemaker starts a ladder only between steps: the first, `partial` one finishes the step, the
    second continues the ladder.
    """

    content: Mapping[str, Any]
    offset: Offset = field(default_factory=Offset)
    partial: bool = False

    @property
    def is_ladder(self) -> bool:
        """Whether pacemaker grows the basis step by step."""
        potential = self.content["potential"]
        grows = isinstance(potential, dict) and "initial_potential" in potential
        return grows or "ladder_step" in self.content["fit"]

    @property
    def keeps_best(self) -> bool:
        """Whether pacemaker stores the best potential."""
        return CALLBACK in self.content["fit"].get("callbacks", ())

    @property
    def first_coefficients(self) -> str | None:
        """The file with the first coefficients of the fit; None if all are zero."""
        potential = self.content["potential"]
        if isinstance(potential, str):
            return potential
        return "current_extended_potential.yaml" if "initial_potential" in potential else None

    @property
    def resumable(self) -> bool:
        """Whether a later start can resume this one.

        Of several cycles pacemaker takes the best in the end, which a later start can't know.
        """
        return int(self.content["fit"].get("fit_cycles", 1)) == 1


def remaining_segments(
    position: FitPosition, content: Mapping[str, Any], section: Mapping[str, Any], potential: str
) -> tuple[Segment, ...]:
    """Return the remaining segments of a fit that was interrupted at a position.

    `content` is the input of the uninterrupted fit, `section` the ``potential`` section of a fit
    from scratch. Each segment starts from the file `potential`: the checkpoint, then the result of
    the segment before.
    """
    fit = content["fit"]
    next_step = {**content, "potential": {**section, "initial_potential": potential}}
    climb = Segment(next_step, Offset(position.ladder_step + 1))
    if position.step_done and not position.last_step:
        return (climb,)
    # Even a complete fit is evaluated by pacemaker, which then adds the ZBL core.
    left = 0 if position.step_done else max(0, int(fit["maxiter"]) - position.iteration)
    kept = {key: value for key, value in fit.items() if key not in _LADDER}
    if not position.last_step:
        kept.pop("repulsion", None)
    finish = Segment(
        {**content, "potential": potential, "fit": {**kept, "maxiter": left}},
        Offset(position.ladder_step, position.iteration),
        partial=not position.last_step,
    )
    return (finish,) if position.last_step else (finish, climb)


# -- the basis -----------------------------------------------------------------------------------

ARITIES = ("UNARY", "BINARY", "TERNARY", "QUATERNARY", "QUINARY")


# Those of pacemaker's own template (`pacemaker -t`, pyace/data/input_template.yaml), but for one
# more angular momentum and radial function of single elements: better for semiconductors
# (docs/performance.md).
DEFAULT_NRADMAX: Mapping[str, tuple[int, ...]] = {
    "UNARY": (15, 7, 5, 3, 2, 2),
    "BINARY": (15, 6, 3, 2, 2, 1),
    "TERNARY": (15, 3, 3, 2, 1),
    "ALL": (15, 3, 2, 1, 1),
}

DEFAULT_LMAX: Mapping[str, tuple[int, ...]] = {
    "UNARY": (0, 4, 4, 3, 2, 1),
    "BINARY": (0, 3, 2, 1, 1, 0),
    "TERNARY": (0, 2, 2, 1, 1),
    "ALL": (0, 2, 2, 1, 1),
}


# Of the densities: pacemaker's template for one and two, published inputs for eight.
_POWERS = (1, 0.5, 0.75, 0.25, 0.125, 0.375, 0.875, 2)
_FUNCTIONS_UP_TO_THREE_BODIES = 4


def potential_section(training: TrainingConfig, elements: Sequence[str]) -> dict[str, Any]:
    """Return the ``potential`` section of input.yaml for a fit from scratch, with overrides.

    Raise a ConfigError if the basis is too small for the number of elements.
    """
    check_basis_budget(training, len(elements))
    section = {
        "deltaSplineBins": 0.001,
        "elements": sorted(elements),
        "embeddings": {"ALL": _embedding(training.ndensity)},
        "bonds": {
            "ALL": {
                "radbase": "SBessel",
                "radparameters": [5.25],
                "rcut": training.cutoff,
                "dcut": 0.01,
                "NameOfCutoffFunction": "cos",
            }
        },
        "functions": {
            "number_of_functions_per_element": _functions(training),
            **_orders(training, len(elements)),
        },
    }
    return deep_merge(section, training.overrides.get("potential", {}))


def start_mode(
    training: TrainingConfig, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
) -> StartMode:
    """Decide how a fit can start from a potential: with the same basis, or growing it.

    Raise a ConfigError if the parent's basis is not a subset of the new one; the message names each
    difference.
    """
    basis = potential_section(training, elements)
    if basis == parent_basis:
        return "continue"
    obstacles = list(_obstacles(basis, parent_basis))
    if obstacles:
        raise ConfigError(
            f"the fit can't start from {parent}, whose basis is no part of the new one: "
            + "; ".join(obstacles),
            hint="undo that, or set training.start_from: none",
        )
    if set(basis["elements"]) != set(parent_basis["elements"]):
        check_growth_budget(training, len(basis["elements"]))
    return "extend"


def _obstacles(basis: Mapping[str, Any], parent: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings that prevent a basis from extending its parent's."""
    if lost := sorted(set(parent["elements"]) - set(basis["elements"])):
        yield f"the data no longer has {', '.join(lost)}"
    old, new = (b["bonds"]["ALL"]["rcut"] for b in (parent, basis))
    if old != new:
        yield f"the cutoff is {new:g} Å instead of {old:g} Å"
    elif basis["bonds"] != parent["bonds"]:
        yield "the radial basis (potential.bonds) differs"
    if basis["embeddings"] != parent["embeddings"]:
        yield "the embedding (training.ndensity) differs"
    old, new = (b["functions"]["number_of_functions_per_element"] for b in (parent, basis))
    if new < old:
        yield f"functions_per_element is {new}, less than {old}"


def check_basis_budget(training: TrainingConfig, n_elements: int) -> None:
    """Reject a basis without functions for some combination of elements.

    Pacemaker gives each of the B blocks (one per central atom and set of neighbour elements)
    ``functions_per_element * n_elements // B`` functions
    (`pyace.multispecies_basisextension.create_multispecies_basis_config`); with none it fails
    deep in the fit.
    """
    smallest = smallest_budget(training, n_elements)
    if (functions := _functions(training)) < smallest:
        blocks = _number_of_blocks(training, n_elements)
        raise ConfigError(
            f"training.functions_per_element is {functions}: too small for "
            f"{n_elements} elements, whose {blocks} combinations need a function each",
            hint=f"the smallest that works is {smallest}; useful potentials have hundreds",
        )


def smallest_budget(training: TrainingConfig, n_elements: int) -> int:
    """Return the smallest number of functions per element that gives every block one."""
    return -(-_number_of_blocks(training, n_elements) // n_elements)


def check_growth_budget(training: TrainingConfig, n_elements: int) -> None:
    """Reject too few functions to grow a potential into new elements.

    The TensorFlow evaluator needs a function of three bodies for every element if any has one. The
    elements of the parent do; in the order in which pacemaker fills a block (``power_order``) it is
    the fourth function.
    """
    functions, blocks = _functions(training), _number_of_blocks(training, n_elements)
    if functions * n_elements // blocks < _FUNCTIONS_UP_TO_THREE_BODIES:
        smallest = -(-_FUNCTIONS_UP_TO_THREE_BODIES * blocks // n_elements)
        raise ConfigError(
            f"training.functions_per_element is {functions}: too small to "
            f"grow the potential to {n_elements} elements",
            hint=f"the smallest that works is {smallest}; or set training.start_from: none",
        )


def _functions(training: TrainingConfig) -> int:
    if training.functions_per_element == "auto":
        raise ValueError("functions_per_element is still auto: see training.size")
    return training.functions_per_element


def _embedding(ndensity: int) -> dict[str, Any]:
    """Return the embedding: a sum over the densities, each with its power."""
    return {
        "npot": "FinnisSinclairShiftedScaled",
        # Pairs of prefactor and exponent.
        "fs_parameters": [value for power in _POWERS[:ndensity] for value in (1, power)],
        "ndensity": ndensity,
    }


def _orders(training: TrainingConfig, n_elements: int) -> dict[str, dict[str, list[int]]]:
    """Return radial and angular limits by number of elements in a block."""
    nradmax: Mapping[str, tuple[int, ...]] = training.nradmax_by_orders or DEFAULT_NRADMAX  # type: ignore[assignment]
    lmax: Mapping[str, tuple[int, ...]] = training.lmax_by_orders or DEFAULT_LMAX  # type: ignore[assignment]
    possible = set(ARITIES[:n_elements])
    needed = possible & set(nradmax)
    if possible - set(nradmax) and "ALL" in nradmax:
        needed.add("ALL")
    return {
        arity: {"nradmax_by_orders": list(nradmax[arity]), "lmax_by_orders": list(lmax[arity])}
        for arity in (*ARITIES, "ALL")
        if arity in needed
    }


def _number_of_blocks(training: TrainingConfig, n_elements: int) -> int:
    """Count the blocks: for r elements, n central ones times the sets of r - 1 others."""
    orders = _orders(training, n_elements)
    return sum(
        n_elements * comb(n_elements - 1, r - 1)
        for r, arity in enumerate(ARITIES[:n_elements], start=1)
        if arity in orders or "ALL" in orders
    )
