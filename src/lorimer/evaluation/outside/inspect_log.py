"""Logs of Inspect (UK AI Security Institute), `.eval` and `.json`, read without Inspect: samples, scores, epochs.

An `.eval` log is a zip archive of JSON members: `header.json` (`_journal/start.json` before the run has ended) and
`samples/ID_epoch_N.json`. Nothing is unpacked to the disk, and a member is read no further than a bound.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorimer.errors import DataError
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask, number_of
from lorimer.evaluation.outside.lines import object_of, read_object

HEADER, START, SAMPLES = "header.json", "_journal/start.json", "samples/"
MAX_MEMBERS = 500_000
MAX_MEMBER_BYTES = 64_000_000
MAX_ALL_BYTES = 4_000_000_000
MAX_TEXT = 4000
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Correct, incorrect, partially correct, no answer: as Inspect's `value_to_float` counts them."""
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def read_inspect_log(path: Path) -> ImportedTask:
    """The task of one log. Each scorer is a metric, each value of a scorer that gives several is one of its own.

    Samples that the run began and did not end, or that failed, are unscored.

    Raises:
        DataError: if it is no such log, is damaged, or larger than bounds.
    """
    if path.suffix == ".eval":
        header, samples = _read_archive(path)
    else:
        header = read_object(path)
        found = header.get("samples") or []
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise DataError(f"{path.name}: its samples are no list of objects: it is no log of Inspect")
        samples = list(found)
    spec = header.get("eval")
    if not isinstance(spec, dict) or "task" not in spec:
        raise DataError(f"{path.name} does not say which task it is of: it is no log of Inspect")
    items = [_item(sample, f"{path.name}, sample {number}") for number, sample in enumerate(samples, start=1)]
    items += _absent(spec, items)
    if not items:
        raise DataError(f"{path.name} holds no samples (status {header.get('status')!r}): read a log that was written with them")
    settings = spec.get("task_args")
    return ImportedTask(
        source="inspect",
        name=str(spec["task"]),
        kind="answer",
        conditions={"version": str(spec.get("task_version")), "task_args": json.dumps(settings, sort_keys=True, default=str)},
        items=tuple(items),
        about={"model": str(spec.get("model")), "status": str(header.get("status")), "created": str(spec.get("created"))},
    )


def _read_archive(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and samples of an `.eval` log."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise DataError(f"{path.name} holds two members of one name: it is no log of Inspect")
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members.values()) > MAX_ALL_BYTES:
                raise DataError(
                    f"{path.name} would be more than {MAX_MEMBERS:,} members or {MAX_ALL_BYTES:,} bytes: that is no log of one run"
                )
            head = members.get(HEADER) or members.get(START)
            if head is None:
                raise DataError(f"{path.name} has neither {HEADER} nor {START}: it is no log of Inspect")
            own = [member for name, member in members.items() if name.startswith(SAMPLES) and name.endswith(".json")]
            return _read_member(archive, head, path), [_read_member(archive, member, path) for member in own]
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read: {exc.strerror or exc}") from exc
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise DataError(
            f"{path.name} is no whole zip archive ({exc}): copy the log again, or convert it with `inspect log convert`"
        ) from exc


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> dict[str, Any]:
    """One JSON object; what a member says of its own size is not believed."""
    with archive.open(member) as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise DataError(f"{path.name}, member {member.filename!r} has more than {MAX_MEMBER_BYTES:,} bytes: that is no sample of Inspect")
    return object_of(data, f"{path.name}, member {member.filename!r}")


def _item(sample: Mapping[str, Any], where: str) -> ImportedItem:
    name, epoch = sample.get("id"), sample.get("epoch", 1)
    if not isinstance(name, str | int) or isinstance(name, bool) or not isinstance(epoch, int):
        raise DataError(f"{where} has no id and epoch: it is no log of Inspect")
    found = sample.get("scores")
    if found is not None and not isinstance(found, dict):
        raise DataError(f"{where}: its scores are no object: it is no log of Inspect")
    scores = dict(pair for scorer, score in (found or {}).items() for pair in _values(str(scorer), score))
    said = next((score for score in (found or {}).values() if isinstance(score, dict)), {})
    error = sample.get("error")
    prompt = _text_of(sample.get("input"))
    reason = f"the sample failed: {_text_of(error)[:200]}" if error else "" if found else "it was not scored"
    return ImportedItem(
        key=f"{name}:{epoch}",
        prompt=prompt[:MAX_TEXT],
        target=_text_of(sample.get("target"))[:MAX_TEXT],
        answer=str(said.get("answer") or _text_of(sample.get("output")))[:MAX_TEXT],
        scores=dict.fromkeys(scores) if error else scores,
        group=str(name),
        explanation=reason or str(said.get("explanation") or "")[:MAX_TEXT],
    )


def _values(scorer: str, score: Any) -> Iterator[tuple[str, float | None]]:
    """One scorer's value, or each of several."""
    value = score.get("value") if isinstance(score, dict) else score
    if isinstance(value, dict):
        yield from ((f"{scorer}.{name}", _number(one)) for name, one in value.items())
    elif isinstance(value, list):
        yield from ((f"{scorer}.{place}", _number(one)) for place, one in enumerate(value))
    else:
        yield scorer, _number(value)


def _number(value: Any) -> float | None:
    """A value as Inspect counts it; None where it is none."""
    if not isinstance(value, str):
        return number_of(value)
    if value in LETTERS:
        return LETTERS[value]
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    try:
        return number_of(float(value))
    except ValueError:
        return None


def _absent(spec: Mapping[str, Any], items: list[ImportedItem]) -> list[ImportedItem]:
    """The samples that a log tells of and does not have: a run that was cancelled."""
    dataset, config = spec.get("dataset"), spec.get("config")
    wanted = dataset.get("sample_ids") if isinstance(dataset, dict) else None
    epochs = config.get("epochs") if isinstance(config, dict) else None
    there = {item.key for item in items}
    return [
        ImportedItem(
            key=f"{name}:{epoch}",
            prompt="",
            target="",
            answer="",
            scores={},
            group=str(name),
            explanation="the run ended before this sample",
        )
        for name in (wanted if isinstance(wanted, list) else [])
        for epoch in range(1, (epochs if isinstance(epochs, int) and 0 < epochs <= 1000 else 1) + 1)
        if f"{name}:{epoch}" not in there
    ]


def _text_of(value: Any) -> str:
    """What is said in a text, a list of messages, an output or an error."""
    match value:
        case None:
            return ""
        case str():
            return value
        case [*parts]:
            return "\n".join(_text_of(part) for part in parts)
        case {"choices": [first, *_]}:
            return _text_of(first)
        case {"message": message}:
            return _text_of(message)
        case {"content": content}:
            return _text_of(content)
        case {"text": str(text)}:
            return text
    return ""
