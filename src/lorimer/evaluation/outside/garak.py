"""garak (NVIDIA's scanner, 0.17.1): its probes put to a server of ours, one process and one report a probe, its reports read as tasks.

A report that is whole is not made again, so that a scan goes on where it stopped. What a probe had no time for is unscored.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, UsageError
from lorimer.evaluation.outside.environment import python_of, run
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask, number_of
from lorimer.evaluation.outside.lines import read_objects
from lorimer.storage import digest_of, write_text

VARIABLE = "LORIMER_GARAK"
PACKAGE = "garak==0.17.1"
REPORT, HITLOG, UNFINISHED = ".report.jsonl", ".hitlog.jsonl", ".unfinished.jsonl"
STARTED, COMPLETE = 1, 2
"""An attempt's status: answered, and looked at by the detectors."""
THRESHOLD = 0.5
PROBE_SECONDS = 600.0
MAX_TEXT = 4000


def run_garak(
    base_url: str,
    model: str,
    probes: Sequence[str],
    output: Path,
    *,
    key: str = "none",
    num_answers: int = 1,
    max_tokens: int = 150,
    seed: int = 1,
    seconds_a_probe: float = PROBE_SECONDS,
    options: Sequence[str] = (),
) -> tuple[ImportedTask, ...]:
    """Put probes to a model of a server (`base_url` without `/v1`), each for so long at most, and read what was found.

    `probes` are garak's names without their first word, `module` or `module.Class`. A probe whose report is whole is not asked again.

    Raises:
        UsageError: if LORIMER_GARAK names no Python, or no probe is named.
        LorimerError: if garak fails.
        DataError: as `read_garak`.
    """
    python = python_of(VARIABLE, PACKAGE)
    if not probes:
        raise UsageError("name at least one probe of garak: `python -m garak --list_probes` lists them, without their first word")
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    generator = {
        "openai": {
            "OpenAICompatible": {
                "uri": f"{base_url.rstrip('/').removesuffix('/v1')}/v1",
                "max_tokens": max_tokens,
                "temperature": 0.0 if num_answers == 1 else 1.0,
                "suppressed_params": ["n", "top_p", "frequency_penalty", "presence_penalty", "stop"] if num_answers == 1 else ["stop"],
            }
        }
    }
    write_text(output / "generator.json", json.dumps(generator))
    for probe in probes:
        report = output / f"{probe}{REPORT}"
        if report.exists() and _is_whole(report):
            continue
        for left in (report, output / f"{probe}{HITLOG}", output / f"{probe}{UNFINISHED}"):
            left.unlink(missing_ok=True)
        command = [
            python, "-m", "garak", "--target_type", "openai.OpenAICompatible", "--target_name", model,
            "--generator_option_file", str(output / "generator.json"), "--spec", f"probes.{probe}", "--generations", str(num_answers),
            "--seed", str(seed), "--report_prefix", str(output / probe), "--narrow_output", *options,
        ]  # fmt: skip
        told = {"OPENAICOMPATIBLE_API_KEY": key, "XDG_DATA_HOME": str(output / ".data"), "XDG_CACHE_HOME": str(output / ".cache")}
        if not run(command, log=output / f"{probe}.log", environment=told, seconds=seconds_a_probe) and report.exists():
            report.rename(output / f"{probe}{UNFINISHED}")
    return read_garak(output)


def read_garak(folder: Path) -> tuple[ImportedTask, ...]:
    """The probes of a scan, one task a probe: an item is an answer to a prompt, 1 where the detector found no harm.

    Detectors are metrics. Reports that are not whole tell what was asked; none of it is scored.

    Raises:
        DataError: if there are no reports, or one is damaged or does not agree with its hitlog.
    """
    reports = sorted([*folder.glob(f"*{REPORT}"), *folder.glob(f"*{UNFINISHED}")])
    if not reports:
        raise DataError(f"{str(folder)!r} holds no reports of garak (*{REPORT}): name the folder of a scan")
    tasks = [task for path in reports for task in _read_report(path)]
    if not tasks:
        raise DataError(f"the reports in {str(folder)!r} hold no attempt: the probes asked nothing; look into their logs")
    return tuple(tasks)


def _is_whole(report: Path) -> bool:
    try:
        return any(entry.get("entry_type") == "completion" for _, entry in read_objects(report))
    except DataError:
        return False


def _read_report(path: Path) -> Iterator[ImportedTask]:
    is_finished = not path.name.endswith(UNFINISHED)
    attempts, setup, is_whole = dict[str, tuple[int, dict[str, Any]]](), dict[str, Any](), False
    try:
        for number, entry in read_objects(path):
            kind = entry.get("entry_type")
            setup = entry if kind == "start_run setup" else setup
            is_whole = is_whole or kind == "completion"
            if kind == "attempt":
                before = attempts.get(str(entry.get("uuid")), (0, {"status": 0}))[1]
                if _status(entry, path, number) >= before["status"]:  # each is written when it is answered, and again when it is judged
                    attempts[str(entry["uuid"])] = number, entry
    except DataError:
        if is_finished:
            raise
    if is_finished and not is_whole:
        raise DataError(f"{path.name} is not whole: the scan was interrupted; run it again, it goes on with this probe")
    threshold = number_of(setup.get("run.eval_threshold"))
    by_probe = dict[str, list[ImportedItem]]()
    for number, entry in attempts.values():
        items = _items_of(entry, f"{path.name}, line {number}", THRESHOLD if threshold is None else threshold, is_finished=is_finished)
        by_probe.setdefault(str(entry.get("probe_classname")), []).extend(items)
    _check_hits(path, by_probe)
    conditions = {
        "garak": str(setup.get("_config.version")),
        "seed": str(setup.get("run.seed")),
        "generations": str(setup.get("run.generations")),
    }
    for probe, own in sorted(by_probe.items()):
        about = {"model": str(setup.get("plugins.target_name")), "run": "whole" if is_finished else "out of time"}
        yield ImportedTask(source="garak", name=probe, kind="answer", conditions=conditions, items=tuple(_numbered(own)), about=about)


def _status(entry: Mapping[str, Any], path: Path, number: int) -> int:
    status = entry.get("status")
    if not isinstance(status, int) or "uuid" not in entry or not isinstance(entry.get("detector_results"), dict):
        raise DataError(
            f"{path.name}, line {number} is no attempt as garak 0.17 writes it: read its reports with the version that made them"
        )
    return status


def _items_of(entry: Mapping[str, Any], where: str, threshold: float, *, is_finished: bool) -> Iterator[ImportedItem]:
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
        scores = {name: None if value is None else float(value < threshold) for name, value in values.items()}
        hit = [name for name, score in scores.items() if score == 0]
        answer = outputs[place] if place < len(outputs) else None
        why = "no answer was given" if answer is None else f"found by {', '.join(hit)}" if hit else ""
        yield ImportedItem(
            key=f"{group}:{place}",
            prompt=prompt[:MAX_TEXT],
            target="",
            answer=_text_of(answer)[:MAX_TEXT],
            scores=scores if is_finished and answer is not None else dict.fromkeys(scores or ["unjudged"]),
            group=group,
            explanation=reason or why or ("the probe's time was over" if not is_finished else ""),
        )


def _numbered(items: Sequence[ImportedItem]) -> Iterator[ImportedItem]:
    """A prompt that is asked more than once, told apart by its turn."""
    seen = dict[str, int]()
    for item in items:
        turn = seen[item.key] = seen.get(item.key, -1) + 1
        key = f"{item.key}:{turn}"
        yield ImportedItem(
            key=key,
            prompt=item.prompt,
            target=item.target,
            answer=item.answer,
            scores=item.scores,
            group=item.group,
            explanation=item.explanation,
        )


def _check_hits(path: Path, by_probe: Mapping[str, Sequence[ImportedItem]]) -> None:
    """The hitlog has a line for every hit of the report; one that has other hits belongs to another run."""
    hitlog = path.with_name(path.name.removesuffix(REPORT) + HITLOG)
    if path.name.endswith(UNFINISHED) or not hitlog.exists():
        return
    told = sum(1 for _ in read_objects(hitlog))
    found = sum(score == 0 for items in by_probe.values() for item in items for score in item.scores.values())
    if told != found:
        raise DataError(
            f"{hitlog.name} tells of {told} hits, {path.name} of {found}: they are of two runs, or one is damaged; run the probe again"
        )


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
