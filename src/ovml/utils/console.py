"""What the commands print. Text from users (labels, paths) is data: nothing in it is markup.

Results go to standard output; notices, errors and progress bars to the error stream.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

WIDE = 240
"""Width of tables that no terminal shows."""
STANDARD_OUTPUT = "standard output"
"""What errors call it, in the place of a file's name."""
QUIET = "OVML_QUIET"
"""Environment variable; 1 has the effect of `--quiet`, also in the processes that a command starts."""


def is_quiet() -> bool:
    """Whether only results and errors are printed."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def notice(text: str) -> None:
    """Print a line that is neither a result nor an error."""
    if not is_quiet():
        warn(text)


def warn(text: str) -> None:
    """Print a line on the error stream, also with `--quiet`."""
    print(f"ovml: {printable(text)}", file=sys.stderr)


def shows_progress() -> bool:
    """Whether progress bars are shown: on a terminal, without `--quiet`."""
    return sys.stderr.isatty() and not is_quiet()


def console(stderr: bool = False) -> Any:
    """A `rich.console.Console` that prints strings as they are: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    # A table in a file or a pipe is not cut, as it is to fit a terminal.
    stream, given = sys.stderr if stderr else sys.stdout, "COLUMNS" in os.environ
    width = None if given or stream.isatty() else WIDE
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)
    made.on_broken_pipe = _reraise  # type: ignore[method-assign]  # its own exits
    return made


def _reraise() -> NoReturn:
    raise


def show(result: Any, style: str | None = None) -> None:
    """Print a result: a string on one line, however long, or a table of rich.

    Args:
        result: Strings are made `printable`.
        style: One of rich's, such as `bold`.
    """
    is_text = isinstance(result, str)
    with _naming_output():
        console().print(printable(result) if is_text else result, style=style, soft_wrap=is_text)


def show_line(text: str) -> None:
    """Print a line of results for another program, at once: neither wrapped nor padded."""
    with _naming_output():
        print(text, flush=True)


@contextmanager
def _naming_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, STANDARD_OUTPUT) from error


def accept_any_text() -> None:
    """Let standard output escape what its encoding lacks, such as ideographs in ASCII, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def end_results() -> None:
    """Write what is left of the results.

    Raises:
        OSError: Standard output is full, or a pipe that was closed. The rest is dropped, so that the interpreter does
            not fail at it again when it exits.
    """
    try:
        with _naming_output():
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # of a stream that has no file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def printable(text: str) -> str:
    r"""Escape what a terminal cannot show: bytes of a file name that are not UTF-8, and control characters.

    >>> print(printable(os.fsdecode(b"a\xff.png") + "\x1b[31m"), printable(":smile: [red]"))
    a\xff.png\x1b[31m :smile: [red]
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", utf8(text))


def shortened(text: str, most: int = 1000) -> str:
    """The beginning and the end of a text that repeats a name of any length.

    >>> shortened("label too long: " + "x" * 10_000 + "; shorten it", most=40)
    'label too long: xxxxxxxx [...] horten it'
    """
    if len(text) <= most:
        return text
    end = most // 4 - 1
    return f"{text[: most - end - 7]} [...] {text[-end:]}"


def utf8(text: str) -> str:
    r"""Escape what UTF-8 cannot encode: bytes of a file name that are not UTF-8, and halves of surrogate pairs.

    >>> print(utf8(os.fsdecode(b"a\xff.png")), utf8("\ud800"))
    a\xff.png \ud800
    """

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return re.sub("[\ud800-\udfff]", escape, text)


def on_one_line(text: str) -> str:
    r"""As `printable`, with tabs and line ends as `\t` and `\n` too.

    >>> print(on_one_line("a\tb\r\nc"))
    a\tb\r\nc
    """
    return printable(text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n"))


def tsv_line(*cells: str) -> str:
    r"""Separate cells by tabs; backslashes in cells are doubled, tabs, line ends and control characters escaped.

    >>> print(tsv_line("a\\b", "c\td").replace("\t", " | "))
    a\\b | c\td
    """
    return "\t".join(on_one_line(cell.replace("\\", "\\\\")) for cell in cells)
