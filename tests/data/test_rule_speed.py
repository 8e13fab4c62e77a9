"""No rule takes a row that a stranger made to be slow: long runs, near misses, one line of a megabyte."""

import time

import pytest

from lorimer.data.boilerplate import Boilerplate
from lorimer.data.encoding import RepairEncoding
from lorimer.data.example import Example
from lorimer.data.information import LowInformation
from lorimer.data.language import DetectLanguage
from lorimer.data.pii_rule import protect_pii
from lorimer.data.remnants import TemplateRemnants
from lorimer.data.rules import RowRule
from lorimer.data.secrets import ProtectSecrets
from lorimer.data.toxicity import Toxicity

RULES: tuple[RowRule, ...] = (
    RepairEncoding(),
    DetectLanguage(),
    TemplateRemnants(),
    Boilerplate(action="strip"),
    LowInformation(),
    Toxicity(),
    ProtectSecrets(),
    protect_pii(),
)
UNITS = (
    "a", "a ", "1", "1 ", "12-", "1.", "a.", "@", "a@", "a@a.", ":", "1:", "://a:b", "(1", "+1 ", "{{a", "{%a", "<|a", "[Your ", "${a",
    "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaaa.", "password: ", "Ã©", "\u4e00", "copyright ", "\n--\n", "terms of use ", "damn", "aB3/",
)  # fmt: skip
SIZE = 20_000


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_takes_no_quadratic_time(rule: RowRule) -> None:
    rule(Example(text="Say where it is, please.", source="x"))  # reads models, compiles patterns
    slow = []
    for unit in UNITS:
        for tail in ("", "@", "}", "!"):
            example = Example(text=unit * (SIZE // len(unit)) + tail, source="x")
            start = time.process_time()
            rule(example)
            if time.process_time() - start > 0.5:
                slow.append((unit, tail, time.process_time() - start))
    assert not slow
