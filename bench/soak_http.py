"""The soak's own HTTP client: it can leave in the middle of a request, and send what no library would."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class StuckError(Exception):
    """A request that was not answered in time."""


class BrokenReplyError(Exception):
    """A reply that is not HTTP, or ends in its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """A stream's events but for `[DONE]`.

        Raises:
            BrokenReplyError: if it does not end with that.
        """
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        if not lines or lines[-1] != "[DONE]":
            raise BrokenReplyError(f"the stream does not end with [DONE]: {self.body[-200:]!r}")
        return [json.loads(line) for line in lines[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to ask."""

    host: str
    port: int
    deadline: float
    """Seconds within which every request has to end."""

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "", raw: bytes | None = None) -> Reply:
        """One request over a connection of its own, to its end.

        Raises:
            StuckError: if that takes too long.
            BrokenReplyError: if there is no proper reply.
        """
        try:
            async with asyncio.timeout(self.deadline):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    return await _exchange(reader, writer, self._request(method, path, _bytes(body, raw), key))
                finally:
                    writer.close()
        except TimeoutError as exc:
            raise StuckError(f"{method} {path} was not answered in {self.deadline:.0f} s") from exc

    async def leave(self, path: str, body: Any, *, key: str, share: float = 1.0, after_events: int = 0, after_seconds: float = 0.0) -> int:
        """Send a request, or only a share of it, and cut the connection; returns how many bytes of a reply were read before.

        Raises:
            StuckError: if the events it waits for do not come.
        """
        reader, writer = await asyncio.open_connection(self.host, self.port)
        request, num_read = self._request("POST", path, _bytes(body, None), key), 0
        try:
            async with asyncio.timeout(self.deadline):
                writer.write(request[: max(1, int(len(request) * share))])
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(after_seconds)
                for _ in range(after_events):
                    line = await reader.readline()
                    num_read += len(line)
                    if not line:
                        break
        except TimeoutError as exc:
            raise StuckError(f"POST {path} did not begin to answer in {self.deadline:.0f} s") from exc
        finally:
            writer.transport.abort()  # type: ignore[attr-defined]
        return num_read

    def _request(self, method: str, path: str, body: bytes, key: str) -> bytes:
        head = [f"{method} {path} HTTP/1.1", f"host: {self.host}:{self.port}", "connection: close"]
        head += [f"authorization: Bearer {key}"] if key else []
        if method == "POST":
            head += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*head, "", ""]).encode() + body


def _bytes(body: Any, raw: bytes | None) -> bytes:
    return raw if raw is not None else b"" if body is None else json.dumps(body).encode()


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Reply:
    with contextlib.suppress(ConnectionError):  # a body that is too large is refused before it is read to its end
        writer.write(request)
        await writer.drain()
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError) as exc:
        raise BrokenReplyError(f"{request[:60]!r}: {type(exc).__name__}: {exc}") from exc
    return Reply(status=int(head[0].split()[1]), headers=headers, body=body)
