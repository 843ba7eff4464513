"""Writing tags to a file, a row an image in the order of the images, and taking an interrupted run up again.

While it is being written, `tags.jsonl` is `tags.jsonl.part`, and `tags.jsonl.part.json` holds the settings that it was
begun with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ovml.inference.tag_files import FILES, TagFile, TagRow, utf8
from ovml.training.stages import write_aside
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from ovml.inference.tagger import Tagger
    from ovml.utils.images import ImageLike


class Written(NamedTuple):
    """Counts of a file of tags: rows in all, rows of them that an earlier run wrote, errors in the others."""

    rows: int
    resumed: int
    errors: int


def write_tags(
    tagger: Tagger,
    images: Iterable[ImageLike],
    out: str | Path,
    overwrite: bool = False,
    on_rows: Callable[[Written], None] | None = None,
) -> Written:
    """Tag images into a file; see `Tagger.write`."""
    out = Path(out)
    check_out(out, overwrite)
    file = FILES[out.suffix.lower()](out, tagger.top_k)
    settings_file = out.with_name(out.name + ".part.json")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            out.unlink(missing_ok=True)
            file.discard()
        check_settings(file.part, settings_file, tagger.settings(), begun=file.part.exists())
        file.open(tagger.batch_size)
    on_rows = on_rows or (lambda _: None)
    finished = False
    try:
        rest = _left(images, file)
        written = Written(file.rows, file.rows, 0)
        on_rows(written)
        tagged = enumerate(tagger.tag(rest, on_error="row"), start=file.rows)
        while batch := list(islice(tagged, tagger.batch_size)):
            rows = [TagRow.of(image_name(image, position), result) for position, (image, result) in batch]
            with _writing(out):
                file.write(rows)
            errors = sum(row.error is not None for row in rows)
            written = written._replace(rows=file.rows, errors=written.errors + errors)
            on_rows(written)
        finished = True
    finally:
        with _writing(out):
            if finished:
                file.finish()
                settings_file.unlink()
            else:
                file.close()
    return written


def _left(images: Iterable[ImageLike], file: TagFile) -> Iterator[ImageLike]:
    """The images that an earlier run has not got to."""
    rest = iter(images)
    done, last = 0, None
    for done, last in enumerate(islice(rest, file.rows), start=1):  # noqa: B007 - of interest is the last one
        pass
    name = None if last is None else image_name(last, done - 1)
    if done < file.rows or name != file.last_image:
        found = f"there are {done:,} images" if done < file.rows else f"image {done:,} is {name}"
        raise UserError(
            f"{file.part}: begun with other images: row {file.rows:,} is {file.last_image}, now {found}; give the same "
            "images in the same order, or delete it, or use --overwrite to begin anew"
        )
    return rest


def image_name(image: ImageLike, position: int) -> str:
    """How a row names its image: its path, or the position of what is no path.

    >>> image_name("a/b.png", 7), image_name(b"...", 7)
    ('a/b.png', '7')
    """
    return utf8(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else str(position)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise a `UserError` where an output has an unknown ending or is already there."""
    if out.suffix.lower() not in FILES:
        raise UserError(f"{out}: cannot tell what to write; let the name end in {', '.join(FILES)}")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give a file")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; give another name, or use --overwrite to begin anew")


def check_settings(part: Path, file: Path, settings: dict[str, Any], begun: bool) -> None:
    """Compare settings with those that a part was begun with, or write them down where it was not begun.

    Args:
        part: For the message.
        file: Holds the settings.
        settings: Those of now.
        begun: Whether the part was.

    Raises:
        UserError: They differ, or are not there.
    """
    if not begun:
        write_aside(file, json.dumps(settings))
        return
    try:
        before = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file}: the settings of the interrupted run {part} cannot be read; delete {part}, or use --overwrite to "
            "begin anew"
        ) from error
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        raise UserError(
            f"{part}: begun with another {', '.join(differing)}; give the same, or delete it, or use --overwrite to "
            "begin anew"
        )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); choose another place, or make room and run the "
            "same command again to go on"
        ) from error
