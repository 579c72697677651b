"""The result of a run of pacemaker, or the cause of its failure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlip_job.errors import ConfigError
from mlip_job.training.pacemaker.log import LogParser, LogState
from mlip_job.training.pacemaker.outcome import describe_failure, summarise_run
from mlip_job.training.process import describe_exit
from mlip_job.training.summary import RunSummary

DATA = Path(__file__).parent.parent / "data" / "pacemaker"
SAVED = b"Final potential is saved to output_potential.yaml"


def _errors(summary: RunSummary, side: str) -> tuple[float | None, ...]:
    errors = getattr(summary, side)
    values = (
        errors.rmse_energy_mev_per_atom,
        errors.mae_energy_mev_per_atom,
        errors.max_energy_mev_per_atom,
        errors.rmse_force_mev_per_angstrom,
        errors.mae_force_mev_per_angstrom,
        errors.max_force_mev_per_angstrom,
    )
    return tuple(None if value is None else round(value, 2) for value in values)


def _changed(directory: Path, case: str, old: str, new: str) -> Path:
    """Copy a run, and replace a text in its log."""
    run = directory / "run"
    shutil.copytree(DATA / case, run, dirs_exist_ok=True)
    log = next(path for path in (run / "train.log", run / "log.txt") if path.exists())
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new))
    return run


@pytest.mark.parametrize(
    ("case", "train", "test"),
    [
        ("b_single_test", (73.47, 49.12, 272.49, 431.58, 232.39, 3261.24),
         (253.64, 101.48, 796.11, 2126.47, 732.80, 14447.60)),
        ("c_ladder", (179.42, 143.93, 365.61, 329.58, 207.71, 1943.07),
         (220.07, 193.85, 352.00, 892.14, 385.62, 5677.51)),
        ("e_cycles2", (338.45, 290.25, 637.20, 496.65, 272.12, 3687.52),
         (285.98, 234.76, 475.86, 1559.13, 593.00, 8305.20)),
        ("resume_p", (124.86, 102.72, 295.79, 445.80, 254.57, 2820.90),
         (203.15, 152.67, 480.79, 1741.52, 652.22, 11462.88)),
    ],
)  # fmt: skip
def test_final_errors_with_a_test_set(
    case: str, train: tuple[float, ...], test: tuple[float, ...]
) -> None:
    """Of the last ladder step, of the best cycle, of the last of several runs in one log."""
    summary = summarise_run(DATA / case)
    assert (summary.status, summary.cause) == ("succeeded", None)
    assert [text for text in summary.warnings if "building graphs" not in text] == []
    assert _errors(summary, "train") == train
    assert _errors(summary, "test") == test


def test_pyace_measures_no_test_set() -> None:
    """Its test errors are unknown, not zero. Early stopping is a success."""
    summary = summarise_run(DATA / "f_earlystop_pyace")
    assert summary.status == "succeeded"
    assert _errors(summary, "train") == (784.23, 702.62, 1360.53, 1641.85, 1024.93, 13182.45)
    assert (summary.test, summary.test_curve) == (None, ())
    assert summary.early_stopping is not None
    assert "Too small or even positive TRAIN loss change" in summary.early_stopping
    assert (summary.iterations, summary.functions, summary.parameters) == (5, 5, 14)


def test_single_shot() -> None:
    summary = summarise_run(DATA / "b_single_test")
    assert (summary.iterations, summary.functions, summary.parameters) == (15, 15, 66)
    assert summary.ladder is False
    assert [(c.ladder_step, c.cycle, c.iterations) for c in summary.cycles] == [(0, 0, 15)]
    assert [point.iteration for point in summary.train_curve] == list(range(16))
    assert [point.iteration for point in summary.test_curve] == [0, 5, 10, 15, 16]
    assert summary.train_curve[0].loss == pytest.approx(7.634683, abs=1e-6)
    assert summary.versions == {
        "pacemaker": "0.4.0rc1",
        "ace_evaluator": "2024.7.4",
        "tensorpot": "0.6.2.1",
    }
    sizes = summary.structures
    assert (sizes["train"].found, sizes["train"].kept, sizes["train"].fitted) == (40, 40, 40)
    assert (sizes["test"].found, sizes["test"].kept, sizes["test"].fitted) == (10, 10, 10)
    # 22:44:30,827 Running fit backend … in the log.
    assert summary.timings_s["building_graph"] == pytest.approx(31.2, abs=0.1)
    assert summary.timings_s["building_test_graph"] == pytest.approx(15.7, abs=0.1)
    assert summary.early_stopping is None
    assert summary.optimiser_message == "Maximum number of iterations has been exceeded."


def test_shares_of_the_final_loss() -> None:
    """Those of the last row of pacemaker's table; each regulariser has its coefficient's name."""
    shares = summarise_run(DATA / "b_single_test").loss_shares
    assert shares is not None
    assert shares.energy == pytest.approx(0.0037781388917 / 0.1714172478314)
    assert shares.forces == pytest.approx(0.16763902758783 / 0.1714172478314)
    assert shares.regularisers["l1_coeffs"] == pytest.approx(1.976897898936e-08 / 0.1714172478314)
    assert list(shares.regularisers) == ["l1_coeffs", "l2_coeffs", "w0_rad", "w1_rad", "w2_rad"]
    assert shares.regularisation == pytest.approx(8.135183855722e-08 / 0.1714172478314)
    assert summarise_run(DATA / "g_nan_forces").loss_shares is None


def test_ladder() -> None:
    summary = summarise_run(DATA / "c_ladder")
    assert summary.ladder is True
    assert [(c.ladder_step, c.functions, c.iterations) for c in summary.cycles] == [
        (0, 5, 8),
        (1, 10, 8),
        (2, 15, 8),
    ]
    assert summary.iterations == 24
    # Of each step: 21.15 + 15.64 + 19.77 for the training set, 8.28 + 8.51 + 18.91 for the other.
    assert summary.timings_s["building_graph"] == pytest.approx(56.56, abs=0.01)
    assert summary.timings_s["building_test_graph"] == pytest.approx(35.70, abs=0.01)
    assert summary.timings_s["fitting"] == pytest.approx(4.2, abs=0.1)
    assert summary.warnings == ()


def test_test_errors_of_an_earlier_ladder_step_are_not_those_of_the_result(tmp_path: Path) -> None:
    """The attempt that finished the fit had no test set, the one before had."""
    copy = tmp_path / "copy"
    shutil.copytree(DATA / "c_ladder", copy)
    table = copy / "test_cycle_metrics.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    summary = summarise_run(copy)
    assert summary.train == summarise_run(DATA / "c_ladder").train
    assert summary.test is None


def test_the_best_cycle_counts_where_it_is_not_the_last(tmp_path: Path) -> None:
    """Pacemaker publishes the best of them."""
    cycles = summarise_run(DATA / "e_cycles2").cycles
    assert [(c.cycle, c.iterations) for c in cycles] == [(0, 8), (1, 8)]
    assert cycles[1].final_loss == pytest.approx(0.302177, abs=1e-6)
    run = _changed(
        tmp_path, "e_cycles2", "Best fitting attempt is #2", "Best fitting attempt is #1"
    )
    errors = _errors(summarise_run(run), "train")
    assert errors == (392.09, 344.03, 723.27, 638.62, 422.51, 3789.83)


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("g_bad_yaml", "the input is not valid YAML"),
        ("g_huge_forces", "the optimiser did not make one iteration (initial loss 7.377e+300)"),
        ("g_missing_file", "a file is missing (FileNotFoundError: [Errno 2] No such file or dir"),
        ("g_nan_energy", "an energy in the dataset is NaN"),
        ("g_nan_forces", "forces in the dataset hold NaN"),
        ("g_no_backend", "the input has no backend section"),
        ("g_no_energy_corrected", "the dataset has no energy_corrected column"),
        ("g_no_input_file", "a file is missing"),
        ("g_sigkill", "killed by SIGKILL: out of memory, or by the scheduler"),
        ("g_sigterm", "ended by SIGTERM"),
    ],
)
def test_failures_have_a_message(case: str, cause: str) -> None:
    """Including the one that ended with exit code 0."""
    summary = summarise_run(DATA / case)
    assert summary.status == "failed"
    assert summary.cause is not None
    assert summary.cause.startswith(cause)


def test_a_start_that_is_a_minimum_is_a_success() -> None:
    """With one function, by a linear fit."""
    summary = summarise_run(DATA / "nothing_to_improve")
    assert (summary.status, summary.cause, summary.iterations) == ("succeeded", None, 0)
    assert summary.train is not None
    assert summary.train.loss == 0.34844060289346934
    assert len(summary.warnings) == 1
    assert "found nothing to improve" in summary.warnings[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "loaded from file 'linear_start.yaml'",
            "shape constructed from dictionary",
            "Optimization terminated successfully.",
        ),
        (
            "success=True, status=0, message=Optimization terminated successfully.",
            "success=False, status=3, message=NaN.",
            "NaN",
        ),
    ],
)
def test_other_fits_without_an_iteration_have_failed(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    """Pacemaker started from zero, or gave up."""
    failed = summarise_run(_changed(tmp_path, "nothing_to_improve", old, new))
    assert (failed.status, failed.warnings) == ("failed", ())
    assert failed.cause is not None
    assert failed.cause.startswith(
        f"the optimiser did not make one iteration (initial loss 0.3484): {words}"
    )


@pytest.mark.parametrize(
    ("start", "status"), [("linear_start", "succeeded"), ("parent_potential", "failed")]
)
def test_a_linear_fit_that_no_line_search_improves_is_a_success(
    tmp_path: Path, start: str, status: str
) -> None:
    """The linear fit was good; another start may have data that can't be fitted."""
    gave_up = ("nothing_to_improve", "success=True, status=0", "success=False, status=2")
    log = _changed(tmp_path, *gave_up) / "train.log"
    log.write_text(log.read_text().replace("linear_start.yaml", f"{start}.yaml"))
    summary = summarise_run(log.parent)
    assert summary.status == status
    assert any("nothing to improve" in text for text in summary.warnings) == (status != "failed")


def test_a_log_without_an_end_is_incomplete(tmp_path: Path) -> None:
    """Killed without a trace, or still running; the last phase is named."""
    shutil.copytree(DATA / "g_sigterm", tmp_path / "run")
    (tmp_path / "run" / "exit_code").unlink()
    summary = summarise_run(tmp_path / "run")
    assert (summary.status, summary.cause) == ("incomplete", "the log ends while fitting")
    assert summary.train is None
    assert summary.iterations == 11


def test_tables_alone_are_no_success(tmp_path: Path) -> None:
    shutil.copy(DATA / "b_single_test" / "metrics.txt", tmp_path)
    summary = summarise_run(tmp_path)
    assert summary.status == "incomplete"
    assert summary.iterations == 15
    assert summary.versions == {}
    assert summary.ladder is None


def test_other_directories_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no work directory of pacemaker"):
        summarise_run(tmp_path)
    with pytest.raises(ConfigError):
        summarise_run(tmp_path / "absent")


def test_log_and_table_are_compared(tmp_path: Path) -> None:
    """A figure that doesn't match is reported, not averaged."""
    run = _changed(tmp_path, "b_single_test", "  73.47  ", "  73.87  ")
    assert summarise_run(run).warnings == (
        "the energy RMSE is 73.47 in the table and 73.87 in the log",
    )


def test_dropped_structures_are_a_warning(tmp_path: Path) -> None:
    """Only the smaller number in pacemaker's log shows that."""
    sizes = ("Dataframe size after transform: 40", "Dataframe size after transform: 37")
    log = _changed(tmp_path, "b_single_test", *sizes) / "train.log"
    log.write_text(log.read_text().replace("Fitting dataset size: 40", "Fitting dataset size: 35"))
    warnings = summarise_run(log.parent).warnings
    assert warnings[0].startswith("pacemaker dropped 3 of 40 train structures")
    assert warnings[1] == "the weighting removed 2 of 37 train structures"


def test_merged_wide_figures_are_separated() -> None:
    """Each has two decimals; splitting at white space would merge them."""
    parser = LogParser()
    for line in (
        "-" * 44 + "FIT STATS" + "-" * 44,
        "   RMSE: 123456789012.34123456789012345678901.50            1469.89      nan",
    ):
        parser.feed(line)
    ((title, figures),) = parser.state.blocks
    assert title == "FIT STATS"
    assert figures == {
        "rmse_energy_mev_per_atom": 123456789012.34,
        "rmse_force_mev_per_angstrom": 1469.89,
    }


def test_recovered_gpu_out_of_memory_is_a_warning() -> None:
    """Pacemaker reduces the batch and restarts by itself."""
    summary = summarise_run(DATA / "oom_healed")
    assert summary.status == "succeeded"
    assert summary.timings_s["building_graph"] > 0
    assert summary.warnings == ("out of GPU memory: pacemaker reduced the batch size from 10 to 6",)


def test_permanent_out_of_memory_is_the_cause(tmp_path: Path) -> None:
    """With the setting to change; pacemaker's last message doesn't mention memory."""
    summary = summarise_run(DATA / "oom_failed")
    assert summary.status == "failed"
    assert summary.exit_code == 1
    assert summary.cause == (
        "out of memory even with one structure at a time: reduce the basis "
        "(training.functions_per_element), or leave out the largest structures"
    )
    assert summary.warnings == ("out of GPU memory: pacemaker reduced the batch size from 2 to 1",)


def test_error_below_in_user_code_is_the_cause() -> None:
    """TensorFlow's first line says nothing; the one further down does."""
    parser = LogParser()
    for line in (
        "Traceback (most recent call last):",
        "ValueError: in user code:",
        '    File "fit.py", line 285, in _evaluate_loss  *',
        "        raise ValueError(message)",
        "    ValueError: the real reason",
    ):
        parser.feed(line)
    assert parser.state.exception == "ValueError: the real reason"


def test_phases_follow_the_log() -> None:
    parser = LogParser()
    seen = [parser.state.phase]
    for line in (DATA / "b_single_test" / "train.log").read_text().splitlines():
        parser.feed(line)
        if parser.state.phase is not seen[-1]:
            seen.append(parser.state.phase)
    assert seen == [
        "starting",
        "loading_data",
        "building_graph",
        "building_test_graph",
        "fitting",
        "finished",
        "predicting",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(["b_single_test", "c_ladder", "f_earlystop_pyace"]), st.floats(0, 1))
def test_a_truncated_log_is_never_a_success(tmp_path: Path, case: str, share: float) -> None:
    run = tmp_path / case
    if not run.exists():
        shutil.copytree(DATA / case, run)
        (run / "exit_code").unlink()
    whole = (DATA / case / "train.log").read_bytes()
    cut = whole[: int(share * len(whole))]
    (run / "train.log").write_bytes(cut)
    assert (summarise_run(run).status == "succeeded") == (SAVED in cut)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=80).filter(
                lambda text: "rror" not in text
            ),
        ),
        max_size=10,
    )
)
def test_garbage_between_lines_changes_no_figure(
    tmp_path: Path, garbage: list[tuple[float, str]]
) -> None:
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(DATA / "c_ladder", run)
    lines = (DATA / "c_ladder" / "train.log").read_text().splitlines()
    for share, text in garbage:
        lines.insert(int(share * len(lines)), text)
    (run / "train.log").write_text("\n".join(lines) + "\n")
    summary = summarise_run(run)
    assert summary.status == "succeeded"
    assert _errors(summary, "train") == (179.42, 143.93, 365.61, 329.58, 207.71, 1943.07)


def test_a_trial_of_the_line_search_is_not_the_result(tmp_path: Path) -> None:
    """Pacemaker's last figures of the test set may be of parameters that it did not keep.

    The potential saved by this fit has 28.5809 meV/atom on the test set, evaluated separately.
    """
    summary = summarise_run(DATA / "line_search_lost", exit_code=0)
    assert summary.status == "succeeded"
    assert summary.train is not None
    assert summary.train.rmse_energy_mev_per_atom == pytest.approx(19.3952, abs=1e-4)
    assert summary.test is not None
    assert summary.test.rmse_energy_mev_per_atom == pytest.approx(28.5809, abs=1e-4)
    assert any("line search" in text for text in summary.warnings)
    copy = tmp_path / "copy"
    shutil.copytree(DATA / "line_search_lost", copy)
    table = copy / "metrics" / "test_metrics.txt"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-2] + lines[-1:]))
    assert summarise_run(copy, exit_code=0).test is None


STAMP = "2026-11-23 22:45:00,000 - pyace.fitadapter - "


def _log(*lines: str) -> LogState:
    parser = LogParser()
    for line in lines:
        parser.feed(line)
    return parser.state


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ((-9, 137), "killed by SIGKILL: out of memory, or by the scheduler"),
        ((-15, 143), "ended by SIGTERM"),
        ((-11,), "ended by SIGSEGV"),
    ],
)
def test_signals_are_named(codes: tuple[int, ...], text: str) -> None:
    """By both conventions; other codes have no meaning here."""
    assert all(str(describe_exit(code)).startswith(text) for code in codes)
    assert {describe_exit(code) for code in (0, 1, 2, 128, 255)} == {None}


def test_a_kill_by_the_kernel_may_be_out_of_memory() -> None:
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
def test_pacemakers_own_attempts_are_mentioned(sizes: list[tuple[int, int]], expected: str) -> None:
    lines = [
        f"{STAMP}INFO - Decrease batch size (by factor 1.618): {before} -> {after}"
        for before, after in sizes
    ]
    text = describe_failure(_log(*lines, f"{STAMP}ERROR - OOM when allocating"), 1)
    assert text is not None
    assert text.startswith(expected)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("IndexError: list index out of range", "the basis may have no functions"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", "a file is missing"),
    ],
)
def test_errors_get_an_explanation_and_stay_readable(error: str, meaning: str) -> None:
    text = describe_failure(_log("Traceback (most recent call last):", error), 1)
    assert text is not None
    assert text.startswith(meaning)
    assert text.endswith(f"({error})")


def test_unknown_errors_are_shown_unchanged() -> None:
    trace = _log("Traceback (most recent call last):", "ValueError: something new")
    assert describe_failure(trace, 1) == "ValueError: something new"
    assert describe_failure(LogState(), 1) is None
    assert describe_failure(LogState(), None) is None


def test_the_exception_that_ended_pacemaker_wins_over_a_harmless_memory_line() -> None:
    """TensorFlow logs a refused allocation, uses the memory that is left, and works."""
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
