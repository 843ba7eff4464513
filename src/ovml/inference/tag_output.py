"""Tagging into a file, with resume after an interruption.

The rows of `tags.csv` are collected as JSON Lines in `tags.csv.part`, a batch at a time; `tags.csv.part.json` holds the
settings of the run. When all images are tagged, the part is renamed, or converted to CSV or Parquet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ovml.inference.tag_files import Row, image_name, tag_row, write_csv, write_parquet
from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write, check_output, locked, write_errors, write_text
from ovml.utils.images import ImageLike

SUFFIXES = (".jsonl", ".csv", ".parquet")
_errors_of = partial(write_errors, advice="choose another place, or make room and run the same command again to resume")


class Written(NamedTuple):
    """Counts of a file of tags: all rows, rows that an earlier run wrote, images that this run could not read."""

    rows: int
    resumed: int
    errors: int


class _Tagger(Protocol):
    batch_size: int
    top_k: int

    def settings(self) -> dict[str, Any]: ...

    def tag(self, images: Iterable[ImageLike], on_error: Literal["row"]) -> Iterator[tuple[ImageLike, Any]]: ...


def write_tags(
    tagger: _Tagger,
    images: Iterable[ImageLike],
    out: str | Path,
    overwrite: bool = False,
    on_rows: Callable[[Written], None] | None = None,
) -> Written:
    """Tag images into a file; see `Tagger.write`."""
    out = Path(out)
    check_output(out, SUFFIXES, overwrite)
    with _errors_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another process writes it; wait for it, or give another name"
    with locked(out.with_name(f".{out.name}.lock"), busy, remove=True):
        return _write_tags(tagger, images, out, overwrite, on_rows or (lambda _: None))


def _write_tags(
    tagger: _Tagger, images: Iterable[ImageLike], out: Path, overwrite: bool, on_rows: Callable[[Written], None]
) -> Written:
    part, settings_file = (out.with_name(out.name + suffix) for suffix in (".part", ".part.json"))
    with _errors_of(out):
        if overwrite:
            out.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
        check_settings(part, settings_file, tagger.settings(), begun=part.exists())
        resumed, end, last_image = _whole_batches(part, tagger.batch_size)
        file = open(part, "ab")  # noqa: SIM115 - closed below, where its errors are reported
        file.truncate(end)
    try:
        rest = _remaining(images, part, resumed, last_image)
        written = Written(resumed, resumed, 0)
        on_rows(written)
        tagged = enumerate(tagger.tag(rest, on_error="row"), start=resumed)
        while batch := list(islice(tagged, tagger.batch_size)):
            rows = [tag_row(image_name(image, position), result) for position, (image, result) in batch]
            with _errors_of(out):
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
            errors = sum(row["error"] is not None for row in rows)
            written = Written(written.rows + len(rows), resumed, written.errors + errors)
            on_rows(written)
    finally:
        with _errors_of(out), file:
            os.fsync(file.fileno())
    with _errors_of(out):
        _finish(part, out, tagger.top_k)
        settings_file.unlink()
    return written


def _whole_batches(part: Path, batch_size: int) -> tuple[int, int, str | None]:
    """Number of rows in the whole batches of an earlier run, their bytes, and the image of the last row.

    A batch that is not whole, or has a damaged row, as after a power cut, is tagged again, and so is what follows it.
    Batches so hold the same images as in an uninterrupted run, which makes the scores equal to the last bit.
    """
    rows, end, last = 0, 0, None
    if part.exists():
        with open(part, "rb") as file:
            lines = (line for line in file if line.endswith(b"\n"))
            while len(batch := list(islice(lines, batch_size))) == batch_size:
                images = [None if row is None else row["image"] for row in map(_parse, batch)]
                if None in images:
                    break
                rows, end, last = rows + batch_size, end + sum(map(len, batch)), images[-1]
    return rows, end, last


def _remaining(images: Iterable[ImageLike], part: Path, rows: int, last_image: str | None) -> Iterator[ImageLike]:
    """Skip the images that have a row; the last of them must be that of the last row."""
    rest = iter(images)
    done, last = 0, None
    for done, last in enumerate(islice(rest, rows), start=1):  # noqa: B007 - only the last one counts
        pass
    name = None if last is None else image_name(last, done - 1)
    if done < rows or name != last_image:
        found = f"there are {done:,} images" if done < rows else f"image {done:,} is {name}"
        raise UserError(
            f"{part}: begun with other images: row {rows:,} is {last_image}, now {found}; give the same images in the "
            "same order, or delete it, or use overwrite=True to start over"
        )
    return rest


def _parse(line: bytes) -> Row | None:
    """The row in a line; `None` if it is damaged."""
    try:
        row: Row = json.loads(line)
        return row if row.keys() == {"image", "labels", "error"} and isinstance(row["image"], str) else None
    except (ValueError, AttributeError):
        return None


def _rows(lines: Iterable[bytes], part: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            raise UserError(f"{part}: row {number:,} is damaged; run the same command again to resume before it")
        yield row


def _finish(part: Path, out: Path, top_k: int) -> None:
    """Turn the complete part into the file; the part goes when the file is safely on disk."""
    if out.suffix.lower() == ".jsonl":
        part.replace(out)
        return
    with open(part, "rb") as file, atomic_write(out) as beside:
        rows = _rows(file, part)
        if out.suffix.lower() == ".csv":
            write_csv(rows, beside, top_k)
        else:
            write_parquet(rows, beside)
    part.unlink()


def check_settings(part: Path, file: Path, settings: dict[str, Any], begun: bool) -> None:
    """Compare the settings with those that `file` has of an interrupted run, or save them if `part` was not begun.

    Raises:
        UserError: They differ, or the file cannot be read.
    """
    if not begun:
        write_text(file, json.dumps(settings))
        return
    try:
        before = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file}: the settings of the interrupted run {part} cannot be read; delete {part}, or use overwrite=True "
            "to start over"
        ) from error
    differing = sorted(name for name in settings.keys() | before.keys() if before.get(name) != settings.get(name))
    if differing:
        raise UserError(
            f"{part}: begun with another {', '.join(differing)}; give the same, or delete it, or use overwrite=True "
            "to start over"
        )
