"""The same value, the same stand-in: plausible, of the same kind, and nobody's.

HMAC-SHA-256 with a key of this installation picks it, over the kind, the value without its separators, and a scope (a row's subject key, or
nothing), so that without the key nobody can try values, and once a subject's key is gone its stand-ins cannot be made again. Where a kind
has values kept free for examples, those are used: example.com (RFC 2606), 555-01xx (NANPA), 07700 900xxx (Ofcom), 06 39 98 xx xx (ARCEP),
030 23125 xxx (Bundesnetzagentur), documentation networks (RFC 5737, RFC 3849), the card networks' test numbers. There are few of those, so
two values may share one. Every other number keeps its shape and fails its own check on purpose.
"""

import hashlib
import hmac
import os
import re
import string
from collections.abc import Callable
from dataclasses import dataclass

from lorimer.config import home
from lorimer.data.identifiers import compact
from lorimer.data.pii import TEST_CARDS
from lorimer.data.recognisers import CARD, NATIONAL
from lorimer.storage import write_bytes

KEY_BYTES = 32
FIRST = (
    "Alba Amir Anna Arlo Asha Bela Bram Cara Chen Clio Dara Dewi Edda Elif Emil Enzo Esme Fay Finn Gita Hana Hugo Ida Ilse Imre Ines "
    "Ivo Jana Joao Juno Kaia Kofi Lars Leda Lina Luca Maja Mats Mina Naim Nell Nico Nour Odin Olga Omar Otto Paz Pia Quinn Rafa Remy "
    "Rosa Runa Sami Sena Siri Tara Theo Tove Uma Vera Yael Zeno"
)
FIRST_NAMES = FIRST.split()
LAST = (
    "Abara Adler Almeida Arden Barros Becker Berg Bianchi Blom Boateng Brandt Cardoso Castell Cohen Dahl Dubois Eriksen Falk Farkas "
    "Ferrer Fiala Gallo Garner Haas Hoang Holm Ibarra Ito Jansen Kaya Keller Kim Kovac Lang Larsen Leroy Lind Marin Mendes Moreau "
    "Nagy Nowak Okoro Olsen Park Petrov Quist Ramos Reyes Ricci Rossi Sato Silva Singh Soler Stein Tamm Toth Tran Vidal Vogel Weber "
    "Wolf Zeman"
)
LAST_NAMES = LAST.split()
STREET = "Ash Beech Birch Cedar Chestnut Elm Hazel Larch Linden Maple Oak Poplar Rowan Spruce Willow Yew"
STREETS = STREET.split()
AREA_CODES = ["202", "212", "213", "303", "305", "312", "404", "415", "503", "512", "602", "612", "617", "702", "713", "801"]
CHECKS = {recogniser.kind: recogniser.check for recogniser in NATIONAL}
ALPHABETS = (string.digits, string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Stand-ins under one key."""

    key: bytes

    def replace(self, kind: str, value: str, scope: str = "") -> str:
        """The stand-in of a value; of the same kind, and always the same within a scope."""
        number = self._number(kind, value, scope)
        if kind in MAKERS:
            return MAKERS[kind](number, value)
        return self._reshape(kind, value, scope)

    def _number(self, kind: str, value: str, scope: str, attempt: int = 0) -> int:
        same = compact(value) if any(character.isdigit() for character in value) and kind != "EMAIL" else " ".join(value.casefold().split())
        message = "\0".join((kind, scope, same or value, str(attempt)))
        return int.from_bytes(hmac.digest(self.key, message.encode(), hashlib.sha256))

    def _reshape(self, kind: str, value: str, scope: str) -> str:
        """Other digits and letters in the same places; drawn again while the kind's own check passes."""
        check = CHECKS.get(kind)
        for attempt in range(100):
            made = _pour(value, self._number(kind, value, scope, attempt))
            if check is None or not _passes(check, compact(made)):
                return made
        return re.sub(r"\w", "0", value)


def read_key() -> bytes:
    """This installation's key, made at random the first time; readable by its owner alone."""
    path = home() / "pseudonyms.key"
    if not path.exists():
        write_bytes(path, os.urandom(KEY_BYTES), mode=0o600)
    return path.read_bytes()


def _pour(shape: str, number: int) -> str:
    made = []
    for character in shape:
        alphabet = next((alphabet for alphabet in ALPHABETS if character in alphabet), None)
        if alphabet is None:
            made.append(character)
        else:
            number, index = divmod(number, len(alphabet))
            made.append(alphabet[index])
    return "".join(made)


def _passes(check: Callable[[str], bool], value: str) -> bool:
    try:
        return check(value)
    except (ValueError, IndexError, KeyError):  # a letter where only some may stand
        return False


def _draw(number: int, *choices: list[str]) -> list[str]:
    drawn = []
    for choice in choices:
        number, index = divmod(number, len(choice))
        drawn.append(choice[index])
    return [*drawn, str(number % 1000)]


def _person(number: int, value: str) -> str:
    first, last, _ = _draw(number, FIRST_NAMES, LAST_NAMES)
    return f"{first} {last}" if " " in value.strip() else first


def _email(number: int, value: str) -> str:
    first, last, digits = _draw(number, FIRST_NAMES, LAST_NAMES)
    return f"{first}.{last}{digits}@example.com".lower()


def _phone(number: int, value: str) -> str:
    start = re.sub(r"^00", "+", compact(value)) if not value.lstrip().startswith("+") else "+" + compact(value)
    if start.startswith("+44"):
        return f"+44 7700 900{number % 1000:03d}"
    if start.startswith("+33"):
        return f"+33 6 39 98 {number % 100:02d} {number // 100 % 100:02d}"
    if start.startswith("+49"):
        return f"+49 30 23125{number % 1000:03d}"
    return f"{'+1-' if start.startswith('+') else ''}{AREA_CODES[number % 16]}-555-01{number // 16 % 100:02d}"


def _card(number: int, value: str) -> str:
    digits = compact(value)
    same = sorted(card for card in TEST_CARDS if len(card) == len(digits)) or sorted(card for card in TEST_CARDS if len(card) == 16)
    card = same[number % len(same)]
    separator = next((character for character in value if not character.isdigit()), "")
    return separator.join((card[:4], card[4:8], card[8:12], card[12:])) if separator and len(card) == 16 else card


def _iban(number: int, value: str) -> str:
    """The same country and length, a bank that cannot be, and right check digits."""
    plain = compact(value)
    bank = "".join("X" if character.isalpha() else "0" for character in plain[4:8])
    account = _pour(plain[8:], number)
    spelled = "".join(str(int(character, 36)) for character in bank + account + plain[:2] + "00")
    made = f"{plain[:2]}{98 - int(spelled) % 97:02d}{bank}{account}"
    return " ".join(made[at : at + 4] for at in range(0, len(made), 4)) if " " in value else made


def _ssn(number: int, value: str) -> str:
    """Area 9xx with a group below 50: given out neither as a social security number nor to a taxpayer."""
    separator = next((character for character in value if not character.isdigit()), "")
    return separator.join((f"9{number % 100:02d}", f"{1 + number // 100 % 49:02d}", f"{1 + number // 4900 % 9999:04d}"))


def _nino(number: int, value: str) -> str:
    made = f"QQ{number % 1_000_000:06d}C"
    return f"{made[:2]} {made[2:4]} {made[4:6]} {made[6:8]} {made[8]}" if " " in value else made


def _ip(number: int, value: str) -> str:
    if ":" in value:
        return f"2001:db8::{number % 0x10000:x}:{number // 0x10000 % 0x10000:x}"
    return f"{('192.0.2', '198.51.100', '203.0.113')[number % 3]}.{1 + number // 3 % 254}"


def _credentials(number: int, value: str) -> str:
    return f"user{number % 10_000}:{number // 10_000 % 16**12:012x}"


def _address(number: int, value: str) -> str:
    return f"{1 + number % 200} {STREETS[number // 200 % 16]} Street"


MAKERS: dict[str, Callable[[int, str], str]] = {
    "PERSON": _person,
    "EMAIL": _email,
    "PHONE": _phone,
    CARD.kind: _card,
    "IBAN": _iban,
    "US_SSN": _ssn,
    "US_ITIN": _ssn,
    "UK_NINO": _nino,
    "IP_ADDRESS": _ip,
    "URL_CREDENTIALS": _credentials,
    "ADDRESS": _address,
}
