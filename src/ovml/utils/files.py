"""Files that are never half there, and the folder of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovml.utils.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to, and rename it to `path` when the block ends.

    An error in the block removes what was written and leaves `path` as it was. Missing parent folders are made.

    Args:
        path: Where the file or folder appears. A file that is there is replaced; a folder that is there must be empty.

    Example:
        >>> target = getfixture("tmp_path") / "names.txt"
        >>> with atomic_write(target) as beside:
        ...     _ = beside.write_text("cat")
        >>> target.read_text()
        'cat'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


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
    for folder in (path, path.parent, path.parent.parent):
        if path.exists() and (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"ckpt_path {path}: not a run; give 'last', a run's folder (with its config.yaml) or a checkpoint inside one"
    )
