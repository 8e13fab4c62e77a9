"""Tokens to text while they come: whole characters only, cut at stop strings, at a cost that does not grow with the answer.

Only the tokens since the last settled place are decoded, with those of the place before as context (as in vLLM and TGI): a decoder may
drop the space that its first token begins with. A place is settled when no later token can change the text before it.
"""

import re
from collections import deque
from collections.abc import Sequence

from lorimer.model.chat import Renderer

HALF = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte of a character that the vocabulary does not have; a run of them is text as a whole or not at all (SentencePiece)."""
MAX_UNSETTLED = 64  # tokens: rubbish may go on for as long as the answer, and be decoded again and again


class Decoding:
    """The ids of one growing answer, as text."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._ids: list[int] = []  # from the last settled place but one
        self._context = ""  # the text of those before the last settled place
        self._num_context = 0

    @property
    def is_settled(self) -> bool:
        """Whether the text of all ids was given out."""
        return len(self._ids) == self._num_context

    def push(self, new_ids: Sequence[int], *, is_last: bool) -> str:
        """More ids -> the text that is sure now."""
        self._ids += [i for i in new_ids if not self.renderer.is_special(i)]
        whole = self.renderer.decode(self._ids)
        settled = len(self._ids) if is_last or self._is_whole(whole) else self._last_break(whole)
        if settled <= self._num_context:
            return ""
        text = whole if settled == len(self._ids) else self.renderer.decode(self._ids[:settled])
        piece = text[len(self._context) :]
        start = self._num_context
        self._ids, self._num_context = self._ids[start:], settled - start
        self._context = self.renderer.decode(self._ids[: self._num_context])
        return piece

    def _is_whole(self, text: str) -> bool:
        """Whether it does not end in the middle of a character."""
        if text.endswith(HALF) or not self._ids:
            return False
        return not BYTE_TOKEN.fullmatch(str(self.renderer.tokenizer.convert_ids_to_tokens(self._ids[-1])))

    def _last_break(self, whole: str) -> int:
        """Where too long a run of doubtful tokens may be cut: before its last four, which hold the last character whatever comes."""
        if len(self._ids) - self._num_context <= MAX_UNSETTLED:
            return 0
        for place in range(len(self._ids) - 4, len(self._ids) - 8, -1):
            if self.renderer.decode(self._ids[:place]) + self.renderer.decode(self._ids[place:]) == whole:
                return place
        return 0


class TextStream:
    """The text of one growing answer. Joined, the pieces equal the whole answer decoded at once."""

    def __init__(self, renderer: Renderer, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.is_stopped = False
        """Whether a stop string was met; nothing comes after it."""
        self.num_shown = 0
        """Tokens whose text was given out, all of it or at least its beginning."""
        self._decoding = Decoding(renderer)
        self._num_seen = 0
        self._held = ""  # decoded, and not given out yet
        self._pieces: list[str] = []
        self._text_len = 0
        self._places: deque[tuple[int, int]] = deque()  # settled ones ahead: length of the text, number of tokens

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._pieces)

    def push(self, output_ids: Sequence[int], *, is_last: bool) -> str:
        """All ids so far -> the piece that can be given out now."""
        if self.is_stopped:
            return ""
        self._held += self._decoding.push(output_ids[self._num_seen :], is_last=is_last)
        self._num_seen = len(output_ids)
        if self._decoding.is_settled:
            self._places.append((self._text_len + len(self._held), self._num_seen))
        met = [place for place in (self._held.find(stop) for stop in self.stop) if place >= 0]
        self.is_stopped = bool(met)
        cut = min(met) if met else len(self._held) if is_last else len(self._held) - self._num_begun()
        piece = self._give_out(cut)
        if self.is_stopped:  # the last of them may be cut in its middle
            self.num_shown = self._num_begun_before(output_ids)
        return piece

    def _give_out(self, cut: int) -> str:
        piece, self._held = self._held[:cut], self._held[cut:]
        self._pieces.append(piece)
        self._text_len += len(piece)
        while self._places and self._places[0][0] <= self._text_len:
            self.num_shown = self._places.popleft()[1]
        return piece

    def _num_begun_before(self, output_ids: Sequence[int]) -> int:
        """Tokens whose text begins before the place where the answer was cut."""
        decode = self._decoding.renderer.decode
        counts = range(self.num_shown, len(output_ids))
        return next((count for count in counts if len(decode(output_ids[:count])) >= self._text_len), len(output_ids))

    def _num_begun(self) -> int:
        """Characters at the end that may grow into a stop string."""
        return max((n for stop in self.stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)


class TokenNames:
    """Single tokens as bytes: what a token says, whatever stands before it."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._is_byte_level = "".join(renderer.tokenizer.tokenize("é")).endswith("Ã©")  # GPT-2's alphabet: a letter for every byte

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; of one the vocabulary only has room for, none."""
        token = self.renderer.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._is_byte_level and not self.renderer.is_special(token_id):
            return bytes(BYTE_OF.get(letter, 0) for letter in token) if set(token) <= BYTE_OF.keys() else token.encode()
        return bytes([int(token[3:5], 16)]) if BYTE_TOKEN.fullmatch(token) else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes (github.com/openai/gpt-2, encoder.py): printable ones stand for themselves, the others come after 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
