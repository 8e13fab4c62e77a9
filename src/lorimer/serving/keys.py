"""API keys: made, shown once, found by their public prefix, revoked; and what the tenant behind one may take. It knows nothing of HTTP.

A key reads `lorimer_<prefix>_<secret>`: the prefix names it in lists and logs, the secret is 32 random bytes, and what is kept is SHA-256
of the whole. Slow hashes (bcrypt, argon2) are for passwords, which people choose and others can guess; nobody guesses 256 random bits,
however fast the hash, and a slow one would be paid for by every request.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, RowMapping, Select, insert, select, update
from sqlalchemy.exc import IntegrityError as UniqueViolation

from lorimer.database import begin_write
from lorimer.errors import AccessError, NotFoundError, UsageError
from lorimer.registry.audit import current_actor, record
from lorimer.registry.registry import NAME_PATTERN
from lorimer.registry.schema import api_keys, tenants
from lorimer.serving.grants import Caller, Grant, Quota, check_grant, check_quota, describe_quota

PREFIX_BYTES, SECRET_BYTES = 6, 32
KEY_PATTERN = re.compile(rf"lorimer_([0-9a-f]{{{2 * PREFIX_BYTES}}})_[0-9a-f]{{{2 * SECRET_BYTES}}}")
NO_DIGEST = "0" * 64  # what a key that is not there is compared with, so that it takes as long as one that is
USE_SECONDS = 60.0  # between notes that a key is in use

State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: everything but the secret."""

    prefix: str
    """Names it in public."""
    name: str
    tenant: str
    grant: Grant
    quota: Quota
    created_at: str
    created_by: str
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None
    """To about a minute."""

    @property
    def caller(self) -> Caller:
        """Who asks with it."""
        return Caller(tenant=self.tenant, key_prefix=self.prefix, grant=self.grant, quota=self.quota)

    def state(self, at: str) -> State:
        """Whether it opens anything at an ISO time."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and at >= self.expires_at else "active"

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key at the only moment its secret is known."""

    key: ApiKey
    text: str = field(repr=False)
    """What the client sends; kept nowhere."""


class Keys:
    """The keys and tenants of one database."""

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.engine, self.clock = engine, clock
        self._noted: dict[str, datetime] = {}  # by prefix: when its use was last written down

    @property
    def now(self) -> str:
        """The time as records have it: UTC, ISO 8601."""
        return _iso(self.clock())

    def exist(self) -> bool:
        """Whether any key was ever made; a revoked one counts, so that revoking the last does not open the doors."""
        with self.engine.connect() as connection:
            return connection.execute(select(api_keys.c.prefix).limit(1)).first() is not None

    def create(
        self, name: str, *, tenant: str, grant: Grant, quota: Quota | None = None, days: int | None = None, actor: str | None = None
    ) -> NewKey:
        """Make a key. A tenant that is not known yet gets `quota`; of one that is, the quota stays as it is.

        Raises:
            UsageError: if a name, a right or a limit cannot be one, or `quota` is not what the tenant has; all problems in one message.
        """
        quota = quota or Quota()
        if problems := [*_check_names(name, tenant), *check_grant(grant), *check_quota(quota), *_check_days(days)]:
            raise UsageError("; ".join(problems))
        prefix = secrets.token_hex(PREFIX_BYTES)
        text = f"lorimer_{prefix}_{secrets.token_hex(SECRET_BYTES)}"
        row = {
            "prefix": prefix,
            "digest": _digest_of_key(text),
            "name": name,
            "tenant": tenant,
            **asdict(grant),
            "adapters": list(grant.adapters),
            "created_at": self.now,
            "created_by": actor or current_actor(),
            "expires_at": None if days is None else _iso(self.clock() + timedelta(days=days)),
        }
        try:
            return NewKey(key=self._add(row, quota, actor), text=text)
        except UniqueViolation:  # another process made the tenant at the same moment: now it is there, with the quota it was given
            return NewKey(key=self._add(row, quota, actor), text=text)

    def list_keys(self) -> tuple[ApiKey, ...]:
        """Every key, oldest first."""
        with self.engine.connect() as connection:
            return tuple(_read(connection, _select_keys()))

    def find(self, reference: str) -> ApiKey:
        """A key by its prefix, by as much of the prefix's beginning as no other has, or by its name.

        Raises:
            NotFoundError: if there is none.
            UsageError: if several fit.
        """
        if whole := KEY_PATTERN.fullmatch(reference):
            reference = whole[1]  # somebody gave the key itself: what follows may be printed, so only its public part goes on
        keys = self.list_keys()
        found = [key for key in keys if key.prefix == reference] or [
            key for key in keys if key.name == reference or (len(reference) >= 4 and key.prefix.startswith(reference))
        ]
        found = [key for key in found if key.revoked_at is None] or found
        if not found:
            raise NotFoundError(f"no key {reference[:80]!r}: `lorimer keys list` shows their prefixes and names")
        if len(found) > 1:
            raise UsageError(f"{reference!r} fits {len(found)} keys ({', '.join(key.prefix for key in found)}): give one's prefix")
        return found[0]

    def revoke(self, reference: str, *, actor: str | None = None) -> ApiKey:
        """End a key at once and for good; a key that was revoked before stays as it is.

        Raises:
            NotFoundError: as `find`.
            UsageError: as `find`.
        """
        key = self.find(reference)
        columns = api_keys.c
        with begin_write(self.engine) as connection:
            statement = update(api_keys).where(columns.prefix == key.prefix, columns.revoked_at.is_(None)).values(revoked_at=self.now)
            if connection.execute(statement).rowcount:
                details = {"prefix": key.prefix, "name": key.name}
                record(connection, actor=actor, action="revoke_key", subject=key.tenant, details=details)
            (revoked,) = _read(connection, _select_keys().where(columns.prefix == key.prefix))
        return revoked

    def limit(self, tenant: str, quota: Quota, *, actor: str | None = None) -> Quota:
        """Give a tenant another quota, for all its keys and at once; returns the one it had.

        Raises:
            NotFoundError: if there is no such tenant.
            UsageError: if a limit cannot be one.
        """
        if problems := check_quota(quota):
            raise UsageError("; ".join(problems))
        with begin_write(self.engine) as connection:
            before = _read_quota(connection, tenant)
            if before is None:
                raise NotFoundError(f"no tenant {tenant!r}: `lorimer keys create --tenant NAME` makes one with its first key")
            connection.execute(update(tenants).where(tenants.c.name == tenant).values(asdict(quota)))
            details = {"before": asdict(before), "after": asdict(quota)}
            record(connection, actor=actor, action="limit_tenant", subject=tenant, details=details)
        return before

    def quota(self, tenant: str) -> Quota:
        """What a tenant may take.

        Raises:
            NotFoundError: if there is no such tenant.
        """
        with self.engine.connect() as connection:
            quota = _read_quota(connection, tenant)
        if quota is None:
            raise NotFoundError(f"no tenant {tenant!r}: `lorimer keys list` shows which there are")
        return quota

    def authenticate(self, text: str) -> ApiKey:
        """The key that a client shows. Whether the prefix or the secret is wrong, the answer and its time are the same.

        Raises:
            AccessError: if it is unknown, revoked or expired.
        """
        shown = KEY_PATTERN.fullmatch(text)
        if shown is None:
            raise AccessError("the API key is not one of this server's: they begin with 'lorimer_'; `lorimer keys create` makes one")
        query = _select_keys().add_columns(api_keys.c.digest).where(api_keys.c.prefix == shown[1])
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        is_same = hmac.compare_digest(_digest_of_key(text), row["digest"] if row else NO_DIGEST)  # in the same time wherever they differ
        if row is None or not is_same:
            raise AccessError("the API key is not known to this server: check that it was copied whole, or ask its operator for another")
        key = _key_from_row(row)
        if (state := key.state(self.now)) != "active":
            at = key.revoked_at if state == "revoked" else key.expires_at
            raise AccessError(f"the API key {key.prefix!r} {'was' if state == 'revoked' else 'has'} {state} ({at}): ask for another")
        return key

    def is_use_new(self, key: ApiKey) -> bool:
        """Whether a key's use was not written down lately; whoever asks first is told so, and is to call `note_use`."""
        now = self.clock()
        last = self._noted.get(key.prefix) or (datetime.fromisoformat(key.last_used_at) if key.last_used_at else None)
        if last is not None and (now - last).total_seconds() < USE_SECONDS:
            return False
        self._noted[key.prefix] = now
        return True

    def note_use(self, key: ApiKey) -> None:
        """Write down that a key was used."""
        with begin_write(self.engine) as connection:
            connection.execute(update(api_keys).where(api_keys.c.prefix == key.prefix).values(last_used_at=self.now))

    def _add(self, row: dict[str, Any], quota: Quota, actor: str | None) -> ApiKey:
        """Keep a key, and its tenant if it is the first."""
        with begin_write(self.engine) as connection:
            self._keep_tenant(connection, row["tenant"], quota)
            connection.execute(insert(api_keys).values(row))
            details = {key: value for key, value in row.items() if key not in ("digest", "tenant", "created_at", "created_by")}
            record(connection, actor=actor, action="create_key", subject=row["tenant"], details=details)
            (key,) = _read(connection, _select_keys().where(api_keys.c.prefix == row["prefix"]))
        return key

    def _keep_tenant(self, connection: Connection, tenant: str, quota: Quota) -> None:
        """Make a tenant, or see that what is asked for it is what it has."""
        has = _read_quota(connection, tenant)
        if has is None:
            connection.execute(insert(tenants).values(name=tenant, **asdict(quota), created_at=self.now))
        elif quota not in (Quota(), has):
            raise UsageError(
                f"tenant {tenant!r} has {describe_quota(has)} already, for all its keys together, not {describe_quota(quota)}: "
                f"leave the limits out, or change them with `lorimer keys limit {tenant}`"
            )


def _check_names(name: str, tenant: str) -> Iterator[str]:
    for what, text in (("key", name), ("tenant", tenant)):
        if not re.fullmatch(NAME_PATTERN, text):
            yield f"{text!r} cannot name a {what}: use up to 63 of a-z, 0-9, - and _, starting with a letter or digit"


def _check_days(days: int | None) -> Iterator[str]:
    if days is not None and not 1 <= days <= 36_500:
        yield f"a key cannot expire after {days} days: give 1 to 36500"


def _select_keys() -> Select[Any]:
    """Keys with the quota of their tenants, oldest first."""
    own = [column for column in api_keys.columns if column.name != "digest"]
    quotas = [tenants.c[each.name] for each in fields(Quota)]
    return select(*own, *quotas).join(tenants, tenants.c.name == api_keys.c.tenant).order_by(api_keys.c.created_at, api_keys.c.prefix)


def _read(connection: Connection, query: Select[Any]) -> Sequence[ApiKey]:
    return [_key_from_row(row) for row in connection.execute(query).mappings()]


def _key_from_row(row: RowMapping) -> ApiKey:
    grant = {each.name: row[each.name] for each in fields(Grant)}
    return ApiKey(
        prefix=row["prefix"],
        name=row["name"],
        tenant=row["tenant"],
        grant=Grant(**{**grant, "adapters": tuple(row["adapters"])}),
        quota=Quota(**{each.name: row[each.name] for each in fields(Quota)}),
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )


def _read_quota(connection: Connection, tenant: str) -> Quota | None:
    row = connection.execute(select(*(tenants.c[each.name] for each in fields(Quota))).where(tenants.c.name == tenant)).mappings().first()
    return None if row is None else Quota(**row)


def _digest_of_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")
