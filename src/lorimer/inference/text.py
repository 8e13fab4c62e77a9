"""Tokens to text while they come: whole characters only, cut at stop strings."""

from collections.abc import Sequence

from lorimer.model.chat import Renderer


class TextStream:
    """The text of one growing answer. Joined, the pieces equal the whole answer decoded at once."""

    def __init__(self, renderer: Renderer, stop: Sequence[str] = ()) -> None:
        self.renderer, self.stop = renderer, tuple(stop)
        self.text = ""
        """All text given out so far."""
        self.is_stopped = False
        """Whether a stop string was met; nothing comes after it."""

    def push(self, output_ids: Sequence[int], *, is_last: bool) -> str:
        """All ids so far -> the piece that can be given out now."""
        if self.is_stopped:
            return ""
        whole = self.renderer.decode(output_ids)
        met = [place for place in (whole.find(stop) for stop in self.stop) if place >= 0]
        if met:
            self.is_stopped = True
            whole = whole[: min(met)]
        elif not is_last:
            whole = whole[: len(whole) - self._num_held(whole)]
        piece = whole[len(self.text) :]
        self.text += piece
        return piece

    def _num_held(self, whole: str) -> int:
        """Characters kept back: half a character, and what may grow into a stop string."""
        settled = whole.rstrip("\N{REPLACEMENT CHARACTER}")
        num_begun = max((n for stop in self.stop for n in range(1, len(stop)) if settled.endswith(stop[:n])), default=0)
        return len(whole) - len(settled) + num_begun
