"""How an answer calls tools: read off the base's chat template by letting it show a few, or in plain JSON where it shows none."""

import json
from dataclasses import dataclass
from typing import Any

from lorimer.errors import DataError
from lorimer.model.chat import Renderer
from lorimer.model.turns import ToolCall, Turn

ARGUMENTS = {"field-7f": "value-7f"}
ARGUMENTS_SHOWN = (json.dumps(ARGUMENTS), json.dumps(ARGUMENTS, separators=(",", ":")))
RESULT = "result-7f"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """The text around names and arguments in an answer: `before NAME between ARGUMENTS after`, with `glue` before each further call."""

    before: str
    between: str
    glue: str | None
    """None where there cannot be a second call."""
    after: str


PLAIN_SHAPE = CallShape(before='{"name": "', between='", "arguments": ', glue='}\n{"name": "', after="}")
"""For bases whose template knows nothing of tools."""


def read_call_shape(renderer: Renderer) -> CallShape | None:
    """The shape that the base's template gives to calls; None if it does not show tools, calls and results, or shows calls by markers."""
    one = _shown(renderer, "probe_a")
    if one is None:
        return None
    before, between, after = one
    two = _shown(renderer, "probe_a", "probe_b")
    glue = two[2] if two is not None and [*two[:2], *two[3:]] == [before, between, between, after] else None
    if glue is not None and glue.startswith(after):  # calls are closed one by one: what opens a later one is all that opens the first
        opening = glue.removeprefix(after).lstrip()
        before = opening if before.endswith(opening) else before
    shape = CallShape(before=before.lstrip(), between=between, glue=glue, after=after)
    has_markers = any(renderer.spelling.places(part) for part in (shape.before, between, glue or "", after))
    return None if has_markers or not shape.before else shape


def _shown(renderer: Renderer, *names: str) -> list[str] | None:
    """What the template puts before, between and after names and arguments of calls; None if it does not show all there is to show."""
    calls = tuple(ToolCall(id=f"call0000{i}", name=name, arguments=ARGUMENTS) for i, name in enumerate(names))
    asked = [Turn(role="user", content="a")]
    called = [*asked, Turn(role="assistant", content="", tool_calls=calls)]
    results = [Turn(role="tool", content=RESULT, tool_call_id=call.id, name=call.name) for call in calls]
    tools = [_tool(name) for name in names]
    try:
        prompt, whole = renderer.show(asked, tools, add_generation_prompt=True), renderer.show(called, tools)
        answered = renderer.show([*called, *results], tools, add_generation_prompt=True)
    except DataError:
        return None
    if not all(name in prompt for name in names) or answered.count(RESULT) != len(names) or not whole.startswith(prompt):
        return None
    return _pieces(renderer, whole.removeprefix(prompt), names)


def _pieces(renderer: Renderer, text: str, names: tuple[str, ...]) -> list[str] | None:
    found = []
    for name in names:
        shown = next((arguments for arguments in ARGUMENTS_SHOWN if arguments in text), None)
        if shown is None or name not in text:
            return None
        before, _, rest = text.partition(name)
        between, _, text = rest.partition(shown)
        found += [before, between]
    ends = renderer.spelling.places(text)
    return [*found, (text[: ends[0]] if ends else text).rstrip()]


def _tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"field-7f": {"type": "string"}}, "required": ["field-7f"]}
    return {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": schema}}
