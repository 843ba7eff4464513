"""What the commands say beside their results: on the error stream, unless they are to be quiet."""

from __future__ import annotations

import os
import sys

QUIET = "OVML_QUIET"
"""Set to 1, this environment variable does what `--quiet` does; so processes that a command starts are quiet too."""


def is_quiet() -> bool:
    """Whether only results and errors are to be shown."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def notice(text: str) -> None:
    """Say what is no result and no error."""
    if not is_quiet():
        print(f"ovml: {text}", file=sys.stderr)


def shows_progress() -> bool:
    """Whether there is somebody to look at a progress bar."""
    return sys.stderr.isatty() and not is_quiet()
