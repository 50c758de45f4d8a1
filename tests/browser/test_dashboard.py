"""A stock optuna-dashboard opens what a comparison leaves: its studies, curves, importances, and β as β."""

from __future__ import annotations

import json
import urllib.request

import pytest

pytestmark = pytest.mark.browser

LOW, HIGH = 0.5, 0.999


def get(address, path):
    with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def show(open_page, dashboard):
    """Opens a page of the dashboard."""
    shown = []

    def show(path):
        shown.append(
            open_page(f"{dashboard}{path}", allowed=dashboard, viewport={"width": 1280, "height": 1000})
        )
        return shown[-1]

    yield show
    for seen in shown:
        seen.close()


@pytest.fixture
def study_id(dashboard, small):
    """The dashboard's number of a TPE run's study."""
    summaries = get(dashboard, "/api/studies")["study_summaries"]
    return next(s["study_id"] for s in summaries if s["study_name"] == "small.tpe.seed-0")


def test_lists_a_study_for_each_arm_and_seed(show, small):
    seen = show("/dashboard")
    for run in small.result.runs:
        seen.page.get_by_text(run.study).wait_for()
    assert len(small.result.runs) == 9
    assert seen.errors == []


def test_study_page_draws_history_and_importances(show, study_id, small):
    seen = show(f"/dashboard/studies/{study_id}")
    seen.page.wait_for_selector("#graph-hyperparameter-importances .bars path")
    seen.page.wait_for_selector("#plot-history .scatterlayer path.point")
    assert seen.page.locator("#plot-history .scatterlayer path.point").count() == 10
    importances = seen.page.locator("#graph-hyperparameter-importances").inner_text()
    assert set(small.result.definition.space) <= set(importances.split())
    assert seen.page.locator("#graph-intermediate-values .scatterlayer .trace").count() == 10
    assert seen.errors == []
    outside = [url for url in seen.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert outside == []


def test_trials_show_beta_itself(show, study_id, small, dashboard):
    trial = small.manager.load("small.tpe.seed-0").trials[3]
    beta = trial.params["momentum"]
    assert LOW <= beta <= HIGH
    seen = show(f"/dashboard/studies/{study_id}/trials?numbers={trial.number}")
    seen.page.get_by_text(f"momentum {beta}").wait_for()
    assert seen.errors == []


def test_interface_serves_beta_in_every_trial(dashboard, small):
    for summary in get(dashboard, "/api/studies")["study_summaries"]:
        study = get(dashboard, f"/api/studies/{summary['study_id']}?after=0")
        assert len(study["trials"]) == 10
        for shown, trial in zip(
            study["trials"], small.manager.load(summary["study_name"]).trials, strict=True
        ):
            momentum = next(p for p in shown["params"] if p["name"] == "momentum")
            assert LOW <= float(momentum["param_external_value"]) <= HIGH
            assert float(momentum["param_external_value"]) == trial.params["momentum"]
            assert (momentum["distribution"]["low"], momentum["distribution"]["high"]) == (LOW, HIGH)
            assert momentum["distribution"]["log"] is False


def test_importances_are_served(dashboard, study_id):
    [importances] = get(dashboard, f"/api/studies/{study_id}/param_importances")["param_importances"]
    assert {i["name"] for i in importances} == {"learning_rate", "momentum", "hidden_units", "activation"}
    assert sum(i["importance"] for i in importances) == pytest.approx(1)


def test_the_note_tells_the_verdict_and_leads_to_the_siblings(show, study_id, small):
    seen = show(f"/dashboard/studies/{study_id}/note")
    seen.page.get_by_text(small.result.verdict).wait_for()
    seen.page.get_by_role("link", name="coarse-to-fine").click()
    seen.page.get_by_text("small.coarse-to-fine.seed-0").first.wait_for()
    assert seen.errors == []


def test_the_study_page_draws_the_comparisons_figures(show, study_id):
    seen = show(f"/dashboard/studies/{study_id}")
    for title in (
        "Best value so far",
        "Final values",
        "Mean ranks and critical difference",
        "Paired differences",
    ):
        seen.page.locator(f"text=small: {title}").first.wait_for()
