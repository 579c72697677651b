"""Pages and tables about generations that people read: pure functions of their reports."""

from mlip_job.reporting.facts import Facts, predecessor, read_facts, read_parent, read_report
from mlip_job.reporting.page import render_comparison, render_report

__all__ = [
    "Facts",
    "predecessor",
    "read_facts",
    "read_parent",
    "read_report",
    "render_comparison",
    "render_report",
]
