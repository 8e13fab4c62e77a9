"""What a judge replied: its one verdict in a strict form, or none and why; and replies on disk, so that nothing is asked twice."""

import json
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorimer.data.chat_endpoint import Reply
from lorimer.errors import IntegrityError
from lorimer.storage import append_jsonl, digest_of, write_bytes

MAX_REPLY_CHARS = 50_000
MAX_SHOWN_CHARS = 2_000
MENTION = re.compile(r"verdict\s*:", re.IGNORECASE | re.ASCII)
LINE = re.compile(r"verdict[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said, or why what it said does not count."""

    value: str | None
    """One of the allowed verdicts."""
    explanation: str
    """The judge's own words, after the reason where they hold no verdict."""


def parse_verdict(text: str, allowed: tuple[str, ...], finish_reason: str = "stop") -> Verdict:
    """The one verdict in a reply: a line of its own, `Verdict: A`, or the whole reply, `A`; case does not count.

    Everything else is no verdict: nothing at all, a reply that was cut off or is far too long, prose without such a line, two of them
    (equal ones too), one with more words on its line, or one that is not allowed. There is no default.
    """
    spelled = {one.casefold(): one for one in allowed}
    shown = text.strip()[:MAX_SHOWN_CHARS]
    if not text.strip():
        return Verdict(value=None, explanation="no verdict: the judge said nothing")
    if finish_reason == "length":
        return Verdict(value=None, explanation=f"no verdict: the reply was cut off (raise the judge's `max_tokens`): {shown}")
    if len(text) > MAX_REPLY_CHARS:
        return Verdict(value=None, explanation=f"no verdict: the reply has {len(text):,} characters: {shown}")
    whole = spelled.get(text.strip().casefold())
    if whole is not None:
        return Verdict(value=whole, explanation=shown)
    if len(MENTION.findall(text)) > 1:
        return Verdict(value=None, explanation=f"no verdict: the reply names more than one: {shown}")
    lines = [found[1] for line in text.splitlines() if (found := LINE.fullmatch(line.strip()))]
    if not lines:
        return Verdict(value=None, explanation=f"no verdict: the reply has no line `Verdict: ...`: {shown}")
    value = spelled.get(lines[0].casefold())
    if value is None:
        return Verdict(value=None, explanation=f"no verdict: {lines[0][:40]!r} is none of {', '.join(allowed)}: {shown}")
    return Verdict(value=value, explanation=shown)


class KeptReplies:
    """A judge's replies on disk, each under the digest of what was asked. A reply is kept before anything is done with it.

    A last line that was cut off (the machine stopped while it was written) is dropped, and its question asked again.

    Raises:
        IntegrityError: if any other line is damaged or was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self.replies: dict[str, Reply] = {}
        data = path.read_bytes() if path.exists() else b""
        *lines, cut = data.split(b"\n")
        if cut:
            write_bytes(path, data[: -len(cut)])
        for number, line in enumerate(lines, start=1):
            key, reply = self._read(line, number)
            self.replies.setdefault(key, reply)

    def keep(self, key: str, reply: Reply) -> Reply:
        """Add a reply, and return the one that counts: the first there was for this question."""
        with self._lock:
            if key not in self.replies:
                row = {"key": key, "reply": asdict(reply)}
                append_jsonl(self.path, row | {"sha256": digest_of(row)})
                self.replies[key] = reply
            return self.replies[key]

    def _read(self, line: bytes, number: int) -> tuple[str, Reply]:
        try:
            row: dict[str, Any] = json.loads(line)
            if row.pop("sha256") != digest_of(row):
                raise ValueError("its SHA-256 is another")
            return row["key"], Reply(**row["reply"])
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(
                f"line {number} of the judge's kept replies {str(self.path)!r} is damaged or was changed ({exc}): delete the file, and "
                "what it held is asked again"
            ) from exc
