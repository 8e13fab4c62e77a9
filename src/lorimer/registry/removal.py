"""Taking rows out: datasets are replaced by ones without them, and the bytes of all that held or learned from them are deleted.

Every step may be done again: what is gone already is passed over. Nothing is looked up by content.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lorimer.blobs import remove
from lorimer.config import home
from lorimer.data.card import build_card
from lorimer.data.dataset import find_pointer, keep_lines, open_dataset, point
from lorimer.data.example import Example
from lorimer.data.rules import Finding
from lorimer.data.split import SPLITS, SplitName, Splits
from lorimer.evaluation.suite import shipped_suites
from lorimer.registry.exports import DIGESTS, Export
from lorimer.registry.registry import folder_of
from lorimer.registry.scope import HeldDataset, is_about, request_files
from lorimer.storage import digest_of, digest_of_file, explain_disk_errors, read_json, replace_lines, scratch_folder, write_jsonl

LEFT_OUT = "left_out.jsonl"
RULE = "erasure"


def erased_rows(held: HeldDataset, records: Collection[str]) -> Iterator[Example]:
    """The rows of a dataset that go."""
    opened = open_dataset(held.folder.name)
    for split in SPLITS:
        yield from (row for row in opened.rows(split) if (row.subject or row.parent) and row.record_digest in records)


def make_replacement(held: HeldDataset, records: Collection[str]) -> str | None:
    """Write the dataset without the rows, which keep their splits; returns its digest, None if nothing is left to train on.

    The same rows out of the same dataset always make the same one. Rows that were left out when it was curated stay out.
    """
    opened = open_dataset(held.folder.name)
    rows = {split: tuple(row for row in opened.rows(split) if not _is_gone(row, records)) for split in SPLITS}
    if not rows["train"]:
        return None
    num = sum(held.num_rows.values())
    digests = [bytes.fromhex(row.record_digest) for split in SPLITS for row in rows[split]]

    def lines(split: SplitName) -> Iterator[bytes]:
        with (held.folder / f"{split}.jsonl").open("rb") as file:
            yield from (line for line in file if sha256(line.rstrip(b"\n")).hexdigest() not in records)

    with scratch_folder(home() / "datasets") as folder:
        left_out = _left_out(held.folder, num)
        write_jsonl(folder / LEFT_OUT, left_out)
        card = _card(opened.card, Splits(**rows), num, digest_of_file(folder / LEFT_OUT))
        return keep_lines(opened.name, card, digests, lines, {LEFT_OUT: folder / LEFT_OUT}).digest


def repoint(held: HeldDataset, replacement: str | None) -> None:
    """Let the names that stand for a dataset stand for its replacement, or for nothing."""
    for name in held.names:
        if replacement is not None:
            point(name, replacement)
        else:
            find_pointer(name).unlink(missing_ok=True)
            remove(home() / "datasets" / f"{name}.json")


def remove_folder(folder: Path) -> bool:
    """Delete a folder here and in the store; returns whether there was one.

    Raises:
        StorageError: if it cannot be deleted.
    """
    was_there = folder.is_dir()
    if was_there:
        with explain_disk_errors(folder):
            shutil.rmtree(folder)
    return remove(folder) or was_there


def remove_adapter(digest: str) -> bool:
    """Delete an adapter's files here and in the store."""
    return remove_folder(folder_of(digest))


def remove_runs(datasets: Collection[str], run_ids: Collection[str]) -> int:
    """Delete the folders of runs, checkpoints and all; returns how many."""
    return _remove_where("runs", "run.json", lambda run: run.get("dataset_digest") in datasets or run.get("id") in run_ids)


def remove_reports(datasets: Collection[str], adapters: Collection[str]) -> int:
    """Delete evaluation reports, which quote rows and answers, and what models and judges answered, which does not say of whom it is.

    Of reports on suites those stay that quote nothing but the product's own items, of adapters that never saw the rows.
    """
    shutil.rmtree(home() / "answers", ignore_errors=True)
    for path in (home() / "judges").glob("*.jsonl"):
        path.unlink()

    def goes(report: Mapping[str, Any]) -> bool:
        judged = {report.get("adapter_digest"), report.get("candidate_digest"), report.get("incumbent_digest")}
        quotes_strangers = "suite" in report and report["suite"] not in shipped_suites()
        return report.get("dataset_digest") in datasets or not judged.isdisjoint(adapters) or quotes_strangers

    return _remove_where("reports", "report.json", goes)


def remove_requests(ids: Collection[str]) -> int:
    """Take the lines that name the persons out of the request log; returns how many."""
    return sum(replace_lines(path, lambda line: not is_about(line, ids)) for path in request_files()) if ids else 0


def remove_paraphrases(records: Collection[str]) -> int:
    """Take paraphrases of the rows out of what endpoints answered; returns how many."""

    def keeps(line: bytes) -> bool:
        try:
            return json.loads(line).get("parent") not in records
        except (ValueError, AttributeError):
            return True

    return sum(replace_lines(path, keeps) for path in sorted((home() / "augmentations").glob("*.jsonl")))


def remove_export(one: Export) -> bool:
    """Delete an export that has not left the platform, if its folder still is what was written; returns whether it is gone."""
    folder = Path(one.place)
    if not folder.is_dir():
        return True
    found = {file.name: digest_of_file(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != DIGESTS}
    if digest_of(found) != one.content_digest:
        return False
    with explain_disk_errors(folder):
        shutil.rmtree(folder)
    return True


def _is_gone(row: Example, records: Collection[str]) -> bool:
    return bool(row.subject or row.parent) and row.record_digest in records


def _left_out(folder: Path, num: int) -> list[dict[str, str]]:
    """The account of rows that are in no split, without its words: they may quote a row, or say which it was like."""
    path = folder / LEFT_OUT
    kept: list[dict[str, str]] = []
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            kept = [{**json.loads(line), "reason": ""} for line in lines]
    return kept + [{"source": "", "rule": RULE, "reason": ""}] * num


def _card(old: dict[str, Any], splits: Splits, num: int, left_out_sha256: str) -> dict[str, Any]:
    """The old card with everything counted anew, and without examples."""
    message = f"{num:,} row{'s were' if num != 1 else ' was'} taken out at the request of whom they were about"
    new = build_card(
        old["name"],
        splits,
        curation=old["curation"],
        sources=old["sources"],
        findings=[Finding(rule=RULE, num_removed=num, message=message)],
        problems=[],
    )
    findings = [{**finding, "examples": [], "reasons": []} for finding in old["findings"]]
    accounting = dict(old.get("accounting") or {})
    if accounting:
        left_out = dict(accounting["left_out"])
        left_out[RULE] = left_out.get(RULE, 0) + num
        accounting |= {"num_kept": accounting["num_kept"] - num, "left_out": left_out, "left_out_sha256": left_out_sha256}
    kept = {"accounting": accounting, "num_problems": old["num_problems"], "duplicates": old.get("duplicates", {})}
    return {**old, **new, **kept, "findings": findings + new["findings"]}


def _remove_where(room: str, file: str, is_meant: Any) -> int:
    num = 0
    for path in sorted((home() / room).glob(f"*/{file}")):
        try:
            value = read_json(path)
        except (OSError, ValueError):
            continue  # half-written by somebody who was interrupted: the search for bytes looks into it
        if isinstance(value, dict) and is_meant(value):
            num += remove_folder(path.parent)
    return num
