"""The items of a task as a file holds them: JSON lines, read strictly; what cannot be asked is named with its line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lorimer.config import Strict
from lorimer.data.example import Message, Role
from lorimer.errors import DataError
from lorimer.evaluation.scorers.policy import policy_items
from lorimer.evaluation.task import ID_LEN, Kind, Sample, Template
from lorimer.storage import digest_of

MAX_FILE_BYTES = 64_000_000


class _Message(Strict):
    role: Role
    content: str


class _Item(Strict):
    """One line of an item file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str | None = Field(None, min_length=1, max_length=200)
    prompt: str | None = None
    messages: list[_Message] | None = None
    target: str = ""
    choices: list[str] = Field(default_factory=list)
    group: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)


_ITEM = TypeAdapter(_Item)


def read_items(path: Path, kind: Kind, template: Template) -> tuple[Sample, ...]:
    """The items of a file that is asked so.

    Raises:
        DataError: if there are none, or some cannot be used; every one is named.
    """
    problems, seen, samples = list[str](), dict[str, int](), list[Sample]()
    for number, line in _policy_lines(path) if path.suffix in (".yaml", ".yml") else _lines(path):
        try:
            sample = _sample(_ITEM.validate_json(line))
            problems += [f"line {number}: {problem}" for problem in _find_faults(sample, kind, template)]
        except ValidationError as exc:
            problems += [f"line {number}: {'.'.join(map(str, error['loc']))} {error['msg']}".rstrip() for error in exc.errors()]
            continue
        if sample.id in seen:
            problems.append(f"line {number} asks what line {seen[sample.id]} asks: it would count twice")
        seen.setdefault(sample.id, number)
        samples.append(sample)
    if not samples and not problems:
        problems = ["it is empty: a task needs items"]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise DataError(f"{path.name}: {shown}")
    return tuple(samples)


def _policy_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The prompts of a policy file, as lines."""
    return ((number, json.dumps(item).encode()) for number, item in enumerate(policy_items(path), start=1))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path.name} has more than {MAX_FILE_BYTES:,} bytes: a suite is asked often, use fewer items")
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as exc:
        raise DataError(f"{path.name} cannot be read: {exc.strerror}") from exc
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _sample(item: _Item) -> Sample:
    messages = [Message(role="user", content=item.prompt)] if item.prompt is not None else []
    messages += [Message(role=one.role, content=one.content) for one in item.messages or ()]
    content = {"messages": [[m.role, m.content] for m in messages], "target": item.target, "choices": item.choices, "spec": item.spec}
    return Sample(
        id=item.id or digest_of(content)[:ID_LEN],
        prompt=tuple(messages),
        target=item.target,
        tags=item.tags,
        choices=tuple(item.choices),
        group=item.group,
        spec=item.spec,
    )


def _find_faults(sample: Sample, kind: Kind, template: Template) -> Iterator[str]:
    """Why an item cannot be asked so."""
    if kind != "text" and not sample.prompt:
        yield "it needs `prompt` or `messages`"
    if kind != "text" and sample.prompt and sample.prompt[-1].role != "user":
        yield "its last message is not the user's"
    if template == "none" and len(sample.prompt) > 1:
        yield "without a template there is one prompt, not several messages"
    if kind == "choice" and (sample.target not in sample.choices or len(set(sample.choices)) < max(2, len(sample.choices))):
        yield "its `choices` are two or more different ones, the target among them"
    if kind == "text" and not sample.target.strip():
        yield "its `target` is the text to be read, and is empty"
