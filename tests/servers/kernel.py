"""What a kernel must allow, and in a sandbox may not: no installation helps there."""

from __future__ import annotations

import subprocess

import pytest

FORBIDDEN = "the kernel of this machine forbids"
"""Begins the reason of a skip that is none even where all that tests need is installed."""


def require_kernel(*command: str) -> None:
    """Skip the test where a command that only asks for rights of the kernel is refused them."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0 and "not permitted" in done.stderr:
        pytest.skip(f"{FORBIDDEN} {' '.join(command)}: {done.stderr.strip()}")
