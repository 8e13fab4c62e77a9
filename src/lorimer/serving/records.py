"""One line for every request, in the home folder's `requests/<date>.jsonl`: who answered, how much, how long. Never what was said."""

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorimer.config import home
from lorimer.errors import StorageError
from lorimer.storage import append_jsonl

logger = logging.getLogger(__name__)

CANCELLED = 499  # what nginx writes when the client has gone


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request that was understood, however it ended."""

    id: str
    at: str
    """UTC, ISO 8601: when it came."""
    model: str
    """As it was asked for."""
    adapter: str | None
    """What answered (`helpdesk@v3`, or the base's name); None if there was nothing of that name."""
    adapter_digest: str | None
    is_composed: bool = False
    """Whether several adapters answered, or one with a scale; there are as many such names as clients care to make."""
    route_score: float | None = None
    """How near the nearest adapter was, where the request left it to us (`auto`)."""
    base_digest: str
    user: str | None
    """The request's own `user` field."""
    tenant: str = ""
    """Whose key was shown; empty where none was asked for."""
    key_prefix: str = ""
    """Which key: its public part, never the secret."""
    num_prompt_tokens: int
    num_generated_tokens: int
    finish_reasons: tuple[str, ...]
    """One an answer; empty if there was none."""
    latency_seconds: float
    ttft_seconds: float | None
    """Until the first token."""
    status: int
    """The HTTP status, or 499 if the client left."""


def log_request(record: RequestRecord) -> None:
    """Add a record to its day's file; a disk that does not take it is a warning, not the client's error."""
    try:
        append_jsonl(requests_file(record.at), asdict(record))
    except (StorageError, OSError) as exc:
        logger.warning("request %s is not in the log: %s", record.id, exc)


def requests_file(at: str) -> Path:
    """The file of the day of an ISO time."""
    return home() / "requests" / f"{at[:10]}.jsonl"


def now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
