"""Downloading files, for those who allow it."""

from __future__ import annotations

import http.client
import time
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from ovml.utils.errors import UserError, first_line
from ovml.utils.version import __version__

MOST_BYTES = 2**28
"""Size of the largest file that is downloaded."""
SECONDS = 30.0
"""Longest wait for an answer."""
MOST_SECONDS = 300.0
"""Longest time that a file may take to arrive."""


def is_url(source: object) -> bool:
    """Whether a string is a web address.

    >>> is_url("https://example.org/a.jpg"), is_url("photos/a.jpg")
    (True, False)
    """
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def check_allowed(url: str, allow_urls: bool) -> None:
    """Raise a `UserError` if URLs are not allowed."""
    if not allow_urls:
        raise UserError(f"{url}: a URL is downloaded only with allow_urls (--allow-urls); give that, or a file")


def download(url: str) -> bytes:
    """Download a file of at most `MOST_BYTES`; redirects lead to other http and https addresses only.

    Raises:
        UserError: The address is wrong, the server does not answer in time or answers with an error, or the file is too
            large. The message does not repeat the address.
    """
    address = quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # what a browser sends for blanks and other scripts
    try:
        request = urllib.request.Request(address, headers={"User-Agent": f"ovml/{__version__}"})
        with _opener().open(request, timeout=SECONDS) as response:
            return _body(response)
    except HTTPError as error:
        reason = str(error.reason).splitlines()[-1] if error.reason else ""  # several lines, of a redirect
        raise UserError(f"cannot be downloaded (HTTP {error.code} {reason}); check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        cause = error.reason if isinstance(error, URLError) else error
        reason = first_line(cause) if isinstance(cause, BaseException) else cause
        raise UserError(f"cannot be downloaded ({reason}); check the address and the network") from error


def _opener() -> urllib.request.OpenerDirector:
    """An opener without handlers for files, FTP and data, so that no redirect leads there."""
    opener = urllib.request.OpenerDirector()
    proxies = {kind: proxy for kind, proxy in urllib.request.getproxies().items() if kind in ("http", "https")}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _body(response: Any) -> bytes:
    end, body = time.monotonic() + MOST_SECONDS, bytearray()
    while chunk := response.read1(2**16):
        body += chunk
        if len(body) > MOST_BYTES:
            raise UserError(f"larger than {MOST_BYTES >> 20} MB; download it yourself and give the file")
        if time.monotonic() > end:
            raise UserError(f"takes longer than {MOST_SECONDS:.0f} seconds; download it yourself and give the file")
    if response.length:  # `read1` ends without an error where the connection does
        raise UserError(f"the connection ended {response.length:,} bytes too early; try again")
    return bytes(body)
