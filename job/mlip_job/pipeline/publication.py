"""From a finished fit to a published generation: convert, evaluate, report, publish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mlip_job.pipeline.beside import notes_on_test_set
from mlip_job.pipeline.evaluate import (
    clear_cores,
    evaluate_generation,
    fetch_structures,
)
from mlip_job.pipeline.stages import describe
from mlip_job.report import make_report
from mlip_job.reporting.facts import Facts, read_parent
from mlip_job.reporting.page import render_report
from mlip_job.training.programs import convert_to_yace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation
    from mlip_job.naming import WorkFiles
    from mlip_job.pipeline.clock import StageClock
    from mlip_job.pipeline.preparation import Prepared
    from mlip_job.pipeline.shipping import Shipper
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Artefact, Manifest, Registry, TrainingState
    from mlip_job.training.run_summary import RunSummary


class Publication:
    """What an attempt does after its fit.

    Parameters
    ----------
    config, generation, registry, observer, clock
        Of the attempt.
    files
        Its work directory, as the fit left it.
    raise_if_lost
        Raises where another attempt has taken over.
    """

    def __init__(
        self,
        config: JobConfig,
        generation: int,
        registry: Registry,
        files: WorkFiles,
        observer: Observer,
        clock: StageClock,
        raise_if_lost: Callable[[], None],
    ) -> None:
        self._config = config
        self._generation = generation
        self._registry = registry
        self._files = files
        self._observer = observer
        self._clock = clock
        self._raise_if_lost = raise_if_lost

    def run(self, prepared: Prepared, shipper: Shipper, summary: RunSummary) -> Manifest:
        """Publish what came out of a fit; the claim has to be held.

        Parameters
        ----------
        prepared
            What the fit began with.
        shipper
            Knows what each attempt contributed.
        summary
            What pacemaker's files tell of the fit.
        """
        left_out = json.loads(self._files.left_out.read_text(encoding="utf-8"))
        evaluation = self._evaluate(prepared.record, summary, left_out)

        def training() -> TrainingState:
            parts = shipper.parts(summary.iterations or 0)
            return prepared.training.model_copy(update={"attempts": parts})

        report = make_report(
            self._config,
            self._generation,
            prepared.record,
            training(),
            summary,
            evaluation,
            left_out,
        )

        def described(artefacts: dict[str, Artefact]) -> Manifest:
            return describe(
                self._config,
                self._generation,
                prepared.record,
                training(),  # with the time that publishing took until now
                report.headline(),
                artefacts,
            )

        with self._clock.stage("report"):
            self._files.report.write_text(report.to_json(), encoding="utf-8")
            facts = Facts(report, described({}), prepared.record)
            page = render_report(facts, read_parent(self._registry, report))
            self._files.report_page.write_text(page, encoding="utf-8")
        self._raise_if_lost()
        with self._clock.stage("publish"):
            return self._registry.publish(
                self._generation,
                prepared.training.attempts[-1].attempt,
                self._files.artefacts(),
                described,
            )

    def _evaluate(
        self,
        record: DatasetRecord,
        summary: RunSummary,
        left_out: Mapping[str, tuple[int, ...]],
    ) -> Evaluation:
        """Convert the potential to what is published, and measure that."""
        with self._clock.stage("fetch"):
            fetch_structures(self._registry, record, self._files.dataset)
        with self._clock.stage("convert"):
            notes = (
                *clear_cores(self._files, left_out.get("test", ())),
                *notes_on_test_set(self._config.training, record, summary),
            )
            convert_to_yace(self._files.output_potential, self._files.yace)
        return evaluate_generation(
            self._config,
            self._generation,
            self._registry,
            self._files,
            record,
            summary,
            left_out,
            notes,
            self._observer,
            self._raise_if_lost,
            self._clock,
        )
