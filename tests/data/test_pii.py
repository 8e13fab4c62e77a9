"""Personal data: found where it proves itself, left alone where it does not."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.pii import Found, find_pii, resolve_overlaps
from lorimer.data.pii_report import as_table, read_presidio, score_pii


def kinds(text: str) -> list[tuple[str, str]]:
    return [(found.kind, found.value) for found in find_pii(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("card 4454 7945 1139 0933 is lost", "CREDIT_CARD", "4454 7945 1139 0933"),
        ("my card 3521213764418045 expires", "CREDIT_CARD", "3521213764418045"),
        ("pay to DE89 3704 0044 0532 0130 00 now", "IBAN", "DE89 3704 0044 0532 0130 00"),
        ("gb42nawi04454264788619", "IBAN", "gb42nawi04454264788619"),
        ("SSN 460-89-9847.", "US_SSN", "460-89-9847"),
        ("social security number: 460899847", "US_SSN", "460899847"),
        ("BSN 111222333", "NL_BSN", "111222333"),
        ("codice RSSMRA85T10A562S ok", "IT_CODICE_FISCALE", "RSSMRA85T10A562S"),
        ("DNI 12345678Z", "ES_DNI", "12345678Z"),
        ("NI number AB 12 34 56 C", "UK_NINO", "AB 12 34 56 C"),
        ("Steuer-ID 86 095 742 719", "DE_STEUER_ID", "86 095 742 719"),
        ("né: 2 55 08 14 168 025 38", "FR_NIR", "2 55 08 14 168 025 38"),
        ("CCCD 001199012345", "VN_CCCD", "001199012345"),
        ("hetu 131052-308T", "FI_HETU", "131052-308T"),
        ("write to jane.o+x@mail.co.uk!", "EMAIL", "jane.o+x@mail.co.uk"),
        ("from 86.121.97.248, twice", "IP_ADDRESS", "86.121.97.248"),
        ("host 6e40:4041:c617:e898:c11:40d2:c669:2eb4 down", "IP_ADDRESS", "6e40:4041:c617:e898:c11:40d2:c669:2eb4"),
        ("git clone https://joe:hunter2@host.com/x", "URL_CREDENTIALS", "joe:hunter2"),
        ("ring +44 20 7183 8750 today", "PHONE", "+44 20 7183 8750"),
        ("(212) 736-5000 is it", "PHONE", "(212) 736-5000"),
        ("call me at 467 3395", "PHONE", "467 3395"),
        ("gọi số điện thoại 0912 345 678", "PHONE", "0912 345 678"),
    ],
)
def test_pii_is_found(text: str, kind: str, value: str) -> None:
    assert (kind, value) in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "cancel purchase 113542617735902 please",
        "order 111222333 is late",
        "he has 1,000 - 200 = 800 apples",
        "version 1.2.3.4 of it; clause 3.4.2.1 says",
        "on 2006-04-07 09:00:27 and 12.05.1999",
        "mail help@example.com or 555-0123 on 192.0.2.7",
        "card 4111 1111 1111 1111 for tests",
        "4454794511390934 is one digit off",
        "2400-1100-700=<<2400-1100-700=600>>600",
        "the ratio is 3:4:5 at 10:30:00",
        "a@b, @home, C++ std::vector::at",
        "",
    ],
)
def test_pii_is_not_seen_in_ordinary_numbers(text: str) -> None:
    assert kinds(text) == []


def test_overlapping_kinds_are_resolved_by_rank_then_length() -> None:
    spans = [Found("PHONE", 0, 12, "x"), Found("CREDIT_CARD", 3, 9, "y"), Found("EMAIL", 20, 25, "a"), Found("EMAIL", 18, 26, "b")]
    assert [(found.kind, found.start) for found in resolve_overlaps(spans)] == [("CREDIT_CARD", 3), ("EMAIL", 18)]


@given(st.text(max_size=300) | st.text("0123456789 +-.()@:/abEX", max_size=200))
def test_pii_spans_of_strangers_text_are_in_order_and_exact(text: str) -> None:
    end = 0
    for found in find_pii(text):
        assert end <= found.start < found.end <= len(text)
        assert text[found.start : found.end] == found.value
        end = found.end


def test_pii_of_a_long_line_takes_no_quadratic_time() -> None:
    for unit in ("1 ", "a.", "12-", "1:", "(1", "a1", "+1 "):
        find_pii(unit * 50_000 + "@")


def test_pii_report_on_marked_texts(shared_data: Path) -> None:
    rows = json.loads((shared_data / "presidio_pii" / "synth_dataset_v2.json").read_text(encoding="utf-8"))
    scores = {score.kind: score for score in score_pii(read_presidio(rows))}
    for kind, least in (("CREDIT_CARD", 0.95), ("EMAIL", 1.0), ("IBAN", 1.0), ("US_SSN", 1.0), ("IP_ADDRESS", 1.0), ("PHONE", 0.8)):
        precision, recall = scores[kind].precision, scores[kind].recall
        assert precision is not None
        assert recall is not None
        assert precision >= 0.97
        assert recall >= least
    assert scores["PERSON"].recall == 0  # listed, not left out, where no model looks for it
    assert "CREDIT_CARD" in as_table(list(scores.values()))
