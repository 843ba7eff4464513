"""The folder of uploaded images, and its limits."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

MINUTE = 60
PUBLIC = "/ovml-uploads"
"""What browsers read and send as the name of the folder."""
THUMBNAILS = "/ovml-thumbnails"
"""Where thumbnails are served."""
EXAMPLES = "examples"
"""Its folder of example images, which are kept."""


@dataclass(frozen=True)
class Uploads:
    """The files that visitors uploaded, of which the newest are kept.

    Args:
        folder: Holds them, and nothing else but `EXAMPLES`.
        max_file_size: Maximum size of a file in bytes.
        max_files: Maximum number of files.
        max_total_size: Maximum size of all files in bytes. Default: 20 files of the maximum size.
        max_age: Seconds that a file is kept after it was uploaded or used last.
    """

    folder: Path
    max_file_size: int
    max_files: int = 100
    max_total_size: int | None = None
    max_age: float = 10 * MINUTE

    def tidy(self) -> None:
        """Delete the files that are old or beyond the limits, the longest unused first."""
        oldest = time.time() - self.max_age
        left, room = self.max_files, self.max_total_size or 20 * self.max_file_size
        for used, size, path in sorted(self._files(), reverse=True):
            left, room = left - 1, room - size
            if used < oldest or left < 0 or room < 0:
                with suppress(OSError):  # another request reads it, or it is gone
                    path.unlink()
                    if path.parent != self.folder:
                        path.parent.rmdir()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names):
                if path.parent.name != EXAMPLES:
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        yield status.st_mtime, status.st_size, path

    def hide(self, text: bytes) -> bytes:
        """Replace the folder's path by its public name: a path may tell who runs the page.

        >>> Uploads(Path("/home/ada/tmp"), 1).hide(b'{"path": "/home/ada/tmp/x.png"}')
        b'{"path": "/ovml-uploads/x.png"}'
        """
        folder = str(self.folder)
        for written in (json.dumps(folder)[1:-1], json.dumps(folder, ensure_ascii=False)[1:-1], quote(folder)):
            text = text.replace(written.encode(), PUBLIC.encode())
        return text

    def reveal(self, text: bytes) -> bytes:
        """Replace the folder's public name in JSON by its path."""
        return text.replace(PUBLIC.encode(), json.dumps(str(self.folder))[1:-1].encode())


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A new folder that Gradio stores uploads in, deleted at the end; its parent is `GRADIO_TEMP_DIR`, if set."""
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ovml-", dir=parent or None, ignore_cleanup_errors=True) as folder:
        path = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(path)
        try:
            yield path
        finally:
            if parent is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = parent


def used(path: str) -> None:
    """Note that an uploaded file is in use."""
    with suppress(OSError):
        os.utime(path)
