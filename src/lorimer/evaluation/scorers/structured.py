"""Answers that are JSON: are they one value and nothing else, valid against a schema, and which fields are right?"""

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import regex  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample
from lorimer.storage import canonical_json

NUM_VIOLATIONS = 3
"""How many violations of a schema an explanation names."""
PATTERN_SECONDS = 1.0


def json_schema(answer: str, sample: Sample) -> Score:
    """Right if the whole answer is one JSON value that is valid against `spec["schema"]` (JSON Schema, draft 2020-12 unless it says).

    A schema may refer to itself, never to another address. The target is not read: any valid value is right.
    """
    if not isinstance(sample.spec.get("schema"), dict | bool):
        return Score(value=None, answer=answer, explanation='needs spec {"schema": a JSON schema}')
    schema = sample.spec["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        return Score(value=None, answer=answer, explanation=f"the schema is not valid: {getattr(error, 'message', 'too deep')}")
    try:
        value = _parse(answer)
    except (ValueError, RecursionError):  # a model may answer "[[[[[..." without end
        return scored(False, answer, "is not one JSON value and nothing else")
    validator = _bounded(kind)(schema, registry=Registry())
    try:
        violations = sorted(validator.iter_errors(value), key=lambda error: ([str(part) for part in error.absolute_path], error.message))
    except Unresolvable as error:
        return Score(value=None, answer=answer, explanation=f"the schema refers to what is not in it: {error}")
    except TimeoutError:
        return Score(value=None, answer=answer, explanation=f"a pattern of the schema took more than {PATTERN_SECONDS} s on this answer")
    except (RecursionError, OverflowError, regex.error) as error:
        return Score(value=None, answer=answer, explanation=f"the schema cannot be applied to this answer: {error}")
    return scored(not violations, answer, _list([f"{_where(error)}: {_shorten(error.message)}" for error in violations]))


def json_fields(answer: str, sample: Sample) -> Score:
    """The share of the target's fields that the answer, one JSON object, has with the same value; 0 where it is no object.

    Fields that are not wanted cost nothing here: `exact_json` refuses them.
    """
    wanted, found = parse_object(sample.target), parse_object(answer)
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target is not a JSON object with at least one field")
    if found is None:
        return Score(value=0.0, answer=answer, explanation="is not one JSON object and nothing else")
    problems = [f"{name!r} {'differs' if name in found else 'is missing'}" for name in wanted if found.get(name) != wanted[name]]
    return Score(value=1 - len(problems) / len(wanted), answer=answer, explanation="; ".join(problems))


def parse_object(text: str) -> dict[str, bytes] | None:
    """A JSON object's fields, each value in its one spelling (so 1.0 equals 1 but not true); None if the text is anything else."""
    try:
        value = _parse(text)
        return {name: canonical_json(part) for name, part in value.items()} if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_float=_number, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a field twice: which of the two values is meant, nobody knows (RFC 8259, section 4)."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _number(text: str) -> float | int:
    """JSON knows one kind of number: 1.0 is 1."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return int(value) if value.is_integer() else value


def _refuse(text: str) -> float:
    """NaN and Infinity are no JSON, though Python would read them."""
    raise ValueError(f"{text} is not JSON")


@lru_cache(maxsize=8)
def _bounded(kind: Any) -> Any:
    """A draft's validator whose patterns end."""
    return jsonschema.validators.extend(kind, {"pattern": _pattern})


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern` with a bound on its time: the text it reads is a model's."""
    if isinstance(value, str) and not regex.search(pattern, value, timeout=PATTERN_SECONDS):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


def _where(error: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)


def _shorten(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _list(violations: list[str]) -> str:
    rest = len(violations) - NUM_VIOLATIONS
    return "; ".join(violations[:NUM_VIOLATIONS]) + (f"; and {rest} more" if rest > 0 else "")
