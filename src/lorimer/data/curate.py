"""Files and rules to a Dataset: read, check, clean, split, write. The room's story on one page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorimer.config import LANGUAGE_PATTERN, ColumnNames, Recipe
from lorimer.data.card import build_card, describe_source
from lorimer.data.dataset import Dataset, check_name, dataset_names, describe_names, read_dataset, write_dataset
from lorimer.data.example import Example
from lorimer.data.rules import (
    NUM_EXAMPLES_SHOWN,
    Cleaned,
    Finding,
    Rule,
    apply_rules,
    count_rows,
    drop_exact_duplicates,
    drop_too_long,
    flag_conflicts,
    keep_languages,
    speaks,
    strip_whitespace,
)
from lorimer.data.sources import RowProblem, read_rows
from lorimer.data.split import MIN_TO_SPLIT, Splits, drop_leaks, split
from lorimer.errors import ConfigError, DataError, NotFoundError

NUM_PROBLEMS_SHOWN = 10


def curate(
    paths: Sequence[Path],
    *,
    name: str,
    columns: ColumnNames | None = None,
    system: str | None = None,
    languages: Sequence[str] | None = None,
    test_source: Path | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
    default_tags: Mapping[str, str] | None = None,
) -> Dataset:
    """Read files, clean and split their rows and keep them as dataset `name`; the same files and options give the same digest.

    Raises:
        NotFoundError: if a file does not exist.
        ConfigError: for a name, language or column that cannot be, or a file of no known shape.
        DataError: if rows cannot be read (unless `skip_bad_rows`), a language has no rows, or no row is left.
    """
    _check_arguments(name, paths, test_source, languages, system)
    results = {path: read_rows(path, columns, system) for path in (*paths, *([test_source] if test_source else []))}
    problems = [problem for result in results.values() for problem in result.problems]
    if problems and not skip_bad_rows:
        raise DataError(_describe_problems(problems))
    tagged = {path: _add_tags(result.examples, default_tags or {}) for path, result in results.items()}
    rows, findings = _clean([example for path in paths for example in tagged[path]], languages)
    if test_source:
        splits, found = _split_with_test(rows, tagged[test_source], languages, seed)
    else:
        splits, found = _split(rows, seed)
    findings = (*_skipped(problems), *findings, *found)
    _check_not_empty(splits, findings, test_source)
    card = build_card(
        name,
        splits,
        curation={
            "columns": columns.model_dump(exclude_none=True) if columns else None,
            "system": system,
            "languages": list(languages) if languages else None,
            "default_tags": dict(default_tags or {}),
            "seed": seed,
        },
        sources=[describe_source(path, result, use="test" if path == test_source else "train") for path, result in results.items()],
        findings=findings,
        problems=problems,
    )
    return write_dataset(name, splits, card)


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
    """The curated dataset a recipe names, or the file it names, curated on the way.

    Raises:
        NotFoundError: if there is neither.
        ConfigError: if the recipe says how to read a dataset that was curated otherwise.
    """
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


def _check_arguments(
    name: str, paths: Sequence[Path], test_source: Path | None, languages: Sequence[str] | None, system: str | None
) -> None:
    check_name(name)
    if system is not None and not system.strip():
        raise ConfigError("the system text is empty: give one, or leave it out")
    wrong = [language for language in languages or () if not re.match(LANGUAGE_PATTERN, language)]
    if wrong:
        raise ConfigError(f"languages {', '.join(map(repr, wrong))} must be tags such as `en` or `pt-BR`")
    if not paths:
        raise ConfigError(f"dataset {name!r} needs at least one file to read")
    files = [*paths, *([test_source] if test_source else [])]
    absent = [str(path) for path in files if not path.exists()]
    if absent:
        raise NotFoundError(f"{'files' if len(absent) > 1 else 'file'} {', '.join(map(repr, absent))} not found: check the path")
    twice = sorted({str(path) for path in files if [other.resolve() for other in files].count(path.resolve()) > 1})
    if twice:
        raise ConfigError(f"{', '.join(map(repr, twice))} is given more than once; a test file must not be a training file too")


def _add_tags(examples: Sequence[Example], default_tags: Mapping[str, str]) -> list[Example]:
    return [replace(example, tags={**default_tags, **example.tags}) for example in examples] if default_tags else list(examples)


def _clean(examples: Sequence[Example], languages: Sequence[str] | None) -> Cleaned:
    only: tuple[Rule, ...] = (keep_languages(languages),) if languages else ()
    return apply_rules(examples, (strip_whitespace, *only, drop_too_long(), drop_exact_duplicates, flag_conflicts))


def _split(rows: Sequence[Example], seed: int, **shares: float) -> tuple[Splits, list[Finding]]:
    few = f"only {count_rows(len(rows))}, too few to hold any back (from {MIN_TO_SPLIT} on): all are in train"
    return split(rows, seed=seed, **shares), [Finding(rule="split", message=few)] if len(rows) < MIN_TO_SPLIT else []


def _split_with_test(
    rows: Sequence[Example], test: Sequence[Example], languages: Sequence[str] | None, seed: int
) -> tuple[Splits, list[Finding]]:
    """A given test file is judged by as it is: long and repeated rows stay, as published results count them."""
    rules: tuple[Rule, ...] = (strip_whitespace, keep_languages(languages)) if languages else (strip_whitespace,)
    test, findings = apply_rules(test, rules)
    kept, leak = drop_leaks(rows, test)
    splits, few = _split(kept, seed, test=0.0)
    found = [replace(finding, rule=f"{finding.rule} (test file)") for finding in findings]
    return replace(splits, test=tuple(test)), [*found, leak, *few]


def _check_not_empty(splits: Splits, findings: Sequence[Finding], test_source: Path | None) -> None:
    """Refuse a dataset without rows to train on, or whose test file gave none.

    Raises:
        DataError: with what was taken out.
    """
    removed = "; ".join(finding.message for finding in findings if finding.num_removed)
    if not splits.train:
        raise DataError(f"no row is left to train on ({removed}): add rows")
    if test_source and not splits.test:
        raise DataError(f"test file {str(test_source)!r} leaves no row to judge by ({removed}): add rows, or leave it out")


def _describe_problems(problems: Sequence[RowProblem]) -> str:
    shown = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:NUM_PROBLEMS_SHOWN])
    more = f"; and {len(problems) - NUM_PROBLEMS_SHOWN:,} more rows" if len(problems) > NUM_PROBLEMS_SHOWN else ""
    return f"{shown}{more}: correct them, or go on without them with `lorimer data curate --skip-bad-rows`"


def _skipped(problems: Sequence[RowProblem]) -> tuple[Finding, ...]:
    if not problems:
        return ()
    message = f"{count_rows(len(problems))} could not be read and had to be left out"
    first = tuple(problem.source for problem in problems[:NUM_EXAMPLES_SHOWN])
    return (Finding(rule="skip_bad_rows", num_removed=len(problems), message=message, examples=first),)


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
