"""Tokens: kept as digests only, good until they expire or are revoked, here at once and elsewhere within seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tuner.errors import ConflictError, DefinitionError, NotFoundError
from tuner.schema import open_storage
from tuner.service.auth import LOGIN_SECONDS, REMEMBERED_SECONDS, USE_SECONDS, Attempts, TokenRequest, Tokens
from tuner.service.identity import Identity, Role
from tuner.storage import Database
from tuner.tables import TokenRow


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = open_storage(url)
    yield opened
    opened.close()


@pytest.fixture
def process(database: Database, clock: Clock) -> Iterator[Callable[[], Tokens]]:
    """Opens the tokens as one more process of the service does."""
    opened: list[Tokens] = []

    def process() -> Tokens:
        opened.append(Tokens(database, clock=clock))
        return opened[-1]

    yield process
    for tokens in opened:
        tokens.close()


@pytest.fixture
def tokens(process: Callable[[], Tokens]) -> Tokens:
    return process()


def test_a_token_is_known_by_name_role_and_prefix(tokens: Tokens) -> None:
    text, info = tokens.create("worker-7", Role.WORKER, prefix="team-a.")
    assert re.fullmatch(r"tuner_[0-9a-f]+_[0-9a-f]{64}", text)
    assert tokens.verify(text) == Identity("worker-7", Role.WORKER, "team-a.")
    assert [(t.id, t.name, t.role, t.prefix) for t in tokens.all()] == [
        (info.id, "worker-7", "worker", "team-a.")
    ]


def test_the_database_does_not_hold_the_secret(tokens: Tokens, database: Database) -> None:
    text, _ = tokens.create("a", Role.VIEWER)
    login = tokens.log_in(text)
    assert login is not None
    with database.transaction() as session:
        stored = repr(session.execute(sa.select(TokenRow.__table__)).all())
    assert text.rpartition("_")[2] not in stored
    assert login.rpartition("_")[2] not in stored


def test_the_same_request_gets_the_same_token(process: Callable[[], Tokens], clock: Clock) -> None:
    def ask(tokens: Tokens) -> tuple[str, str]:
        text, info = tokens.create("gpu", Role.WORKER, prefix="a.", expires_in=0.1, request=request)
        return text, info.id

    request = TokenRequest("tuner_1_2", "5f1c")
    here, elsewhere = process(), process()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, [here, elsewhere] * 4))
    clock.sleep(1e6)
    assert {ask(here)} == found
    [(text, token_id)] = found
    assert re.fullmatch(r"tuner_[0-9a-f]{12}_[0-9a-f]{64}", text)
    assert [token.id for token in here.all()] == [token_id]
    for other in (
        {"name": "gpu-2", "role": Role.WORKER, "prefix": "a.", "expires_in": 0.1},
        {"name": "gpu", "role": Role.VIEWER, "prefix": "a.", "expires_in": 0.1},
        {"name": "gpu", "role": Role.WORKER, "prefix": "", "expires_in": 0.1},
        {"name": "gpu", "role": Role.WORKER, "prefix": "a.", "expires_in": None},
    ):
        with pytest.raises(ConflictError, match="another token was asked for under this Idempotency-Key"):
            here.create(**other, request=request)  # type: ignore[arg-type]
    assert len(here.all()) == 1


def test_nobody_finds_out_what_another_database_would_give(tokens: Tokens, tmp_path: Path) -> None:
    request = TokenRequest("tuner_1_2", "5f1c")
    other = open_storage(f"sqlite:///{tmp_path}/other.db")
    with closing(other), closing(Tokens(other)) as there:
        assert there.create("gpu", Role.WORKER, request=request) != tokens.create(
            "gpu", Role.WORKER, request=request
        )
        assert [token.name for token in there.all()] == ["gpu"]  # its secret is not shown


def test_another_request_gets_another_token(tokens: Tokens) -> None:
    requests = [TokenRequest(*asked) for asked in (("Bearer a", "1"), ("Bearer a", "2"), ("Bearer b", "1"))]
    made = [tokens.create("gpu", Role.WORKER, request=request) for request in (*requests, None, None)]
    assert len({text for text, _ in made}) == len({info.id for _, info in made}) == 5


def test_what_was_revoked_does_not_come_back_with_the_request(tokens: Tokens) -> None:
    request = TokenRequest("Bearer a", "1")
    text, info = tokens.create("gpu", Role.WORKER, request=request)
    tokens.revoke(info.id)
    again, info = tokens.create("gpu", Role.WORKER, request=request)
    assert again == text
    assert info.revoked is not None
    assert tokens.verify(text) is None


def test_nothing_but_the_token_itself_is_good(tokens: Tokens) -> None:
    text, info = tokens.create("a", Role.ADMIN)
    other, _ = tokens.create("b", Role.ADMIN)
    secret = text.rpartition("_")[2]
    for wrong in (
        "",
        secret,
        text[:-1],
        text + "0",
        text + "\n",
        text.upper(),
        f"tuner_{info.id}_{other.rpartition('_')[2]}",
        f"tuner_{info.id}_{'0' * 64}",
        f"tuner_{info.id}-{info.id}_{secret}",
        "tuner_%_" + secret,
        "é" * 80,
    ):
        assert tokens.verify(wrong) is None
        assert tokens.verify_login(wrong) is None
        assert tokens.remembered(wrong) is None


def test_no_credentials_by_default_and_the_first_is_made_once(
    process: Callable[[], Tokens], tokens: Tokens
) -> None:
    assert tokens.all() == []
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: process().create_first(), range(4)))
    [first] = [text for text in made if text is not None]
    assert tokens.verify(first) == Identity("admin", Role.ADMIN)
    tokens.revoke(tokens.all()[0].id)
    assert tokens.create_first() is None  # whoever locked himself out has the command line


PROVIDED = f"tuner_{'a' * 12}_{'b' * 64}"


def test_a_token_from_a_file_is_let_in_and_its_successor_takes_its_place(
    process: Callable[[], Tokens], database: Database
) -> None:
    tokens, elsewhere = process(), process()
    for _ in range(2):  # as at each start
        assert tokens.provide(Role.WORKER, PROVIDED).name == "provided-worker"
    assert elsewhere.verify(PROVIDED) == Identity("provided-worker", Role.WORKER)
    assert len(tokens.all()) == 1
    by_hand = tokens.create("by-hand", Role.WORKER)[0]
    tokens.provide(Role.ADMIN, admin := f"tuner_{'c' * 12}_{'d' * 64}")
    tokens.provide(Role.WORKER, successor := f"tuner_{'e' * 12}_{'f' * 64}")
    assert tokens.verify(PROVIDED) is None
    assert all(tokens.verify(text) is not None for text in (by_hand, admin, successor))
    with database.transaction() as session:
        assert "b" * 64 not in repr(session.execute(sa.select(TokenRow.__table__)).all())


def test_a_provided_token_that_was_revoked_stays_so(tokens: Tokens) -> None:
    tokens.revoke(tokens.provide(Role.ADMIN, PROVIDED).id)
    assert tokens.provide(Role.ADMIN, PROVIDED).revoked is not None
    assert tokens.verify(PROVIDED) is None


def test_an_old_file_does_not_revoke_the_new_token(tokens: Tokens) -> None:
    """One of several services, started again with the secret as it was before, locks nobody out."""
    tokens.provide(Role.ADMIN, PROVIDED)
    tokens.provide(Role.ADMIN, successor := f"tuner_{'e' * 12}_{'f' * 64}")
    assert tokens.provide(Role.ADMIN, PROVIDED).revoked is not None
    assert tokens.verify(PROVIDED) is None
    assert tokens.verify(successor) is not None


@pytest.mark.parametrize("text", ["", "secret", PROVIDED[:-1], PROVIDED.upper(), f"{PROVIDED}\n{PROVIDED}"])
def test_what_is_no_token_is_not_provided(tokens: Tokens, text: str) -> None:
    with pytest.raises(DefinitionError, match="a token reads tuner_ID_SECRET"):
        tokens.provide(Role.ADMIN, text)
    assert tokens.all() == []


def test_a_provided_token_takes_nobody_elses_id_or_role(tokens: Tokens) -> None:
    tokens.provide(Role.WORKER, PROVIDED)
    for role, text in ((Role.ADMIN, PROVIDED), (Role.WORKER, f"tuner_{'a' * 12}_{'c' * 64}")):
        with pytest.raises(ConflictError, match="there is another token of the id aaaaaaaaaaaa"):
            tokens.provide(role, text)
    assert [token.role for token in tokens.all()] == ["worker"]


def test_revoked_here_at_once_and_elsewhere_within_seconds(
    process: Callable[[], Tokens], clock: Clock
) -> None:
    here, elsewhere = process(), process()
    text, info = here.create("a", Role.WORKER)
    login = here.log_in(text)
    assert login is not None
    for tokens in (here, elsewhere):
        assert tokens.verify(text) is not None
        assert tokens.verify_login(login) is not None
        assert tokens.remembered(text) == tokens.verify(text)
    here.revoke(info.id)
    assert here.remembered(text) is here.verify(text) is None
    assert here.remembered(login) is here.verify_login(login) is None
    clock.sleep(REMEMBERED_SECONDS)
    assert elsewhere.remembered(text) is elsewhere.verify(text) is None
    assert elsewhere.remembered(login) is elsewhere.verify_login(login) is None
    first = here.all()[0].revoked
    here.revoke(info.id)
    assert here.all()[0].revoked == first


def test_an_expired_token_is_no_good_even_where_it_is_remembered(tokens: Tokens, clock: Clock) -> None:
    text, _ = tokens.create("a", Role.WORKER, expires_in=1.0)
    login = tokens.log_in(text)
    assert login is not None
    assert tokens.verify(text) is not None
    assert tokens.verify_login(login) is not None
    clock.sleep(1.0)
    assert tokens.remembered(text) is tokens.verify(text) is None
    assert tokens.remembered(login) is tokens.verify_login(login) is None
    assert tokens.log_in(text) is None


def test_a_log_in_ends_by_itself_or_by_logging_out(tokens: Tokens, clock: Clock, database: Database) -> None:
    text, _ = tokens.create("a", Role.OPERATOR, prefix="x")
    first, second = tokens.log_in(text), tokens.log_in(text)
    assert first is not None
    assert second is not None
    assert tokens.verify_login(first) == Identity("a", Role.OPERATOR, "x")
    assert tokens.verify(first) is None  # it is for the cookie only
    assert tokens.verify_login(text) is None
    tokens.log_out(first)
    assert tokens.remembered(first) is tokens.verify_login(first) is None
    assert tokens.verify_login(second) is not None
    clock.sleep(LOGIN_SECONDS)
    assert tokens.remembered(second) is tokens.verify_login(second) is None
    assert tokens.log_in(text) is not None  # and old ones are swept up
    with database.transaction() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(TokenRow)) == 2
    assert len(tokens.all()) == 1


def test_only_the_log_in_itself_logs_out(tokens: Tokens) -> None:
    text, _ = tokens.create("a", Role.VIEWER)
    login = tokens.log_in(text)
    assert login is not None
    tokens.log_out(f"{login.partition('_')[0]}_{'0' * 64}")
    tokens.log_out(text)
    tokens.log_out("nonsense")
    assert tokens.verify_login(login) is not None


def test_last_use_is_written_once_a_minute(process: Callable[[], Tokens], clock: Clock) -> None:
    def used(text: str) -> float | None:
        tokens = process()
        assert tokens.verify(text) is not None
        tokens.close()  # waits until it is written
        seen = tokens.all()[0].last_used
        return None if seen is None else seen.timestamp()

    text, _ = process().create("a", Role.WORKER)
    began = clock.now
    assert process().all()[0].last_used is None
    assert used(text) == began
    clock.sleep(USE_SECONDS - 1)
    assert used(text) == began
    clock.sleep(1)
    assert used(text) == began + USE_SECONDS


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"name": ""}, "name is 1 to 128"),
        ({"name": "a\nb"}, "name is 1 to 128"),
        ({"name": "x" * 129}, "name is 1 to 128"),
        ({"prefix": "%"}, "no study's name begins"),
        ({"prefix": "a", "role": Role.ADMIN}, "no prefix"),
        ({"expires_in": 0.0}, "more than 0"),
        ({"expires_in": float("nan")}, "more than 0"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(
    tokens: Tokens, settings: dict[str, object], rule: str
) -> None:
    with pytest.raises(DefinitionError, match=rule):
        tokens.create(**{"name": "a", "role": Role.WORKER, **settings})  # type: ignore[arg-type]
    assert tokens.all() == []


def test_revoking_what_is_not_there(tokens: Tokens) -> None:
    text, _ = tokens.create("a", Role.WORKER)
    login = tokens.log_in(text)
    assert login is not None
    for wrong in ("nobody", "%", login.partition("_")[0]):
        with pytest.raises(NotFoundError, match=re.escape(wrong)):
            tokens.revoke(wrong)


def test_too_many_failures_from_one_address_wait(clock: Clock) -> None:
    attempts = Attempts(each=3, in_all=100, seconds=60, clock=clock)
    for _ in range(3):
        assert attempts.begin("10.0.0.1") == 0
        clock.sleep(10)
    assert attempts.begin("10.0.0.1") == 30
    assert attempts.begin("10.0.0.2") == 0
    clock.sleep(30)
    assert attempts.begin("10.0.0.1") == 0


def test_too_many_failures_from_all_addresses_wait(clock: Clock) -> None:
    attempts = Attempts(each=3, in_all=5, seconds=60, clock=clock)
    for i in range(5):
        assert attempts.begin(f"10.0.0.{i}") == 0
    assert attempts.begin("10.0.1.1") == 60


def test_those_that_succeed_do_not_count(clock: Clock) -> None:
    attempts = Attempts(each=3, clock=clock)
    for _ in range(20):
        assert attempts.begin("10.0.0.1") == 0
        attempts.succeeded("10.0.0.1")
    attempts.succeeded("10.0.0.9")


def test_an_ipv6_network_is_one_address(clock: Clock) -> None:
    attempts = Attempts(each=2, clock=clock)
    assert attempts.begin("2001:db8::1") == attempts.begin("2001:db8::2") == 0
    assert attempts.begin("2001:db8::ffff:3") > 0
    assert attempts.begin("2001:db8:0:1::1") == 0


def test_the_log_of_sql_shows_no_token(tmp_path: Path) -> None:
    database = open_storage(f"sqlite:///{tmp_path}/t.db")
    seen: list[str] = []
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda *given: seen.append(repr((given[2], given[3])))
    )
    tokens = Tokens(database)
    text, _ = tokens.create("a", Role.WORKER)
    tokens.verify(text)
    tokens.close()
    database.close()
    assert seen
    assert not any(text.rpartition("_")[2] in statement for statement in seen)
