"""What all request bodies have in common: strict parts, valid Unicode, fields that ask for nothing."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

INT64 = 2**63
MAX_DEPTH = 64

T = TypeVar("T")

Neutral = Mapping[str, tuple[Any, ...]]


def _check_unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("holds half a surrogate pair: send valid Unicode") from exc
    return text


def check_json(value: T) -> T:
    """The same for all text in a JSON value, which is not nested deeper than anybody means it either.

    Raises:
        ValueError: if it is not so.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):  # level by level: a stranger's depth is not to be that of our own calls
        inner: list[Any] = []
        for own in level:
            if isinstance(own, str):
                _check_unicode(own)
            elif isinstance(own, Mapping):
                inner += [*own.keys(), *own.values()]
            elif isinstance(own, list):
                inner += own
            elif isinstance(own, float) and not math.isfinite(own):
                raise ValueError("holds a number that is not finite: JSON has none")
        if not inner:
            return value
        level = inner
    raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")


Text = Annotated[str, AfterValidator(_check_unicode)]
JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]


class RequestPart(BaseModel):
    """Base of what strangers send: unknown fields are errors, nothing is converted, values do not change after reading.

    A field that is null, or that has a value which asks for nothing, is as good as left out; the JSON schema says so too.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    neutral: ClassVar[Neutral] = {}
    """Values that ask for nothing, by field: leaving them out changes no answer. Some fields are honoured with no others."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return without_neutral(value, cls.neutral)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of what is taken: with the nulls and the fields that are dropped."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        fields = own.setdefault("properties", {})
        for name in fields.keys() - set(own.get("required", ())):
            fields[name] = {"anyOf": [fields[name], {"enum": [None, *cls.neutral.get(name, ())]}]}
        for name in cls.neutral.keys() - fields.keys():
            fields[name] = {"enum": [None, *cls.neutral[name]], "description": "Not honoured: these values ask for nothing"}
        own["additionalProperties"] = {"type": "null"}
        return schema


def without_neutral(body: Any, neutral: Neutral) -> Any:
    """A JSON object without its nulls and without fields that are not honoured but ask for nothing either."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if value is not None and not _is_among(value, neutral.get(key, ()))}


def _is_among(value: Any, neutral: Iterable[Any]) -> bool:
    """Equality as JSON has it: `0` is `0.0`, but not `false`."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)
