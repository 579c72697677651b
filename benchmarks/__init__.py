"""Benchmarks of mlip-job against the alternatives: ``make bench``."""
