"""API keys: the secret is shown once and kept nowhere; revoked, expired and wrong ones open nothing."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from lorimer.database import open_database
from lorimer.errors import AccessError, NotFoundError, UsageError
from lorimer.registry.audit import read_audit
from lorimer.registry.registry import Registry
from lorimer.registry.schema import api_keys, audit, tenants
from lorimer.serving import keys as keys_module
from lorimer.serving.grants import Grant, Quota, describe_quota
from lorimer.serving.keys import KEY_PATTERN, Keys, NewKey

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Clock:
    """A time that moves when told to."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def registry(database: str) -> Iterator[Registry]:
    engine = open_database()
    yield Registry(engine)
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(registry: Registry, clock: Clock) -> Keys:
    return Keys(registry.engine, clock=clock)


def make(keys: Keys, name: str = "acme", *, grant: Grant | None = None, **fields: Any) -> NewKey:
    return keys.create(name, **{"tenant": "acme", "grant": grant or Grant(), **fields})


@pytest.mark.parametrize(
    ("adapters", "name", "version", "is_allowed"),
    [
        (("*",), "helpdesk", 1, True),
        (("helpdesk",), "helpdesk", 1, True),
        (("helpdesk",), "helpdesk", 7, True),
        (("helpdesk",), "helpdesk2", 1, False),
        (("helpdesk",), "help", 1, False),
        (("helpdesk@v1",), "helpdesk", 1, True),
        (("helpdesk@v1",), "helpdesk", 11, False),
        (("helpdesk@v1", "sql"), "sql", 3, True),
        ((), "helpdesk", 1, False),
    ],
)
def test_grant_allows_names_and_versions(adapters: tuple[str, ...], name: str, version: int, is_allowed: bool) -> None:
    assert Grant(adapters=adapters).allows(name, version) is is_allowed


def test_key_is_found_again_as_it_was_made(keys: Keys) -> None:
    grant = Grant(adapters=("helpdesk", "sql@v3"), may_use_base=False, is_admin=True, max_context=400, max_body_bytes=9000)
    quota = Quota(requests_per_minute=60, tokens_per_minute=20_000, concurrency=4)
    new = make(keys, "app", grant=grant, quota=quota, days=30, actor="ada")
    assert keys.authenticate(new.text) == keys.find(new.key.prefix) == keys.list_keys()[0] == new.key
    assert (new.key.name, new.key.tenant, new.key.grant, new.key.quota, new.key.created_by) == ("app", "acme", grant, quota, "ada")
    assert (new.key.created_at, new.key.expires_at) == ("2026-11-22T12:00:00+00:00", "2026-12-22T12:00:00+00:00")
    assert new.key.caller.key_prefix == new.key.prefix


def test_secret_is_random_and_kept_nowhere(keys: Keys, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = [make(keys) for _ in range(20)]
    assert all(KEY_PATTERN.fullmatch(new.text) for new in made)
    assert len({new.text for new in made}) == len({new.key.prefix for new in made}) == 20
    secret = made[0].text.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    keys.authenticate(made[0].text)
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    with keys.engine.connect() as connection:  # the database may be elsewhere than in the home
        kept += b"".join(repr(connection.execute(select(table)).all()).encode() for table in (api_keys, tenants, audit))
    for spelling in (secret.encode(), bytes.fromhex(secret)):
        assert spelling not in kept
    assert hashlib.sha256(made[0].text.encode()).hexdigest().encode() in kept
    assert secret not in caplog.text + repr(made[0]) + str(made[0].key.to_json()) + str(read_audit(keys.engine))


def wrong_secret(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_secret, "is not known to this server"),
        (lambda text: text.replace(text.split("_")[1], "0" * 12), "is not known to this server"),
        (lambda text: text[:-1], "is not one of this server's"),
        (lambda text: text + "0", "is not one of this server's"),
        (lambda text: text.upper(), "is not one of this server's"),
        (lambda text: f"{text}\n", "is not one of this server's"),
        (lambda text: "sk-1234", "is not one of this server's"),
        (lambda text: "", "is not one of this server's"),
    ],
)
def test_wrong_key_opens_nothing(keys: Keys, spoil: Callable[[str], str], said: str) -> None:
    new = make(keys)
    with pytest.raises(AccessError, match=said) as caught:
        keys.authenticate(spoil(new.text))
    assert new.text.rpartition("_")[2][:8] not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=100) | st.from_regex(KEY_PATTERN, fullmatch=True))
def test_no_stranger_text_opens(keys: Keys, text: str) -> None:
    with pytest.raises(AccessError):
        keys.authenticate(text)


@pytest.mark.parametrize("is_known", [True, False])
def test_digests_are_compared_in_constant_time(keys: Keys, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """Once for every key, whether its prefix is known or not, and on all of the two digests."""
    new, compared = make(keys), []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("lorimer.serving.keys.hmac.compare_digest", compare)
    text = wrong_secret(new.text) if is_known else new.text.replace(new.key.prefix, "0" * 12)
    with pytest.raises(AccessError):
        keys.authenticate(text)
    assert compared == [(64, 64)]


def test_revoked_key_is_refused_at_once_and_for_good(keys: Keys, clock: Clock) -> None:
    new = make(keys)
    clock.at += timedelta(hours=1)
    revoked = keys.revoke(new.key.prefix, actor="ada")
    assert revoked.state(keys.now) == "revoked"
    with pytest.raises(AccessError, match=rf"{new.key.prefix}' was revoked \(2026-11-22T13"):
        keys.authenticate(new.text)
    clock.at += timedelta(hours=1)
    assert keys.revoke(new.key.prefix) == revoked
    assert keys.exist()
    assert [(entry.action, entry.subject) for entry in read_audit(keys.engine)] == [("create_key", "acme"), ("revoke_key", "acme")]
    assert read_audit(keys.engine)[1].actor == "ada"


def test_key_expires(keys: Keys, clock: Clock) -> None:
    new = make(keys, days=1)
    clock.at += timedelta(days=1, seconds=-1)
    keys.authenticate(new.text)
    clock.at += timedelta(seconds=1)
    with pytest.raises(AccessError, match="has expired"):
        keys.authenticate(new.text)
    assert new.key.state(keys.now) == "expired"


def test_last_use_is_kept_roughly(keys: Keys, clock: Clock) -> None:
    new = make(keys)
    noted = []
    for seconds in (0, 10, 49, 1, 59, 1):
        clock.at += timedelta(seconds=seconds)
        key = keys.authenticate(new.text)
        if keys.is_use_new(key):
            keys.note_use(key)
            noted.append((clock.at - START).seconds)
    assert noted == [0, 60, 120]
    assert keys.find(new.key.prefix).last_used_at == "2026-11-22T12:02:00+00:00"
    assert not Keys(keys.engine, clock=clock).is_use_new(keys.find(new.key.prefix))


def test_key_is_found_by_prefix_name_or_the_key_itself(keys: Keys) -> None:
    new, other = make(keys, "app"), make(keys, "batch")
    for reference in (new.key.prefix, new.key.prefix[:8], "app", new.text):
        assert keys.find(reference) == new.key
    with pytest.raises(NotFoundError, match="no key 'nobody'"):
        keys.find("nobody")
    with pytest.raises(NotFoundError) as caught:
        keys.find(other.text.replace(other.key.prefix, "0" * 12))
    assert other.text.rpartition("_")[2] not in str(caught.value)


def test_name_of_several_keys_is_the_one_in_force_or_ambiguous(keys: Keys) -> None:
    first, second = make(keys, "app"), make(keys, "app")
    with pytest.raises(UsageError, match="fits 2 keys"):
        keys.revoke("app")
    keys.revoke(first.key.prefix)
    assert keys.find("app") == second.key


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Acme!"}, "'Acme!' cannot name a key"),
        ({"tenant": "a/b"}, "'a/b' cannot name a tenant"),
        ({"grant": Grant(adapters=("../etc",))}, "'../etc' does not name adapters"),
        ({"grant": Grant(adapters=("sql@champion",))}, "'sql@champion' does not name adapters"),
        ({"grant": Grant(adapters=("sql@v0",))}, "'sql@v0' does not name adapters"),
        ({"grant": Grant(adapters=("base",))}, "`--base` allows the base"),
        ({"grant": Grant(adapters=(), may_use_base=False)}, "may use nothing"),
        ({"grant": Grant(max_context=0)}, "max_context is 0"),
        ({"quota": Quota(requests_per_minute=0)}, "requests_per_minute is 0"),
        ({"quota": Quota(concurrency=-1)}, "concurrency is -1"),
        ({"quota": Quota(tokens_per_minute=2**40)}, "tokens_per_minute is"),
        ({"days": 0}, "after 0 days"),
    ],
)
def test_what_cannot_be_is_refused(keys: Keys, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(keys, **fields)
    assert said in str(caught.value)
    assert not keys.exist()


def test_all_problems_are_told_at_once(keys: Keys) -> None:
    with pytest.raises(UsageError, match=r"'A B' cannot.*; 'x y' does not name.*; concurrency is 0"):
        make(keys, "A B", grant=Grant(adapters=("x y",)), quota=Quota(concurrency=0))


def test_quota_is_the_tenants_not_the_keys(keys: Keys) -> None:
    first = make(keys, quota=Quota(requests_per_minute=60))
    second = make(keys)
    make(keys, "same", quota=Quota(requests_per_minute=60))
    assert first.key.quota == second.key.quota == Quota(requests_per_minute=60)
    with pytest.raises(UsageError, match=r"'acme' has 60 requests/min already.*`lorimer keys limit acme`"):
        make(keys, quota=Quota(requests_per_minute=600))
    before = keys.limit("acme", Quota(requests_per_minute=600, concurrency=2))
    assert before == Quota(requests_per_minute=60)
    assert {key.quota for key in keys.list_keys()} == {Quota(requests_per_minute=600, concurrency=2)}
    assert read_audit(keys.engine)[-1].details["after"]["requests_per_minute"] == 600


def test_unknown_tenant_has_no_quota(keys: Keys) -> None:
    for ask in (lambda: keys.quota("nobody"), lambda: keys.limit("nobody", Quota())):
        with pytest.raises(NotFoundError, match="no tenant 'nobody'"):
            ask()


def test_quota_in_words() -> None:
    assert describe_quota(Quota(requests_per_minute=60, tokens_per_minute=20_000, concurrency=4)) == (
        "60 requests/min, 20,000 tokens/min, 4 at once"
    )
    assert describe_quota(Quota()) == "no limits"


def test_two_first_keys_of_a_tenant_at_the_same_time_are_both_made(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the database lets two writers in at once (PostgreSQL), the second saw no tenant, and then finds it there."""
    make(keys, "first", quota=Quota(concurrency=3))
    read, looks = keys_module._read_quota, iter([True])

    def look_too_early(connection: Any, tenant: str) -> Quota | None:
        return None if next(looks, False) else read(connection, tenant)

    monkeypatch.setattr(keys_module, "_read_quota", look_too_early)
    second = make(keys, "second")
    assert second.key.quota == Quota(concurrency=3)
    assert keys.authenticate(second.text).name == "second"
    assert [entry.action for entry in read_audit(keys.engine)].count("create_key") == 2
    looks = iter([True])
    with pytest.raises(UsageError, match="has 3 at once already"):
        make(keys, "third", quota=Quota(concurrency=4))
