"""Numbers that prove themselves: checksums and ranges of cards, accounts and national ids, each from its public rule.

Every check takes the number without its separators, in upper case. What has no checksum (a US social security number, a UK national
insurance number) is told by its ranges, and needs its usual spelling or a word beside it: see `lorimer.data.pii`.
"""

import re
from collections.abc import Sequence
from datetime import date

# ISO 13616, the registry's lengths by country
IBAN_COUNTRIES = (
    "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27 DK:18 DO:28 EE:20 "
    "EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HN:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 "
    "KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 "
    "PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 "
    "UA:29 VA:22 VG:24 XK:20 YE:30"
)
IBAN_LENGTHS = {pair[:2]: int(pair[3:]) for pair in IBAN_COUNTRIES.split()}

# issuers' first digits and their lengths (ISO/IEC 7812; each network's published ranges)
CARD_RANGES: tuple[tuple[int, int, frozenset[int]], ...] = tuple(
    (int(low), int(high), frozenset(lengths))
    for low, high, lengths in (
        ("4", "4", {13, 16, 19}),  # Visa
        ("51", "55", {16}),  # Mastercard
        ("2221", "2720", {16}),
        ("34", "34", {15}),  # American Express
        ("37", "37", {15}),
        ("300", "305", {14, 16, 17, 18, 19}),  # Diners Club
        ("3095", "3095", {14, 16, 17, 18, 19}),
        ("36", "36", {14, 16, 17, 18, 19}),
        ("38", "39", {14, 16, 17, 18, 19}),
        ("6011", "6011", {16, 17, 18, 19}),  # Discover
        ("644", "649", {16, 17, 18, 19}),
        ("65", "65", {16, 17, 18, 19}),
        ("62", "62", {16, 17, 18, 19}),  # UnionPay
        ("3528", "3589", {16, 17, 18, 19}),  # JCB
        ("2131", "2131", {15}),
        ("1800", "1800", {15}),
        ("5018", "5018", set(range(12, 20))),  # Maestro
        ("5020", "5020", set(range(12, 20))),
        ("5038", "5038", set(range(12, 20))),
        ("5893", "5893", set(range(12, 20))),
        ("6304", "6304", set(range(12, 20))),
        ("6759", "6759", set(range(12, 20))),
        ("6761", "6763", set(range(12, 20))),
        ("2200", "2204", {16, 17, 18, 19}),  # Mir
        ("9792", "9792", {16}),  # Troy
    )
)

CF_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
CF_LETTERS = (*CF_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
CF_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", CF_DIGITS + CF_LETTERS, strict=True))
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
AADHAAR_D = (
    "0123456789",
    "1234067895",
    "2340178956",
    "3401289567",
    "4012395678",
    "5987604321",
    "6598710432",
    "7659821043",
    "8765932104",
    "9876543210",
)
AADHAAR_P = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")
PROVINCES = (
    "001 002 004 006 008 010 011 012 014 015 017 019 020 022 024 025 026 027 030 031 033 034 035 036 037 038 040 042 044 045 046 048 "
    "049 051 052 054 056 058 060 062 064 066 067 068 070 072 074 075 077 079 080 082 083 084 086 087 089 091 092 093 094 095 096"
)
CCCD_PROVINCES = frozenset(PROVINCES.split())


def is_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = sum(int(digit) for digit in digits[-1::-2]) + sum(2 * int(digit) - 9 * (digit > "4") for digit in digits[-2::-2])
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """A payment card: an issuer's range, one of that issuer's lengths, Luhn; a number of one digit alone is none."""
    known = any(low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in CARD_RANGES)
    return known and len(set(digits)) > 2 and is_luhn(digits)


def is_iban(text: str) -> bool:
    """ISO 13616: the country's length, and modulo 97 (ISO 7064) equal to 1."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def is_us_ssn(digits: str) -> bool:
    """Social Security Administration: areas 000, 666 and 900 to 999, group 00 and serial 0000 were never given out."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and digits not in ("078051120", "219099999")


def is_us_itin(digits: str) -> bool:
    """Internal Revenue Service: 9xx, with the fourth and fifth digit 50 to 65, 70 to 88, 90 to 92 or 94 to 99."""
    group = int(digits[3:5])
    return digits[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or group >= 94)


def is_uk_nino(text: str) -> bool:
    """HM Revenue & Customs, National Insurance Manual NIM39110: prefixes that are never given out."""
    return text[0] not in "DFIQUV" and text[1] not in "DFIQUVO" and text[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def is_uk_nhs(digits: str) -> bool:
    """NHS Data Dictionary: weights 10 to 2, modulo 11; a check of 10 is never given out."""
    check = -_weighted(digits[:9], range(10, 1, -1)) % 11
    return check == int(digits[9]) and len(set(digits)) > 1


def is_nl_bsn(digits: str) -> bool:
    """The eleven-test: weights 9 to 2 and -1, divisible by 11."""
    return _weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(digits)) > 1


def is_it_codice_fiscale(text: str) -> bool:
    """Decreto ministeriale 23 December 1976: odd and even places by table, modulo 26."""
    total = sum(CF_ODD[character] for character in text[:15:2]) + sum(int(c) if c.isdigit() else ord(c) - 65 for c in text[1:15:2])
    return chr(65 + total % 26) == text[15]


def is_es_dni(text: str) -> bool:
    """Ministerio del Interior: number modulo 23 picks the letter; X, Y, Z of a NIE stand for 0, 1, 2."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return DNI_LETTERS[int(number) % 23] == text[-1]


def is_de_steuer_id(digits: str) -> bool:
    """Bundeszentralamt für Steuern: ISO 7064 modulo 11,10; of the first ten digits one stands twice or three times, the others once."""
    counts = sorted((digits[:10].count(digit) for digit in set(digits[:10])), reverse=True)
    if digits[0] == "0" or counts[0] not in (2, 3) or counts[1] != 1:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def is_fr_nir(text: str) -> bool:
    """INSEE: sex, year, month, department, and 97 minus the number modulo 97; Corsica's 2A and 2B count as 19 and 18."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    month = int(number[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and 97 - int(number) % 97 == int(text[13:])


def is_vn_cccd(digits: str) -> bool:
    """Decree 137/2015/ND-CP: province, a digit for century and sex, two of the birth year; no checksum, so a word must stand beside it."""
    return digits[:3] in CCCD_PROVINCES and digits[3] in "0123"


def is_pl_pesel(digits: str) -> bool:
    """Weights 1, 3, 7, 9, modulo 10, over a real birthday whose month carries the century."""
    century = {8: 1800, 0: 1900, 2: 2000, 4: 2100, 6: 2200}[int(digits[2]) // 2 * 2]
    born = _is_date(century + int(digits[:2]), int(digits[2:4]) % 20, int(digits[4:6]))
    return born and -_weighted(digits[:10], (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10 == int(digits[10])


def is_se_personnummer(digits: str) -> bool:
    """Skatteverket: a birthday (days may carry 60 for a coordination number) and Luhn over ten digits."""
    return _is_date(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:6]) % 60) and is_luhn(digits)


def is_fi_hetu(text: str) -> bool:
    """Digital and Population Data Services Agency: birthday and number, modulo 31, pick the last character."""
    born = _is_date(2000 + int(text[4:6]), int(text[2:4]), int(text[:2]))
    return born and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[7:10]) % 31] == text[10]


def is_be_national_number(digits: str) -> bool:
    """97 minus the number modulo 97; those born from 2000 on put a 2 before it."""
    number, check = digits[:9], int(digits[9:])
    return int(digits[2:4]) <= 12 and check in (97 - int(number) % 97, 97 - int("2" + number) % 97) and len(set(digits)) > 1


def is_br_cpf(digits: str) -> bool:
    """Receita Federal: two checks, modulo 11."""
    if len(set(digits)) == 1:
        return False
    first = _weighted(digits[:9], range(10, 1, -1)) * 10 % 11 % 10
    second = _weighted(digits[:10], range(11, 1, -1)) * 10 % 11 % 10
    return digits[9:] == f"{first}{second}"


def is_in_aadhaar(digits: str) -> bool:
    """UIDAI: twelve digits, the first 2 to 9, Verhoeff's check (1969)."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(AADHAAR_D[check][int(AADHAAR_P[place % 8][int(digit)])])
    return digits[0] not in "01" and check == 0


def is_ca_sin(digits: str) -> bool:
    """Employment and Social Development Canada: nine digits, the first neither 0 nor 8, Luhn."""
    return digits[0] not in "08" and is_luhn(digits) and len(set(digits)) > 1


def is_au_tfn(digits: str) -> bool:
    """Australian Taxation Office: weights 1, 4, 3, 7, 5, 8, 6, 9, 10, divisible by 11."""
    return _weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0 and len(set(digits)) > 1


def is_ch_ahv(digits: str) -> bool:
    """The 13-digit AHV number: prefix 756, the EAN-13 check."""
    return digits.startswith("756") and -_weighted(digits[:12], (1, 3) * 6) % 10 == int(digits[12])


def is_cn_resident_id(text: str) -> bool:
    """GB 11643-1999: a birthday and ISO 7064 modulo 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    born = _is_date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    return born and "10X98765432"[_weighted(text[:17], weights) % 11] == text[17]


def _weighted(digits: str, weights: Sequence[int] | range) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def compact(text: str) -> str:
    """A number without the separators people put into it, in upper case."""
    return re.sub(r"[^0-9A-Za-z]", "", text).upper()
