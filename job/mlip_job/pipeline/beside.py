"""The test set of a fit that pacemaker is given none of: measured beside it, or at its end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlip_job.config.training import ByGroup
from mlip_job.evaluation.beside import Companion, TestSet
from mlip_job.evaluation.sample import sample_stride

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.naming import WorkFiles
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Registry
    from mlip_job.training.legs import Leg
    from mlip_job.training.run_summary import RunSummary


class BesideFit:
    """Has the test set measured beside each leg of a fit, where that is wanted.

    Parameters
    ----------
    training, record, files
        Of the fit.
    observer
        Who is told what goes wrong: it is no reason to end a fit.
    """

    def __init__(
        self, training: TrainingConfig, record: DatasetRecord, files: WorkFiles, observer: Observer
    ) -> None:
        self._training = training
        self._record = record
        self._files = files
        self._observer = observer

    def fetch(self, registry: Registry) -> None:
        """Bring the test set into the work directory, where the dataset was not built here."""
        path = self._files.dataset.xyz("test")
        if self._training.test_evaluation == "beside" and not path.exists():
            registry.fetch_dataset_file(self._record, path.name, path)

    @contextmanager
    def __call__(self, leg: Leg) -> Iterator[None]:
        """Measure while this lasts."""
        companion = None
        if self._training.test_evaluation == "beside" and self._record.counts.test:
            try:
                companion = Companion(self._test_set(leg.content))
            except OSError as error:
                self._warn(str(error))
        failure = None
        try:
            yield
        finally:
            if companion is not None:
                failure = companion.stop()
        if failure is not None:
            self._warn(failure)

    def _warn(self, failure: str) -> None:
        self._observer.message(
            f"warning: the test set was not measured to the end of the fit: {failure}"
        )

    def _test_set(self, content: Mapping[str, Any]) -> TestSet:
        weighting, record = self._training.weighting, self._record
        kappa = content["fit"]["loss"].get("kappa")
        return TestSet(
            files=self._files,
            elements=record.elements,
            atoms=record.atoms.test,
            reference_energies=record.reference_energies,
            kappa=kappa if isinstance(kappa, int | float) else None,
            by_group=weighting.by_group if isinstance(weighting, ByGroup) else {},
            display_step=int(content["backend"]["display_step"]),
        )


def notes_on_test_set(
    training: TrainingConfig, record: DatasetRecord, fitted: RunSummary
) -> Iterator[str]:
    """Yield what the users of a potential should know of how its test set was measured."""
    if training.test_evaluation != "beside" or fitted.test is not None or not record.counts.test:
        return
    yield (
        "pacemaker was given no test set (training.test_evaluation: beside): that the published "
        "file is what was fitted is checked on the training set only"
    )
    stride = sample_stride(record.atoms.test)
    if not fitted.test_curve:
        yield "the test set has no learning curve: the fit ended before it could be measured"
    elif stride > 1:
        yield f"the learning curve of the test set is of one structure in {stride}"
