"""Special tokens that are spelled in somebody's text: found, and marked so that the text can be cut inside them before it is tokenised."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from lorimer.errors import DataError

MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode promises never to give these characters a meaning (noncharacters, Unicode Standard 23.7)."""


class Spelling:
    """How the special tokens of one base are written."""

    def __init__(self, tokenizer: Any, special_ids: Iterable[int]) -> None:
        known, self._ids = tokenizer.added_tokens_decoder, sorted(special_ids)
        tokens = [known.get(i, AddedToken(tokenizer.convert_ids_to_tokens(i), special=True)) for i in self._ids]
        self._finder = Tokenizer(WordLevel({"text": 0}, unk_token="text"))  # knows nothing else, and finds as the base's own does
        self._finder.add_special_tokens(tokens)

    def places(self, text: str) -> list[int]:
        """Where special tokens begin; those of a single character cannot be cut, and stay what they are."""
        found = self._finder.encode(text, add_special_tokens=False)
        return [start for i, (start, stop) in zip(found.ids, found.offsets, strict=True) if i and stop - start > 1]

    def ids_in(self, text: str) -> list[int]:
        """The special tokens that a text spells."""
        return [self._ids[i - 1] for i in self._finder.encode(text, add_special_tokens=False).ids if i]

    def mark_for(self, texts: Sequence[str]) -> str:
        """A character that none of the texts has, or nothing if none of them spells a special token.

        Raises:
            DataError: if there is no such character.
        """
        if not any(self.places(text) for text in texts):
            return ""
        mark = next((mark for mark in MARKS if not any(mark in text for text in texts)), None)
        if mark is None:
            raise DataError("the text holds every one of the 32 noncharacters U+FDD0 to U+FDEF: take them out")
        return mark

    def marked(self, text: str, mark: str) -> str:
        """The text with a mark after the first character of every special token that it spells."""
        while mark and (places := self.places(text)):  # breaking one may bring another to light that overlapped it
            cuts = [0, *(place + 1 for place in places), len(text)]
            text = mark.join(text[start:stop] for start, stop in pairwise(cuts))
        return text
