"""Sources and rules to a Dataset: read, check, clean, split, write. The room's story on one page.

Rows go to disk as they are read; in memory stay their features only, so that a million rows fit beside other work.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from lorimer.config import LANGUAGE_PATTERN, ColumnNames, Curation, Recipe, home
from lorimer.data.canaries import plant
from lorimer.data.card import KeptRows, card_of, describe_source
from lorimer.data.catalogue import ChosenRules, choose_rules
from lorimer.data.dataset import (
    Dataset,
    DatasetFolder,
    check_name,
    dataset_names,
    describe_names,
    read_dataset,
    read_folder,
    write_lines,
)
from lorimer.data.labels import are_labels, judge_labels
from lorimer.data.queries import QuerySource
from lorimer.data.reading import UNREADABLE, Asked, RowProblem, judge_chunk
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, Finding, LeftOut, Tally, count_rows, speaks
from lorimer.data.sources import Opened, Source, open_sources
from lorimer.data.split import MIN_TO_SPLIT, SPLITS, TEST, TRAIN, Assigned, SplitName, assign
from lorimer.data.staging import Progress, Staged, Staging
from lorimer.data.whole import Taken, drop_exact_duplicates, drop_leaks, find_conflicts, find_near_rows, find_twins, judge_near_rows
from lorimer.data.workers import Workers
from lorimer.errors import ConfigError, DataError, LorimerError, NotFoundError
from lorimer.storage import digest_of_file, new_file, scratch_folder

NUM_PROBLEMS_SHOWN = 10
MAX_WORKERS = 8  # one process writes what they read: more would wait for it
LEFT_OUT_FILE = "left_out.jsonl"


class CurateOptions(TypedDict, total=False):
    """What may be said about how rows are read and cleaned; all of it is written on the card."""

    columns: ColumnNames | None
    system: str | None
    languages: Sequence[str] | None
    test_source: Path | None
    seed: int
    skip_bad_rows: bool
    default_tags: Mapping[str, str] | None
    rules: Curation | None
    query: QuerySource | None
    """Rows of a database, beside those of the files."""
    licence: str
    """For rows whose column says none; so is `consent`."""
    consent: str
    workers: int | None
    """Processes that read; by default one a core. It changes nothing but the time."""
    progress: Progress | None


def curate(paths: Sequence[Path], *, name: str, **options: Unpack[CurateOptions]) -> Dataset:
    """`curate_to_disk`, and all rows in memory.

    Raises:
        As `curate_to_disk`.
    """
    return read_folder(curate_to_disk(paths, name=name, **options))


def curate_to_disk(paths: Sequence[Path], *, name: str, **options: Unpack[CurateOptions]) -> DatasetFolder:
    """Read sources, clean and split their rows and keep them as dataset `name`; the same sources and options give the same digest.

    Raises:
        NotFoundError: if a file does not exist.
        ConfigError: for a name, language, rule or column that cannot be, or a file of no known shape.
        DataError: if rows cannot be read (unless `skip_bad_rows`), a language has no rows, or no row is left.
    """
    wanted = _check_arguments(name, paths, options)
    with scratch_folder(home() / "datasets") as folder:
        left_out_path = folder / LEFT_OUT_FILE
        with new_file(folder / "rows.jsonl") as rows, new_file(left_out_path) as left_out:
            staging = Staging(folder, rows, left_out, wanted.progress)
            _stage(staging, wanted)
            staged = staging.finish()
            cleaned = _Cleaned(staging, staged)
            duplicates = _clean(cleaned, wanted)
            _split(cleaned, wanted)
        cleaned.check()
        _check_not_empty(cleaned, wanted)
        kept = KeptRows(features=staged.features, words=staged.words, assigned=cleaned.assigned, examples=staged.examples)
        accounting = {
            "num_read": staging.num_read,
            "num_kept": cleaned.num_kept,
            "left_out": dict(sorted(staging.num_left_out.items())),
            "left_out_sha256": digest_of_file(left_out_path),
        }
        wanted.progress("describing", len(staged))
        card = card_of(
            name,
            kept,
            curation=wanted.describe(),
            sources=[describe_source(each) for each in staging.read],
            findings=_findings(staging, wanted, cleaned.findings),
            problems=staging.problems,
            num_problems=staging.num_left_out[UNREADABLE],
            accounting=accounting,
            duplicates=duplicates,
        )
        wanted.progress("writing", cleaned.num_kept)
        in_order = (
            row for number in range(len(SPLITS)) for row in staged.features.record_digests(np.flatnonzero(cleaned.assigned == number))
        )

        def lines(split: SplitName) -> Any:
            return staged.lines(cleaned.assigned == SPLITS.index(split))

        return write_lines(name, card, in_order, lines, {LEFT_OUT_FILE: left_out_path})


def curate_file(recipe: Recipe) -> Dataset:
    """Curate the file a recipe names; the split does not depend on the recipe's seed, so that runs of several seeds can be compared.

    Raises:
        As `curate`, and ConfigError if the file's name makes no dataset name and the recipe gives none.
    """
    path = Path(recipe.dataset).expanduser()
    name = recipe.name or re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:63]
    if not name:
        raise ConfigError(f"no dataset name can be made from {path.name!r}: give the recipe a `name:`")
    return curate([path], name=name, columns=recipe.columns, system=recipe.system, languages=recipe.languages)


def resolve_dataset(recipe: Recipe) -> Dataset:
    """The curated dataset a recipe names, or the file it names, curated on the way; with canaries, if the recipe asks for some.

    Raises:
        NotFoundError: if there is neither.
        ConfigError: if the recipe says how to read a dataset that was curated otherwise, or canaries cannot be put in.
    """
    dataset = _find_or_curate(recipe)
    return plant(dataset, recipe.canaries) if recipe.canaries else dataset


def _find_or_curate(recipe: Recipe) -> Dataset:
    path = Path(recipe.dataset).expanduser()
    if recipe.dataset not in dataset_names() and path.is_file():
        return curate_file(recipe)
    try:
        dataset = read_dataset(recipe.dataset)
    except NotFoundError as exc:
        raise NotFoundError(
            f"dataset {recipe.dataset!r} is neither the name of a curated dataset ({describe_names(recipe.dataset)}) nor a file here: "
            "correct it, or curate one with `lorimer data curate FILE --name NAME`"
        ) from exc
    _check_same_curation(recipe, dataset)
    return dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The options, checked."""

    opened: Opened
    test: tuple[Source, ...]
    test_name: str
    curation: Curation
    chosen: ChosenRules
    asked: Asked
    languages: tuple[str, ...]
    skip_bad_rows: bool
    num_workers: int
    progress: Progress

    def describe(self) -> dict[str, Any]:
        """For the card."""
        curation = self.curation.model_dump(mode="json")
        return {
            "columns": self.asked.columns.model_dump(exclude_none=True) if self.asked.columns else None,
            "system": self.asked.system,
            "languages": list(self.languages) or None,
            "default_tags": dict(self.asked.default_tags),
            "seed": self.asked.seed,
            "licence": self.asked.licence or None,
            "consent": self.asked.consent or None,
            "files_not_read": list(self.opened.not_read),
            "rules": {name: _spell(settings) for name, settings in self.chosen.settings.items()},
            "duplicates": curation["duplicates"],
            "conflicts": curation["conflicts"],
            "labels": curation["labels"],
            "split": curation["split"],
        }


def _check_arguments(name: str, paths: Sequence[Path], options: CurateOptions) -> _Wanted:
    check_name(name)
    system, languages, test_source = options.get("system"), options.get("languages"), options.get("test_source")
    if system is not None and not system.strip():
        raise ConfigError("the system text is empty: give one, or leave it out")
    wrong = [language for language in languages or () if not re.match(LANGUAGE_PATTERN, language)]
    if wrong:
        raise ConfigError(f"languages {', '.join(map(repr, wrong))} must be tags such as `en` or `pt-BR`")
    query = options.get("query")
    if not paths and not query:
        raise ConfigError(f"dataset {name!r} needs at least one file to read")
    _check_paths([*paths, *([test_source] if test_source else [])])
    curation = options.get("rules") or Curation()
    chosen = choose_rules(curation, languages)
    opened = open_sources(paths)
    if query:
        opened = opened._replace(sources=(*opened.sources, query))
    tests = open_sources([test_source]) if test_source else Opened((), (), ())
    columns = options.get("columns")
    asked = Asked(
        columns=columns,
        system=system,
        default_tags=dict(options.get("default_tags") or {}),
        licence=options.get("licence", ""),
        consent=options.get("consent", ""),
        seed=options.get("seed", 0),
        shingling=curation.duplicates,
        keep_subjects=bool(columns and columns.subject),
    )
    return _Wanted(
        opened=opened,
        test=(*tests.sources, *tests.test, *opened.test),
        test_name=str(test_source or (opened.test[0].name if opened.test else "")),
        curation=curation,
        chosen=chosen,
        asked=asked,
        languages=tuple(languages or ()),
        skip_bad_rows=options.get("skip_bad_rows", False),
        num_workers=options.get("workers") or min(_num_cores(), MAX_WORKERS),
        progress=options.get("progress") or (lambda what, num: None),
    )


def _check_paths(files: Sequence[Path]) -> None:
    absent = [str(path) for path in files if not path.exists()]
    if absent:
        raise NotFoundError(f"{'files' if len(absent) > 1 else 'file'} {', '.join(map(repr, absent))} not found: check the path")
    resolved = [path.resolve() for path in files]
    twice = sorted(
        {str(path) for path, real in zip(files, resolved, strict=True) if resolved.count(real) > 1 or _is_inside(real, resolved)}
    )
    if twice:
        raise ConfigError(f"{', '.join(map(repr, twice))} is given more than once; a test file must not be a training file too")


def _is_inside(path: Path, folders: Sequence[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


def _stage(staging: Staging, wanted: _Wanted) -> None:
    """All rows through the row rules onto the disk; a given test file is judged by as it is: long and repeated rows stay."""
    with Workers(wanted.num_workers, judge_chunk) as workers:
        for source in wanted.opened.sources:
            staging.add(source, "train", wanted.asked, wanted.chosen.on_rows, workers)
        for source in wanted.test:
            staging.add(source, "test", wanted.asked, wanted.chosen.on_test, workers)
    num_problems = staging.num_left_out[UNREADABLE]
    if num_problems and not wanted.skip_bad_rows:
        raise DataError(_describe_problems(staging.problems, num_problems))
    settings = wanted.chosen.settings.get("keep_languages")
    if settings:
        for counts in staging.languages.values():
            _check_spoken(settings["languages"], counts)


def _check_spoken(languages: Sequence[str], counts: Mapping[str, int]) -> None:
    tags = {tag: count for tag, count in counts.items() if tag}
    without = [wanted for wanted in languages if not any(speaks(tag, wanted) for tag in tags)]
    if tags and without:
        found = ", ".join(f"{tag} ({count:,})" for tag, count in sorted(tags.items(), key=lambda pair: -pair[1]))
        raise DataError(f"no example is tagged {', '.join(map(repr, without))}, only {found}: add examples or leave the language out")


class _Cleaned:
    """Which staged rows are still kept, where they go, and what the rules over all rows found."""

    def __init__(self, staging: Staging, staged: Staged) -> None:
        self.staging = staging
        self.staged = staged
        self.assigned: Assigned = np.where(staged.is_test, TEST, TRAIN).astype(np.int8)
        self.findings: list[Finding] = []

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Rows in some split."""
        return self.assigned >= 0

    @property
    def num_kept(self) -> int:
        """How many these are."""
        return int(self.kept.sum())

    def take(self, taken: Taken) -> None:
        """Leave rows out as a rule found, with its reasons, and keep its finding."""
        self.findings.append(taken.finding)
        sources = self.staged.sources(taken.rows)
        pairs = zip(sources, taken.reasons, strict=True)
        self.staging.leave_out(LeftOut(source, taken.finding.rule, reason) for source, reason in pairs)
        self.assigned[taken.rows] = -1

    def check(self) -> None:
        """The law of this room: every row that was read is in a split or on the list of those left out.

        Raises:
            LorimerError: if one has vanished, which is a mistake in the program.
        """
        read, left_out = self.staging.num_read, self.staging.num_left_out.total()
        if read != self.num_kept + left_out:
            raise LorimerError(f"{read:,} rows were read, but {self.num_kept:,} are kept and {left_out:,} left out: please report this")


def _clean(cleaned: _Cleaned, wanted: _Wanted) -> dict[str, int]:
    """What repeats and what contradicts, outside a test file; for the card, how much of it there was."""
    staged, how = cleaned.staged, wanted.curation.duplicates
    own = ~staged.is_test
    wanted.progress("comparing", len(staged))
    cleaned.take(drop_exact_duplicates(staged, cleaned.kept & own, drops=how.exact == "drop"))
    exact = cleaned.findings[-1]
    cleaned.take(find_conflicts(staged, cleaned.kept & own, drops=wanted.curation.conflicts == "drop"))
    found = {"exact": exact.num_removed or exact.num_flagged}
    near = None
    if how.near != "off":
        near = find_near_rows(staged, cleaned.kept & own, how)
        sizes = (
            np.bincount(np.unique(near.group[np.unique(near.near.pairs)], return_inverse=True)[1]) if len(near.near.pairs) else np.zeros(0)
        )
        cleaned.take(judge_near_rows(staged, near, how))
        found |= {
            "near": len(np.unique(near.near.pairs[:, 1])),
            "groups_of_2": int((sizes == 2).sum()),
            "groups_of_3_to_5": int(((sizes >= 3) & (sizes <= 5)).sum()),
            "groups_of_6_and_more": int((sizes > 5).sum()),
        }
    if wanted.curation.labels != "off":
        searches = wanted.curation.labels == "search"
        cleaned.findings += judge_labels(staged, cleaned.kept & own, near, seed=wanted.asked.seed, searches=searches)
    return found


def _split(cleaned: _Cleaned, wanted: _Wanted) -> None:
    """Hold rows back, and take out of train what would give them away."""
    staged, rules, has_test = cleaned.staged, wanted.curation.split, bool(wanted.test)
    if has_test:
        cleaned.take(drop_leaks(staged, cleaned.kept, cleaned.assigned, has_test_file=True))
    rows = np.flatnonzero(cleaned.kept & ~staged.is_test)
    if len(rows) < MIN_TO_SPLIT:
        few = f"only {count_rows(len(rows))}, too few to hold any back (from {MIN_TO_SPLIT} on): all are in train"
        cleaned.findings.append(Finding(rule="split", message=few))
    answers = staged.features.answer[rows] if rules.stratify and are_labels(staged.features.answer[rows]) else None
    test = 0.0 if has_test else rules.test
    cleaned.assigned[rows] = assign(staged.features.place[rows], validation=rules.validation, test=test, answers=answers)
    columns = wanted.asked.columns
    if answers is not None or (columns and columns.group):  # otherwise rows that ask the same are in the same split
        cleaned.take(drop_leaks(staged, cleaned.kept, cleaned.assigned, has_test_file=False))
    if wanted.curation.duplicates.across_splits != "off":
        cleaned.take(find_twins(staged, cleaned.kept, cleaned.assigned, wanted.curation.duplicates))


def _findings(staging: Staging, wanted: _Wanted, found: Sequence[Finding]) -> list[Finding]:
    """All of them, in the order of the work."""
    findings = list(_skipped(staging.problems, staging.num_left_out[UNREADABLE]))
    for use, rules in (("train", wanted.chosen.on_rows), ("test", wanted.chosen.on_test if wanted.test else ())):
        for rule in rules:
            finding = staging.tallies.get(use, {}).get(rule.name, Tally()).finding(rule.name)
            untagged = staging.languages.get(use, Counter())[""]
            if rule.name == "keep_languages" and untagged:
                note = f"; {count_rows(untagged)} without a language tag were kept, whatever their language"
                finding = replace(finding, message=finding.message + note)
            findings.append(replace(finding, rule=f"{rule.name} (test file)") if use == "test" else finding)
    return [*findings, *found]


def _check_not_empty(cleaned: _Cleaned, wanted: _Wanted) -> None:
    """Refuse a dataset without rows to train on, or whose test file gave none.

    Raises:
        DataError: with what was taken out.
    """
    findings = _findings(cleaned.staging, wanted, cleaned.findings)
    removed = "; ".join(finding.message for finding in findings if finding.num_removed)
    if not (cleaned.assigned == TRAIN).any():
        raise DataError(f"no row is left to train on ({removed}): add rows")
    if wanted.test and not (cleaned.assigned == TEST).any():
        raise DataError(f"test file {wanted.test_name!r} leaves no row to judge by ({removed}): add rows, or leave it out")


def _spell(settings: Mapping[str, Any]) -> str:
    """A rule's settings as one line for the card."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "as by default"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe_problems(problems: Sequence[RowProblem], num: int) -> str:
    shown = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:NUM_PROBLEMS_SHOWN])
    more = f"; and {num - NUM_PROBLEMS_SHOWN:,} more rows" if num > NUM_PROBLEMS_SHOWN else ""
    return f"{shown}{more}: correct them, or go on without them with `lorimer data curate --skip-bad-rows`"


def _skipped(problems: Sequence[RowProblem], num: int) -> tuple[Finding, ...]:
    if not num:
        return ()
    message = f"{count_rows(num)} could not be read and had to be left out"
    shown = problems[:NUM_EXAMPLES_SHOWN]
    sources, reasons = tuple(problem.source for problem in shown), tuple(problem.reason for problem in shown)
    return (Finding(rule=UNREADABLE, num_removed=num, message=message, examples=sources, reasons=reasons),)


def _check_same_curation(recipe: Recipe, dataset: Dataset) -> None:
    """A curated dataset no longer changes, so what a recipe says about reading it must be what was done.

    Raises:
        ConfigError: naming each key that differs.
    """
    done: dict[str, Any] = dataset.card["curation"]
    differing = []
    if recipe.columns and recipe.columns.model_dump(exclude_none=True) != done["columns"]:
        differing.append(f"`columns` (curated with {done['columns']})")
    if recipe.system is not None and recipe.system != done["system"]:
        differing.append(f"`system` (curated with {done['system']!r})")
    if recipe.languages and not _has_languages(dataset, recipe.languages):
        found = ", ".join(dataset.card["languages"]) or "no row tagged with a language"
        differing.append(f"`languages` (curated with {found})")
    if differing:
        raise ConfigError(
            f"dataset {dataset.name!r} is curated already, and otherwise than the recipe says in {', '.join(differing)}: "
            "leave the key out, or give the file and not the name as `dataset:`"
        )


def _has_languages(dataset: Dataset, languages: Sequence[str]) -> bool:
    """Whether a filter for these languages was applied, or would change nothing."""
    if sorted(languages) == sorted(dataset.card["curation"]["languages"] or ()):
        return True
    tags = dataset.card["languages"]
    every_tag_wanted = all(any(speaks(tag, wanted) for wanted in languages) for tag in tags)
    return bool(tags) and every_tag_wanted and all(any(speaks(tag, wanted) for tag in tags) for wanted in languages)
