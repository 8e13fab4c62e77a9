"""How well personal data is found: precision and recall by kind, on texts whose personal data is marked.

A span counts as found when a span of the same kind overlaps it (a mask over half a card number is still a find, and one over its
neighbour too); a found span that overlaps no true span of its kind is a false alarm. Kinds that stand in the truth but that nothing
looks for are listed with recall 0, not left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorimer.data.pii import Found, find_pii

PRESIDIO_KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "IBAN_CODE": "IBAN",
    "STREET_ADDRESS": "ADDRESS",
    "GPE": "ADDRESS",
    "US_SSN": "US_SSN",
}
"""What Presidio's data calls a kind, where it is not what we call it."""


class Marked(NamedTuple):
    """A text and the personal data in it."""

    text: str
    truth: Sequence[Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindScore:
    """One line of the report."""

    kind: str
    num_true: int
    num_found: int
    num_right: int
    """Found spans that overlap a true one."""
    num_hit: int
    """True spans that a found one overlaps."""

    @property
    def precision(self) -> float | None:
        """Of what was found, what is right; None where nothing was found."""
        return self.num_right / self.num_found if self.num_found else None

    @property
    def recall(self) -> float | None:
        """Of what is there, what was found; None where nothing is there."""
        return self.num_hit / self.num_true if self.num_true else None


def score_pii(rows: Iterable[Marked], find: Callable[[str], Sequence[Found]] = find_pii) -> list[KindScore]:
    """Precision and recall of each kind that is marked or found, the most frequent first."""
    true, found, right, hit = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        spans = find(row.text)
        true.update(span.kind for span in row.truth)
        found.update(span.kind for span in spans)
        right.update(span.kind for span in spans if _touches(span, row.truth))
        hit.update(span.kind for span in row.truth if _touches(span, spans))
    kinds = sorted(true | found, key=lambda kind: (-true[kind], kind))
    return [KindScore(kind=k, num_true=true[k], num_found=found[k], num_right=right[k], num_hit=hit[k]) for k in kinds]


def read_presidio(rows: Iterable[dict[str, object]]) -> list[Marked]:
    """Rows of `presidio-research`'s JSON as marked texts."""
    marked = []
    for row in rows:
        spans = row["spans"]
        assert isinstance(spans, list)
        truth = [
            Found(PRESIDIO_KINDS.get(s["entity_type"], s["entity_type"]), s["start_position"], s["end_position"], s["entity_value"])
            for s in spans
        ]
        marked.append(Marked(str(row["full_text"]), truth))
    return marked


def as_table(scores: Sequence[KindScore]) -> str:
    """The report as lines of text."""
    lines = [f"{'kind':20} {'there':>6} {'found':>6} {'precision':>10} {'recall':>8}"]
    for score in scores:
        precision, recall = (f"{value:.3f}" if value is not None else "-" for value in (score.precision, score.recall))
        lines.append(f"{score.kind:20} {score.num_true:6} {score.num_found:6} {precision:>10} {recall:>8}")
    return "\n".join(lines)


def _touches(span: Found, others: Sequence[Found]) -> bool:
    return any(span.kind == other.kind and span.start < other.end and other.start < span.end for other in others)
