"""The training step of an automated interatomic-potential pipeline, as a batch job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip_job.potentials import load_potential

__all__ = ["__version__", "load_potential"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_potential` lazily, so that the command line starts fast."""
    if name == "load_potential":
        from mlip_job.potentials import load_potential  # noqa: PLC0415

        return load_potential
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
