"""Modules that run in pacemaker's process and import nothing of this package."""
