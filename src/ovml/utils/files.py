"""Reading and writing files: clear errors, no half-written file."""

from __future__ import annotations

import codecs
import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ovml.utils.errors import UserError, first_line

MOST_BYTES = 2**26
"""Size of the largest text file that is read: a million names of 60 characters."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full, or of a user who has no more room on it."""


@contextmanager
def atomic_write(path: str | Path, replace_folder: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to, and put it in the place of `path` when the block ends.

    What was written is on the disk before it takes its place, so a kill or a power cut leaves either the old or the
    new. An error in the block removes what was written and leaves `path` as it was. What killed processes left beside
    `path` is removed. Missing parent folders are made. An `OSError` names a file: `path`, if no other.

    Args:
        path: Where the file or folder appears. A file that is there is replaced; a folder that is there must be empty.
        replace_folder: Replace a folder that is there with all that it holds.

    Example:
        >>> target = getfixture("tmp_path") / "names.txt"
        >>> with atomic_write(target) as beside:
        ...     _ = beside.write_text("cat")
        >>> target.read_text()
        'cat'
    """
    path = Path(os.path.realpath(path))  # a link to a file stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    if replace_folder:
        restore_replaced(path)
    beside, old = _hidden_names(path)
    try:
        yield beside
        sync(beside)
        if not (replace_folder and path.is_dir()):
            os.replace(beside, path)
        elif not _exchange(beside, path):
            os.replace(path, old)  # a folder can be renamed over an empty one only
            os.replace(beside, path)
        _fsync(path.parent)
    except OSError as error:
        # A write that fails, such as on a full disk, names no file; putting the file in its place names the hidden one.
        if error.filename in (None, str(beside)) and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(beside)
        _remove(old)


@contextmanager
def locked(path: Path, busy: str, remove: bool = False) -> Iterator[None]:
    """Keep other processes out of the block until it or this process ends, however it ends.

    Args:
        path: A file that serves as the lock; made if it is missing.
        busy: What the error says where another process is in such a block.
        remove: Remove the file in the end.

    Raises:
        UserError: Another process has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "w") as file:
        try:
            # Not `flock`, which processes that load images would inherit and keep after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError as error:  # others: the file system has no locks
            is_ours = error.errno not in (errno.EACCES, errno.EAGAIN)
        if not is_ours:
            raise UserError(busy)
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """Make a hidden folder beside a path for files that are moved out of it; it is removed when the block ends."""
    folder, _ = _hidden_names(Path(path))
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        _remove(folder)


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk."""
    for written in [path, *path.rglob("*")]:
        _fsync(written)


def restore_replaced(path: str | Path) -> None:
    """Put a folder back that a process was replacing when it was killed; nothing else stands in its place."""
    path = Path(path)
    if not os.path.exists(path):
        for old in filter(Path.is_dir, _left_by_the_dead(path, "old")):
            old.rename(path)
            return


def _hidden_names(path: Path) -> tuple[Path, Path]:
    """Names beside a path for what is being written and what is being replaced; remove what killed processes left."""
    for left in _left_by_the_dead(path):
        _remove(left)
    own = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"  # threads may write the same file
    part, old = (path.with_name(f".{_short_name(path)}.{kind}-{own}") for kind in ("part", "old"))
    return part, old


def _short_name(path: Path) -> str:
    """The name of a path, or of a long one a name that leaves room for what is added to it."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= 150 else f"{zlib.crc32(name):08x}"


def _machine() -> str:
    """A name of this machine and its table of processes: containers may share the name, but not the process ids."""
    table = Path("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {table.stat().st_ino if table.exists() else 0}'.encode()):08x}"


def _left_by_the_dead(path: Path, kind: str = "[^-]*") -> list[Path]:
    """What processes of this machine left beside a path when they were killed."""
    ours = re.compile(rf"\.{re.escape(_short_name(path))}\.{kind}-{_machine()}-([0-9]+)-[^-]*")
    try:
        found = map(ours.fullmatch, os.listdir(path.parent))  # names alone: a folder may have many files
    except (OSError, ValueError):  # there is no such folder
        return []
    return [path.with_name(left[0]) for left in found if left and not _is_alive(int(left[1]))]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk, if the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (*FULL, errno.EIO):
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def read_text(path: str | Path, kind: str, form: str, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file that a user wrote: UTF-8, or UTF-16 with a byte order mark.

    Args:
        path: The file.
        kind: What an error calls the file, such as `label`.
        form: What the file should hold, such as `one name per line`.
        most_bytes: Size of the largest file that is read.

    Raises:
        UserError: The file is missing, not a file, too large, or not text.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not str(path).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/")):
            raise UserError(f"{path}: not a file; give a text file, {form}")
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read the {kind} file ({error.strerror}); give a text file, {form}") from error
    if len(content) > most_bytes:
        raise UserError(f"{path}: larger than {most_bytes >> 20} MB, too large for a {kind} file; check the path")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the {kind} file as UTF-8, {form}") from error
    if "\0" in text:
        raise UserError(f"{path}: has a NUL character, so it is not text; save the {kind} file as UTF-8, {form}")
    return text


def check_output(path: Path, suffixes: Sequence[str], overwrite: bool = False) -> None:
    """Check that a file can be written.

    Args:
        path: The file.
        suffixes: Suffixes that its name may have.
        overwrite: Whether the file may exist.

    Raises:
        UserError: It has another suffix, is a folder, or exists.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: cannot tell what to write; let the name end in {', '.join(suffixes)}")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file")
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{path}: exists already; give another name, or use overwrite=True to start over")


def check_folder(path: str | Path, name: str) -> None:
    """Check that a folder is there or can be made.

    Args:
        path: The folder.
        name: The argument's, for errors.

    Raises:
        UserError: It is, or stands in, something else; or the system does not tell.
    """
    path = Path(path)
    for folder in (path, *path.parents):
        try:
            mode = os.stat(folder).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"{name} {str(path)[:80]}: cannot be used ({first_line(error)})") from error
        if not stat.S_ISDIR(mode):
            raise UserError(f"{name} {path}: {folder} is not a folder; give another")
        return


@contextmanager
def write_errors(path: str | Path, advice: str = "choose another place") -> Iterator[None]:
    """Turn errors of writing a file into a `UserError` that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")
