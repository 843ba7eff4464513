"""What the commands print. Text from users (labels, paths) is data: nothing in it is markup.

Results go to standard output; notices, errors and progress bars to the error stream.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

QUIET = "OVML_QUIET"
"""Environment variable; 1 has the effect of `--quiet`, also in the processes that a command starts."""


def is_quiet() -> bool:
    """Whether only results and errors are printed."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def notice(text: str) -> None:
    """Print a line that is neither a result nor an error."""
    if not is_quiet():
        print(f"ovml: {printable(text)}", file=sys.stderr)


def shows_progress() -> bool:
    """Whether progress bars are shown: on a terminal, without `--quiet`."""
    return sys.stderr.isatty() and not is_quiet()


def console(stderr: bool = False) -> Any:
    """A `rich.console.Console` that prints strings as they are: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def show(result: Any, style: str | None = None) -> None:
    """Print a result: a string on one line, however long, or a table of rich.

    Args:
        result: Strings are made `printable`.
        style: One of rich's, such as `bold`.
    """
    is_text = isinstance(result, str)
    console().print(printable(result) if is_text else result, style=style, soft_wrap=is_text)


def printable(text: str) -> str:
    r"""Escape what a terminal cannot show: bytes of a file name that are not UTF-8, and control characters.

    >>> print(printable(os.fsdecode(b"a\xff.png") + "\x1b[31m"), printable(":smile: [red]"))
    a\xff.png\x1b[31m :smile: [red]
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
