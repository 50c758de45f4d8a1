"""The report: what it says, that it needs nothing else, and that no text in it becomes anything but text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from rich.console import Console

from tuner import ComparisonDefinition, StudyManager
from tuner.comparison import ComparisonResult, Run, TestValues
from tuner.comparison.figures import (
    LIGHT,
    curves_figure,
    differences_figure,
    finals_figure,
    ranks_figure,
    savings_figure,
)
from tuner.report import page, terminal_table, write_report
from tuner.report.insight import best_run, importances
from tuner.report.wording import p_value

EVIL = '</script><script>alert("1")</script><!-- & <b>x</b>'

DOCUMENT = {
    "name": "small",
    "budget": {"trials": 4},
    "fixed": {"optimizer": "adam"},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "priority": 1},
        "momentum": {"low": 0.5, "high": 0.9999, "scale": "reverse_log"},
        "activation": {"choices": ["relu", EVIL]},
    },
    "pruner": {"name": "median", "warmup_epochs": 3},
    "comparison": {
        "seeds": 3,
        "arms": [
            {"name": "plain", "sampler": {"name": "random"}},
            {"name": "bayes", "sampler": {"name": "tpe", "startup_trials": 5}, "fixed": {"note": EVIL}},
        ],
    },
}
PARAMS = {"learning_rate": 0.012345678, "momentum": 0.99876543, "activation": EVIL}


def definition(**changes):
    return ComparisonDefinition.model_validate({**DOCUMENT, **changes})


def run(arm, seed, best, *, lengths=None, **changes):
    best = np.array(best, dtype=float)
    lengths = [10] * len(best) if lengths is None else lengths
    finite = np.isfinite(best)
    given = {
        "completed": int(finite.sum()),
        "pruned": int((~finite).sum()),
        "failed": 0,
        "seconds": 1.5,
        "best_params": PARAMS if finite.any() else {},
        "best_number": 2 if finite.any() else None,
    }
    return Run(
        arm=arm,
        seed=seed,
        study=f"small.{arm}.seed-{seed}",
        best=best,
        epochs=np.cumsum(np.array(lengths, dtype=float)),
        **{**given, **changes},
    )


def result(*runs, **changes):
    return ComparisonResult(definition(**changes), runs)


BAYES = [[0.9, 0.5, 0.3, 0.1], [0.8, 0.4, 0.3, 0.2], [0.9, 0.9, 0.5, 0.15]]
PLAIN = [[0.9, 0.6, 0.6, 0.4], [0.8, 0.8, 0.4, 0.4], [0.9, 0.8, 0.8, 0.3]]


@pytest.fixture
def finished():
    """Every run with its four trials; the second arm is better with every seed."""
    runs = [run("plain", seed, best) for seed, best in enumerate(PLAIN)]
    return result(*runs, *(run("bayes", seed, best) for seed, best in enumerate(BAYES)))


class Reader(HTMLParser):
    """What a browser makes of a page: elements, tables (also by the title above), scripts, the text outside."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.tables = []
        self.sections = {}
        self.scripts = []
        self.text = ""
        self._title = ""
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.sections.setdefault(self._title, self.tables[-1])
        if tag in ("h2", "h3"):
            self._title = ""
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "script":
            self.scripts.append((attrs.get("type"), ""))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif "style" not in self._open:
            self.text += data
            if self._open and self._open[-1] in ("h2", "h3"):
                self._title += data
            if "td" in self._open or "th" in self._open:
                self.tables[-1][-1][-1] += data

    @property
    def figures(self):
        """By the names of their places."""
        names = [a["id"] for _, a in self.elements if a.get("class") == "plot"]
        found = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return dict(zip(names, found, strict=True))


def read(comparison):
    return Reader(page(comparison))


def no_constants(name):
    raise AssertionError(f"{name} is no JSON")


def rendered(table, width=80):
    console = Console(width=width, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    with console.file:
        console.print(table)
        return console.export_text()


# ------------------------------------------------------------------------------------------------------ what it says


def test_verdict_and_facts_come_first(finished):
    text = read(finished).text
    assert finished.verdict in text
    assert text.index("small") < text.index(finished.verdict) < text.index("Ranking")
    for fact in ("given in Python", "minimize", "3, paired", "4 trials"):
        assert fact in text[: text.index("Ranking")]


def test_objective_is_described():
    comparison = result(
        run("plain", 0, [1.0]), run("bayes", 0, [1.0]), objective="branin", space={}, fixed={}
    )
    assert "branin: Branin's function of 2 variables" in read(comparison).text


def test_ranking_has_every_number(finished):
    head, first, second = read(finished).sections["Ranking"]
    assert head[:2] == ["arm", "mean rank"]
    row = dict(zip(head, first, strict=True))
    low, median, high = np.quantile([0.1, 0.2, 0.15], [0.25, 0.5, 0.75], method="median_unbiased")
    assert row["arm"] == "bayes"
    assert row["mean rank"] == "1.00"
    assert row["median [quartiles]"] == f"{median:.4f} [{low:.3f}, {high:.3f}]"
    assert row["best"] == "0.1000"
    assert row["p"] == "–"
    assert (row["trials"], row["pruned"], row["failed"]) == ("12", "0", "0")
    assert (row["epochs"], row["seconds"]) == ("120", "4")
    assert dict(zip(head, second, strict=True))["p"] == "0.25"  # 2 · 0.5³, one pair


def saved(*runs, **changes):
    head, *lines = read(result(*runs, **changes)).sections["Ranking"]
    return {line[0]: line[head.index("saved")] for line in lines}


def test_saved_epochs_are_counted_where_they_can_be_told():
    pruned = {"lengths": [10, 10, 2, 2], "completed": 2, "pruned": 2}
    assert saved(run("plain", 0, [2.0] * 4, **pruned), run("bayes", 0, [1.0] * 4)) == {
        "plain": "40%",  # 16 of 40
        "bayes": "–",  # nothing was pruned
    }


def test_saved_epochs_are_a_lower_bound_where_trials_failed_or_a_budget_cut_one():
    failed = {"lengths": [10, 10, 2, 0], "completed": 2, "pruned": 1, "failed": 1}
    cut = {"lengths": [10, 10, 2, 4], "completed": 2, "pruned": 2}
    runs = run("plain", 0, [2.0] * 4, **failed), run("bayes", 0, [1.0] * 4, **cut)
    assert saved(*runs)["plain"] == "≥ 20%"
    assert saved(*runs, budget={"epochs": 26})["bayes"] == "≥ 10%"  # 14 of 40, less the one that was cut


def test_saved_epochs_are_not_told_where_completed_trials_differ_in_length():
    tuned = {"lengths": [10, 7, 2, 2], "completed": 2, "pruned": 2}
    assert saved(run("plain", 0, [2.0] * 4, **tuned), run("bayes", 0, [1.0] * 4))["plain"] == "–"


def test_best_configuration_is_that_of_the_best_run(finished):
    head, first, _ = read(finished).sections["Best configurations"]
    row = dict(zip(head, first, strict=True))
    assert head[2:5] == list(DOCUMENT["space"])
    assert (row["arm"], row["value"]) == ("bayes", "0.1000")
    assert (row["study"], row["trial"]) == ("small.bayes.seed-0", "2")
    assert row["learning_rate"] == "0.01235"
    assert row["momentum"] == "0.99877"  # three digits of 1 − β
    assert row["activation"] == EVIL


def test_method_is_told(finished):
    reader = read(finished)
    arms, space = reader.sections["Arms"], reader.sections["Space"]
    assert arms[1:] == [
        ["plain", "random", "median (warmup_epochs = 3)", "–"],
        ["bayes", "tpe (startup_trials = 5)", "median (warmup_epochs = 3)", f"note = {EVIL}"],
    ]
    assert space[2] == ["momentum", "float", "[0.5, 0.9999]", "reverse log (1 − value is log-uniform)", "2"]
    assert space[3] == ["activation", "categorical", f"relu, {EVIL}", "–", "2"]
    for fact in ("optuna 5", "numpy", "scipy", "tuner", "Wilcoxon", "UTC", "optimizer = adam"):
        assert fact in reader.text
    document = reader.text[reader.text.index("The definition") + len("The definition") :]
    assert json.JSONDecoder().raw_decode(document)[0] == finished.definition.dump()


def test_unfinished_says_so():
    runs = [run("plain", 0, PLAIN[0]), run("bayes", 0, BAYES[0][:2]), run("plain", 1, PLAIN[1])]
    text = read(result(*runs)).text
    assert "Unfinished. 2 of 6 runs have used up their budget, 3 have not begun." in text


@pytest.mark.parametrize(
    ("budget", "done"),
    [
        ({"trials": 4}, True),
        ({"trials": 5}, False),
        ({"epochs": 40}, True),
        ({"epochs": 41}, False),
        ({"trials": 9, "seconds": 1.5}, True),
        ({"seconds": 2.0}, False),
    ],
)
def test_finished_is_what_has_used_up_its_budget(finished, budget, done):
    comparison = ComparisonResult(definition(budget=budget), finished.runs)
    assert ("Unfinished" not in read(comparison).text) == done


def test_nothing_to_compare_yet():
    reader = read(result(run("plain", 0, [1.0])))
    assert "Nothing to compare yet" in reader.text
    assert "Unfinished" in reader.text
    assert reader.figures == {}


def noisy(n=8, **changes):
    """Eight seeds of two arms that hardly differ, though seeds do."""
    rng = np.random.default_rng(0)
    luck, comparison = rng.normal(size=n), {**DOCUMENT["comparison"], "seeds": n, **changes}
    runs = [
        run(
            arm,
            seed,
            [9.0, 8.0, 7.0, luck[seed] + better + 0.05 * rng.normal()],
            lengths=[10, 10, 10, length],
        )
        for arm, length, better in (("plain", 10, 0.0), ("bayes", 90, -0.03))
        for seed in range(n)
    ]
    return result(*runs, comparison=comparison)


def test_warnings_stand_beside_the_verdict():
    text = read(noisy()).text
    assert "Seeds differ by more than arms do" in text
    assert "Budgets are equal in trials, not in epochs: bayes spent 960, plain 320." in text


def test_pairs_are_told_with_intervals_and_effects():
    comparison = noisy()
    head, line = read(comparison).sections["Who beats whom"]
    row, [pair] = dict(zip(head, line, strict=True)), comparison.pairs
    assert row["first − second"] == " − ".join(comparison.ranking)
    numbers = [float(n.replace("−", "-")) for n in re.findall(r"[−\d.]+", row["median difference"])]
    assert numbers == pytest.approx(
        [pair.difference.value, pair.difference.low, pair.difference.high], rel=0.06
    )
    assert row["Â"] == f"{pair.effect:.2f}"
    assert row["seeds to settle it"] == f"{pair.seeds_needed:,}"


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0496, "0.0496"),
        (0.0504, "0.0504"),
        (0.047, "0.047"),
        (0.25, "0.25"),
        (0.0002, "< 0.001"),
        (None, "–"),
    ],
)
def test_on_which_side_of_5_per_cent_a_p_value_lies_is_seen(p, shown):
    assert p_value(p) == shown


def test_test_values_are_means_of_fresh_trainings(finished):
    assert "On test data" not in read(finished).sections
    tests = {"plain": (0.5, 0.7), "bayes": (0.2, 0.4)}
    runs = [
        dataclasses.replace(r, test=TestValues(2, {"test_loss": tests[r.arm], "test_error": (0.0, math.nan)}))
        for r in finished.runs
    ]
    head, first, _ = read(ComparisonResult(finished.definition, tuple(runs))).sections["On test data"]
    assert dict(zip(head, first, strict=True)) == {
        "arm": "bayes",
        "best dev value": "0.1500 [0.108, 0.192]",
        "test_loss": "0.3000 [0.300, 0.300]",
        "test_error": "3 of 3 failed",
    }


def test_targets_are_told_with_what_they_took(finished):
    comparison = {**DOCUMENT["comparison"], "targets": [0.5]}
    lines = read(ComparisonResult(definition(comparison=comparison), finished.runs)).sections[
        "Time to targets"
    ]
    assert lines[1:] == [
        ["0.5000: bayes", "3 of 3", "2.00", "20.0", "0.750"],
        ["0.5000: plain", "3 of 3", "4.00", "40.0", "1.50"],
    ]


# ------------------------------------------------------------------------------------------------------------ figures


def test_ranks_carry_nemenyis_critical_difference(finished):
    figure = ranks_figure(finished)
    assert [(trace["x"], trace["y"]) for trace in figure["data"]] == [([1.0], ["bayes"]), ([2.0], ["plain"])]
    half = 1.960 * math.sqrt(2 * 3 / (6 * 3)) / 2
    assert [trace["error_x"]["array"] for trace in figure["data"]] == [[pytest.approx(half, rel=1e-3)]] * 2


def test_differences_are_drawn_for_each_seed_with_their_interval():
    comparison = noisy()
    seeds, interval = differences_figure(comparison)["data"]
    [pair] = comparison.pairs
    first, second = (comparison.finals[comparison.arms.index(arm)] for arm in (pair.first, pair.second))
    assert seeds["x"] == pytest.approx((first - second).tolist())
    assert interval["x"] == [pair.difference.value]
    ends = interval["x"][0] + np.array(
        [-interval["error_x"]["arrayminus"][0], interval["error_x"]["array"][0]]
    )
    assert ends == pytest.approx([pair.difference.low, pair.difference.high])


def medians(figure):
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace and trace["mode"] == "lines"}


def seeds_of(values, n):
    """A comparison with these values for one arm, and worse ones for the other, over n seeds."""
    runs = [run(arm, seed, [v + worse for v in values[seed]]) for arm, worse in ARMS for seed in range(n)]
    comparison = {**DOCUMENT["comparison"], "seeds": n}
    return result(*runs, comparison=comparison)


ARMS = (("plain", 1.0), ("bayes", 0.0))


def test_curves_are_medians_with_quartiles():
    values = np.random.default_rng(0).uniform(size=(6, 4)).cumsum(axis=1)[:, ::-1]
    low, high, median = curves_figure(seeds_of(values.tolist(), 6))["data"][:3]
    assert median["name"] == "bayes"
    assert median["x"] == [1, 2, 3, 4]
    assert median["y"] == pytest.approx(np.median(values, axis=0))
    quartiles = np.quantile(values, [0.25, 0.75], axis=0, method="median_unbiased")
    assert [low["y"], high["y"]] == [pytest.approx(quartiles[0]), pytest.approx(quartiles[1])]
    assert (
        len({trace["legendgroup"] for trace in (low, high, median)}) == 1
    )  # the legend toggles them together


def test_few_seeds_are_drawn_one_by_one(finished):
    runs, median, *_ = curves_figure(finished)["data"]
    assert median["name"] == "bayes"
    assert median["y"] == pytest.approx(np.median(BAYES, axis=0))
    assert runs["y"] == [*BAYES[0], None, *BAYES[1], None, *BAYES[2], None]
    assert runs["x"] == [1, 2, 3, 4, None] * 3
    assert "fill" not in runs
    assert runs["legendgroup"] == median["legendgroup"]


def test_curves_against_epochs(finished):
    assert medians(curves_figure(finished, "epochs"))["plain"]["x"][-1] == 40
    assert "best-by-epochs" in read(finished).figures


def test_epochs_are_left_out_where_they_are_trials():
    runs = [run(arm, 0, [2.0, 1.0], lengths=[1, 1]) for arm in ("plain", "bayes")]
    assert "best-by-epochs" not in read(result(*runs)).figures


def test_epochs_are_left_out_where_there_are_none():
    runs = [run(arm, 0, [2.0, 1.0], lengths=[0, 0]) for arm in ("plain", "bayes")]
    assert "best-by-epochs" not in read(result(*runs)).figures


@pytest.mark.parametrize(("direction", "worst"), [("minimize", math.inf), ("maximize", -math.inf)])
def test_infinite_starts_are_left_out(direction, worst):
    best = [worst, worst, 2.0, 2.0]
    runs = [run("plain", seed, best) for seed in range(3)]
    runs += [run("bayes", seed, [worst, 3.0, 2.5, 1.0]) for seed in range(3)]
    comparison = result(*runs, direction=direction)
    figure = curves_figure(comparison)
    assert {name: trace["x"] for name, trace in medians(figure).items()} == {
        "plain": [3, 4],
        "bayes": [2, 3, 4],
    }
    assert json.loads(json.dumps(figure), parse_constant=no_constants)
    assert "NaN" not in page(comparison).split("<script>")[0]


def test_runs_without_a_completed_trial_are_not_drawn():
    runs = [run("plain", seed, [math.inf] * 4) for seed in range(3)]
    runs += [run("bayes", seed, best) for seed, best in enumerate(BAYES)]
    reader = read(result(*runs))
    assert "Not drawn: 3 runs without a completed trial." in reader.text
    assert reader.tables[0][2][2] == "– [–, –]"
    assert (
        len(reader.sections["Best configurations"]) == 2
    )  # the title and the one arm that has a best configuration
    assert list(medians(reader.figures["best-by-trials"])) == ["bayes"]


def test_nothing_completed_anywhere():
    runs = [run(arm, 0, [math.inf] * 4) for arm in ("plain", "bayes")]
    assert "No run has a completed trial yet" in read(result(*runs)).text


def test_final_values_join_the_same_seed(finished):
    pairs, *rest = finals_figure(finished)["data"]
    assert list(zip(pairs["x"], pairs["y"], strict=True))[:6] == [
        (0.1, "bayes"),
        (0.4, "plain"),
        (None, None),
        (0.2, "bayes"),
        (0.4, "plain"),
        (None, None),
    ]
    points = {trace["name"]: trace for trace in rest if trace["type"] == "scatter"}
    assert points["bayes"]["x"] == [0.1, 0.2, 0.15]
    assert points["bayes"]["customdata"] == [0, 1, 2]


def test_an_arm_has_one_colour_whatever_its_rank(finished):
    first = ComparisonResult(
        finished.definition, tuple(run(r.arm, r.seed, -r.best) for r in finished.runs)
    )  # the other way round
    for comparison in (finished, first):
        for figure in (curves_figure(comparison), finals_figure(comparison)):
            colours = {trace["name"]: trace["meta"]["colour"] for trace in figure["data"] if "name" in trace}
            assert colours == {"plain": "--arm0", "bayes": "--arm1"}
        dots = [a["class"] for tag, a in read(comparison).elements if tag == "i"]
        assert set(dots) == {"dot arm0", "dot arm1"}
    assert first.ranking == finished.ranking[::-1]


@pytest.mark.parametrize(
    ("best", "kind"),
    [
        ([9.0, 5.0, 1.0], "linear"),
        ([20.0, 5.0, 1.0], "log"),
        ([20.0, 5.0, -1.0], "linear"),
        ([0.0], "linear"),
    ],
)
def test_log_axis_where_positive_values_span_a_decade(best, kind):
    figure = curves_figure(result(run("plain", 0, best), run("bayes", 0, best)))
    axis = figure["layout"]["yaxis"]
    assert axis["type"] == kind
    if kind == "log":
        assert axis["tickvals"] == [1, 2, 5, 10, 20]


def test_axis_shows_all_medians_and_the_best_quartile(finished):
    figure = curves_figure(finished)
    low, high = figure["layout"]["yaxis"]["range"]
    shown = [v for trace in medians(figure).values() for v in trace["y"]]
    assert low < min(v for trace in figure["data"] for v in trace["y"] if v is not None)
    assert max(shown) < high


def test_figures_are_plotlys(finished):
    more = (ranks_figure(finished), differences_figure(finished))
    for figure in (
        curves_figure(finished),
        curves_figure(finished, "epochs"),
        finals_figure(finished),
        *more,
    ):
        assert go.Figure(figure).to_dict()["data"]  # it refuses names and values that Plotly does not know


def test_many_arms_can_be_told_apart():
    arms = [{"name": f"arm-{i}"} for i in range(20)]
    comparison = result(
        *(run(f"arm-{i}", seed, [2.0, 1.0 + i]) for i in range(20) for seed in range(2)),
        comparison={"seeds": 2, "arms": arms},
    )
    lines = {
        (trace["line"]["color"], trace["line"]["dash"])
        for trace in medians(curves_figure(comparison)).values()
    }
    assert len(lines) == 20
    assert len(set(LIGHT)) == 8


# ----------------------------------------------------------------------------------------------- text stays text


def test_no_text_breaks_out(finished):
    runs = [dataclasses.replace(r, study=EVIL, best_params={EVIL: EVIL}) for r in finished.runs]
    reader = read(ComparisonResult(definition(objective=EVIL), tuple(runs)))
    kinds = [kind for kind, _ in reader.scripts]
    assert kinds == ["application/json"] * len(reader.figures) + [None] * 2
    assert not [tag for tag, _ in reader.elements if tag == "b"]
    assert reader.text.count(EVIL) == 8  # objective, best trials (5), arm, space


def test_arm_names_in_plots_are_no_markup(finished):
    # definitions allow no such name; should they ever, Plotly must not read it as its own markup
    arm = '<a href="https://example.org">x</a>'
    comparison = finished.definition.comparison
    renamed = comparison.model_copy(
        update={"arms": [comparison.arms[0].model_copy(update={"name": arm}), comparison.arms[1]]}
    )
    runs = [dataclasses.replace(r, arm=arm) if r.arm == "plain" else r for r in finished.runs]
    changed = ComparisonResult(finished.definition.model_copy(update={"comparison": renamed}), tuple(runs))
    for figure in (curves_figure(changed), finals_figure(changed)):
        names = [trace["name"] for trace in figure["data"] if "name" in trace]
        assert not any("<" in name for name in names)
        assert "&lt;a href" in "".join(names)


def test_page_needs_nothing_else(finished):
    reader = read(finished)
    for _, attributes in reader.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    assert "@import" not in page(finished).split("<script>")[0]
    assert "url(" not in page(finished).split("<script>")[0]


def test_policy_admits_only_the_pages_own_scripts(finished):
    reader = read(finished)
    [policy] = [
        a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in reader.scripts
        if kind is None
    ]
    [allowed] = [part for part in policy.split("; ") if part.startswith("script-src")]
    assert allowed.split()[1:] == digests


def test_readable_on_a_phone_and_in_the_dark(finished):
    text = page(finished)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media (prefers-color-scheme: dark)" in text


# --------------------------------------------------------------------------------------------------------------- files


def test_files(finished, tmp_path):
    path = write_report(finished, tmp_path / "deep" / "report")
    assert path == tmp_path / "deep" / "report" / "index.html"
    assert finished.verdict in path.read_text(encoding="utf-8")
    assert sorted(p.name for p in path.parent.iterdir()) == ["index.html", "results.json", "trials.csv"]
    results = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
    assert results == json.loads(finished.to_json()) | {"made": results["made"]}


def test_files_can_be_read_by_others(finished, tmp_path):
    mask = os.umask(0o022)
    try:
        path = write_report(finished, tmp_path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_results_are_strict_json(tmp_path):
    runs = [run(arm, seed, [math.inf] * 4) for arm in ("plain", "bayes") for seed in range(2)]
    write_report(result(*runs), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=no_constants)
    assert results["ranking"][0]["best"] is None


def test_report_is_replaced_as_a_whole(finished, tmp_path, monkeypatch):
    path = write_report(finished, tmp_path)
    before = path.read_bytes()

    def half_written(self, text, **_):
        self.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", half_written)
        with pytest.raises(OSError, match="no space"):
            write_report(result(run("plain", 0, [1.0])), tmp_path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "index.html",
        "results.json",
        "trials.csv",
    ]  # no draft is left


# ------------------------------------------------------------------------------------------------------------ terminal


def test_terminal_table_fits_80_columns(finished):
    runs = [dataclasses.replace(r, seconds=1234.5, best=r.best * 1.2345678) for r in finished.runs]
    text = rendered(terminal_table(ComparisonResult(finished.definition, tuple(runs))))
    assert "…" not in text
    assert "median [q1, q3]" in text
    line = next(line.split() for line in text.splitlines() if line.startswith("bayes"))
    assert line == ["bayes", "1.00", "0.185", "[0.134,", "0.237]", "0.123", "–", "12", "(0)", "120", "3,704"]


def test_terminal_table_of_nothing():
    assert terminal_table(result(run("plain", 0, [1.0]))).row_count == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.000012345, "1.23e−05"), (-0.5, "−0.500"), (123.4, "123"), (1234567.8, "1,234,568"), (0.0, "0.00")],
)
def test_terminal_numbers_have_three_digits(value, shown):
    text = rendered(terminal_table(result(run("plain", 0, [value]), run("bayes", 0, [value]))), 120)
    assert next(line.split() for line in text.splitlines() if line.startswith("plain"))[5] == shown


# ------------------------------------------------------------------------------------------------------------ in whole


def test_report_of_a_real_comparison(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    document = {
        "name": "landscape",
        "objective": "branin",
        "budget": {"trials": 6},
        "space": {"x0": {"low": -5.0, "high": 10.0}, "x1": {"low": 0.0, "high": 15.0}},
        "comparison": {
            "seeds": 3,
            "arms": [{"name": name, "sampler": {"name": name}} for name in ("random", "sobol", "tpe")],
        },
    }
    manager = StudyManager(f"sqlite:///{tmp_path}/tuner.db")
    comparison = manager.compare(ComparisonDefinition.parse(document), executor="threads")
    reader = Reader(write_report(comparison, tmp_path / "report").read_text(encoding="utf-8"))
    assert comparison.verdict in reader.text
    assert "Unfinished" not in reader.text
    assert [line[0] for line in reader.sections["Ranking"][1:]] == comparison.ranking
    row = reader.sections["Best configurations"][1]
    trial = manager.load(row[-2]).trials[int(row[-1])]
    assert float(row[2].replace("−", "-")) == pytest.approx(trial.params["x0"], rel=1e-3)
    assert float(row[1]) == pytest.approx(trial.value, rel=1e-3)


def test_report_of_a_real_training_tells_what_its_trials_say(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    document = {
        "name": "trained",
        "objective": "digits-few",
        "budget": {"trials": 26},
        "fixed": {"epochs": 3},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "priority": 1},
            "momentum": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
        },
        "comparison": {
            "seeds": 2,
            "test_repeats": 1,
            "arms": [
                {"name": "random", "sampler": {"name": "random"}, "pruner": {"name": "median"}},
                {"name": "zoom", "sampler": {"name": "coarse-to-fine"}},
            ],
        },
    }
    with StudyManager(f"sqlite:///{tmp_path}/tuner.db") as manager:
        comparison = manager.compare(ComparisonDefinition.parse(document), executor="threads")
    reader = read(comparison)
    rates, betas = reader.figures["boxes-0"], reader.figures["boxes-1"]
    assert rates["layout"]["yaxis"]["title"]["text"] == "learning_rate"
    assert betas["layout"]["yaxis"]["title"]["text"] == "1 − momentum"
    run = best_run(comparison, "zoom")
    assert rates["data"][2]["y"] == [trial.params["learning_rate"] for trial in run.trials]
    assert betas["data"][2]["y"] == pytest.approx([1 - trial.params["momentum"] for trial in run.trials])
    low, high = (np.array(rates["data"][i]["y"]) for i in (0, 1))
    assert np.all(low < high)
    assert low.min() >= 1e-4 * 0.99
    assert high.max() <= 1.01
    assert np.any(high / low < 50)  # it has closed in, from a factor of 10,000
    shares = importances(comparison)
    if shares:
        assert all(sum(column) == pytest.approx(1) for column in zip(*shares.values(), strict=True))
    assert {trace["name"] for trace in reader.figures["savings"]["data"]} >= {"completed", "pruned"}
    assert go.Figure(savings_figure(comparison)).data
    learned = {trace["name"]: trace["y"] for trace in reader.figures["learning"]["data"]}
    best = next(t for t in run.trials if t.number == run.best_number)
    assert learned["zoom"] == list(best.intermediate_values.values())
    assert "bias" in reader.text
    assert reader.sections["On test data"][0] == ["arm", "best dev value", "test_loss", "test_error"]


def test_importance_finds_what_matters():
    rng = np.random.default_rng(0)
    space = {
        "matters": {"low": 0.0, "high": 1.0, "priority": 1},
        "idle": {"low": 0.0, "high": 1.0, "priority": 3},
    }
    runs = []
    for arm in ("plain", "bayes"):
        for seed in range(3):
            points = rng.uniform(size=(60, 2))
            trials = tuple(
                optuna.trial.create_trial(
                    value=float((point[0] - 0.5) ** 2),
                    params={"matters": float(point[0]), "idle": float(point[1])},
                    distributions={name: optuna.distributions.FloatDistribution(0, 1) for name in space},
                )
                for point in points
            )
            for number, trial in enumerate(trials):
                trial.number = number
            best = np.minimum.accumulate([trial.value for trial in trials])
            runs.append(run(arm, seed, best, trials=trials))
    arms = [{"name": name, "sampler": {"name": "random"}} for name in ("plain", "bayes")]
    comparison = result(*runs, space=space, comparison={"seeds": 3, "arms": arms})
    shares = importances(comparison)
    assert [len(values) for values in shares.values()] == [3, 3]
    assert min(shares["matters"]) > 0.8
    top, bottom = read(comparison).figures["importance"]["data"]
    assert (top["y"], bottom["y"]) == (["matters (1)"], ["idle (3)"])
    assert top["x"] == [pytest.approx(float(np.median(shares["matters"])))]


def test_importance_on_a_reverse_log_scale_is_that_of_its_mirror_image():
    """β on a reverse-log scale, or 1 − β on a log scale: the same trainings, and the same shares."""
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(200, 2))
    values = (points[:, 0] - 0.4) ** 2 + (points[:, 1] - 0.4) ** 2

    def shares(scaled, of):
        space = {"idle": {"low": 0.0, "high": 1.0}, "scaled": scaled}
        parameters = ComparisonDefinition.parse(
            {"name": "c", "space": space, "comparison": {"arms": [{"name": "a"}, {"name": "b"}]}}
        ).space
        trials = []
        for number, (point, value) in enumerate(zip(points, values, strict=True)):
            params = {"idle": float(point[0]), "scaled": float(of(point[1]))}
            trial = optuna.trial.create_trial(
                value=float(value), params=params, distributions=dict(parameters.distributions)
            )
            trial.number = number
            trials.append(trial)
        best = np.minimum.accumulate(values)
        runs = [run(arm, 0, best, trials=tuple(trials)) for arm in ("a", "b")]
        arms = [{"name": name, "sampler": {"name": "random"}} for name in ("a", "b")]
        return importances(result(*runs, space=space, comparison={"seeds": 1, "arms": arms}))["scaled"][0]

    reverse_log = shares({"low": 0.5, "high": 0.999, "scale": "reverse_log"}, lambda u: 1 - 0.5 * 0.002**u)
    log = shares({"low": 0.001, "high": 0.5, "scale": "log"}, lambda u: 0.5 * 0.002**u)
    assert reverse_log == pytest.approx(log, abs=0.05)
