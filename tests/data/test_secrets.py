"""Secrets: each issuer's format is found, prose and hashes are not, and no reason shows a value."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.example import Example
from lorimer.data.secrets import ProtectSecrets, entropy, find_secrets
from lorimer.errors import ConfigError

A36 = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAbCdE"
# written in two parts, so that scanners of source code do not take an example for a leak
CASES = [
    ("AWS_ACCESS_KEY", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("GITHUB_TOKEN", "ghp_" + A36),
    ("GITLAB_TOKEN", "glpat-" + A36[:20]),
    ("SLACK_TOKEN", "xoxb-" + "123456789012-" + A36[:24]),
    ("STRIPE_KEY", "sk_live_" + A36[:24]),
    ("GOOGLE_API_KEY", "AIza" + A36[:35]),
    ("OPENAI_KEY", "sk-proj-" + A36),
    ("ANTHROPIC_KEY", "sk-ant-api03-" + A36),
    ("HUGGINGFACE_TOKEN", "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH"),
    ("NPM_TOKEN", "npm_" + A36),
    ("TWILIO_KEY", "SK" + "0123456789abcdef" * 2),
    ("JWT", "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + A36),
    ("CONNECTION_STRING", "postgresql://app:" + "s3cret@db.internal:5432/app"),
    ("PRIVATE_KEY", "-----BEGIN RSA PRIVATE KEY-----\n" + A36 + "\n-----END RSA PRIVATE KEY-----"),
    ("GITHUB_TOKEN", "github_pat_" + A36[:22] + "_" + A36 + A36[:23]),
    ("SLACK_WEBHOOK", "hooks.slack.com/services/" + "T0123ABCD/B0123ABCD/" + A36[:24]),
    ("GOOGLE_OAUTH", "GOCSPX-" + A36[:28]),
    ("PYPI_TOKEN", "pypi-AgE" + A36 + A36),
    ("SENDGRID_KEY", "SG." + A36[:22] + "." + A36 + A36[:7]),
    ("MAILGUN_KEY", "key-" + "0123456789abcdef" * 2),
    ("DIGITALOCEAN_TOKEN", "dop_v1_" + "0123456789abcdef" * 4),
    ("SHOPIFY_TOKEN", "shpat_" + "0123456789abcdef" * 2),
    ("TELEGRAM_TOKEN", "123456789:AA" + A36[:33]),
    ("VAULT_TOKEN", "hvs." + A36[:30]),
    ("SLACK_TOKEN", "xapp-1-A012345-0123456789-" + "0123456789abcdef" * 3),
    ("STRIPE_KEY", "whsec_" + A36[:32]),
    ("HIGH_ENTROPY", "q7Rk2ZxVb9LmT4wYc8NpD3sFh6JgU1aE0Q"),
]


@pytest.mark.parametrize(("kind", "secret"), CASES)
def test_secret_is_found_by_its_format(kind: str, secret: str) -> None:
    assert [(found.kind, found.value) for found in find_secrets(f"it is {secret} there")] == [(kind, secret)]


@pytest.mark.parametrize("text", ["password: hunter2024x", "API_KEY=9f8e7d6c5b4a", "client secret is Zx81-Kp20-Qw"])
def test_secret_after_its_name_is_found(text: str) -> None:
    assert [found.kind for found in find_secrets(text)] == ["NAMED_SECRET"]


@pytest.mark.parametrize(
    "text",
    [
        "Forgot your password? The password is required to log in.",
        "password: ********",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "the_quick_brown_fox_jumps_over_2_lazy_dogs_and_then_3_cats",
        "https://host.com/Some/Long/Path/To/A/Page1234567890/Index",
        "Donaudampfschifffahrtsgesellschaftskapitän",
        "a" * 64,
    ],
)
def test_secret_is_not_seen_in_prose_names_and_hashes(text: str) -> None:
    assert find_secrets(text) == []


def test_secrets_are_masked_dropped_or_kept() -> None:
    example = Example(text="use AKIA" + "IOSFODNN7EXAMPLE now", source="x")
    masked = ProtectSecrets()(example)
    assert masked.example == Example(text="use [AWS_ACCESS_KEY] now", source="x")
    assert masked.reason == "AWS_ACCESS_KEY"
    assert ProtectSecrets(action="drop")(example).example is None
    assert ProtectSecrets(action="keep")(example).example is example
    assert ProtectSecrets(allow=("AKIA" + "IOSFODNN7EXAMPLE",))(example).reason == ""


def test_secrets_have_no_stand_in() -> None:
    with pytest.raises(ConfigError, match="keep, mask, drop"):
        ProtectSecrets(action="pseudonymise")  # type: ignore[arg-type]


def test_entropy_is_that_of_shannon() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2


@given(st.text(max_size=300))
def test_secrets_of_strangers_text_are_exact_spans(text: str) -> None:
    assert all(text[found.start : found.end] == found.value for found in find_secrets(text))


def test_secrets_are_rare_in_real_prose(shared_data: Path) -> None:
    with (shared_data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["response"] for row in csv.DictReader(file)]
    assert sum(bool(find_secrets(text)) for text in texts) == 0
