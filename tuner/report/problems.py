"""What the page of several problems says: the ranking over all of them, and each one's verdict."""

from __future__ import annotations

from tuner.comparison import TEST, ProblemsResult
from tuner.markup import Html, data_table, tag, titled
from tuner.report.wording import p_value

__all__ = ["problems_body"]


def problems_body(result: ProblemsResult) -> Html:
    """Everything between the page's begin and end."""
    head = tag(
        "header",
        tag("p", "Comparison", class_="eyebrow"),
        tag("h1", f"{len(result.results)} problems"),
        tag("p", result.verdict, class_="verdict"),
    )
    lines = [
        [row.arm, f"{row.mean_rank:.2f}", *(f"{rank:.2f}" for rank in row.ranks), p_value(row.p)]
        for row in result.table()
    ]
    note = (
        f"Mean ranks over the seeds of each problem, and their mean over {len(result.problems)} problems. p: "
        f"difference from the first over problems ({TEST}); each problem counts once."
    )
    ranking = data_table(("arm", "mean rank", *result.problems, "p"), lines)
    verdicts = [
        tag("div", tag("dt", tag("a", name, href=f"{name}/index.html")), tag("dd", one.verdict))
        for one in result.results
        for name in [one.definition.name]
    ]
    return Html(
        head
        + titled("Ranking over problems", ranking, tag("p", note, class_="note"))
        + titled("Each problem", tag("dl", *verdicts, class_="diagnoses"))
    )
