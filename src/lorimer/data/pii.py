"""Personal data in a text: where it stands and of which kind. Precision first: a number counts when it proves itself.

A number proves itself by a checksum or by ranges (`lorimer.data.identifiers`); one whose proof is weak (one in ten or eleven random numbers
passes) also needs its usual spelling or a word beside it. Phone numbers are judged by `phonenumbers`. Values reserved for examples
(example.com, 555-01xx, documentation networks, the networks' test cards) are nobody's and are not found.
Names and addresses need a model: `lorimer.data.named_entities`.

Overlaps: the kind that stands first in `KINDS` wins, then the longer match, then the earlier one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network

from phonenumbers import NumberParseException, is_possible_number, is_valid_number, parse

from lorimer.data import identifiers
from lorimer.data.identifiers import compact
from lorimer.data.recognisers import CARD, IBAN, NAMED_CARD, NATIONAL, Recogniser, words_pattern

WORDS_BEFORE = 48
"""Characters before a number in which a word may say what it is."""
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "VN")
CARDS_FOR_TESTS = (
    "4111111111111111 4012888888881881 4222222222222 5555555555554444 5105105105105100 378282246310005 371449635398431 "
    "378734493671000 6011111111111117 6011000990139424 30569309025904 38520000023237 3530111333300000 3566002020360505 "
    "4242424242424242 4000056655665556"
)
TEST_CARDS = frozenset(CARDS_FOR_TESTS.split())
RESERVED_NETWORKS = tuple(
    map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "127.0.0.0/8", "0.0.0.0/8", "::/127"))
)
RESERVED_DOMAIN = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|net|org)|[a-z0-9-]+\.(?:example|invalid|test)|localhost)$", re.IGNORECASE
)  # RFC 2606


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of personal data in a text."""

    kind: str
    start: int
    end: int
    value: str


KINDS = ("URL_CREDENTIALS", "IBAN", "CREDIT_CARD", *(recogniser.kind for recogniser in NATIONAL), "EMAIL", "IP_ADDRESS", "PHONE")
"""What is found without a model; where two overlap, the first wins."""
NAMED_KINDS = ("PERSON", "ADDRESS")
"""What is found with one."""
RANK = {kind: rank for rank, kind in enumerate((*KINDS, *NAMED_KINDS))}

NEAR_DIGITS = re.compile(r"\d(?:[^\d\n]{0,3}\d){5}")
"""Six digits close together: no number of any kind stands in a text without them."""
ANY_SIGN = re.compile(r"[0-9@:]")
EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
URL_CREDENTIALS = re.compile(r"(?<=://)[^\s:/@<>\"']{1,128}:[^\s:/@<>\"']{1,128}(?=@[\w.\[-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
VERSION_WORDS = words_pattern(r"version|ver\.?|v|release|firmware|build|section|chapter|clause")
IP_WORDS = words_pattern(r"ip|ipv4|address|host|server|dns|gateway|router|proxy|from|client")
PHONE = re.compile(
    r"(?<![\w./:#@$€£%+-])(?:(?:\+|00)[1-9]|\(\+?\d|\d)[\d \u00a0().\-]{4,22}\d(?: ?(?:x|ext\.?|extension) ?\d{1,6})?"
    r"(?![\w@%€$£]|[.,:/-]\d)",
    re.IGNORECASE,
)
PHONE_WORDS = words_pattern(
    r"phone(?: ?(?:number|no\.?|#))?|tel(?:ephone)?\.?|telefon(?:nummer|o|e)?|"
    r"téléphone|mobile?|cell(?:phone)?|handy(?:nummer)?|call(?:ed|ing)?|fax|"
    r"whatsapp|sms|dial|hotline|điện thoại|sđt|móvil|portable|cellulare|gsm|telefoonnummer|"
    r"answer(?:ing)? (?:at|on)|messages? (?:to|on)|text (?:me|us)"
)
LABEL_AFTER = re.compile(r"[ \t]?[-(,]?[ \t]?(?:office|fax|mobile|cell|home|work|tel|phone)(?!\w)", re.IGNORECASE)
GROUPED = re.compile(r"\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}|(?:0|\(0)\d{1,5}\)?(?:[ .-]/?\d{2,8}){1,5}")
"""A number as people write one at home: 212-555-0123, or a trunk prefix and groups."""
DATE_LIKE = re.compile(r"(?:19|20)\d\d[-. ]\d{1,2}[-. ]\d{1,2}(?!\d)|\d{1,2}[-. ]\d{1,2}[-. ](?:19|20)\d\d(?!\d)")


def find_pii(text: str, *, regions: Sequence[str] = REGIONS, also: Iterable[Found] = ()) -> list[Found]:
    """Personal data in a text, in order, without overlaps; `also` is what a model found, `regions` where numbers may be from."""
    found = list(also)
    if ANY_SIGN.search(text):
        found += _find_addresses(text)
        if NEAR_DIGITS.search(text):
            found += _find_numbers(text)
            found += _find_phones(text, regions)
    return resolve_overlaps(found)


def resolve_overlaps(found: Iterable[Found]) -> list[Found]:
    """Of those that overlap, the first kind, then the longest, then the earliest."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: (RANK.get(f.kind, len(RANK)), f.start - f.end, f.start)):
        if all(one.end <= other.start or other.end <= one.start for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda f: f.start)


def is_reserved(kind: str, value: str) -> bool:
    """Whether a value is kept free for examples, and so is nobody's."""
    if kind == "CREDIT_CARD":
        return compact(value) in TEST_CARDS
    if kind == "IBAN":
        return compact(value)[4:8] in ("XXXX", "0000")
    if kind == "EMAIL":
        return bool(RESERVED_DOMAIN.search(value))
    if kind == "IP_ADDRESS":
        address = ip_address(value)
        return any(address.version == network.version and address in network for network in RESERVED_NETWORKS)
    if kind == "PHONE":
        return bool(re.search(r"555\D?01\d\d$|7700\D?900\D?\d{3}$|639\D?98\D?\d\d\D?\d\d$|30\D?23125\D?\d{3}$", value))
    return False


def _find_numbers(text: str) -> Iterator[Found]:
    for recogniser in (IBAN, CARD, NAMED_CARD, *NATIONAL):
        for match in recogniser.pattern.finditer(text):
            value = compact(match[0])
            if recogniser.kind == "IBAN":
                # a word of four letters after the number looks like its next group
                value, end = _cut_iban(match)
                found = Found("IBAN", match.start(), end, text[match.start() : end])
            else:
                found = Found(recogniser.kind, match.start(), match.end(), match[0])
            if value and recogniser.check(value) and _is_named(recogniser, text, match) and not is_reserved(found.kind, found.value):
                yield found


def _cut_iban(match: re.Match[str]) -> tuple[str, int]:
    """The match as far as its country's length goes, and where that ends; nothing if it is too short or ends inside a word."""
    length, num, end = identifiers.IBAN_LENGTHS.get(match[0][:2].upper(), 0), 0, match.start()
    for offset, character in enumerate(match[0]):
        if num == length:
            break
        num += character != " "
        end = match.start() + offset + 1
    rest = match[0][end - match.start() : end - match.start() + 1]
    return (compact(match[0][: end - match.start()]), end) if length and num == length and not rest.strip() else ("", end)


def _is_named(recogniser: Recogniser, text: str, match: re.Match[str]) -> bool:
    if recogniser.words is None or (recogniser.spelled and recogniser.spelled.fullmatch(match[0])):
        return True
    return bool(recogniser.words.search(text, max(0, match.start() - WORDS_BEFORE), match.start()))


def _find_addresses(text: str) -> Iterator[Found]:
    """E-mail and network addresses, and passwords in URLs."""
    if "@" in text:
        if "://" in text:
            yield from (Found("URL_CREDENTIALS", match.start(), match.end(), match[0]) for match in URL_CREDENTIALS.finditer(text))
        yield from (
            Found("EMAIL", match.start(), match.end(), match[0]) for match in EMAIL.finditer(text) if not is_reserved("EMAIL", match[0])
        )
    if text.count(".") >= 3:
        for match in IPV4.finditer(text):
            if _is_ip(match[0], IPv4Address) and not _is_outline(text, match):
                yield Found("IP_ADDRESS", match.start(), match.end(), match[0])
    if text.count(":") >= 2:
        for match in IPV6.finditer(text):
            if _is_ip(match[0], IPv6Address) and sum(character.isalnum() for character in match[0]) > 3:
                yield Found("IP_ADDRESS", match.start(), match.end(), match[0])


def _is_outline(text: str, match: re.Match[str]) -> bool:
    """Whether four numbers are a version's, or a paragraph's of a contract, which are small."""
    before = (max(0, match.start() - WORDS_BEFORE // 2), match.start())
    is_small = sum(len(part) == 1 for part in match[0].split(".")) >= 3
    return bool(VERSION_WORDS.search(text, *before)) or (is_small and not IP_WORDS.search(text, *before))


def _is_ip(value: str, family: type[IPv4Address] | type[IPv6Address]) -> bool:
    try:
        family(value)
    except AddressValueError:
        return False
    return not is_reserved("IP_ADDRESS", value)


def _find_phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for match in PHONE.finditer(text):
        value = match[0]
        if _is_phone(match, regions) and not is_reserved("PHONE", value):
            yield Found("PHONE", match.start(), match.end(), value)


def _is_phone(match: re.Match[str], regions: Sequence[str]) -> bool:
    """With its country a number must be possible; without, a word must name it, or it must be valid in a region and spelled in groups."""
    value, text, start = match[0], match.string, match.start()
    number: str = re.split(r"x|ext", value, maxsplit=1, flags=re.IGNORECASE)[0].strip()
    num_digits = sum(character.isdigit() for character in number)
    if not 7 <= num_digits <= 15 or DATE_LIKE.match(number) or IPV4.fullmatch(number) or number.count("(") != number.count(")"):
        return False
    if number.startswith("+") or re.match(r"\(\+|00[1-9]", number):
        return _is_possible(re.sub(r"^(?:\(?\+|00)", "+", number).replace("(0)", ""))
    if PHONE_WORDS.search(text, max(0, start - WORDS_BEFORE), start) or LABEL_AFTER.match(text, match.end()):
        return num_digits <= 12
    return bool(GROUPED.fullmatch(number)) and num_digits >= 9 and any(_is_valid(number, region) for region in regions)


def _is_possible(number: str) -> bool:
    try:
        return bool(is_possible_number(parse(number, None)))
    except NumberParseException:
        return False


def _is_valid(number: str, region: str) -> bool:
    try:
        return bool(is_valid_number(parse(number, region)))
    except NumberParseException:
        return False
