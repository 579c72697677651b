"""The training step of an automated interatomic-potential pipeline, as a batch job."""

__version__ = "0.1.0"
