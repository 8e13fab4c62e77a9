"""What all request bodies have in common: strict parts, valid Unicode, fields that ask for nothing."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

INT64 = 2**63


def _check_unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("holds half a surrogate pair: send valid Unicode") from exc
    return text


def _check_json_unicode(value: Any) -> Any:
    """The same for all text in a JSON value."""
    if isinstance(value, str):
        _check_unicode(value)
    elif isinstance(value, Mapping):
        for key, own in value.items():
            _check_unicode(key)
            _check_json_unicode(own)
    elif isinstance(value, list):
        for own in value:
            _check_json_unicode(own)
    return value


Text = Annotated[str, AfterValidator(_check_unicode)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_check_json_unicode)]


class RequestPart(BaseModel):
    """Base of what strangers send: unknown fields are errors, nothing is converted, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def without_neutral(body: Any, neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """A JSON object without its nulls and without fields that are not honoured but ask for nothing either."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if value is not None and not _is_among(value, neutral.get(key, ()))}


def _is_among(value: Any, neutral: Iterable[Any]) -> bool:
    """Equality as JSON has it: `0` is `0.0`, but not `false`."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)
