"""What is done with personal data in a row, kind by kind: kept, masked, replaced by a stand-in, or the row taken out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from lorimer.data.example import Example
from lorimer.data.passages import list_reasons, passages, with_passages
from lorimer.data.pii import KINDS, NAMED_KINDS, REGIONS, Found, find_pii
from lorimer.data.pseudonyms import Pseudonyms, read_key
from lorimer.data.rules import Judged
from lorimer.errors import ConfigError

Action = Literal["keep", "mask", "pseudonymise", "drop"]
ACTIONS: tuple[Action, ...] = get_args(Action)


class NameFinder(Protocol):
    """What finds names and addresses: a model."""

    def find(self, text: str) -> list[Found]:
        """Names and addresses in a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectPii:
    """A row rule over personal data."""

    default: Action = "mask"
    actions: Mapping[str, Action] = field(default_factory=dict)
    """By kind, where it is not the default."""
    regions: Sequence[str] = REGIONS
    pseudonyms: Pseudonyms | None = None
    names: NameFinder | None = None
    name: str = field(default="pii", init=False)

    def __call__(self, example: Example) -> Judged:
        """Find and treat personal data in every text of a row; the reason counts the kinds, and never shows a value."""
        kinds: Counter[str] = Counter()
        for text in passages(example):
            kinds.update(found.kind for found in self._find(text))
        if not kinds:
            return Judged(example)
        reason = list_reasons([f"{kind} x{count}" if count > 1 else kind for kind, count in kinds.items()])
        if dropped := [kind for kind in kinds if self.action(kind) == "drop"]:
            return Judged(None, list_reasons(dropped))
        return Judged(with_passages(example, lambda text: self.protect(text, example.subject)), reason)

    def action(self, kind: str) -> Action:
        """What is done with a kind."""
        return self.actions.get(kind, self.default)

    def protect(self, text: str, scope: str = "") -> str:
        """A text with its personal data masked or replaced."""
        parts, end = [], 0
        for found in self._find(text):
            parts += [text[end : found.start], self._stand_in(found, scope)]
            end = found.end
        return "".join([*parts, text[end:]])

    def _find(self, text: str) -> list[Found]:
        return find_pii(text, regions=self.regions, also=self.names.find(text) if self.names else ())

    def _stand_in(self, found: Found, scope: str) -> str:
        action = self.action(found.kind)
        if action == "pseudonymise":
            assert self.pseudonyms is not None
            return self.pseudonyms.replace(found.kind, found.value, scope)
        return found.value if action == "keep" else f"[{found.kind}]"


def protect_pii(
    *, default: Action = "mask", actions: Mapping[str, Action] | None = None, regions: Sequence[str] = REGIONS, model: str | None = None
) -> ProtectPii:
    """The rule; `model` is a spaCy model for names and addresses (needs `lorimer[pii]`), without which they are not looked for.

    Raises:
        ConfigError: for a kind or action that is none, or a kind that needs a model where there is none.
    """
    actions = actions or {}
    known = (*KINDS, *NAMED_KINDS)
    problems = [f"kind {kind!r} is none of {', '.join(known)}" for kind in actions if kind not in known]
    problems += [
        f"action {action!r} is none of {', '.join(ACTIONS)}"
        for action in dict.fromkeys([default, *actions.values()])
        if action not in ACTIONS
    ]
    problems += [f"{kind} is found by a model alone: give one with `model`" for kind in actions if kind in NAMED_KINDS and not model]
    if problems:
        raise ConfigError("; ".join(problems))
    names = None
    if model:
        from lorimer.data.named_entities import NamedEntities

        names = NamedEntities(model=model)
    needs_key = "pseudonymise" in (default, *actions.values())
    return ProtectPii(
        default=default,
        actions=dict(actions),
        regions=tuple(regions),
        pseudonyms=Pseudonyms(read_key()) if needs_key else None,
        names=names,
    )
