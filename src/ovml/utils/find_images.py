"""Finding image files in folders and by patterns."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.urls import check_allowed, is_url

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)


def find_images(
    paths: Iterable[str | Path], skipped: Counter[str] | None = None, allow_urls: bool = False
) -> Iterator[Path | str]:
    """Yield the image files in folders and of patterns; files and URLs are yielded as they are.

    Folders are searched in the order of their names, one at a time as they are needed. Hidden files and folders are
    skipped, and links to folders are not followed. What cannot be listed or read, or has a name that is too long, is
    yielded itself, so that reading it reports the error.

    Args:
        paths: Files, folders, or patterns such as `photos/**/*.jpg`, in which `**` matches any number of folders.
        skipped: Counts the files in folders that are no images, by suffix, what is hidden, as `hidden`, and pipes,
            links to folders and the like, as `no file`.
        allow_urls: Whether URLs may be among the paths.

    Raises:
        UserError: On the call: a path does not exist, a folder or pattern has no image, or a URL is not allowed.
    """
    found: list[Iterator[Path | str]] = []
    for given in paths:
        if is_url(given):
            check_allowed(str(given), allow_urls)
            found.append(iter([given]))
            continue
        path = Path(given)
        mode = _mode(path)
        inside, nothing = iter([path]), ""
        if stat.S_ISDIR(mode or 0):
            inside = _search(path, skipped=skipped)
            nothing = f"no images in this folder; looked for {', '.join(sorted(EXTENSIONS))}"
        elif not mode and _is_pattern(str(path)):
            inside, nothing = _match(path), "no file fits this pattern; check it"
        elif mode is None:
            raise UserError(f"{path}: no such file or folder; check the path")
        first = next(inside, None)
        if first is None:
            raise UserError(f"{path}: {nothing}")
        found.append(chain([first], inside))
    return chain.from_iterable(found)


def _mode(path: Path) -> int | None:
    """The mode of a file; `None` if it does not exist, 0 if it cannot be looked at."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        return 0


def _match(pattern: Path) -> Iterator[Path]:
    """Yield the files that match a pattern, and the images in folders that match it."""
    fixed = next(i for i, part in enumerate(pattern.parts) if _is_pattern(part))
    folder, parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    parts = tuple(part for i, part in enumerate(parts) if part != "**" or parts[i - 1 : i] != ("**",))
    return _search(folder, parts, {0}, inside=False) if folder.is_dir() else iter(())


def _is_pattern(part: str) -> bool:
    return any(character in part for character in "*?[")


def _search(
    folder: Path,
    pattern: Sequence[str] = (),
    at: Set[int] = frozenset(),
    inside: bool = True,
    skipped: Counter[str] | None = None,
) -> Iterator[Path]:
    """Search a folder.

    Args:
        folder: The folder.
        pattern: Parts of the pattern that paths must match.
        at: Indices of the parts that may match next.
        inside: Whether to yield all images in the folder, whether they match or not.
        skipped: See `find_images`; a pattern says itself what it leaves out.
    """
    skipped = Counter() if skipped is None else skipped
    at = at | {i + 1 for i in at if pattern[i : i + 1] == ("**",)}
    for path, is_folder in _entries(folder):
        after = {i + (pattern[i] != "**") for i in at if i < len(pattern) and _fits(path.name, pattern[i])}
        fits = len(pattern) in after or (len(pattern) - 1 in after and pattern[-1] == "**")
        hidden = path.name.startswith(".") and path != folder
        if is_folder:
            if after or (inside and not hidden):
                yield from _search(path, pattern, after, (inside and not hidden) or fits, skipped)
            elif inside:
                skipped["hidden"] += 1
        elif is_folder is False and (
            fits or path == folder or (inside and not hidden and path.suffix.lower() in EXTENSIONS)
        ):
            yield path
        elif inside:
            kind = "no file" if is_folder is None else path.suffix.lower() or "no suffix"
            skipped["hidden" if hidden else kind] += 1


def _fits(name: str, part: str) -> bool:
    # As in a shell, hidden files match only patterns that start with a dot.
    return fnmatchcase(name, part) and (part[0] == "." or name[0] != ".")


def _entries(folder: Path) -> Iterator[tuple[Path, bool | None]]:
    """What is in a folder, by name, with its `_kind`; the folder itself as a file if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(((entry.name, _kind(entry)) for entry in entries), key=lambda entry: entry[0])
    except OSError:
        yield folder, False
        return
    for name, is_folder in found:
        yield folder / name, is_folder


def _kind(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder; `None` for devices and the like. An entry that cannot be looked at is a file."""
    try:
        return True if entry.is_dir(follow_symlinks=False) else False if entry.is_file() else None
    except OSError:
        return False
