"""Report pages in a browser: desktop and phone; light, dark and print."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mlip_job.evaluation.results import DimerCheck
from mlip_job.report.figures import MAX_GENERATIONS
from mlip_job.report.model import TrainingReport
from mlip_job.report.page import render_comparison, render_report
from tests.evaluations import make_evaluation, make_physics
from tests.reports import make_facts, make_report
from tests.servers.browser import Browser

SECTIONS = ["headline", "learning", "accuracy", "physics", "worst", "dataset", "lineage"]
HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)></style>{{7*7}}"
UNBROKEN = "surface_" * 40

# Elements that extend beyond the window, except inside a scrolling table.
OVERFLOWING = """
return [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.table table') && !e.closest('svg [clip-path], svg defs'))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + e.textContent.slice(0, 40))
"""

# WCAG 2: contrast ratio of text and background, for every text on the page.
CONTRASTS = """
function channels(css) { return css.match(/[\\d.]+/g).map(Number); }
function luminance(css) {
    const [r, g, b] = channels(css).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
    for (let e = element; e; e = e.parentElement) {
        const css = getComputedStyle(e).backgroundColor;
        if (css !== 'transparent' && channels(css)[3] !== 0) return css;
    }
    return 'rgb(255, 255, 255)';
}
return [...document.querySelectorAll('body *')]
    .filter(e => e.getClientRects().length)
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => {
        const style = getComputedStyle(e);
        const text = luminance(e instanceof SVGElement ? style.fill : style.color);
        const back = luminance(behind(e));
        const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        return [ratio, e.tagName + ' ' + e.textContent.trim().slice(0, 40)];
    })
    .sort((a, b) => a[0] - b[0])
"""

FIGURES = """
return [...document.querySelectorAll('figure')].map(figure => {
    const box = figure.querySelector('svg').getBoundingClientRect();
    const drawn = [...figure.querySelectorAll('.line path, .dots path, .bars path')];
    return {
        title: figure.querySelector('h3').textContent,
        label: figure.querySelector('svg[role=img]').getAttribute('aria-label'),
        width: box.width,
        height: box.height,
        drawn: drawn.filter(e => e.getBBox().width > 0 && e.getTotalLength() >= 0).length,
        font: Math.min(...[...figure.querySelectorAll('text')]
            .map(t => t.getBoundingClientRect().height)),
    };
})
"""


def _write(tmp_path: Path, report: TrainingReport, parent: TrainingReport | None = None) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_report(make_facts(report), parent), encoding="utf-8")
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return _write(tmp_path, make_report(2), make_report(1))


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    path = tmp_path / "comparison.html"
    reports = [make_report(number) for number in range(1, MAX_GENERATIONS + 1)]
    path.write_text(render_comparison(reports), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_can_be_read(browser: Browser, page: Path, width: int, scheme: str) -> None:
    """All sections are there, nothing overflows, figures are drawn, texts are readable."""
    browser.open(page, width=width, scheme=scheme)
    ids = browser.run("return [...document.querySelectorAll('section')].map(s => s.id)")
    assert ids == [*SECTIONS, "environment"]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(OVERFLOWING) == []
    figures = browser.run(FIGURES)
    assert len(figures) == 3 + 6 + 3 + 2
    for figure in figures:
        assert figure["label"]
        assert 300 < figure["width"] <= width
        assert figure["height"] > 200
        assert figure["drawn"] >= 1, figure["title"]
        assert figure["font"] > 9
    ratio, text = browser.run(CONTRASTS)[0]
    assert ratio >= 4.5, text
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(value) for value in re.findall(r"\d+", background)[:3])
    assert (red + green + blue > 3 * 128) == (scheme == "light")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_comparison_can_be_read(
    browser: Browser, comparison: Path, width: int, scheme: str
) -> None:
    browser.open(comparison, width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(OVERFLOWING) == []
    figures = browser.run(FIGURES)
    assert len(figures) == 2 + 3 + 3 + 2
    assert all(figure["drawn"] >= MAX_GENERATIONS for figure in figures)
    ratio, text = browser.run(CONTRASTS)[0]
    assert ratio >= 4.5, text
    colours = browser.run(
        "return [...document.querySelector('.legend').children]"
        ".map(e => getComputedStyle(e.querySelector('.key')).borderTopColor)"
    )
    assert len(set(colours)) == MAX_GENERATIONS
    assert browser.console() == []


def test_a_page_loads_no_other_resource(browser: Browser, page: Path) -> None:
    """No network requests, no console messages, and a policy that blocks accidental loads."""
    browser.open(page, width=1280)
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.console() == []
    policy = browser.run("return document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none';")


def test_the_outline_is_sound(browser: Browser, page: Path) -> None:
    """One title, no skipped heading level, valid links, tables that scroll by keyboard."""
    browser.open(page, width=390)
    levels = browser.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.run(
        "return [...document.querySelectorAll('nav a')]"
        ".every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run(
        "return [...document.querySelectorAll('.table')].every(t => t.tabIndex === 0"
        " && t.querySelector('caption') && t.querySelector('th[scope=col]'))"
    )


def test_hostile_texts_stay_texts(browser: Browser, tmp_path: Path) -> None:
    """Texts of rows, notes and checks are shown, never executed; a very long word is wrapped."""
    (dimer, *others) = make_physics(2, hole=False)
    assert isinstance(dimer, DimerCheck)
    physics = (dimer.model_copy(update={"message": HOSTILE, "elements": (HOSTILE, "Cu")}), *others)
    report = make_report(
        2,
        warnings=(HOSTILE,),
        evaluation=make_evaluation(2, config_types=(HOSTILE, UNBROKEN), physics=physics),
    )
    facts = replace(make_facts(report), report=report.model_copy(update={"family": HOSTILE}))
    page = tmp_path / "report.html"
    page.write_text(render_report(facts, None), encoding="utf-8")
    browser.open(page, width=390)
    assert browser.run("return document.title") == f"{HOSTILE} gen_02"
    assert browser.run("return document.querySelectorAll('script, img, style').length") == 1
    shown = browser.run("return document.body.textContent")
    assert shown.count(HOSTILE) > 5
    assert UNBROKEN in shown
    assert browser.run("return document.querySelectorAll('section').length") == len(SECTIONS) + 1
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.run(OVERFLOWING) == []
    assert browser.console() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]


def test_a_page_prints(browser: Browser, page: Path) -> None:
    """A few sheets, black on white even in dark mode, without navigation."""
    browser.open(page, width=1280, scheme="dark", media="print")
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    body = "getComputedStyle(document.body)"
    assert browser.run(f"return {body}.backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run(f"return {body}.color") == "rgb(0, 0, 0)"
    assert browser.run(CONTRASTS)[0][0] >= 4.5
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 10


def test_a_page_without_evaluation(browser: Browser, tmp_path: Path) -> None:
    page = _write(tmp_path, make_report(2, evaluation=None), make_report(1, evaluation=None))
    browser.open(page, width=390)
    assert browser.run("return document.querySelector('h1 .badge').textContent") == "Not evaluated"
    ids = browser.run("return [...document.querySelectorAll('section')].map(s => s.id)")
    assert set(ids) == set(SECTIONS) - {"accuracy", "physics", "worst"} | {"environment"}
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert len(browser.run(FIGURES)) == 3
