"""Replay the files of a real fit, in place of pacemaker.

It takes the same input files and resumes like pacemaker: rows, potentials and messages are those of
a real fit with a ladder of three steps. It writes potentials in two halves, so that a kill may
leave an incomplete one.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import yaml

_RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"
_STEPS = 3
_HALF_WRITTEN_SECONDS = 0.0005


def main(arguments: list[str]) -> None:
    iteration_s, first, *others = arguments
    if first == "-o":
        Path(others[0]).write_bytes(Path(others[1]).read_bytes())
    else:
        _fit(yaml.safe_load(Path(arguments[-1]).read_text()), float(iteration_s))


def _say(text: str) -> None:
    sys.stdout.write(f"2026-11-23 22:46:00,000 - pyace.generalfit - INFO - {text}\n")
    sys.stdout.flush()


def _fit(content: dict, iteration_s: float) -> None:  # type: ignore[type-arg]
    log = (_RUN / "train.log").read_text().splitlines(keepends=True)
    begin = next(i for i, line in enumerate(log) if "Running fit backend" in line)
    end = max(i for i, line in enumerate(log) if "Fitting cycle finished" in line)
    sys.stdout.write("".join(log[:begin]))
    steps, skip = _plan(content)
    for name in ("metrics", "test_metrics", "cycle_metrics", "test_cycle_metrics"):
        header = (_RUN / f"{name}.txt").read_text().splitlines(keepends=True)[0]
        Path(f"{name}.txt").write_text(header)
    target = "target_potential.yaml" if len(steps) > 1 else _potential(steps[0])
    Path("target_potential.yaml").write_bytes((_RUN / target).read_bytes())
    for index, step in enumerate(steps):
        _say("Running fit backend")
        skipped, iterations = skip if index == 0 else 0, content["fit"]["maxiter"]
        _replay_step(step, index, skipped, iterations, iteration_s)
        _end_step(step, index, "cycle_metrics")
        if "test_filename" in content["data"]:
            _end_step(step, index, "test_cycle_metrics")
        if "ladder_step" in content["fit"] or len(steps) > 1:
            source = (_RUN / _potential(step)).read_bytes()
            Path(f"interim_potential_ladder_step_{index}.yaml").write_bytes(source)
    sys.stdout.write("".join(log[end:-1]))
    Path("output_potential.yaml").write_bytes((_RUN / _potential(steps[-1])).read_bytes())
    sys.stdout.write("".join(line for line in log[end:] if "Final potential is saved" in line))


def _plan(content: dict) -> tuple[list[int], int]:  # type: ignore[type-arg]
    """Return the steps to replay, and the number of finished iterations of the first."""
    potential = content["potential"]
    if isinstance(potential, str):
        step = _step_of(potential)
        return [step], 8 - content["fit"]["maxiter"]
    if "initial_potential" in potential:
        return list(range(_step_of(potential["initial_potential"]) + 1, _STEPS)), 0
    return list(range(_STEPS)), 0


def _step_of(potential: str) -> int:
    functions = len(re.findall(r"\{?type: ", Path(potential).read_text()))
    return functions // 5 - 1


def _potential(step: int) -> str:
    return f"interim_potential_ladder_step_{step}.yaml"


def _replay_step(step: int, shown_as: int, skip: int, maxiter: int, iteration_s: float) -> None:
    potential = (_RUN / _potential(step)).read_bytes()
    rows = {int(row[2]): row for row in _rows("metrics") if int(row[0]) == step}
    for iteration in range(maxiter + 1):
        time.sleep(iteration_s)
        _append("metrics", [str(shown_as), "0", str(iteration), *rows[iteration + skip][3:]])
        _say(f"Iteration   #{iteration}")
        if iteration:
            with Path("interim_potential_0.yaml").open("wb") as file:
                file.write(potential[: len(potential) // 2])
                file.flush()
                time.sleep(_HALF_WRITTEN_SECONDS)
                file.write(potential[len(potential) // 2 :])


def _end_step(step: int, shown_as: int, name: str) -> None:
    (row,) = (row for row in _rows(name) if int(row[0]) == step)
    _append(name, [str(shown_as), *row[1:]])


def _rows(name: str) -> list[list[str]]:
    return [line.split() for line in (_RUN / f"{name}.txt").read_text().splitlines()[1:]]


def _append(name: str, fields: list[str]) -> None:
    with Path(f"{name}.txt").open("a") as file:
        file.write(" ".join(fields) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
