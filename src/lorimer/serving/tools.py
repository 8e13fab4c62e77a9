"""How an answer is asked for calls of tools, held to them, and read back: in the words of the base's own template where it has some.

Templates name no calls in a common way, so their words are read off them (model/calls.py). Bases without such a template get a system
instruction of ours, and calls as lines of JSON.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorimer.inference.constraint import with_whitespace
from lorimer.model.calls import PLAIN_SHAPE, CallShape, read_call_shape
from lorimer.model.chat import Renderer
from lorimer.model.turns import ToolCall, Turn
from lorimer.serving.messages import FunctionDefinition

INSTRUCTION = "You can call these functions, described by JSON schemas:\n{functions}\n\n{how}"
CALL_ONE = 'To call one, answer with nothing but one line of JSON: {"name": "the function\'s name", "arguments": {its arguments}}'
CALL_SEVERAL = f"{CALL_ONE}; to call several, with one such line for each."
MUST_CALL, MAY_CALL = "You must call one now.", "If you need none, answer in words."


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one answer may call."""

    functions: tuple[FunctionDefinition, ...]
    must_call: bool
    may_call_several: bool

    def describe(self) -> list[dict[str, Any]]:
        """The functions as JSON, as templates take them."""
        return [{"type": "function", "function": _described(function)} for function in self.functions]


class Toolbox:
    """How one base is offered tools."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        own = read_call_shape(renderer)
        self.is_native = own is not None
        self.shape = own or PLAIN_SHAPE

    def render(self, turns: Sequence[Turn], offer: Offer | None) -> tuple[int, ...]:
        """A conversation that waits for its next answer, as ids, with what the answer may call.

        Raises:
            DataError: if the base's template refuses it.
        """
        if self.is_native:
            return self.renderer.render_prompt(turns, offer.describe() if offer else ())
        return self.renderer.render_prompt(self._in_words(turns, offer))

    def grammar_of(self, offer: Offer) -> str:
        """The form of an answer that may call: free text, calls, or text and then calls. In llguidance's Lark."""
        shape = self.shape
        names = [f"call_{i}" for i in range(len(offer.functions))]
        more = f"({_quoted(shape.glue)} call)*" if offer.may_call_several and shape.glue is not None else ""
        calls = f"call {more} {_quoted(shape.after) if shape.after else ''}"
        if offer.must_call:
            lines = [f"start: {_quoted(shape.before)} {calls}"]
        else:  # text is what never begins a call
            anything, opening = r"/(.|\n)*/", _as_regex(shape.before)
            lines = [f"start: [TEXT] | lead {calls}", f"TEXT: {anything} & ~/(.|\\n)*{opening}(.|\\n)*/"]
            lines += [f"lead[lazy]: {anything} {_quoted(shape.before)}"]
        lines += [f"call: {' | '.join(names)}"]
        for name, function in zip(names, offer.functions, strict=True):
            lines += [f"{name}: {_quoted(function.name + shape.between)} {name}_arguments"]
            lines += [f"{name}_arguments: %json {json.dumps(with_whitespace(function.schema_of_arguments))}"]
        return "%llguidance {}\n" + "\n".join(lines) + "\n"

    def _in_words(self, turns: Sequence[Turn], offer: Offer | None) -> list[Turn]:
        """The same with calls, results and what may be called as plain text."""
        instruction = [Turn(role="system", content=_instruction(offer))] if offer else []
        is_called = any(turn.role == "tool" for turn in turns)
        said: list[Turn] = []
        for turn in [*turns[:1], *instruction, *turns[1:]] if turns[0].role == "system" else [*instruction, *turns]:
            plain = _plain(turn)
            is_more = said and said[-1].role == plain.role and (plain.role == "system" or (plain.role == "user" and is_called))
            if is_more:  # many templates want roles to alternate, and results come one after the other
                said[-1] = replace(plain, content=f"{said[-1].content}\n\n{plain.content}")
            else:
                said.append(plain)
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """What is new of one call: first its id and name, then its arguments bit by bit."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class CallReader:
    """Free text and calls apart, while an answer comes. What it reads was held to `Toolbox.grammar_of`, and may end anywhere."""

    def __init__(self, shape: CallShape) -> None:
        self.shape = shape
        self.num_calls = 0
        self._part: Literal["text", "name", "arguments", "after"] = "text"
        self._held = ""
        self._json = JsonEnd()

    def push(self, text: str, *, is_last: bool) -> tuple[str, list[CallPiece]]:
        """More of the answer -> what of it is text, and what is calls."""
        self._held += text
        said, pieces = "", list[CallPiece]()
        while self._held:
            match self._part:
                case "text":
                    said += self._take_text(is_last=is_last)
                    is_stuck = self._part == "text"
                case "name":
                    is_stuck = not self._take_name(pieces)
                case "arguments":
                    self._take_arguments(pieces)
                    is_stuck = False
                case "after":
                    is_stuck = not self._take_glue()
            if is_stuck:
                break
        return said, pieces

    def _take_text(self, *, is_last: bool) -> str:
        """Text up to the first call, or as far as no call can have begun."""
        text, opening, rest = self._held.partition(self.shape.before)
        if opening:
            self._part, self._held = "name", rest
            return text
        num_begun = 0 if is_last else max((n for n in range(1, len(self.shape.before)) if text.endswith(self.shape.before[:n])), default=0)
        text, self._held = text[: len(text) - num_begun], text[len(text) - num_begun :]
        return text

    def _take_name(self, pieces: list[CallPiece]) -> bool:
        name, between, rest = self._held.partition(self.shape.between)
        if not between:
            return False
        pieces.append(CallPiece(index=self.num_calls, id=f"call_{uuid.uuid4().hex[:24]}", name=name))
        self.num_calls += 1
        self._part, self._held, self._json = "arguments", rest, JsonEnd()
        return True

    def _take_arguments(self, pieces: list[CallPiece]) -> None:
        end = self._json.find(self._held)
        pieces.append(CallPiece(index=self.num_calls - 1, arguments=self._held[:end]))
        self._part, self._held = ("after" if self._json.is_over else "arguments"), self._held[end:]

    def _take_glue(self) -> bool:
        if self.shape.glue is None or not self._held.startswith(self.shape.glue):
            return False
        self._part, self._held = "name", self._held.removeprefix(self.shape.glue)
        return True


class JsonEnd:
    """Finds where a JSON object ends, whatever pieces it comes in."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth, self._is_text, self._is_escaped = 0, False, False

    def find(self, text: str) -> int:
        """How much of the text belongs to the object."""
        for at, letter in enumerate(text):
            if self._is_text:
                self._is_text = letter != '"' or self._is_escaped
                self._is_escaped = letter == "\\" and not self._is_escaped
            elif letter == '"':
                self._is_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_over = True
                    return at + 1
        return len(text)


def _plain(turn: Turn) -> Turn:
    """A turn without calls and results, but with what they say."""
    if turn.role == "tool":
        return Turn(role="user", content=f"Result of {turn.name}:\n{turn.content}")
    if not turn.tool_calls:
        return turn
    return Turn(role="assistant", content="\n".join(part for part in (turn.content, _calls_text(turn.tool_calls)) if part))


def _calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls as an answer in plain JSON would have spelled them."""
    shape = PLAIN_SHAPE
    spelled = [f"{call.name}{shape.between}{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls]
    return shape.before + str(shape.glue).join(spelled) + shape.after


def _instruction(offer: Offer) -> str:
    functions = "\n".join(json.dumps(_described(function), ensure_ascii=False) for function in offer.functions)
    how = f"{CALL_SEVERAL if offer.may_call_several else CALL_ONE} {MUST_CALL if offer.must_call else MAY_CALL}"
    return INSTRUCTION.format(functions=functions, how=how)


def _described(function: FunctionDefinition) -> dict[str, Any]:
    return {"name": function.name, "description": function.description, "parameters": function.schema_of_arguments}


def _quoted(text: str) -> str:
    """A string of Lark's."""
    return json.dumps(text)


def _as_regex(text: str) -> str:
    """A regular expression that means just this text, as it stands between slashes."""
    return "".join({"\n": "\\n", "\t": "\\t"}.get(letter, f"\\{letter}" if letter in r"\/.^$*+?()[]{}|" else letter) for letter in text)
