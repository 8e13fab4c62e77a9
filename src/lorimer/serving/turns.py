"""Whose turn it is before a backend that serves first who comes first: so many sequences at once, tenants and adapters in fair turns."""

import asyncio
import time

from lorimer.inference.scheduler import MAX_WAIT_SECONDS, WaitingLine
from lorimer.inference.sequence import Sequence


class Turns:
    """The embedded engine's waiting line (deficit round robin), for sequences that others compute. It belongs to one event loop."""

    def __init__(self, max_running: int) -> None:
        self.max_running, self.num_running = max_running, 0
        self._line = WaitingLine(max_wait_seconds=MAX_WAIT_SECONDS, clock=time.monotonic)
        self._calls: dict[int, asyncio.Future[None]] = {}  # by sequence id

    @property
    def num_waiting(self) -> int:
        """Sequences in the line."""
        return len(self._calls)

    async def take(self, sequence: Sequence) -> None:
        """Wait until it is this sequence's turn; afterwards `give_back` is owed, unless waiting was cancelled."""
        call = asyncio.get_running_loop().create_future()
        self._line.add(sequence)
        self._calls[sequence.id] = call
        self._call_next()
        try:
            await call
        except asyncio.CancelledError:
            if self._calls.pop(sequence.id, None) is not None:
                self._line.remove(sequence)
            else:
                self.give_back()
            raise

    def give_back(self) -> None:
        """A sequence has ended."""
        self.num_running -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self.num_running < self.max_running and (sequence := self._line.next()) is not None:
            self._line.take(sequence)
            self.num_running += 1
            call = self._calls.pop(sequence.id)
            if call.cancelled():
                self.num_running -= 1  # who waited has been told, and owes nothing
            else:
                call.set_result(None)
