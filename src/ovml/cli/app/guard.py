"""Checks of each request before Gradio handles it."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from ovml.cli.app.uploads import PUBLIC, THUMBNAILS, Uploads

UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
POSTED = (UPLOAD, "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
"""Paths that the page posts to; Gradio has others, which store files or run the model beside the queue."""
READ = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *("/gradio_api/app_id", "/gradio_api/queue/data", "/gradio_api/upload_progress"),
)
"""Paths that the page reads, ..."""
ASSETS = ("/assets/", "/static/")
READ_BELOW = (*ASSETS, "/gradio_api/heartbeat/", f"{FILE}{PUBLIC}/", f"{THUMBNAILS}/")
"""... and what the others begin with."""
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?", re.IGNORECASE)
TEXT = ("application/json", "text/html", "text/event-stream")


@dataclass(frozen=True)
class Served:
    """The names that the page is served at.

    Args:
        names: Host names and addresses, without ports: tunnels and containers change those.
        any_address: Whether every IP address is one of them. A site that rebinds its own name cannot use that.
        proxied: Names in front of a proxy, which may tell the page another host.
    """

    names: frozenset[str]
    any_address: bool = False
    proxied: frozenset[str] = frozenset()

    def at(self, host: str) -> bool:
        """Whether a `Host` header names the page.

        >>> served = Served(frozenset({"localhost", "::1"}))
        >>> served.at("localhost:7860"), served.at("[::1]"), served.at("evil.example")
        (True, True, False)
        """
        name = _name(host)
        return name in self.names | self.proxied or (self.any_address and _is_address(name))

    def own(self, origin: str, hosts: Iterable[str]) -> bool:
        """Whether an `Origin` header is the page's own, given the hosts that the request names."""
        scheme, _, netloc = origin.lower().partition("://")
        return scheme in ("http", "https") and (netloc in hosts or _name(netloc) in self.proxied)


class Guard:
    """ASGI middleware that refuses other requests than the page's own, and limits the size and time of uploads.

    Requests must name the page's host (otherwise a site whose name is rebound to this machine could read the page) and
    must not come from other sites. A body is read to its end, within limits of size and time, before it is passed on.
    Answers name the folder of the uploads `PUBLIC`.

    Args:
        app: The page.
        served: The names that the page is served at.
        uploads: The uploaded files.
        max_body: Maximum size of other posted data in bytes.
        seconds: Maximum time of a body.
        at_once: Maximum number of bodies that are read at the same time. All together hold no more than as many files
            of the maximum size; one body may hold them all.
    """

    def __init__(
        self, app: Any, served: Served, uploads: Uploads, max_body: int = 2**20, seconds: float = 60, at_once: int = 16
    ) -> None:
        self.app, self.served, self.uploads = app, served, uploads
        self.max_body, self.seconds, self.at_once = max_body, seconds, at_once
        self._reading = self._held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request, or refuse it in one line."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # the page has no websockets
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                self._check(scope)
                if scope["method"] == "POST":
                    receive = await self._read(scope, receive)
            except _Refused as refused:
                await PlainTextResponse(f"{refused}\n", refused.status)(scope, receive, send)
                return
            await self._serve(scope, receive, send)

    def _check(self, scope: Any) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        hosts = headers.getlist("host")
        forwarded = [host.strip() for line in headers.getlist("x-forwarded-host") for host in line.split(",")]
        if len(hosts) != 1 or not all(map(self.served.at, hosts + forwarded)):
            raise _Refused(421, "the page is not served at this host; start it with --allowed-host NAME")
        known = {host.lower() for host in hosts + forwarded}
        if not all(self.served.own(origin, known) for origin in headers.getlist("origin")):
            raise _Refused(403, "requests of other sites are refused")
        if method in ("GET", "HEAD"):
            if ".." in path.split("/") or (path not in READ and not path.startswith(READ_BELOW)):
                raise _Refused(404, "no such page")
        elif method != "POST" or path not in POSTED:
            raise _Refused(405, "not a request of this page")
        elif headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise _Refused(403, "requests of other sites are refused")

    @property
    def _room(self) -> int:
        """Bytes of all bodies, with the forms around the files."""
        return self.at_once * (self.uploads.max_file_size + 2**16)

    async def _read(self, scope: Any, receive: Any) -> Any:
        """Read a body; returns what passes it on."""
        most = self._room if scope["path"] == UPLOAD else self.max_body
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            raise _Refused(413, f"too large; at most {most:,} bytes")
        if self._reading >= self.at_once:
            raise _Refused(503, "too many uploads at the same time; try again")
        self._reading += 1
        try:
            body = await asyncio.wait_for(self._body(receive, most), self.seconds)
        except asyncio.TimeoutError as error:
            raise _Refused(408, f"too slow; at most {self.seconds:g} seconds") from error
        finally:
            self._reading -= 1
        if scope["path"] != UPLOAD:
            body = self.uploads.reveal(body)
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        messages = iter([{"type": "http.request", "body": body}])

        async def read() -> Any:
            return next(messages, None) or await receive()

        return read

    async def _body(self, receive: Any, most: int) -> bytes:
        body = bytearray()
        more = True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "the connection ended")
                chunk = message.get("body", b"")
                body += chunk
                self._held += len(chunk)
                if len(body) > most:
                    raise _Refused(413, f"too large; at most {most:,} bytes")
                if self._held > self._room:
                    raise _Refused(503, "too many uploads at the same time; try again")
                more = message.get("more_body", False)
            return bytes(body)
        finally:
            self._held -= len(body)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path.startswith(FILE + PUBLIC):
            scope["path"] = FILE + str(self.uploads.folder) + path.removeprefix(FILE + PUBLIC)
            scope["raw_path"] = None
        if not path.startswith(ASSETS):
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        hidden = False

        async def answer(message: Any) -> None:
            nonlocal hidden
            if message["type"] == "http.response.start":
                if path == UPLOAD:
                    self.uploads.tidy()
                headers = MutableHeaders(raw=list(message["headers"]))
                hidden = headers.get("content-type", "").startswith(TEXT)
                if hidden:
                    del headers["content-length"]
                message = {**message, "headers": headers.raw}
            elif hidden and message["type"] == "http.response.body":
                message = {**message, "body": self.uploads.hide(message.get("body", b""))}
            await send(message)

        await self.app(scope, receive, answer)


class _Refused(Exception):
    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def _name(host: str) -> str:
    """Host name or address of a `Host` header, without its port; empty where it is none."""
    found = HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else ""


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False
