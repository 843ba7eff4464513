"""Answers that reach the page: an event does not begin while the stream of the former answers ends."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

JOIN = "/gradio_api/queue/join"
STREAM = "/gradio_api/queue/data"
LAST = b'"close_stream"'
"""What the last message of a stream has in it."""


class Streams:
    """ASGI middleware that keeps the order of two connections: the page reads a stream's end before it begins an event.

    Gradio's page has one stream of answers, which the server ends when no event is left. If the page begins an event
    before it reads that end, it opens no other stream and waits for ever. So the answer to a new event is kept back
    until the page has left the stream that ends.

    Args:
        app: Gradio.
        seconds: Maximum time that an answer is kept back.
    """

    def __init__(self, app: Any, seconds: float = 10) -> None:
        self.app, self.seconds = app, seconds
        self._ending: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request."""
        serve = {JOIN: self._join, STREAM: self._stream}.get(scope.get("path"), self.app)
        await serve(scope, receive, send)

    async def _join(self, scope: Any, receive: Any, send: Any) -> None:
        session = ""

        async def read() -> Any:
            nonlocal session
            message = await receive()
            with suppress(ValueError, TypeError, KeyError, RecursionError):  # Gradio refuses what is no such request
                session = str(json.loads(message["body"])["session_hash"])
            return message

        async def answer(message: Any) -> None:
            if session in self._ending:
                await self._ending[session].wait()
            await send(message)

        await self.app(scope, read, answer)

    async def _stream(self, scope: Any, receive: Any, send: Any) -> None:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        ended: asyncio.Event | None = None

        async def answer(message: Any) -> None:
            nonlocal ended
            if LAST in message.get("body", b""):
                ended = self._ending[session] = asyncio.Event()
            elif ended and not message.get("more_body", False):
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left(receive), self.seconds)
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            if ended:
                ended.set()
                if self._ending.get(session) is ended:
                    del self._ending[session]

    async def _left(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
