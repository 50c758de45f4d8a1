"""The command line: reads settings, wires everything, maps errors to exit codes.

Exit codes: 0 fine, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import optuna
import typer
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from objectives.epoch import Objective
from tuner.catalogue import find_objective, objective_names
from tuner.definition import ComparisonDefinition, StudyDefinition, find_definition
from tuner.errors import ConflictError, DefinitionError, NotFoundError, TunerError
from tuner.manager import StudyManager, StudySummary
from tuner.report import finite, terminal_table, write_report
from tuner.schema import HEAD, exists, info, open_storage, upgrade
from tuner.storage import DEFAULT_URL, cached, safe_url
from tuner.trial_run import Outcome

__all__ = ["app", "main"]

app = typer.Typer(
    help="Compare samplers honestly on your own training, then run the best one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
storage_app = typer.Typer(help="Look after a database.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(storage_app, name="storage")
out = Console(width=None if sys.stdout.isatty() else 160, emoji=False)  # a pipe has no width to keep to
err = Console(stderr=True, emoji=False)


class Format(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"


StudyArgument = Annotated[
    str, typer.Argument(help="A TOML file, or the name of one in `studies/`.", metavar="STUDY")
]
NameArgument = Annotated[
    str, typer.Argument(help="A study's name, as `tuner studies` lists it.", metavar="NAME")
]
StorageOption = Annotated[
    str,
    typer.Option("--storage", envvar="OPTUNA_STORAGE", help="The database: sqlite:///FILE or postgresql://…"),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", min=1, help="Trials at once, each in a process of its own; by default one a core."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="`json` for other programs.")]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command(epilog="**Examples**\n\n`tuner run digits`\n\n`tuner run my/study.toml --workers 4`")
def run(study: StudyArgument, storage: StorageOption = DEFAULT_URL, workers: WorkersOption = CORES) -> None:
    """Run one study until its budget is used up; again, and it goes on where it stopped."""
    definition = StudyDefinition.load(find_definition(study))
    manager = StudyManager(storage)
    with _progress(manager, [("trials", definition)]) as on_outcome:
        finished = manager.run(definition, workers=workers, on_outcome=on_outcome)
    _print_best(finished)
    _print_where(storage)


@app.command(
    epilog="**Examples**\n\n`tuner compare digits`\n\n`tuner compare digits --seeds 20 --workers 8 --out digits-20`"
)
def compare(
    study: StudyArgument,
    storage: StorageOption = DEFAULT_URL,
    workers: WorkersOption = CORES,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Instead of the definition's number.")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path("report"),
) -> None:
    """Compare arms over paired seeds, print the ranking and write a report; again, and it goes on."""
    definition = ComparisonDefinition.load(find_definition(study))
    if seeds is not None:
        definition = definition.with_seeds(seeds)
    try:
        out_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better now than after the run
        raise DefinitionError(f"--out {out_folder}: {error.strerror}") from None
    manager = StudyManager(storage)
    members = [(member.arm, member.definition) for member in definition.members]
    with _progress(manager, members) as on_outcome:
        result = manager.compare(definition, workers=workers, on_outcome=on_outcome)
    out.print(terminal_table(result))
    out.print(result.verdict, soft_wrap=True, markup=False)
    out.print(f"\nReport: {write_report(result, out_folder)}", soft_wrap=True, markup=False)
    _print_where(storage)


@app.command(epilog="**Example**\n\n`tuner studies --format json`")
def studies(
    storage: StorageOption = DEFAULT_URL,
    format_: FormatOption = Format.TABLE,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False,
) -> None:
    """List the studies in the database."""
    summaries = _existing(storage).studies(archived=archived)
    if format_ is Format.JSON:
        _print_json([_plain(summary) for summary in summaries])
        return
    table = Table(box=None)
    table.add_column("study", no_wrap=True)
    for heading in ("objective", "sampler", "trials", "pruned", "failed", "best"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for summary in summaries:
        table.add_row(*map(escape, _study_row(summary)))
    out.print(table if summaries else "No studies yet. Begin with: tuner compare digits")


@app.command(epilog="**Example**\n\n`tuner trials digits.tpe.seed-0 --last 10`")
def trials(
    name: NameArgument,
    storage: StorageOption = DEFAULT_URL,
    format_: FormatOption = Format.TABLE,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only the last so many.")] = None,
) -> None:
    """List a study's trials."""
    study = _existing(storage).load(name)
    shown = study.get_trials(deepcopy=False)[-last if last else None :]
    if format_ is Format.JSON:
        _print_json([_trial_dict(trial) for trial in shown])
        return
    names = list(dict.fromkeys(parameter for trial in shown for parameter in trial.params))
    table = Table(box=None)
    for heading in ("trial", "state", "value", *names, "epochs", "note"):
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("note", *names))
    for trial in shown:
        params = [_short(trial.params.get(parameter, "")) for parameter in names]
        note = str(trial.user_attrs.get("failure", ""))
        epochs = str(len(trial.intermediate_values))
        row = [str(trial.number), trial.state.name.lower(), _short(_value(trial)), *params, epochs, note]
        table.add_row(*map(escape, row))
    out.print(table if shown else Text(f"{name} has no trials yet."))


@app.command(epilog="**Example**\n\n`tuner best digits.tpe.seed-0 --format json`")
def best(
    name: NameArgument, storage: StorageOption = DEFAULT_URL, format_: FormatOption = Format.TABLE
) -> None:
    """Show a study's best trial."""
    study = _existing(storage).load(name)
    if format_ is Format.JSON:
        _print_json(_trial_dict(_best_trial(study)))
        return
    _print_best(study)


@app.command(epilog="**Examples**\n\n`tuner objectives`\n\n`tuner objectives digits`")
def objectives(
    name: Annotated[str | None, typer.Argument(help="Only this one, in detail.", metavar="[NAME]")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List what can be tuned: each objective's hyperparameters, their defaults and priority tiers."""
    found = [find_objective(name)] if name else _installed_objectives()
    if format_ is Format.JSON:
        _print_json([_objective_dict(objective) for objective in found])
        return
    for objective in found:
        out.print(f"[bold]{objective.name}[/bold]  {escape(objective.description)} ({objective.direction})")
        out.print(_hyperparameter_table(objective) if name else _tiers(objective))


def _installed_objectives() -> list[Objective]:
    """All that can be loaded; a line on standard error for each that cannot."""
    found = []
    for name in objective_names():
        try:
            found.append(find_objective(name))
        except TunerError as error:
            _complain(error)
    return found


@app.command(epilog="**Example**\n\n`tuner dashboard --port 8081`")
def dashboard(
    storage: StorageOption = DEFAULT_URL,
    host: Annotated[
        str, typer.Option(help="The address to listen on. There is no login: keep it local.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
) -> None:
    """Open optuna-dashboard on the database. Ctrl-C ends it."""
    from optuna_dashboard import run_server  # noqa: PLC0415 - half a second that no other command should wait

    _existing(storage).close()
    database = open_storage(storage)
    out.print(f"optuna-dashboard on http://{host}:{port}/ (Ctrl-C ends it)")
    try:
        run_server(cached(database), host=host, port=port)
    except OSError as error:
        raise TunerError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


@app.command(epilog="**Example**\n\n`tuner archive digits.tpe.seed-0`")
def archive(
    name: NameArgument,
    storage: StorageOption = DEFAULT_URL,
    undo: Annotated[bool, typer.Option("--undo", help="Put it back into the list.")] = False,
) -> None:
    """Take a study out of the list. Nothing is deleted."""
    _existing(storage).archive(name, undo=undo)


@storage_app.command("info", epilog="**Example**\n\n`tuner storage info --storage sqlite:///tuner.db`")
def storage_info(storage: StorageOption = DEFAULT_URL, format_: FormatOption = Format.TABLE) -> None:
    """Show where a database is, the versions of its tables, and how many studies it holds."""
    _require_existing(storage)
    found = _plain(info(storage)) | {"needed_version": HEAD}
    if format_ is Format.JSON:
        _print_json(found)
        return
    table = Table(box=None, show_header=False)
    for heading, value in (
        ("database", found["url"]),
        ("kind", found["kind"]),
        ("studies", found["studies"]),
        ("version", f"{found['version'] or 'none'} (needed: {HEAD})"),
        ("Optuna's version", found["optunas_version"] or "none"),
    ):
        table.add_row(heading, escape(str(value)))
    out.print(table)


@storage_app.command("upgrade", epilog="**Example**\n\n`tuner storage upgrade --storage sqlite:///tuner.db`")
def storage_upgrade(storage: StorageOption = DEFAULT_URL) -> None:
    """Bring a database's tables up to date. Stop all workers and back it up before; studies and trials stay."""
    _require_existing(storage)
    before, after = upgrade(storage)
    news = "is up to date" if before == after else f"was upgraded from version {before or 'none'}"
    out.print(f"{safe_url(storage)} {news} (version {after})", soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """The console script."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (DefinitionError, NotFoundError, ConflictError) as error:
        _exit(error, 2)
    except TunerError as error:
        _exit(error, 1)
    except optuna.exceptions.StorageInternalError as error:
        _exit(TunerError(f"the database failed: {error.__cause__ or error}".splitlines()[0]), 1)


def _existing(storage: str) -> StudyManager:
    """A manager of a database that is there: looking must not make one, where the name may be mistyped."""
    _require_existing(storage)
    return StudyManager(storage)


def _require_existing(storage: str) -> None:
    if not exists(storage):
        raise NotFoundError(
            f"there is no database {safe_url(storage)}; `tuner run` and `tuner compare` make one"
        )


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt  # a container's stop is handled as Ctrl-C is


def _exit(error: TunerError, code: int) -> NoReturn:
    _complain(error)
    sys.exit(code)


def _complain(error: TunerError) -> None:
    for line in str(error).splitlines():
        err.print(f"error: {line}", style="red", soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _progress(manager: StudyManager, members: Sequence[tuple[str, StudyDefinition]]) -> Iterator[Any]:
    """A bar for each group of studies, with its best value so far; yields what to call with each outcome."""
    ended = {summary.name: summary for summary in manager.studies(archived=True)}
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(),
        console=err,
    )
    tasks: dict[str, Any] = {}
    group_of = {definition.name: group for group, definition in members}
    directions = {group: definition.direction for group, definition in members}
    bests: dict[str, float] = {}
    for group in directions:
        mine = [definition for g, definition in members if g == group]
        limits = [definition.trials for definition in mine]
        total = None if None in limits else sum(limit or 0 for limit in limits)
        done = sum(ended[d.name].finished for d in mine if d.name in ended)
        tasks[group] = bars.add_task(group, total=total, completed=done, best="")

    def on_outcome(outcome: Outcome) -> None:
        if outcome.state is None:
            return
        group = group_of[outcome.study]
        if outcome.state is TrialState.COMPLETE and outcome.value is not None:
            choose = min if directions[group] == "minimize" else max
            bests[group] = choose(bests.get(group, outcome.value), outcome.value)
        shown = f"best {bests[group]:.4g}" if group in bests else ""
        bars.update(tasks[group], advance=1, best=shown)
        if outcome.is_error:
            bars.console.print(
                f"{outcome.study} trial {outcome.number} failed: {outcome.failure}", markup=False
            )

    try:
        with bars:
            yield on_outcome
    except KeyboardInterrupt:
        done = sum(int(task.completed) for task in bars.tasks)
        err.print(f"Stopped. {done} finished trials are kept; the same command goes on from there.")
        raise typer.Exit(130) from None


def _print_where(storage: str) -> None:
    hint = "" if storage == DEFAULT_URL else f" --storage {safe_url(storage)}"
    out.print(f"Dashboard: tuner dashboard{hint}", soft_wrap=True, markup=False, highlight=False)


def _best_trial(study: optuna.Study) -> FrozenTrial:
    try:
        return study.best_trial
    except (ValueError, RuntimeError):
        raise TunerError(f"{study.study_name} has no completed trial to call the best") from None


def _print_best(study: optuna.Study) -> None:
    trial = _best_trial(study)
    out.print(
        f"[bold]{escape(study.study_name)}[/bold]: best value {_short(trial.value)} in trial {trial.number}"
    )
    table = Table(box=None, show_header=False)
    for name, value in trial.params.items():
        table.add_row(escape(name), escape(_short(value)))
    out.print(table)


def _study_row(summary: StudySummary) -> list[str]:
    of = f"/{summary.budget}" if summary.budget else ""
    return [
        summary.name,
        summary.objective or "",
        summary.sampler or "",
        f"{summary.finished}{of}",
        str(summary.trials.get("PRUNED", 0)),
        str(summary.trials.get("FAIL", 0)),
        _short(summary.best_value),
    ]


def _hyperparameter_table(objective: Objective) -> Table:
    table = Table("hyperparameter", "tier", "default", "legal", "", box=None)
    for h in objective.hyperparameters:
        name = f"{h.name} *" if h.adjustable else h.name
        table.add_row(name, str(h.priority or "-"), str(h.default), h.range(), h.description)
    table.caption = "Tier 1 is tuned first; - is rarely worth tuning; * can be adjusted while it trains."
    return table


def _tiers(objective: Objective) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for tier in (1, 2, 3, None):
        names = [f"{h.name}={h.default}" for h in objective.hyperparameters if h.priority == tier]
        if names:
            table.add_row(f"tier {tier}" if tier else "rarely", ", ".join(names))
    return table


def _objective_dict(objective: Objective) -> dict[str, Any]:
    return {
        "name": objective.name,
        "description": objective.description,
        "direction": objective.direction,
        "hyperparameters": [_plain(h) for h in objective.hyperparameters],
    }


def _trial_dict(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": _value(trial),
        "params": trial.params,
        "epochs": len(trial.intermediate_values),
        "started": trial.datetime_start,
        "ended": trial.datetime_complete,
        "attributes": trial.user_attrs,
    }


def _value(trial: FrozenTrial) -> float | list[float] | None:
    """The value; a list for several objectives."""
    values: list[float] | None = trial.values
    return values[0] if values and len(values) == 1 else values


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _print_json(value: Any) -> None:
    print(json.dumps(finite(value), default=str, indent=2, allow_nan=False))  # noqa: T201 - plain, for other programs


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
