"""The one error that means: the input is at fault, and the message says what to do."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MOST = 2**63 - 1
"""The largest whole number of an argument."""


class UserError(ValueError):
    """Bad input from the person at the keyboard: a file, a label list, a configuration.

    The message is one line that names what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with 2; in Python it is an ordinary `ValueError`.

    Example:
        >>> from ovml import LabelVocabulary
        >>> try:
        ...     LabelVocabulary(("cat", "Cat"))
        ... except UserError as error:
        ...     print(error)
        labels: 'Cat' (name 2) and 'cat' differ only in case or blanks (name 1); keep one of them
    """


def one_line(error: UserError) -> str:
    r"""The message itself: a data loader's worker wraps it in the worker's traceback, whose last line it is.

    >>> one_line(UserError("Caught UserError in worker process 0.\n...\novml.utils.errors.UserError: a.png: broken"))
    'a.png: broken'
    """
    return str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")


@contextmanager
def error_at(where: object, advice: str = "") -> Iterator[None]:
    """Name the place in each `UserError` of a block, and what to do.

    Args:
        where: Such as the file that is read.
        advice: Added at the end of the message.

    >>> with error_at("labels.json", "save the model again"):
    ...     raise UserError("no label")
    Traceback (most recent call last):
    ovml.utils.errors.UserError: labels.json: no label; save the model again
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" + (f"; {advice}" if advice else "")) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one that it was raised from or while handling, and so on.

    >>> [type(cause).__name__ for cause in causes(UserError())]
    ['UserError']
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_positive(owner: object, **arguments: float | None) -> None:
    """Raise a `UserError` for arguments that are not greater than 0, or not finite; `None` passes.

    Args:
        owner: The part or the function's name that the error names.
        arguments: Values by name.
    """
    _check(owner, arguments, lambda value: 0 < value < math.inf, "greater than 0")


def check_not_negative(owner: object, **arguments: float | None) -> None:
    """Raise a `UserError` for arguments that are negative, infinite or NaN; see `check_positive`."""
    _check(owner, arguments, lambda value: 0 <= value < math.inf, "0 or greater, and finite")


def check_share(owner: object, **arguments: float | None) -> None:
    """Raise a `UserError` for arguments that are not from 0 to 1; see `check_positive`."""
    _check(owner, arguments, lambda value: 0 <= value <= 1, "from 0 to 1")


def check_whole(owner: object, least: int, **arguments: int | None) -> None:
    """Raise a `UserError` for arguments that are not whole numbers of at least `least`; see `check_positive`.

    Args:
        owner: See `check_positive`.
        least: The smallest number allowed.
        arguments: Values by name.
    """
    _check(owner, arguments, lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number")
    _check(owner, arguments, lambda value: value >= least, f"at least {least}")
    _check(owner, arguments, lambda value: value <= MOST, f"at most {MOST:,}")


def check_at_most(owner: object, most: int, **arguments: float | None) -> None:
    """Raise a `UserError` for arguments above a bound, which keeps a wrong number from filling the memory."""
    _check(owner, arguments, lambda value: not value > most, f"at most {most:,}")


def _check(owner: object, arguments: Mapping[str, Any], fits: Callable[[Any], bool], wanted: str) -> None:
    name = owner if isinstance(owner, str) else type(owner).__name__
    for argument, value in arguments.items():
        if value is not None and not fits(value):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            raise UserError(f"{name}: {argument} must be {wanted}; got {f'{value:,}' if is_number else repr(value)}")


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, to be part of another one; two lines where the first ends in a colon.

    >>> first_line(ValueError("too long.\nsee below")), first_line(KeyboardInterrupt())
    ('too long', 'KeyboardInterrupt')
    """
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()}"
    return first.rstrip(".")


def beginning(text: str, most: int = 100) -> str:
    """A text in a line of an error or a message, cut if it is long.

    >>> beginning("cat"), beginning("red " * 10_000, most=12)
    ('cat', 'red red red ...')
    """
    return text if len(text) <= most else f"{text[:most]}..."


def all_lines(error: object) -> str:
    r"""The whole message of an error, to be part of another one, on one line.

    >>> all_lines(ValueError("too long:\n  12 tokens"))
    'too long: 12 tokens'
    """
    return " ".join(str(error).split())
