"""Kernel rights that tests need, and that a sandbox may deny."""

from __future__ import annotations

import subprocess

import pytest

FORBIDDEN = "the kernel of this machine forbids"
"""First words of the reason of a skip that CI accepts."""


def require_kernel(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0 and "not permitted" in done.stderr:
        pytest.skip(f"{FORBIDDEN} {' '.join(command)}: {done.stderr.strip()}")
