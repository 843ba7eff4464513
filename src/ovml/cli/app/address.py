"""The address that the page is served at."""

from __future__ import annotations

import socket

from ovml.utils.errors import UserError


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
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise UserError(f"--host {host}: no address of this machine ({problem.strerror}); try 127.0.0.1") from problem
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(place)
        taken.listen()
    except OSError as problem:
        taken.close()
        raise UserError(
            f"{host}:{port}: cannot be used ({problem.strerror}); give another --port or --host"
        ) from problem
    return taken


def address(taken: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = taken.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"
