"""Keys, tokens and passwords in a text: by the issuers' own formats, and by entropy where a word says that a secret follows.

Formats are those the issuers publish, chiefly so that scanners can find them. Entropy alone does not tell a secret from an order number or
a hash, so a random-looking word counts only after a name that says so (`password=`, `api_key:`), or where it is long, mixes cases and
digits, and has at least `MIN_BITS` bits a character: Shannon's entropy over its own characters, which a random word of 32 of a 64-letter
alphabet exceeds (about 4.4) and English, file names and identifiers do not.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorimer.data.example import Example
from lorimer.data.passages import list_reasons, passages, with_passages
from lorimer.data.pii import Found, resolve_overlaps
from lorimer.data.rules import Judged
from lorimer.errors import ConfigError

MIN_BITS = 4.0
MIN_RANDOM_LEN = 32
MIN_NAMED_BITS = 3.0
MIN_NAMED_LEN = 8

FORMATS: tuple[tuple[str, str], ...] = (
    (
        "PRIVATE_KEY",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,16384}?"
        r"(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|(?=-----BEGIN)|\Z)",
    ),
    (
        "CONNECTION_STRING",
        r"\b(?:postgres(?:ql)?|mysql|mariadb|mongodb(?:\+srv)?|redis|rediss|amqps?|mssql|oracle|ftp|sftp|smtp)(?:\+\w+)?://[^\s:/@]{0,64}:[^\s/@]{1,128}@[^\s\"'<>]+",
    ),
    ("CONNECTION_STRING", r"\b(?:AccountKey|SharedAccessKey|Pwd|Password)=[^;\s\"']{8,128}(?=;|\s|\"|'|$)"),
    ("AWS_ACCESS_KEY", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    ("GITHUB_TOKEN", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b"),
    ("GITLAB_TOKEN", r"\bgl(?:pat|dt|ptt|rt|cbt|ft|soat)-[\w-]{20,64}\b"),
    ("SLACK_TOKEN", r"\bxox[abeprs]-(?:\d+-){0,4}[A-Za-z0-9-]{10,250}|\bxapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}"),
    ("SLACK_WEBHOOK", r"hooks\.slack\.com/(?:services|workflows)/[A-Z0-9]{8,}/[A-Z0-9]{8,}/[A-Za-z0-9]{16,}"),
    ("STRIPE_KEY", r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,247}\b|\bwhsec_[A-Za-z0-9]{24,64}\b"),
    ("GOOGLE_API_KEY", r"\bAIza[\w-]{35}(?![\w-])"),
    ("GOOGLE_OAUTH", r"\bGOCSPX-[\w-]{28}(?![\w-])|\bya29\.[\w-]{20,}"),
    ("OPENAI_KEY", r"\bsk-(?:proj|svcacct|admin)-[\w-]{20,200}|\bsk-[A-Za-z0-9]{48}\b"),
    ("ANTHROPIC_KEY", r"\bsk-ant-[a-z0-9]+-[\w-]{20,200}"),
    ("HUGGINGFACE_TOKEN", r"\bhf_[A-Za-z]{34}\b"),
    ("NPM_TOKEN", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("PYPI_TOKEN", r"\bpypi-AgE[\w-]{50,}"),
    ("SENDGRID_KEY", r"\bSG\.[\w-]{22}\.[\w-]{43}(?![\w-])"),
    ("TWILIO_KEY", r"\b(?:AC|SK)[0-9a-f]{32}\b"),
    ("MAILGUN_KEY", r"\bkey-[0-9a-f]{32}\b"),
    ("DIGITALOCEAN_TOKEN", r"\bdo[opr]_v1_[0-9a-f]{64}\b"),
    ("SHOPIFY_TOKEN", r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b"),
    ("TELEGRAM_TOKEN", r"\b\d{8,10}:AA[\w-]{33}(?![\w-])"),
    ("AGE_KEY", r"\bAGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}\b"),
    ("VAULT_TOKEN", r"\bhv[sbr]\.[\w-]{24,200}"),
    ("JWT", r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
    ("BEARER_TOKEN", r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{24,}=*"),
)
PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in FORMATS)
HINTS = (
    *(
        "-----BEGIN",
        "://",
        "Key=",
        "Pwd=",
        "Password=",
        "AKIA",
        "ASIA",
        "ABIA",
        "ACCA",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
    ),
    *("glpat-", "gldt-", "glptt-", "glrt-", "glcbt-", "glft-", "glsoat-", "xox", "xapp-", "hooks.slack", "sk_", "rk_", "whsec_", "AIza"),
    *("GOCSPX", "ya29.", "sk-", "hf_", "npm_", "pypi-", "SG.", "key-", "_v1_", "shpat_", "shpca_", "shppa_", "shpss_", ":AA", "AGE-SECRET"),
    *("hvs.", "hvb.", "hvr.", "eyJ", "earer "),
)
"""What at least one of the formats holds, but for Twilio's, which is hexadecimal: most texts have none."""
HEX = re.compile(r"[0-9a-f]{32}")
NAMED = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|api[ _-]?key|access[ _-]?key|auth[ _-]?token|access[ _-]?token|client[ _-]?secret|"
    r"private[ _-]?key|credential)s?"
    r"[\"']?\s{0,3}(?::=|=>|=|:|\bis\b)\s{0,3}[\"'`]?([^\s\"'`,;<>{}\[\]()]{8,256})",
    re.IGNORECASE,
)
NAMES = ("passw", "passph", "pwd", "secret", "key", "token", "credential")
LONG_WORD = re.compile(r"(?<![\w/+.=@-])[A-Za-z0-9+/_-]{32,256}={0,2}(?![\w/+.@-])")
IS_HEX = re.compile(r"[0-9a-fA-F-]+")


def find_secrets(text: str) -> list[Found]:
    """Secrets in a text, in order, without overlaps."""
    has_long_word = max(map(len, text.split()), default=0) >= MIN_RANDOM_LEN
    found = list(_find_formats(text)) if any(hint in text for hint in HINTS) or (has_long_word and HEX.search(text)) else []
    lowered = text.lower()
    if any(name in lowered for name in NAMES):
        found += (
            Found("NAMED_SECRET", match.start(1), match.end(1), match[1]) for match in NAMED.finditer(text) if _is_secret_value(match[1])
        )
    if has_long_word:
        found += (Found("HIGH_ENTROPY", m.start(), m.end(), m[0]) for m in LONG_WORD.finditer(text) if looks_random(m[0]))
    return resolve_overlaps(found) if len(found) > 1 else found


def entropy(text: str) -> float:
    """Shannon's entropy of a text's own characters, in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def looks_random(word: str) -> bool:
    """Whether a long word is more like a key than a name: cases and digits mixed, and many bits a character; hashes and UUIDs are none."""
    if IS_HEX.fullmatch(word) or word.count("/") > 3:
        return False
    kinds = (any(map(str.islower, word)), any(map(str.isupper, word)), sum(map(str.isdigit, word)) >= 3)
    # names in snake or kebab case are words; keys hold few of these marks
    return all(kinds) and word.count("_") + word.count("-") < len(word) // 8 and entropy(word) >= MIN_BITS


def _find_formats(text: str) -> Iterator[Found]:
    for kind, pattern in PATTERNS:
        for match in pattern.finditer(text):
            yield Found(kind, match.start(), match.end(), match[0])


def _is_secret_value(value: str) -> bool:
    """After `password:` a word counts unless it is one of a language: it must mix in digits or signs, and repeat itself little."""
    value = value.rstrip(".!?")
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    return (
        len(value) >= MIN_NAMED_LEN
        and has_digit
        and has_letter
        and "://" not in value
        and entropy(value) >= min(MIN_NAMED_BITS, math.log2(len(value)) - 0.5)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectSecrets:
    """A row rule over secrets: masked as `[AWS_ACCESS_KEY]`, kept and reported, or the row taken out."""

    action: Literal["keep", "mask", "drop"] = "mask"
    allow: Sequence[str] = ()
    """Values that are known to be none, such as a documentation's example key."""
    name: str = field(default="secrets", init=False)

    def __post_init__(self) -> None:
        if self.action not in ("keep", "mask", "drop"):
            raise ConfigError(f"action {self.action!r} is none of keep, mask, drop: a secret has no stand-in")

    def __call__(self, example: Example) -> Judged:
        """Find and treat secrets in every text of a row; the reason names the kinds, never a value."""
        kinds = [found.kind for text in passages(example) for found in self._find(text)]
        if not kinds:
            return Judged(example)
        if self.action == "drop":
            return Judged(None, list_reasons(kinds))
        return Judged(example if self.action == "keep" else with_passages(example, self.protect), list_reasons(kinds))

    def protect(self, text: str) -> str:
        """A text with its secrets masked."""
        parts, end = [], 0
        for found in self._find(text):
            parts += [text[end : found.start], f"[{found.kind}]"]
            end = found.end
        return "".join([*parts, text[end:]])

    def _find(self, text: str) -> list[Found]:
        return [found for found in find_secrets(text) if found.value not in self.allow]
