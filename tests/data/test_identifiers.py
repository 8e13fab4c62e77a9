"""Numbers that prove themselves: published examples pass, and one changed digit fails."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data import identifiers as ids

VALID = [
    (ids.is_card, "4454794511390933"),
    (ids.is_card, "347415977307943"),
    (ids.is_iban, "GB82WEST12345698765432"),
    (ids.is_iban, "DE89370400440532013000"),
    (ids.is_iban, "NO9386011117947"),
    (ids.is_uk_nhs, "9434765919"),
    (ids.is_nl_bsn, "111222333"),
    (ids.is_it_codice_fiscale, "RSSMRA85T10A562S"),
    (ids.is_es_dni, "12345678Z"),
    (ids.is_es_dni, "X1234567L"),
    (ids.is_de_steuer_id, "86095742719"),
    (ids.is_fr_nir, "255081416802538"),
    (ids.is_pl_pesel, "44051401359"),
    (ids.is_se_personnummer, "8112189876"),
    (ids.is_fi_hetu, "131052-308T"),
    (ids.is_be_national_number, "85073003328"),
    (ids.is_br_cpf, "52998224725"),
    (ids.is_in_aadhaar, "234123412346"),
    (ids.is_ca_sin, "130692544"),
    (ids.is_au_tfn, "123456782"),
    (ids.is_ch_ahv, "7569217076985"),
    (ids.is_cn_resident_id, "11010519491231002X"),
]


@pytest.mark.parametrize(("check", "number"), VALID)
def test_identifier_passes_and_a_changed_check_digit_fails(check: Callable[[str], bool], number: str) -> None:
    assert check(number)
    last = number[-1]
    others = [number[:-1] + other for other in ("0123456789" if last.isdigit() else "ABCDEFGHJKLMNPQRSTUVWXYZ") if other != last]
    passing = [other for other in others if check(other)]
    assert not passing


@pytest.mark.parametrize("number", ["000123456", "666123456", "900123456", "123001234", "123450000", "078051120"])
def test_us_ssn_never_given_out_is_none(number: str) -> None:
    assert not ids.is_us_ssn(number)


@pytest.mark.parametrize(("number", "is_one"), [("AB123456C", True), ("QQ123456C", False), ("GB123456A", False), ("AO123456A", False)])
def test_uk_nino_prefixes(number: str, is_one: bool) -> None:
    assert ids.is_uk_nino(number) is is_one


def test_us_itin_and_ssn_exclude_each_other() -> None:
    assert ids.is_us_itin("912701234")
    assert not ids.is_us_ssn("912701234")
    assert not ids.is_us_itin("912341234")


def test_vn_cccd_knows_provinces() -> None:
    assert ids.is_vn_cccd("001199012345")
    assert not ids.is_vn_cccd("003199012345")


@given(st.text("0123456789", min_size=12, max_size=19))
def test_card_of_strangers_digits_never_raises_and_implies_luhn(digits: str) -> None:
    assert not ids.is_card(digits) or ids.is_luhn(digits)


@given(st.text("0123456789ABCXYZ", min_size=4, max_size=34))
def test_iban_of_strangers_text_never_raises(text: str) -> None:
    assert ids.is_iban(text) in (True, False)
