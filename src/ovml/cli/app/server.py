"""The page's address and its server. Neither needs torch before the page is served."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ovml.cli.app.pictures import Thumbnails
from ovml.cli.app.uploads import MINUTE, THUMBNAILS, Uploads
from ovml.utils.errors import UserError
from ovml.utils.resources import RESOURCES

HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
"""Headers of every response: the browser may load nothing from other servers."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; done before the model loads.

    Args:
        host: A name or an address of this machine.
        port: 0 for any free port.

    Raises:
        UserError: It is taken, or is not this machine's.

    >>> with listen("127.0.0.1", 0) as taken:
    ...     address(taken).startswith("http://127.0.0.1:")
    True
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as problem:
        raise UserError(f"--host {host}: no address of this machine ({problem.strerror}); try 127.0.0.1") from problem
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(place, family=family, dualstack_ipv6=both)
    except OSError as problem:
        reason = os.strerror(problem.errno or 0)
        raise UserError(f"{host}:{port}: cannot be used ({reason}); give another --port or --host") from problem


def address(taken: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = taken.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def build_server(
    page: Any,
    taken: socket.socket,
    uploads: Uploads,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    max_labels: int = 1000,
    thumbnails: Thumbnails | None = None,
) -> Any:
    """Put a page behind its guard.

    Args:
        page: What `ovml.cli.app.page.build_page` made.
        taken: What `listen` took.
        uploads: The uploaded files; old ones are deleted every minute.
        host: What `listen` was given.
        allowed_hosts: Other names that the page is served at, such as a proxy's.
        max_labels: Maximum number of typed labels.
        thumbnails: Those of the gallery.

    Returns:
        A `uvicorn.Server`; `run(sockets=[taken])` serves until it is interrupted.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.responses import PlainTextResponse, Response

    from ovml.cli.app.guard import Guard, Served
    from ovml.cli.app.streams import Streams

    async def tidy_every_minute() -> None:
        while True:
            await asyncio.sleep(MINUTE)
            uploads.tidy()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(tidy_every_minute())
        yield
        task.cancel()

    host_app = FastAPI(openapi_url=None, lifespan=lifespan)

    def thumbnail(name: str) -> Response:
        found = None if thumbnails is None else thumbnails.read(name)
        if found is None:
            return PlainTextResponse("no such image\n", 404)
        return Response(found, headers={"cache-control": "private, max-age=3600"}, media_type="image/jpeg")

    host_app.get(THUMBNAILS + "/{name}")(thumbnail)

    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")  # legible when small
    page.queue(max_size=64, api_open=False)
    app = gr.mount_gradio_app(
        host_app,
        page,
        path="/",
        theme=theme,
        css_paths=RESOURCES / "page" / "style.css",
        max_file_size=uploads.max_file_size,
        footer_links=[],
        run_history=False,
        show_error=False,  # errors of Gradio name paths
        ssr_mode=False,
    )
    # As `launch` sets them; without, Gradio reads any file of this machine that a browser names.
    page.has_launched = page.is_running = True

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Open pages keep a connection; closing them is logged as an error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    bound = taken.getsockname()[0]
    everywhere = bound in ("0.0.0.0", "::")
    names = {"localhost", "127.0.0.1", "::1", host.lower(), bound, *([socket.gethostname().lower()] * everywhere)}
    served = Served(frozenset(names), everywhere, frozenset(allowed_hosts))
    guard = Guard(Streams(app), served, uploads, max_body=2**20 + 1024 * max_labels)
    headers = list(HEADERS.items())
    config = uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=1, headers=headers)
    return Server(config)
