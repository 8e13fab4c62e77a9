"""What a client is told when it gets no answer: errors in OpenAI's shape, findings on a body as sentences that name the field."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from lorimer.errors import LorimerError
from lorimer.serving.protocol import KNOWN_FIELDS, NOT_HONOURED

MAX_SHOWN_LEN = 100  # characters of a stranger's text in a message
MAX_FINDINGS = 16  # of one body: a stranger may send a hundred thousand wrong fields


class ApiError(LorimerError):
    """A request refused or failed, as the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})
        """What the reply says beside its body, as `retry-after`."""

    def to_json(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def describe_invalid(errors: Iterable[Mapping[str, Any]]) -> ApiError:
    """pydantic's findings on a body -> one error that names every field, the first of them as `param`."""
    by_path: dict[str, list[Mapping[str, Any]]] = {}
    for error in islice(errors, MAX_FINDINGS):
        path = "" if error["type"] == "json_invalid" else _path(error["loc"])  # which says at which character
        by_path.setdefault(path, []).append(error)
    paths = [path for path in by_path if not any(other.startswith(f"{path}[") for other in by_path)]  # the deepest are to the point
    message = "; ".join(_describe(path, by_path[path]) for path in paths)
    return ApiError(400, message, param=paths[0] or None, code=_code(by_path[paths[0]][0]["type"], paths[0]))


def _path(location: Iterable[Any]) -> str:
    """`messages[0].content`; the names pydantic gives to the branches of a union are left out."""
    path = ""
    for part in list(location)[1:]:  # the first is `body`
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "int") and "[" not in part:
            path += f".{part}" if path else str(part)
    return shown(path)


def _describe(path: str, errors: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong at one place; several findings are the branches of a union."""
    error = next(iter(errors))
    name = path.rpartition(".")[2]
    match error["type"]:
        case "json_invalid":
            return "the body is not valid JSON"
        case "missing" | "model_attributes_type" | "model_type" if not path:
            return "the body must be a JSON object, sent with `content-type: application/json`"
        case "extra_forbidden" if name in NOT_HONOURED:
            return f"`{path}` is not supported with this value: leave it out"
        case "extra_forbidden":
            near = get_close_matches(name, KNOWN_FIELDS, n=1)
            return f"unknown field `{path}`" + (f": did you mean `{near[0]}`?" if near else "")
        case "missing":
            return f"`{path}` is missing"
    said = " or ".join(dict.fromkeys(_sentence(error) for error in errors))
    return f"`{path}`: {said}" if path else f"the body: {said}"


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    text = str(error["msg"])
    return text[0].lower() + text[1:]


def _code(kind: str, path: str) -> str:
    """OpenAI's code for a kind of finding."""
    if kind == "extra_forbidden":
        return "unsupported_parameter" if path.rpartition(".")[2] in NOT_HONOURED else "unknown_parameter"
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def shown(text: str) -> str:
    """A stranger's text as it may stand in a message: not long, and always encodable."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN_LEN else f"{text[:MAX_SHOWN_LEN]}..."
