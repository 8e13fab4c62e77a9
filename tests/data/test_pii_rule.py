"""What is done with personal data: masked, replaced by the same stand-in each time, kept, or the row taken out."""

import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.example import Example, Message
from lorimer.data.identifiers import compact, is_card, is_iban, is_us_ssn
from lorimer.data.pii import find_pii
from lorimer.data.pii_rule import ProtectPii, protect_pii
from lorimer.data.pseudonyms import Pseudonyms, read_key
from lorimer.data.recognisers import NATIONAL, Recogniser
from lorimer.errors import ConfigError

PSEUDONYMS = Pseudonyms(b"k" * 32)


def chat(prompt: str, answer: str, *, subject: str = "") -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, source="a.jsonl:1", subject=subject)


def test_pii_is_masked_and_the_reason_shows_no_value() -> None:
    judged = protect_pii()(chat("mail jo@mail.com and al@mail.com", "sent to jo@mail.com"))
    assert judged.example is not None
    assert [message.content for message in judged.example.messages] == ["mail [EMAIL] and [EMAIL]", "sent to [EMAIL]"]
    assert judged.reason == "EMAIL x3"


def test_row_without_pii_is_untouched() -> None:
    example = chat("hello", "there")
    assert protect_pii()(example).example is example


def test_pii_is_kept_flagged_or_dropped_by_kind() -> None:
    rule = protect_pii(default="keep", actions={"IBAN": "drop"})
    example = chat("mail jo@mail.com", "ok")
    assert rule(example).example is example
    assert rule(example).reason == "EMAIL"
    dropped = rule(chat("mail jo@mail.com", "DE89370400440532013000"))
    assert (dropped.example, dropped.reason) == (None, "IBAN")


def test_pseudonym_is_the_same_within_a_scope_and_another_outside() -> None:
    one = PSEUDONYMS.replace("EMAIL", "Jo@mail.com", "s1")
    assert one == PSEUDONYMS.replace("EMAIL", "jo@mail.com", "s1")
    assert one != PSEUDONYMS.replace("EMAIL", "jo@mail.com", "s2")
    assert one != Pseudonyms(b"other").replace("EMAIL", "jo@mail.com", "s1")
    assert one.endswith("@example.com")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("PHONE", "+44 20 7183 8750"),
        ("PHONE", "(212) 736-5000"),
        ("PHONE", "+49 89 1234567"),
        ("CREDIT_CARD", "4454 7945 1139 0933"),
        ("IBAN", "GB42NAWI04454264788619"),
        ("US_SSN", "460-89-9847"),
        ("IP_ADDRESS", "86.121.97.248"),
        ("IP_ADDRESS", "6e40:4041:c617:e898:c11:40d2:c669:2eb4"),
        ("EMAIL", "jo@mail.com"),
        ("UK_NINO", "AB123456C"),
        ("IT_CODICE_FISCALE", "RSSMRA85T10A562S"),
        ("NL_BSN", "111222333"),
    ],
)
def test_pseudonym_is_nobodys_so_it_is_not_found_again(kind: str, value: str) -> None:
    made = PSEUDONYMS.replace(kind, value)
    assert made != value
    assert find_pii(f"card bsn: {made}") == []


def test_pseudonyms_are_valid_in_form_where_values_are_kept_free() -> None:
    assert is_card(PSEUDONYMS.replace("CREDIT_CARD", "4454794511390933"))
    iban = PSEUDONYMS.replace("IBAN", "gb42 nawi 0445 4264 7886 19")
    assert iban.startswith("GB")
    assert is_iban(iban.replace(" ", ""))
    assert not is_us_ssn(PSEUDONYMS.replace("US_SSN", "460899847"))


@given(st.sampled_from(NATIONAL), st.text("0123456789", min_size=8, max_size=18), st.binary(min_size=16, max_size=32))
def test_stand_in_of_a_national_number_is_the_same_each_time_and_keeps_its_shape(recogniser: Recogniser, value: str, key: bytes) -> None:
    made = Pseudonyms(key).replace(recogniser.kind, value)
    assert made == Pseudonyms(key).replace(recogniser.kind, value)
    assert len(compact(made)) == len(value) or recogniser.kind in ("US_SSN", "US_ITIN", "UK_NINO")


def test_pseudonymised_rows_agree_within_a_subject() -> None:
    rule = protect_pii(default="pseudonymise")
    first, second = (rule(chat("I am jo@mail.com", "hi jo@mail.com", subject=s)).example for s in ("aa", "bb"))
    assert first is not None
    assert second is not None
    stand_in = first.messages[0].content.removeprefix("I am ")
    assert first.messages[1].content == f"hi {stand_in}"
    assert second.messages[0].content != first.messages[0].content


def test_key_is_made_once_and_is_its_owners_alone(home: Path) -> None:
    assert read_key() == read_key()
    assert stat.S_IMODE((home / "pseudonyms.key").stat().st_mode) == 0o600


def test_rule_pickles_and_judges_the_same() -> None:
    rule = protect_pii(default="pseudonymise")
    again: ProtectPii = pickle.loads(pickle.dumps(rule))
    example = chat("call +1 212 736 5000", "ok")
    assert again(example) == rule(example)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"default": "hide"}, "'hide' is none of"),
        ({"actions": {"EMIAL": "mask"}}, "'EMIAL' is none of"),
        ({"actions": {"PERSON": "mask"}}, "model"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        protect_pii(**options)  # type: ignore[arg-type]
