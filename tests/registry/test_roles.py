"""Roles: open until the first is granted, and then held wherever something is recorded."""

from collections.abc import Callable

import pytest

from lorimer.errors import AccessError, NotFoundError, UsageError
from lorimer.registry.approvals import protect
from lorimer.registry.audit import current_actor, read_audit
from lorimer.registry.officers import add_key, grant_role, revoke_role
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.registry.roles import list_roles
from lorimer.registry.signing import PublicKey
from lorimer.serving.grants import Grant
from lorimer.serving.keys import Keys

MakeNew = Callable[..., NewVersion]


@pytest.fixture
def staffed(registry: Registry) -> Registry:
    """With an admin, a trainer and a viewer."""
    for actor, role in (("root", "admin"), ("ada", "trainer"), ("dan", "viewer")):
        grant_role(registry, actor, role, by="root", reason="hired")
    return registry


def test_who_has_which_role_is_recorded(staffed: Registry) -> None:
    assert [(grant.actor, grant.role) for grant in list_roles(staffed.engine)] == [("ada", "trainer"), ("dan", "viewer"), ("root", "admin")]
    entries = read_audit(staffed.engine)
    assert [(entry.actor, entry.action, entry.subject, entry.details["role"]) for entry in entries][1] == (
        "root", "grant_role", "ada", "trainer",
    )  # fmt: skip


def test_the_first_role_is_an_admins(registry: Registry) -> None:
    with pytest.raises(UsageError, match="would leave nobody who is admin: begin with"):
        grant_role(registry, "ada", "trainer", by="root")
    assert list_roles(registry.engine) == ()


def test_the_last_admin_stays(staffed: Registry) -> None:
    with pytest.raises(UsageError, match="last admin"):
        revoke_role(staffed, "root", by="root")
    with pytest.raises(UsageError, match="nobody who is admin"):
        grant_role(staffed, "root", "viewer", by="root")
    grant_role(staffed, "eve", "admin", by="root")
    revoke_role(staffed, "root", by="eve")
    with pytest.raises(AccessError, match="'root' has no role"):
        grant_role(staffed, "root", "admin", by="root")


@pytest.mark.parametrize(
    ("actor", "deed"),
    [
        ("dan", lambda registry, make_new, actor: registry.register(make_new(), actor=actor)),
        ("nobody", lambda registry, make_new, actor: registry.register(make_new(), actor=actor)),
        ("ada", lambda registry, make_new, actor: protect(registry, "champion", actor=actor)),
        ("ada", lambda registry, make_new, actor: grant_role(registry, actor, "admin", by=actor)),
        ("ada", lambda registry, make_new, actor: revoke_role(registry, "dan", by=actor)),
        ("ada", lambda registry, make_new, actor: add_key(registry, PublicKey(raw=b"1" * 32), name="x", actor=actor)),
        ("ada", lambda registry, make_new, actor: Keys(registry.engine).create("k", tenant="t", grant=Grant(), actor=actor)),
    ],
)
def test_who_may_not_changes_nothing(
    staffed: Registry, make_new: MakeNew, actor: str, deed: Callable[[Registry, MakeNew, str], object]
) -> None:
    before = read_audit(staffed.engine)
    with pytest.raises(AccessError, match=r"an admin gives it with `lorimer roles grant") as caught:
        deed(staffed, make_new, actor)
    assert caught.value.exit_code == 1
    assert read_audit(staffed.engine) == before
    assert (staffed.list_versions(), len(list_roles(staffed.engine))) == ((), 3)


def test_who_may_does(staffed: Registry, make_new: MakeNew) -> None:
    assert staffed.register(make_new(), actor="ada").created_by == "ada"
    assert Keys(staffed.engine).create("k", tenant="t", grant=Grant(), actor="root").key.created_by == "root"


@pytest.mark.parametrize("actor", ["", " ", "a\nb", " ada", "x" * 201, "\x1b[31m"])
def test_names_that_are_none_are_refused(registry: Registry, actor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="names nobody"):
        grant_role(registry, actor, "admin", by="root")
    if actor != " ada":
        monkeypatch.setenv("LORIMER_ACTOR", actor)
        with pytest.raises(UsageError, match="names nobody"):
            current_actor()


def test_the_actor_is_named_by_the_environment(registry: Registry, make_new: MakeNew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_ACTOR", "ci@acme")
    assert registry.register(make_new()).created_by == "ci@acme"


def test_no_such_role_or_person(registry: Registry) -> None:
    with pytest.raises(UsageError, match="the roles are viewer, trainer, approver, admin"):
        grant_role(registry, "ada", "boss", by="root")
    with pytest.raises(NotFoundError, match="'ada' has no role: nobody has one"):
        revoke_role(registry, "ada")
