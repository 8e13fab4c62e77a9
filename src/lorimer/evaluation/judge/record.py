"""A judge whose endpoint answered, and its record: what answered, with which prompt, and how far it agrees with people.

The record's name is the digest of all that decides what the judge says, so that a change of any of it cannot use another's calibration.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorimer.config import home
from lorimer.data.chat_endpoint import ChatEndpoint
from lorimer.errors import ConfigError, IntegrityError
from lorimer.evaluation.judge.spec import JudgeSpec, Pins
from lorimer.storage import digest_of, read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A judge whose endpoint answered, and what it answered as."""

    spec: JudgeSpec
    endpoint: ChatEndpoint
    pins: Pins
    digest: str
    """Of its identity: name of its record and of its kept replies."""

    @property
    def record_path(self) -> Path:
        """Its identity and calibration."""
        return home() / "judges" / f"{self.digest}.json"

    @property
    def replies_path(self) -> Path:
        """What it said, one reply a line."""
        return home() / "judges" / f"{self.digest}.jsonl"

    def to_json(self) -> dict[str, Any]:
        """What a report says of it: which endpoint saw the items, and what answered."""
        return {"digest": self.digest, **self.spec.identity(self.pins), "is_weakly_pinned": self.pins.is_weak}


def open_judge(spec: JudgeSpec, *, repin: bool = False) -> Judge:
    """See what answers at a judge's endpoint, by one short question, and that it is what its record says.

    With `repin` another version or prompt is a new judge of the same name, not calibrated yet; `lorimer judges calibrate` does that.

    Raises:
        IntegrityError: if version, fingerprint, prompt or settings are not those of the record or of the file's `pins`.
        ConfigError: if the key's variable is not set, or the endpoint refuses model or key.
        UnavailableError: if it does not answer.
    """
    endpoint = ChatEndpoint(url=spec.endpoint, key=_read_key(spec.key_env), timeout_seconds=spec.timeout_seconds)
    pins = _find_pins(endpoint, spec)
    if spec.pins is not None and spec.pins != pins:
        changes = list_changes(spec.pins.model_dump(), pins.model_dump())
        raise IntegrityError(
            f"judge {spec.judge!r} is not what its file pins: {changes}: ask for that version, or take `pins` out and calibrate it again"
        )
    identity = spec.identity(pins)
    judge = Judge(spec=spec, endpoint=endpoint, pins=pins, digest=digest_of(identity))
    if not judge.record_path.exists():
        known = [record for record in _read_records() if record["identity"]["judge"] == spec.judge]
        if known and not repin:
            newest = max(known, key=lambda record: str(record["created_at"]))
            raise IntegrityError(
                f"judge {spec.judge!r} has changed, so that neither its calibration nor its verdicts count any more: "
                f"{list_changes(newest['identity'], identity)}: calibrate it again (`lorimer judges calibrate`), or put it back"
            )
        write_record(judge, calibration=None)
    return judge


def write_record(judge: Judge, *, calibration: dict[str, Any] | None) -> None:
    """Keep what a judge is and how it was calibrated."""
    created_at = datetime.now(UTC).isoformat(timespec="microseconds")
    write_json(judge.record_path, {"identity": judge.spec.identity(judge.pins), "calibration": calibration, "created_at": created_at})


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        IntegrityError: if it is damaged.
    """
    try:
        record: dict[str, Any] = read_json(path)
        if digest_of(record["identity"]) != path.stem:
            raise ValueError("its identity has another digest")
        return {key: record[key] for key in ("identity", "calibration", "created_at")}
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(f"the judge's record {str(path)!r} is damaged ({exc!r}): delete it, then calibrate the judge again") from exc


def list_changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What is another now, for a message."""
    return ", ".join(f"{key} was {_short(old.get(key))} and is {_short(new[key])}" for key in new if old.get(key) != new[key])


def _find_pins(endpoint: ChatEndpoint, spec: JudgeSpec) -> Pins:
    """What answers: its name and fingerprint from a reply, the digest from its card."""
    reply = endpoint.ask("Say yes.", model=spec.model, temperature=0.0, seed=0, max_tokens=8)
    model = reply.model or spec.model
    roots = [str(card.get("root") or "") for card in endpoint.list_models() if card.get("id") == model]
    return Pins(model=model, fingerprint=reply.system_fingerprint, root=roots[0] if roots else "", prompt_sha256=spec.prompt_sha256)


def _read_records() -> list[dict[str, Any]]:
    return [read_record(path) for path in sorted((home() / "judges").glob("*.json"))]


def _short(value: Any) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) <= 64 else f"{text[:12]}..."


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"`key_env: {variable}`: that variable is not set: set it to the endpoint's key, or leave the line out")
    return key
