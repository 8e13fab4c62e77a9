"""Numbers of each kind: how they are written, what proves them, and which word stands before those whose proof is weak."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lorimer.data import identifiers


@dataclass(frozen=True, slots=True)
class Recogniser:
    """Numbers of one kind: how they are written, what proves them, and which word must stand before those whose proof is weak."""

    kind: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool]
    words: re.Pattern[str] | None = None
    spelled: re.Pattern[str] | None = None
    """A spelling so usual for this kind that it needs no word."""


def words_pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def _alone(num: str, *, spelled: str = "") -> re.Pattern[str]:
    """A number alone: no digit, letter or decimal part beside it."""
    return re.compile(rf"(?<![\w.,-])(?:{spelled or num})(?![\w-]|[.,]\d)")


NATIONAL: tuple[Recogniser, ...] = (
    Recogniser(
        "US_SSN",
        _alone(r"\d{3}([- ]?)\d{2}\1\d{4}"),
        identifiers.is_us_ssn,
        words_pattern(r"ssn|social security(?: (?:number|no\.?|#))?|social"),
        re.compile(r"\d{3}-\d{2}-\d{4}"),
    ),
    Recogniser(
        "US_ITIN",
        _alone(r"9\d{2}([- ]?)\d{2}\1\d{4}"),
        identifiers.is_us_itin,
        words_pattern("itin|taxpayer|tax id"),
        re.compile(r"9\d\d-\d\d-\d{4}"),
    ),
    Recogniser("UK_NINO", _alone(r"[A-Za-z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Da-d]"), identifiers.is_uk_nino),
    Recogniser("UK_NHS", _alone(r"\d{3}[ -]?\d{3}[ -]?\d{4}"), identifiers.is_uk_nhs, words_pattern(r"nhs(?: (?:number|no\.?))?")),
    Recogniser(
        "NL_BSN",
        _alone(r"\d{9}|\d{4}[. ]\d{2}[. ]\d{3}|\d{3}[. ]\d{3}[. ]\d{3}"),
        identifiers.is_nl_bsn,
        words_pattern("bsn|burgerservicenummer|sofinummer"),
    ),
    Recogniser(
        "IT_CODICE_FISCALE",
        _alone(r"[A-Za-z]{6}\d{2}[A-EHLMPR-Ta-ehlmpr-t]\d{2}[A-Za-z]\d{3}[A-Za-z]"),
        identifiers.is_it_codice_fiscale,
    ),
    Recogniser("ES_DNI", _alone(r"\d{8}-?[A-HJ-NP-TV-Z]"), identifiers.is_es_dni),
    Recogniser("ES_NIE", _alone(r"[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]"), identifiers.is_es_dni),
    Recogniser(
        "DE_STEUER_ID",
        _alone(r"\d{11}|\d{2} \d{3} \d{3} \d{3}"),
        identifiers.is_de_steuer_id,
        words_pattern(r"steuer-?id(?:entifikationsnummer)?|steuernummer|idnr\.?|tax id|tin"),
    ),
    Recogniser("FR_NIR", _alone(r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"), identifiers.is_fr_nir),
    Recogniser(
        "VN_CCCD",
        _alone(r"\d{12}"),
        identifiers.is_vn_cccd,
        words_pattern(r"cccd|cmnd|căn cước(?: công dân)?|citizen id(?:entity)?(?: card)?"),
    ),
    Recogniser("PL_PESEL", _alone(r"\d{11}"), identifiers.is_pl_pesel, words_pattern("pesel")),
    Recogniser(
        "SE_PERSONNUMMER",
        _alone(r"(?:19|20)?\d{6}[-+]?\d{4}"),
        lambda text: identifiers.is_se_personnummer(text[-10:]),
        words_pattern("personnummer|samordningsnummer|personal identity number|pnr"),
    ),
    Recogniser(
        "FI_HETU",
        _alone(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]"),
        lambda text: identifiers.is_fi_hetu(text if len(text) == 11 else f"{text[:6]}-{text[6:]}"),
    ),
    Recogniser(
        "BE_NATIONAL_NUMBER",
        _alone(r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}"),
        identifiers.is_be_national_number,
        words_pattern(r"rijksregister(?:nummer)?|registre national|national number|niss|insz"),
        re.compile(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
    ),
    Recogniser(
        "BR_CPF",
        _alone(r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}"),
        identifiers.is_br_cpf,
        words_pattern("cpf"),
        re.compile(r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    ),
    Recogniser("IN_AADHAAR", _alone(r"\d{4}([ -]?)\d{4}\1\d{4}"), identifiers.is_in_aadhaar, words_pattern("aadhaar|aadhar|uidai|uid")),
    Recogniser(
        "CA_SIN", _alone(r"\d{3}([ -]?)\d{3}\1\d{3}"), identifiers.is_ca_sin, words_pattern(r"sin|social insurance(?: number)?|nas")
    ),
    Recogniser("AU_TFN", _alone(r"\d{3} ?\d{3} ?\d{3}"), identifiers.is_au_tfn, words_pattern(r"tfn|tax file(?: number)?")),
    Recogniser("CH_AHV", _alone(r"756\.?\d{4}\.?\d{4}\.?\d{2}"), identifiers.is_ch_ahv),
    Recogniser("CN_RESIDENT_ID", _alone(r"[1-8]\d{5}(?:19|20)\d{9}[0-9Xx]"), identifiers.is_cn_resident_id),
)
CARD = Recogniser("CREDIT_CARD", _alone(r"\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}"), identifiers.is_card)
NAMED_CARD = Recogniser(  # an issuer that the ranges do not list, where a word says that it is a card
    CARD.kind,
    CARD.pattern,
    lambda digits: len(set(digits)) > 2 and identifiers.is_luhn(digits),
    words_pattern("(?:credit |debit |bank )?cards?|cc|visa|mastercard|amex|maestro"),
)
IBAN = Recogniser("IBAN", re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[0-9A-Za-z]{4}){2,7}(?: ?[0-9A-Za-z]{1,3})?(?!\w)"), identifiers.is_iban)
