"""The command line: reads settings, wires everything, maps errors to exit codes.

Exit codes: 0 fine, 1 failed, 2 bad input, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import optuna
import typer
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from objectives.epoch import Epoch, Objective
from tuner import logs
from tuner.ask_tell import known_params
from tuner.assignment import parse_assignments
from tuner.catalogue import find_objective, known_metrics, objective_names
from tuner.comparing import LiveReport, require_unrepeated, told_differences
from tuner.comparison import ComparisonResult, ProblemsResult, require_problems
from tuner.comparison.export import load_results
from tuner.definition import OWN_VALUE, SPENT, ComparisonDefinition, StudyDefinition, find_definition
from tuner.errors import ConflictError, DefinitionError, MissingDependencyError, NotFoundError, TunerError
from tuner.evidence import find, find_claims, missing, paragraph, write_paragraph
from tuner.executors import one_thread
from tuner.files import new_file
from tuner.health import ALIVE_FILE, sign_of_life
from tuner.ledger import StudyState
from tuner.manager import StudyManager, StudySummary
from tuner.panda import Session
from tuner.pareto import on_front
from tuner.progress import RunDisplay
from tuner.report import (
    finite,
    pairs_table,
    problems_table,
    terminal_table,
    write_pngs,
    write_problems,
    write_report,
)
from tuner.samplers import PopulationSettings
from tuner.schema import HEAD, exists, info, open_storage, upgrade, with_password
from tuner.secrets import read_secret
from tuner.storage import DEFAULT_URL, cached, safe_url
from tuner.termination import raise_at_termination
from tuner.training import planned_epochs
from tuner.transfer import read_document
from tuner.trial_run import Outcome
from tuner.words import plural

if TYPE_CHECKING:
    from tuner.client.verbs import RemoteManager
    from tuner.service.auth import Tokens

__all__ = ["app", "main"]


class _Plainly(TyperGroup):
    """A command whose mistakes are said in Typer's words, without those of what it checks them with."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    cls=_Plainly,
    help="Compare samplers honestly on your own training, then run the best one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
storage_app = typer.Typer(help="Look after a database.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(storage_app, name="storage")
token_app = typer.Typer(
    help="Say who may use the service.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.add_typer(token_app, name="token")
out = Console(width=None if sys.stdout.isatty() else 160, emoji=False)  # a pipe has no width to keep to
err = Console(stderr=True, emoji=False)


class RoleName(StrEnum):
    """What a token lets its holder do; each what those before it may, too."""

    VIEWER = "viewer"
    WORKER = "worker"
    OPERATOR = "operator"
    ADMIN = "admin"


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
AnyStudyArgument = Annotated[
    str,
    typer.Argument(
        help="A study in the database, a TOML file, or the name of one in `studies/`.", metavar="STUDY"
    ),
]
NumberArgument = Annotated[int, typer.Argument(min=0, help="The trial's number.", metavar="NUMBER")]
PointArgument = Annotated[
    list[str] | None,
    typer.Argument(help="name=value, any of the space; the sampler chooses the rest.", metavar="NAME=VALUE"),
]
ValuesArgument = Annotated[
    list[str], typer.Argument(help="name=value, of what can be adjusted.", metavar="NAME=VALUE")
]
PASSWORD_FILE = "TUNER_DATABASE_PASSWORD_FILE"


def _with_password(storage: str) -> str:
    """The URL with the password of the file that the environment names, unless it has one, or needs none."""
    file = os.environ.get(PASSWORD_FILE)
    return storage if file is None else with_password(storage, read_secret(Path(file), PASSWORD_FILE))


FileArgument = Annotated[Path, typer.Argument(help="The file.", metavar="FILE")]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="OPTUNA_STORAGE",
        callback=_with_password,
        help="The database: sqlite:///FILE or postgresql://…, its password in the file that "
        f"{PASSWORD_FILE} names.",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        envvar="TUNER_WORKERS",
        min=1,
        help="Trials at once; by default one a core of this machine.",
    ),
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        envvar="TUNER_EXECUTOR",
        help="Where trials run: `processes` or `threads` of this machine, or `dask://HOST:PORT`, a Dask scheduler.",
    ),
]
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="Of a service, as https://HOST[:PORT]: on its studies instead of a database's."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(envvar="TUNER_TOKEN_FILE", help="With --url: a file with a token of an operator's."),
]
AllowHttpOption = Annotated[
    bool,
    typer.Option(
        "--allow-http",
        envvar="TUNER_ALLOW_HTTP",
        help="Send the token in the clear, in a network of your own.",
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="TUNER_CA_FILE", help="Trust the certificates in this file instead of the usual ones."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="`json` for other programs.")]
PATIENCE = 10.0
"""For how many seconds a person who waits wants a service to be asked again."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command(
    epilog="**Examples**\n\n`tuner run digits`\n\n`tuner run my/study.toml --workers 4`"
    "\n\n`tuner run my/study.toml --executor dask://host:8786 --workers 32`"
)
def run(
    study: StudyArgument,
    storage: StorageOption = DEFAULT_URL,
    workers: WorkersOption = CORES,
    executor: ExecutorOption = "processes",
) -> None:
    """Run one study until its budget is used up; again, and it goes on where it stopped."""
    definition = StudyDefinition.load(find_definition(study))
    manager = StudyManager(storage)
    with _progress(manager, [("trials", definition)]) as display:
        manager.run(definition, workers=workers, executor=executor, on_outcome=display.on_outcome)
    _print_best(manager, definition.name)
    _print_where(storage)


@app.command(
    epilog="**Examples**\n\n`tuner compare digits`\n\n`tuner compare digits --seeds 20 --workers 8 --out digits-20`"
    "\n\n`tuner compare digits wine spirals --out three`\n\n`tuner compare --repeat report/results.json`"
)
def compare(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            help="TOML files, or names of some in `studies/`; several are problems for the same arms.",
            metavar="STUDY…",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_URL,
    workers: WorkersOption = CORES,
    executor: ExecutorOption = "processes",
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Instead of the definition's number.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Where the report goes.", show_default="report")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="A folder for the figures as PNG files, for papers.")
    ] = None,
    repeat: Annotated[
        Path | None,
        typer.Option(
            "--repeat",
            help="A results.json: run it again, in a database of its own, and say whether all numbers are the same.",
        ),
    ] = None,
) -> None:
    """Compare arms over paired seeds, print the ranking and write a report; again, and it goes on."""
    if (repeat is None) == (not studies):
        raise DefinitionError("give studies to compare, or --repeat and a results.json")
    if repeat is not None:
        definition, before = load_results(repeat)
        source = context.get_parameter_source("storage")
        if source is not None and source.name == "DEFAULT":
            storage = f"sqlite:///repeat-{definition.name}.db"
        folder = out_folder or Path(f"repeat-{definition.name}")
        manager = StudyManager(storage)
        require_unrepeated(manager, definition)
        result = _compare(manager, definition, folder, workers, executor)
        _print_result(result, folder, png)
        _print_differences(before, result)
        return
    definitions = [ComparisonDefinition.load(find_definition(study)) for study in studies or []]
    if seeds is not None:
        definitions = [definition.with_seeds(seeds) for definition in definitions]
    folder = out_folder or Path("report")
    manager = StudyManager(storage)
    if len(definitions) == 1:
        result = _compare(manager, definitions[0], folder, workers, executor)
        _print_result(result, folder, png)
    else:
        require_problems(definitions)
        results = []
        for definition in definitions:
            err.print(f"{definition.name}:", markup=False, highlight=False)
            results.append(_compare(manager, definition, folder / definition.name, workers, executor))
            _print_result(results[-1], folder / definition.name, png)
        _print_problems(ProblemsResult(tuple(results)), folder)
    _print_where(storage)


def _compare(
    manager: StudyManager, definition: ComparisonDefinition, folder: Path, workers: int, executor: str
) -> ComparisonResult:
    """Run a comparison, with its report growing in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better now than after the run
        raise DefinitionError(f"--out {folder}: {error.strerror}") from None
    members = [(member.arm, member.definition) for member in definition.members]
    with _progress(manager, members) as display:
        with LiveReport(manager, definition, folder, display.on_ranks):
            result = manager.compare(
                definition, workers=workers, executor=executor, on_outcome=display.on_outcome
            )
        display.on_ranks(result.rank_by_arm)  # those that the table will have
    return result


def _print_problems(result: ProblemsResult, folder: Path) -> None:
    path = write_problems(result, folder)
    out.print(problems_table(result))
    out.print("")
    out.print(result.verdict, soft_wrap=True, markup=False)
    out.print(f"\nReport: {path}", soft_wrap=True, markup=False)


def _print_result(result: ComparisonResult, folder: Path, png: Path | None) -> None:
    path = write_report(result, folder)
    out.print(terminal_table(result))
    if result.pairs:
        out.print("")
        out.print(pairs_table(result))
    out.print("")
    out.print(result.verdict, soft_wrap=True, markup=False)
    for warning in result.warnings:
        out.print(warning, soft_wrap=True, markup=False, style="yellow")
    out.print(f"\nReport: {path}", soft_wrap=True, markup=False)
    if png is not None:
        written = write_pngs(result, png)
        out.print(
            f"Figures: {len(written)} PNG files in {png}", soft_wrap=True, markup=False, highlight=False
        )


def _print_differences(before: Mapping[str, Any], result: ComparisonResult) -> None:
    lines = told_differences(before, result, json.loads(result.to_json()))
    if not lines:
        out.print("All numbers are the same, to the last bit.")
        return
    for line in lines:
        err.print(line, markup=False, highlight=False, soft_wrap=True)
    raise TunerError("the numbers are not the same")


@app.command(epilog="**Examples**\n\n`tuner evidence`\n\n`tuner evidence 02 03 --workers 1`")
def evidence(  # noqa: PLR0917 - each is an option of the command line
    only: Annotated[
        list[str] | None,
        typer.Argument(help="Beginnings of claims' names; by default all.", metavar="CLAIM…"),
    ] = None,
    folder: Annotated[Path, typer.Option("--claims", help="Where the claims are.")] = Path("studies/claims"),
    document: Annotated[Path, typer.Option("--document", help="Where to write what came out.")] = Path(
        "studies/README.md"
    ),
    storage: StorageOption = "sqlite:///evidence.db",
    workers: WorkersOption = CORES,
    executor: ExecutorOption = "processes",
    out_folder: Annotated[Path, typer.Option("--out", help="Where the reports go.")] = Path("evidence"),
) -> None:
    """Put claims to the test: run each one's comparison and write what came out; again, and it goes on."""
    claims = find_claims(folder, only or ())
    manager = StudyManager(storage)
    for name, definition in claims.items():
        if (reason := missing(definition)) is not None:
            out.print(f"{name}: left out: {reason}", markup=False, highlight=False, soft_wrap=True)
            continue
        err.print(f"{name}: {definition.comparison.claim}", markup=False, highlight=False, soft_wrap=True)
        result = _compare(manager, definition, out_folder / name, workers, executor)
        write_report(result, out_folder / name)
        with Progress(console=err, transient=True) as bars:
            task = bars.add_task("judging", total=None)
            finding = find(result, partial(_show_step, bars, task))
        write_paragraph(document, name, paragraph(name, result, folder, finding))
        out.print(f"{name}: {finding.verdict}", markup=False, highlight=False, soft_wrap=True)


def _show_step(bars: Progress, task: TaskID, done: int, of: int) -> None:
    bars.update(task, completed=done, total=of)


@app.command(
    "try",
    epilog="**Examples**\n\n`tuner try digits learning_rate=0.01 hidden_units=64`\n\n`tuner try digits`",
)
def try_(study: AnyStudyArgument, point: PointArgument = None, storage: StorageOption = DEFAULT_URL) -> None:
    """Manual search: evaluate one point of your own choice, as a trial of the study that its sampler learns from."""
    manager, definition, given = _find(study, storage, point or [])
    name = definition.name
    before = _completed(manager.load(name))
    bars = Progress(
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[value]}"),
        console=err,
    )

    def on_begin(params: Mapping[str, Any]) -> None:
        chosen = {parameter: value for parameter, value in params.items() if parameter not in given}
        out.print(f"[bold]{escape(name)}[/bold], the point: {escape(_point(params))}")
        if chosen:
            out.print(f"chosen by the sampler: {escape(_point(chosen))}", style="dim")
        bars.start()

    def on_epoch(epoch: Epoch) -> None:
        bars.update(task, completed=epoch.number, value=f"value {_short(epoch.value)}")

    task = bars.add_task("", total=_planned(definition), value="")
    try:
        trial = manager.try_point(name, given, on_begin=on_begin, on_epoch=on_epoch)
    except KeyboardInterrupt:
        if bars.live.is_started:
            err.print(
                f"The trial was given back: whoever asks next runs it again, as `tuner try {name}` does."
            )
        raise
    finally:
        if bars.live.is_started:
            bars.stop()
    out.print(_standing(trial, before, definition), markup=False)
    if trial.state is TrialState.FAIL:
        raise TunerError(f"trial {trial.number} failed: {trial.user_attrs.get('failure')}")


@app.command(
    epilog="**Examples**\n\n`tuner panda digits learning_rate=0.01`\n\n`tuner panda digits` (takes up a trial that "
    "was given back)"
)
def panda(
    study: AnyStudyArgument,
    point: PointArgument = None,
    storage: StorageOption = DEFAULT_URL,
    pace: Annotated[
        float, typer.Option(min=0.0, help="Seconds that an epoch takes at least, so that you can follow.")
    ] = 0.2,
) -> None:
    """Babysit one model: watch it train, change its hyperparameters, rewind it, stop it."""
    try:
        from tuner.panda.app import PandaApp  # noqa: PLC0415 - an extra that no other command needs
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"tuner panda needs {(error.name or '').partition('.')[0]}: pip install 'tuner[panda]'"
        ) from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise DefinitionError("tuner panda needs a terminal; without one use StudyManager.panda, in Python")
    manager, definition, given = _find(study, storage, point or [])
    session = manager.panda(definition.name, given if point else None)
    try:
        with one_thread(), session:
            screen = PandaApp(session, pace=pace)
            screen.run()
            if not screen.driver.close(timeout=0.5):
                err.print("Waiting for the epoch that is training. Ctrl-C gives the trial back at once.")
                screen.driver.close()
            if session.failure is None:  # else leaving fails the trial
                session.release()
    finally:
        if session.is_over:
            trial = manager.load(definition.name).trials[session.number]
            out.print(_ending(session, trial), markup=False, soft_wrap=True)
    if screen.return_code:
        raise typer.Exit(screen.return_code)
    _print_where(storage)


@app.command(
    epilog="**Examples**\n\n`tuner worker --url https://tuner.example.com --token-file worker.token`"
    "\n\n`tuner worker --url http://127.0.0.1:8080 --token-file worker.token --study digits --workers 4`"
)
def worker(  # noqa: PLR0917 - each is an option of the command line
    url: Annotated[
        str,
        typer.Option(
            envvar="TUNER_URL", help="The service: https://HOST[:PORT]; http:// on this machine only."
        ),
    ],
    token_file: Annotated[
        Path,
        typer.Option(envvar="TUNER_TOKEN_FILE", help="A file with the worker's token and nothing else."),
    ],
    study: Annotated[
        str | None,
        typer.Option(
            help="Only the trials of this study or comparison, until it is finished; by default any's, without an end."
        ),
    ] = None,
    workers: WorkersOption = CORES,
    executor: ExecutorOption = "processes",
    idle: Annotated[
        float | None, typer.Option(min=0.0, help="End after so many seconds without a trial.")
    ] = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            envvar="TUNER_LOG_LEVEL",
            help="Log as the service does, JSON, with the requests' ids: debug, info, warning or error.",
        ),
    ] = None,
    alive_file: Annotated[
        Path | None,
        typer.Option(envvar=ALIVE_FILE, help="Touch it as a sign of life, at which `tuner-health` looks."),
    ] = None,
) -> None:
    """Run trials for a service, from this or any machine. It needs a token, and never sees the database."""
    from tuner.client.worker import WorkerSettings, work  # noqa: PLC0415 - HTTP, which most commands need not load

    settings = WorkerSettings(
        url,
        read_secret(token_file, "--token-file"),
        study,
        allow_http=allow_http,
        ca_file=None if ca_file is None else str(ca_file),
        log_level=log_level,
    )
    if log_level is not None:
        logs.configure(log_level)
    look = sign_of_life(alive_file)
    ended = 0

    def on_outcome(outcome: Outcome) -> None:
        nonlocal ended
        ended += outcome.state is not None
        say(_outcome_line(outcome))

    def say(line: str) -> None:
        if log_level is not None:
            logging.getLogger("tuner.worker").info(line)
        else:
            err.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        work(
            settings,
            workers=workers,
            executor=executor,
            idle=idle,
            on_outcome=on_outcome,
            on_news=say,
            on_look=look,
        )
    except KeyboardInterrupt:
        say(f"Stopped. {_ended_here(ended)}; what was given back, others take up.")
        raise typer.Exit(130) from None
    say(_ended_here(ended))


def _ended_here(count: int) -> str:
    return f"{plural(count, 'trial')} {'has' if count == 1 else 'have'} ended here"


def _outcome_line(outcome: Outcome) -> str:
    """A trial's end in a line."""
    name = f"{outcome.study} trial {outcome.number}"
    if outcome.state is None:
        return f"{name} was given back"
    value = "" if outcome.values is None else f", {_told(outcome.values)}"
    why = f" ({outcome.failure})" if outcome.failure else ""
    return f"{name}: {outcome.state.name.lower()}{value} after {plural(outcome.epochs, 'epoch')}{why}"


@app.command(epilog="**Example**\n\n`tuner adjust digits 12 learning_rate=0.001 momentum=0.95`")
def adjust(  # noqa: PLR0917 - each is an option of the command line
    name: NameArgument,
    number: NumberArgument,
    values: ValuesArgument,
    storage: StorageOption = DEFAULT_URL,
    url: ServiceOption = None,
    token_file: TokenFileOption = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
) -> None:
    """Change hyperparameters of a trial that runs elsewhere, from its next report on."""
    given = parse_assignments(values)
    with _verbs(storage, url, token_file, allow_http, ca_file) as verbs:
        verbs.adjust(name, number, given)
    out.print(f"{name} trial {number}: {_point(given)}, from its next report on", markup=False)


@app.command(
    epilog="**Examples**\n\n`tuner stop digits`\n\n`tuner stop digits 12`\n\n"
    "`tuner stop digits --url https://tuner.example.com --token-file operator.token`"
)
def stop(  # noqa: PLR0917 - each is an option of the command line
    name: NameArgument,
    number: Annotated[
        int | None, typer.Argument(min=0, help="Only the trial of this number.", metavar="[NUMBER]")
    ] = None,
    storage: StorageOption = DEFAULT_URL,
    url: ServiceOption = None,
    token_file: TokenFileOption = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
) -> None:
    """End a study, or one trial, that runs elsewhere: trials that run end after their next report, and none begins."""
    with _verbs(storage, url, token_file, allow_http, ca_file) as verbs:
        if number is None:
            verbs.stop_study(name)
            _print_state(name, verbs)
        else:
            verbs.stop(name, number)
            out.print(f"{name} trial {number} ends after its next report", markup=False)


@app.command(epilog="**Example**\n\n`tuner pause digits.tpe.seed-0`")
def pause(  # noqa: PLR0917 - each is an option of the command line
    name: NameArgument,
    storage: StorageOption = DEFAULT_URL,
    url: ServiceOption = None,
    token_file: TokenFileOption = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
) -> None:
    """Let no trial of a study begin, wherever its workers are, until it is resumed; those that run go on."""
    with _verbs(storage, url, token_file, allow_http, ca_file) as verbs:
        verbs.pause(name)
        _print_state(name, verbs)


@app.command(epilog="**Example**\n\n`tuner resume digits.tpe.seed-0`")
def resume(  # noqa: PLR0917 - each is an option of the command line
    name: NameArgument,
    storage: StorageOption = DEFAULT_URL,
    url: ServiceOption = None,
    token_file: TokenFileOption = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
) -> None:
    """Let trials of a study that was paused or stopped begin again."""
    with _verbs(storage, url, token_file, allow_http, ca_file) as verbs:
        verbs.resume(name)
        _print_state(name, verbs)


@app.command(
    epilog="**Examples**\n\n`tuner archive digits.tpe.seed-0`\n\n`tuner archive digits.tpe.seed-0 --undo`"
)
def archive(  # noqa: PLR0917 - each is an option of the command line
    name: NameArgument,
    storage: StorageOption = DEFAULT_URL,
    undo: Annotated[bool, typer.Option("--undo", help="Put it back into the list.")] = False,
    url: ServiceOption = None,
    token_file: TokenFileOption = None,
    allow_http: AllowHttpOption = False,
    ca_file: CaFileOption = None,
) -> None:
    """Take a study out of the list; no trial of it begins. Nothing is deleted."""
    with _verbs(storage, url, token_file, allow_http, ca_file) as verbs:
        verbs.archive(name, undo=undo)
        _print_state(name, verbs)


WHAT_IT_DOES = {
    StudyState.OPEN: "its trials are handed out",
    StudyState.PAUSED: "no trial begins before `tuner resume`; those that run go on",
    StudyState.STOPPED: "no trial begins before `tuner resume`; those that run end with their next report",
    StudyState.ARCHIVED: "it is out of the list, and no trial begins before `tuner archive --undo`",
}


def _print_state(name: str, verbs: StudyManager | RemoteManager) -> None:
    state = verbs.state(name)
    out.print(f"{name} is {state}: {WHAT_IT_DOES[state]}", markup=False, highlight=False, soft_wrap=True)


def _verbs(
    storage: str, url: str | None, token_file: Path | None, allow_http: bool, ca_file: Path | None
) -> StudyManager | RemoteManager:
    """What to do something with studies by: the database, or the service if one is given."""
    if url is None:
        return _existing(storage)
    if token_file is None:
        raise DefinitionError("--url needs --token-file, a file with a token for that service")
    from tuner.client import Client  # noqa: PLC0415 - HTTP, which most commands need not load
    from tuner.client.verbs import RemoteManager  # noqa: PLC0415

    certificates = None if ca_file is None else str(ca_file)
    token = read_secret(token_file, "--token-file")
    return RemoteManager(Client(url, token, patience=PATIENCE, allow_http=allow_http, ca_file=certificates))


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
    for heading in ("state", "objective", "sampler", "trials", "pruned", "failed", "best"):
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
    manager = _existing(storage)
    shown = manager.load(name).get_trials(deepcopy=False)[-last if last else None :]
    kept = manager.checkpoints(name)
    if format_ is Format.JSON:
        _print_json([{**_trial_dict(trial), "checkpoint_epoch": kept.get(trial.number)} for trial in shown])
        return
    names = list(dict.fromkeys(parameter for trial in shown for parameter in known_params(trial)))
    table = Table(box=None)
    for heading in ("trial", "state", "value", *names, "epochs", "note"):
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("note", *names))
    for trial in shown:
        params = [_short(known_params(trial).get(parameter, "")) for parameter in names]
        note = _note(trial, kept.get(trial.number))
        epochs = str(len(trial.intermediate_values))
        values = ", ".join(map(_short, trial.values or ()))
        row = [str(trial.number), trial.state.name.lower(), values, *params, epochs, note]
        table.add_row(*map(escape, row))
    out.print(table if shown else Text(f"{name} has no trials yet."))


@app.command(
    epilog="**Examples**\n\n`tuner lineage digits-population.population-based.seed-0`\n\n`tuner lineage my-study 31`"
)
def lineage(
    name: NameArgument,
    number: Annotated[
        int | None, typer.Argument(min=0, help="The trial's number; by default the best.", metavar="[NUMBER]")
    ] = None,
    storage: StorageOption = DEFAULT_URL,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print how a network of population-based training was trained: its hyperparameters by epoch."""
    stretches = _existing(storage).lineage(name, number)
    if format_ is Format.JSON:
        _print_json([_plain(stretch) for stretch in stretches])
        return
    names = list(stretches[-1].params) if stretches else []
    table = Table(box=None, caption="* changed with this stretch's first epoch", caption_justify="left")
    for heading in ("epochs", "trial", "member", *names, "value"):
        table.add_column(heading, no_wrap=True)
    for stretch in stretches:
        starred = {n: "*" if n in stretch.changes else "" for n in names}
        params = [_short(stretch.params.get(n)) + starred[n] for n in names]
        epochs = f"{stretch.first}–{stretch.last}"
        table.add_row(epochs, str(stretch.number), str(stretch.member), *params, _short(stretch.value))
    out.print(table)


@app.command(epilog="**Example**\n\n`tuner best digits.tpe.seed-0 --format json`")
def best(
    name: NameArgument, storage: StorageOption = DEFAULT_URL, format_: FormatOption = Format.TABLE
) -> None:
    """Show a study's best trial, or with several objectives its Pareto front."""
    manager = _existing(storage)
    if format_ is Format.JSON:
        front = [_trial_dict(trial) for trial in _best(manager, name)]
        _print_json(front[0] if _is_single(manager, name) else front)
        return
    _print_best(manager, name)


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
        if name and (metrics := known_metrics(objective)) is not None:
            names = ", ".join([OWN_VALUE, *metrics, *SPENT])
            out.print(f"A study of several objectives can name: {names}", style="dim", markup=False)


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
    from tuner.stock_dashboard import listening  # noqa: PLC0415 - half a second that no other command should wait

    _existing(storage).close()
    with listening(cached(open_storage(storage)), host, port) as server:
        shown = f"[{host}]" if ":" in host else host
        _say(f"optuna-dashboard on http://{shown}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()


@app.command(
    epilog="**Examples**\n\n`tuner serve`\n\n`tuner serve --host 0.0.0.0 --behind-proxy --allowed-host "
    "tuner.example.org --storage postgresql://tuner@db/tuner`"
)
def serve(  # noqa: PLR0917 - each is an option of the command line
    storage: StorageOption = DEFAULT_URL,
    host: Annotated[
        str, typer.Option(envvar="TUNER_HOST", help="The address to listen on; 0.0.0.0 is every one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TUNER_PORT", min=0, max=65535)] = 8080,
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy",
            envvar="TUNER_BEHIND_PROXY",
            help="A proxy in front encrypts, and says who the client is (X-Forwarded-For, X-Forwarded-Proto).",
        ),
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="TUNER_TLS_CERT", help="The certificate's file, to encrypt here.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="TUNER_TLS_KEY", help="The file of its private key.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            envvar="TUNER_ALLOWED_HOSTS",
            help="A name under which clients reach the service; give it once a name (in the environment: with spaces).",
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(envvar="TUNER_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TUNER_ADMIN_TOKEN_FILE",
            help="Let in the token in this file as an administrator's, instead of making one at the first start.",
        ),
    ] = None,
    worker_token_file: Annotated[
        Path | None,
        typer.Option(envvar="TUNER_WORKER_TOKEN_FILE", help="Let in the token in this file as a worker's."),
    ] = None,
    lease_seconds: Annotated[
        float,
        typer.Option(
            envvar="TUNER_LEASE_SECONDS",
            help="A trial goes to another worker when nothing was heard of it for so long.",
        ),
    ] = 120.0,
    proxies: Annotated[
        str,
        typer.Option(
            envvar="FORWARDED_ALLOW_IPS",
            help="With --behind-proxy: the proxy's address or network, several with commas. Only it is believed.",
        ),
    ] = "127.0.0.0/8,::1",
) -> None:
    """Serve ask, report and tell over HTTP, and the dashboard behind a login. Ctrl-C ends it."""
    from tuner.service.serve import Settings, serve  # noqa: PLC0415 - a second that no other command should wait

    names = tuple(allowed_hosts or ())
    token_files = (admin_token_file, worker_token_file)
    settings = Settings(
        storage,
        host,
        port,
        behind_proxy,
        tls_cert,
        tls_key,
        names,
        log_level,
        *token_files,
        lease_seconds,
        proxies,
    )
    serve(settings, lambda line: print(line, flush=True))  # noqa: T201 - whole lines, whatever the terminal


@token_app.command(
    "create",
    epilog="**Examples**\n\n`tuner token create gpu-3 --role worker > token`\n\n"
    "`tuner token create ann --role operator --prefix vision. --expires-in 30d`",
)
def token_create(
    name: Annotated[str, typer.Argument(help="For people, as in logs.", metavar="NAME")],
    role: Annotated[RoleName, typer.Option(help="What it lets its holder do.")],
    prefix: Annotated[
        str | None, typer.Option(help="Of the names of the studies that it is for; by default all.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="As in 12h or 30d; by default never.", metavar="DURATION")
    ] = None,
    storage: StorageOption = DEFAULT_URL,
) -> None:
    """Make a token and print it: nobody can read it again."""
    from tuner.service.auth import duration  # noqa: PLC0415 - as for `serve`
    from tuner.service.identity import Role  # noqa: PLC0415

    seconds = None if expires_in is None else duration(expires_in)
    if prefix == "":  # as from a variable that is not set
        raise DefinitionError("--prefix '' would be for all studies; leave it out for that")
    with _tokens(storage) as tokens:
        text, made = tokens.create(name, Role[role.name], prefix=prefix or "", expires_in=seconds)
    print(text)  # noqa: T201 - plain, for a file
    err.print(f"{made.role} {made.name}, id {made.id}", markup=False, highlight=False)


@token_app.command("list", epilog="**Example**\n\n`tuner token list --format json`")
def token_list(storage: StorageOption = DEFAULT_URL, format_: FormatOption = Format.TABLE) -> None:
    """List the tokens: whose, with which role, and until when. Their texts are not kept."""
    with _tokens(storage) as tokens:
        found = [_plain(token) for token in tokens.all()]
    if format_ is Format.JSON:
        _print_json(found)
        return
    table = Table(box=None)
    for heading in ("id", "name", "role", "prefix", "created", "expires", "revoked", "last used"):
        table.add_column(heading, no_wrap=True)
    for token in found:
        moments = (token[when] for when in ("created", "expires", "revoked", "last_used"))
        shown = ("" if moment is None else f"{moment:%Y-%m-%d %H:%M}" for moment in moments)
        table.add_row(token["id"], token["name"], token["role"], token["prefix"], *shown)
    out.print(table if found else "No tokens yet. `tuner serve` makes the first one when it starts.")


@token_app.command("revoke", epilog="**Example**\n\n`tuner token revoke 0a1b2c3d4e5f`")
def token_revoke(
    token_id: Annotated[str, typer.Argument(help="As `tuner token list` shows it.", metavar="ID")],
    storage: StorageOption = DEFAULT_URL,
) -> None:
    """End a token, and the log-ins made with it. A running service notices within seconds."""
    with _tokens(storage) as tokens:
        tokens.revoke(token_id)
    err.print(f"token {token_id} is revoked", markup=False, highlight=False)


@contextmanager
def _tokens(storage: str) -> Iterator[Tokens]:
    from tuner.service.auth import Tokens  # noqa: PLC0415 - as for `serve`

    _require_existing(storage)
    database = open_storage(storage)
    try:
        with closing(Tokens(database)) as tokens:
            yield tokens
    finally:
        database.close()


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


@storage_app.command(
    "backup",
    epilog="**Examples**\n\n`tuner storage backup monday.db`\n\n"
    "`tuner storage backup monday.db --storage postgresql://tuner@db/tuner`",
)
def storage_backup(file: FileArgument, storage: StorageOption = DEFAULT_URL) -> None:
    """Write all that a database holds into a new file, while it is in use: an SQLite database that can be opened."""
    from tuner.backup import backup  # noqa: PLC0415 - what only this and `restore` need

    with _rows() as on_rows:
        backup(storage, file, on_rows)
    studies = info(f"sqlite:///{file}").studies
    _say(f"{safe_url(storage)} is in {file} ({plural(studies, 'study')})")


@storage_app.command(
    "restore",
    epilog="**Examples**\n\n`tuner storage restore monday.db --storage sqlite:///new.db`\n\n"
    "`tuner storage restore monday.db --storage postgresql://tuner@db/tuner`",
)
def storage_restore(file: FileArgument, storage: StorageOption = DEFAULT_URL) -> None:
    """Put a backup, of either kind of database, into one that holds no studies; all of it, or nothing."""
    from tuner.backup import restore  # noqa: PLC0415 - as for `backup`

    with _rows() as on_rows:
        restore(storage, file, on_rows)
    _say(f"{safe_url(storage)} holds {plural(info(storage).studies, 'study')}")


@contextmanager
def _rows() -> Iterator[Callable[[str, int, int], None]]:
    """Shows how a copy gets on; yields what to call with each block of rows."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def on_rows(table: str, done: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = bars.add_task(table)
            bars.update(tasks[table], completed=done, total=total)

        yield on_rows


@app.command(
    "export",
    epilog="**Examples**\n\n`tuner export digits digits.json`\n\n"
    "`tuner export digits digits.json --storage postgresql://tuner@db/tuner`",
)
def export_(name: NameArgument, file: FileArgument, storage: StorageOption = DEFAULT_URL) -> None:
    """Write a study with all of its trials into a new file, as one document: for another database, or a program."""
    document = _existing(storage).export_study(name)
    with new_file(file, "an export", 0o666) as part, part.open("w") as written:
        json.dump(document, written, allow_nan=False, indent=1)
        written.write("\n")
    _say(f"{name} is in {file} ({plural(len(document['trials']), 'trial')})")


@app.command(
    "import",
    epilog="**Examples**\n\n`tuner import digits.json`\n\n"
    "`tuner import digits.json --storage postgresql://tuner@db/tuner`",
)
def import_(file: FileArgument, storage: StorageOption = DEFAULT_URL) -> None:
    """Take up a study that was exported. Trials that were running then wait, and run again."""
    try:
        document = read_document(file.read_bytes())
    except OSError as error:
        raise NotFoundError(f"{file}: {error.strerror}") from None
    except DefinitionError as error:
        raise DefinitionError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from None
    StudyManager(storage).import_study(document)
    _say(f"{document.definition.name} is in {safe_url(storage)} ({plural(len(document.trials), 'trial')})")


def _say(line: str) -> None:
    out.print(line, soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """The console script."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    raise_at_termination()
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
            f"there is no database {safe_url(storage)}; `tuner run`, `tuner compare` and `tuner serve` make one"
        )


def _find(
    study: str, storage: str, assignments: Sequence[str]
) -> tuple[StudyManager, StudyDefinition, dict[str, Any]]:
    """The study that is meant, and a point of it. A mistake in either makes neither study nor database."""
    if exists(storage):
        definition = StudyManager(storage).described(study)
    else:
        definition = StudyDefinition.load(find_definition(study))
    given = parse_assignments(assignments, definition.space)
    definition.space.check(given)
    manager = StudyManager(storage)
    manager.create(definition)
    return manager, definition, given


def _planned(definition: StudyDefinition) -> int | None:
    """How many epochs each trial has, if that is the same for all."""
    if definition.objective is None or "epochs" in definition.space:
        return None
    planned = planned_epochs(find_objective(definition.objective), definition.fixed)
    if isinstance(definition.sampler, PopulationSettings):  # a point of one's own begins a member
        return min(definition.sampler.interval, planned or definition.sampler.interval)
    return planned


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _standing(trial: FrozenTrial, others: Sequence[FrozenTrial], definition: StudyDefinition) -> str:
    """The trial's value, and how it stands against those that were complete before."""
    if trial.state is not TrialState.COMPLETE:
        epochs = len(trial.intermediate_values)
        why = trial.user_attrs.get("failure") or trial.user_attrs.get("stopped") or trial.state.name.lower()
        reached = [trial.intermediate_values[e] for e in sorted(trial.intermediate_values)[-1:]]
        at = "".join(f", at {_short(value)}" for value in reached)
        return f"trial {trial.number} ended early ({why}) after {plural(epochs, 'epoch')}{at}"
    if definition.objectives:
        return _standing_on_front(trial, others, definition)
    assert trial.value is not None
    text = f"trial {trial.number}: value {_short(trial.value)}"
    values = [(other.value, other.number) for other in others if other.value is not None]
    if not values:
        return f"{text}, the first of its study"
    sign = 1 if definition.direction == "minimize" else -1
    best, number = min(values, key=lambda pair: sign * pair[0])
    better = sum(sign * value < sign * trial.value for value, _ in values)
    if trial.value == best:
        return f"{text}, as good as the best so far, trial {number}"
    place = "the best so far; before it" if better == 0 else f"place {better + 1} of {len(values) + 1};"
    return f"{text}, {place} the best was {_short(best)} in trial {number}"


def _standing_on_front(trial: FrozenTrial, others: Sequence[FrozenTrial], definition: StudyDefinition) -> str:
    """The trial's values, and whether any that was complete before is better in all."""
    named = zip(definition.objectives, trial.values, strict=True)
    text = f"trial {trial.number}: {', '.join(f'{o.name} {_short(value)}' for o, value in named)}"
    is_best = on_front([other.values for other in [*others, trial]], definition.directions)
    place = "on the Pareto front" if is_best[-1] else "not on the Pareto front"
    return f"{text}; {place}, of {plural(sum(is_best), 'trial')} now"


def _ending(session: Session, trial: FrozenTrial) -> str:
    name = f"{session.ask_tell.definition.name} trial {session.number}"
    if not trial.state.is_finished():
        return f"{name} was given back: whoever asks next runs it again, with the adjustments made so far"
    value = "" if trial.value is None else f" with value {_short(trial.value)}"
    why = f" ({trial.user_attrs['failure']})" if trial.state is TrialState.FAIL else ""
    return f"{name} ended as {trial.state.name.lower()}{why}{value} after {plural(session.epoch, 'epoch')}"


def _point(params: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in params.items())


def _exit(error: TunerError, code: int) -> NoReturn:
    _complain(error)
    sys.exit(code)


def _complain(error: TunerError) -> None:
    for line in str(error).splitlines():
        err.print(f"error: {line}", style="red", soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _progress(manager: StudyManager, members: Sequence[tuple[str, StudyDefinition]]) -> Iterator[RunDisplay]:
    """Shows how the studies get on; yields what to tell of each outcome. Ctrl-C ends the command in words."""
    display = RunDisplay(err, members, manager.studies(archived=True), manager.working)
    try:
        with display:
            yield display
    except KeyboardInterrupt:
        err.print(
            f"Stopped. Finished trials ({display.finished}) are kept; the same command goes on from there."
        )
        raise typer.Exit(130) from None


def _print_where(storage: str) -> None:
    hint = "" if storage == DEFAULT_URL else f" --storage {safe_url(storage)}"
    out.print(f"Dashboard: tuner dashboard{hint}", soft_wrap=True, markup=False, highlight=False)


def _note(trial: FrozenTrial, kept: int | None) -> str:
    """What happened to a trial besides its training: its parameters alone would not give its value."""
    attrs = trial.user_attrs
    notes = [f"goes on after epoch {kept}"] if kept and trial.state is TrialState.WAITING else []
    notes += [str(attrs["failure"])] if "failure" in attrs else []
    if attrs.get("stopped") not in (None, "pruner"):
        notes.append(f"stopped: {attrs['stopped']}")
    made = attrs.get("adjustments", [])
    notes += [f"{entry['name']} {_short(entry['new'])} from epoch {entry['epoch'] + 1}" for entry in made]
    if attrs.get("rewinds"):
        notes.append(f"rewound {len(attrs['rewinds'])}×")
    return "; ".join(notes)


def _best(manager: StudyManager, name: str) -> list[FrozenTrial]:
    if not (found := manager.best(name)):
        raise TunerError(f"{name} has no completed trial to call the best")
    return found


def _is_single(manager: StudyManager, name: str) -> bool:
    """Whether the study has one objective."""
    return len(manager.load(name).directions) == 1


def _print_best(manager: StudyManager, name: str) -> None:
    found = _best(manager, name)
    if not _is_single(manager, name):
        _print_front(manager.load(name), found)
        return
    (trial,) = found
    out.print(f"[bold]{escape(name)}[/bold]: best value {_short(trial.value)} in trial {trial.number}")
    table = Table(box=None, show_header=False)
    for parameter, value in trial.params.items():
        table.add_row(escape(parameter), escape(_short(value)))
    out.print(table)


def _print_front(study: optuna.Study, front: Sequence[FrozenTrial]) -> None:
    """The Pareto front of several objectives, from the best in the first to the worst in it."""
    directions = [direction.name.lower() for direction in study.directions]
    names = study.metric_names or [f"value {place}" for place in range(len(directions))]
    complete = sum(trial.state is TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))
    trials = plural(len(front), "trial")
    out.print(
        f"[bold]{escape(study.study_name)}[/bold]: {trials} of {complete} on the Pareto front; no other is as good in "
        "all objectives and better in one",
        soft_wrap=True,
    )
    params = list(dict.fromkeys(parameter for trial in front for parameter in trial.params))
    table = Table(box=None)
    wanted = (f"{name} ({direction})" for name, direction in zip(names, directions, strict=True))
    for heading in ("trial", *wanted, *params):
        table.add_column(escape(heading), overflow="fold")
    sign = 1 if directions[0] == "minimize" else -1
    for trial in sorted(front, key=lambda trial: sign * trial.values[0]):
        row = [*trial.values, *(trial.params.get(parameter, "") for parameter in params)]
        table.add_row(str(trial.number), *(escape(_short(value)) for value in row))
    out.print(table)


def _study_row(summary: StudySummary) -> list[str]:
    of = f"/{summary.budget}" if summary.budget else ""
    return [
        summary.name,
        summary.status,
        summary.objective or "",
        summary.sampler or "",
        f"{summary.finished}{of}",
        str(summary.trials.get("PRUNED", 0)),
        str(summary.trials.get("FAIL", 0)),
        f"front of {len(summary.front)}" if summary.front else _short(summary.best_value),
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
        "metrics": known_metrics(objective),
    }


def _trial_dict(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": _value(trial),
        "params": known_params(trial),
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


def _told(values: Sequence[float]) -> str:
    """What a trial ended with, in words."""
    word = "value" if len(values) == 1 else "values"
    return f"{word} {', '.join(map(_short, values))}"


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
