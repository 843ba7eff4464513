"""Reading and writing files: clear errors, no half-written file; and the folder of a run."""

from __future__ import annotations

import codecs
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ovml.utils.errors import UserError

MOST_BYTES = 2**26
"""Size of the largest text file that is read: a million names of 60 characters."""


@contextmanager
def atomic_write(path: str | Path, replace_folder: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to, and rename it to `path` when the block ends.

    An error in the block removes what was written and leaves `path` as it was. Missing parent folders are made.

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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = secrets.token_hex(4)  # processes on other machines, and threads, may write the same file
    beside, old = (path.with_name(f".{path.name}.{kind}-{own}") for kind in ("part", "old"))
    try:
        yield beside
        if replace_folder and path.is_dir():
            path.rename(old)  # a folder can be renamed over an empty one only
        os.replace(beside, path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (beside, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


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
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; give another name, or use overwrite=True to start over")


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


def run_folder(path: str | Path) -> Path:
    """The folder of a run of `ovml fit`, given it or a file inside it.

    Raises:
        UserError: There is no such run.
    """
    path = Path(path)
    for folder in (path, *path.parents[:4]):  # as in RUN/STAGE/log/checkpoints/FILE
        if os.path.exists(path) and (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"ckpt_path {path}: not a run; give 'last', a run's folder (with its config.yaml) or a checkpoint inside one"
    )
