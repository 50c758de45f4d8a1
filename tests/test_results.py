"""A result in other forms: JSON that can be repeated, CSV, data frame, figures; several problems; while it runs."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tuner import ComparisonDefinition, StudyManager
from tuner.comparing import LiveReport
from tuner.comparison import ComparisonResult, ProblemsResult, Run
from tuner.comparison.export import differences, load_results
from tuner.errors import DefinitionError, MissingDependencyError, NotFoundError
from tuner.report import write_pngs, write_problems, write_report

ARMS = ("random", "sobol", "tpe")
DOCUMENT: dict[str, Any] = {
    "name": "landscape",
    "objective": "branin",
    "budget": {"trials": 6},
    "fixed": {"epochs": 3},
    "space": {"x0": {"low": -5.0, "high": 10.0}, "x1": {"low": 0.0, "high": 15.0}},
    "comparison": {
        "seeds": 3,
        "targets": [20.0, -1.0],
        "arms": [{"name": name, "sampler": {"name": name}} for name in ARMS],
    },
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    url = f"sqlite:///{tmp_path_factory.mktemp('found')}/tuner.db"
    with StudyManager(url) as manager:
        return manager.compare(ComparisonDefinition.parse(DOCUMENT), executor="threads")


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_json_has_all_that_is_needed_to_find_it_again(found: ComparisonResult, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(found.to_json())
    definition, document = load_results(tmp_path / "results.json")
    assert definition == found.definition
    document = json.loads(found.to_json(), parse_constant=no_constants)
    assert {"tuner", "optuna", "numpy", "scipy"} <= set(document["made"]["versions"])
    assert document["made"]["machine"]["cores"] >= 1
    assert set(document["made"]["seconds"]) == {run.study for run in found.runs}
    assert "seconds" not in json.dumps({k: v for k, v in document.items() if k != "made"})
    run = document["runs"][0]
    assert [point["params"] for point in run["points"]] == [trial.params for trial in found.runs[0].trials]
    assert [len(point["curve"]) for point in run["points"]] == [3] * 6
    assert document["verdict"] == found.verdict


def test_a_comparison_run_again_gives_the_same_document_but_for_what_was_made_when(
    found: ComparisonResult, sqlite_url: str
) -> None:
    with StudyManager(sqlite_url) as manager:
        again = manager.compare(found.definition, workers=2, executor="threads")
    before, after = (json.loads(one.to_json()) for one in (found, again))
    assert differences(before, after) == []
    for document in (before, after):
        del document["made"]
    assert json.dumps(before) == json.dumps(after)


def test_differences_are_named() -> None:
    before = {"a": [1, {"b": 2.0}], "made": {"date": "x"}, "gone": 1}
    after = {"a": [1, {"b": 2.5}], "made": {"date": "y"}, "new": 1}
    assert differences(before, after) == [
        "a[1].b: 2.0 became 2.5",
        "gone: 1 became null",
        "new: null became 1",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "cannot be read as JSON"), ("[]", "is no results.json"), ('{"format": 99}', "of format 1")],
)
def test_what_is_no_results_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DefinitionError, match=says):
        load_results(tmp_path / "x.json")
    with pytest.raises(NotFoundError, match="no such file"):
        load_results(tmp_path / "y.json")


def test_csv_and_data_frame_have_a_row_a_trial(found: ComparisonResult) -> None:
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    frame = found.to_dataframe()
    assert len(rows) == len(frame) == 3 * 3 * 6
    assert list(frame.columns) == list(rows[0])
    run = found.runs[4]
    mine = frame[(frame.arm == run.arm) & (frame.seed == run.seed)]
    assert mine["best"].tolist() == run.best.tolist()
    assert mine["value"].cummin().tolist() == run.best.tolist()
    assert mine["spent_epochs"].tolist() == run.epochs.tolist()
    assert mine["params.x0"].tolist() == [trial.params["x0"] for trial in run.trials]


def test_without_pandas_it_says_what_to_install(
    found: ComparisonResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tuner\[pandas\]'"):
        found.to_dataframe()


@pytest.mark.parametrize("kind", ["curves", "finals", "ranks", "differences"])
def test_plots_are_plotlys(found: ComparisonResult, kind: str) -> None:
    figure = found.plot(kind)
    assert len(figure.data) >= len(ARMS)
    with pytest.raises(ValueError, match="kind must be one of curves"):
        found.plot("pie")


def test_pairs_are_told_with_the_better_first(found: ComparisonResult) -> None:
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        (found.ranking[0], found.ranking[1]),
        (found.ranking[0], found.ranking[2]),
        (found.ranking[1], found.ranking[2]),
    ]
    for pair in found.pairs:
        first, second = (found.finals[ARMS.index(arm)] for arm in (pair.first, pair.second))
        assert pair.difference.value == pytest.approx(np.median(first - second))
        assert pair.wins.value == pytest.approx(np.mean(first < second) + np.mean(first == second) / 2)
        assert pair.effect == pytest.approx(stats.mannwhitneyu(second, first).statistic / 9)


def test_targets_tell_what_was_spent_when_they_were_reached(found: ComparisonResult) -> None:
    rows = {(row.target, row.arm): row for row in found.targets()}
    for arm in ARMS:
        runs = found.runs_of(arm)
        spent = [next((i + 1 for i, b in enumerate(run.best) if b <= 20.0), np.inf) for run in runs]
        assert rows[20.0, arm].trials == np.median(spent)
        assert rows[20.0, arm].epochs == 3 * np.median(spent)
        assert rows[20.0, arm].reached == np.isfinite(spent).sum()
        assert (rows[-1.0, arm].reached, rows[-1.0, arm].trials) == (0, np.inf)


def test_no_result_is_told_before_anything_was_spent(found: ComparisonResult) -> None:
    assert all(curve.spent.tolist() == [1, 2, 3, 4, 5, 6] for curve in found.anytime("trials").values())


def test_results_at_every_point_of_the_budget(found: ComparisonResult) -> None:
    for unit, scale in (("trials", 1), ("epochs", 3)):
        for arm, curve in found.anytime(unit, points=3).items():  # type: ignore[arg-type]
            assert curve.spent.tolist() == [2 * scale, 4 * scale, 6 * scale]
            best = np.array([run.best[[1, 3, 5]] for run in found.runs_of(arm)])
            assert curve.runs.tolist() == best.tolist()
            assert curve.median.tolist() == np.median(best, axis=0).tolist()


def test_before_the_first_trial_has_ended_nothing_is_reached() -> None:
    definition = ComparisonDefinition.parse(
        {
            "name": "c",
            "budget": {"epochs": 20},
            "comparison": {"seeds": 1, "arms": [{"name": "a"}, {"name": "b"}]},
        }
    )
    runs = [
        Run(arm, 0, f"c.{arm}.seed-0", np.array([3.0, 1.0]), np.array(spent), 2, 0, 0, 1.0, {}, 0)
        for arm, spent in (("a", [5.0, 20.0]), ("b", [10.0, 20.0]))
    ]
    result = ComparisonResult(definition, tuple(runs))
    assert result.unit == "epochs"  # as the budget says
    curves = result.anytime(points=4)
    assert curves["a"].median.tolist() == [3.0, 3.0, 3.0, 1.0]
    assert curves["b"].median.tolist() == [np.inf, 3.0, 3.0, 1.0]


# ----------------------------------------------------------------------------------------------- several problems


def problem(name: str, finals: dict[str, list[float]]) -> ComparisonResult:
    seeds = len(next(iter(finals.values())))
    document = {
        "name": name,
        "budget": {"trials": 1},
        "comparison": {"seeds": seeds, "arms": [{"name": arm} for arm in finals]},
    }
    runs = [
        Run(arm, seed, f"{name}.{arm}", np.array([value]), np.array([1.0]), 1, 0, 0, 1.0, {}, 0)
        for arm, values in finals.items()
        for seed, value in enumerate(values)
    ]
    return ComparisonResult(ComparisonDefinition.parse(document), tuple(runs))


def test_mean_ranks_over_seeds_and_then_over_problems(tmp_path: Path) -> None:
    first = problem("one", {"a": [1.0, 1.0, 1.0, 5.0], "b": [2.0, 2.0, 2.0, 4.0]})
    other = problem("two", {"b": [9.0, 9.0], "a": [7.0, 8.0]})  # another scale, other seeds, another order
    together = ProblemsResult((first, other))
    assert together.ranks.tolist() == [[1.25, 1.0], [1.75, 2.0]]
    rows = together.table()
    assert [(row.arm, row.mean_rank, row.ranks) for row in rows] == [
        ("a", 1.125, (1.25, 1.0)),
        ("b", 1.875, (1.75, 2.0)),
    ]
    assert together.winner is None
    assert "2 problems are too few" in together.verdict
    page = write_problems(together, tmp_path).read_text()
    assert 'href="two/index.html"' in page
    assert json.loads((tmp_path / "results.json").read_text())["ranking"][0]["arm"] == "a"


def test_a_winner_over_problems_counts_each_problem_once() -> None:
    rng = np.random.default_rng(0)
    results = [
        problem(f"p{i}", {"a": list(rng.normal(size=5)), "b": list(rng.normal(2.0, size=5))})
        for i in range(8)
    ]
    together = ProblemsResult(tuple(results))
    assert together.winner == "a"
    assert together.verdict.startswith("a is best over 8 problems")
    p = stats.wilcoxon(together.ranks[0], together.ranks[1]).pvalue
    assert together.table()[1].p == pytest.approx(p)


def test_a_tie_over_problems_is_one_in_whatever_order_their_thirds_are_added() -> None:
    # how many of three seeds each arm wins: as many together, in another order
    wins = [(won, 3 - won) for won in (0, 2, 2, 2, 2, 1)]
    results = [
        problem(f"p{i}", {"a": [0.0] * a + [1.0] * b, "b": [1.0] * a + [0.0] * b, "c": [2.0] * 3})
        for i, (a, b) in enumerate(wins)
    ]
    together = ProblemsResult(tuple(results))
    assert len(set(together.ranks.mean(axis=1)[:2].tolist())) == 2  # by rounding
    assert together.verdict == "a, b share the best mean rank over 6 problems; no winner."


def test_problems_need_the_same_arms_and_different_names() -> None:
    one = problem("one", {"a": [1.0], "b": [2.0]})
    with pytest.raises(DefinitionError, match="one has a, b, two has a, c"):
        ProblemsResult((one, problem("two", {"a": [1.0], "c": [2.0]})))
    with pytest.raises(DefinitionError, match="different names"):
        ProblemsResult((one, one))
    with pytest.raises(DefinitionError, match="need two comparisons; got 1"):
        ProblemsResult((one,))


# ------------------------------------------------------------------------------------ files, and while it runs


def test_png_files_of_the_figures(found: ComparisonResult, tmp_path: Path) -> None:
    paths = write_pngs(found, tmp_path / "png")
    names = {path.name.removeprefix("landscape-") for path in paths}
    assert names == {"by-trials.png", "by-epochs.png", "finals.png", "ranks.png", "differences.png"}
    from matplotlib import image

    for path in paths:
        pixels = image.imread(path)
        assert pixels.shape[1] == 1200
        assert np.ptp(pixels[..., :3]) > 0.5  # there is something to see


def test_without_matplotlib_it_says_what_to_install(
    found: ComparisonResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tuner\[png\]'"):
        write_pngs(found, tmp_path)


def test_the_report_grows_while_the_comparison_runs(
    found: ComparisonResult, sqlite_url: str, tmp_path: Path
) -> None:
    ranks: list[Any] = []
    with StudyManager(sqlite_url) as manager:
        with LiveReport(manager, found.definition, tmp_path, ranks.append, seconds=0.05):
            manager.compare(found.definition, executor="threads")
            end = time.monotonic() + 20
            while not ranks and time.monotonic() < end:
                time.sleep(0.05)
        result = manager.result(found.definition)
    assert set(ranks[-1]) == set(ARMS)
    assert 'data-refresh="0.05"' in (tmp_path / "index.html").read_text()
    write_report(result, tmp_path)
    assert 'data-refresh="' not in (tmp_path / "index.html").read_text()


def test_a_run_that_stops_leaves_a_report_that_waits_for_nothing(
    found: ComparisonResult, sqlite_url: str, tmp_path: Path
) -> None:
    ranks: list[Any] = []

    def interrupted(manager: StudyManager) -> None:
        with LiveReport(manager, found.definition, tmp_path, ranks.append, seconds=0.05):
            manager.compare(found.definition, executor="threads")
            end = time.monotonic() + 20
            while not ranks and time.monotonic() < end:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with StudyManager(sqlite_url) as manager, pytest.raises(KeyboardInterrupt):
        interrupted(manager)
    assert 'data-refresh="' not in (tmp_path / "index.html").read_text()
