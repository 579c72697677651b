"""From a finished fit to a published generation: convert, evaluate, report, publish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mlip_job.pipeline.evaluate import (
    clear_cores,
    evaluate_generation,
    fetch_structures,
)
from mlip_job.pipeline.stages import describe
from mlip_job.report.model import Facts, make_report, read_predecessor
from mlip_job.report.page import render_report
from mlip_job.training.pacemaker.programs import convert_to_yace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation
    from mlip_job.pipeline.context import AttemptContext
    from mlip_job.pipeline.fit_data import FitData
    from mlip_job.pipeline.preparation import Prepared
    from mlip_job.pipeline.shipping import Shipper
    from mlip_job.registry import Artefact, Manifest, TrainingState
    from mlip_job.training.summary import RunSummary


class Publication:
    """What an attempt does after its fit.

    Parameters
    ----------
    context
        Of which attempt; its work directory is as the fit left it.
    """

    def __init__(self, context: AttemptContext) -> None:
        self._context = context

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
        left_out = json.loads(self._context.files.left_out.read_text(encoding="utf-8"))
        evaluation = self._evaluate(prepared.record, prepared.given, summary, left_out)

        def training() -> TrainingState:
            parts = shipper.parts(summary.iterations or 0)
            return prepared.training.model_copy(update={"attempts": parts})

        report = make_report(
            self._context.config,
            self._context.generation,
            prepared.record,
            training(),
            summary,
            evaluation,
            left_out,
        )

        def described(artefacts: dict[str, Artefact]) -> Manifest:
            return describe(
                self._context.config,
                self._context.generation,
                prepared.record,
                training(),  # with the time that publishing took until now
                report.headline(),
                artefacts,
            )

        with self._context.clock.stage("report"):
            self._context.files.report.write_text(report.to_json(), encoding="utf-8")
            facts = Facts(report, described({}), prepared.record)
            page = render_report(facts, read_predecessor(self._context.registry, report))
            self._context.files.report_page.write_text(page, encoding="utf-8")
        self._context.raise_if_lost()
        with self._context.clock.stage("publish"):
            return self._context.registry.publish(
                self._context.generation,
                prepared.training.attempts[-1].attempt,
                self._context.files.artefacts(),
                described,
            )

    def _evaluate(
        self,
        record: DatasetRecord,
        given: FitData,
        summary: RunSummary,
        left_out: Mapping[str, tuple[int, ...]],
    ) -> Evaluation:
        """Convert the potential to what is published, and measure that."""
        with self._context.clock.stage("fetch"):
            fetch_structures(self._context.registry, record, self._context.files.dataset)
        with self._context.clock.stage("convert"):
            notes = (
                *clear_cores(self._context.files, left_out, given.validation),
                *given.notes,
            )
            convert_to_yace(self._context.files.output_potential, self._context.files.yace)
        return evaluate_generation(self._context, record, given, summary, left_out, notes)
