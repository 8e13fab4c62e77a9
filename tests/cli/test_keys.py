"""`lorimer keys` through its commands: the secret once, lists without it, names for people and JSON for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorimer.cli import main
from lorimer.cli.keys import app
from lorimer.database import open_database
from lorimer.errors import NotFoundError, UsageError
from lorimer.serving.grants import Grant, Quota
from lorimer.serving.keys import KEY_PATTERN, Keys


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables on one line a row."""
    monkeypatch.setenv("COLUMNS", "300")


def run(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def made(*args: str) -> dict[str, Any]:
    return json.loads(run("create", *args, "--json"))


def test_create_prints_the_key_once(home: Path) -> None:
    printed = run("create", "--tenant", "acme", "--adapters", "helpdesk, sql@v3", "--requests-per-minute", "60", "--concurrency", "4")
    (text,) = [line for line in printed.splitlines() if KEY_PATTERN.fullmatch(line)]
    key = Keys(open_database()).authenticate(text)
    assert (key.name, key.tenant, key.quota) == ("acme", "acme", Quota(requests_per_minute=60, concurrency=4))
    assert key.grant == Grant(adapters=("helpdesk", "sql@v3"), may_use_base=False)
    assert "60 requests/min, 4 at once" in printed
    for command in (("list",), ("show", key.prefix), ("list", "--json"), ("show", key.prefix, "--json"), ("revoke", key.prefix)):
        assert text.rpartition("_")[2] not in run(*command)


@pytest.mark.parametrize(
    ("args", "name", "tenant", "grant"),
    [
        (("acme",), "acme", "acme", Grant()),
        (("app", "--tenant", "acme"), "app", "acme", Grant()),
        (("acme", "--admin"), "acme", "acme", Grant(is_admin=True)),
        (("acme", "--no-base"), "acme", "acme", Grant(may_use_base=False)),
        (("acme", "--adapters", "sql", "--base"), "acme", "acme", Grant(adapters=("sql",))),
        (("acme", "--adapters", "", "--base"), "acme", "acme", Grant(adapters=())),
        (("acme", "--max-context", "400", "--max-body-bytes", "9000"), "acme", "acme", Grant(max_context=400, max_body_bytes=9000)),
    ],
)
def test_create_takes_rights(args: tuple[str, ...], name: str, tenant: str, grant: Grant) -> None:
    key = Keys(open_database()).authenticate(made(*args)["key"])
    assert (key.name, key.tenant, key.grant) == (name, tenant, grant)


def test_create_as_json_is_one_object_with_the_key() -> None:
    found = made("acme", "--days", "30", "--tokens-per-minute", "20000")
    assert KEY_PATTERN.fullmatch(found["key"])
    assert (found["prefix"], found["state"], found["quota"]["tokens_per_minute"]) == (found["key"].split("_")[1], "active", 20000)
    assert found["expires_at"] > found["created_at"]


def test_create_says_which_adapters_are_not_there() -> None:
    result = CliRunner().invoke(app, ["create", "acme", "--adapters", "helpdsk"], catch_exceptions=False)
    assert "Not registered yet: helpdsk." in result.stderr


def test_list_shows_every_key() -> None:
    assert "lorimer keys create" in run("list")
    assert json.loads(run("list", "--json")) == {"keys": []}
    first, second = made("acme", "--adapters", "sql"), made("other", "--admin")
    run("revoke", first["prefix"])
    lines = {line.split()[0]: line for line in run("list").splitlines()}
    assert all(word in lines[first["prefix"]] for word in ("acme", "revoked", "sql", "no limits", "never"))
    assert all(word in lines[second["prefix"]] for word in ("other", "active", "all adapters, base; administers"))
    assert {key["name"]: key["state"] for key in json.loads(run("list", "--json"))["keys"]} == {"acme": "revoked", "other": "active"}


def test_revoke_by_name() -> None:
    found = made("acme")
    assert "is revoked since" in run("revoke", "acme")
    assert json.loads(run("show", found["prefix"], "--json"))["state"] == "revoked"


def test_limit_changes_a_tenant_and_leaves_the_rest() -> None:
    made("acme", "--requests-per-minute", "60", "--concurrency", "4")
    assert run("limit", "acme", "--requests-per-minute", "120").strip() == (
        "Tenant acme: 120 requests/min, 4 at once, for all its keys together."
    )
    wanted = {"tenant": "acme", "requests_per_minute": 120, "tokens_per_minute": None, "concurrency": None}
    assert json.loads(run("limit", "acme", "--concurrency", "0", "--json")) == wanted


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("create",), UsageError),
        (("create", "acme", "--adapters", "../x"), UsageError),
        (("create", "acme", "--requests-per-minute", "7"), UsageError),
        (("show", "nobody"), NotFoundError),
        (("revoke", "nobody"), NotFoundError),
        (("limit", "nobody", "--concurrency", "1"), NotFoundError),
        (("limit", "acme"), UsageError),
    ],
)
def test_refusals_are_left_to_the_caller(args: tuple[str, ...], error: type[Exception]) -> None:
    made("acme", "--requests-per-minute", "60")
    with pytest.raises(error):
        run(*args)


def test_program_knows_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["keys", "list"]) == 0
    assert "No keys yet" in capsys.readouterr().out
