"""Reports of garak (NVIDIA's scanner, 0.17.1) read as tasks: an attempt is a prompt, each of its answers an item, each detector a metric.

Nothing is dropped: a probe that was wanted and not asked, and an answer that no detector looked at, is an item without a score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorimer.errors import DataError
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask, number_of
from lorimer.evaluation.outside.lines import read_object, read_objects
from lorimer.storage import digest_of

REPORT, HITLOG, UNFINISHED, ASKED = ".report.jsonl", ".hitlog.jsonl", ".unfinished.jsonl", "garak.json"
COMPLETE = 2
"""An attempt's status once the detectors have looked at it; 1 when it is answered."""
THRESHOLD = 0.5
"""garak's own; a report does not tell it, but its counts do not follow from another."""
CONDITIONS = {
    "garak": "_config.version",
    "seed": "run.seed",
    "generations": "run.generations",
    "prompts": "run.soft_probe_prompt_cap",
    "language": "run.target_lang",
    "system_prompt": "run.system_prompt",
}
UNJUDGED: Mapping[str, float | None] = {"unjudged": None}
"""The scores of what no detector has looked at."""
MAX_TEXT = 4000


def read_garak(folder: Path) -> tuple[ImportedTask, ...]:
    """The probes of a scan, one task a probe: an item is an answer to a prompt, 1 where the detector found no harm.

    Detectors are metrics. Reports that are not whole tell what was asked; none of it is scored. A probe that was not asked, and an answer
    that no detector looked at, is there and unscored.

    Raises:
        DataError: if there are no reports, or one is damaged, or does not agree with its own counts or its hitlog.
    """
    reports = sorted([*folder.glob(f"*{REPORT}"), *folder.glob(f"*{UNFINISHED}")])
    if not reports:
        raise DataError(f"{str(folder)!r} holds no reports of garak (*{REPORT}): name the folder of a scan")
    settings = settings_of(read_object(folder / ASKED)) if (folder / ASKED).exists() else {}
    tasks = [task for path in reports for task in _read_report(path, settings)]
    if not tasks:
        raise DataError(f"the reports in {str(folder)!r} hold no attempt: the probes asked nothing; look into their logs")
    return tuple(tasks)


def has_answers(report: Path) -> bool:
    """Whether a report is whole and holds an answer: garak ends its report also where the server gave none."""
    if not report.exists():
        return False
    try:
        entries = [entry for _, entry in read_objects(report)]
    except DataError:
        return False
    return any(entry.get("entry_type") == "completion" for entry in entries) and any(
        entry.get("entry_type") == "attempt" and any(entry.get("outputs") or []) for entry in entries
    )


def settings_of(asked: Mapping[str, Any]) -> dict[str, str]:
    """What of a scan's settings makes a difference to what is asked of whom."""
    try:
        plugins, own = asked["plugins"], asked["plugins"]["generators"]["openai"]["OpenAICompatible"]
        found = {"model": plugins["target_name"], "max_tokens": own["max_tokens"], "temperature": own["temperature"], **asked["run"]}
    except (LookupError, TypeError) as exc:
        raise DataError(f"{ASKED} is not as it was written here: name another folder") from exc
    return {name: str(value) for name, value in found.items()}


def _read_report(path: Path, settings: Mapping[str, str]) -> Iterator[ImportedTask]:
    is_finished = not path.name.endswith(UNFINISHED)
    attempts, setup, counts, is_whole = dict[str, tuple[int, dict[str, Any]]](), dict[str, Any](), Counter[tuple[str, str, str]](), False
    try:
        for number, entry in read_objects(path):
            kind = entry.get("entry_type")
            setup = entry if kind == "start_run setup" else setup
            is_whole = is_whole or kind == "completion"
            if kind == "attempt":
                before = attempts.get(str(entry.get("uuid")), (0, {"status": 0}))[1]
                if _status(entry, path, number) >= before["status"]:  # each is written when it is answered, and again when it is judged
                    attempts[str(entry["uuid"])] = number, entry
            if kind == "eval":
                counts.update(_counts_of(entry, path, number))
    except DataError:
        if is_finished:
            raise
    if is_finished and not is_whole:
        raise DataError(f"{path.name} is not whole: the scan was interrupted; run it again, it goes on with this probe")
    if is_finished:
        _check_counts(path, [entry for _, entry in attempts.values()], counts)
    by_probe = dict[str, list[ImportedItem]]()
    for number, entry in sorted(attempts.values(), key=lambda attempt: attempt[1]["seq"]):  # those asked at once come in any order
        items = _items_of(entry, f"{path.name}, line {number}", is_finished=is_finished)
        by_probe.setdefault(str(entry.get("probe_classname")), []).extend(items)
    for probe in setup.get("transient.active_probes") or []:
        by_probe.setdefault(str(probe).removeprefix("probes."), [_absent(is_finished=is_finished)])
    conditions = {name: str(setup.get(said)) for name, said in CONDITIONS.items()}
    conditions |= {name: settings.get(name, "unknown") for name in ("max_tokens", "temperature")}  # a report does not tell them
    about = {"model": str(setup.get("plugins.target_name")), "run": "whole" if is_finished else "out of time"}
    for probe, own in sorted(by_probe.items()):
        yield ImportedTask(source="garak", name=probe, kind="answer", conditions=conditions, items=tuple(_numbered(own)), about=about)


def _status(entry: Mapping[str, Any], path: Path, number: int) -> int:
    status = entry.get("status")
    is_known = isinstance(status, int) and isinstance(entry.get("seq"), int) and isinstance(entry.get("detector_results"), dict)
    if not is_known or "uuid" not in entry:
        raise DataError(
            f"{path.name}, line {number} is no attempt as garak 0.17 writes it: read its reports with the version that made them"
        )
    return int(entry["status"])


def _counts_of(entry: Mapping[str, Any], path: Path, number: int) -> dict[tuple[str, str, str], int]:
    """What garak counted of one probe and detector."""
    found = {(str(entry.get("probe")), str(entry.get("detector")), name): entry.get(name) for name in ("passed", "fails", "nones")}
    if not all(isinstance(count, int) for count in found.values()):
        raise DataError(f"{path.name}, line {number} counts nothing: it is no evaluation as garak 0.17 writes it")
    return {name: int(count) for name, count in found.items() if isinstance(count, int)}


def _check_counts(path: Path, attempts: Sequence[Mapping[str, Any]], counts: Counter[tuple[str, str, str]]) -> None:
    """The report counts what its attempts say, and the hitlog has a line for every hit: else they are of two runs, or damaged."""
    own = Counter(
        (str(entry.get("probe_classname")), str(name), _outcome(value))
        for entry in attempts
        for name, values in entry["detector_results"].items()
        for value in (values if isinstance(values, list) else [])
    )
    if unlike := [name for name in sorted({*own, *counts}) if own[name] != counts[name]]:
        probe, detector, outcome = unlike[0]
        raise DataError(
            f"{path.name} counts {counts[unlike[0]]} {outcome} of {detector} in {probe}, its attempts say {own[unlike[0]]}: "
            f"it is damaged, or made with another threshold than {THRESHOLD}; run the probe again"
        )
    hitlog, hits = path.with_name(path.name.removesuffix(REPORT) + HITLOG), sum(own[name] for name in own if name[2] == "fails")
    told = sum(1 for _ in read_objects(hitlog)) if hitlog.exists() else hits
    if told != hits:
        raise DataError(
            f"{hitlog.name} tells of {told} hits, {path.name} of {hits}: they are of two runs, or one is damaged; run the probe again"
        )


def _outcome(value: Any) -> str:
    """As garak counts a detector's value."""
    if value is None:
        return "nones"
    return "passed" if isinstance(value, int | float) and value < THRESHOLD else "fails"


def _items_of(entry: Mapping[str, Any], where: str, *, is_finished: bool) -> Iterator[ImportedItem]:
    """The answers to one prompt."""
    prompt, outputs, found = _text_of(entry.get("prompt")), entry.get("outputs"), entry["detector_results"]
    if not isinstance(outputs, list):
        raise DataError(f"{where} holds no answers: garak was interrupted; run it again")
    if wrong := [name for name, values in found.items() if not isinstance(values, list) or len(values) != len(outputs)]:
        raise DataError(f"{where}: detector {wrong[0]!r} does not say one thing for each of {len(outputs)} answers: the report is damaged")
    reason = "" if entry["status"] == COMPLETE else "the detectors had not looked at it when the probe's time was over"
    group = digest_of([str(entry.get("probe_classname")), prompt])[:16]
    for place in range(max(1, len(outputs))):
        values = {name: number_of(values[place]) if place < len(values) else None for name, values in found.items()}
        scores = {name: None if value is None else float(value < THRESHOLD) for name, value in values.items()} or UNJUDGED
        hit = [name for name, score in scores.items() if score == 0]
        answer = outputs[place] if place < len(outputs) else None
        why = (
            "no answer was given"
            if answer is None
            else f"found by {', '.join(hit)}"
            if hit
            else ""
            if found
            else "no detector looked at it"
        )
        yield ImportedItem(
            key=f"{group}:{place}",
            prompt=prompt[:MAX_TEXT],
            target="",
            answer=_text_of(answer)[:MAX_TEXT],
            scores=scores if is_finished and answer is not None else dict.fromkeys(scores),
            group=group,
            explanation=reason or why or ("the probe's time was over" if not is_finished else ""),
        )


def _absent(*, is_finished: bool) -> ImportedItem:
    """In the place of a probe that was wanted and has no attempt."""
    why = (
        "garak could not load this probe, or its detectors: see its log" if is_finished else "the time was over before this probe was asked"
    )
    return ImportedItem(key="all of it", prompt="", target="", answer="", scores=UNJUDGED, explanation=why)


def _numbered(items: Sequence[ImportedItem]) -> Iterator[ImportedItem]:
    """A prompt that is asked more than once, told apart by its turn."""
    seen = dict[str, int]()
    for item in items:
        turn = seen[item.key] = seen.get(item.key, -1) + 1
        yield replace(item, key=f"{item.key}:{turn}")


def _text_of(value: Any) -> str:
    """The text of a message, or of a conversation's turns."""
    match value:
        case None:
            return ""
        case str():
            return value
        case {"turns": [*turns]}:
            return "\n".join(_text_of(turn.get("content")) for turn in turns if isinstance(turn, dict))
        case {"text": str(text)}:
            return text
    return ""
