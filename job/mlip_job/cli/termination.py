"""How a run ended, in a file where its container's supervisor looks for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "MLIP_JOB_TERMINATION_MESSAGE"
"""Names the file: Kubernetes' ``terminationMessagePath``."""

_LONGEST_BYTES = 3000
"""Kubernetes keeps 4096 bytes, and cuts without regard to what it cuts."""


def write_termination_message(exit_code: int, message: str, hint: str | None = None) -> None:
    """Write exit code, message and hint as JSON, if anybody asked for it.

    A file that can't be written changes nothing: how the run ended counts more.
    """
    target = os.environ.get(VARIABLE)
    if not target:
        return
    end = {"exit_code": exit_code, "message": _short(message), "hint": hint}
    try:
        Path(target).write_text(json.dumps(end), encoding="utf-8")
    except OSError:
        return


def _short(text: str) -> str:
    """Keep the beginning, which names the cause, and what of the rest has room as JSON."""
    while len(json.dumps(text)) > _LONGEST_BYTES:
        text = text[: len(text) * 9 // 10] + "…"
    return text
