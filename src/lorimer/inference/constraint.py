"""Answers held to a grammar, token by token, by llguidance: JSON schemas, and Lark grammars with JSON in them.

It knows nothing of requests or of tools. A grammar is compiled once, and every answer that it holds goes its own way through it.
"""

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from lorimer.errors import UsageError
from lorimer.model.chat import Renderer

logger = logging.getLogger(__name__)

WHITESPACE = r"[ \n]{0,16}"
"""Between the tokens of JSON: models that are unsure would otherwise go on with spaces to the end of their room."""
MAX_REASON_LEN = 300


class GrammarSource(NamedTuple):
    """What a grammar was compiled from; of one of these two."""

    schema: Mapping[str, Any] | None = None
    lark: str | None = None


class Grammar:
    """A compiled grammar of one base's tokens."""

    def __init__(self, matcher: LLMatcher, stop_ids: frozenset[int], source: "GrammarSource") -> None:
        self._matcher, self._stop_ids, self.source = matcher, stop_ids, source

    def start(self) -> "GrammarConstraint":
        """What holds one answer to it; see `Constraint`."""
        return GrammarConstraint(self._matcher.deep_copy(), self._stop_ids, self.source)


class GrammarConstraint:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher, stop_ids: frozenset[int], source: GrammarSource) -> None:
        self._matcher, self._stop_ids, self.source = matcher, sorted(stop_ids), source

    @property
    def failure(self) -> str | None:
        """Why the answer could not be held to its grammar any longer; None if it could."""
        return _shorten(self._matcher.get_error()) or None

    @property
    def is_done(self) -> bool:
        """See `Constraint`; also once it has failed, since nothing good can follow."""
        return self._matcher.is_stopped()

    def mask(self, logits: Tensor) -> None:
        """See `Constraint`: of logits (V) only those of tokens that may come stay."""
        bits = self._bits()
        if bits is None:
            allowed = np.zeros(len(logits), dtype=np.bool_)
            allowed[self._stop_ids] = True
        else:
            allowed = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[: len(logits)].view(np.bool_)
        logits.masked_fill_(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        self._matcher.consume_token(token_id)

    def _bits(self) -> bytes | None:
        """A bit a token; None where llguidance gives up: then that answer ends, and not everybody's step."""
        try:
            return self._matcher.compute_bitmask()
        except Exception as exc:
            logger.warning("an answer cannot be held to its grammar any longer: %s", _shorten(str(exc)))
            return None


class Grammars:
    """Compiles grammars for one base.

    Its tokens are read at the first, or by `prepare`: for 262,144 that takes three seconds, in which no other thread runs.
    """

    def __init__(self, renderer: Renderer, vocabulary_len: int) -> None:
        self.renderer, self.vocabulary_len = renderer, vocabulary_len
        self._tokens: LLTokenizer | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Read the base's tokens now, so that no request and nobody beside it waits for that; what cannot be read is a warning here."""
        try:
            self._tokens_of_base()
        except UsageError as exc:
            logger.warning("%s", exc)

    def of_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that a schema describes.

        Raises:
            UsageError: if it describes none, or by words that are not known here; with the reason.
        """
        schema = with_whitespace(schema)
        return self._compile(LLMatcher.grammar_from_json_schema(json.dumps(schema)), GrammarSource(schema=schema))

    def of_lark(self, text: str) -> Grammar:
        """Text that a grammar describes, in llguidance's Lark (github.com/guidance-ai/llguidance, docs/syntax.md).

        Raises:
            UsageError: as `of_schema`.
        """
        return self._compile(LLMatcher.grammar_from_lark(text), GrammarSource(lark=text))

    def _compile(self, grammar: str, source: GrammarSource) -> Grammar:
        matcher = LLMatcher(self._tokens_of_base(), grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(_shorten(matcher.get_error()))
        return Grammar(matcher, self.renderer.stop_ids, source)

    def _tokens_of_base(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                text = self.renderer.tokenizer.backend_tokenizer.to_str()
                try:
                    self._tokens = LLTokenizer(text, n_vocab=self.vocabulary_len, eos_token=sorted(self.renderer.stop_ids))
                except ValueError as exc:
                    reason = _shorten(str(exc))
                    raise UsageError(f"answers of this base cannot be held to a form: its tokens cannot be read ({reason})") from exc
            return self._tokens


def with_whitespace(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with our word on whitespace, in place of any settings that came with it."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def _shorten(reason: str) -> str:
    """llguidance's reasons may show the whole grammar after their first line."""
    text = " ".join(reason.split())
    return text if len(text) <= MAX_REASON_LEN else f"{text[:MAX_REASON_LEN]}..."
