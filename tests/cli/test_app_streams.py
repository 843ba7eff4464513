"""An event's answer waits until the page has left the stream that ends."""

import asyncio
import json

import pytest

from ovml.cli.app.streams import JOIN, STREAM, Streams


class Queue:
    """A server of one stream that ends at once, and of events."""

    def __init__(self):
        self.joined = []

    async def __call__(self, scope, receive, send):
        if scope["path"] == JOIN:
            self.joined.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == STREAM:
            await send(
                {"type": "http.response.body", "body": b'data: {"msg":"process_completed"}\n\n', "more_body": True}
            )
            await send({"type": "http.response.body", "body": b'data: {"msg":"close_stream"}\n\n', "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Page:
    """What a browser sends and reads, in order."""

    def __init__(self, **options):
        self.queue = Queue()
        self.served = Streams(self.queue, **options)
        self.read, self.gone = [], asyncio.Event()

    async def stream(self, session="a"):
        async def leave():
            await self.gone.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "path": STREAM, "query_string": f"session_hash={session}".encode()}
        await self.served(scope, leave, self.reader(f"stream {session}"))

    async def join(self, session="a", body=None):
        async def receive():
            posted = json.dumps({"session_hash": session}).encode() if body is None else body
            return {"type": "http.request", "body": posted}

        await self.served({"type": "http", "path": JOIN}, receive, self.reader(f"join {session}"))

    def reader(self, name):
        async def send(message):
            if message["type"] == "http.response.start":
                self.read.append(name)
            elif not message.get("more_body", False):
                self.read.append(f"{name} ends")

        return send


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


def test_an_answer_is_kept_back_until_the_page_has_left_the_stream():
    async def visit():
        page = Page()
        stream = asyncio.create_task(page.stream())
        await settled()
        other, own = asyncio.create_task(page.join("b")), asyncio.create_task(page.join("a"))
        await settled()
        assert page.read == ["stream a", "join b", "join b ends"]
        assert len(page.queue.joined) == 2  # the event itself does not wait
        page.gone.set()
        await asyncio.gather(stream, other, own)
        return page

    page = asyncio.run(visit())
    assert page.read[3:] in (
        ["stream a ends", "join a", "join a ends"],
        ["join a", "stream a ends", "join a ends"],
        ["join a", "join a ends", "stream a ends"],
    )


def test_a_page_that_does_not_leave_is_not_waited_for_longer():
    async def visit():
        page = Page(seconds=0)
        await page.stream()
        await page.join()
        return page

    assert asyncio.run(visit()).read == ["stream a", "stream a ends", "join a", "join a ends"]


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"7", b"{}", b"[" * 100_000, b'{"session_hash": {}}'])
def test_what_is_no_event_is_passed_on(body):
    async def visit():
        page = Page()
        stream = asyncio.create_task(page.stream())
        await settled()
        await page.join(body=body)
        page.gone.set()
        await stream
        return page

    page = asyncio.run(visit())
    assert page.queue.joined == [body]
    assert "join a ends" in page.read
