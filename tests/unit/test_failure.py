"""Why a fit failed is told in words, with the next step to try."""

from __future__ import annotations

import pytest

from mlip_job.training.loss import DIVERGED
from mlip_job.training.pacemaker.log import LogParser, LogState
from mlip_job.training.pacemaker.results import describe_exit, describe_failure

STAMP = "2026-11-23 22:45:00,000 - pyace.fitadapter - "


def _log(*lines: str) -> LogState:
    parser = LogParser()
    for line in lines:
        parser.feed(line)
    return parser.state


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "killed by SIGKILL: out of memory, or by the scheduler"),
        (137, "killed by SIGKILL: out of memory, or by the scheduler"),
        (-15, "ended by SIGTERM"),
        (143, "ended by SIGTERM"),
        (-11, "ended by SIGSEGV"),
        (0, None),
        (1, None),
        (2, None),
        (128, None),
        (255, None),
    ],
)
def test_signals_are_named(code: int, text: str | None) -> None:
    """By both conventions; other codes say nothing by themselves."""
    described = describe_exit(code)
    assert described is None if text is None else described.startswith(text)


def test_the_kernel_that_kills_for_memory_is_thought_of() -> None:
    """It leaves no word in the log."""
    text = describe_failure(LogState(), -9)
    assert text is not None
    assert "give the job more memory or reduce training.batch_size" in text


@pytest.mark.parametrize(
    "line",
    [
        "tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM",
        f"{STAMP}ERROR - OOM when allocating tensor with shape[3]",
        "2026-11-23 22:45:00.1: E tensorflow/stream.cc] CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError: Unable to allocate 3.2 GiB for an array",
    ],
)
@pytest.mark.parametrize("code", [1, -6, -9, None])
def test_out_of_memory_is_recognised_by_the_log(line: str, code: int | None) -> None:
    """Whatever ended the process then."""
    text = describe_failure(_log("Traceback (most recent call last):", line), code)
    assert text == (
        "out of memory: reduce training.batch_size or the basis, or give the job more memory"
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(100, 61), (61, 37)], "out of memory down to a batch of 37: reduce training.batch_size"),
        ([(2, 1), (1, 0)], "out of memory even with one structure at a time: reduce the basis"),
        ([(1, 0)], "out of memory even with one structure at a time: reduce the basis"),
    ],
)
def test_what_pacemaker_tried_itself_is_said(sizes: list[tuple[int, int]], expected: str) -> None:
    """There is no use in advising it again."""
    lines = [
        f"{STAMP}INFO - Decrease batch size (by factor 1.618): {before} -> {after}"
        for before, after in sizes
    ]
    text = describe_failure(_log(*lines, f"{STAMP}ERROR - OOM when allocating"), 1)
    assert text is not None
    assert text.startswith(expected)


def test_out_of_memory_that_was_healed_is_no_failure() -> None:
    """The potential is there; the rest is a warning."""
    saved = f"{STAMP}INFO - Final potential is saved to output_potential.yaml"
    assert describe_failure(_log(f"{STAMP}ERROR - OOM when allocating", saved), 0) is None


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("IndexError: list index out of range", "the basis may have no functions"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", "a file is missing"),
    ],
)
def test_errors_get_a_meaning_and_stay_readable(error: str, meaning: str) -> None:
    """Both are shown: the meaning may be wrong."""
    text = describe_failure(_log("Traceback (most recent call last):", error), 1)
    assert text is not None
    assert text.startswith(meaning)
    assert text.endswith(f"({error})")


def test_unknown_errors_are_told_as_they_are() -> None:
    """No meaning is made up."""
    trace = _log("Traceback (most recent call last):", "ValueError: something new")
    assert describe_failure(trace, 1) == "ValueError: something new"
    assert describe_failure(LogState(), 1) is None
    assert describe_failure(LogState(), None) is None


def test_divergence_names_the_next_step() -> None:
    """The checkpoint of a fit that diverged would diverge again."""
    for step in ("dataset.max_force", "training.l2_coeffs", "--fresh"):
        assert step in DIVERGED


def test_the_exception_that_ended_pacemaker_wins_over_a_harmless_memory_line() -> None:
    """TensorFlow logs a refused allocation, takes what memory is left, and works."""
    state = _log(
        f"{STAMP}INFO - Start pacemaker",
        "2026-11-23 22:45:00.1: I cuda_executor.cc:1005] failed to allocate 70.25GiB from device: "
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "Traceback (most recent call last):",
        "AssertionError: column contains NaN",
    )
    text = describe_failure(state, 1)
    assert text is not None
    assert text.startswith("forces in the dataset hold NaN")


def test_an_exception_about_memory_is_out_of_memory() -> None:
    """Also where no other line says so."""
    state = _log("Traceback (most recent call last):", "MemoryError: Unable to allocate 3.2 GiB")
    text = describe_failure(state, 1)
    assert text is not None
    assert text.startswith("out of memory")
