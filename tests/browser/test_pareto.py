"""A stock optuna-dashboard draws the Pareto front of a study with several objectives, by their names."""

from __future__ import annotations

import pytest
from programs import running_dashboard

from tuner import StudyDefinition, StudyManager

pytestmark = pytest.mark.browser

DOCUMENT = {
    "name": "trade",
    "objective": "branin",
    "objectives": [{"name": "regret"}, {"name": "epochs"}],
    "budget": {"trials": 12},
    "space": {
        "x0": {"low": -5, "high": 10},
        "x1": {"low": 0, "high": 15},
        "epochs": {"type": "int", "low": 1, "high": 5},
    },
    "sampler": {"name": "sobol"},
}


@pytest.mark.long
def test_the_front_is_drawn(open_page, tmp_path):
    url = f"sqlite:///{tmp_path}/tuner.db"
    with StudyManager(url) as manager:
        manager.run(StudyDefinition.parse(DOCUMENT), executor="threads")
        front = manager.best("trade")
    assert 1 < len(front) < 12
    with running_dashboard(url, tmp_path / "log") as address:
        seen = open_page(
            f"{address}/dashboard/studies/1", allowed=address, viewport={"width": 1280, "height": 1000}
        )
        seen.page.wait_for_selector("#graph-pareto-front .scatterlayer path.point")
        points = seen.page.locator("#graph-pareto-front .scatterlayer .trace")
        assert [points.nth(i).locator("path.point").count() for i in range(points.count())] == [
            12 - len(front),
            len(front),
        ]
        seen.page.get_by_role("combobox").filter(has_text="regret").first.wait_for()
        seen.page.get_by_role("combobox").filter(has_text="epochs").first.wait_for()
        assert seen.errors == []
        seen.close()
