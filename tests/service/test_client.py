"""The client against the real API: the same trials as in one process, counted once whatever the network does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from command import Tuner
from optuna.trial import TrialState
from served import LossyProxy, Served, told

from objectives.epoch import Epoch, Hyperparameter
from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer, Reply
from tuner.client import Client, RemoteStudy, RemoteTrial
from tuner.client.client import _Work
from tuner.client.remote import MOST_VALUES, SHORT_PATIENCE
from tuner.errors import (
    AccessDeniedError,
    ConflictError,
    DefinitionError,
    LeaseLostError,
    NotFoundError,
    TunerError,
)
from tuner.ledger import Spent

SPACE = {
    "x": {"low": -10.0, "high": 10.0},
    "decay": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
    "layers": {"type": "int", "low": 1, "high": 4},
    "kind": {"choices": ["flat", "steep", 3, True]},
}


def definition(name: str = "bowl", **more: Any) -> StudyDefinition:
    document = {
        "name": name,
        "budget": {"trials": 30},
        "space": SPACE,
        "sampler": {"name": "tpe", "startup_trials": 6},
        "pruner": {"name": "median", "startup_trials": 4, "warmup_epochs": 1},
    }
    return StudyDefinition.parse({**document, **more})


def function(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    decay = trial.suggest_float("decay", 0.5, 0.999)
    layers = trial.suggest_int("layers", 1, 4)
    kind = trial.suggest_categorical("kind", ["flat", "steep", 3, True])
    trial.set_user_attr("kind", str(kind))
    assert trial.params == {"x": x, "decay": decay, "layers": layers, "kind": kind}
    value = float("inf")
    if trial.number == 11:
        trial.report(float("nan"), 1)
        raise optuna.TrialPruned
    for step in range(1, 6):
        value = (x - 2) ** 2 * decay**step + layers / step
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    if trial.number == 7:
        raise ArithmeticError("on purpose")
    return float("inf") if trial.number == 9 else value


@pytest.fixture
def served(sqlite_url: str) -> Iterator[Served]:
    with Served(sqlite_url) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, "token-of-admin") as opened:
        yield opened


def test_a_function_has_the_same_trials_as_in_one_process(url: str, tmp_path: Path) -> None:
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = [told(trial) for trial in manager.run(definition(), function).trials]
    ended: list[RemoteTrial] = []
    with Served(url) as served, Client(served.url, "token-of-admin") as client:
        study = client.create(definition())
        study.optimize(function, catch=ArithmeticError, callbacks=[lambda _, trial: ended.append(trial)])
        assert repr(ended) == repr(study.trials())
        remote = [told(trial) for trial in served.manager.load("bowl").trials]
    for here, there in zip(local, remote, strict=True):
        assert here[:-1] == there[:-1]
        assert {**here[-1], "traceback": ""} == {**there[-1], "traceback": ""}
    assert remote[11][1:5] == (TrialState.PRUNED, remote[11][2], None, {1: "nan"}), "NaN is no value"
    assert {trial[1] for trial in remote} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert [trial.number for trial in ended] == list(range(30))


def test_jobs_in_threads_end_the_budget_exactly(served: Served, client: Client) -> None:
    study = client.create(definition(budget={"trials": 25, "epochs": 100}))
    study.optimize(function, n_jobs=4, catch=ArithmeticError)
    status = study.status()
    assert (status.status, status.is_finished, status.state) == ("finished", True, "open")
    assert status.counts["running"] == status.counts["waiting"] == 0
    assert status.spent["trials"] == sum(status.counts.values()) <= 25
    reported = sum(len(trial.reports) for trial in study.trials())
    silent = sum(not trial.reports for trial in study.trials())
    assert status.spent["epochs"] == reported + min(silent, 100 - reported) <= 100
    assert status.spent["trials"] == 25 or status.spent["epochs"] == 100


def test_some_trials_and_then_the_rest(client: Client) -> None:
    study = client.create(definition())
    study.optimize(function, n_trials=3)
    assert len(study.trials()) == 3
    study.optimize(function, timeout=0.0)
    assert len(study.trials()) == 3
    study.optimize(function, n_trials=100, catch=ArithmeticError)
    assert len(study.trials()) == 30
    study.optimize(function)
    assert len(study.trials()) == 30


def test_a_turn_that_is_given_back_is_taken_again_whoever_came_in_vain_meanwhile(client: Client) -> None:
    work = _Work(client.create(definition()), function, (), (), left=1, deadline=None)
    assert work._may_begin()
    assert not work._may_begin(), "another job"
    work._give_back_turn()
    assert work._may_begin()


def test_a_trial_whose_answer_was_not_heard_is_given_back_soon(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = client.create(definition())
    side, asked = study.ask_tell, []
    ask = side.ask

    def interrupted(request_id: str, *, patience: float | None = None) -> Any:
        lease = ask(request_id, patience=patience)
        asked.append(patience)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return lease

    monkeypatch.setattr(side, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(function)
    assert asked == [None, SHORT_PATIENCE]
    assert study.trial(0).state == "waiting"


@pytest.mark.parametrize("is_stopped", [True, False])
def test_what_a_person_wants_is_heard_with_any_part_of_a_long_report(
    client: Client, is_stopped: bool
) -> None:
    study = client.create(definition(pruner={"name": "none"}))
    lease = study.ask()
    assert lease is not None
    study.adjust(lease.number, {"x": 0.5})
    if is_stopped:
        study.stop_trial(lease.number)
    reply = study.ask_tell.report_many(lease, dict.fromkeys(range(2 * MOST_VALUES + 1), 1.0))
    assert reply == (
        Reply(Answer.STOP, by="admin") if is_stopped else Reply(Answer.ADJUST, {"x": 0.5}, "admin")
    )


def test_an_objective_of_epochs_is_optimized_too(client: Client, tmp_path: Path) -> None:
    class Walk:
        name, direction, description = "walk", "minimize", "for a test"
        hyperparameters = (Hyperparameter("x", 0.5), Hyperparameter("steps", 3))

        def evaluate(self, params: Any, *, seed: Any, resume: Any = None) -> Iterator[Epoch]:
            for epoch in range(1, params["steps"] + 1):
                yield Epoch(epoch, params["x"] / epoch + seed.trial, {"train_loss": 1 / epoch})

    study_definition = definition("walk", space={"x": SPACE["x"]}, fixed={"steps": 4}, budget={"trials": 5})
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = manager.run(study_definition, Walk()).trials  # type: ignore[arg-type]
    study = client.create(study_definition)
    study.optimize(Walk())  # type: ignore[arg-type]
    assert [(t.value, t.params) for t in study.trials()] == [(t.value, t.params) for t in local]
    assert study.trial(0).user_attrs["train_loss"] == 0.25
    with pytest.raises(DefinitionError, match="no such hyperparameter"):
        client.create(definition("other")).optimize(Walk())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suggest", "reason"),
    [
        (lambda trial: trial.suggest_float("X", -10, 10), r"'X' is not among .*x, decay, layers, kind"),
        (lambda trial: trial.suggest_float("x", -10, 11), r"searches x in Float.*low=-10.*suggests Float"),
        (lambda trial: trial.suggest_float("x", 1e-3, 10, log=True), r"suggests FloatDistribution"),
        (lambda trial: trial.suggest_int("x", -10, 10), r"suggests IntDistribution"),
        (lambda trial: trial.suggest_categorical("kind", ["flat", "steep"]), r"suggests Categorical"),
    ],
)
def test_what_the_study_does_not_search_is_no_trials_fault(client: Client, suggest: Any, reason: str) -> None:
    study = client.create(definition())
    with pytest.raises(DefinitionError, match=reason):
        study.optimize(suggest)
    assert [trial.state for trial in study.trials()] == ["waiting"], "it was given back"


def test_a_study_without_space_cannot_be_optimized_from_here(client: Client) -> None:
    study = client.create(definition("empty", space={}, objective="branin"))
    with pytest.raises(DefinitionError, match="has no space"):
        study.optimize(lambda trial: 0.0)
    with pytest.raises(DefinitionError, match="at least 1"):
        client.create(definition()).optimize(function, n_jobs=0)


def test_what_a_function_raises_is_told_and_raised(client: Client) -> None:
    study = client.create(definition())

    def broken(trial: optuna.Trial) -> float:
        raise KeyError("x" * 100_000)

    with pytest.raises(KeyError, match="xxx"):
        study.optimize(broken)
    assert study.status().counts["fail"] == 1
    assert study.status().counts["running"] == study.status().counts["waiting"] == 0
    trial = study.trial(0)
    assert trial.user_attrs["error_type"] == "KeyError"
    assert len(trial.user_attrs["traceback"]) < 5000
    with pytest.raises(KeyError):
        study.optimize(broken, catch=(ArithmeticError, ValueError))
    with pytest.raises(KeyError):
        study.optimize(broken, n_jobs=2)
    assert study.status().counts["running"] == study.status().counts["waiting"] == 0


def test_what_is_no_number_fails_its_trial_and_no_more(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    study = client.create(definition(budget={"trials": 5}))
    returned = [None, "good", (1.0, 2.0), float("nan"), 1]
    study.optimize(lambda trial: returned[trial.number])  # type: ignore[return-value,arg-type]
    assert [trial.state for trial in study.trials()] == [*["fail"] * 4, "complete"]
    assert [trial.failure for trial in study.trials()][:4] == [
        "the function returned None, which is no number",
        "the function returned 'good', which is no number",
        "the function returned (1.0, 2.0), which is no number",
        "the value is not a number",
    ]
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 4


def test_whoever_waits_for_a_paused_study_is_told(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    study = client.create(definition(budget={"trials": 3}))
    study.pause()
    study.optimize(lambda trial: 1.0, timeout=0.5)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "bowl is paused: waiting until somebody resumes it"
    ]
    assert study.status().counts["complete"] == 0
    with pytest.raises(DefinitionError, match="a token is text; got None"):
        Client("http://127.0.0.1:1", None)  # type: ignore[arg-type]


def test_what_is_caught_is_logged_and_the_next_trial_runs(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    study = client.create(definition(budget={"trials": 8}))
    seen: list[tuple[RemoteStudy, str]] = []

    def broken(trial: optuna.Trial) -> float:
        if trial.number == 6:
            return float("nan")
        raise KeyError(f"reason {trial.number}")

    study.optimize(broken, 7, catch=[LookupError], callbacks=[lambda s, trial: seen.append((s, trial.state))])
    assert seen == [(study, "fail")] * 7, "as many as there are: Optuna does not stop either"
    failures = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "bowl trial 0 failed with parameters {'x': " in failures[0].getMessage()
    assert failures[0].getMessage().endswith("because of: KeyError: 'reason 0'")
    assert failures[0].exc_info is not None
    assert "not a number" in failures[6].getMessage()
    assert failures[6].exc_info is None

    def stop(here: RemoteStudy, trial: RemoteTrial) -> None:
        raise StopIteration(trial.number)

    with pytest.raises(StopIteration, match="7"):
        study.optimize(lambda trial: 0.0, callbacks=[stop])
    with pytest.raises(DefinitionError, match="catch takes classes of exceptions; got 3"):
        study.optimize(function, catch=[3])  # type: ignore[list-item]


def test_a_token_that_is_no_good_any_more_is_no_trials_fault(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = client.create(definition())

    def denied(*_: Any, **__: Any) -> Any:
        raise AccessDeniedError("this token expired")

    monkeypatch.setattr(study.ask_tell, "report", denied)
    with pytest.raises(AccessDeniedError):
        study.optimize(function)
    assert study.trial(0).state == "waiting"


def test_whatever_text_is_raised_ends_the_trial(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "tuner.client")  # tests that run in parallel cannot pass such a text on
    study = client.create(definition())

    def failing(trial: optuna.Trial) -> float:
        raise ValueError("\0 and \ud800")

    study.optimize(failing, n_trials=1, catch=ValueError)
    trial = study.trial(0)
    assert (trial.state, trial.failure) == ("fail", r"ValueError: \0 and \ud800")
    assert study.status().counts["waiting"] == 0


def test_a_trial_with_more_metrics_than_a_service_keeps_has_failed(client: Client) -> None:
    class Talkative:
        name, direction, description = "talkative", "minimize", "for a test"
        hyperparameters = (Hyperparameter("x", 0.5),)

        def evaluate(self, params: Any, *, seed: Any, resume: Any = None) -> Iterator[Epoch]:
            yield Epoch(1, 1.0, metrics={f"metric {k}": 1.0 for k in range(300)})

    study = client.create(definition(space={"x": {"low": 0.0, "high": 1.0}}, pruner={"name": "none"}))
    study.optimize(Talkative(), n_trials=1, catch=DefinitionError)
    trial = study.trial(0)
    assert (trial.state, trial.user_attrs["error_type"]) == ("fail", "DefinitionError")
    assert "at most 256 attributes" in str(trial.failure)


def test_studies_are_created_once(client: Client) -> None:
    client.create(definition())
    assert client.create(definition()).name == "bowl"
    with pytest.raises(ConflictError, match="another budget"):
        client.create(definition(budget={"trials": 3}))
    with pytest.raises(DefinitionError, match="budget"):
        client.create({"name": "odd", "budget": {"trials": -1}})
    with pytest.raises(NotFoundError):
        client.study("absent")


def test_a_trial_by_hand(client: Client) -> None:
    study = client.create(definition())
    waiting = study.enqueue({"x": 1.5}, {"why": "a guess"})
    assert waiting.state == "waiting"
    with pytest.raises(DefinitionError, match="x must lie in"):
        study.enqueue({"x": 99.0})
    lease = study.ask("first")
    assert lease is not None
    assert lease.params["x"] == 1.5
    assert study.ask("first") == lease, "the same request"
    with study.keep(lease):
        assert study.report(lease, 1, 3.0).answer is Answer.CONTINUE
        assert study.report(lease, 1, 3.0).answer is Answer.CONTINUE
        with pytest.raises(ConflictError, match="was reported for epoch 1 before"):
            study.report(lease, 1, 4.0)
        study.adjust(lease.number, {"x": 2.0})
        assert study.heartbeat(lease).answer is Answer.ADJUST
        reply = study.report(lease, 2, float("inf"))
        assert (reply.answer, dict(reply.adjustment), reply.by) == (Answer.ADJUST, {"x": 2.0}, "admin")
        study.stop_trial(lease.number)
        assert study.report(lease, 3, float("nan")).answer is Answer.STOP
    assert study.tell(lease, 2.5, attrs={"note": "äöü"}) == "complete"
    assert study.tell(lease, 2.5, attrs={"note": "äöü"}) == "complete", "the same again"
    with pytest.raises(ConflictError):
        study.tell(lease, 2.6)
    with pytest.raises(LeaseLostError):
        study.release(lease)
    with pytest.raises(DefinitionError, match="as complete, pruned or fail"):
        study.tell(lease, 1.0, state="done")
    with pytest.raises(DefinitionError, match="needs a number"):
        study.tell(lease)
    with pytest.raises(NotFoundError):
        study.trial(99)
    trial = study.trial(lease.number)
    assert (trial.state, trial.value, trial.user_attrs) == (
        "complete",
        2.5,
        {"why": "a guess", "note": "äöü"},
    )
    assert [report.value for report in trial.reports][:2] == [3.0, float("inf")]


def test_what_a_person_does_with_a_study(client: Client) -> None:
    study = client.create(definition())
    done = study.ask()
    assert done is not None
    study.tell(done, 1.0)
    given_back = study.ask()
    assert given_back is not None
    study.release(given_back)
    assert [t.number for t in study.trials("waiting")] == [1]
    assert study.best().number == 0
    assert study.pause().state == "paused"
    assert study.ask() is None
    assert study.ask_tell.state == "paused"
    assert study.resume().state == "open"
    again = study.ask()
    assert again is not None
    assert again.number == 1
    assert study.stop().state == "stopped"
    assert study.report(again, 1, 1.0).answer is Answer.STOP
    study.tell(again, 1.0, state="pruned")
    study.archive()
    assert client.studies() == []
    assert [status.name for status in client.studies(archived=True)] == ["bowl"]
    study.archive(undo=True)
    assert [status.name for status in client.studies()] == ["bowl"]


@pytest.mark.long
def test_a_study_moves_to_another_service(client: Client, tmp_path: Path) -> None:
    study = client.create(definition())
    study.optimize(function, n_trials=12, catch=ArithmeticError)
    document = study.export()
    with pytest.raises(ConflictError):
        client.import_study(document)
    with Served(f"sqlite:///{tmp_path}/other.db") as other, Client(other.url, "token-of-operator") as there:
        moved = there.import_study(document)
        assert repr(moved.trials()) == repr(study.trials())
        assert moved.status().definition == study.status().definition
        moved.optimize(function)
        assert len(moved.trials()) == 30
        assert set(moved.importances()) == set(SPACE)


def test_a_best_trial_needs_a_completed_one(client: Client) -> None:
    with pytest.raises(TunerError, match="no completed trial"):
        client.create(definition()).best()


def test_lists_come_in_pages(client: Client) -> None:
    for number in range(3):
        client.create(definition(f"study-{number}"))
    transport = client.transport
    pages = [transport.get("/v1/studies", page_size=2)]
    assert pages[0]["next_page_token"]
    assert len(client.studies()) == 3


@pytest.mark.parametrize(
    ("token", "may"),
    [
        ("token-of-viewer", "look"),
        ("token-of-worker", "work"),
        ("token-of-operator", "create"),
        ("other", ""),
    ],
)
def test_what_a_token_may(served: Served, client: Client, token: str, may: str) -> None:
    client.create(definition())
    order = ["look", "work", "create"]
    with Client(served.url, token) as mine:
        study = RemoteStudy(mine.transport, "bowl")
        verbs = {
            "look": study.status,
            "work": study.ask,
            "create": lambda: mine.create(definition("another")),
        }
        for number, verb in enumerate(order):
            if may and number <= order.index(may):
                verbs[verb]()
            else:
                with pytest.raises(AccessDeniedError) as caught:
                    verbs[verb]()
                assert token not in str(caught.value).split()


def test_a_network_that_swallows_answers_changes_no_count(served: Served) -> None:
    """What was told is told once, and each trial ran once: a request that is tried again is the same request."""
    told_to: list[int] = []
    lock = threading.Lock()

    def noting(trial: optuna.Trial) -> float:
        with lock:
            told_to.append(trial.number)
        return function(trial)

    with LossyProxy(served.port, loses=0.2) as proxy, Client(proxy.url, "token-of-admin") as client:
        study = client.create(definition())
        study.optimize(noting, n_jobs=3, catch=ArithmeticError)
        status = study.status()
        assert proxy.swallowed >= 20
    assert sorted(told_to) == list(range(30)), "nothing ran twice"
    trials = served.manager.load("bowl").trials
    assert sum(len(trial.intermediate_values) for trial in trials) == status.spent["epochs"]
    assert status.spent["trials"] == status.spent["ended"] == 30
    assert served.manager.ask_tell("bowl").open_leases() == []


def test_clients_go_on_when_the_service_is_started_again(served: Served, client: Client) -> None:
    study = client.create(definition())
    began = threading.Event()
    went_on = threading.Event()

    def slow(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", -10, 10)
        for step in (1, 2):
            trial.report(value, step)
            if trial.number == 2 and step == 1:
                began.set()
                went_on.wait(60)
        return value

    thread = threading.Thread(target=study.optimize, args=(slow, 5), daemon=True)
    thread.start()
    assert began.wait(60)
    served.stop()
    went_on.set()
    time.sleep(0.5)  # some calls find nobody
    served.start()
    thread.join(60)
    assert not thread.is_alive()
    assert served.manager.ask_tell("bowl").spent() == Spent(
        trials=5, ended=5, epochs=10, seconds=served.manager.ask_tell("bowl").spent().seconds
    )


SCRIPT = """
import sys, time
from tuner.client import Client

def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    for step in range(1, 10_000):
        trial.report(x, step)
        print(step, flush=True)
        time.sleep(0.05)
    return x

client = Client(sys.argv[1], "token-of-worker")
try:
    client.study("bowl").optimize(objective)
finally:
    print("left", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_stop_gives_the_trial_back(
    served: Served, client: Client, number: signal.Signals, code: int
) -> None:
    study = client.create(definition(pruner={"name": "none"}))
    command = [sys.executable, "-c", SCRIPT, served.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        os.kill(process.pid, number)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == code
    assert rest.endswith("left\n")
    trial = study.trial(0)
    assert (trial.state, trial.reports) == ("waiting", [])
    lease = study.ask()
    assert lease is not None
    assert (lease.number, lease.attempt) == (0, 1), "no attempt is held against it"


def test_the_command_line_has_the_verbs_too(
    served: Served, client: Client, tuner: Tuner, tmp_path: Path
) -> None:
    study = client.create(definition())
    (tmp_path / "token").write_text("token-of-operator\n")
    service = ("--url", served.url, "--token-file", "token")
    for arguments, state in (
        (["pause", "bowl"], "paused"),
        (["resume", "bowl"], "open"),
        (["stop", "bowl"], "stopped"),
        (["archive", "bowl"], "archived"),
        (["archive", "bowl", "--undo"], "stopped"),
    ):
        code, out, err = tuner(*arguments, *service)
        assert (code, err) == (0, "")
        assert out.startswith(f"bowl is {state}: ")
        assert study.status().state == state
    assert tuner("resume", "bowl", *service)[0] == 0
    lease = study.ask()
    assert lease is not None
    assert tuner("adjust", "bowl", "0", "x=1.5", *service)[0] == 0
    assert study.report(lease, 1, 1.0).adjustment == {"x": 1.5}
    assert tuner("stop", "bowl", "0", *service)[1] == "bowl trial 0 ends after its next report\n"
    assert study.report(lease, 2, 1.0).answer is Answer.STOP
    (tmp_path / "token").write_text("token-of-worker")
    for arguments, code, says in (
        (["pause", "absent", "--url", served.url], 2, "--url needs --token-file"),
        (["pause", "bowl", *service], 1, "this needs the role operator"),
        (["pause", "bowl", "--url", "http://tuner.example.com", "--token-file", "token"], 2, "--allow-http"),
    ):
        got, _, err = tuner(*arguments)
        assert (got, len(err.splitlines())) == (code, 1)
        assert says in err
