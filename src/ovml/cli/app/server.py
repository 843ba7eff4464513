"""Serves the page."""

from __future__ import annotations

import logging
import socket
from typing import Any

from ovml.cli.app.markup import CSS

HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every response: the browser may load nothing from other servers."""


def serve(page: Any, taken: socket.socket, max_upload_mb: int = 10) -> None:
    """Serve a page until it is interrupted.

    Args:
        page: What `ovml.cli.app.page.build_page` made.
        taken: What `ovml.cli.app.address.listen` took.
        max_upload_mb: Maximum size of an image file in megabytes.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")  # legible when small
    page.queue(max_size=64)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        theme=theme,
        css=CSS,
        max_file_size=max_upload_mb * 2**20,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )
    # As `launch` sets them; without, Gradio reads any file of this machine that a browser names.
    page.has_launched = page.is_running = True

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Open pages keep a connection; closing them is logged as an error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    headers = list(HEADERS.items())
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, headers=headers)
    Server(config).run(sockets=[taken])
