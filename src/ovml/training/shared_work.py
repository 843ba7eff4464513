"""Work that processes share, of which each does its part: all wait for all, and stop where one fails."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch import distributed
from typing_extensions import Self

from ovml.training.distributed import world_size
from ovml.utils.errors import UserError, first_line

INTERVAL = 10.0
"""Seconds between two exchanges of a process that works."""
LONGEST = timedelta(minutes=10)
"""Time that the others wait for a process that neither works on nor ends, such as one that is stopped."""
WORKING, DONE = "working", "done"


class SharedWork:
    """A context in which processes do different parts of one piece of work, each in its own time.

    A process that works calls `check` again and again. At the end of the context a process waits until all are done.
    If one raises an error, all others raise a `UserError` with its message; if one is killed, they notice as soon as
    the connection is closed. They talk over gloo, because with NCCL they would wait for a process that is gone.

    Args:
        interval: See `INTERVAL`.

    Example:
        >>> with SharedWork() as work:
        ...     work.check()
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self._last = time.monotonic()
        self._group: Any = None

    def __enter__(self) -> Self:
        if world_size() > 1:
            self._group = distributed.new_group(backend="gloo", timeout=LONGEST)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._group is None:
            return
        try:
            if error is None:
                self.wait()
            elif isinstance(error, Exception) and not isinstance(error, _FailedElsewhere):
                prefix = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                self._states(prefix + first_line(error))
        except _FailedElsewhere:
            if error is None:
                raise
        finally:
            distributed.destroy_process_group(self._group)

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes in their order; all must call it at the same point."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * world_size()
        try:
            distributed.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise _FailedElsewhere(
                "another process has ended or does not answer; see its own message, then run the same command again"
            ) from error
        return found

    def check(self) -> None:
        """Learn whether another process has failed, if some seconds have passed; raises its error."""
        if time.monotonic() - self._last >= self.interval:
            self._states(WORKING)

    def wait(self) -> None:
        """Wait until all processes have come to such a point; raises the error of one that fails."""
        while WORKING in self._states(DONE):
            pass

    def _states(self, own: str) -> list[Any]:
        states = self.exchange(own)
        self._last = time.monotonic()
        for rank, state in enumerate(states):
            if state not in (WORKING, DONE) and own in (WORKING, DONE):
                raise _FailedElsewhere(f"process {rank} has failed: {state}")
        return states


class _FailedElsewhere(UserError):
    """An error of another process."""
