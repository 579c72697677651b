"""Evaluate a potential after its fit; docs/evaluation.md describes each measurement."""
