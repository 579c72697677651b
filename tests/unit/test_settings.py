"""The settings of a fit are named, and those that differ between generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlip_job.cli.tables import show_manifest
from mlip_job.config import JobConfig
from mlip_job.registry import Committee, CommitteeMember, Manifest
from mlip_job.registry.manifest import Artefact
from mlip_job.report.page import render_comparison, render_report
from mlip_job.report.settings import settings_table
from tests.manifests import make_manifest
from tests.reports import make_facts, make_report

if TYPE_CHECKING:
    import pytest


def _manifest(generation: int, **training: Any) -> Manifest:
    config = JobConfig.model_validate({"family": "cu", "training": training})
    return make_manifest(generation).model_copy(update={"config": config.model_dump(mode="json")})


def test_show_names_the_settings_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Cutoff, basis, ladder, weights, regularisation and test fraction; nothing was asked."""
    show_manifest(_manifest(1, cutoff=6.5, ladder_step=[100, 0.1], linear_start=False, max_iter=5))
    lines = capsys.readouterr().out.splitlines()
    shown = {line[:14].strip(): line[15:] for line in lines}
    assert shown["gate"] == "published, no gate set"
    assert shown["cutoff"] == "6.5 Å"
    assert shown["basis size"] == "auto functions per element asked for, ndensity 2"
    assert shown["ladder"] == "ladder_step [100.0, 0.1], ladder_type body_order"
    assert shown["weights"] == "energy 10000, force 100, weighting uniform"
    assert shown["regularisation"].startswith("l1_coeffs 1e-10, l2_coeffs 1e-10, w0_rad 1e-10")
    assert shown["test fraction"] == "0.1"


def test_a_manifest_of_an_older_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What it did not record has a dash; its gate is that of its configuration."""
    old = make_manifest(1)
    headline = old.headline.model_copy(update={"limits_set": None})
    gate = {"max_energy_rmse_mev": 5.0}
    config = {"family": "cu", "training": {"cutoff": 5.0}, "evaluation": {"gate": gate}}
    text = old.model_copy(update={"headline": headline, "config": config}).to_json()
    show_manifest(Manifest.from_json(text, key="k"))
    out = capsys.readouterr().out
    assert "gate           accepted\n" in out
    assert "test fraction  –\n" in out


def test_the_settings_that_differ_are_listed() -> None:
    """And no others; nested ones too."""
    by_group = {"by_group": {"surface": {"energy": 2, "forces": 1}}}
    table = settings_table([_manifest(1), _manifest(2, cutoff=6.0, weighting=by_group)])
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["training.cutoff"] == ("5.5", "6")
    assert rows["training.weighting.by_group.surface.energy"] == ("–", "2")
    assert "training.seed" not in rows
    assert "A dash: " in table.note
    assert settings_table([_manifest(1), _manifest(2)]) is None


def test_null_is_a_value_of_a_setting() -> None:
    """A dash would say that there was no such setting."""
    table = settings_table([_manifest(1, ladder_step=None), _manifest(2, ladder_step=5)])
    assert table is not None
    assert {row[0]: row[1:] for row in table.rows}["training.ladder_step"] == ("null", "5")
    assert table.note == ""


def test_pages_name_the_settings() -> None:
    """The report all of them, the comparison those that differ."""
    page = render_report(make_facts(make_report(2)), None)
    for name in ("cutoff", "basis size", "ladder", "regularisation", "test fraction"):
        assert name in page
    reports, manifests = [make_report(1), make_report(2)], [_manifest(1), _manifest(2, cutoff=6.0)]
    assert "training.cutoff" in render_comparison(reports, manifests)
    assert "Settings that differ" not in render_comparison(reports, manifests[:1] * 2)


def test_losses_of_members_are_on_the_scale_of_curves(capsys: pytest.CaptureFixture[str]) -> None:
    """(1-κ)·MSE(E/atom) + κ·mean|ΔF|², not a·MSE(E/atom) + b·mean|ΔF|²."""
    manifest = _manifest(1, energy_weight=300.0, force_weight=100.0)
    member = CommitteeMember(
        number=1,
        seed=42,
        attempt="a1",
        manifest=Artefact(key="k", sha256="0" * 64, size=1),
        test_loss=8.0,
        headline=manifest.headline,
    )
    ensemble = Committee(members=(member,), best=1, spread=None)
    show_manifest(manifest.model_copy(update={"ensemble": ensemble}))
    assert "seed 42, test loss 0.02, RMSE" in capsys.readouterr().out
